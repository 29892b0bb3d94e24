"""SSSR heads, SISR branch, feature transform: sizes, formulas, geometry, parameters."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax.errors import UserError
from dsrl_jax.models import folding, heads
from dsrl_jax.models.layers import Convention, Style
from dsrl_jax.ops import resize

STYLE = Style()
DECONV_HEADS = ('official_deconv', 'depthwise_deconv', 'deconv_features')


def maps(classes=5, score=(4, 6), feature=(4, 6), features=7, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'scores': jnp.asarray(rng.normal(size=(2, *score, classes)), jnp.float32),
        'features': jnp.asarray(rng.normal(size=(2, *feature, features)), jnp.float32),
        'resize': Convention('align_corners'),
    }


def encoder_maps(high=(3, 4), low=(12, 16), channels=(9, 5), seed=0):
    rng = np.random.default_rng(seed)
    return {
        'high': jnp.asarray(rng.normal(size=(2, *high, channels[0])), jnp.float32),
        'low': jnp.asarray(rng.normal(size=(2, *low, channels[1])), jnp.float32),
    }


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables['params']))


def abstract(module, *inputs, **kwargs):
    """Shapes of (result, variables) of a first call, computing nothing."""
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *inputs, **kwargs))


def filled(module, *inputs, seed=0, **kwargs):
    """Variables of the module without compiling its initialisation: kernels of unit gain."""
    _, variables = abstract(module, *inputs, **kwargs)
    rng = np.random.default_rng(seed)

    def value(x):
        spread = np.sqrt(1 / np.prod(x.shape[:-1])) if len(x.shape) == 4 else 0.1
        offset = 0.0 if len(x.shape) == 4 else 0.5
        return jnp.asarray(rng.normal(offset, spread, x.shape), x.dtype)

    return jax.tree.map(value, variables)


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
