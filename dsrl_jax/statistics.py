"""What scores over seeds and over frames allow to be said: intervals, p-values, verdicts.

Scores and differences are in points (hundredths of a mean IoU); the unit of `paired` is the seed,
that of `block_bootstrap` a stretch of film. The t quantile is scipy's, which jax itself requires.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from dsrl_jax import metrics
from dsrl_jax.errors import UserError

LEVEL = 0.95  # of every interval
MARGIN = 0.5  # points: a difference that surely stays below it is called none
MOST_SEEDS = 20  # 2^20 sign flips


class Paired(NamedTuple):
    """Mean difference over seeds, its 95 % interval (None for one seed) and sign-flip p."""

    mean: float
    low: float | None
    high: float | None
    p: float
    seeds: int


class Interval(NamedTuple):
    """A difference and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired(differences) -> Paired:
    """Differences of two arms [seeds], each under one seed -> Student t interval and exact p.

    The interval is mean -+ t(n - 1) s / sqrt(n). p is the share of all 2^n choices of sign, the
    actual one among them, whose mean is at least as far from 0: two-sided and without a
    distribution; its least value is 2 / 2^n. UserError without seeds, for over 20 of them and for
    a value that is no number.
    """
    values = np.asarray(differences, np.float64)
    n = values.size
    if values.ndim != 1 or not 1 <= n <= MOST_SEEDS or not np.isfinite(values).all():
        raise UserError(
            'paired differences',
            f'{values.tolist()}' if n <= MOST_SEEDS else f'{n} values',
            f'1 to {MOST_SEEDS} finite numbers, one a seed',
            'leave no seed out and none without a score in.',
        )
    mean = float(values.mean())
    low = high = None
    if n > 1:
        half = special.stdtrit(n - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(n)
        low, high = float(mean - half), float(mean + half)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    # Sums in another order differ in the last bits: a tie must not hang on them.
    tolerance = 1e-9 * np.abs(values).sum()
    p = float(np.mean(np.abs(sums) >= abs(values.sum()) - tolerance))
    return Paired(mean, low, high, p, n)


def holm(p_values: Mapping) -> dict:
    """Holm's step-down adjustment: {name: p} -> {name: adjusted p}, in the order given.

    The i-th smallest of m is multiplied by m - i + 1, never below one before it, never above 1.
    """
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def verdict(result: Paired, margin: float = MARGIN) -> str:
    """'gain', 'loss', 'no gain' or 'undecided' of a paired difference (first minus second arm).

    gain: the whole interval above 0; loss: the whole interval below 0; no gain: its upper end
    below the margin; else, and for one seed, undecided. The first that holds is said, so a sure
    gain under the margin is a gain and a loss is a loss, not merely no gain.
    """
    if result.low is None:
        return 'undecided'
    if result.low > 0:
        return 'gain'
    if result.high < 0:
        return 'loss'
    return 'no gain' if result.high < margin else 'undecided'


def blocks_of(names: Iterable[str], length: int = 20) -> np.ndarray:
    """Block index [frames] of frames in order: at most `length` neighbours of one drive a block.

    The drive is the part of the name before the first underscore; a new one starts a new block.
    """
    if length < 1:
        raise ValueError(f'blocks of {length} frames')
    blocks, block, drive, held = [], -1, None, 0
    for name in names:
        here = name.partition('_')[0]
        if here != drive or held == length:
            block, drive, held = block + 1, here, 0
        blocks.append(block)
        held += 1
    return np.array(blocks, np.int64)


def block_bootstrap(
    arms: Iterable[tuple[float, np.ndarray]],
    blocks,
    *,
    draws: int = 10_000,
    seed: int = 0,
    classes=None,
) -> Interval:
    """Sum of weight x pooled mean IoU of the arms, in points; percentile interval over blocks.

    An arm is (weight, counts): 1 and -1 for a difference. Counts are one confusion matrix a frame,
    [frames,K,C] or [seeds,frames,K,C] (rows the truth; C >= K, columns from K on are predictions of
    no class); of several seeds the mean IoUs are averaged. `blocks` [frames] is from `blocks_of`:
    as many blocks as there are get drawn with replacement, the same for all arms, because
    neighbours in a film are no independent samples. `classes`: the mean is over these only. A class
    without a true pixel in a draw is in no arm's mean there. UserError unless all arms saw the same
    labels in two blocks or more.
    """
    weighed = [(weight, _seeds_first(counts)) for weight, counts in arms]
    blocks, arms = np.asarray(blocks), [counts for _, counts in weighed]
    truths = [arm.sum(-1) for arm in arms]
    if any(truth.shape[1:] != truths[0].shape[1:] for truth in truths) or any(
        (truth != truths[0][:1]).any() for truth in truths
    ):
        raise UserError(
            'the arms',
            'confusion matrices with other true pixels',
            'the same frames in the same order',
            'score all on the same split.',
        )
    number = int(blocks.max(initial=-1)) + 1
    if blocks.shape != arms[0].shape[1:2] or number < 2:
        raise UserError(
            'the block bootstrap',
            f'{number} blocks of {blocks.size} frames',
            f'two blocks or more of {arms[0].shape[1]} frames',
            'score more frames or take shorter blocks.',
        )
    member = (blocks == np.arange(number)[:, None]).astype(np.float64)  # [blocks, frames]
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), draws)
    times = np.concatenate([np.ones((1, number)), drawn])  # the frames as they are come first
    found = sum(weight * _pooled(arm, member, times, classes) for weight, arm in weighed)
    low, high = np.quantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(found[0]), float(low), float(high))


def share_at_cost(low: float, high: float, cost: float) -> float:
    """How far a cost lies on the way from one measured cost to another, 0 to 1.

    UserError unless low <= cost <= high and low < high: nothing is extrapolated.
    """
    if not low <= cost <= high or low == high:
        raise UserError(
            'the matched cost',
            f'{cost:g} outside {low:g} to {high:g}',
            'two measured costs on either side of it',
            'train the sizes that bracket it.',
        )
    return (cost - low) / (high - low)


def _seeds_first(counts) -> np.ndarray:
    """[frames,K,C] or [seeds,frames,K,C] -> int64 [seeds,frames,K,C]."""
    counts = np.asarray(counts, np.int64)
    if counts.ndim not in (3, 4) or counts.shape[-1] < counts.shape[-2]:
        raise ValueError(f'counts {counts.shape}: not [frames,K,C] or [seeds,frames,K,C], C >= K')
    return counts if counts.ndim == 4 else counts[None]


def _pooled(arm, member, times, classes) -> np.ndarray:
    """Mean over seeds of the pooled mean IoU in points, [draws], of matrices [seeds,frames,K,C]."""
    hit, truth, either = (
        times @ (member @ part.astype(np.float64))  # [seeds, draws, K], exact below 2^53
        for part in metrics.hits_truths_unions(arm)
    )
    there = truth > 0
    if classes is not None:
        chosen = np.zeros(there.shape[-1], bool)
        chosen[list(classes)] = True
        there = there & chosen
    iou = np.where(there, hit, 0) / np.where(there, either, 1)
    return 100 * (iou.sum(-1) / np.maximum(there.sum(-1), 1)).mean(0)
