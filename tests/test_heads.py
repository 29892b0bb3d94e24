"""SSSR heads and the feature transform: sizes, formulas, geometry, parameters."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_maps import abstract, count, filled, maps

from dsrl_jax.errors import UserError
from dsrl_jax.models import folding, heads
from dsrl_jax.models.layers import Convention, Style
from dsrl_jax.ops import resize

STYLE = Style()
DECONV_HEADS = ('official_deconv', 'depthwise_deconv', 'deconv_features')


def scattered(x, kernel):
    """Transposed convolution k3 s2 p1 op1 by definition in float64: [B,h,w,C] -> [B,2h,2w,D]."""
    b, h, w, _ = x.shape
    canvas = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            patch = np.einsum('bc,uvcd->buvd', x[:, i, j], kernel)
            canvas[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += patch
    return canvas[:, 1:-1, 1:-1]


def test_official_head_of_espnetv2_has_exactly_7320_parameters():
    head = heads.sssr('official_deconv', num_classes=20, style=STYLE)
    (scores, convention), variables = abstract(head, maps(20, (8, 16)), (32, 64))
    assert count(variables) == 7320
    assert scores.shape == (2, 32, 64, 20)
    assert convention == 'half_pixel'


def test_official_head_is_scatter_then_norm_then_prelu():
    head = heads.sssr('official_deconv', num_classes=3, style=STYLE)
    outputs = maps(3, (3, 4))
    variables = filled(head, outputs, (6, 8))
    found, _ = head.apply(variables, outputs, (6, 8))
    params, stats = variables['params']['up0'], variables['batch_stats']['up0']['norm']
    params, stats = jax.tree.map(np.float64, (params, stats))
    y = scattered(np.float64(outputs['scores']), params['conv']['kernel'])
    y = (y - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
    y = y * params['norm']['scale'] + params['norm']['bias']
    y = np.where(y > 0, y, y * params['act']['slope'])
    np.testing.assert_allclose(found, y, atol=2e-5)


def test_depthwise_head_starts_as_bilinear_enlargement_of_each_class_alone():
    head = heads.sssr('depthwise_deconv', num_classes=5, style=STYLE)
    outputs = maps()
    variables = head.init(jax.random.key(0), outputs, (8, 12))
    found, _ = head.apply(variables, outputs, (8, 12))
    x = np.float64(outputs['scores'])
    beyond = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_allclose(found[:, ::2, ::2], x, atol=1e-6)
    np.testing.assert_allclose(
        found[:, 1::2, ::2], (beyond[:, :-1] + beyond[:, 1:])[:, :, :-1] / 2, atol=1e-6
    )
    corners = beyond[:, :-1] + beyond[:, 1:]
    np.testing.assert_allclose(
        found[:, 1::2, 1::2], (corners[:, :, :-1] + corners[:, :, 1:]) / 4, atol=1e-6
    )
    other = dict(outputs, scores=outputs['scores'].at[..., 2].add(1.0))
    changed, _ = head.apply(variables, other, (8, 12))
    assert list(np.unique(np.nonzero(np.asarray(changed != found))[-1])) == [2]
    assert count(variables) == 45


def test_bilinear_head_leaves_scores_and_convention_and_has_no_parameters():
    head = heads.sssr('bilinear', num_classes=5, style=STYLE)
    outputs = maps(score=(5, 7))
    (scores, convention), variables = head.init_with_output(jax.random.key(0), outputs, (90, 33))
    assert jax.tree.leaves(variables) == []
    assert scores is outputs['scores'] and convention == 'align_corners'


def test_deconv_features_reads_features_only_and_classifies_last():
    head = heads.sssr('deconv_features', num_classes=5, style=STYLE, width=6)
    outputs = maps(feature=(8, 12))
    variables = filled(head, outputs, (16, 24))
    first, _ = head.apply(variables, outputs, (16, 24))
    second, _ = head.apply(variables, dict(outputs, scores=-outputs['scores']), (16, 24))
    assert first.shape == (2, 16, 24, 5)
    assert bool((first == second).all()) and bool((first < 0).any())
    assert count(variables) == 9 * 7 * 6 + 2 * 6 + 6 * 5 + 5


def test_pixel_shuffle_starts_as_one_classifier_and_places_its_four():
    head = heads.sssr('pixel_shuffle', num_classes=5, style=STYLE)
    outputs = maps(feature=(4, 6))
    (scores, convention), variables = head.init_with_output(jax.random.key(0), outputs, (16, 24))
    # Two steps to go: one by pixels, one left to the bilinear enlargement.
    assert scores.shape == (2, 8, 12, 5) and convention == 'half_pixel'
    alike = np.asarray(scores).reshape(2, 4, 2, 6, 2, 5)
    np.testing.assert_array_equal(alike, np.broadcast_to(alike[:, :, :1, :, :1], alike.shape))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), variables)
    scores, _ = head.apply(drawn, outputs, (16, 24))
    kernel, bias = (np.asarray(drawn['params']['classifier'][n]) for n in ('kernel', 'bias'))
    for place, (row, column) in enumerate(np.ndindex(2, 2)):
        part = slice(5 * place, 5 * place + 5)
        want = np.asarray(outputs['features']) @ kernel[0, 0, :, part] + bias[part]
        np.testing.assert_allclose(scores[:, row::2, column::2], want, rtol=1e-5, atol=1e-5)


def test_pixel_shuffle_is_a_plain_classifier_where_nothing_is_left_to_enlarge():
    head = heads.sssr('pixel_shuffle', num_classes=5, style=STYLE)
    (scores, _), variables = abstract(head, maps(), (4, 6))
    assert scores.shape == (2, 4, 6, 5) and count(variables) == (7 + 1) * 5


@pytest.mark.parametrize('name', DECONV_HEADS)
@pytest.mark.parametrize('steps', [0, 1, 2, 5])
def test_deconv_heads_take_one_step_for_each_doubling(name, steps):
    head = heads.sssr(name, num_classes=5, style=STYLE)
    size = (4 << steps, 6 << steps)
    (scores, convention), variables = abstract(head, maps(), size)
    ups = [k for k in variables.get('params', {}) if k.startswith('up')]
    assert len(ups) == steps
    assert scores.shape == (2, *size, 5) and convention == 'half_pixel'


@pytest.mark.parametrize('name', DECONV_HEADS)
@pytest.mark.parametrize('size', [(8, 24), (2, 3)])
def test_deconv_heads_refuse_what_is_no_ladder_of_doublings(name, size):
    head = heads.sssr(name, num_classes=5, style=STYLE)
    with pytest.raises(UserError, match=r'sssr\.head.*4x6.*power of two.*bilinear'):
        abstract(head, maps(), size)


@pytest.mark.parametrize('name', DECONV_HEADS)
def test_a_size_that_does_not_divide_is_climbed_beyond_and_cut(name):
    """713 pixels are 90 cells of 8: a ladder of 720."""
    head = heads.sssr(name, num_classes=5, style=STYLE)
    outputs = maps(score=(5, 6), feature=(5, 6))
    variables = filled(head, outputs, (20, 24))
    run = jax.jit(lambda size: head.apply(variables, outputs, size)[0], static_argnums=0)
    np.testing.assert_array_equal(run((18, 23)), run((20, 24))[:, :18, :23])


@pytest.mark.parametrize('name', DECONV_HEADS)
def test_a_map_off_the_ladder_is_resized_onto_it_first(name):
    """Pyramids that round up give 13x17 maps of 96x128 images: the head starts from 12x16."""
    head = heads.sssr(name, num_classes=5, style=STYLE)
    odd = maps(score=(13, 17), feature=(13, 17))
    (scores, _), variables = abstract(head, odd, (192, 256))
    assert scores.shape == (2, 192, 256, 5)
    variables = filled(head, odd, (192, 256))
    even = {
        **odd,
        **{
            key: resize.bilinear(odd[key], (12, 16), convention=odd['resize'])
            for key in ('scores', 'features')
        },
    }
    run = jax.jit(lambda outputs: head.apply(variables, outputs, (192, 256))[0])
    np.testing.assert_array_equal(run(odd), run(even))


def test_wrong_head_options_are_user_errors():
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        heads.sssr('bilinaer', num_classes=5, style=STYLE)
    with pytest.raises(UserError, match=r'sssr\.width'):
        heads.sssr('official_deconv', num_classes=5, style=STYLE, width=8)


@pytest.mark.parametrize('name', list(heads.HEADS))
def test_folded_head_gives_the_same_scores(name):
    outputs = maps()
    plain = heads.sssr(name, num_classes=5, style=STYLE)
    variables = {'params': {}, **filled(plain, outputs, (16, 24))}
    folded = heads.sssr(name, num_classes=5, style=Style(folded=True))
    merged = folding.fold(variables, collections.defaultdict(lambda: (1e-5, False)))
    expected, _ = plain.apply(variables, outputs, (16, 24))
    np.testing.assert_allclose(
        folded.apply(merged, outputs, (16, 24))[0], expected, rtol=1e-4, atol=1e-4
    )


def test_feature_transform_is_a_rectified_1x1_projection_to_the_sisr_width():
    features = maps()['features']
    variables = filled(heads.FeatureTransform(), features)
    y = heads.FeatureTransform().apply(variables, features)
    params, stats = variables['params']['project'], variables['batch_stats']['project']['norm']
    assert params['conv']['kernel'].shape == (1, 1, 7, heads.SR_FEATURES)
    params, stats, x = jax.tree.map(np.float64, (params, stats, features))
    x = (x @ params['conv']['kernel'][0, 0] - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
    x = np.maximum(x * params['norm']['scale'] + params['norm']['bias'], 0)
    np.testing.assert_allclose(y, x, atol=1e-5)


@pytest.mark.parametrize('name', DECONV_HEADS)
def test_every_leaf_of_a_head_gets_a_gradient(name):
    head, outputs = heads.sssr(name, num_classes=5, style=STYLE), maps()
    variables = filled(head, outputs, (16, 24))

    @jax.jit
    def gradients(params):
        def loss(params):
            call = {'train': True, 'mutable': ['batch_stats']}
            (y, _), _ = head.apply({**variables, 'params': params}, outputs, (16, 24), **call)
            return jnp.mean((y - 0.3) ** 3)

        return jax.grad(loss)(params)

    largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradients(variables['params']))
    assert all(1e-7 < g < np.inf for g in jax.tree.leaves(largest)), largest


def test_logits_are_float32_scores_brought_to_size_by_the_named_convention():
    outputs = maps()
    low = {**outputs, 'scores': outputs['scores'].astype(jnp.bfloat16)}
    found = heads.logits(low, (9, 13))
    assert found.dtype == jnp.float32 and found.shape == (2, 9, 13, 5)
    # align_corners keeps the corners, half_pixel puts the first row of a doubling at -1/4.
    np.testing.assert_allclose(
        found[:, [0, -1]][:, :, [0, -1]], np.float32(low['scores'])[:, [0, -1]][:, :, [0, -1]]
    )
    other = heads.logits({**low, 'resize': Convention('half_pixel')}, (9, 13))
    expected = resize.bilinear(low['scores'].astype(jnp.float32), (9, 13), convention='half_pixel')
    np.testing.assert_array_equal(other, expected)
    assert float(jnp.abs(other - found).max()) > 0.1
