"""Optimisers against plain recurrences, schedules against formulas, masks and groups by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import config as configs
from dsrl_jax import optimizer
from dsrl_jax.errors import UserError

PARAMS = {
    'network': {'conv': {'kernel': jnp.array([1.0, -2.0])}, 'norm': {'scale': jnp.array([3.0])}},
    'sssr': {'conv': {'kernel': jnp.array([0.5])}},
}
GRADS = jax.tree.map(lambda x: 0.1 * x + 1, PARAMS)


def section(**changes):
    config = configs.base().optimizer
    config.update(changes)
    return config


def run(config, steps=4, total=10):
    tx, _ = optimizer.make_optimizer(config, PARAMS, total)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def reference(value, grad, *, lr, decay, steps=4, total=10):
    """SGD with momentum 0.9 and coupled decay under the poly schedule, in numpy."""
    value, grad, buffer = np.float64(value), np.float64(grad), 0.0
    for i in range(steps):
        buffer = 0.9 * buffer + grad + decay * value
        value = value - lr * (1 - i / total) ** 0.9 * buffer
    return value


def test_sgd_is_coupled_decay_then_momentum_under_poly():
    params = run(section(lr=0.05, weight_decay=0.01))
    kernel = PARAMS['network']['conv']['kernel']
    expected = reference(kernel, GRADS['network']['conv']['kernel'], lr=0.05, decay=0.01)
    np.testing.assert_allclose(params['network']['conv']['kernel'], expected, rtol=1e-6)


@pytest.mark.parametrize(('decay', 'rate'), [('kernels', 0.0), ('all', 0.01)])
def test_decay_reaches_norms_only_when_asked(decay, rate):
    params = run(section(lr=0.05, weight_decay=0.01, decay=decay))
    expected = reference(3.0, GRADS['network']['norm']['scale'], lr=0.05, decay=rate)
    np.testing.assert_allclose(params['network']['norm']['scale'], expected, rtol=1e-6)


def test_lr_groups_scale_matching_paths_alone():
    plain = run(section(lr=0.05))
    grouped = run(section(lr=0.05, lr_groups=(('^network/', 0.1),)))
    slow = run(section(lr=0.005))
    np.testing.assert_allclose(grouped['sssr']['conv']['kernel'], plain['sssr']['conv']['kernel'])
    np.testing.assert_allclose(
        grouped['network']['conv']['kernel'], slow['network']['conv']['kernel'], rtol=1e-6
    )


def test_lr_group_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match='no parameter matches'):
        optimizer.make_optimizer(section(lr_groups=(('encoder', 0.1),)), PARAMS, 10)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'schedule': 'constant'}, [1, 1, 1, 1]),
        ({'schedule': 'poly', 'power': 0.9}, [1, 0.75**0.9, 0.5**0.9, 0.25**0.9]),
        ({'schedule': 'step', 'milestones': (0.5, 0.75)}, [1, 1, 0.1, 0.01]),
        ({'schedule': 'constant', 'warmup': 4}, [0.25, 1, 1, 1]),
        ({'schedule': 'step', 'milestones': (0.5,), 'warmup': 2}, [0.5, 1, 0.1, 0.1]),
    ],
)
def test_schedules(changes, expected):
    schedule = optimizer.make_schedule(section(lr=2.0, **changes), 16)
    found = [float(schedule(i)) / 2 for i in (0, 4, 8, 12)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_clipping_bounds_the_step():
    config = section(lr=1.0, weight_decay=0.0, clip_norm=1e-3, schedule='constant')
    moved = jax.tree.map(jnp.subtract, run(config, steps=1), PARAMS)
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-2)


def test_adam_first_step_is_the_learning_rate():
    moved = run(section(name='adam', lr=0.01, weight_decay=0.0, schedule='constant'), steps=1)
    difference = moved['network']['conv']['kernel'] - PARAMS['network']['conv']['kernel']
    np.testing.assert_allclose(difference, [-0.01, -0.01], rtol=1e-4)
