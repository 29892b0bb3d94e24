"""Gradient accumulation: equal to the large batch, over devices and resident data too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import accumulation, inference, losses, optimizer, parallel, resident
from dsrl_jax import config as configs
from dsrl_jax import state as states
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError
from dsrl_jax.ops.affinity import SAMPLINGS
from dsrl_jax.step import make_train_step

CLASSES, SIZE, ROWS = SyntheticSource.num_classes, (32, 64), 8
WEIGHTS = np.linspace(0.25, 3, CLASSES, dtype=np.float32)


def configured(parts=1, **fa):
    config = configs.load('synthetic:tiny,dsrl=full,net=toy_network:Toy')
    config.model.freeze_bn = '.'
    config.model.width = 1.0
    config.data.size, config.data.batch_size = SIZE, ROWS
    config.fa.grid = 4
    config.fa.q = 2  # of q = 1 the gradient has the signs of differences that are all rounding
    config.optimizer.name, config.optimizer.clip_norm = 'sgd', 0.0
    config.accumulate = parts
    for name, value in fa.items():
        config.fa[name] = value
    return config


def batch_of(seed=0):
    """Images unlike in what counts: some without labels, some mostly padding."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (ROWS, *SIZE)).astype(np.uint8)
    mask = np.ones((ROWS, *SIZE), bool)
    for row, (rows, columns) in enumerate(rng.integers(12, SIZE, (ROWS, 2))):
        if row % 3:
            mask[row, rows:] = mask[row, :, columns:] = False
    label[~mask] = 255
    label[5] = 255
    target = rng.integers(0, 256, (ROWS, *SIZE, 3)).astype(np.uint8)
    return {'target': target, 'label': label, 'mask': mask}


def stepping(config):
    """(train step, fresh state)."""
    network = inference.build_network(config, CLASSES)
    shapes = inference.abstract_variables(network, config)
    tx, schedule = optimizer.make_optimizer(config.optimizer, shapes['params'], 10)
    loss = losses.make_loss(config, WEIGHTS)
    small = inference.input_size(config, config.data.size)
    variables = jax.jit(lambda k: states.init_variables(network, small, k))(jax.random.key(0))
    state = jax.device_get(states.create(variables, tx, ema=False))
    return make_train_step(network, tx, loss, config, schedule), state


@functools.cache
def prepared(parts):
    """(jitted step, fresh state): one compilation serves several tests."""
    step, state = stepping(configured(parts))
    return jax.jit(step), state


def assert_equal_updates(one, other, before):
    """Every leaf changed alike, up to the rounding of sums in another order."""
    leaves = zip(*(jax.tree.leaves(jax.device_get(s.params)) for s in (one, other, before)))
    for a, b, old in leaves:
        assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(a - old)


@pytest.mark.parametrize('parts', [2, 4])
def test_parts_equal_the_large_batch(parts):
    (whole, state), (split, _) = prepared(1), prepared(parts)
    (one, terms), (other, split_terms) = whole(state, batch_of()), split(state, batch_of())
    assert set(terms) == set(split_terms) >= {'ce', 'mse', 'fa', 'total', 'grad_norm', 'lr'}
    for name in terms:
        np.testing.assert_allclose(split_terms[name], terms[name], rtol=2e-5)
    assert_equal_updates(one, other, state)
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (other.params, state.params)))]
    assert all(moved) and int(other.step) == 1


def test_parts_of_four_devices_equal_one_pass_of_one():
    (whole, state), (split, _) = prepared(1), prepared(2)
    mesh = parallel.make_mesh()
    placed = jax.device_put(state, parallel.replicated(mesh))
    one, terms = whole(state, batch_of())
    other, split_terms = split(placed, parallel.to_global(batch_of(), mesh))
    assert len(split_terms['total'].sharding.device_set) == 4
    np.testing.assert_allclose(split_terms['total'], terms['total'], rtol=2e-5)
    assert_equal_updates(one, other, state)


def test_images_stay_on_their_devices():
    """Only gradients and sums pass between the devices, no pixels."""
    split, state = prepared(2)
    mesh = parallel.make_mesh()
    arguments = (
        jax.device_put(state, parallel.replicated(mesh)),
        parallel.to_global(batch_of(), mesh),
    )
    text = split.lower(*arguments).compile().as_text()
    passed = [line for line in text.splitlines() if 'all-to-all(' in line or 'all-gather(' in line]
    assert not passed and 'all-reduce' in text


@pytest.mark.parametrize('devices', [1, 4])
def test_resident_images_are_accumulated(devices):
    """A step on images in the memory of the devices, in two parts, is one on the views, in one."""
    (whole, state), config = prepared(1), configured(2)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
    held = resident.place(SyntheticSource(size=(48, 80), length=11), mesh, False)
    batch = resident.make_batch(held, config, mesh)
    views = jax.device_get(jax.jit(batch)(held, state.step, state.seed))
    run = jax.jit(resident.repeat(stepping(config)[0], batch, 1))
    other, split_terms = run(jax.device_put(state, parallel.replicated(mesh)), held)
    one, terms = whole(state, views)
    np.testing.assert_allclose(split_terms['total'], terms['total'][None], rtol=2e-5)
    np.testing.assert_allclose(split_terms['grad_norm'], terms['grad_norm'][None], rtol=1e-4)
    assert_equal_updates(one, other, state)


@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('shuffle', [False, True])
def test_shares_weigh_the_affinity_of_parts(sampling, shuffle):
    """However the pairs are drawn: the parts' means, so weighed, are the mean of the whole."""
    config = configured(2, sampling=sampling, shuffle_sr=shuffle, grid=2, window=3)
    key, batch = jax.random.key(3), batch_of()
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(ROWS, 8, 16, c)).astype(np.float32) for c in (3, 4)]

    def affinity(rows):
        seg, guide, mask = (x[rows] for x in (*maps, batch['mask']))
        return losses.feature_affinity(seg, guide, mask, config, key, frozen=False)

    total = 0.0
    for part in range(2):
        seen = {name: x[part::2] for name, x in batch.items()} | {'part': part, 'whole': batch}
        share = losses.part_shares(seen, config, WEIGHTS, key)
        assert abs(share['fa'] - 1) > 1e-3
        total += share['fa'] * affinity(slice(part, None, 2)) / 2
    np.testing.assert_allclose(total, affinity(slice(None)), rtol=1e-5)


def test_shares_average_to_one():
    batch, config = batch_of(), configured(4)
    parts = [
        losses.part_shares(
            {name: x[m::4] for name, x in batch.items()} | {'part': m, 'whole': batch},
            config,
            WEIGHTS,
            jax.random.key(0),
        )
        for m in range(4)
    ]
    for name in ('ce', 'mse', 'fa'):
        values = [float(share[name]) for share in parts]
        assert np.ptp(values) > 0.01
        np.testing.assert_allclose(np.mean(values), 1, rtol=1e-5)
    pixels = [(batch['mask'][m::4].sum(), batch['mask'].sum()) for m in range(4)]
    np.testing.assert_allclose([s['mse'] for s in parts], [4 * a / b for a, b in pixels], rtol=1e-5)
    assert losses.part_shares(batch, config, WEIGHTS, jax.random.key(0)) == {}


def test_statistics_follow_the_parts_in_turn():
    """Running statistics of norms that are not frozen: an average over each part, one by one."""
    state = states.TrainState(
        step=jnp.zeros(()),
        seed=jnp.zeros(()),
        params={'w': jnp.ones(2)},
        batch_stats={'mean': jnp.zeros(())},
        opt_state=None,
        ema=None,
    )

    def gradient(state, batch, teacher):
        mean = 0.9 * state.batch_stats['mean'] + 0.1 * jnp.mean(batch['x'])
        return {'w': state.params['w'] * jnp.sum(batch['x'])}, {'total': mean}, {'mean': mean}

    x = jnp.arange(6.0)
    batch = {'x': x, 'label': x, 'mask': x}
    grads, _, stats = accumulation.in_parts(gradient, 3)(state, batch)
    # Parts are rows (0, 3), (1, 4), (2, 5).
    expected = 0.1 * (0.81 * 1.5 + 0.9 * 2.5 + 3.5)
    np.testing.assert_allclose(stats['mean'], expected, rtol=1e-6)
    np.testing.assert_allclose(grads['w'], 5)


@pytest.mark.parametrize(('parts', 'rows'), [(4, 8), (3, 8), (2, 12)])
def test_unequal_parts_are_refused(parts, rows):
    config = configured(parts)
    config.data.batch_size = rows
    with pytest.raises(UserError, match=rf'{parts} parts of {rows} images on 4 devices'):
        accumulation.check(config)
    config.data.batch_size = 4 * parts
    accumulation.check(config)
