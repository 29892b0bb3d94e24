"""Max pooling with places and unpooling against loops over windows, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax.ops import pooling, resize


def random(*shape, levels=None):
    """Normal numbers, or few different ones so that windows hold equal maxima."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) if levels is None else rng.integers(levels, size=shape)
    return x.astype(np.float32)


def looped(x):
    """The maximum of each window and the flat index of the first one, pixel by pixel."""
    b, height, width, c = x.shape
    values = np.zeros((b, height // 2, width // 2, c), x.dtype)
    places = np.zeros(values.shape, int)
    for at in np.ndindex(*values.shape):
        n, i, j, k = at
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k].ravel()
        values[at], places[at] = window.max(), window.argmax()
    return values, places


@pytest.mark.parametrize('levels', [None, 3])
def test_values_and_first_places_of_the_maxima(levels):
    x = random(2, 6, 8, 3, levels=levels)
    values, places = pooling.max_pool_places(x)
    expected = looped(x)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(places, expected[1])
    np.testing.assert_array_equal(values, resize.max_pool(x, 2, 2))
    assert len(np.unique(places)) == 4


def test_unpooling_puts_every_maximum_back_and_zeros_elsewhere():
    x = np.abs(random(2, 6, 8, 3)) + 1
    values, places = pooling.max_pool_places(x)
    back = np.asarray(pooling.unpool(values, places))
    kept = back != 0
    assert kept.sum() == values.size
    np.testing.assert_array_equal(back[kept], x[kept])
    np.testing.assert_array_equal(resize.max_pool(back, 2, 2), values)


@pytest.mark.parametrize('levels', [None, 3])
def test_the_gradient_of_pooling_goes_to_the_first_maximum(levels):
    x, weight = random(2, 6, 8, 3, levels=levels), random(2, 3, 4, 3)

    def total(x):
        return jnp.sum(pooling.max_pool_places(x)[0] * weight)

    gradient = jax.grad(total)(x)
    expected = pooling.unpool(weight, looped(x)[1])
    np.testing.assert_array_equal(gradient, expected)


def test_the_gradient_of_unpooling_reads_the_places():
    x, weight = random(2, 3, 4, 5), random(2, 6, 8, 5)
    places = np.random.default_rng(1).integers(4, size=x.shape)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(pooling.unpool(x, places) * weight))(x))
    for at in np.ndindex(*x.shape):
        n, i, j, k = at
        row, column = divmod(int(places[at]), 2)
        assert gradient[at] == weight[n, 2 * i + row, 2 * j + column, k]


def test_not_a_number_goes_through():
    x = random(1, 2, 4, 1)
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(pooling.max_pool_places(x)[0]).ravel().tolist() == [True, False]


def test_bfloat16_stays_and_odd_sizes_are_refused():
    values, places = pooling.max_pool_places(jnp.asarray(random(1, 4, 4, 2), jnp.bfloat16))
    assert pooling.unpool(values, places).dtype == values.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match='3x4 is not even'):
        pooling.max_pool_places(random(1, 3, 4, 1))
