"""`dsrl reproduce`: what DSRL gives on the data at hand, and the paper's tables and figures on it.

`ladder`: each part of DSRL over seeds, at its true cost. Without --final learning rate and decay
of every rung are selected on folds of the training images; with it the selected rungs are trained
on all of them and the test split is read, once. `effect`: gain of the recommended form over input
sizes and shares of the labels, from finished ladders in --workdir. `table1` ... `table5` and the
figures train the rows of the paper, one seed each, and set them beside what it prints.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax

from dsrl_jax import config as configs
from dsrl_jax import (
    contrasts,
    costs,
    effect,
    inference,
    ladder,
    paper_command,
    roofline,
    rungs,
    statistics,
    timing,
    workload,
)
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.ladder import Ladder
from dsrl_jax.report import ladder as report
from dsrl_jax.rungs import ARMS, RUNGS
from dsrl_jax.train import TERMINATED

DATASETS = ('camvid', 'synthetic')  # of the ladder
WHAT = ('ladder', 'effect', *paper_command.WHAT)
_DSRL = 'from dsrl_jax.cli import run; run()'
# Flags that only one of the two kinds reads, with their defaults.
_LADDER = {
    **{'rungs': None, 'seeds': 10, 'scouts': 3, 'epochs': None, 'init_from': '', 'dtype': None},
    **{'labelled': 1.0, 'scale': 2, 'width': None, 'view': None, 'grid': None},
    **{'final': False, 'reach': 0.4, 'jobs': 1, 'share': ''},
}
_PAPER = {'config': None, 'split': 'val', 'overrides': []}


def flags(parser) -> None:
    """Flags of `dsrl reproduce`."""
    add = parser.add_argument
    add('what', help=', '.join(WHAT))
    add('--config', help='tables and figures: of every row; default: DATASET:net=NET')
    add('--dataset', help=f'{" or ".join(DATASETS)}; table5, figure9: coco; default: the first')
    add('--root', default='', help='folder of the data set')
    add('--net', help='default: espnetv2; table5, figure9: hrnet_w32')
    add(
        '--rungs',
        help=f'joined by commas; default: all of {", ".join(RUNGS)}; docs/results/'
        'scouting.md has more',
    )
    add('--seeds', type=int, default=_LADDER['seeds'], help='of the final runs; default: 10')
    add('--scouts', type=int, default=_LADDER['scouts'], help='seeds of the selection; default: 3')
    add('--epochs', type=float, help="length of every run; default: the configuration's")
    share = 'of the training images whose labels are used; default: 1'
    add('--labelled', type=float, default=_LADDER['labelled'], help=share)
    add('--scale', type=int, default=_LADDER['scale'], help='view / input: 1, 2 or 4; default: 2')
    add('--width', type=float, help='of the network; default: 2.0 for espnetv2, else its own')
    view = 'size that whole images are brought to, 192x256; default: 384x480, images padded'
    add('--view', help=view)
    grid = ','.join(f'{p["lr"]:g}/{p["decay"]:g}' for p in rungs.GRID)
    add('--grid', help=f'learning rates and decays that every rung tries; default: {grid}')
    add('--init_from', default='', help='weights the encoder starts from; default: from scratch')
    add('--dtype', help='default: bfloat16, on a CPU float32')
    add('--workdir', required=True, help='folder of the runs; what is there is not run again')
    add('--output', help='folder of tables and plot; default: WORKDIR/report')
    add('--final', action='store_true', help='train as selected, read the test split')
    add(
        '--reach',
        type=float,
        default=_LADDER['reach'],
        help='mIoU of the column of minutes; default: 0.4',
    )
    add(
        '--jobs',
        type=int,
        default=_LADDER['jobs'],
        help='processes that share the device, a rung each, of few rungs a seed each',
    )
    add(
        '--share',
        default=_LADDER['share'],
        help='set by --jobs: take each n-th rung from the i-th, as i/n',
    )
    add('--split', default=_PAPER['split'], help='tables and figures: what is scored; default: val')
    add('--tiny', action='store_true', help='generated data, two steps a run: proves the path')


def main(args) -> int:
    """Run `dsrl reproduce`; the last line of stdout is one JSON object."""
    lookup(dict.fromkeys(WHAT), args.what, 'dsrl reproduce')
    is_ladder = args.what == 'ladder'
    unread = _PAPER if is_ladder else _LADDER
    for name, default in ({**_PAPER, **_LADDER} if args.what == 'effect' else unread).items():
        if getattr(args, name) != default:
            kind = 'the ladder' if name in _LADDER else 'tables and figures'
            flag = '--config.*' if name == 'overrides' else f'--{name}'
            raise UserError(
                flag, f'given with {args.what}', f'{kind}, which read it', 'leave it out.'
            )
    if args.what == 'effect':
        print(json.dumps(effect.write(args.workdir, args.output)), flush=True)
        return 0
    if not is_ladder:
        written = paper_command.run(args)
        if written is None:
            return TERMINATED
        print(json.dumps(written), flush=True)
        return 0
    args.dataset, args.net = args.dataset or DATASETS[0], args.net or 'espnetv2'
    plan = _ladder(args)
    share = _share(args.share) if args.share else (0, 1)
    if args.jobs > 1:
        if not _side_by_side(args, plan):
            return TERMINATED
    elif not ladder.run_all(plan, _plan(plan, args.final), share):
        return TERMINATED
    if args.share:
        return 0  # the process that started this one goes on
    if not args.final:
        chosen = ladder.freeze(plan)
        differences = contrasts.on_folds(chosen)
        macs = {name: rungs.macs(ladder.protocol(plan, name)) for name in ('reference', *chosen)}
        print(_selection(chosen, differences, macs))
        found = {'selected': chosen, 'differences': differences, 'macs': macs}
        print(json.dumps(found), flush=True)
        return 0
    folder = pathlib.Path(args.output) if args.output else plan.home / 'report'
    print(json.dumps(_report(plan, folder, args.reach)), flush=True)
    return 0


def _ladder(args) -> Ladder:
    lookup({name: name for name in DATASETS}, args.dataset, '--dataset')
    names = tuple(args.rungs.split(',')) if args.rungs else tuple(RUNGS)
    for name in names:
        lookup(ARMS, name, '--rungs')
    for flag in ('seeds', 'scouts', 'jobs', 'epochs', 'width'):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f'--{flag}', str(value), 'a number above 0', 'correct it.')
    if args.seeds > statistics.MOST_SEEDS:
        expected = f'at most {statistics.MOST_SEEDS}, of which p is exact'
        raise UserError('--seeds', str(args.seeds), expected, 'correct it.')
    if args.tiny and args.dataset != 'synthetic':
        raise UserError('--tiny', args.dataset, '--dataset=synthetic', 'choose one of the two.')
    lookup({n: n for n in configs.CHOICES['scale']}, args.scale, '--scale')
    if not 0 < args.labelled <= 1:
        found = f'{args.labelled:g}'
        raise UserError('--labelled', found, 'a share above 0 and at most 1', 'correct it.')
    dtype = args.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
    return Ladder(
        workdir=pathlib.Path(args.workdir),
        dataset=args.dataset,
        root=args.root,
        net=args.net,
        names=names,
        seeds=args.seeds,
        scouts=args.scouts,
        epochs=args.epochs,
        init_from=args.init_from,
        dtype=lookup({n: n for n in configs.CHOICES['model.dtype']}, dtype, '--dtype'),
        tiny=args.tiny,
        labelled=args.labelled,
        scale=args.scale,
        width=args.width,
        view=configs.parse_size(args.view, '--view') if args.view else None,
        grid=_grid(args.grid) if args.grid else rungs.GRID,
    )


def _grid(text):
    points = []
    for point in text.split(','):
        try:
            lr, decay = (float(number) for number in point.split('/'))
        except ValueError:
            lr = decay = -1.0
        if not (0 < lr < math.inf and 0 <= decay < math.inf):
            expected = 'a learning rate above 0 and a decay, as 0.1/0.0005'
            raise UserError('--grid', repr(point), expected, 'join several by commas.')
        points.append({'lr': lr, 'decay': decay})
    return tuple(points)


def _plan(plan, final):
    return ladder.plan_final(plan) if final else ladder.plan_select(plan)


def _share(text):
    i, slash, n = text.partition('/')
    if not (slash and i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise UserError('--share', repr(text), 'i/n with i below n', 'leave it out.')
    return int(i), int(n)


def _side_by_side(args, plan) -> bool:
    """Run the plan in --jobs processes: rungs that need others' results after these."""
    waves = [name for name in plan.names if not ARMS[name].needs]
    for names in (waves, [name for name in plan.names if name not in waves]):
        if not names:
            continue
        seeds = plan.seeds if args.final else plan.scouts
        count = min(args.jobs, len(names) * seeds)
        environment = dict(os.environ)
        environment.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', f'{0.9 / count:.3f}')
        given = [f'--{name}={value}' for name, value in _given(args).items()]
        command = [sys.executable, '-c', _DSRL, 'reproduce', args.what, *given]
        command += [f'--rungs={",".join(names)}', *(['--final'] if args.final else [])]
        command += ['--tiny'] if args.tiny else []
        running = [
            subprocess.Popen([*command, f'--share={i}/{count}'], env=environment)
            for i in range(count)
        ]
        codes = [process.wait() for process in running]
        if TERMINATED in codes:
            return False
        if any(codes):
            found = f'exit codes {codes} of {count} processes'
            raise UserError('--jobs', found, 'all 0', 'see their messages above.')
    return True


def _given(args) -> dict:
    """Flags with a value that another process is to have too."""
    names = ('dataset', 'root', 'net', 'seeds', 'scouts', 'epochs', 'init_from', 'dtype', 'workdir')
    names += ('labelled', 'scale', 'width', 'view', 'grid')
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value not in (None, '')}


def _report(plan: Ladder, folder: pathlib.Path, reach: float) -> dict:
    """Write ladder.md, ladder.json, ladder.png and runs.jsonl (every seed); the summary."""
    found = ladder.results(plan)
    costs = {name: _costs(plan, name) for name in found}
    summary = contrasts.summarize(found, costs, plan.home, reach=reach)
    folder.mkdir(parents=True, exist_ok=True)
    one = next(iter(next(iter(found.values())).values()))
    start = f'from {plan.init_from}' if plan.init_from else 'from scratch'
    width = f', width {plan.width:g}' if plan.width is not None else ''
    view = 'x'.join(str(n) for n in one['config']['data']['size'])
    title = (
        f'{plan.net}{width} on {plan.dataset}, view {view}, input 1/{plan.scale} of it, '
        f'{plan.labelled:g} of the labels, {len(plan.grid)} learning rates and decays tried, '
        f'{start}; {one["device"]}, jax {one["versions"]["jax"]}, '
        f'{one["date"][:10]}, commit {one["commit"]}'
    )
    text = report.markdown(summary, title)
    (folder / 'ladder.md').write_text(text)
    (folder / 'ladder.json').write_text(json.dumps(summary, indent=1) + '\n')
    ordered = ((name, runs[seed]) for name, runs in found.items() for seed in sorted(runs))
    ladder.write_runs(folder / 'runs.jsonl', ordered)
    report.figure(summary, folder / 'ladder.png')
    print(text)
    print(f'written to {folder}')
    return summary


def _costs(plan: Ladder, name: str) -> dict:
    """Parameters, multiply-adds at the data set's classes and at 20, latency where it was taken."""
    config = ladder.protocol(plan, name)
    size = inference.input_size(config, configs.eval_size(config))
    network = inference.build_network(config, 11, conv_impl='lax')
    own = costs.measure(network, size)
    latency = _latency(plan, name, config)
    return {
        'dsrl': config.model.dsrl,
        'params': own['params']['inference'],
        'macs': own['macs']['inference'],
        'head_macs': own['macs']['inference'] - own['macs']['network'],
        'macs_20': rungs.macs(config, 20),
        'latency': latency,
        'latency_ms': latency[roofline.device_name()],
    }


def _latency(plan, name, config) -> dict:
    """{device: ms} of one folded prediction; kept, so that a table can hold several devices."""
    path = plan.home / 'latency.json'
    kept = json.loads(path.read_text()) if path.is_file() else {}
    device, model = roofline.device_name(), config.model
    if device not in kept.get(name, {}):
        options = {n: model[n] for n in ('width', 'variant', 'output_stride') if model[n]}
        size = inference.input_size(config, configs.eval_size(config))
        work = workload.Workload(
            net=model.net,
            size=size,
            batch=1,
            num_classes=11,
            train=False,
            dsrl=model.dsrl if model.dsrl in ('none', 'sssr') else 'sssr',
            head=config.sssr.head if model.dsrl != 'none' else None,
            scale=config.scale,
            dtype='float32' if jax.default_backend() == 'cpu' else plan.dtype,
            kind='deploy',
            options=options,
        )
        compiled = workload.as_graph(work, workload.compile_program(work))
        call = workload.caller(work, compiled)
        found = timing.latency(call, jax.block_until_ready, seconds=1.0)
        kept.setdefault(name, {})[device] = 1e3 * found.median
        path.write_text(json.dumps(kept, indent=1) + '\n')
    return kept[name]


def _selection(chosen, differences, macs) -> str:
    """What was chosen for each arm, what a prediction costs, and every difference."""
    lines = ['selected on the held-out folds (mean mIoU over folds and seeds):']
    for name, row in chosen.items():
        tried = ', '.join(f'{p["lr"]:g}/{p["decay"]:g} {p["mean"]:.2f}' for p in row['table'])
        more = 100 * (macs[name] / macs['reference'] - 1)
        lines.append(
            f'  {name:<17} lr {row["lr"]:g}, decay {row["decay"]:g}   ({tried})   '
            f'{macs[name] / 1e6:.1f} M multiply-adds, {more:+.1f} % of reference'
        )
    lines += ['differences of mIoU (95 % over seeds, each the mean of its folds; run by run):']
    for name, d in differences.items():
        between = 'one seed'
        if d['low'] is not None:
            between = f'{d["low"]:+.2f} to {d["high"]:+.2f}, p {d["p"]:.3f}'
        runs = ' '.join(f'{point:+.2f}' for point in d['points'])
        lines.append(f'  {name:<31} {d["mean"]:+.2f} ({between})   {runs}')
    return '\n'.join(lines)
