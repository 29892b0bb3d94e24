"""The SISR branch: sizes, start, geometry, parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_maps import abstract, encoder_maps, filled

from dsrl_jax.errors import UserError
from dsrl_jax.models import heads
from dsrl_jax.models.layers import Convention


def test_sisr_takes_odd_maps_too():
    outputs = encoder_maps((13, 17), (25, 33)) | {'resize': Convention('align_corners')}
    (sr, _), variables = abstract(heads.SISR(), outputs, (96, 128), train=True)
    assert sr.shape == (2, 192, 256, 3) and 'skip' in variables['params']


@pytest.mark.parametrize('size', [(368, 480), (360, 480), (713, 713), (384, 768)])
def test_sisr_has_the_same_parameters_at_every_size(size):
    high, low = (tuple(-(-n // stride) for n in size) for stride in (32, 4))
    outputs = encoder_maps(high, low) | {'resize': Convention('align_corners')}
    (sr, feature), variables = abstract(heads.SISR(), outputs, size, train=True)
    assert sr.shape[1:3] == tuple(2 * n for n in size) and feature.shape[1:3] == size
    outputs = encoder_maps((4, 6), (32, 48))
    _, usual = abstract(heads.SISR(), outputs, (128, 192), train=True)
    assert variables == usual


@pytest.mark.parametrize('scale', [1, 2, 4])
@pytest.mark.parametrize(
    ('high', 'low'), [((2, 3), (16, 24)), ((8, 12), (8, 12)), ((4, 6), (32, 48))]
)
def test_sisr_reaches_scale_times_the_input_from_any_stride(scale, high, low):
    (sr, feature), variables = abstract(
        heads.SISR(scale=scale), encoder_maps(high, low), (32, 48), train=True
    )
    assert sr.shape == (2, 32 * scale, 48 * scale, 3)
    assert feature.shape == (2, 32, 48, heads.SR_FEATURES)
    assert variables['params']['espcn1']['kernel'].shape[:2] == (5, 5)
    assert 'skip' in variables['params']


def test_sisr_starts_in_the_range_of_a_normalised_image():
    """At initialisation, in train mode: the first loss is about that of predicting noise."""
    outputs = encoder_maps((2, 3), (4, 6))
    first = jax.jit(lambda key, x: heads.SISR().init_with_output(key, x, (8, 12), True)[0][0])
    assert 0.1 < float(first(jax.random.key(0), outputs).std()) < 3


def test_sisr_starts_without_a_checkerboard():
    """All pixels that come of one pixel of the last map are equal before the first step."""
    outputs = encoder_maps((2, 3), (4, 6))
    first = jax.jit(lambda key: heads.SISR(scale=4).init_with_output(key, outputs, (8, 12), True))
    (sr, _), variables = first(jax.random.key(0))
    cells = np.asarray(sr).reshape(sr.shape[0], 8, 4, 12, 4, 3)
    alike = np.broadcast_to(cells[:, :, :1, :, :1], cells.shape)
    np.testing.assert_allclose(cells, alike, rtol=1e-5, atol=1e-6)
    assert cells[:, :, 0, :, 0].std() > 0.1
    up = variables['params']['up0']['conv']['kernel']
    copies = np.asarray(up).reshape(*up.shape[:3], 4, -1)
    np.testing.assert_array_equal(copies, np.broadcast_to(copies[..., :1, :], copies.shape))


def test_sisr_ends_linear_on_an_activated_feature():
    outputs = encoder_maps((2, 3), (4, 6))
    variables = filled(heads.SISR(), outputs, (8, 12))
    params = dict(variables['params'])
    params['espcn3'] = jax.tree.map(lambda x: -2 * x, params['espcn3'])
    run = jax.jit(lambda variables: heads.SISR().apply(variables, outputs, (8, 12)))
    sr, feature = run(variables)
    assert float(feature.min()) < 0 and float(jnp.abs(feature).max()) <= 1
    twice, _ = run({**variables, 'params': params})
    np.testing.assert_allclose(twice, -2 * sr, rtol=1e-5, atol=1e-5)
    relu = heads.SISR(activation='relu')
    _, feature = jax.jit(lambda v: relu.apply(v, outputs, (8, 12)))(variables)
    assert float(feature.min()) == 0


def test_sisr_is_translation_equivariant_so_its_grid_is_not_shifted():
    """Move both encoder maps by one cell of `high`: the image moves by that many output pixels."""
    outputs = encoder_maps((12, 12), (24, 24))
    variables = filled(heads.SISR(), outputs, (48, 48))
    run = jax.jit(lambda outputs: heads.SISR().apply(variables, outputs, (48, 48))[0])
    moved = {
        'high': jnp.roll(outputs['high'], 1, axis=2),
        'low': jnp.roll(outputs['low'], 2, axis=2),
    }
    first, second = run(outputs), run(moved)
    inner = slice(40, 56)
    np.testing.assert_allclose(
        jnp.roll(first, 8, axis=2)[:, inner, inner], second[:, inner, inner], atol=2e-5
    )
    assert float(jnp.abs(first - second)[:, inner, inner].max()) > 0.01


def test_sisr_without_skip_does_not_read_low():
    module = heads.SISR(skip=False)
    _, variables = abstract(module, {'high': encoder_maps()['high'], 'low': None}, (24, 32))
    assert 'skip' not in variables['params']


def test_sisr_mistakes_are_user_errors():
    with pytest.raises(UserError, match=r'sisr\.skip.*low.*3x16.*power of two'):
        abstract(heads.SISR(), encoder_maps(low=(3, 16)), (24, 32))
    with pytest.raises(UserError, match=r'high.*power of two'):
        abstract(heads.SISR(), encoder_maps(), (12, 48))
    with pytest.raises(UserError, match=r'sisr\.activation'):
        abstract(heads.SISR(activation='gelu'), encoder_maps(), (24, 32))
