"""ESPNet and ESPNet-C: cost, contract, sizes, options, initial values; outputs are golden sets."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden_weights

from dsrl_jax import costs, models, pretrained
from dsrl_jax.errors import UserError
from dsrl_jax.models import espnet

GOLDEN = pathlib.Path(__file__).with_name('golden')


@functools.cache
def shapes(name, size=(16, 24), **options):
    module = models.create(name, **{'num_classes': 20, **options})
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    return variables, out


@pytest.mark.parametrize(
    'name, num_classes, expected',
    [
        ('espnet', 20, 365_109),
        ('espnet', 19, 363_462),
        ('espnet', 12, 354_517),
        ('espnet_c', 20, 349_449),
    ],
)
def test_number_of_parameters(name, num_classes, expected):
    params = shapes(name, num_classes=num_classes)[0]['params']
    assert costs.count_params(params) == expected


@pytest.mark.parametrize(
    'name, num_classes, size, conv2d, both',
    [
        ('espnet', 20, (512, 1024), 4.5050, 4.7802),
        ('espnet', 12, (360, 480), 1.3027, 1.3353),
        ('espnet_c', 20, (368, 480), 1.1691, 1.1691),
    ],
)
def test_multiply_accumulates(name, num_classes, size, conv2d, both):
    report = costs.report(name, size, num_classes=num_classes)
    assert round(report['conv2d']['inference'] / 1e9, 4) == conv2d
    assert round(report['macs']['inference'] / 1e9, 4) == both


@pytest.mark.parametrize('variant, skip', [('train', 19), ('test', 16)])
def test_contract_of_espnet(variant, skip):
    assert (espnet.ESPNet.score_stride, espnet.ESPNet.feature_stride) == (1, 2)
    variables, out = shapes('espnet', variant=variant)
    assert out['scores'].shape == (1, 16, 24, 20)
    assert out['features'].shape == (1, 8, 12, 20) and out['low'].shape == (1, 8, 12, skip)
    assert out['high'].shape == (1, 2, 3, 256)
    assert variables['params']['merge']['conv']['kernel'].shape == (3, 3, 20 + skip, 20)


def test_contract_of_espnet_c():
    assert (espnet.ESPNetC.score_stride, espnet.ESPNetC.feature_stride) == (8, 8)
    _, out = shapes('espnet_c')
    assert out['scores'].shape == (1, 2, 3, 20) and out['low'].shape == (1, 8, 12, 19)
    assert out['features'].shape == out['high'].shape == (1, 2, 3, 256)
    assert out['resize'] == 'align_corners'


def test_p_and_q_are_the_numbers_of_blocks_at_a_quarter_and_an_eighth():
    encoder = shapes('espnet', p=3, q=1)[0]['params']['encoder']
    blocks = sorted(name for name in encoder if '_block' in name)
    assert blocks == ['level2_block0', 'level2_block1', 'level2_block2', 'level3_block0']


def test_two_classes_are_enough():
    variables, out = shapes('espnet', num_classes=2)
    assert out['scores'].shape == (1, 16, 24, 2)
    assert min(min(leaf.shape) for leaf in jax.tree.leaves(variables)) > 0


def test_espnet_starts_from_the_encoder_of_espnet_c():
    state = golden_weights.state_dict(GOLDEN / 'ESPNet_C.keys.json')
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, -7.0), shapes('espnet')[0])
    started, taken, _ = pretrained.init_encoder('espnet', fresh, state)
    changed = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(started)
        if (np.asarray(leaf) != -7).any()
    }
    encoder = {
        jax.tree_util.keystr(path)
        for path, _ in jax.tree.leaves_with_path(fresh)
        if path[1].key == 'encoder'
    }
    assert changed == encoder and taken == len(encoder)
    kernel = started['params']['encoder']['level3_block7']['d16']['kernel']
    want = state['level3.7.d16.conv.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, want)


def test_kernels_start_uniform_within_the_fan_that_torch_takes():
    module = models.create('espnet', num_classes=5, p=1, q=1)

    @jax.jit  # nothing but the two kernels is compiled
    def kernels(key):
        params = module.init(key, jnp.zeros((1, 8, 8, 3)))['params']
        block = params['encoder']['level3_block0']['d1']['kernel']
        return block, params['classifier']['kernel']

    block, double = kernels(jax.random.key(0))  # 3x3, 25 -> 28 and 2x2 transposed, 5 -> 5
    for kernel, fan in ((block, 9 * 25), (double, 4 * 5)):
        bound = fan**-0.5
        assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert abs(float(block.std()) / (9 * 25) ** -0.5 - 3**-0.5) < 0.02


@pytest.mark.parametrize(
    'change, message',
    [
        ({'size': (16, 20)}, 'multiples of 8'),
        ({'name': 'espnet_c', 'size': (12, 16)}, 'multiples of 8'),
        ({'variant': 'tset'}, "did you mean 'test'"),
        ({'name': 'espnet_c', 'variant': 'test'}, 'option of espnet_c'),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(**{'name': 'espnet', **change})
