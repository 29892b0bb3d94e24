"""FCN-8s: cost, contract, place of its maps in the image, start; its values are a golden set."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, traverse_util
from flax import linen as nn

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import layers


@functools.cache
def shapes(size=(32, 48), num_classes=19, **options):
    module = models.create('fcn8s', num_classes=num_classes, **options)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return module, variables, jax.eval_shape(module.apply, variables, image)


@pytest.mark.parametrize(
    'size, conv2d, macs',
    [
        ((256, 512), 117.683, 117.975),
        ((512, 1024), 333.821, 334.782),
        ((368, 480), 141.188, 141.544),
        ((1024, 2048), 1098.587, 1102.043),
    ],
)
def test_cost(size, conv2d, macs):
    report = costs.report('fcn8s', size, num_classes=19)
    assert report['params']['inference'] == 134_456_985
    assert round(report['conv2d']['inference'] / 1e9, 3) == conv2d
    assert round(report['macs']['inference'] / 1e9, 3) == macs


@pytest.mark.parametrize('size', [(16, 16), (32, 48), (360, 480)])
def test_contract(size):
    module, _, out = shapes(size)
    assert (module.score_stride, module.feature_stride) == (1, 8)
    eighth, sixteenth = [n // 8 for n in size], [-(-n // 16) for n in size]
    assert out['scores'].shape == (1, *size, 19) and out['resize'] == 'half_pixel'
    assert out['features'].shape == (1, *eighth, 19)
    assert out['low'].shape == (1, *eighth, 256) and out['high'].shape == (1, *sixteenth, 512)


@functools.cache
def last_pixels(variant):
    """The maps of one channel, of an image of 1 + row + 100 column, where VGG-16 copies channel 0.

    So a cell holds the last pixel that it sees of the image; pool3 is scored as it is.
    """
    module, variables, _ = shapes((32, 48), 1, variant=variant)

    def copy(path, leaf):
        *_, name, kind = path
        centre = (*(n // 2 for n in leaf.shape[:2]), 0, 0)
        kept = kind == 'kernel' and (name.startswith('conv') or name == 'score_pool3')
        return jnp.zeros(leaf.shape).at[centre].set(1) if kept else jnp.zeros(leaf.shape)

    @jax.jit
    def run():
        rows, columns = jnp.arange(32)[:, None], jnp.arange(48)[None]
        image = jnp.stack(3 * [1.0 + rows + 100 * columns], axis=-1)[None]
        flat = traverse_util.flatten_dict(dict(variables))
        filled = {path: copy(path, leaf) for path, leaf in flat.items()}
        out = module.apply(traverse_util.unflatten_dict(filled), image)
        return {name: out[name][0, :, :, 0] for name in ('low', 'high', 'features')}

    return jax.device_get(run())


@pytest.mark.parametrize('name, stride', [('low', 8), ('features', 8), ('high', 16)])
def test_cells_lie_three_pixels_up_and_left_of_their_share(name, stride):
    rows, columns = (np.arange(stride - 1, n, stride) - 3 for n in (32, 48))
    want = 1 + rows[:, None] + 100 * columns[None]
    np.testing.assert_array_equal(last_pixels('staged')[name], want)


def test_at_once_shrinks_the_skips_and_nothing_else():
    staged, at_once = last_pixels('staged'), last_pixels('at_once')
    np.testing.assert_array_equal(at_once['high'], staged['high'])
    np.testing.assert_array_equal(at_once['low'], staged['low'])
    np.testing.assert_allclose(at_once['features'], 1e-4 * staged['features'], rtol=1e-6)


def starts():
    """{name of a layer: its kernel_init}."""
    found = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.Conv | layers.ConvTranspose):
            found[context.module.name] = context.module.kernel_init
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes.__wrapped__()
    return found


def test_scores_start_at_zero():
    found = {name: start for name, start in starts().items() if name.startswith('score')}
    assert set(found) == {'score_fr', 'score_pool3', 'score_pool4'}
    for start in found.values():
        assert not np.any(start(jax.random.key(0), (1, 1, 8, 4), jnp.float32))


@pytest.mark.parametrize('name, factor', [('upscore2', 2), ('upscore_pool4', 2), ('upscore8', 8)])
def test_enlarging_starts_as_bilinear(name, factor):
    """A plane through the pixel centres stays that plane, in every class by itself."""
    kernel = starts()[name](jax.random.key(0), (2 * factor, 2 * factor, 3, 3), jnp.float32)
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(6.0), indexing='ij')
    planes = np.stack([1 + rows, 3 * columns, rows - columns], axis=-1).astype('f')
    module = layers.ConvTranspose(3, 2 * factor, factor, padding=factor // 2, output_padding=0)
    out = np.asarray(module.apply({'params': {'kernel': kernel}}, planes[None])[0])
    assert out.shape == (5 * factor, 6 * factor, 3)
    at = [(np.arange(n * factor) + 0.5) / factor - 0.5 for n in (5, 6)]
    rows, columns = np.meshgrid(*at, indexing='ij')
    want = np.stack([1 + rows, 3 * columns, rows - columns], axis=-1)
    inside = slice(factor, -factor)
    np.testing.assert_allclose(out[inside, inside], want[inside, inside], atol=1e-5)


def test_the_option_switches_dropout_off():
    module, variables, _ = shapes()
    image = jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32)
    with pytest.raises(errors.InvalidRngError, match='dropout'):
        jax.eval_shape(functools.partial(module.apply, train=True), variables, image)
    off = functools.partial(module.clone(dropout=0.0).apply, train=True)
    assert jax.eval_shape(off, variables, image)['scores'].shape == (1, 32, 48, 19)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'size': (44, 48)}, 'multiples of 8'),
        ({'size': (32, 60)}, 'found 32x60'),
        ({'variant': 'at_onec'}, "did you mean 'at_once'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(**change)
