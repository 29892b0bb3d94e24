"""PSPNet: cost, contract, sizes and options; its values are golden sets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError
from dsrl_jax.models import folding, pspnet


@functools.cache
def shapes(name, size=(32, 64), **options):
    module = models.create(name, **{'num_classes': 19, **options})
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return variables, jax.eval_shape(module.apply, variables, image)


@pytest.mark.parametrize(
    'name, variant, with_aux, without',
    [
        ('pspnet_resnet101', 'semseg', 68_072_166, 65_707_475),
        ('pspnet_resnet101', 'skd', 70_437_350, 65_707_475),
        ('pspnet_resnet18', 'skd', 13_068_262, 12_770_515),
    ],
)
def test_number_of_parameters(name, variant, with_aux, without):
    params = shapes(name, variant=variant)[0]['params']
    assert costs.count_params(params) == with_aux
    assert with_aux - costs.count_params(params['aux']) == without


@pytest.mark.parametrize(
    'name, variant, size, branch, giga',
    [
        # The release of semseg skips its auxiliary head in eval mode, that of skd never does.
        ('pspnet_resnet101', 'semseg', (368, 480), 'inference', 176.377),
        ('pspnet_resnet101', 'semseg', (257, 513), 'inference', 136.905),
        ('pspnet_resnet101', 'skd', (512, 1024), 'training', 574.932),
        ('pspnet_resnet18', 'skd', (368, 480), 'training', 42.937),
    ],
)
def test_multiply_accumulates(name, variant, size, branch, giga):
    report = costs.report(name, size, num_classes=19, variant=variant)
    assert round(report['macs'][branch] / 1e9, 3) == giga


@pytest.mark.parametrize(
    'variant, size, grid',
    [
        ('semseg', (32, 64), (4, 8)),
        ('semseg', (33, 65), (5, 9)),
        ('skd', (32, 64), (5, 9)),
        ('skd', (33, 65), (5, 9)),
    ],
)
def test_contract(variant, size, grid):
    module = pspnet.PSPNet(19)
    assert (module.score_stride, module.feature_stride, module.aux_weight) == (8, 8, 0.4)
    _, out = shapes('pspnet_resnet18', size, variant=variant)
    assert out['scores'].shape == out['aux']['aux'].shape == (2, *grid, 19)
    assert out['features'].shape == (2, *grid, 128) and out['high'].shape == (2, *grid, 512)
    # A 3x3 window of stride 2 halves n to (n + 1) // 2.
    assert tuple((n + 1) // 2 for n in out['low'].shape[1:3]) == grid
    assert out['low'].shape[3] == 64 and out['resize'] == 'align_corners'


def test_width_scales_every_channel_but_the_colours_and_the_classes():
    whole, half = (shapes('pspnet_resnet18', width=w)[0] for w in (1.0, 0.5))
    assert jax.tree.structure(whole) == jax.tree.structure(half)
    fixed = {3, 19}
    for path, leaf in jax.tree.leaves_with_path(whole):
        *kernel, last = leaf.shape
        expected = [n if n in fixed else n // 2 for n in (*kernel[2:], last)]
        other = half
        for key in path:
            other = other[key.key]
        assert list(other.shape) == [*kernel[:2], *expected], path


@pytest.mark.parametrize('variant, absolute', [('semseg', False), ('skd', True)])
def test_all_norms_of_skd_and_none_of_semseg_use_the_size_of_their_scale(variant, absolute):
    module = models.create('pspnet_resnet18', num_classes=19, variant=variant)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    found = folding.norms(module, image)
    assert ('encoder', 'stem0', 'norm') in found and ('aux', 'bottleneck', 'norm') in found
    assert set(found.values()) == {(1e-5, absolute)}


def test_heads_start_as_torch_starts_a_convolution():
    """Uniform within 1 / sqrt(fan_in), whose standard deviation is 1 / sqrt(3 fan_in)."""
    head = pspnet.Head(64, 19, pspnet.VARIANTS['semseg'])
    params = head.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))['params']
    for kernel in (params['bottleneck']['conv']['kernel'], params['classifier']['kernel']):
        scaled = np.asarray(kernel) * np.sqrt(np.prod(kernel.shape[:-1]))
        assert np.abs(scaled).max() <= 1
        np.testing.assert_allclose(scaled.std(), np.sqrt(1 / 3), rtol=0.05)


def test_dropout_drops_whole_channels_of_what_the_classifier_reads_and_not_of_features():
    """With the classifier the identity, the scores show the dropped map."""

    def run(dropout):
        head = pspnet.Head(16, 16, pspnet.VARIANTS['semseg'], dropout=dropout)
        x = jax.random.normal(jax.random.key(0), (8, 4, 4, 8))
        variables = head.init(jax.random.key(1), x)
        variables['params']['classifier']['kernel'] = jnp.eye(16)[None, None]
        variables['params']['bottleneck']['norm']['bias'] += 5.0  # no zero comes from the ReLU
        rngs = {'dropout': jax.random.key(2)}
        (scores, features), _ = head.apply(variables, x, True, rngs=rngs, mutable=['batch_stats'])
        assert (features > 0).all()
        gone = np.asarray(scores == 0)
        assert (gone.all((1, 2)) == gone.any((1, 2))).all()
        return gone.mean()

    assert 0.02 < run(None) < 0.25 and run(0.0) == 0 and run(1.0) == 1


@pytest.mark.parametrize(
    'change, message',
    [
        ({'size': (34, 64)}, 'multiples of 8, or 1 more'),
        ({'size': (32, 71)}, 'found 32x71'),
        ({'variant': 'semsge'}, "did you mean 'semseg'"),
        ({'output_stride': 4}, 'output_stride'),
        ({'depth': 34}, "option of pspnet_resnet18: found 'depth'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes('pspnet_resnet18', **change)
