"""BiSeNet: sizes, costs, contract, initialisation of its variants; its values are golden sets."""

import functools
import math
import re

import flax
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import traverse_util

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import bisenet, layers

NAME, CLASSES = 'bisenet_resnet18', 19
# variant -> channels of features, {auxiliary classifier: stride of its scores}
MAPS = {
    'torchseg': (64, {'aux16': 16, 'aux8': 8}),
    'coincheung': (256, {'aux32': 16, 'aux16': 8}),
    'ooooverflow': (CLASSES, {'sup1': 8, 'sup2': 8}),
}


@functools.cache
def traced(size=(64, 96), **options):
    """Shapes of variables and of a training step's outputs in bfloat16, and {path: convolution}."""
    module = models.create(NAME, num_classes=CLASSES, dtype='bfloat16', **options)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    convolutions = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.Conv):
            convolutions[context.module.path] = context.module
        return call(*args, **kwargs)

    def apply(variables, image):
        return module.apply(variables, image, train=True, mutable=['batch_stats'])[0]

    with nn.intercept_methods(note):
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return variables, jax.eval_shape(apply, variables, image), convolutions


@pytest.mark.parametrize(
    'variant, every, inference',
    [
        ('torchseg', 13_494_777, 12_894_163),
        ('coincheung', 13_425_721, 13_275_539),
        ('ooooverflow', 12_068_672, 12_054_042),
    ],
)
def test_number_of_parameters_with_and_without_auxiliary_classifiers(variant, every, inference):
    flat = traverse_util.flatten_dict(traced(variant=variant)[0]['params'], sep='/')
    auxiliary = tuple(f'decoder/{name}/' for name in MAPS[variant][1])
    assert sum(leaf.size for leaf in flat.values()) == every
    kept = [leaf.size for path, leaf in flat.items() if not path.startswith(auxiliary)]
    assert sum(kept) == inference


@pytest.mark.parametrize(
    'variant, size, expected',
    [
        ('torchseg', (512, 1024), 25.931),
        ('torchseg', (360, 480), 8.686),
        ('coincheung', (512, 1024), 29.585),
        ('ooooverflow', (360, 480), 8.574),
    ],
)
def test_multiply_accumulates_of_the_scores(variant, size, expected):
    found = costs.report(NAME, size, num_classes=CLASSES, variant=variant)['macs']
    if variant == 'ooooverflow':  # where the last 1x1 convolution runs at full resolution
        found['inference'] += CLASSES**2 * math.prod(size) * 63 // 64
    assert round(found['inference'] / 1e9, 3) == expected
    if variant == 'coincheung':
        assert round(found['training'] / 1e9, 3) == 30.352


@pytest.mark.parametrize('variant', MAPS)
def test_contract_of_the_outputs(variant):
    variables, out, _ = traced(variant=variant)
    channels, strides = MAPS[variant]
    assert out['scores'].shape == (2, 8, 12, CLASSES)
    assert out['features'].shape == (2, 8, 12, channels)
    assert out['low'].shape == (2, 16, 24, 64) and out['high'].shape == (2, 2, 3, 512)
    maps = {name: (2, 64 // stride, 96 // stride, CLASSES) for name, stride in strides.items()}
    assert {name: x.shape for name, x in out['aux'].items()} == maps
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    corners = out['resize'] == 'align_corners'
    assert corners == (variant == 'torchseg')


@pytest.mark.parametrize('variant', ['torchseg', 'ooooverflow'])
def test_maps_meet_where_the_size_is_no_multiple_of_32(variant):
    _, out, _ = traced((40, 72), variant=variant)
    assert out['scores'].shape == (2, 5, 9, CLASSES) and out['high'].shape == (2, 2, 3, 512)


@pytest.mark.parametrize('variant', MAPS)
def test_the_encoder_is_that_of_the_classifier(variant):
    classifier = models.create('resnet18', num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    expected = jax.eval_shape(classifier.init, jax.random.key(0), image)
    variables = traced(variant=variant)[0]
    for collection in ('params', 'batch_stats'):
        assert variables[collection]['encoder'] == expected[collection]['encoder']


@pytest.mark.parametrize('variant, gain', [('torchseg', 2), ('coincheung', 1), ('ooooverflow', 2)])
def test_kernels_outside_the_encoder_have_variance_gain_over_fan_in(variant, gain):
    convolutions = traced(variant=variant)[2].items()
    initialisers = {conv.kernel_init for path, conv in convolutions if path[0] != 'encoder'}
    assert len(initialisers) == 1
    kernel = initialisers.pop()(jax.random.key(0), (3, 3, 64, 32))
    assert abs(float(kernel.std()) / math.sqrt(gain / (9 * 64)) - 1) < 0.03


@pytest.mark.parametrize('variant', MAPS)
def test_dropout_is_off_unless_asked_for(variant):
    traced(variant=variant)
    with pytest.raises(flax.errors.InvalidRngError):
        traced(variant=variant, dropout=0.5)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'variant': 'torchsec'}, "did you mean 'torchseg'"),
        ({'size': (64, 92)}, 'multiples of 8'),
        ({'size': (64, 92), 'variant': 'ooooverflow'}, 'multiples of 8'),
        ({'size': (64, 80), 'variant': 'coincheung'}, 'multiples of 32'),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        traced(**change)


def test_every_variant_is_tested():
    assert set(MAPS) == set(bisenet.VARIANTS)
