"""The training step: every leaf moves, devices and copies do not change it, bf16 is close."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import config as configs
from dsrl_jax import inference, losses, optimizer, parallel
from dsrl_jax import state as states
from dsrl_jax.step import label_map, make_train_step

CLASSES = 5
# Declared by the original network and used by none of its paths: the activation of a strided block.
UNUSED = {f'network/encoder/level{n}_0/eesp/module_act/slope' for n in (2, 3, 4)}
SHORT = 'toy_network:Short'  # its blocks, once each


def tiny(**changes):
    config = configs.load('synthetic:tiny,dsrl=full')
    config.data.size = (64, 96)
    config.optimizer.name = 'sgd'  # Adam's first step is a sign: noise there is no smaller
    for dotted, value in changes.items():
        section, _, leaf = dotted.partition('__')
        node = config[section] if leaf else config
        node[leaf or section] = value
    return config


def batch_of(size=4, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (size, 64, 96)).astype(np.uint8)
    label[:, :2] = 255
    return {
        'target': rng.integers(0, 256, (size, 64, 96, 3)).astype(np.uint8),
        'label': label,
        'mask': np.ones((size, 64, 96), bool),
    }


@functools.cache
def prepared(net=SHORT, dtype='float32'):
    """(jitted step, fresh state) of a narrow network; one compilation serves several tests."""
    config = tiny(model__net=net, model__dtype=dtype)
    config.optimizer.weight_decay = 0.0  # it alone would move a leaf
    network = inference.build_network(config, CLASSES)
    shapes = inference.abstract_variables(network, config)
    tx, schedule = optimizer.make_optimizer(config.optimizer, shapes['params'], 10)
    create = functools.partial(states.create, tx=tx, ema=False)
    small = inference.input_size(config, config.data.size)
    variables = jax.jit(lambda k: states.init_variables(network, small, k))(jax.random.key(0))
    step = jax.jit(make_train_step(network, tx, losses.make_loss(config), config, schedule))
    # A norm that another norm follows has no gradient while biases are zero (the second undoes its
    # scale), so every bias starts a little off.
    rng = np.random.default_rng(1)
    variables['params'] = jax.tree.map_with_path(
        lambda path, x: (
            x + 0.1 * rng.normal(size=x.shape).astype(np.float32) if path[-1].key == 'bias' else x
        ),
        jax.device_get(variables['params']),
    )
    return step, jax.device_get(create(variables))


def test_every_leaf_that_has_a_gradient_moves():
    step, state = prepared('espnetv2')
    new, _ = step(state, batch_of())
    still = {
        optimizer.path_name(path)
        for (path, before), after in zip(
            jax.tree.leaves_with_path(state.params), jax.tree.leaves(new.params)
        )
        if np.array_equal(before, after)
    }
    assert still == UNUSED
    for before, after in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(new.batch_stats)):
        assert not np.array_equal(before, after)
    assert int(new.step) == 1


def test_duplicated_batch_gives_the_same_terms_and_update():
    step, state = prepared()
    batch = batch_of()
    twice = {k: np.concatenate([v, v]) for k, v in batch.items()}
    (one, terms), (two, terms_two) = step(state, batch), step(state, twice)
    for name in ('ce', 'mse', 'fa', 'total'):
        np.testing.assert_allclose(terms_two[name], terms[name], rtol=1e-5)
    # Float32 sums in another order: measured 2e-5.
    assert _distance(one.params, two.params) < 1e-3 * _distance(one.params, state.params)


@pytest.mark.slow
@pytest.mark.parametrize(('net', 'rtol', 'far'), [(SHORT, 1e-5, 1e-3), ('espnetv2', 2e-4, 5e-3)])
def test_four_devices_equal_one(net, rtol, far):
    """`far`: of the length of the step; rounding grows through the sixty norms of ESPNetv2."""
    assert jax.device_count() == 4
    step, state = prepared(net)
    mesh = parallel.make_mesh()
    batch = batch_of(8)
    one, terms = step(state, batch)
    placed = jax.device_put(state, parallel.replicated(mesh))
    four, terms_four = step(placed, parallel.to_global(batch, mesh))
    assert len(terms_four['total'].sharding.device_set) == 4
    for name in terms:
        np.testing.assert_allclose(terms_four[name], terms[name], rtol=rtol)
    assert _distance(one.params, four.params) < far * _distance(one.params, state.params)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32():
    (step, state), (step_half, _) = prepared(), prepared(dtype='bfloat16')
    (_, terms), (_, half) = step(state, batch_of()), step_half(state, batch_of())
    # Measured 4e-5, 9e-5, 2e-3 and 2e-4: the affinity of few pixels is the least exact.
    for name, tolerance in {'ce': 1e-3, 'mse': 1e-3, 'fa': 0.02, 'total': 3e-3}.items():
        assert half[name].dtype == jnp.float32
        np.testing.assert_allclose(half[name], terms[name], rtol=tolerance)


def test_average_follows_the_weights():
    ema = {'w': jnp.zeros(3)}
    for t in range(200):
        ema = states.update_ema(ema, {'w': jnp.ones(3)}, jnp.asarray(t), 0.9)
    np.testing.assert_allclose(ema['w'], 1, atol=1e-4)
    first = states.update_ema({'w': jnp.zeros(3)}, {'w': jnp.ones(3)}, jnp.asarray(0), 0.999)
    np.testing.assert_allclose(first['w'], 0.9)  # warm-up: 1/10 of the old value is kept
    assert states.update_ema(None, ema, jnp.asarray(0), 0.9) is None


@pytest.mark.parametrize('convention', ['half_pixel', 'align_corners'])
def test_label_map_reaches_labels_of_any_size(convention):
    """A two-class ramp whose border is known: both ways put it where it belongs."""
    view, scores = (16, 32), (8, 16)
    ramp = np.linspace(-1, 1, scores[1], dtype=np.float32)
    plane = np.broadcast_to(ramp, (2, *scores))
    outputs = {'scores': jnp.stack([-plane, plane], -1), 'resize': convention}
    batch = {
        'label': np.zeros((2, 24, 60), np.uint8),
        'size': np.array([[24, 60], [10, 40]], np.int32),
        'region': np.array([[0, 0, 16, 32], [4, 4, 8, 24]], np.int32),
    }
    for way in ('labels', 'logits'):
        found = np.asarray(label_map(outputs, view, batch, resize_by=way, classes=2))
        assert found.shape == (2, 24, 60)
        assert abs(int(found[0, 5, :60].argmax()) - 30) <= 1
        assert abs(int(found[1, 5, :40].argmax()) - 20) <= 1


def _distance(a, b):
    return np.sqrt(
        sum(float(np.sum(np.square(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    )


def test_runs_that_differ_in_their_seed_share_one_program():
    texts = []
    for seed in (0, 7):
        config = tiny(seed=seed, model__net='toy_network:Toy', model__width=1.0)
        network = inference.build_network(config, CLASSES)
        shapes = inference.abstract_variables(network, config)
        tx, schedule = optimizer.make_optimizer(config.optimizer, shapes['params'], 10)
        state = jax.eval_shape(lambda v, tx=tx: states.create(v, tx, ema=False, seed=1), shapes)
        step = make_train_step(network, tx, losses.make_loss(config), config, schedule)
        texts.append(jax.jit(step).lower(state, batch_of()).as_text())
    assert texts[0] == texts[1]
