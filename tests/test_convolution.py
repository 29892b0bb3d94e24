"""Every form of a convolution equals the plain one in value and gradient."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax.ops import convolution
from dsrl_jax.ops.convolution import FORMS, PLATFORMS, conv, conv_transpose
from dsrl_jax.ops.pixels import depth_to_space, pixel_sums

FAST = [form for form in FORMS if form != 'lax']

CASES = {
    'dense': ((3, 3), 4, 6, {'padding': 1}),
    'dense dilated': ((3, 3), 4, 6, {'padding': 3, 'dilation': 3}),
    'dense dilated unpadded': ((3, 3), 4, 3, {'dilation': 2}),
    'dense strided': ((3, 3), 4, 6, {'padding': 1, 'stride': 2}),
    'dense 7x7 by 3': ((7, 7), 3, 4, {'padding': ((3, 2), (0, 4)), 'stride': 3}),
    'dense wide to narrow': ((3, 2), 6, 2, {'padding': ((2, 0), (0, 1))}),
    'dense far beyond the edges': ((3, 3), 4, 2, {'padding': ((5, 4), (7, 7))}),
    'dense gaps': ((2, 2), 3, 4, {'padding': ((2, 0), (0, 3)), 'stride': 3}),
    'one column dilated': ((3, 1), 4, 6, {'padding': ((3, 3), (0, 0)), 'dilation': 3}),
    'uneven padding': ((2, 3), 3, 4, {'padding': ((0, 1), (2, 0)), 'stride': 2}),
    'depthwise': ((3, 3), 4, 4, {'padding': 1, 'groups': 4}),
    'depthwise dilated': ((3, 3), 4, 4, {'padding': 4, 'dilation': 4, 'groups': 4}),
    'depthwise strided dilated': (
        (3, 3),
        4,
        4,
        {'padding': 2, 'dilation': 2, 'stride': 2, 'groups': 4},
    ),
    'depthwise row': ((1, 3), 4, 4, {'padding': ((0, 0), (2, 2)), 'dilation': 2, 'groups': 4}),
    'depthwise twofold': ((3, 3), 4, 8, {'padding': 1, 'stride': 2, 'groups': 4}),
    'grouped': ((3, 3), 8, 6, {'padding': 1, 'groups': 2}),
    'grouped by four': ((3, 3), 16, 8, {'padding': 1, 'stride': 2, 'groups': 8}),
    'grouped dilated': ((3, 3), 8, 2, {'padding': 2, 'dilation': 2, 'groups': 2}),
    'grouped to one each': ((3, 3), 12, 4, {'padding': ((1, 0), (2, 1)), 'groups': 4}),
    'shuffled to one each': ((3, 3), 15, 5, {'padding': 1, 'groups': 5, 'shuffled': True}),
    'shuffled': ((3, 3), 12, 8, {'padding': 1, 'stride': 2, 'groups': 4, 'shuffled': True}),
    'shuffled dilated': (
        (3, 3),
        6,
        2,
        {'padding': 2, 'dilation': 2, 'groups': 2, 'shuffled': True},
    ),
    'pointwise': ((1, 1), 8, 6, {}),
    'pointwise shuffled': ((1, 1), 8, 12, {'groups': 4, 'shuffled': True}),
    'pointwise strided': ((1, 1), 8, 6, {'stride': 2}),
    'pointwise grouped': ((1, 1), 8, 6, {'groups': 2}),
    'pointwise grouped by four': ((1, 1), 8, 12, {'groups': 4}),
}

TRANSPOSED = {
    'k3 s2': (3, 4, 3, {}),
    'k2 s2': (2, 4, 3, {'padding': 0, 'output_padding': 0}),
    'k4 s2': (4, 4, 3, {'output_padding': 0}),
    'k5 s3': (5, 4, 3, {'stride': 3, 'padding': 2}),
    'k16 s8': (16, 2, 3, {'stride': 8, 'padding': 0, 'output_padding': 0}),
    'k2 s3, gaps': (2, 2, 2, {'stride': 3, 'padding': 0}),
    'k3 s1': (3, 4, 3, {'stride': 1, 'output_padding': 0}),
    'depthwise': (3, 4, 1, {'groups': 4}),
    'grouped': (3, 4, 3, {'groups': 2}),
}


def draw(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(function, x, kernel):
    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        weight = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype)
        return y, *pull(weight)

    return run(x, kernel)


def by_hand(x, kernel, stride=1, padding=0, dilation=1, groups=1, shuffled=False):
    """The definition in numpy float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    kh, kw, width, features = kernel.shape
    h, w = ((n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[1:3], (kh, kw)))
    y = np.zeros((x.shape[0], h, w, features))
    share = features // groups
    for i, j, g in itertools.product(range(kh), range(kw), range(groups)):
        rows, columns = (np.arange(n) * stride + t * dilation for n, t in ((h, i), (w, j)))
        inputs = slice(g, None, groups) if shuffled else slice(g * width, (g + 1) * width)
        part = x[:, rows][:, :, columns][..., inputs]
        y[..., g * share : (g + 1) * share] += part @ kernel[i, j, :, g * share : (g + 1) * share]
    return y


def transposed_by_hand(x, kernel, stride=2, padding=1, output_padding=1, groups=1):
    """Every input pixel scatters its kernel, in numpy float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    b, h, w, channels = x.shape
    k, _, _, features = kernel.shape
    grown = [(n - 1) * stride + k + output_padding for n in (h, w)]
    y = np.zeros((b, *grown, groups * features))
    width = channels // groups
    for r, c, g in itertools.product(range(h), range(w), range(groups)):
        own = slice(g * width, (g + 1) * width)
        y[
            :,
            r * stride : r * stride + k,
            c * stride : c * stride + k,
            g * features : (g + 1) * features,
        ] += np.einsum('bc,ijco->bijo', x[:, r, c, own], kernel[:, :, own])
    return y[:, padding : grown[0] - padding, padding : grown[1] - padding]


@pytest.mark.parametrize('name', CASES)
def test_every_form_of_conv_equals_the_definition(name):
    taps, channels, features, options = CASES[name]
    x, kernel = draw((2, 9, 11, channels), (*taps, channels // options.get('groups', 1), features))
    plain = value_and_gradients(functools.partial(conv, impl='lax', **options), x, kernel)
    np.testing.assert_allclose(plain[0], by_hand(x, kernel, **options), rtol=1e-4, atol=1e-4)
    for form in FAST:
        fast = value_and_gradients(functools.partial(conv, impl=form, **options), x, kernel)
        for a, b in zip(fast, plain):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=form)


@pytest.mark.parametrize('channels, features', [(3, 5), (5, 3)])
@pytest.mark.parametrize('block', [1, 44, 70])
def test_the_gradient_of_a_kernel_is_the_same_in_blocks_of_any_number_of_rows(
    monkeypatch, block, channels, features
):
    monkeypatch.setattr(convolution, '_BLOCK', block)  # 1, 2 and 3 rows of two images
    x, kernel = draw((2, 12, 11, channels), (5, 3, channels, features))
    options = {'padding': ((2, 2), (1, 1))}
    plain = value_and_gradients(functools.partial(conv, impl='lax', **options), x, kernel)
    rows = value_and_gradients(functools.partial(conv, impl='rows', **options), x, kernel)
    for a, b in zip(rows, plain):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # What its memory is: never the copies of the whole map, 2x12x11 pixels times 15 taps.
    step = jax.jit(jax.grad(lambda k: jnp.sum(conv(x, k, impl='rows', **options) ** 2)))
    text = step.lower(kernel).as_text()
    assert f'2x12x11x{15 * min(channels, features)}' not in text
    assert f'2x{block // 22 or 1}x11x{15 * min(channels, features)}' in text


@pytest.mark.parametrize('name', TRANSPOSED)
def test_every_form_of_conv_transpose_equals_the_definition(name):
    k, channels, features, options = TRANSPOSED[name]
    x, kernel = draw((2, 4, 5, channels), (k, k, channels, features))
    plain = value_and_gradients(functools.partial(conv_transpose, impl='lax', **options), x, kernel)
    want = transposed_by_hand(x, kernel, **options)
    np.testing.assert_allclose(plain[0], want, rtol=1e-4, atol=1e-4)
    for form in ('auto', 'shift'):
        fast = value_and_gradients(
            functools.partial(conv_transpose, impl=form, **options), x, kernel
        )
        for a, b in zip(fast, plain):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=form)


@pytest.mark.parametrize('name', CASES)
def test_bfloat16_comes_back_as_bfloat16_close_to_float32(name):
    taps, channels, features, options = CASES[name]
    x, kernel = draw((2, 9, 11, channels), (*taps, channels // options.get('groups', 1), features))
    x = x.astype(jnp.bfloat16)
    kernel = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    plain = functools.partial(conv, impl='lax', **options)
    want = value_and_gradients(plain, x.astype(jnp.float32), kernel)
    for form in FORMS:
        found = value_and_gradients(functools.partial(conv, impl=form, **options), x, kernel)
        assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
        for a, b in zip(found, want):
            step = 2**-6 * np.abs(b).max()  # sums of rounded terms, the kernel's gradient of many
            np.testing.assert_allclose(a.astype(np.float32), b, atol=step, err_msg=form)


@pytest.mark.parametrize('channels', [19, 45])
def test_a_gpu_sees_bfloat16_channels_in_multiples_of_eight(channels):
    x, kernel = draw((1, 8, 8, channels), (3, 3, channels, channels))
    x = x.astype(jnp.bfloat16)

    def widths(impl):
        def loss(x, kernel):
            up = conv_transpose(x, kernel, impl=impl)
            return jnp.sum(conv(up, kernel, padding=1, stride=2, impl=impl).astype(jnp.float32))

        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
        shapes = re.findall(r'bf16\[([\d,]+)\] = conv_general_dilated', text)
        return [int(shape.split(',')[-1]) for shape in shapes]

    assert len(widths('gpu')) == 6 and not any(n % 8 for n in widths('gpu'))
    assert all(n % 8 for n in widths('cpu'))


def test_shifted_slices_sum_in_float32():
    # 256 + 1 + ... + 1 in bfloat16 would stay 256: its step there is 2.
    x = jnp.ones((1, 3, 3, 2), jnp.bfloat16).at[0, 0, 0].set(256)
    y = conv(x, jnp.ones((3, 3, 1, 2)), groups=2, impl='shift')
    assert (y == 264).all()


@pytest.mark.parametrize('where', PLATFORMS)
def test_pixel_sums_are_the_sums_over_all_but_the_channels(where):
    maps = draw((3, 5, 7, 4), (3, 5, 7, 4), (3, 5, 7, 4))
    want = [np.asarray(a, np.float64).sum((0, 1, 2)) for a in maps]
    np.testing.assert_allclose(pixel_sums(*maps, where=where), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 2])
def test_the_depthwise_gradient_is_exact_in_float64_and_under_checkpoint(stride):
    with jax.enable_x64(True):
        x, kernel = draw((2, 6, 8, 4), (3, 3, 1, 4), dtype=np.float64)
        options = {'padding': 2, 'dilation': 2, 'stride': stride, 'groups': 4}
        plain = value_and_gradients(functools.partial(conv, impl='lax', **options), x, kernel)
        fast = functools.partial(conv, impl='shift', **options)
        for function in (fast, jax.checkpoint(fast)):
            for a, b in zip(value_and_gradients(function, x, kernel), plain):
                assert a.dtype == jnp.float64
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_depthwise_gradient_pads_once_whatever_the_number_of_taps():
    x, kernel = draw((1, 6, 6, 4), (3, 3, 1, 4))

    def loss(x, kernel):
        return jnp.sum(conv(x, kernel, padding=2, dilation=2, groups=4, impl='shift') ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
    assert 1 <= text.count(' pad[') <= 3 and 'conv_general_dilated' not in text


def test_the_fast_transposed_form_inserts_no_zeros_even_in_its_gradient():
    x, kernel = draw((1, 4, 4, 4), (3, 3, 4, 4))

    def loss(x, kernel):
        return jnp.sum(conv_transpose(x, kernel) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
    assert 'conv_general_dilated' in text and 'lhs_dilation=(2, 2)' not in text
    assert 'rhs_dilation=(2, 2)' not in text


def test_pixel_shuffle_takes_each_pixel_from_its_channels():
    (x,) = draw((2, 3, 4, 12))
    y = depth_to_space(x, 2)
    assert y.shape == (2, 6, 8, 3)
    for row, column in itertools.product(range(2), range(2)):
        first = 3 * (2 * row + column)
        np.testing.assert_array_equal(y[:, row::2, column::2], x[..., first : first + 3])


def test_a_sharded_batch_is_never_gathered():
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x, kernel = draw((4, 8, 8, 4), (3, 3, 4, 4))

    def loss(x, kernel):
        y = conv(x, kernel, padding=2, dilation=2, impl='s2b')
        y = conv(y, kernel[:, :, :1], padding=2, dilation=2, groups=4, impl='shift')
        y = conv(conv(y, kernel[:1, :1]), kernel, padding=1, stride=2)
        return jnp.mean(conv_transpose(y, kernel) ** 2)

    step = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(rows, whole))
    text = step.lower(x, kernel).compile().as_text()
    assert 'all-gather' not in text and 'all-to-all' not in text


def test_mistakes_are_value_errors():
    x, kernel = draw((1, 4, 4, 4), (3, 3, 4, 4))
    for call in (
        lambda: conv(x, kernel, impl='fast'),
        lambda: conv(x, kernel, groups=2),
        lambda: conv_transpose(x, kernel, impl='fast'),
        lambda: conv_transpose(x, kernel[:, :, :3]),
    ):
        with pytest.raises(ValueError, match=r'expected|does not fit'):
            call()
