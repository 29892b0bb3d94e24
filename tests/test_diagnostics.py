"""Diagnostics of the affinity loss: by hand on a toy network, and a run that does not notice."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import TINY, refused

import dsrl_jax
from dsrl_jax import config as configs
from dsrl_jax import diagnostics, inference, losses, optimizer, parallel
from dsrl_jax import state as states
from dsrl_jax.logger import Logger
from dsrl_jax.ops import resize
from dsrl_jax.ops.affinity import dense_affinity_loss
from dsrl_jax.records import read_metrics

CLASSES, SIZE = 5, (64, 96)
GRID = tuple(n // 16 for n in SIZE)


def cosines(x, real, eps=1e-4):
    """Of all pairs of two different real cells: float64 [pairs]."""
    found = []
    for cells, kept in zip(np.asarray(x, np.float64), np.asarray(real)):
        cells = cells[kept]
        unit = cells / np.sqrt(np.sum(cells**2, -1, keepdims=True) + eps)
        found.append((unit @ unit.T)[~np.eye(len(unit), dtype=bool)])
    return np.concatenate(found)


def test_statistics_by_formula():
    rng = np.random.default_rng(0)
    x, real = rng.normal(0.5, 1, (2, 4, 6, 7)).astype(np.float32), rng.random((2, 4, 6)) < 0.7
    measured = jax.jit(functools.partial(diagnostics.statistics, eps=1e-4))
    expected = cosines(x, real)
    np.testing.assert_allclose(measured(x, real), (expected.mean(), expected.std()), rtol=1e-5)
    np.testing.assert_array_equal(measured(x, np.zeros_like(real)), (0, 0))
    # One direction everywhere: no spread.
    mean, std = measured(np.ones_like(x), real)
    assert abs(mean - 1) < 1e-4 and std < 1e-6


def test_a_large_grid_is_sampled_evenly():
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 1, (1, 40, 50, 7)).astype(np.float32)
    real = np.ones((1, 40, 50), bool)
    measured = jax.jit(functools.partial(diagnostics.statistics, eps=1e-4))
    text = measured.lower(x, real).as_text()
    assert '256x256' in text and '2000x2000' not in text
    expected = cosines(x, real)
    np.testing.assert_allclose(measured(x, real), (expected.mean(), expected.std()), atol=0.02)


@pytest.fixture(scope='module')
def toy():
    """(config, network, state, batch, teacher's features) of the toy network with all branches."""
    config = configs.load(f'{TINY},dsrl=full')
    config.data.size, config.fa.guide = SIZE, 'both'
    network = inference.build_network(config, CLASSES)
    shapes = inference.abstract_variables(network, config)
    rng = np.random.default_rng(0)

    def value(x):
        kernel = len(x.shape) == 4
        spread = np.prod(x.shape[:-1]) ** -0.5 if kernel else 0.1
        return jnp.asarray(rng.normal(0 if kernel else 0.5, spread, x.shape), x.dtype)

    variables = jax.tree.map(value, shapes)
    tx, _ = optimizer.make_optimizer(config.optimizer, shapes['params'], 10)
    label = rng.integers(0, CLASSES, (4, *SIZE)).astype(np.uint8)
    label[:, :2] = 255
    mask = np.ones((4, *SIZE), bool)
    mask[1, 40:] = False
    target = rng.integers(0, 256, (4, *SIZE, 3)).astype(np.uint8)
    teacher = {'features': jnp.asarray(rng.normal(0.4, 1, (4, 16, 24, 9)), jnp.float32)}
    batch = {'target': target, 'label': label, 'mask': mask}
    return config, network, states.create(variables, tx, ema=False), batch, teacher


def test_measured_as_computed_by_hand(toy):
    config, network, state, batch, teacher = toy
    loss = losses.make_loss(config)
    measure = diagnostics.make_measure(network, loss, config, lambda features, target: features)
    found = jax.tree.map(float, jax.jit(measure)(state, batch, teacher))

    image = resize.small_input(batch['target'], config.scale, config.data)
    real = resize.pool_to(jnp.asarray(batch['mask'], jnp.float32)[..., None], GRID)[..., 0] > 0.999
    assert not real.all()

    def energies(params):
        variables = {'params': params, 'batch_stats': state.batch_stats}
        outputs, _ = network.apply(variables, image, train=True, mutable=['batch_stats'])
        seg, sr = (resize.pool_to(outputs[f'{n}_feature'], GRID) for n in ('seg', 'sr'))
        other = resize.pool_to(teacher['features'], GRID)
        fa = sum(dense_affinity_loss(seg, x, mask=real) for x in (sr, other)) / 2
        ce = losses.cross_entropy(outputs, batch['label'], config)
        return jnp.stack([fa, ce]), (seg, sr, other)

    gradients, maps = jax.jit(jax.jacrev(energies, has_aux=True))(state.params)
    for name, x in zip(('seg', 'sr', 'teacher'), maps, strict=True):
        expected = cosines(x, real)
        assert expected.std() > 1e-4
        np.testing.assert_allclose(found[f'affinity_{name}_mean'], expected.mean(), rtol=1e-4)
        np.testing.assert_allclose(found[f'affinity_{name}_std'], expected.std(), rtol=1e-3)
    fa, ce = np.concatenate(
        [np.asarray(x, np.float64).reshape(2, -1) for x in jax.tree.leaves(gradients['network'])], 1
    )
    cosine = fa @ ce / np.linalg.norm(fa) / np.linalg.norm(ce)
    assert 1e-3 < abs(cosine) < 0.999
    np.testing.assert_allclose(found['cosine_fa_ce'], cosine, rtol=1e-3)
    assert len(found) == 7


def test_nothing_labelled_has_no_angle(toy):
    config, network, state, batch, teacher = toy
    measure = diagnostics.make_measure(
        network, losses.make_loss(config), config, lambda features, target: features
    )
    blank = {**batch, 'label': np.full_like(batch['label'], 255)}
    assert jax.jit(measure)(state, blank, teacher)['cosine_fa_ce'] == 0


def run(workdir, affinity, resident):
    config = configs.load(f'{TINY},dsrl=full')
    config.data.size, config.data.resident = (32, 64), resident
    config.steps, config.log.every, config.log.affinity = 4, 1, affinity
    dsrl_jax.train(config, workdir)
    _, variables, _ = inference.from_workdir(workdir)
    records = read_metrics(workdir)
    steps = [{k: v for k, v in r.items() if k.startswith('train/')} for r in records]
    measured = {r['step']: r for r in records if 'diag/cosine_fa_ce' in r}
    return jax.tree.map(np.asarray, variables), [r for r in steps if r], measured


@pytest.mark.parametrize('resident', ['never', pytest.param('always', marks=pytest.mark.slow)])
def test_a_run_that_is_measured_is_the_same_run(tmp_path, resident):
    """Bit for bit, weights and terms."""
    plain, terms, none = run(tmp_path / 'plain', 0, resident)
    measured, same, found = run(tmp_path / 'measured', 2, resident)
    jax.tree.map(np.testing.assert_array_equal, plain, measured)
    assert terms == same and len(terms) == 4
    assert not none and list(found) == [2, 4]
    for record in found.values():
        values = {k: v for k, v in record.items() if k.startswith('diag/')}
        names = {f'affinity_{n}_{s}' for n in ('seg', 'sr') for s in ('mean', 'std')}
        assert set(values) == {f'diag/{n}' for n in names | {'cosine_fa_ce'}}
        assert all(-1 <= v <= 1 for v in values.values())
        assert values['diag/affinity_seg_mean'] > 0  # after a ReLU


def test_a_dispatch_is_measured_at_its_first_step_on_the_views_of_that_step(tmp_path):
    """Dispatches of 2, 2, 2, 1 and 4 steps: due where one holds a multiple of 3, once."""
    config = configs.base()
    config.log.affinity = 3

    def measure(state, batch, teacher):
        return {'batch': batch, 'teacher': teacher}

    def batch(held, step, seed):
        return 100 * held + 10 * step + seed

    with Logger(tmp_path, steps=11, batch_size=1, stream=io.StringIO()) as logger:
        mesh = parallel.make_mesh()
        record = diagnostics.make_record(measure, batch, config, mesh, logger)
        step = 0
        for length in (2, 2, 2, 1, 4):
            state = states.create({'params': {}, 'batch_stats': {}}, optax.identity(), ema=False)
            state = state.replace(step=jnp.asarray(step), seed=jnp.asarray(5))
            record(step, length, state, jnp.asarray(7), jnp.asarray(9))
            step += length
    found = [(r['step'], r['diag/batch'], r['diag/teacher']) for r in read_metrics(tmp_path)]
    assert found == [(3, 725, 9), (5, 745, 9), (8, 775, 9)]


def test_nothing_to_measure_is_refused(tmp_path, capsys):
    argv = (
        'train',
        f'--config={TINY},dsrl=sssr',
        '--config.steps=2',
        f'--workdir={tmp_path / "w"}',
    )
    wanted = ('config.log.affinity', '5 with model.dsrl=sssr', 'set it to 0')
    refused(capsys, (*argv, '--config.log.affinity=5'), *wanted)
    refused(capsys, (*argv, '--config.log.affinity=-1'), 'config.log.affinity', 'at least 0')
