"""What `dsrl bench` prints agrees with itself; how it times; costliest operations; the peer."""

import contextlib
import functools
import io
import json
import math
import sys
import time

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData
from refusals import refused

from dsrl_jax import bench, cli, costs, peer, profiling, timing, turns, workload
from dsrl_jax.errors import UserError
from dsrl_jax.report import speed
from dsrl_jax.workload import Workload

TOY = (
    *('bench', '--net=toy_network:Toy', '--size=32x64', '--num_classes=5'),
    *('--batch=2', '--seconds=0.05'),
)
WORK = Workload(
    net='toy_network:Toy',
    size=(32, 64),
    batch=2,
    num_classes=5,
    train=False,
    dsrl='sssr',
    head=None,
    scale=2,
    dtype='float32',
    kind='exact',
    options={},
)


def run(*flags):
    """Lines of a benchmark's text, and the JSON object behind them."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*TOY, *flags]) == 0
    *lines, last = out.getvalue().splitlines()
    return lines, json.loads(last)


@pytest.fixture(scope='module')
def predicted(tmp_path_factory):
    """A benchmark of prediction with a trace: lines, object."""
    return run(f'--profile={tmp_path_factory.mktemp("trace")}')


@pytest.fixture(scope='module')
def trained():
    """A benchmark of the training step: lines, object."""
    return run('--train', '--dsrl=sssr', '--steps=2', '--repeats=4')


@pytest.mark.parametrize('which', ['predicted', 'trained'])
def test_figures_agree_with_each_other(which, request):
    _, found = request.getfixturevalue(which)
    assert found['images_per_second'] == pytest.approx(2 / (found['ms'] / 1e3))
    low, high = found['ms_range']
    assert 0 < low <= found['ms'] <= high
    slow, fast = found['images_per_second_range']
    assert (slow, fast) == pytest.approx((2e3 / high, 2e3 / low))
    assert found['tflops'] == pytest.approx(2 * found['macs'] / (found['ms'] / 1e3) / 1e12)
    assert found['matmul_fraction'] == pytest.approx(found['tflops'] / found['matmul_tflops'])
    ratio = found['xla_gbytes_per_second'] / found['copy_gbytes_per_second']
    assert found['copy_fraction'] == pytest.approx(ratio)
    assert found['memory']['peak'] >= found['memory']['arguments'] > 0
    assert found['versions']['jax'] == jax.__version__ and found['device']


def test_macs_are_those_of_flops_and_training_counts_three_passes(predicted, trained):
    plain = costs.report(WORK.net, WORK.size, num_classes=5, dsrl='none')['macs']
    wrapped = costs.report(WORK.net, WORK.size, num_classes=5, dsrl='sssr')['macs']
    assert predicted[1]['macs'] == 2 * plain['inference']
    assert trained[1]['macs'] == 2 * 3 * wrapped['training']


def test_flags_decide_what_is_timed(predicted, trained):
    assert (predicted[1]['scale'], trained[1]['scale']) == (1, 2)  # 2 comes with the head
    assert (trained[1]['steps'], trained[1]['repeats']) == (2, 4)
    assert list(predicted[1]['latency']) == ['1', '8'] and 'latency' not in trained[1]
    assert all(one['steps'] == 1 for one in predicted[1]['latency'].values())
    assert predicted[1]['dtype'] == 'float32'  # of a CPU, where none is asked for


@pytest.mark.parametrize('which', ['predicted', 'trained'])
def test_a_second_process_finds_the_program_in_the_cache(which, request):
    lines, found = request.getfixturevalue(which)
    cold, warm = found['compile_seconds']['cold'], found['compile_seconds']['warm']
    assert 0 < warm['compile'] < cold['compile']
    shown = next(line for line in lines if line.startswith('compilation'))
    assert f'{sum(warm.values()):.1f} s' in shown


def test_the_costliest_operations_are_named(predicted):
    lines, found = predicted
    operations = found['profile']
    spent = [one['ms'] for one in operations]
    assert len(operations) == 10 and spent == sorted(spent, reverse=True)
    assert 0.5 < sum(one['share'] for one in operations) <= 1.001
    assert any('network/stem/conv' in one['scope'] for one in operations)
    assert all(any(one['name'] in line for line in lines) for one in operations)


def test_the_step_trains():
    work = WORK._replace(train=True)
    call = workload.caller(work, workload.compile_program(work))
    losses = [float(call()['total']) for _ in range(8)]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_deploy_predicts_the_same_classes():
    works = [WORK._replace(kind=kind) for kind in ('exact', 'deploy')]
    exact, deploy = (np.asarray(workload.caller(w, workload.compile_program(w))()) for w in works)
    assert exact.shape == (2, 64, 128) and len(np.unique(exact)) > 1
    assert np.mean(exact == deploy) > 0.999


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        (['--size=30x64'], ['--size', '30x64', '32x64']),
        (['--size=large'], ['--size', '512x1024']),
        (['--dsrl=ful'], ['--dsrl', "'full'"]),
        (['--head=bilinear'], ['--head', 'sssr']),
        (['--scale=3', '--dsrl=sssr'], ['scale', '3']),
        (['--dtype=int8'], ['--dtype', 'bfloat16']),
        (['--kind=deploy', '--train'], ['--kind', 'deploy']),
        (['--batch=0'], ['--batch', '0']),
        (['--steps=-1'], ['--steps', '-1']),
        (['--seconds=nan'], ['--seconds', 'nan']),
        (['--latency=1,0'], ['--latency', '1,0']),
        (['--peer=caffe'], ['--peer', 'torch']),
        (['--net=espnetv3'], ['espnetv2']),
        (['--width=2.0', '--net=dabnet'], ['width', 'dabnet']),
        (['--peer', 'torch', '--frozen'], ['--frozen']),
    ],
)
def test_wrong_flags_are_refused_before_anything_runs(capsys, flags, named):
    refused(capsys, [*TOY, *flags], *named)


def test_without_torch_there_is_no_peer(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)  # as if it were not installed
    refused(capsys, [*TOY, '--peer=torch'], '--peer', 'torch', 'pip install')


def test_a_peer_is_equal_before_it_is_timed_and_ended_when_too_long(capsys):
    pytest.importorskip('torch')
    work = WORK._replace(net='espnetv2', options={'width': 0.5})
    program = peer.find()
    begin = functools.partial(peer.start, program, work, limit=0.1, latency=(), seconds=0.05)
    found = bench.time_peer(peer.check(program, work), begin, [], batch=2)
    assert found['difference'] < 1e-4
    failed = [variant['failed'] for variant in found['variants']]
    assert failed == 4 * ['not finished in time']  # no process of torch starts as fast
    assert capsys.readouterr().out.count('not finished in time') == 4
    refused(capsys, [*TOY, '--peer=torch'], 'PyTorch peer', 'toy_network', 'espnetv2')


def test_every_term_of_a_training_step_is_equal_before_it_is_timed():
    pytest.importorskip('torch')
    options = {'net': 'espnetv2', 'options': {'width': 0.5}}
    work = WORK._replace(train=True, dsrl='full', **options)
    found = peer.check(peer.find(), work)['terms']
    assert set(found) == {'ce', 'mse', 'fa', 'total'} and max(found.values()) < 1e-5
    title = speed.peer_title({'torch': '2', 'difference': 1e-6, 'terms': {'ce': 2e-7, 'fa': 0.0}})
    assert 'within (relative) ce 2e-07, fa 0\n' in title
    for term, wrong in (('fa', 2e-3), ('ce', math.nan), ('heatmap', 2e-4)):
        with pytest.raises(UserError, match=f'term {term}'):
            peer.require_equal({'difference': 0.0, 'terms': {**found, term: wrong}})
    with pytest.raises(UserError, match='scores'):
        peer.require_equal({'difference': math.nan, 'terms': found})


@pytest.mark.parametrize(
    ('net', 'train'), [('espnetv2', False), ('espnetv2', True), ('hrnet_w32', True)]
)
def test_a_peer_runs_eagerly_when_it_is_its_turn(net, train, monkeypatch):
    pytest.importorskip('torch')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')  # more wait for each other on a busy machine
    options = {'width': 0.5} if net == 'espnetv2' else {}
    work = WORK._replace(net=net, options=options, train=train, dsrl='full', batch=1)
    variant = {'mode': 'eager', 'memory_format': 'channels_last'}
    budget = {'seconds': 0.05, 'repeats': 3, 'steps': 1}
    latency = () if train else (1, 3)
    running = peer.start(peer.find(), work, variant, 120, latency=latency, wait=True, **budget)
    peer.settle(running)
    assert running.process.poll() is None and turns.is_ready(running.folder)
    found = peer.answer(running)
    assert not running.folder.exists()
    step = timing.Timing(**found['step'])
    assert (step.repeats, step.steps) == (3, 1) and 0 < step.fastest <= step.median <= step.slowest
    assert list(found['latency']) == [str(n) for n in latency]


def test_the_ratio_is_to_the_best_that_finished():
    def variant(mode, rate, ms):
        return {
            **{'mode': mode, 'memory_format': 'channels_last', 'images_per_second': rate},
            'latency': {'1': {'ms': ms}},
        }

    ours = {'images_per_second': 120.0, 'latency': {'1': {'ms': 2.0}}}
    failed = {'mode': 'compile', 'memory_format': 'contiguous', 'failed': 'not finished'}
    variants = [variant('eager', 40.0, 6.0), variant('compile', 80.0, 7.0), failed]
    found = bench.ratio(ours, variants)
    assert found == {
        'best': 'compile channels_last',
        'images_per_second': 1.5,
        'over_eager': 3.0,
        'latency': {'1': 3.0},
    }
    assert bench.ratio(ours, [failed]) is None


def test_the_median_stands_against_one_slow_repeat():
    calls = iter(range(100))
    found = timing.throughput(
        lambda: time.sleep(0.1 if next(calls) == 3 else 0.002), lambda _: None, steps=1, repeats=9
    )
    assert 0.002 <= found.median < 0.02 and found.slowest > 0.09
    assert (found.repeats, found.steps) == (9, 1)


def test_calls_queue_and_one_wait_ends_a_repeat():
    """On a device that takes 2 ms a call while the calls return at once."""
    device = {'busy until': 0.0, 'waits': 0, 'calls': 0}

    def call():
        device['calls'] += 1
        device['busy until'] = max(device['busy until'], time.perf_counter()) + 0.002
        return device['busy until']

    def wait(done):
        device['waits'] += 1
        time.sleep(max(0, done - time.perf_counter()))

    found = timing.throughput(call, wait, steps=10, repeats=3)
    assert found.fastest >= 0.002 and found.median < 0.004
    assert (device['calls'], device['waits']) == (1 + 1 + 4 * 10, 1 + 1 + 4)
    one = timing.latency(call, wait, seconds=0.05)
    assert one.steps == 1 and 0.002 <= one.median < 0.01


@pytest.mark.parametrize('cost', [0.0005, 0.004, 0.05])
def test_a_measurement_keeps_to_its_time(cost):
    start = time.perf_counter()
    found = timing.throughput(lambda: time.sleep(cost), lambda _: None, seconds=0.1)
    spent = time.perf_counter() - start
    assert found.repeats >= 3 and found.median >= cost
    assert spent < 0.5, 'a budget of 0.1 s, a few calls of warm-up, a busy machine'


# Two kernels on a stream and what the host did to launch one of them.
GPU_TRACE = """
planes {
  name: "/host:CPU"
  lines { name: "launcher" events { metadata_id: 1 duration_ps: 9000000000
    stats { metadata_id: 1 str_value: "fusion.1" } } }
  event_metadata { key: 1 value { id: 1 name: "launch" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #13(Compute)"
    events { metadata_id: 1 duration_ps: 1000000000 stats { metadata_id: 1 str_value: "conv.2" } }
    events { metadata_id: 1 duration_ps: 2000000000 stats { metadata_id: 1 str_value: "conv.2" } }
    events { metadata_id: 2 duration_ps: 1000000000
      stats { metadata_id: 1 str_value: "command_buffer_3" } } }
  lines { name: "XLA Modules" events { metadata_id: 3 duration_ps: 5000000000 } }
  event_metadata { key: 1 value { id: 1 name: "implicit_gemm" } }
  event_metadata { key: 2 value { id: 2 name: "fusion_7" } }
  event_metadata { key: 3 value { id: 3 name: "jit_train_step" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""


def test_a_gpu_trace_counts_its_kernels_alone():
    program = """
  %conv.2 = f32[2]{0} custom-call(%x), metadata={op_name="jit(step)/network/conv"}
  %fusion.7 = f32[2]{0} fusion(%x), metadata={op_name="jit(step)/network/act"}"""
    found = profiling.rank(ProfileData.from_text_proto(GPU_TRACE), program)
    assert [(one.name, one.ms, one.calls, one.scope) for one in found] == [
        ('conv.2', pytest.approx(3.0), 2, 'network/conv'),
        ('fusion.7', pytest.approx(1.0), 1, 'network/act'),
    ]
    assert [one.share for one in found] == pytest.approx([0.75, 0.25])
