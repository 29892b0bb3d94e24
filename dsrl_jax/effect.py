"""Size of the effect: `recommended` minus `reference` over input sizes and shares of the labels.

Read from finished ladders (`dsrl reproduce ladder ... --final`); nothing is trained here.
"""

import json
import pathlib

from dsrl_jax import config as configs
from dsrl_jax import contrasts, ladder, rungs, statistics
from dsrl_jax.errors import UserError
from dsrl_jax.report import effect as report

FIRST, SECOND = 'recommended', 'reference'

# (scale, share of labels): every input size with all labels, every share at the usual size.
POINTS = ((4, 1.0), (2, 1.0), (1, 1.0), (2, 0.5), (2, 0.25), (2, 0.125))
_GAINS = ('miou', 'thin', 'boundary_1')


def write(workdir, output=None) -> dict:
    """Write effect.md, effect.json and effect.png (default: to WORKDIR/report); the numbers."""
    found = measure(workdir)
    folder = pathlib.Path(output) if output else pathlib.Path(workdir) / 'report'
    folder.mkdir(parents=True, exist_ok=True)
    text = report.markdown(found['rows'])
    (folder / 'effect.md').write_text(text)
    (folder / 'effect.json').write_text(json.dumps(found, indent=1) + '\n')
    report.figure(found['rows'], folder / 'effect.png')
    print(text)
    print(f'written to {folder}')
    return found


def measure(workdir) -> dict:
    """{'rows': [...]}: a row for each point of each ladder in `workdir`, itself one or a folder of.

    A row has ladder, net, dataset, scale, labelled, seeds (those that both arms have; 0: not run,
    and nothing more), reference and recommended (means, points of mIoU), gains {miou, thin,
    boundary_1: statistics.paired}, verdict, macs {arm: multiply-adds at 11 classes, head included}.
    UserError where there is no finished run, or where a folder mixes settings.
    """
    workdir, rows = pathlib.Path(workdir), []
    for home in (workdir, *sorted(workdir.glob('*')), *sorted(workdir.glob('*/*'))):
        if (home / 'final').is_dir():
            runs = ladder.results(ladder.Ladder(home, names=(FIRST, SECOND)))
            if runs:
                rows.append(_row(workdir, home, runs))
    if not rows:
        raise UserError(
            workdir,
            f'no finished run of {FIRST} or {SECOND}',
            'a folder of ladders, or one',
            'run `dsrl reproduce ladder` with --final, a folder below this one for each ladder.',
        )
    first = {row['ladder']: row for row in rows}
    for name, row in first.items():
        there = {(r['scale'], r['labelled']) for r in rows if r['ladder'] == name}
        same = {key: row[key] for key in ('ladder', 'net', 'dataset')}
        rows += [
            {**same, 'scale': scale, 'labelled': labelled, 'seeds': 0}
            for scale, labelled in POINTS
            if (scale, labelled) not in there
        ]
    return {'rows': sorted(rows, key=lambda r: (r['ladder'], -r['scale'], -r['labelled']))}


def _row(workdir, home, runs):
    """The row of one folder of final runs, {arm: {seed: result}}."""
    point, arms = _point(home, runs), {}
    scale, labelled = point['scale'], point['labelled']
    # The ladder's own folder, where this one is a part of it.
    root = home.parent if home.name == ladder.place(scale, labelled) else home
    name = str(root.relative_to(workdir)) if root != workdir else workdir.resolve().name
    shared = sorted(set.intersection(*(set(runs.get(arm, ())) for arm in (FIRST, SECOND))))
    row = {'ladder': name, **point, 'seeds': len(shared)}
    if not shared:
        return row
    for arm in (FIRST, SECOND):
        results = {arm: {seed: runs[arm][seed] for seed in shared}}
        arms[arm] = contrasts.summarize(results, {}, home)['rungs'][arm]['scores']['test']
        row[arm] = sum(arms[arm]['miou']) / len(shared)
    row['gains'] = {}
    for score in _GAINS:
        first, second = (arms[arm][score] for arm in (FIRST, SECOND))
        if None not in (*first, *second):  # a class that no test image holds has no score
            pairs = zip(first, second, strict=True)
            row['gains'][score] = statistics.paired([a - b for a, b in pairs])
    row['verdict'] = statistics.verdict(row['gains']['miou'])
    row['gains'] = {score: gain._asdict() for score, gain in row['gains'].items()}
    row['macs'] = {arm: _macs(home, runs[arm][shared[0]]) for arm in (FIRST, SECOND)}
    return row


def _point(home, runs) -> dict:
    """What all runs of a folder share; UserError where they do not."""
    found = {
        (c['model']['net'], c['data']['name'], c['scale'], c['data'].get('labelled', 1.0))
        for arm in runs.values()
        for c in (result['config'] for result in arm.values())
    }
    if len(found) > 1:
        mixed = ' and '.join(str(values) for values in sorted(found))
        expected = 'one network, data set, scale and share of labels'
        raise UserError(home / 'final', mixed, expected, 'take the folders apart.')
    return dict(zip(('net', 'dataset', 'scale', 'labelled'), found.pop(), strict=True))


def _macs(home, result) -> int:
    config = configs.base()
    configs.fill(config, result['config'], str(home))
    return rungs.macs(config)
