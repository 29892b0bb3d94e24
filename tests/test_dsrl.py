"""DSRL around any network that follows the contract: modes, sub-trees, gradients, inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dsrl_jax import models
from dsrl_jax.errors import UserError
from dsrl_jax.models import dsrl
from dsrl_jax.models.folding import fold, norms
from dsrl_jax.models.heads import FeatureTransform
from dsrl_jax.models.layers import Conv, Convention, ConvNorm, Style

SIZE, CLASSES = (16, 24), 5
BRANCHES = {
    'none': {'network'},
    'sssr': {'network', 'sssr'},
    'sssr+sisr': {'network', 'sssr', 'sisr'},
    'full': {'network', 'sssr', 'sisr', 'transform'},
}


class Tiny(nn.Module):
    """A user's own network: scores and features at 1/4, low at 1/2, high at 1/8."""

    num_classes: int = CLASSES
    style: Style = Style()
    score_stride = feature_stride = 4
    multiple = 8

    @nn.compact
    def __call__(self, image, train=False):
        def block(width, name):
            return ConvNorm(width, stride=2, activation='relu', style=self.style, name=name)

        low = block(6, 'stem')(image, train)
        features = block(8, 'middle')(low, train)
        high = block(10, 'deep')(features, train)
        narrow = Conv(4, 1, style=self.style, name='narrow')(features)
        scores = Conv(self.num_classes, 1, use_bias=True, style=self.style, name='head')(narrow)
        return {
            'scores': scores,
            'features': features,
            'narrow': narrow,
            'low': low,
            'high': high,
            'aux': {'deep': high},
            'resize': Convention('half_pixel'),
        }


def build(mode, **options):
    return dsrl.wrap(Tiny(), num_classes=CLASSES, mode=mode, **options)


def images(seed=0, size=SIZE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, *size, 3)), jnp.float32)


def filled(shapes, seed=0):
    """Variables of these shapes, kernels of unit gain, statistics away from their start."""
    rng = np.random.default_rng(seed)

    def value(x):
        kernel = len(x.shape) == 4
        spread = np.sqrt(1 / np.prod(x.shape[:-1])) if kernel else 0.1
        return jnp.asarray(rng.normal(0 if kernel else 0.5, spread, x.shape), x.dtype)

    return jax.tree.map(value, shapes)


@pytest.fixture(scope='module')
def trained():
    """The full model as if trained; random variables, because initialising them compiles long."""
    model = build('full')
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, sr=True), images())
    return model, filled(shapes)


@pytest.mark.parametrize('mode', list(BRANCHES))
def test_parameters_exist_for_the_branches_of_the_mode_only(mode):
    model = build(mode)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False, sr=True), images()
    )
    assert set(variables['params']) == BRANCHES[mode]
    assert set(variables['batch_stats']) == BRANCHES[mode]
    assert model.multiple == 8


@pytest.mark.parametrize('scale', [1, 2, 4])
@pytest.mark.parametrize('mode', list(BRANCHES))
def test_output_shapes_in_training_and_inference(mode, scale):
    model = build(mode, scale=scale)
    key, (height, width) = jax.random.key(0), SIZE
    (train, _) = jax.eval_shape(lambda x: model.init_with_output(key, x, train=True), images())
    (test, _) = jax.eval_shape(lambda x: model.init_with_output(key, x, train=False), images())
    added = {'none': set(), 'sssr': set(), 'sssr+sisr': {'sr'}}
    added = added.get(mode, {'sr', 'seg_feature', 'sr_feature'})
    assert set(train) - set(test) == added
    assert 'aux' in test and test['resize'] == 'half_pixel'
    large = (2, height * scale, width * scale)
    expected = (2, height // 4, width // 4) if mode == 'none' else large
    assert train['scores'].shape == test['scores'].shape == (*expected, CLASSES)
    if 'sr' in added:
        assert train['sr'].shape == (*large, 3)
    if 'sr_feature' in added:
        assert train['seg_feature'].shape == (2, height // 4, width // 4, 32)
        assert train['sr_feature'].shape == (2, *SIZE, 32)


def test_mode_none_is_the_network_itself():
    wrapped, image = build('none'), images()
    variables = filled(jax.eval_shape(lambda: wrapped.init(jax.random.key(0), image)))
    inner = {name: tree['network'] for name, tree in variables.items()}
    expected = jax.jit(lambda v: Tiny().apply(v, image))(inner)
    found = jax.jit(lambda v: wrapped.apply(v, image))(variables)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), expected, found))


def test_inference_needs_network_and_sssr_only_and_is_bit_equal(trained):
    model, variables = trained
    kept = dsrl.inference_variables(variables)
    assert set(kept['params']) == {'network', 'sssr'} == set(kept['batch_stats'])
    predict = jax.jit(lambda v, x: model.apply(v, x, train=False))
    everything = jax.jit(lambda v, x: model.apply(v, x, train=False, sr=True))
    plain = build('sssr')
    scores = [
        predict(variables, images(2))['scores'],
        predict(kept, images(2))['scores'],
        everything(variables, images(2))['scores'],
        jax.jit(lambda v, x: plain.apply(v, x, train=False))(kept, images(2))['scores'],
    ]
    for other in scores[1:]:
        np.testing.assert_array_equal(scores[0], other)


def test_branches_do_not_change_scores_or_statistics_of_the_rest(trained):
    model, variables = trained
    call = {'train': True, 'mutable': ['batch_stats']}
    both, stats = jax.jit(lambda v: model.apply(v, images(3), **call))(variables)
    alone, fewer = jax.jit(lambda v: model.apply(v, images(3), sr=False, **call))(variables)
    np.testing.assert_array_equal(both['scores'], alone['scores'])
    for branch in dsrl.INFERENCE:
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()),
            stats['batch_stats'][branch],
            fewer['batch_stats'][branch],
        )
        assert jax.tree.all(same)
    before = variables['batch_stats']
    for branch in ('sisr', 'transform'):
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), stats['batch_stats'][branch], before[branch]
        )
        assert jax.tree.all(moved)


def test_every_leaf_of_the_branches_gets_a_gradient(trained):
    model, variables = trained
    target = {'scores': 0.3, 'sr': 0.2, 'seg_feature': 0.1, 'sr_feature': 0.4}

    @jax.jit
    def gradients(variables, image):
        def loss(params):
            outputs, _ = model.apply(
                {**variables, 'params': params}, image, train=True, mutable=['batch_stats']
            )
            # Cubes: a square after a norm would not depend on that norm's statistics.
            return sum(jnp.mean((outputs[k] - t) ** 3) for k, t in target.items())

        return jax.grad(loss)(variables['params'])

    found = gradients(variables, images())
    assert jax.tree.structure(found) == jax.tree.structure(variables['params'])
    zero = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
        if not (bool(jnp.isfinite(leaf).all()) and float(jnp.abs(leaf).max()) > 1e-7)
    ]
    assert zero == []


def test_sisr_and_transform_teach_the_shared_encoder(trained):
    model, variables = trained

    @jax.jit
    def gradients(params):
        def energies(params):
            outputs = model.apply({**variables, 'params': params}, images(), sr=True)
            return {name: jnp.mean(outputs[name] ** 2) for name in ('sr', 'seg_feature')}

        return jax.jacrev(energies)(params)

    found = gradients(variables['params'])

    def size(name, branch, child):
        return float(jnp.abs(found[name][branch][child]['conv']['kernel']).max())

    # The image reaches the deepest map of the encoder, and `low`; not the other branch.
    assert size('sr', 'network', 'deep') > 0 and size('sr', 'sisr', 'skip') > 0
    assert size('sr', 'transform', 'project') == 0
    assert size('seg_feature', 'network', 'middle') > 0
    assert size('seg_feature', 'network', 'deep') == 0


def test_tap_chooses_the_map_that_the_transform_reads():
    image = images()

    def kernel(tap):
        model = build('full', features=tap)
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, sr=True))
        return variables['params']['transform']['project']['conv']['kernel'].shape

    assert kernel('features') == (1, 1, 8, 32) and kernel('narrow') == (1, 1, 4, 32)
    with pytest.raises(UserError, match='one of scores, features, narrow, low, high; did you mean'):
        kernel('narow')


def test_the_transform_reads_the_map_or_its_average_on_the_grid(trained):
    model, variables = trained
    at_map = model.apply(variables, images(), sr=True)
    at_grid = build('full', transform={'grid': 8}).apply(variables, images(), sr=True)
    assert at_map['seg_feature'].shape[1:3] == (4, 6)
    cells = at_map['features'].reshape(2, 2, 2, 3, 2, -1).mean((2, 4))
    own = {name: tree['transform'] for name, tree in variables.items()}
    want = FeatureTransform().apply(own, cells)
    np.testing.assert_allclose(at_grid['seg_feature'], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mode', list(BRANCHES))
def test_a_transform_for_another_guide_stands_in_every_mode_and_leaves_predictions_alone(mode):
    model, image = build(mode, transform={'always': True}), images()
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), image, sr=True))
    assert set(made['params']) == BRANCHES[mode] | {'transform'}
    plain = jax.eval_shape(lambda: build(mode).init(jax.random.key(0), image, sr=True))
    assert dsrl.inference_variables(made) == dsrl.inference_variables(plain)
    outputs = jax.eval_shape(lambda v: model.apply(v, image, sr=True), made)
    assert outputs['seg_feature'].shape == (2, 4, 6, 32)
    assert ('sr_feature' in outputs) == ('sr' in outputs) == ('sisr' in BRANCHES[mode])
    predicted = jax.eval_shape(lambda v: model.apply(v, image), dsrl.inference_variables(made))
    assert 'seg_feature' not in predicted
    with pytest.raises(UserError, match='did you mean'):
        wrong = build(mode, transform={'always': True}, features='narow')
        jax.eval_shape(lambda: wrong.init(jax.random.key(0), image, sr=True))


def test_options_reach_their_branch():
    model = build('full', sssr={'head': 'deconv_features', 'width': 3}, sisr={'skip': False})
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), sr=True))
    params = variables['params']
    assert params['sssr']['classifier']['kernel'].shape == (1, 1, 3, CLASSES)
    assert 'skip' not in params['sisr']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'mode': 'fulll'}, "did you mean 'full'"),
        ({'scale': 3}, 'scale.*1, 2 or 4'),
        ({'sssr': {'haed': 'bilinear'}}, "option of sssr.*did you mean 'head'"),
        ({'sisr': {'trunc': 8}}, "option of sisr.*did you mean 'trunk'"),
        ({'sssr': {'head': 'deconv'}}, r'sssr\.head'),
    ],
)
def test_mistakes_in_the_options_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        build(**{'mode': 'full', **options})


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    style = Style(dtype=jnp.bfloat16)
    model = dsrl.wrap(Tiny(style=style), num_classes=CLASSES, style=style)
    outputs, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images(), train=True)
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {'float32'}
    for name in ('scores', 'sr', 'seg_feature', 'sr_feature'):
        assert outputs[name].dtype == jnp.bfloat16


def test_folded_model_predicts_the_same(trained):
    model, variables = trained
    style = Style(folded=True)
    folded = dsrl.wrap(Tiny(style=style), num_classes=CLASSES, mode='sssr', style=style)
    merged = fold(dsrl.inference_variables(variables), norms(build('sssr'), images()))
    expected = jax.jit(lambda v: model.apply(v, images(4))['scores'])(variables)
    found = jax.jit(lambda v: folded.apply(v, images(4))['scores'])(merged)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_espnetv2_is_wrapped_at_every_scale(scale):
    model = models.create('espnetv2', num_classes=20, width=0.5, dsrl='full', scale=scale)
    outputs, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=True), images(size=(32, 64))
    )
    assert outputs['scores'].shape == (2, 32 * scale, 64 * scale, 20)
    assert outputs['sr'].shape == (2, 32 * scale, 64 * scale, 3)
    assert outputs['seg_feature'].shape == (2, 16, 32, 32)
    steps = len(variables['params']['sssr'])
    assert steps == {1: 1, 2: 2, 4: 3}[scale]
    assert sum(x.size for x in jax.tree.leaves(variables['params']['sssr'])) == 3660 * steps


def test_espnetv2_merge_map_can_be_tapped():
    model = models.create('espnetv2', num_classes=20, width=0.5, dsrl='full', tap='merge')
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), images(size=(16, 16)), sr=True)
    )
    kernel = variables['params']['transform']['project']['conv']['kernel']
    assert kernel.shape == (1, 1, 10, 32)
