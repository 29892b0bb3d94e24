"""DABNet: sizes, costs, contract, initialisation; its values are golden sets."""

import functools
import math
import re

import flax
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import layers


@functools.cache
def traced(size=(32, 48), num_classes=19, **options):
    """Shapes of variables and of a training step's outputs in bfloat16, and all layers."""
    module = models.create('dabnet', num_classes=num_classes, dtype='bfloat16', **options)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    modules = []

    def note(call, args, kwargs, context):
        modules.append(context.module)
        return call(*args, **kwargs)

    def apply(variables, image):
        return module.apply(variables, image, train=True, mutable=['batch_stats'])[0]

    with nn.intercept_methods(note):
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return variables, jax.eval_shape(apply, variables, image), modules


@pytest.mark.parametrize('num_classes, expected', [(19, 756_643), (11, 754_571)])
def test_number_of_parameters(num_classes, expected):
    variables = traced(num_classes=num_classes)[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == expected


def test_multiply_accumulates():
    found = costs.report('dabnet', (512, 1024), num_classes=19)['macs']['inference']
    assert round(found / 1e9, 4) == 10.2204


def test_contract_of_the_outputs():
    variables, out, _ = traced()
    assert out['scores'].shape == (1, 4, 6, 19) and out['resize'] == 'half_pixel'
    assert out['features'].shape == (1, 4, 6, 259)
    assert out['low'].shape == (1, 16, 24, 32) and out['high'].shape == (1, 4, 6, 128)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_every_norm_has_the_epsilon_of_the_original():
    norms = [module for module in traced()[2] if isinstance(module, layers.BatchNorm)]
    assert {norm.epsilon for norm in norms} == {1e-3}


def test_kernels_have_variance_two_over_fan_in():
    convolutions = [module for module in traced()[2] if isinstance(module, layers.Conv)]
    initialisers = {conv.kernel_init for conv in convolutions}
    assert len(initialisers) == 1
    kernel = initialisers.pop()(jax.random.key(0), (3, 1, 16, 512))  # fan in 48, fan out 1536
    assert abs(float(kernel.std()) / math.sqrt(2 / 48) - 1) < 0.03


def test_dropout_is_off_unless_asked_for():
    traced()
    with pytest.raises(flax.errors.InvalidRngError):
        traced(dropout=0.5)


@pytest.mark.parametrize(
    'change, message',
    [({'size': (32, 52)}, 'multiples of 8'), ({'variant': 'small'}, 'option of dabnet')],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        traced(**change)
