"""The obsolete ESPNetv2: cost, contract, sizes, dropout; its values are a golden set."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models.espnetv2 import CHANNELS
from dsrl_jax.models.espnetv2_old import ESPNetv2Old


def shapes(size=(32, 64), **options):
    module = models.create('espnetv2_old', **{'num_classes': 20, **options})
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    return variables, out


def test_number_of_parameters():
    assert costs.count_params(shapes()[0]['params']) == 1_253_038


@pytest.mark.parametrize('size, giga', [((512, 1024), 5.671), ((368, 480), 1.911)])
def test_multiply_accumulates(size, giga):
    report = costs.report('espnetv2_old', size, num_classes=20)
    assert round(report['macs']['inference'] / 1e9, 3) == giga


@pytest.mark.parametrize('width', [0.5, 2.0])
def test_contract(width):
    assert (ESPNetv2Old.score_stride, ESPNetv2Old.feature_stride) == (2, 2)
    assert ESPNetv2Old.aux_weight == 1
    _, out = shapes(width=width, num_classes=11)
    channels = CHANNELS[width]
    assert out['scores'].shape == out['aux']['l3'].shape == (1, 16, 32, 11)
    assert out['resize'] == 'align_corners'
    assert out['features'].shape == (1, 16, 32, channels[0] + 11)
    assert out['low'].shape == (1, 16, 32, channels[0])
    assert out['high'].shape == (1, 2, 4, channels[3])


@pytest.mark.parametrize(
    'width, dropout, expected', [(0.5, None, 0.1), (1.0, None, 0.2), (2.0, 0.4, 0.4)]
)
def test_dropout_rates(width, dropout, expected):
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        module = models.create('espnetv2_old', num_classes=4, width=width, dropout=dropout)
        image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        jax.eval_shape(module.init, jax.random.key(0), image)
    assert rates == [expected, expected]


@pytest.mark.parametrize(
    'change, message',
    [
        ({'size': (32, 40)}, 'multiples of 16'),
        ({'width': 3.0}, 'width'),
        ({'widht': 2.0}, "did you mean 'width'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(**change)
