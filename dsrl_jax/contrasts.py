"""What a ladder's final runs say: scores of each rung with their cost, and the two contrasts."""

import numpy as np

from dsrl_jax import experiment, statistics
from dsrl_jax.errors import UserError
from dsrl_jax.rungs import BESIDE, CONTRASTS, RUNGS, SCOUTS

# Scores of a run by name: read from its pooled numbers, in points.
_SCORES = {
    'miou': lambda s: s['miou'],
    'thin': lambda s: s['thin_miou'],
    'pixel_accuracy': lambda s: s['pixel_accuracy'],
    **{f'boundary_{w}': lambda s, i=i: s['boundary_iou'][i] for i, w in enumerate((1, 2, 3, 4))},
}


def summarize(results: dict, costs: dict, workdir, *, reach: float = 0.4) -> dict:
    """{rung: {seed: result}}, {rung: costs} -> plain numbers of every rung and contrast.

    `rungs`: {name: {title, seeds, scores {split: {score: [a value a seed]}}, minutes_to (a seed; of
    training, to a curve of `reach`), images_per_second, costs}}. `contrasts`: {name: {by, mean,
    low, high, p, p_holm, seeds, verdict, differences, secondary, bootstrap}}, differences in points
    over the seeds that both arms have.
    """
    summary = {'reach': reach, 'rungs': {}, 'contrasts': {}}
    for name, runs in results.items():
        seeds = sorted(runs)
        splits = list(runs[seeds[0]]['scores'])
        summary['rungs'][name] = {
            'title': RUNGS[name].title,
            'seeds': seeds,
            'scores': {
                split: {
                    score: [_points(read(runs[seed]['scores'][split])) for seed in seeds]
                    for score, read in _SCORES.items()
                }
                for split in splits
            },
            'minutes_to': [experiment.minutes_to(runs[seed], reach) for seed in seeds],
            'images_per_second': _median([runs[seed]['images_per_second'] for seed in seeds]),
            'minutes': _median([runs[seed]['minutes'] for seed in seeds]),
            'costs': costs.get(name, {}),
        }
    beside = {f'{first} - {second}': (first, second) for first, second in BESIDE}
    for name, (first, second) in {**CONTRASTS, **beside}.items():
        for by in ('macs', 'latency_ms') if second == 'matched' else (None,):
            found = _contrast(summary['rungs'], first, second, by, workdir)
            if found:
                key = f'{name}, by {by.removesuffix("_ms")}' if by else name
                summary['contrasts'][key] = found
    # The pre-registered pair: matched by multiply-adds. By latency it is the same question again.
    tested = [
        key for key in summary['contrasts'] if key not in beside and not key.endswith('by latency')
    ]
    adjusted = statistics.holm({key: summary['contrasts'][key]['p'] for key in tested})
    for key, p in adjusted.items():
        summary['contrasts'][key]['p_holm'] = p
    return summary


def on_folds(chosen: dict) -> dict:
    """Differences of a selection's arms: {'a - b': {points, mean, low, high, p}}, mIoU.

    `chosen` is ladder.freeze's, its runs fold by fold, `seeds` in each. A scouting arm is set
    beside `recommended`, a rung beside `reference`, and the pairs of BESIDE; of both sides the best
    grid point, and pairs with other runs are left out. `points` are the differences, run by run.
    The unit is the seed, averaged over its folds: interval and p are those of statistics.paired
    over seeds, None for one seed or more than that takes.
    """
    best = {n: max(row['table'], key=lambda p: p['mean'])['runs'] for n, row in chosen.items()}
    bases = ((name, 'recommended' if name in SCOUTS else 'reference') for name in best)
    found = {}
    for first, second in dict.fromkeys([*bases, *BESIDE]):
        if first == second or not {first, second} <= set(best):
            continue
        seeds = chosen[first]['seeds']
        if seeds != chosen[second]['seeds'] or len(best[first]) != len(best[second]):
            continue
        points = np.subtract(best[first], best[second])
        row = {'points': points.tolist(), 'mean': float(points.mean())}
        row |= {'low': None, 'high': None, 'p': None}
        if 1 < seeds <= statistics.MOST_SEEDS:
            paired = statistics.paired(points.reshape(-1, seeds).mean(0))
            row |= {'low': paired.low, 'high': paired.high, 'p': paired.p}
        found[f'{first} - {second}'] = row
    return found


def _contrast(rungs, first, second, by, workdir):
    """One paired difference, None while a side of it is missing."""
    needed = ['matched_low', 'matched_high'] if second == 'matched' else [second]
    if any(name not in rungs for name in (first, *needed)):
        return None
    if by and any(rungs[name]['costs'].get(by) is None for name in (first, *needed)):
        return None
    split = next(iter(rungs[first]['scores']))
    shared = set.intersection(*(set(rungs[name]['seeds']) for name in (first, *needed)))
    if not shared:
        return None
    seeds, weights = sorted(shared), {first: 1.0, second: -1.0}
    if by:  # on the straight line between the two sizes
        costs = (rungs[name]['costs'][by] for name in (*needed, first))
        try:
            share = statistics.share_at_cost(*costs)
        except UserError as error:  # latency need not lie between those of the two sizes
            return {'by': by, 'seeds': len(seeds), 'failed': error.found, 'p': 1.0}
        weights = {first: 1.0, **dict(zip(needed, (share - 1, -share)))}

    def difference(score):
        """Of each seed."""
        rows = {name: rungs[name] for name in weights}
        places = {name: [row['seeds'].index(s) for s in seeds] for name, row in rows.items()}
        return sum(
            weight * np.array(rows[name]['scores'][split][score], float)[places[name]]
            for name, weight in weights.items()
        )

    paired = statistics.paired(difference('miou'))
    secondary = {}
    for score in ('thin', 'boundary_1', 'boundary_2', 'boundary_3', 'boundary_4'):
        found = difference(score)
        if np.isfinite(found).all():
            secondary[score] = statistics.paired(found)._asdict()
    return {
        'by': by,
        **paired._asdict(),
        'verdict': statistics.verdict(paired),
        'differences': difference('miou').tolist(),
        'secondary': secondary,
        'bootstrap': _bootstrap(workdir, weights, split, seeds),
    }


def _bootstrap(workdir, weights, split, seeds):
    """Interval over stretches of 20 frames, from the counts beside the results."""
    counts = {
        name: [experiment.counts(workdir / 'final' / name / f'seed{s}', split) for s in seeds]
        for name in weights
    }
    blocks = statistics.blocks_of(next(iter(counts.values()))[0]['names'])
    if blocks.max(initial=0) < 1:
        return None
    arms = (
        (weight, np.stack([run['confusion'] for run in counts[name]]))
        for name, weight in weights.items()
    )
    found = statistics.block_bootstrap(arms, blocks)
    return {**found._asdict(), 'blocks': int(blocks.max()) + 1}


def _points(value):
    return None if value is None else 100 * value


def _median(values):
    values = [value for value in values if value is not None]
    return float(np.median(values)) if values else None
