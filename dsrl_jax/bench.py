"""`dsrl bench`: speed, latency, compile time and memory of a network, on the device that is here.

What is timed stands in `workload`, how in `timing`.  The device's matrix product and copy are
measured in the same run, and on demand the same work in PyTorch.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable

import jax

from dsrl_jax import costs, peer, profiling, roofline, timing, turns, workload
from dsrl_jax.circumstances import circumstances
from dsrl_jax.config import CHOICES, DSRL_MODES, parse_size
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.models import heads
from dsrl_jax.models.dsrl import MODES
from dsrl_jax.report import speed
from dsrl_jax.workload import Workload

KINDS = ('exact', 'deploy')
PEERS = ('torch',)
BACKWARD = 3  # forward and backward pass together, in forward passes
_OPTIONS = ('width', 'variant', 'output_stride')
_TRACED_STEPS = 3


def flags(parser) -> None:
    """Flags of `dsrl bench`."""
    work_flags(parser)
    add = parser.add_argument
    add('--seconds', type=float, default=2.0, help='a measurement takes about so long; default: 2')
    add('--repeats', type=int, help=f'default: {timing.REPEATS}, fewer where they take too long')
    add('--steps', type=int, help='in a repeat; default: what the seconds allow')
    add('--profile', metavar='DIR', help='write a trace there and print the costliest operations')
    add('--peer', help='torch: the same work in PyTorch, eager and compiled')
    add('--peer_limit', type=float, default=300.0, help='seconds for a variant; default: 300')
    add('--latency', default='1,8', help='batch sizes of single requests; default: 1,8')
    add(
        '--turn',
        metavar='DIR',
        help='compile beside others, then write DIR/ready and wait for DIR/go',
    )


def work_flags(parser) -> None:
    """The flags that say what is done; `workload_of` reads them."""
    add = parser.add_argument
    add('--net', required=True, help='name of a network')
    add('--size', required=True, help='height and width of the input: 512x1024')
    add('--batch', type=int, default=8, help='images in a step; default: 8')
    add('--num_classes', type=int, default=20, help='default: 20')
    add('--train', action='store_true', help='the training step; default: prediction')
    add('--dsrl', default='none', help=f'{", ".join(DSRL_MODES)}; default: none, the plain network')
    add('--head', help=f'SSSR head: {", ".join(heads.HEADS)}')
    add('--scale', type=int, help='large view / input; default: 2 with DSRL, 1 without')
    add('--width', type=float, help='width of the network, where it has one')
    add('--variant', help='whose definition, where a network has several')
    add('--output_stride', type=int, help='of the encoder, where it has a choice')
    add('--dtype', help='default: bfloat16, on a CPU float32')
    add('--kind', default='exact', help='exact, or deploy: batch norms folded (prediction only)')


def main(args) -> int:
    """Run `dsrl bench`; the last line of stdout is one JSON object."""
    # Before the device opens: a process beside this one (the peer, a second compilation) needs
    # memory too, and what is allocated on demand is as fast once it is there.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    work, budget = workload_of(args), _budget(args)
    latency = _latency(args)
    program = None
    if args.peer is not None:
        lookup(dict.fromkeys(PEERS), args.peer, '--peer')
        program = peer.find()
    found = {**work._asdict(), **circumstances()}
    print(speed.title(found), flush=True)
    begin = functools.partial(
        peer.start, program, work, limit=args.peer_limit, latency=latency, **budget
    )
    peers = []  # with a turn they compile while we do
    try:
        if program and args.turn:
            peers = [begin(variant, wait=True) for variant in peer.VARIANTS if _compiled(variant)]
        equal = peer.check(program, work) if program else None
        with turns.alone(args.turn and pathlib.Path(args.turn).parent / 'lock'):
            programs = _compile(work, latency)
        for running in peers:
            peer.settle(running)
        turns.wait(args.turn)
        found['beside_others'] = bool(args.turn)
        found |= _measure(work, programs, budget, args.profile)
        print('', speed.table(found), sep='\n', flush=True)
        if args.profile:
            print('', speed.operations(found['profile'], args.profile, _TRACED_STEPS), sep='\n')
        if program:
            found['peer'] = time_peer(equal, begin, peers, work.batch)
            found['ratio'] = ratio(found, found['peer']['variants'])
            print('', speed.ratio(found['ratio']), sep='\n')
    finally:
        for running in peers:
            peer.stop(running)
    print(json.dumps(found), flush=True)
    return 0


def workload_of(args) -> Workload:
    """What the flags ask for; UserError where it cannot be."""
    if args.kind not in KINDS or (args.train and args.kind != 'exact'):
        found = f'{args.kind!r}' + (' with --train' if args.train else '')
        raise UserError('--kind', found, 'exact, or deploy without --train', 'correct it.')
    lookup(MODES, args.dsrl, '--dsrl')
    if args.head is not None and not MODES[args.dsrl][0]:
        found = f'{args.head!r} with --dsrl={args.dsrl}'
        raise UserError('--head', found, 'a mode with SSSR', 'give --dsrl=sssr, for instance.')
    dtype = args.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
    lookup(dict.fromkeys(CHOICES['model.dtype']), dtype, '--dtype')
    for name in ('batch', 'num_classes'):
        _positive(args, name)
    work = Workload(
        net=args.net,
        size=parse_size(args.size),
        batch=args.batch,
        num_classes=args.num_classes,
        train=args.train,
        dsrl=args.dsrl,
        head=args.head,
        scale=args.scale if args.scale is not None else (2 if MODES[args.dsrl][0] else 1),
        dtype=dtype,
        kind=args.kind,
        options={n: v for n in _OPTIONS if (v := getattr(args, n)) is not None},
    )
    workload.check(work)
    return work


def time_peer(equal: dict, begin: Callable, waiting: list, batch: int) -> dict:
    """Time the variants of a peer that was proved equal, a line each as they come.

    `begin(variant)` starts the process of one; the compiled ones of `waiting` have begun.
    """
    print('', speed.peer_title(equal), sep='\n', flush=True)
    waiting, variants = iter(waiting), []
    for variant in peer.VARIANTS:
        print(speed.peer_name(variant), end='', flush=True)
        running = next(waiting, None) if _compiled(variant) else None
        variants.append({**variant, **_figures(peer.answer(running or begin(variant)), batch)})
        print(speed.peer_figures(variants[-1]), flush=True)
    return {**equal, 'variants': variants}


def _compiled(variant):
    return variant['mode'] == 'compile'


def ratio(found: dict, variants: list[dict]) -> dict | None:
    """Our speed over the best variant's, above 1 where we are faster; None where none finished."""
    timed = [v for v in variants if 'failed' not in v]
    if not timed:
        return None
    best = max(timed, key=lambda v: v['images_per_second'])
    eager = [v['images_per_second'] for v in timed if v['mode'] == 'eager']
    return {
        'best': f'{best["mode"]} {best["memory_format"]}',
        'images_per_second': found['images_per_second'] / best['images_per_second'],
        'over_eager': found['images_per_second'] / max(eager) if eager else None,
        'latency': {
            n: min(v['latency'][n]['ms'] for v in timed) / one['ms']
            for n, one in found.get('latency', {}).items()
        },
    }


def _budget(args) -> dict:
    for name in ('seconds', 'repeats', 'steps', 'peer_limit'):
        _positive(args, name)
    return {'seconds': args.seconds, 'repeats': args.repeats, 'steps': args.steps}


def _latency(args) -> tuple[int, ...]:
    try:
        found = tuple(int(text) for text in args.latency.split(','))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        expected = 'batch sizes joined by commas: 1,8'
        raise UserError('--latency', repr(args.latency), expected, 'correct it.')
    return () if args.train else found


def _positive(args, name):
    value = getattr(args, name)
    if value is not None and not value > 0:
        raise UserError(f'--{name}', str(value), 'a number above 0', 'correct it.')


def _compile(work: Workload, latency: tuple[int, ...]):
    """The program, its seconds in a second process, and {batch: program} of single requests."""
    compiled, warm = workload.compile_cold_and_warm(work)
    compiled, single = workload.as_graph(work, compiled), {}
    for batch in latency:
        one = work._replace(batch=batch)
        single[batch] = (
            compiled
            if batch == work.batch
            else workload.as_graph(one, workload.compile_program(one))
        )
    return compiled, warm, single


def _measure(work: Workload, programs, budget: dict, folder: str | None) -> dict:
    compiled, warm, single = programs
    call = workload.caller(work, compiled)
    step = timing.throughput(call, jax.block_until_ready, **budget)
    found = {
        **_speed(step, work.batch),
        'form': compiled.form,
        'compile_seconds': {'cold': compiled.seconds, 'warm': warm},
        'memory': roofline.memory(compiled.run),  # before anything else asks for some
    }
    if folder:
        profiling.record(call, _TRACED_STEPS, folder)
        operations = profiling.costliest(folder, compiled.run.as_text())
        found['profile'] = [operation._asdict() for operation in operations]
    found |= _rates(work, compiled, step.median, budget['seconds'])
    del call  # and with it the arguments
    if not work.train:
        found['latency'] = {}
        for batch, one in single.items():
            call = workload.caller(work._replace(batch=batch), one)
            one = timing.latency(call, jax.block_until_ready, seconds=budget['seconds'])
            found['latency'][str(batch)] = _milliseconds(one)
    return found


def _speed(step: timing.Timing, batch: int) -> dict:
    return {
        'images_per_second': batch / step.median,
        'images_per_second_range': [batch / step.slowest, batch / step.fastest],
        **_milliseconds(step),
    }


def _milliseconds(found: timing.Timing) -> dict:
    return {
        'ms': 1e3 * found.median,
        'ms_range': [1e3 * found.fastest, 1e3 * found.slowest],
        'repeats': found.repeats,
        'steps': found.steps,
    }


def _rates(work, compiled, seconds: float, budget: float) -> dict:
    """Work and traffic a second, beside what the device reaches in a product and in a copy."""
    counted = costs.report(
        work.net,
        work.size,
        num_classes=work.num_classes,
        dsrl=work.dsrl,
        head=work.head,
        scale=work.scale,
        **work.options,
    )['macs']
    macs = work.batch * (BACKWARD * counted['training'] if work.train else counted['inference'])
    peak, size = roofline.matmul_peak(work.dtype, budget)
    bandwidth = roofline.copy_bandwidth(budget)
    traffic = (compiled.run.cost_analysis() or {}).get('bytes accessed')
    return {
        'macs': macs,
        'tflops': 2 * macs / seconds / 1e12,
        'xla_tflops': compiled.xla_flops and compiled.xla_flops / seconds / 1e12,
        'matmul_tflops': peak / 1e12,
        'matmul_size': size,
        'matmul_fraction': 2 * macs / seconds / peak,
        'xla_gbytes_per_second': traffic and traffic / seconds / 1e9,
        'copy_gbytes_per_second': bandwidth / 1e9,
        'copy_fraction': traffic and traffic / seconds / bandwidth,
    }


def _figures(answer: dict, batch: int) -> dict:
    """A variant's timings in our units."""
    if 'failed' in answer:
        return answer
    latency = {n: timing.Timing(**one) for n, one in answer.pop('latency').items()}
    return {
        **_speed(timing.Timing(**answer.pop('step')), batch),
        'latency': {n: _milliseconds(one) for n, one in latency.items()},
        **answer,
    }
