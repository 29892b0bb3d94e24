"""Resizing and pooling against their definitions written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dsrl_jax.ops import resize

bilinear = jax.jit(resize.bilinear, static_argnums=1, static_argnames='convention')
SIZES = [(1, 1), (5, 7), (8, 12)]
TARGETS = [(1, 1), (5, 7), (10, 14), (16, 36), (12, 18), (4, 6), (9, 25), (33, 11), (80, 112)]


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def bilinear_by_hand(x, size, convention):
    """torch's interpolate(mode='bilinear'), a pixel at a time, in float64."""
    y = np.zeros((x.shape[0], *size, x.shape[3]))

    def neighbours(n, out, at):
        if convention == 'align_corners':
            source = at * (n - 1) / (out - 1) if out > 1 else 0.0
        else:
            source = max(0.0, (at + 0.5) * n / out - 0.5)
        low = min(int(source), n - 1)
        return low, min(low + 1, n - 1), min(source - low, 1.0)

    for i in range(size[0]):
        top, bottom, down = neighbours(x.shape[1], size[0], i)
        for j in range(size[1]):
            left, right, across = neighbours(x.shape[2], size[1], j)
            upper = (1 - across) * x[:, top, left] + across * x[:, top, right]
            lower = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
            y[:, i, j] = (1 - down) * upper + down * lower
    return y


def windows_by_hand(x, window, stride, padding, fill, reduce):
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), constant_values=fill)
    h, w = ((n - window) // stride + 1 for n in x.shape[1:3])
    cells = [
        [
            reduce(x[:, i * stride : i * stride + window, j * stride : j * stride + window], (1, 2))
            for j in range(w)
        ]
        for i in range(h)
    ]
    return np.moveaxis(np.array(cells), 2, 0)


@pytest.mark.parametrize('convention', ['half_pixel', 'align_corners'])
@pytest.mark.parametrize('small', SIZES)
def test_bilinear_is_torchs(small, convention):
    x = draw(2, *small, 3)
    for size in TARGETS:
        y = bilinear(x, size, convention=convention)
        want = bilinear_by_hand(x, size, convention)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5, err_msg=str(size))


@pytest.mark.parametrize('convention', ['half_pixel', 'align_corners'])
@pytest.mark.parametrize('size', [(12, 14), (9, 21), (11, 9), (96, 224), (1, 14)])
def test_the_gradient_of_bilinear_is_its_transpose(size, convention):
    x, y = draw(1, 6, 7, 2), draw(1, *size, 2)

    def up(x):
        return bilinear(x, size, convention=convention)

    (back,) = jax.vjp(up, jnp.asarray(x))[1](jnp.asarray(y))
    rows, columns = (
        resize.bilinear_matrix(n, out, convention=convention) for n, out in zip((6, 7), size)
    )
    want = np.einsum('ih,jw,bijc->bhwc', rows, columns, y)
    np.testing.assert_allclose(back, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(12, 14), (9, 14), (3, 7)])
def test_shifted_slices_equal_the_dense_matrix(size):
    # 6 -> 12 and 7 -> 14 repeat a pattern, 6 -> 9 one of three, 6 -> 3 reads every second row.
    x = draw(1, 6, 7, 2)
    rows = resize.bilinear_matrix(6, size[0], convention='align_corners')
    columns = resize.bilinear_matrix(7, size[1], convention='align_corners')
    want = np.einsum('ih,jw,bhwc->bijc', rows, columns, x)
    got = resize.bilinear(jnp.asarray(x), size, convention='align_corners')
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(16, 12), (128, 192)])
def test_whole_factors_need_no_matrix_product_and_no_gather(size):
    x = jnp.zeros((1, 8, 6, 3))
    for convention in ('half_pixel', 'align_corners'):

        def loss(x, convention=convention):
            return jnp.sum(resize.bilinear(x, size, convention=convention) ** 2)

        text = str(jax.make_jaxpr(jax.grad(loss))(x))
        assert not any(word in text for word in ('dot_general', 'gather', 'scatter'))


def test_bilinear_keeps_the_type_and_refuses_other_conventions():
    x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    y = resize.bilinear(x, (8, 7), convention='half_pixel')
    assert y.dtype == jnp.bfloat16 and (y == 1).all()
    with pytest.raises(ValueError, match='half_pixel or align_corners'):
        resize.bilinear(x, (8, 8), convention='corners')


@pytest.mark.parametrize('size', TARGETS)
def test_nearest_reads_the_pixel_under_the_centre(size):
    x = np.arange(2 * 8 * 12, dtype=np.uint8).reshape(2, 8, 12, 1)
    rows, columns = (
        np.floor((np.arange(out) + 0.5) * n / out).astype(int) for n, out in zip((8, 12), size)
    )
    y = resize.nearest(jnp.asarray(x), size)
    assert y.dtype == jnp.uint8
    np.testing.assert_array_equal(y, x[:, rows][:, :, columns])


@pytest.mark.parametrize('factor', [2, 3, 4])
def test_shrink_is_pillows_filter_edges_included(factor):
    x = 255 * np.random.default_rng(1).random((1, 4 * factor, 7 * factor, 1)).astype(np.float32)
    image = Image.fromarray(x[0, ..., 0])
    want = np.asarray(image.resize((7, 4), Image.Resampling.BILINEAR))
    got = jax.jit(resize.shrink, static_argnums=1)(x, factor)[0, ..., 0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


def test_shrink_of_one_pixel_and_of_factor_one():
    x = jnp.asarray(draw(1, 2, 2, 3))
    np.testing.assert_allclose(resize.shrink(x, 2)[:, 0, 0], x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(resize.shrink(x, 1), x)
    with pytest.raises(ValueError, match='2x2'):
        resize.shrink(x, 3)


def test_small_input_is_the_shrunk_view_normalised():
    target = np.random.default_rng(2).integers(0, 256, (2, 8, 12, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    color = resize.Color(mean, std)
    got = resize.small_input(jnp.asarray(target), 2, color)
    assert got.shape == (2, 4, 6, 3) and got.dtype == jnp.float32
    for b in range(2):
        for c in range(3):
            image = Image.fromarray(target[b, ..., c].astype(np.float32))
            small = np.asarray(image.resize((6, 4), Image.Resampling.BILINEAR))
            want = (small / 255 - mean[c]) / std[c]
            np.testing.assert_allclose(got[b, ..., c], want, rtol=1e-4, atol=1e-4)
    same = resize.small_input(jnp.asarray(target), 1, color)
    np.testing.assert_array_equal(same, resize.normalise(jnp.asarray(target), color))
    bgr = resize.small_input(jnp.asarray(target[..., ::-1]), 2, color._replace(order='bgr'))
    np.testing.assert_array_equal(bgr, got)


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
def test_denormalise_gives_the_picture_back(order):
    image = np.random.default_rng(2).integers(0, 256, (1, 4, 6, 3), np.uint8)
    color = resize.Color((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), order)
    x = resize.normalise(jnp.asarray(image), color)
    np.testing.assert_allclose(resize.denormalise(x, color), image / 255, atol=1e-6)
    assert float(resize.denormalise(10 * x, color).max()) == 1.0


@pytest.mark.parametrize('window, stride, padding', [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_pools_are_the_reduced_windows(window, stride, padding):
    x = draw(2, 9, 12, 3)
    got = jax.jit(resize.avg_pool, static_argnums=(1, 2, 3))(x, window, stride, padding)
    want = windows_by_hand(x, window, stride, padding, 0, np.mean)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    got = jax.jit(resize.max_pool, static_argnums=(1, 2, 3))(x, window, stride, padding)
    want = windows_by_hand(x, window, stride, padding, -np.inf, np.max)
    np.testing.assert_array_equal(got, want)


def test_ceil_mode_is_padding_at_the_end():
    x = jnp.asarray(draw(1, 5, 5, 1)) - 9
    y = resize.max_pool(x, 2, 2, ((0, 1), (0, 1)))
    assert y.shape == (1, 3, 3, 1)
    np.testing.assert_array_equal(y[0, 2, 2], x[0, 4, 4])


def test_max_pool_gives_the_whole_gradient_to_the_first_of_equals():
    def pool(x):
        return jnp.sum(resize.max_pool(x, 2, 2))

    got = jax.grad(pool)(jnp.zeros((1, 2, 4, 1)).at[0, 1, 3].set(1))
    np.testing.assert_array_equal(got[0, ..., 0], [[1, 0, 0, 0], [0, 0, 0, 1]])


def test_max_pool_lets_nan_through():
    for spot in np.ndindex(2, 2):
        x = jnp.zeros((1, 2, 2, 1)).at[0, spot[0], spot[1]].set(jnp.nan)
        assert np.isnan(resize.max_pool(x, 2, 2)).all()


@pytest.mark.parametrize('size', TARGETS)
def test_adaptive_pool_averages_the_rows_torch_names(size):
    x = draw(1, 8, 12, 2)
    want = np.zeros((1, *size, 2))
    for i, j in np.ndindex(*size):
        rows = slice(i * 8 // size[0], -(-(i + 1) * 8 // size[0]))
        columns = slice(j * 12 // size[1], -(-(j + 1) * 12 // size[1]))
        want[:, i, j] = x[:, rows, columns].mean((1, 2))
    got = jax.jit(resize.adaptive_avg_pool, static_argnums=1)(x, size)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_pool_to_brings_any_map_to_the_grid():
    x = jnp.asarray(draw(1, 4, 8, 2))
    fine = jnp.repeat(jnp.repeat(x, 3, 1), 2, 2)
    np.testing.assert_allclose(resize.pool_to(fine, (4, 8)), x, rtol=1e-5, atol=1e-6)
    want = resize.bilinear(x, (8, 16), convention='half_pixel')
    np.testing.assert_array_equal(resize.pool_to(x, (8, 16)), want)
    np.testing.assert_array_equal(resize.pool_to(x, (4, 8)), x)
    mixed = resize.bilinear(x.reshape(1, 2, 2, 8, 2).mean(2), (2, 16), convention='half_pixel')
    np.testing.assert_allclose(resize.pool_to(x, (2, 16)), mixed, rtol=1e-5, atol=1e-6)
    odd = resize.adaptive_avg_pool(x, (3, 8))
    np.testing.assert_array_equal(resize.pool_to(x, (3, 8)), odd)


def test_every_op_carries_its_scope():
    x = jnp.ones((1, 8, 8, 3))
    calls = {
        'resize': [
            lambda: resize.bilinear(x, (16, 9), convention='half_pixel'),
            lambda: resize.nearest(x, (5, 16)),
            lambda: resize.shrink(x, 2),
        ],
        'pool': [
            lambda: resize.avg_pool(x, 3, 2, 1),
            lambda: resize.max_pool(x, 3, 2, 1),
            lambda: resize.adaptive_avg_pool(x, (3, 16)),
        ],
    }
    for scope, functions in calls.items():
        for function in functions:
            equations = jax.make_jaxpr(function)().eqns
            assert equations
            assert all(scope in str(e.source_info.name_stack) for e in equations)


@pytest.mark.parametrize('size', [(1, 2), (2, 3), (5, 8), (7, 7)])
@pytest.mark.parametrize(
    'change',
    [
        lambda x: resize.avg_pool(x, 3, 2, 1),
        lambda x: resize.avg_pool(x, 2, 2, 1),
        lambda x: resize.adaptive_avg_pool(x, (3, 5)),
        lambda x: resize.bilinear(x, (6, 11), convention='half_pixel'),
        lambda x: resize.bilinear(x, (3, 3), convention='align_corners'),
    ],
)
def test_the_gradient_is_the_transposed_matrix(change, size):
    """Every change of size is linear: <f(x), y> = <x, f'(y)> for any x and y."""
    x = jnp.asarray(draw(2, *size, 3))
    value, pull = jax.vjp(change, x)
    y = jnp.asarray(draw(*value.shape))
    np.testing.assert_allclose(jnp.vdot(value, y), jnp.vdot(x, pull(y)[0]), rtol=1e-4, atol=1e-5)
