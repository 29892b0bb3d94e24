"""ENet: cost, contract, slopes, dropout, sizes; its values are a golden set."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import enet


@functools.cache
def shapes(size=(16, 24), **options):
    module = models.create('enet', **{'num_classes': 19, **options})
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    return variables, out


@pytest.mark.parametrize('num_classes, expected', [(19, 351_660), (20, 351_804), (11, 350_508)])
def test_number_of_parameters(num_classes, expected):
    assert costs.count_params(shapes(num_classes=num_classes)[0]['params']) == expected


@pytest.mark.parametrize(
    'size, conv2d, both', [((512, 1024), 3.6117, 4.0374), ((360, 480), 1.1904, 1.3307)]
)
def test_multiply_accumulates(size, conv2d, both):
    report = costs.report('enet', size, num_classes=19)
    assert round(report['conv2d']['inference'] / 1e9, 4) == conv2d
    assert round(report['macs']['inference'] / 1e9, 4) == both


def test_contract():
    assert (enet.ENet.score_stride, enet.ENet.feature_stride) == (1, 2)
    _, out = shapes()
    assert out['scores'].shape == (1, 16, 24, 19)
    assert out['features'].shape == out['low'].shape == (1, 8, 12, 16)
    assert out['high'].shape == (1, 2, 3, 128)


def test_only_the_encoder_has_slopes_and_each_is_a_single_one():
    params = shapes()[0]['params']
    slopes = [
        (path[0].key, leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == 'slope'
    ]
    # initial block, 2 reductions and 20 bottlenecks of 4, one more in 4 asymmetric ones
    assert slopes == [('encoder', (1,))] * (1 + 22 * 4 + 4)


@pytest.mark.parametrize(
    'dropout, expected', [(None, {0.01: 5, 0.1: 22}), (0.0, {0.0: 27}), (0.3, {0.3: 27})]
)
def test_dropout_rates_are_the_originals_unless_one_replaces_them(dropout, expected):
    found = collections.Counter()

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            assert context.module.broadcast_dims == (1, 2)
            found[context.module.rate] += 1
        return call(*args, **kwargs)

    module = models.create('enet', num_classes=19, dropout=dropout)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(module.init, jax.random.key(0), image)
    assert found == expected


@pytest.mark.parametrize(
    'change, message',
    [({'size': (16, 20)}, 'multiples of 8'), ({'widht': 1}, 'option of enet')],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(**change)
