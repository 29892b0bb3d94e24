"""HRNet: cost, contract, start and pretrained encoder; its values are golden sets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from dsrl_jax import costs, models, pretrained
from dsrl_jax.errors import UserError
from dsrl_jax.models import layers

IMAGE = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)


@functools.cache
def built(name='hrnet_w32', **options):
    """The module, the shapes of its variables, and the kernel_init of each convolution's kernel."""
    starts = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.Conv):
            starts.append(context.module.kernel_init)
        return call(*args, **kwargs)

    module = models.create(name, num_classes=17, **options)
    with nn.intercept_methods(note):
        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGE)
    return module, dict(variables), starts


def test_number_of_parameters():
    expected = {'hrnet_w32': 28_536_113, 'hrnet_w48': 63_595_745}
    assert {name: costs.count_params(built(name)[1]['params']) for name in expected} == expected


def test_multiply_accumulates():
    """Counted once: every layer is a convolution, so the cost goes with the area.

    In 2^30, as in the authors' tables and in table 5 of the DSRL paper.
    """
    macs = costs.report('hrnet_w32', (64, 96), num_classes=17)['macs']['inference']
    published = {(256, 192): 7.12, (160, 128): 2.9667, (128, 96): 1.78, (384, 288): 16.0199}
    found = {(h, w): macs / (64 * 96) * h * w for h, w in published}
    assert {size: round(macs / 2**30, 4) for size, macs in found.items()} == published


def test_contract():
    module, variables, _ = built()
    out = jax.eval_shape(module.apply, variables, IMAGE)
    assert (module.score_stride, module.feature_stride, module.result_stride) == (4, 4, 4)
    assert out['scores'].shape == (1, 16, 24, 17) and out['resize'] == 'half_pixel'
    assert out['features'].shape == (1, 16, 24, 32)
    assert out['low'].shape == (1, 16, 24, 256) and out['high'].shape == (1, 2, 3, 256)


def test_the_last_module_fuses_all_branches_into_the_finest_alone():
    _, variables, _ = built()
    names = set(variables['params']['encoder']['stage4_module2'])
    assert {n for n in names if n.startswith('fuse')} == {'fuse_0_1', 'fuse_0_2', 'fuse_0_3'}
    assert {n for n in names if not n.startswith('fuse')} == {
        f'branch{branch}_block{block}' for branch in range(4) for block in range(4)
    }


def test_every_convolution_starts_with_deviation_0_001():
    _, _, starts = built()
    assert len(starts) == 293 and len(set(starts)) == 1
    kernel = starts[0](jax.random.key(0), (3, 3, 32, 64), jnp.float32)
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1e-3], atol=2e-5)


def test_the_imagenet_network_of_the_same_authors_fills_the_encoder():
    """It fuses into every branch to the end, goes on from there, and has no heatmaps."""
    variables = built()[1]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    ones = jax.tree.map(np.ones_like, zeros)
    state_dict = pretrained.to_torch('hrnet_w32', ones, num_classes=17)
    state_dict = {k: v for k, v in state_dict.items() if not k.startswith('final_layer')}
    state_dict['stage4.2.fuse_layers.1.2.0.weight'] = np.ones((8, 16, 1, 1), np.float32)
    state_dict['classifier.weight'] = np.ones((1000, 2048), np.float32)
    filled, taken, _ = pretrained.init_encoder('hrnet_w32', zeros, state_dict)
    assert taken == len(jax.tree.leaves(zeros)) - 2
    means = {
        name: {leaf.mean() for leaf in jax.tree.leaves(tree)}
        for name, tree in filled['params'].items()
    }
    assert means == {'encoder': {1}, 'final_layer': {0}}


def test_dropout_comes_with_the_option():
    module, variables, _ = built()
    train = functools.partial(module.clone(dropout=0.5).apply, train=True, mutable=['batch_stats'])
    with pytest.raises(errors.InvalidRngError, match='dropout'):
        jax.eval_shape(train, variables, IMAGE)


@pytest.mark.parametrize('size', [(96, 80), (48, 64)])
def test_an_illegal_size_is_named(size):
    image = jnp.zeros((1, *size, 3))
    with pytest.raises(UserError, match=re.escape('multiples of 32')):
        jax.eval_shape(models.create('hrnet_w32', num_classes=17).init, jax.random.key(0), image)
