"""Layers: batch norm against its float64 formula, padding, initialisation, folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsrl_jax.errors import UserError
from dsrl_jax.models import folding
from dsrl_jax.models.layers import BatchNorm, Conv, Convention, ConvNorm, NormAct, PReLU, Style

RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def shaken(variables):
    """Variables with no leaf left at a neutral value; variances stay positive."""
    return jax.tree.map(lambda x: x + jnp.asarray(RNG.uniform(0.1, 0.5, x.shape)), variables)


def train(module, variables, x):
    return module.apply(variables, x, True, mutable=['batch_stats'])


def test_batch_norm_trains_on_biased_and_keeps_unbiased_variance():
    module, x = BatchNorm(epsilon=1e-3), random(2, 3, 4, 5) * 3 + 2
    variables = shaken(module.init(jax.random.key(0), x))
    y, new = train(module, variables, x)
    trees = variables['params'], variables['batch_stats'], new['batch_stats']
    p, old, new = jax.tree.map(np.asarray, trees)
    x64 = np.asarray(x, np.float64)
    mean, var, n = x64.mean((0, 1, 2)), x64.var((0, 1, 2)), 24
    expected = (x64 - mean) / np.sqrt(var + 1e-3) * p['scale'] + p['bias']
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(new['mean'], 0.9 * old['mean'] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new['var'], 0.9 * old['var'] + 0.1 * var * n / (n - 1), rtol=1e-5)
    still = module.apply(variables, x, False)
    expected = (x64 - old['mean']) / np.sqrt(old['var'] + 1e-3) * p['scale'] + p['bias']
    np.testing.assert_allclose(still, expected, atol=1e-4)


def test_batch_norm_gradients_equal_those_of_the_two_pass_formula():
    module, x, weight = BatchNorm(), random(2, 3, 4, 5), random(2, 3, 4, 5)
    variables = shaken(module.init(jax.random.key(0), x))

    def plain(x, params):
        centered = x - x.mean((0, 1, 2), keepdims=True)
        var = (centered**2).mean((0, 1, 2), keepdims=True)
        scale, bias = (params[k].reshape(1, 1, 1, -1) for k in ('scale', 'bias'))
        return jnp.sum(weight * (centered / jnp.sqrt(var + 1e-5) * scale + bias))

    def ours(x, params):
        return jnp.sum(weight * train(module, {**variables, 'params': params}, x)[0])

    got, want = (jax.jit(jax.grad(f, (0, 1)))(x, variables['params']) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_the_running_statistics_carry_no_gradient():
    module, x = BatchNorm(), random(2, 3, 4, 5)
    variables = module.init(jax.random.key(0), x)
    statistics = jax.jit(
        jax.grad(lambda x: sum(a.sum() for a in jax.tree.leaves(train(module, variables, x)[1])))
    )
    assert (statistics(x) == 0).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_prelu_gradients_equal_the_definition(dtype):
    x, dy, slope = (random(*shape).astype(dtype) for shape in ((2, 3, 4, 5), (2, 3, 4, 5), (5,)))
    params = {'slope': slope.astype(jnp.float32)}
    pull = jax.vjp(lambda x, params: PReLU().apply({'params': params}, x), x, params)[1]
    dx, dslope = jax.jit(pull)(dy)
    x, dy, slope = (np.asarray(a, np.float64) for a in (x, dy, slope))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
        np.asarray(dx, np.float64), np.where(x > 0, dy, dy * slope), atol=tolerance
    )
    want = (np.minimum(x, 0) * dy).sum((0, 1, 2))
    np.testing.assert_allclose(dslope['slope'], want, rtol=tolerance, atol=tolerance)


def test_a_sharded_batch_is_never_gathered():
    module, x = NormAct(), random(4, 4, 4, 5)
    variables = module.init(jax.random.key(0), x)
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))

    def loss(params, x):
        y, _ = train(module, {**variables, 'params': params}, x)
        return jnp.mean(jnp.tanh(y) ** 2)

    step = jax.jit(jax.grad(loss, (0, 1))).lower(variables['params'], split)
    text = step.compile().as_text()
    assert 'all-reduce' in text and 'all-gather' not in text and 'all-to-all' not in text


def test_batch_norm_is_global_over_devices_and_float32_for_bfloat16():
    module, x = BatchNorm(style=Style(dtype=jnp.bfloat16)), random(4, 2, 3, 5)
    variables = module.init(jax.random.key(0), x)
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    (y, new), (y1, new1) = (
        jax.jit(train, static_argnums=0)(module, variables, a) for a in (split, x)
    )
    assert y.dtype == jnp.bfloat16 and new['batch_stats']['var'].dtype == jnp.float32
    np.testing.assert_allclose(y.astype(jnp.float32), y1.astype(jnp.float32), atol=1e-2)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(new1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_one_value_a_channel_is_no_batch():
    """It would train to a constant and send the running variance to 0; torch refuses it too."""
    module, x = BatchNorm(), jnp.full((1, 1, 1, 2), 7.0)
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(UserError, match=r'data\.batch_size.*at least 2'):
        train(module, variables, x)


@pytest.mark.parametrize('shape', [(2, 3, 3, 2), (2, 1, 1, 2)])
def test_a_constant_map_stays_finite_and_one_of_one_pixel_too(shape):
    module, x = BatchNorm(), jnp.full(shape, 7.0)
    variables = module.init(jax.random.key(0), x)
    value, grad = jax.jit(jax.value_and_grad(lambda x: train(module, variables, x)[0].sum()))(x)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()


def test_init_does_not_touch_the_statistics():
    variables = BatchNorm().init(jax.random.key(0), random(2, 3, 3, 4) + 5, True)
    assert (variables['batch_stats']['mean'] == 0).all()
    assert (variables['batch_stats']['var'] == 1).all()


def test_prelu_has_a_slope_a_channel():
    x = jnp.asarray([[[[-2.0, -2.0, 3.0]]]])
    y = PReLU().apply({'params': {'slope': jnp.asarray([0.5, 0.1, 9.0])}}, x)
    np.testing.assert_allclose(y.ravel(), [-1.0, -0.2, 3.0], rtol=1e-6)


@pytest.mark.parametrize('size, dilation', [(1, 1), (3, 1), (3, 4), (5, 2), ((3, 1), 3)])
def test_padding_none_keeps_the_size(size, dilation):
    module = Conv(2, size, dilation=dilation)
    assert module.init_with_output(jax.random.key(0), random(1, 9, 10, 3))[0].shape == (1, 9, 10, 2)


def test_a_strided_convolution_samples_rows_minus_one_one_three():
    x = jnp.arange(8.0).reshape(1, 8, 1, 1)
    first_row = jnp.zeros((3, 3, 1, 1)).at[0, 1].set(1)
    y = Conv(1, stride=2).apply({'params': {'kernel': first_row}}, x)
    np.testing.assert_allclose(y.ravel(), [0, 1, 3, 5])


def test_he_normal_counts_all_outputs_whatever_the_groups():
    kernel = Conv(512, groups=512).init(jax.random.key(0), random(1, 4, 4, 512))['params']['kernel']
    assert abs(float(kernel.std()) / np.sqrt(2 / (512 * 9)) - 1) < 0.05


@pytest.mark.parametrize('size', [2, 3, 4])
def test_a_transposed_conv_norm_doubles_exactly(size):
    module = ConvNorm(4, size, stride=2, transposed=True)
    assert module.init_with_output(jax.random.key(0), random(1, 3, 5, 4))[0].shape == (1, 6, 10, 4)


@pytest.mark.parametrize('option', [{'dilation': 2}, {'shuffled': True}])
def test_a_transposed_conv_norm_refuses_what_it_does_not_do(option):
    module = ConvNorm(4, stride=2, groups=2, transposed=True, **option)
    with pytest.raises(ValueError, match='neither dilation nor shuffled'):
        jax.eval_shape(module.init, jax.random.key(0), random(1, 3, 5, 4))


class Mixed(nn.Module):
    """Every shape that folding knows, with two epsilons and both kinds of norm."""

    style: Style = Style()

    @nn.compact
    def __call__(self, x, train=False):
        x = ConvNorm(8, activation='prelu', style=self.style, epsilon=1e-1, name='plain')(x, train)
        x = ConvNorm(8, groups=4, use_bias=True, style=self.style, name='biased')(x, train)
        x = ConvNorm(8, 1, absolute=True, epsilon=1e-1, style=self.style, name='abn')(x, train)
        x = ConvNorm(
            8, stride=2, groups=2, transposed=True, activation='tanh', style=self.style, name='up'
        )(x, train)
        return NormAct('relu', style=self.style, epsilon=1e-1, name='alone')(x, train)


def test_folding_keeps_the_function_and_leaves_no_statistics():
    x = random(2, 4, 5, 3)
    variables = shaken(jax.jit(Mixed().init)(jax.random.key(0), x))
    scale = variables['params']['abn']['norm']['scale']
    variables['params']['abn']['norm']['scale'] = -scale
    norms = folding.norms(Mixed(), x)
    folded = folding.fold(variables, norms)
    module = Mixed(style=Style(folded=True))
    fresh = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (folded['params'], fresh)]
    assert shapes[0] == shapes[1] and not folded['batch_stats']
    np.testing.assert_allclose(module.apply(folded, x), Mixed().apply(variables, x), atol=1e-5)
    # with other norms it is another function
    for change in (lambda e, a: (1e-5, a), lambda e, a: (e, False)):
        other = folding.fold(variables, {path: change(*norm) for path, norm in norms.items()})
        assert np.abs(module.apply(other, x) - Mixed().apply(variables, x)).max() > 1e-3


def test_a_convention_has_no_leaves_and_only_two_names():
    outputs = {'scores': jnp.ones(3), 'resize': Convention('half_pixel')}
    assert jax.jit(lambda x: x)(outputs)['resize'] == 'half_pixel'
    assert len(jax.tree.leaves(outputs)) == 1
    with pytest.raises(ValueError, match='nearest'):
        Convention('nearest')
