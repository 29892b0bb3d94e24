"""`model.bn_group`: how many images share batch statistics, whatever the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import TINY, refused

from dsrl_jax import parallel
from dsrl_jax.errors import UserError
from dsrl_jax.models.layers import BatchNorm, Style

IMAGES = (
    np.random.default_rng(0).normal(size=(8, 4, 6, 5)) + np.arange(8)[:, None, None, None]
).astype(np.float32)


def applied(norm, variables, images):
    def total(images):
        y, kept = norm.apply(variables, images, train=True, mutable=['batch_stats'])
        return jnp.sum(jnp.sin(y)), (y, kept['batch_stats'])

    return jax.grad(total, has_aux=True)(images)


def test_each_group_is_normalised_as_a_batch_of_its_own():
    """On four devices: values, gradients, and the mean of the statistics is kept."""
    norm = BatchNorm(style=Style(bn_group=4))
    variables = norm.init(jax.random.key(0), IMAGES)
    mesh = parallel.make_mesh()
    images = jax.device_put(IMAGES, parallel.by_batch(mesh))
    gradient, (y, kept) = jax.jit(lambda x: applied(norm, variables, x))(images)
    halves = [applied(BatchNorm(), variables, half) for half in (IMAGES[:4], IMAGES[4:])]
    for rows, (expected_gradient, (expected, _)) in zip((slice(4), slice(4, 8)), halves):
        np.testing.assert_allclose(y[rows], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[rows], expected_gradient, atol=1e-4)
    for name in ('mean', 'var'):
        expected = np.mean([half[1][1][name] for half in halves], 0)
        np.testing.assert_allclose(kept[name], expected, rtol=1e-5)


def test_a_group_no_smaller_than_the_batch_changes_nothing():
    variables = BatchNorm().init(jax.random.key(0), IMAGES)
    for group in (8, 9):
        found = applied(BatchNorm(style=Style(bn_group=group)), variables, IMAGES)
        jax.tree.map(np.testing.assert_array_equal, found, applied(BatchNorm(), variables, IMAGES))


def test_groups_that_do_not_divide_the_batch_are_refused(capsys, tmp_path):
    variables = BatchNorm().init(jax.random.key(0), IMAGES)
    with pytest.raises(UserError, match=r'config\.model\.bn_group: found 3; expected a divisor'):
        applied(BatchNorm(style=Style(bn_group=3)), variables, IMAGES)
    argv = ['train', f'--config={TINY}', f'--workdir={tmp_path / "run"}']
    refused(capsys, [*argv, '--config.model.bn_group=3'], 'config.model.bn_group', 'a divisor')
