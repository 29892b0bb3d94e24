"""EfficientNet-Lite0: size, cost, dilation, and the published ImageNet weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dsrl_jax import costs, models, pretrained
from dsrl_jax.errors import UserError
from dsrl_jax.models import efficientnet_lite

IMAGENET = 'checkpoints/efficientnet_lite0_imagenet'
CLASSES = {'baboon': 372, 'monarch': 323, 'zebra': 340}


def encoder_shapes(size, **options):
    module = efficientnet_lite.Encoder(**options)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    return {name: x.shape[1:] for name, x in maps.items()}, variables


def test_size_and_cost_are_the_published_ones():
    report = costs.report('efficientnet_lite0', (224, 224), num_classes=1000)
    assert report['params']['network'] == 4_652_008
    assert report['macs']['inference'] == 385_187_552


@pytest.mark.parametrize('stride, deep, deepest', [(32, 16, 32), (16, 16, 16), (8, 8, 8)])
def test_dilation_keeps_the_maps_fine_and_the_weights_as_they_are(stride, deep, deepest):
    maps, variables = encoder_shapes((64, 96), output_stride=stride)
    assert maps == {
        'c1': (32, 48, 16),
        'c2': (16, 24, 24),
        'c3': (8, 12, 40),
        'c4': (64 // deep, 96 // deep, 112),
        'c5': (64 // deepest, 96 // deepest, 320),
    }
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, encoder_shapes((64, 96))[1]
    )


def test_the_dilated_encoder_holds_the_maps_of_the_plain_one():
    """Every second (fourth) pixel of its last map, from the second (fourth) on, is the plain one's.

    So each convolution reads the same neighbours as in training on ImageNet.
    """
    rng = np.random.default_rng(0)
    _, variables = encoder_shapes((64, 64))
    variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype('f'), variables)
    params = jax.tree.map(lambda leaf: leaf - 0.6 if leaf.ndim == 4 else leaf, variables['params'])
    variables = {**variables, 'params': params}
    image = rng.normal(size=(1, 64, 64, 3)).astype('f')

    @jax.jit
    def last_maps(variables):
        encoders = [efficientnet_lite.Encoder(output_stride=stride) for stride in (32, 16, 8)]
        return [encoder.apply(variables, image)['c5'] for encoder in encoders]

    plain, at16, at8 = last_maps(variables)
    assert plain.shape == (1, 2, 2, 320) and plain.std() > 0.1
    np.testing.assert_allclose(at16[:, 1::2, 1::2], plain, atol=1e-3 * plain.std())
    np.testing.assert_allclose(at8[:, 3::4, 3::4], plain, atol=1e-3 * plain.std())


@pytest.mark.parametrize(
    'options, message',
    [({'size': (48, 64)}, 'multiples of 32'), ({'output_stride': 4}, 'output_stride')],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        if 'size' in options:
            costs.report('efficientnet_lite0', options['size'])
        else:
            encoder_shapes((64, 64), **options)


def test_published_weights_give_the_published_outputs(real_data):
    """Pins TensorFlow's padding and epsilon: with others the maps differ by 10 deviations."""
    run, variables = published(real_data)
    with np.load(real_data / 'checkpoints' / 'reference_input_64x128.npz') as file:
        image = file['x'].transpose(0, 2, 3, 1)
    with np.load(real_data / f'{IMAGENET}.reference.npz') as file:
        features, logits = file['features_random'].transpose(0, 2, 3, 1), file['logits_random']
    outputs = run(variables, image)
    np.testing.assert_allclose(outputs['features'], features, atol=1e-4 * features.std())
    np.testing.assert_allclose(outputs['logits'], logits, atol=1e-4 * logits.std())


def test_published_weights_know_three_photographs(real_data):
    run, variables = published(real_data)
    images = [photograph(real_data / 'sr' / 'Set14' / f'{name}.png') for name in CLASSES]
    logits = run(variables, np.stack(images))['logits']
    assert np.argmax(logits, axis=1).tolist() == list(CLASSES.values())


def published(folder):
    state_dict = pretrained.read_weights(folder / f'{IMAGENET}.npz')
    module = models.create('efficientnet_lite0', num_classes=1000)
    return jax.jit(module.apply), pretrained.from_torch('efficientnet_lite0', state_dict)


def photograph(path):
    """The middle of an image, its shorter side brought to 256, as the encoder wants it."""
    image = Image.open(path).convert('RGB')
    scale = 256 / min(image.size)
    size = [round(n * scale) for n in image.size]
    left, top = ((n - 224) // 2 for n in size)
    image = image.resize(size, Image.BICUBIC).crop((left, top, left + 224, top + 224))
    return (np.asarray(image, np.float32) - 127) / 128
