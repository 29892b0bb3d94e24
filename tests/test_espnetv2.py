"""ESPNetv2: sizes, contract of the outputs, gradients, folding; its values are golden sets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dsrl_jax import models
from dsrl_jax.errors import UserError
from dsrl_jax.models import espnetv2, folding


def shapes(name, size=(32, 64), **options):
    module = models.create(name, **options)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return variables, jax.eval_shape(module.apply, variables, image)


def filled(shapes):
    """Random numpy leaves of the usual sizes: no random keys to compile, activations near 1."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == 'kernel':
            return rng.normal(0, np.sqrt(1 / np.prod(leaf.shape[:-1])), leaf.shape).astype('f')
        if path[-1].key in ('bias', 'mean'):
            return rng.normal(0, 0.1, leaf.shape).astype('f')
        return rng.uniform(0.5, 1.5, leaf.shape).astype('f')

    return jax.tree.map_with_path(fill, shapes)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(
    'name, num_classes, expected',
    [('espnetv2', 20, 789_242), ('espnetv2_classifier', 1000, 3_498_136)],
)
def test_number_of_parameters(name, num_classes, expected):
    assert count(shapes(name, num_classes=num_classes, width=2.0)[0]) == expected


@pytest.mark.parametrize('width', espnetv2.CHANNELS)
def test_every_width_meets_the_contract(width):
    _, out = shapes('espnetv2', num_classes=11, width=width)
    channels = espnetv2.CHANNELS[width]
    assert out['scores'].shape == (1, 16, 32, 11) and out['resize'] == 'align_corners'
    assert out['features'].shape == (1, 16, 32, 32) and out['merge'].shape == (1, 16, 32, 5)
    assert out['low'].shape == (1, 16, 32, channels[0])
    assert out['high'].shape == (1, 2, 4, channels[3])


@pytest.mark.slow
def test_every_leaf_gets_a_gradient_except_the_slopes_the_original_never_uses():
    options = {'num_classes': 4, 'width': 0.5}
    module = models.create('espnetv2', **options)
    variables = filled(shapes('espnetv2', **options)[0])
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, 32, 48, 3)).astype('f')
    weight = rng.normal(size=(2, 16, 24, 4)).astype('f')

    # Two thousand fusions to compile, to run once: unoptimised code takes half the time.
    @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    @jax.grad
    def gradient(params):
        out, _ = module.apply({**variables, 'params': params}, image, True, mutable=['batch_stats'])
        return jnp.sum(out['scores'] * weight)

    flat = traverse_util.flatten_dict(gradient(variables['params']), sep='/')
    still = {path for path, leaf in flat.items() if not jnp.any(leaf)}
    assert still == {f'encoder/level{i}_0/eesp/module_act/slope' for i in (2, 3, 4)}


def test_folded_equals_unfolded():
    options = {'num_classes': 4, 'width': 0.5}
    module = models.create('espnetv2', **options)
    variables = filled(shapes('espnetv2', **options)[0])
    image = np.random.default_rng(1).normal(size=(1, 32, 48, 3)).astype('f')
    folded = models.create('espnetv2', folded=True, **options)
    want = jax.jit(module.apply)(variables, image)['scores']
    got = jax.jit(folded.apply)(folding.fold(variables, folding.norms(module, image)), image)[
        'scores'
    ]
    assert 1e-3 < float(want.std()) < 1e3
    np.testing.assert_allclose(got, want, atol=1e-4 * float(want.std()))


@pytest.mark.parametrize(
    'change, message',
    [
        ({'width': 3.0}, 'width'),
        ({'widht': 2.0}, "did you mean 'width'"),
        ({'size': (32, 40)}, 'multiples of 16'),
        ({'dtype': 'float8'}, 'model.dtype'),
        ({'conv_impl': 'shfit'}, "did you mean 'shift'"),
        ({'name': 'espnetv3'}, "did you mean 'espnetv2'"),
        ({'name': 'no_such_module:net'}, 'no_such_module'),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(**{'name': 'espnetv2', 'num_classes': 4, **change})


def test_a_network_of_the_users_own_is_imported_by_name():
    module = models.create('dsrl_jax.models.espnetv2:ESPNetv2', num_classes=4, width=1.0)
    assert isinstance(module, espnetv2.ESPNetv2) and module.width == 1.0
