"""From runs to tables: pairing by seed, interpolation at equal cost, intervals, rendering."""

import json

import numpy as np
import pytest

from dsrl_jax import contrasts, experiment, statistics
from dsrl_jax.report import ladder as report

CLASSES, FRAMES = 3, 60
NAMES = [f'Seq05VD_f{n:05d}' for n in range(FRAMES)]


def run(miou, seed):
    return {
        'seed': seed,
        'images_per_second': 100.0 + seed,
        'minutes': 10.0,
        'curve': [{'step': 10 * k, 'miou': miou * k / 4, 'minutes': 2.0 * k} for k in range(1, 5)],
        'scores': {
            'test': {
                'miou': miou,
                'thin_miou': miou / 2,
                'pixel_accuracy': 0.9,
                'boundary_iou': [0.1, 0.2, 0.3, 0.4],
            }
        },
    }


MIOU = {
    'reference': {0: 0.50, 1: 0.51, 2: 0.52, 3: 0.50},
    'full': {0: 0.52, 1: 0.54, 2: 0.53, 4: 0.90},  # seed 3 missing, 4 unpaired
    'matched_low': {0: 0.50, 1: 0.52, 2: 0.52},
    'matched_high': {0: 0.54, 1: 0.56, 2: 0.52},
}
HITS = {'reference': 0.6, 'full': 0.7, 'matched_low': 0.6, 'matched_high': 0.7}
COSTS = {
    'reference': {'macs': 100, 'latency_ms': 1.0, 'dsrl': 'none'},
    'full': {'macs': 150, 'latency_ms': 3.0, 'dsrl': 'full'},
    'matched_low': {'macs': 100, 'latency_ms': 1.0, 'dsrl': 'none'},
    'matched_high': {'macs': 200, 'latency_ms': 2.0, 'dsrl': 'none'},
}


@pytest.fixture(scope='module')
def summary(tmp_path_factory):
    """Runs with these scores; counts in which full is right about more pixels of each frame."""
    home = tmp_path_factory.mktemp('ladder')
    rng = np.random.default_rng(0)
    truth = rng.integers(50, 200, (FRAMES, CLASSES))
    for name, share in HITS.items():
        for seed in MIOU[name]:
            hits = rng.binomial(truth, share)
            confusion = np.zeros((FRAMES, CLASSES, CLASSES + 1), np.int32)
            for k in range(CLASSES):
                confusion[:, k, k] = hits[:, k]
                confusion[:, k, (k + 1) % CLASSES] = truth[:, k] - hits[:, k]
            folder = home / 'final' / name / f'seed{seed}'
            folder.mkdir(parents=True)
            np.savez(folder / 'counts_test.npz', names=np.array(NAMES), confusion=confusion)
    results = {n: {s: run(v, s) for s, v in seeds.items()} for n, seeds in MIOU.items()}
    return contrasts.summarize(results, COSTS, home, reach=0.3)


def test_differences_are_of_the_seeds_both_arms_have(summary):
    found = summary['contrasts']['full - reference']
    np.testing.assert_allclose(found['differences'], [2, 3, 1])
    want = statistics.paired([2.0, 3.0, 1.0])
    assert found['mean'] == pytest.approx(want.mean) and found['low'] == pytest.approx(want.low)
    assert found['seeds'] == 3 and found['verdict'] == statistics.verdict(want)
    assert found['secondary']['thin']['mean'] == pytest.approx(1)
    assert found['secondary']['boundary_1']['mean'] == 0


def test_the_plain_network_is_read_off_at_the_cost_of_full(summary):
    found = summary['contrasts']['full - matched cost, by macs']
    # Halfway between the sizes: 52, 54 and 52.
    np.testing.assert_allclose(found['differences'], [0, 0, 1], atol=1e-9)
    film = found['bootstrap']
    assert film['blocks'] == 3 and film['low'] < film['mean'] < film['high']
    whole = summary['contrasts']['full - reference']['bootstrap']['mean']
    assert film['mean'] == pytest.approx(whole / 2, rel=0.1)  # counts halfway between, too
    # Full is slower than the larger size: nothing is extrapolated.
    assert 'outside' in summary['contrasts']['full - matched cost, by latency']['failed']


def test_two_questions_are_adjusted_together(summary):
    ps = {
        k: summary['contrasts'][k]['p']
        for k in ('full - reference', 'full - matched cost, by macs')
    }
    adjusted = statistics.holm(ps)
    assert {k: summary['contrasts'][k]['p_holm'] for k in ps} == adjusted
    assert 'p_holm' not in summary['contrasts']['full - matched cost, by latency']


def test_the_interval_over_film_is_of_the_counts_beside_the_runs(summary):
    film = summary['contrasts']['full - reference']['bootstrap']
    assert film['blocks'] == 3 and film['low'] <= film['mean'] <= film['high']
    assert 5 < film['mean'] < 20


def test_minutes_are_those_of_the_curve():
    one = run(0.5, 0)
    assert experiment.minutes_to(one, 0.3) == 6.0
    assert experiment.minutes_to(one, 0.5) == 8.0 and experiment.minutes_to(one, 0.6) is None


def test_pages_hold_every_seed_and_the_negative_ones(summary, tmp_path):
    text = report.markdown(summary, 'a title')
    assert 'a title' in text and '0: 50.00, 1: 51.00, 2: 52.00, 3: 50.00' in text
    assert '+2.00' in text and 'outside' in text and 'by latency' in text
    widths = {line.count('|') for line in text.splitlines() if line.startswith('| full')}
    assert len(widths) == 1
    json.dumps(summary, allow_nan=False)
    path = report.figure(summary, tmp_path / 'ladder.png')
    assert path.stat().st_size > 5000


def test_a_contrast_without_its_other_arm_is_left_out(tmp_path):
    results = {'full': {0: run(0.5, 0)}}
    summary = contrasts.summarize(results, COSTS, tmp_path)
    assert summary['contrasts'] == {}
    assert 'No contrast' in report.markdown(summary, 'one arm')


def chosen(*tables, seeds=2):
    return {
        'seeds': seeds,
        'table': [{'mean': float(np.mean(runs)), 'runs': runs} for runs in tables],
    }


def test_arms_of_a_selection_are_compared_run_by_run_at_their_best():
    arms = {
        'reference': chosen([20.0, 30.0, 40.0, 50.0], [21.0, 31.0, 40.0, 50.0]),
        'recommended': chosen([22.0, 34.0, 41.0, 51.0], [1.0, 2.0, 3.0, 4.0]),
        'stop_gradient': chosen([22.5, 34.5, 41.5, 51.5]),
        'guide_teacher': chosen([20.0]),  # another number of runs
        'distilled': chosen([22.0, 34.0, 41.0, 50.0]),
    }
    found = contrasts.on_folds(arms)
    assert set(found) == {
        *('recommended - reference', 'stop_gradient - recommended', 'distilled - reference'),
        'recommended - distilled',
    }
    first = found['recommended - reference']
    assert first['points'] == [1.0, 3.0, 1.0, 1.0] and first['mean'] == 1.5
    # Two folds of two seeds: 1 and 2 of the seeds.
    want = statistics.paired([1.0, 2.0])
    assert (first['low'], first['high'], first['p']) == (want.low, want.high, want.p)
    assert found['stop_gradient - recommended']['low'] == 0.5
    single = {name: {**row, 'seeds': 1} for name, row in arms.items()}
    one = contrasts.on_folds(single)['recommended - reference']
    assert one['mean'] == 1.5 and one['low'] is one['p'] is None
    many = {n: chosen([1.0] * 21, seeds=21) for n in ('reference', 'recommended')}
    assert contrasts.on_folds(many)['recommended - reference']['low'] is None
