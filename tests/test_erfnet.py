"""ERFNet: cost, contract, norms and dropout; its values are golden sets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import erfnet, folding


@functools.cache
def shapes(size=(32, 48)):
    module = models.create('erfnet', num_classes=20)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return module, variables, jax.eval_shape(module.apply, variables, image)


def test_number_of_parameters():
    params = shapes()[1]['params']
    whole, encoder_head = (
        costs.count_params(params),
        costs.count_params(params['encoder_classifier']),
    )
    assert whole == 2_066_836 and whole - encoder_head == 2_064_256


@pytest.mark.parametrize(
    'size, conv2d, macs',
    [
        ((256, 512), 6.385, 6.653),
        ((368, 480), 8.604, 8.966),
        ((1024, 2048), 102.156, 106.451),
    ],
)
def test_multiply_accumulates(size, conv2d, macs):
    report = costs.report('erfnet', size, num_classes=20)
    assert round(report['conv2d']['inference'] / 1e9, 3) == conv2d
    assert round(report['macs']['inference'] / 1e9, 3) == macs


def test_contract():
    module, _, out = shapes()
    assert (module.score_stride, module.feature_stride) == (1, 2)
    assert out['scores'].shape == (1, 32, 48, 20) and out['resize'] == 'half_pixel'
    assert out['features'].shape == out['low'].shape == (1, 16, 24, 16)
    assert out['high'].shape == (1, 4, 6, 128) and out['encoder'].shape == (1, 4, 6, 20)


def test_every_norm_has_epsilon_0_001():
    found = folding.norms(shapes()[0], jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32))
    assert len(found) == 3 + 2 + 2 * (5 + 8 + 4) and set(found.values()) == {(1e-3, False)}


def test_dropout_takes_whole_channels_of_the_residual():
    """Where the residual is gone the block is a ReLU."""
    x = jax.random.normal(jax.random.key(0), (4, 4, 6, 8))
    block = erfnet.NonBottleneck(0.3)
    variables = block.init(jax.random.key(1), x, False)

    def run(**options):
        rngs = {'dropout': jax.random.key(2)}
        module = block.clone(**options)
        return module.apply(variables, x, True, rngs=rngs, mutable=['batch_stats'])[0]

    gone = np.asarray(run() == jax.nn.relu(x)).all((1, 2))
    assert 0 < gone.mean() < 0.7
    whole = run(dropout=0.0)
    np.testing.assert_array_equal(run(dropout=1.0), jax.nn.relu(x))
    assert not np.asarray(whole == jax.nn.relu(x)).all((1, 2)).any()
    np.testing.assert_array_equal(run(drop=0.0), whole)


def test_the_networks_option_switches_every_dropout_off():
    module, variables, _ = shapes()
    image = jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32)

    def train(module):
        return functools.partial(module.apply, train=True, mutable=['batch_stats'])

    with pytest.raises(errors.InvalidRngError, match='dropout'):
        jax.eval_shape(train(module), variables, image)
    out, _ = jax.eval_shape(train(module.clone(dropout=0.0)), variables, image)
    assert out['scores'].shape == (1, 32, 48, 20)


@pytest.mark.parametrize('size', [(36, 48), (32, 44)])
def test_an_illegal_size_is_named(size):
    with pytest.raises(UserError, match=re.escape('multiples of 8')):
        shapes(size)
