"""Speed of the paper's networks beside PyTorch and beside targets: measured row by row, then shown.

    python launch/speed_table.py measure [--only=espnetv2,dabnet] [--minutes=9] [--together]
    python launch/speed_table.py table [--results=FILE]

`measure` runs `dsrl bench` for every row that FILE does not hold for this kind of device and adds
its JSON line at once, so a run that is cut off goes on by the same command; after --minutes it
begins no further row; flags it does not know go to `dsrl bench`. With --together all rows, and the
compiled PyTorch beside each, compile side by side on the many cores of a GPU's host, and are timed
one after another when all are ready. `table` prints the rows of FILE as
Markdown: ratios to the fastest PyTorch that finished, targets, and what a row reaches of the
device's own matrix product and copy.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from dsrl_jax import turns

RESULTS = pathlib.Path(__file__).resolve().parent.parent / 'docs/results/speed.jsonl'


class Network(NamedTuple):
    """Size and batches of a network's rows, and the ratios they are held to."""

    size: tuple[int, int]
    batch: int
    training: float  # images/s over the fastest compiled PyTorch
    training_eager: float | None  # and over the fastest eager one, where that is a target too
    latency: float  # PyTorch's fastest compiled latency at batch 1 over ours
    latency_eager: float | None
    added: float  # step time of DSRL-full over that of the plain network, at most
    outputs: int = 19  # classes, or joints


_DSRL = 'from dsrl_jax.cli import run; run()'  # of this Python, installed as a command or not
VIEW = (512, 1024)
# The order of measuring.
NETWORKS = {
    'espnetv2': Network(VIEW, 16, 1.5, 3.0, 1.3, 3.0, 1.6),
    'deeplabv3plus_resnet101': Network(VIEW, 8, 1.25, None, 1.2, None, 1.25),
    'dabnet': Network(VIEW, 16, 1.5, 3.0, 1.3, 3.0, 1.6),
    'bisenet_resnet18': Network(VIEW, 16, 1.3, None, 1.3, 3.0, 1.6),
    'pspnet_resnet101': Network(VIEW, 8, 1.25, None, 1.2, None, 1.25),
    'hrnet_w32': Network((256, 192), 64, 1.3, None, 1.2, None, 1.25, outputs=17),
}
WORK = {
    'full': ['--train', '--dsrl=full', '--peer=torch'],
    'plain': ['--train', '--dsrl=none', '--scale=2'],
    'prediction': ['--peer=torch'],
    # On demand: where the PyTorch beside it would take too long to compile.
    'full, alone': ['--train', '--dsrl=full'],
}
DEFAULT = ('full', 'plain', 'prediction')


def main():
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('action', choices=('measure', 'table'))
    parser.add_argument('--results', type=pathlib.Path, default=RESULTS)
    parser.add_argument('--only', help='networks, joined by commas; default: all')
    parser.add_argument('--minutes', type=float, help='begin no row after so many; default: no end')
    parser.add_argument('--rows', help='instead of --only, for instance espnetv2:full;dabnet:plain')
    parser.add_argument('--together', action='store_true', help='compile all rows side by side')
    parser.add_argument(
        '--patience', type=float, default=1e9, help='--together: seconds until timing begins anyway'
    )
    parser.add_argument('--shrink', type=int, default=1, help='sizes over this: to rehearse')
    args, args.bench = parser.parse_known_args()
    rows = _read(args.results)
    if args.action == 'table':
        print(table(rows))
        return
    measure(_wanted(args), rows, args)


def _wanted(args):
    """The (network, kind of work) that the flags ask for."""
    names = args.only.split(',') if args.only else list(NETWORKS)
    found = [(name, work) for name in names for work in DEFAULT]
    if args.rows:
        found = [tuple(row.split(':', 1)) for row in args.rows.split(';')]
    for row in found:
        if len(row) != 2 or row[0] not in NETWORKS or row[1] not in WORK:
            legal = f'{", ".join(NETWORKS)} and, in --rows, {", ".join(WORK)}'
            raise SystemExit(f'--only or --rows: found {":".join(row)!r}; expected of {legal}')
    return found


def measure(wanted, rows, args):
    """Run what is missing of the wanted rows, one at a time or all together."""
    device = _device()
    done = {(row['net'], row['work']) for row in rows if row['device'] == device}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    missing = [row for row in wanted if row not in done]
    (_together if args.together else _in_turn)(missing, args)


def _in_turn(missing, args):
    start = time.monotonic()
    for name, work in missing:
        if args.minutes and time.monotonic() - start > 60 * args.minutes:
            print(f'{args.minutes:g} minutes are over: {name}, {work} and the rest not begun')
            return
        command = _command(name, work, args)
        print(f'\n$ dsrl {" ".join(command)}', flush=True)
        process = _start(command, stdout=subprocess.PIPE)
        last = ''
        for line in process.stdout:
            last = line
            if not line.startswith('{'):
                print(line, end='', flush=True)
        _keep(name, work, last if process.wait() == 0 else '', args)


def _together(missing, args):
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        rows = []
        for number, (name, work) in enumerate(missing):
            folder = pathlib.Path(home) / str(number)
            folder.mkdir()
            command = [*_command(name, work, args), f'--turn={folder}']
            with open(folder / 'out', 'w') as out:
                rows.append((name, work, folder, _start(command, stdout=out)))
        waiting = lambda row: row[3].poll() is None and not turns.is_ready(row[2])  # noqa: E731
        while any(map(waiting, rows)) and time.monotonic() - start < args.patience:
            time.sleep(0.2)
        print(f'compiled in {time.monotonic() - start:.0f} s', flush=True)
        while rows:
            row = next((row for row in rows if not waiting(row)), None)
            if row is None:
                time.sleep(0.2)
                continue
            rows.remove(row)
            name, work, folder, process = row
            turns.give(folder)
            code = process.wait()
            print(f'\n[{time.monotonic() - start:.0f} s] {name}, {work}', flush=True)
            *lines, last = (folder / 'out').read_text().splitlines() or ['']
            print('\n'.join(lines), flush=True)
            _keep(name, work, last if code == 0 else '', args)


def _command(name, work, args):
    height, width = (n // args.shrink for n in NETWORKS[name].size)
    batch = 1 if work == 'prediction' else NETWORKS[name].batch
    return [
        *('bench', f'--net={name}', f'--size={height}x{width}', f'--batch={batch}'),
        *(f'--num_classes={NETWORKS[name].outputs}', *WORK[work], *args.bench),
    ]


def _start(command, **options):
    return subprocess.Popen([sys.executable, '-c', _DSRL, *command], text=True, **options)


def _keep(name, work, line, args):
    """Add the JSON object of a benchmark's last line to the results."""
    if not line:
        print(f'{name}, {work}: failed; no row written', flush=True)
        return
    with args.results.open('a') as file:
        file.write(json.dumps({'work': work, **json.loads(line)}) + '\n')


def table(rows) -> str:
    """Markdown: a table for each device, its newest row of each kind."""
    if not rows:
        return 'Nothing measured yet.'
    devices = {row['device']: {} for row in rows}
    for row in rows:
        devices[row['device']][row['net'], row['work']] = row
    return '\n\n'.join(_device_table(name, found) for name, found in devices.items())


def _device_table(device, found):
    one = next(iter(found.values()))
    torch = next((row['peer']['torch'] for row in found.values() if row.get('peer')), None)
    lines = [
        f'{device}, {one["dtype"]}, jax {one["versions"]["jax"]}, torch {torch or "absent"}, '
        f'Python {one["versions"]["python"]}, {one["date"][:10]}:',
        '',
        '| network | work | batch | ours | PyTorch eager | compiled | ratio | target | met '
        '| of product | of copy | GiB |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for (net, work), row in found.items():
        if net in NETWORKS:
            lines.append(_line(net, work, row, found.get((net, 'plain'))))
    return '\n'.join(lines)


def _line(net, work, row, plain):
    goal = NETWORKS[net]
    variants = (row.get('peer') or {}).get('variants', [])
    if work == 'prediction':
        # Milliseconds of one request: what is smaller is faster.
        ours = row['latency']['1']['ms']
        theirs = _best(variants, lambda v: v['latency']['1']['ms'], min)
        ratios = {mode: ms / ours for mode, ms in theirs.items()}
        unit, targets = '{:.2f} ms', (goal.latency_eager, goal.latency)
    else:
        ours = row['images_per_second']
        theirs = _best(variants, lambda v: v['images_per_second'], max)
        ratios = {mode: ours / rate for mode, rate in theirs.items()}
        unit, targets = '{:.1f} img/s', (goal.training_eager, goal.training)
    targets = dict(zip(('eager', 'compile'), targets))
    if work == 'plain':
        shown, wanted, met = '', '', ''
    else:
        shown = ', '.join(f'{_WORDS[mode]} {ratio:.2f}' for mode, ratio in ratios.items())
        wanted = ', '.join(f'{_WORDS[mode]} {goal:g}' for mode, goal in targets.items() if goal)
        met = _met(ratios, targets)
    if work == 'full' and plain:
        more = row['ms'] / plain['ms']
        shown += f', step {more:.2f} x plain'
        wanted += f', at most {goal.added:g}'
        met += ', yes' if more <= goal.added else ', no'
    cells = [
        *(net, work, str(row['batch']), unit.format(ours)),
        *(unit.format(theirs[mode]) if mode in theirs else '' for mode in ('eager', 'compile')),
        *(shown, wanted, met),
        f'{row["matmul_fraction"]:.0%}',
        f'{row["copy_fraction"]:.0%}' if row['copy_fraction'] else '',
        f'{row["memory"]["peak"] / 2**30:.2f}',
    ]
    return '| ' + ' | '.join(cells) + ' |'


_WORDS = {'eager': 'eager', 'compile': 'compiled'}


def _best(variants, key, choose):
    """{mode: the best figure} of the modes of which a variant finished."""
    timed = [v for v in variants if 'failed' not in v]
    return {
        mode: choose(key(v) for v in timed if v['mode'] == mode)
        for mode in _WORDS
        if any(v['mode'] == mode for v in timed)
    }


def _met(ratios, targets):
    """Whether the targets are reached; without a compiled PyTorch that finished none counts."""
    if 'compile' not in ratios:
        return 'no compiled PyTorch'
    reached = [ratios[mode] >= goal for mode, goal in targets.items() if goal and mode in ratios]
    return 'yes' if all(reached) else 'no'


def _device():
    """The device's name, asked of a process of its own, which gives the device back."""
    code = 'from dsrl_jax import roofline; print(roofline.device_name())'
    done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit('jax found no device')
    return done.stdout.splitlines()[-1]


def _read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


if __name__ == '__main__':
    main()
