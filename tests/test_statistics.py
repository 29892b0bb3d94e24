"""Intervals and p-values against textbook numbers, enumeration and symmetry; the verdicts."""

import itertools

import numpy as np
import pytest

from dsrl_jax import metrics, statistics
from dsrl_jax.errors import UserError

# Student (1908): extra hours of sleep of ten patients, one drug minus the other.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
CLASSES = 3


def matrices(seed, frames, *lead):
    """Random confusion matrices [..., frames, K, K+1] and others of the same true pixels."""
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 50, (*lead, frames, CLASSES, CLASSES + 1))
    return np.broadcast_to(first[:1], first.shape) if lead else first, rng


def moved(counts, rng):
    """Some right pixels of every row made wrong: the truth stays."""
    counts, k = counts.copy(), np.arange(CLASSES)
    wrong = rng.integers(0, counts[..., k, k] + 1)
    counts[..., k, k] -= wrong
    counts[..., k, (k + 1) % CLASSES] += wrong
    return counts


def test_interval_of_students_sleep_data():
    result = statistics.paired(SLEEP)
    assert result.mean == pytest.approx(1.58) and result.seeds == 10
    assert (result.low, result.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_sign_flips_are_exact():
    """Equal signs: two of 2^n; a zero difference doubles it; every flip of a sum of 0 is as far."""
    assert statistics.paired([0.3] * 5).p == 2 / 32
    assert statistics.paired([-0.1, -0.2, -0.3]).p == 2 / 8
    assert statistics.paired(SLEEP).p == 4 / 1024
    assert statistics.paired([1.0, -1.0, 0.0]).p == 1
    assert statistics.paired([0.0] * 4).p == 1


def test_sign_flips_equal_enumeration():
    values = np.random.default_rng(0).integers(-6, 9, 9)  # integers: many ties, exact sums
    flips = np.array(list(itertools.product([-1, 1], repeat=9)))
    expected = np.mean(abs(flips @ values) >= abs(values.sum()))
    # Tenths are inexact in binary, so a tie decided by rounding would show.
    for scale in (1, 0.1, -7.3):
        assert statistics.paired(values * scale).p == expected
        assert statistics.paired(values[::-1] * scale).p == expected


def test_twenty_seeds_are_enough_and_one_has_no_interval():
    assert statistics.paired([0.1] * 20).p == 2 / 2**20
    one = statistics.paired([0.7])
    assert one.low is one.high is None and one.p == 1 and statistics.verdict(one) == 'undecided'


@pytest.mark.parametrize('bad', [[], [0.1] * 21, [0.1, np.nan], [[0.1, 0.2]]])
def test_what_is_no_set_of_differences_is_refused(bad):
    with pytest.raises(UserError, match='1 to 20 finite numbers'):
        statistics.paired(bad)


def test_holm_of_a_worked_example():
    """.005 x 4, .01 x 3, .03 x 2, and .04 x 1 lifted to the one before."""
    adjusted = statistics.holm({'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.005})
    assert adjusted == pytest.approx({'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': 0.02})
    assert list(adjusted) == ['a', 'b', 'c', 'd']
    assert statistics.holm({'a': 0.8, 'b': 0.9}) == {'a': 1.0, 'b': 1.0}
    assert statistics.holm({}) == {}


@pytest.mark.parametrize(
    'low, high, expected',
    [
        (0.1, 2.0, 'gain'),
        (0.1, 0.3, 'gain'),  # sure, though small
        (-0.4, 0.49, 'no gain'),
        (-0.4, 0.5, 'undecided'),
        (0.0, 0.6, 'undecided'),
        (-3.0, -0.1, 'loss'),
        (-3.0, 0.0, 'no gain'),
    ],
)
def test_verdicts(low, high, expected):
    result = statistics.Paired((low + high) / 2, low, high, 0.5, 10)
    assert statistics.verdict(result) == expected


def test_blocks_are_stretches_of_one_drive():
    names = [f'A_{n}' for n in range(5)] + [f'B_f{n}' for n in range(2)] + ['A_9']
    assert statistics.blocks_of(names, 2).tolist() == [0, 0, 1, 1, 2, 3, 3, 4]
    assert statistics.blocks_of(names).tolist() == [0] * 5 + [1] * 2 + [2]
    assert statistics.blocks_of([]).shape == (0,)


def minus(a, b):
    return [(1, a), (-1, b)]


def test_difference_is_that_of_the_pooled_scores():
    a, rng = matrices(1, 12)
    b = moved(a, rng)
    got = statistics.block_bootstrap(minus(a, b), np.arange(12) // 3, draws=200)
    expected = 100 * (metrics.mean_iou(a.sum(0)) - metrics.mean_iou(b.sum(0)))
    assert got.mean == pytest.approx(expected) and got.low < got.mean < got.high
    turned = statistics.block_bootstrap(minus(b, a), np.arange(12) // 3, draws=200)
    assert turned == pytest.approx((-got.mean, -got.high, -got.low))
    assert got == statistics.block_bootstrap(minus(a, b), np.arange(12) // 3, draws=200)
    other = statistics.block_bootstrap(minus(a, b), np.arange(12) // 3, draws=200, seed=1)
    assert other.mean == got.mean and other[1:] != got[1:]
    none = statistics.block_bootstrap(minus(a, a), np.arange(12) // 3, draws=50)
    assert none == (0, 0, 0)


def test_two_blocks_have_three_draws():
    """Twice the one (1/4), each once (1/2), twice the other (1/4): the ends are known."""
    a, rng = matrices(2, 4)
    b = moved(a, rng)
    ends = sorted(
        100 * (metrics.mean_iou(a[s].sum(0)) - metrics.mean_iou(b[s].sum(0)))
        for s in (slice(0, 2), slice(2, 4))
    )
    got = statistics.block_bootstrap(minus(a, b), [0, 0, 1, 1], draws=400)
    assert [got.low, got.high] == pytest.approx(ends)


def test_seeds_are_averaged_and_classes_chosen():
    a, rng = matrices(3, 6, 3)
    b = moved(a, rng)
    got = statistics.block_bootstrap(minus(a[0], b), np.arange(6) // 2, draws=20, classes=[2])
    scores = [metrics.mean_iou(arm.sum(0), [2]) for arm in (a[0], *b)]
    assert got.mean == pytest.approx(100 * (scores[0] - np.mean(scores[1:])))


def test_a_class_that_a_draw_lacks_is_in_neither_mean():
    """Drawn twice, the second frame has only class 0, of which arm b misses a tenth."""
    a = np.array([[[500, 0], [0, 500]], [[10, 0], [0, 0]]])
    b = np.array([[[500, 0], [0, 500]], [[9, 1], [0, 0]]])
    got = statistics.block_bootstrap(minus(a, b), [0, 1], draws=400)
    assert (got.low, got.high) == pytest.approx((0, 10))


def test_arms_of_other_frames_and_single_blocks_are_refused():
    a, rng = matrices(4, 4)
    other = a[::-1]
    with pytest.raises(UserError, match='same split'):
        statistics.block_bootstrap(minus(a, other), [0, 0, 1, 1])
    with pytest.raises(UserError, match='1 blocks of 4 frames'):
        statistics.block_bootstrap(minus(a, moved(a, rng)), [0, 0, 0, 0])
    with pytest.raises(UserError, match='of 4 frames'):
        statistics.block_bootstrap(minus(a, moved(a, rng)), [0, 0, 1])


def test_an_arm_between_two_others_has_the_mean_of_their_scores():
    a, rng = matrices(5, 12)
    b, c = moved(a, rng), moved(moved(a, rng), rng)
    blocks = np.arange(12) // 3
    got = statistics.block_bootstrap([(1, a), (-0.25, b), (-0.75, c)], blocks, draws=200)
    scores = [100 * metrics.mean_iou(arm.sum(0)) for arm in (a, b, c)]
    assert got.mean == pytest.approx(scores[0] - 0.25 * scores[1] - 0.75 * scores[2])
    same = statistics.block_bootstrap([(1, a), (-0.25, b), (-0.75, b)], blocks, draws=200)
    assert same == pytest.approx(statistics.block_bootstrap(minus(a, b), blocks, draws=200))


def test_a_cost_between_two_others_is_not_extrapolated():
    assert statistics.share_at_cost(100, 200, 125) == 0.25
    assert statistics.share_at_cost(100, 200, 200) == 1
    for low, high, cost in ((100, 200, 99), (100, 200, 201), (100, 100, 100), (200, 100, 150)):
        with pytest.raises(UserError, match='bracket'):
            statistics.share_at_cost(low, high, cost)
