"""RefineNet: cost, contract, sizes, dropout; its values are a golden set."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import folding, refinenet


@functools.cache
def shapes(size):
    module = models.create('refinenet_resnet101', num_classes=19)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return variables, jax.eval_shape(module.apply, variables, image)


@pytest.mark.parametrize('size, giga', [((368, 480), 177.533), ((1024, 2048), 2102.588)])
def test_parameters_and_multiply_accumulates(size, giga):
    report = costs.report('refinenet_resnet101', size, num_classes=19)
    assert report['params']['inference'] == 118_047_827
    assert round(report['macs']['inference'] / 1e9, 3) == giga


def test_contract():
    module = refinenet.RefineNet
    assert (module.score_stride, module.feature_stride) == (4, 4)
    _, out = shapes((32, 48))
    assert out['scores'].shape == (2, 8, 12, 19) and out['resize'] == 'align_corners'
    assert out['features'].shape == out['low'].shape == (2, 8, 12, 256)
    assert out['high'].shape == (2, 1, 2, 2048) and 'aux' not in out


def test_the_four_blocks_differ_in_what_they_read_alone():
    params = shapes((32, 48))[0]['params']
    first, *rest = (params[f'refine{i}'] for i in (1, 2, 3, 4))
    assert set(rest[0]) - set(first) == {'fuse', 'fuse_coarser'} and set(first) < set(rest[0])
    assert rest[0]['fuse_coarser']['kernel'].shape == (3, 3, 512, 256)
    for block in rest[1:]:
        assert block['fuse_coarser']['kernel'].shape == (3, 3, 256, 256)
        same = {name for name in block if block[name] == rest[0][name]}
        assert set(rest[0]) - same == {'reduce', 'fuse_coarser'}


@pytest.mark.parametrize('option, rate', [(None, 0.5), (0.2, 0.2)])
def test_dropout_acts_on_the_two_deepest_maps_and_before_the_classifier(option, rate):
    found = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.append((args[0].shape, context.module.rate, context.module.broadcast_dims))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        module = models.create('refinenet_resnet101', num_classes=19, dropout=option)
        image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        jax.eval_shape(module.init, jax.random.key(0), image)
    maps = [(2, 1, 1, 2048), (2, 2, 2, 1024), (2, 8, 8, 256)]
    assert found == [(shape, rate, ()) for shape in maps]


def test_only_the_encoder_has_norms():
    module = models.create('refinenet_resnet101', num_classes=19)
    found = folding.norms(module, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert len(found) == 104 and {path[0] for path in found} == {'encoder'}


def test_an_illegal_size_is_named():
    with pytest.raises(UserError, match=re.escape('multiples of 16')):
        shapes((32, 40))
