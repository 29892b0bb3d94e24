"""Round trips, damage, other device counts, configurations: what a stopped run can rely on."""

import shutil
from typing import Any

import flax
import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from dsrl_jax import checkpoint, config
from dsrl_jax.errors import UserError

# Pytest hears of the reads that orbax abandons at a broken file; users do not.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

CONFIG = {'model': {'net': 'toy', 'dsrl': 'full', 'sizes': (1, 2)}, 'data': {'batch_size': 8}}


class State(flax.struct.PyTreeNode):
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None


def replicated():
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec())


def make_state(step=0, sharding=None, width=8):
    """A small state with an optimizer chain, an empty sub-tree and a leaf beyond inlined sizes."""
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(3, 3, 16, width)).astype(np.float32)
    params = {'stem': {'conv': {'kernel': kernel}, 'norm': {}}, 'head': {'bias': np.ones(3, 'f')}}
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(lambda i: 0.1 * i, momentum=0.9))
    state = State(
        step=np.int32(step),
        params=params,
        batch_stats={'stem': {'mean': rng.normal(size=8).astype(np.float32)}},
        opt_state=tx.init(params),
    )
    return jax.device_put(state, replicated() if sharding is None else sharding)


def abstract_of(state, sharding=None):
    """Shapes of a state with the sharding to restore into, its own where none is given."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
    """A workdir with the good steps 1 and 2, to copy and damage."""
    folder = tmp_path_factory.mktemp('run')
    with checkpoint.open(folder, every=1) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, make_state(step), {**CONFIG, 'mark': step})
    return folder


@pytest.fixture
def run(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / 'copy')


def test_round_trip_is_exact_and_keeps_the_newest(tmp_path):
    with checkpoint.open(tmp_path, keep=2, every=2) as checkpoints:
        assert checkpoints.latest is None
        saved = [checkpoints.save(step, make_state(step), CONFIG) for step in range(1, 7)]
        assert saved == [False, True] * 3
        assert checkpoints.save(6, make_state(6), CONFIG, force=True) is False
        assert checkpoints.save(7, make_state(7), CONFIG, force=True) is True
        checkpoints.wait()
        state, step = checkpoints.restore(abstract_of(make_state()))
    assert step == 7 and int(state.step) == 7
    same(state, make_state(7))
    assert isinstance(state, State) and state.ema is None
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['6', '7']


def test_the_best_one_stays_beside_the_newest_over_restarts(tmp_path):
    for step, miou in enumerate([0.1, 0.5, float('nan'), 0.4, None], 1):
        with checkpoint.open(tmp_path, keep=1, every=1, best='miou') as checkpoints:
            metrics = None if miou is None else {'miou': miou}
            assert checkpoints.save(step, make_state(step), CONFIG, metrics=metrics)
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['2', '5']


def test_a_broken_score_does_not_stop_a_resume(tmp_path, capfd):
    for step, damaged in ((1, False), (2, True)):
        with checkpoint.open(tmp_path, keep=1, every=1, best='miou') as checkpoints:
            checkpoints.save(step, make_state(step), CONFIG, metrics={'miou': step})
        path = tmp_path / 'checkpoints' / str(step) / 'metrics' / 'metrics'
        assert path.is_file()
        if damaged:
            path.write_text('{"be')
    with checkpoint.open(tmp_path, keep=1, every=1, best='miou') as checkpoints:
        assert checkpoints.restore(abstract_of(make_state()))[1] == 2
    assert 'step 2 counts as not scored' in capfd.readouterr().err


def test_a_step_that_overwrites_its_state_does_not_reach_the_files(tmp_path):
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make_state(1)
    with checkpoint.open(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, state, CONFIG)
        for _ in range(20):
            state = update(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(abstract_of(state))
    same(restored, make_state(1))


def test_device_counts_may_change_both_ways(run, tmp_path):
    one = SingleDeviceSharding(jax.devices()[0])
    with checkpoint.open(run, every=1) as checkpoints:
        state, _ = checkpoints.restore(abstract_of(make_state(), one))
    same(state, make_state(2, one))
    assert state.params['stem']['conv']['kernel'].sharding.device_set == {jax.devices()[0]}
    with checkpoint.open(tmp_path / 'one', every=1) as checkpoints:
        checkpoints.save(3, make_state(3, one), CONFIG)
        checkpoints.wait()
        state, _ = checkpoints.restore(abstract_of(make_state(), replicated()))
    same(state, make_state(3))
    assert len(state.step.sharding.device_set) == 4


def largest(folder):
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    'no manifest': lambda step: (step / 'state' / 'manifest.ocdbt').unlink(),
    'no list of arrays': lambda step: (step / 'state' / '_METADATA').write_text('{"tree'),
    'no array': lambda step: largest(step).unlink(),
    'half an array': lambda step: largest(step).write_bytes(largest(step).read_bytes()[:1000]),
    'one bit': lambda step: largest(step).write_bytes(flip(largest(step).read_bytes())),
    'empty config': lambda step: (step / 'config' / 'metadata').write_text(''),
    'nothing': lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
}


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_newest_step_gives_way_to_the_one_before(run, capfd, kind):
    DAMAGE[kind](run / 'checkpoints' / '2')
    abstract = abstract_of(make_state())
    weights, step = checkpoint.restore_weights(run, {'params': abstract.params})
    assert step == 1
    assert (run / 'checkpoints' / '2').is_dir()  # a reader changes nothing
    with checkpoint.open(run, every=1) as checkpoints:
        state, step = checkpoints.restore(abstract)
        same(state, make_state(1))
        same(weights['params'], state.params)
        assert step == checkpoints.latest == 1
        assert checkpoints.save(2, make_state(2), CONFIG)  # the number is free again
        checkpoints.wait()
        assert checkpoints.restore(abstract)[1] == 2
    assert len(list((run / 'checkpoints').glob('2.broken-*'))) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all('checkpoints/2: cannot be read (' in x and 'using step 1' in x for x in lines)


def test_when_all_are_damaged_nothing_is_renamed(run):
    for step in '12':
        DAMAGE['half an array'](run / 'checkpoints' / step)
    with (
        checkpoint.open(run) as checkpoints,
        pytest.raises(UserError, match=r'step 2: .* step 1: '),
    ):
        checkpoints.restore(abstract_of(make_state()))
    assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['1', '2']


def test_a_half_written_step_is_named_and_removed(run, capfd):
    folder = run / 'checkpoints'
    (folder / '2').rename(folder / '2.orbax-checkpoint-tmp')
    with checkpoint.open(run, every=1) as checkpoints:
        assert checkpoints.config()['mark'] == 1
        assert checkpoints.latest == 1
        assert checkpoints.restore(abstract_of(make_state()))[1] == 1
        assert checkpoints.save(2, make_state(2), CONFIG)
    assert sorted(p.name for p in folder.iterdir()) == ['1', '2']
    assert '2.orbax-checkpoint-tmp: half-written' in capfd.readouterr().err


def test_other_leaves_are_named_with_both_shapes(run):
    with checkpoint.open(run) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore(abstract_of(make_state(width=12)))
        text = str(caught.value)
        assert 'params.stem.conv.kernel float32[3, 3, 16, 8]' in caught.value.found
        assert 'params.stem.conv.kernel float32[3, 3, 16, 12]' in caught.value.expected
        assert 'head.bias' not in text
        extra = abstract_of(make_state())
        extra.params['transform'] = extra.params['head']
        with pytest.raises(UserError, match=r'params\.transform\.bias missing'):
            checkpoints.restore(extra)
        fewer = abstract_of(make_state())
        del fewer.params['head']
        with pytest.raises(UserError, match=r'params\.head\.bias absent'):
            checkpoints.restore(fewer.replace(opt_state=extra.opt_state))
    assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['1', '2']


def test_weights_alone_restore_to_numpy_or_devices(two_steps):
    state = make_state(2)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        {'params': state.params, 'batch_stats': state.batch_stats},
    )
    for path in (two_steps, two_steps / 'checkpoints'):
        weights, step = checkpoint.restore_weights(path, shapes)
        assert step == 2
        same(weights, jax.device_get({'params': state.params, 'batch_stats': state.batch_stats}))
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(weights))
    on_devices, _ = checkpoint.restore_weights(two_steps, {'params': abstract_of(state.params)})
    same(on_devices['params'], state.params)
    with pytest.raises(UserError, match=r'ema\.head missing'):
        checkpoint.restore_weights(two_steps, {'ema': {'head': shapes['params']['head']['bias']}})
    with pytest.raises(UserError, match='no checkpoint'):
        checkpoint.restore_weights(two_steps / 'checkpoints' / '2' / 'state', shapes)
    with pytest.raises(UserError, match='no folder'):
        checkpoint.restore_weights(two_steps / 'nowhere', shapes)


def test_configs_are_compared_where_asked(run):
    with checkpoint.open(run) as checkpoints:
        saved = checkpoints.config()
        assert saved['mark'] == 2
        DAMAGE['empty config'](run / 'checkpoints' / '2')
        assert checkpoints.config()['mark'] == 1
    keys = ('model', 'data.batch_size')
    config.compare(saved, {**CONFIG, 'mark': 5}, keys)
    for path, now, was in (
        ('model.net', {**CONFIG, 'model': {**CONFIG['model'], 'net': 'other'}}, '"toy"'),
        ('data.batch_size', {**CONFIG, 'data': {'batch_size': 16}}, '8'),
        ('model.tap', {**CONFIG, 'model': {**CONFIG['model'], 'tap': 'merge'}}, 'nothing'),
    ):
        with pytest.raises(UserError) as caught:
            config.compare(saved, now, keys)
        assert caught.value.where == f'config {path}' and was in caught.value.expected
    config.compare({'model_b': 1}, {'model_b': 2}, ('model',))


def test_exported_parameters_load_anywhere(tmp_path):
    variables = {'params': make_state(4).params, 'batch_stats': {}}
    checkpoint.save_params(tmp_path / 'm' / 'params', variables)
    loaded = checkpoint.load_params(tmp_path / 'm' / 'params')
    same(loaded, jax.device_get(variables))
    one = SingleDeviceSharding(jax.devices()[1])
    there = checkpoint.load_params(tmp_path / 'm' / 'params', abstract_of(variables, one))
    same(there, variables)
    assert there['params']['head']['bias'].sharding == one
    with pytest.raises(UserError, match='exists'):
        checkpoint.save_params(tmp_path / 'm' / 'params', variables)
    with pytest.raises(UserError, match=r'kernel float32\[3, 3, 16, 8\]'):
        wide = {'params': make_state(4, width=9).params, 'batch_stats': {}}
        checkpoint.load_params(tmp_path / 'm' / 'params', abstract_of(wide))
    with pytest.raises(UserError, match='saved parameters'):
        checkpoint.load_params(tmp_path / 'm')


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='a folder to write'):
        checkpoint.open(tmp_path / 'file')
    with pytest.raises(UserError, match='a folder to write'):
        checkpoint.save_params(tmp_path / 'file' / 'params', {'a': np.ones(2)})


def test_no_checkpoint_at_all(tmp_path):
    with checkpoint.open(tmp_path) as checkpoints:
        with pytest.raises(UserError, match='no checkpoint'):
            checkpoints.restore(abstract_of(make_state()))
        with pytest.raises(UserError, match='no checkpoint'):
            checkpoints.config()
