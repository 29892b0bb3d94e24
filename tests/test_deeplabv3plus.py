"""DeepLabv3+: sizes, costs, contract of the outputs, encoders; its values are golden sets."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from dsrl_jax import costs, models, pretrained
from dsrl_jax.errors import UserError
from dsrl_jax.models import deeplabv3plus

RESNET101, LITE = 'deeplabv3plus_resnet101', 'deeplabv3plus_efficientnet_lite0'


def shapes(name, size=(32, 48), num_classes=4, **options):
    module = models.create(name, num_classes=num_classes, **options)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    return module, variables, outputs


@pytest.mark.parametrize(
    'variant, stride, size, expected',
    [
        ('jfzhang95', 16, (512, 1024), 177.218),
        ('jfzhang95', 8, (360, 480), 171.479),
        ('vainf', 8, (256, 512), 125.238),
    ],
)
def test_number_of_parameters_and_macs(variant, stride, size, expected):
    params = {'jfzhang95': 59_343_795, 'vainf': 58_753_459}[variant]
    report = costs.report(RESNET101, size, num_classes=19, variant=variant, output_stride=stride)
    assert report['params']['network'] == params
    assert round(report['macs']['inference'] / 1e9, 3) == expected


def test_the_light_network_is_light():
    report = costs.report(LITE, (512, 1024), num_classes=19)
    assert report['params']['network'] == 3_866_435
    assert round(report['macs']['inference'] / 1e9, 3) == 13.539


@pytest.mark.parametrize(
    'name, options, resized, low, high',
    [
        (RESNET101, {}, 'align_corners', 256, 2048),
        (RESNET101, {'variant': 'vainf'}, 'half_pixel', 256, 2048),
        (LITE, {}, 'half_pixel', 24, 320),
    ],
)
@pytest.mark.parametrize('stride', deeplabv3plus.RATES)
def test_contract_of_the_outputs(name, options, resized, low, high, stride):
    module, _, out = shapes(name, output_stride=stride, **options)
    assert module.score_stride == module.feature_stride == 4 and module.multiple == stride
    assert out['scores'].shape == (1, 8, 12, 4) and out['resize'] == resized
    assert out['features'].shape == (1, 8, 12, 256)
    assert out['low'].shape == (1, 8, 12, low)
    assert out['high'].shape == (1, 32 // stride, 48 // stride, high)
    assert out['aspp'].shape == (1, 32 // stride, 48 // stride, 256)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'variant': 'vianf'}, "did you mean 'vainf'"),
        ({'output_stride': 32}, 'output_stride'),
        ({'size': (40, 48)}, 'multiples of 16'),
        ({'size': (36, 48), 'output_stride': 8}, 'multiples of 8'),
        ({'name': LITE, 'size': (40, 48)}, 'multiples of 16'),
        ({'name': LITE, 'output_stride': 4}, 'output_stride'),
        ({'name': LITE, 'variant': 'vainf'}, 'variant'),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(**{'name': RESNET101, **change})


def test_another_encoder_can_stand_under_a_decoder():
    """The decoder reads two maps of a dict and takes their widths and sizes as they come."""
    maps = {'c2': jnp.ones((1, 6, 10, 7)), 'c5': jnp.ones((1, 3, 5, 11))}
    for decoder in (deeplabv3plus.Jfzhang95, deeplabv3plus.Vainf, deeplabv3plus.Separable):
        module = decoder(num_classes=3, rates=(1, 2))
        out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), maps)
        assert out['scores'].shape == (1, 6, 10, 3) and out['high'].shape == (1, 3, 5, 11)


@pytest.mark.parametrize(
    'decoder, original',
    [
        (deeplabv3plus.Jfzhang95, [0.5, 0.5, 0.1]),
        (deeplabv3plus.Vainf, [0.1]),
        (deeplabv3plus.Separable, [0.1]),
    ],
)
def test_dropout_has_the_original_rates_or_one_for_all(decoder, original):
    maps = {'c2': jnp.ones((1, 4, 4, 3)), 'c5': jnp.ones((1, 2, 2, 3))}
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            assert not kwargs['deterministic']
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    for dropout, expected in ((None, original), (0.3, [0.3] * len(original))):
        module = decoder(num_classes=2, rates=(1,), dropout=dropout)
        rates.clear()
        with nn.intercept_methods(note):
            jax.eval_shape(lambda key, m=module: m.init(key, maps, train=True), jax.random.key(0))
        assert rates == expected


def test_the_imagenet_classifier_fills_the_whole_encoder_of_the_light_network(real_data):
    path = real_data / 'checkpoints' / 'efficientnet_lite0_imagenet.npz'
    state_dict = pretrained.read_weights(path)
    _, variables, _ = shapes(LITE)
    empty = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), variables)
    filled, taken, _ = pretrained.init_encoder(LITE, empty, state_dict)
    # All but the last 1x1 convolution, its norm and the classifier of the ImageNet network.
    assert taken == len(state_dict) - 7
    for kind in ('params', 'batch_stats'):
        for path, leaf in traverse_util.flatten_dict(filled[kind]).items():
            assert np.isnan(leaf).all() if path[0] == 'decoder' else np.isfinite(leaf).all(), path
    stem = filled['params']['encoder']['stem']['conv']['kernel']
    np.testing.assert_array_equal(stem[1, 2, 0], state_dict['_conv_stem.weight'][:, 0, 1, 2])
