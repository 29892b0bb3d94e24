"""What a training step sends between devices: gradients, batch statistics, a few scalars; no maps.

The step of dsrl=full is compiled ahead of time for fake devices and its program is read.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import scaling

from dsrl_jax import parallel
from dsrl_jax.ops.convolution import conv

ROOT = pathlib.Path(__file__).resolve().parent.parent

BATCH, SHARED = 2, 4  # images a device; images that share statistics where that is bounded
SCALARS = 16  # at most: the sums and counts of the three losses


def compile_rows(path, *flags):
    command = [sys.executable, 'launch/scaling.py', 'compile', f'--results={path}', *flags]
    # The plain convolutions: their gradients have the shapes of the parameters.
    toy = ['--net=toy_network:Toy', '--size=64x128', f'--batch={BATCH}', '--impl=lax']
    paths = os.pathsep.join((str(ROOT), str(ROOT / 'tests')))
    environment = {**os.environ, 'PYTHONPATH': paths}
    done = subprocess.run([*command, *toy], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(path.read_text())


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    """{(devices, bn_group): what the step of a narrow network sends}."""
    path = tmp_path_factory.mktemp('scaling') / 'rows.json'
    compile_rows(path, '--devices=2,8')
    found = compile_rows(path, '--devices=8', f'--bn_group={SHARED}')
    return {(row['devices'], row['bn_group']): row for row in found}


def sent(row, **wanted):
    """The sum of the bytes of those collectives."""
    return sum(one['bytes'] for one in row['sent'] if all(one[k] == v for k, v in wanted.items()))


def gradients_and_statistics(row):
    """Bytes: two sums a channel forward; backward, the gradients, among them those of scale and
    bias, which are the two backward sums of a norm."""
    return 4 * row['parameters'] + 2 * 4 * row['channels']


@pytest.mark.parametrize('devices', [2, 8])
def test_a_step_sends_gradients_statistics_and_scalars_alone(rows, devices):
    row = rows[devices, 0]
    assert {one['kind'] for one in row['sent']} == {'all-reduce'}
    assert {one['group'] for one in row['sent']} == {devices}
    rest = sent(row) - gradients_and_statistics(row)
    # The affinity loss, the other losses and their counts: no map and no matrix of pairs.
    assert 0 < rest <= 4 * SCALARS


def test_what_is_sent_does_not_grow_with_the_devices(rows):
    two, eight = ([(one['operations'], one['bytes']) for one in rows[n, 0]['sent']] for n in (2, 8))
    assert two == eight


def test_no_array_that_is_sent_is_larger_than_a_parameter(rows):
    largest = 3 * 3 * 64 * 128  # the SISR branch's convolution to its first shuffle
    assert all(row['largest_array'] == largest for row in rows.values())


def test_bn_group_bounds_the_devices_that_share_statistics(rows):
    row = rows[8, SHARED]
    inside, groups = SHARED // BATCH, 8 * BATCH // SHARED
    assert {one['kind'] for one in row['sent']} == {'all-reduce'}
    assert {one['group'] for one in row['sent']} == {inside, groups, 8}
    # Two sums a channel forward and two backward stay among the devices of a group. Once a step
    # the kept mean and variance and the gradients of scale and bias go over the groups.
    assert sent(row, group=inside) == sent(row, group=groups) == 4 * 4 * row['channels']
    rest = sent(row, group=8) - 4 * (row['parameters'] - 2 * row['channels'])
    assert 0 < rest <= 4 * SCALARS
    assert sum(one['operations'] for one in row['sent'] if one['group'] > inside) <= 5


def test_a_gathered_map_would_be_found():
    mesh = parallel.make_mesh()
    count = jax.device_count()
    x = jax.ShapeDtypeStruct((2 * count, 3), jnp.float32, sharding=parallel.by_batch(mesh))
    run = jax.jit(lambda x: x @ x.T, out_shardings=parallel.by_batch(mesh))
    found = scaling.collectives(run.lower(x).compile().as_text(), count)
    assert [(one['kind'], one['group']) for one in found] == [('all-gather', count)]


@pytest.mark.parametrize('impl', ['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize('groups, dilation', [(8, 1), (2, 1), (2, 2)])
def test_the_gradient_of_a_grouped_kernel_gathers_no_maps(impl, groups, dilation):
    # In the plain form XLA gathers the maps of all devices, unless the groups are depthwise.
    def loss(x, kernel, impl):
        y = conv(x, kernel, groups=groups, dilation=dilation, padding=dilation, impl=impl)
        return jnp.sum(jnp.square(y))

    def kinds(impl):
        run = jax.jit(jax.grad(lambda x, kernel: loss(x, kernel, impl), (0, 1)))
        text = run.lower(x, kernel).compile().as_text()
        return {one['kind'] for one in scaling.collectives(text, count)}

    mesh, count = parallel.make_mesh(), jax.device_count()
    by_batch, everywhere = parallel.by_batch(mesh), parallel.replicated(mesh)
    x = jax.ShapeDtypeStruct((2 * count, 8, 8, 8), jnp.float32, sharding=by_batch)
    shape = (3, 3, 8 // groups, 8)
    kernel = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)
    assert kinds(impl) == {'all-reduce'}
    if impl == 'tpu' and groups == 2:
        assert 'all-gather' in kinds('lax')


def test_replica_groups_are_read_in_every_way_they_are_written():
    line = '  %all-reduce.1 = (f32[2,8]{1,0}, bf16[]) all-reduce(%a, %b), channel_id=1, '
    written = {
        'replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add': 4,
        'replica_groups={}, to_apply=%add': 8,
        'replica_groups=[4,2]<=[8], to_apply=%add': 2,
        "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add": 4,
        "replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0','axis_1'}, to_apply=%add": 8,
    }
    for text, group in written.items():
        (found,) = scaling.collectives(line + text, 8)
        assert found == {'kind': 'all-reduce', 'sizes': [16, 1], 'bytes': 66, 'group': group}
    with pytest.raises(ValueError, match='unknown form'):
        scaling.collectives(line + 'replica_groups=everyone', 8)


def test_the_times_are_those_of_a_ring_and_of_the_latencies():
    chip = scaling.CHIPS[0]._replace(link={8: 1e9}, latency={8: 1e-3})
    row = {'sent': [{'group': 8, 'operations': 3, 'bytes': 4e9}]}
    # Reduce-scatter and all-gather: each sends 7 of 8 parts.
    assert scaling.communication(row, chip) == pytest.approx((3e-3, 7.0))
    assert scaling.torus(16, 16, wrap=True) == pytest.approx(32 * scaling.HOP)
    assert scaling.torus(2, 4) == pytest.approx(8 * scaling.HOP)
    assert scaling.tree(1) == pytest.approx(15.2e-6)


def test_the_page_holds_what_the_command_prints():
    page = (ROOT / 'docs/scaling.md').read_text(encoding='utf-8').splitlines()
    printed = list(scaling.tables(json.loads(scaling.RESULTS.read_text())))
    assert len(printed) > 40
    assert not [line for line in printed if line.startswith('|') and line not in page]


def test_the_compiled_steps_on_record_send_the_same_for_8_64_and_256_devices():
    recorded = json.loads(scaling.RESULTS.read_text())
    for net in ('espnetv2', 'deeplabv3plus_resnet101'):
        mine = [r for r in recorded if r['net'] == net and r['impl'] == 'gpu' and not r['bn_group']]
        assert [r['devices'] for r in mine] == list(scaling.DEVICES)
        assert len({sent(r) for r in mine}) == 1
        assert {one['kind'] for r in mine for one in r['sent']} == {'all-reduce'}
