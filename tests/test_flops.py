"""MACs against hand counts, the published figures of ESPNetv2, and what `dsrl flops` prints."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dsrl_jax import cli, costs, flops, models
from dsrl_jax.errors import UserError
from dsrl_jax.models.layers import Conv, ConvNorm, NormAct, Style
from dsrl_jax.ops import convolution, resize


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def with_custom_jvp(f):
    g = jax.custom_jvp(f)
    g.defjvps(lambda tangent, y, x: f(tangent))
    return g


def with_custom_vjp(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), None), lambda _, ct: (ct,))
    return g


class Layers(nn.Module):
    """One layer of each kind: [B, H, W, 3] -> scores [B, H, W, 5] and an auxiliary [B, H, W, 7]."""

    @nn.compact
    def __call__(self, image, train=False):
        style = Style(conv_impl='lax')
        x = ConvNorm(4, stride=2, activation='relu', style=style)(image, train)
        x = ConvNorm(6, stride=2, use_bias=True, transposed=True, style=style)(x, train)
        x = NormAct('relu', style=style)(x + 1, train)
        aux = Conv(7, 1, use_bias=True, style=style, name='aux')(x)
        return {'scores': Conv(5, 1, use_bias=True, style=style, name='last')(x), 'aux': aux}


@pytest.fixture(scope='module')
def full():
    return costs.report('espnetv2', (256, 512), dsrl='full')


@pytest.mark.parametrize(
    ('options', 'macs'),
    [
        ({'padding': 1}, 8 * 12 * 9 * 6 * 10),
        ({'padding': 1, 'stride': 2}, 4 * 6 * 9 * 6 * 10),
        ({'padding': 2, 'dilation': 2}, 8 * 12 * 9 * 6 * 10),
        ({'padding': 0}, 6 * 10 * 9 * 6 * 10),
        ({'padding': 1, 'groups': 2}, 8 * 12 * 9 * 3 * 10),
    ],
)
def test_convolution_costs_its_outputs_times_taps_times_channels(options, macs):
    kernel = array(3, 3, 6 // options.get('groups', 1), 10)
    conv = lambda x, w: convolution.conv(x, w, impl='lax', **options)  # noqa: E731
    assert costs.count_macs(conv, array(2, 8, 12, 6), kernel) == 2 * macs


@pytest.mark.parametrize('groups', [1, 2, 6])
def test_transposed_convolution_costs_its_inputs_not_the_zeros_between(groups):
    def up(x, w):
        return convolution.conv_transpose(x, w, groups=groups, impl='lax')

    macs = costs.count_macs(up, array(2, 8, 12, 6), array(3, 3, 6, 12 // groups))
    assert macs == 2 * 8 * 12 * 9 * 6 * 12 // groups


def test_products_count_batch_and_contraction():
    assert costs.count_macs(jnp.matmul, array(5, 7, 3), array(5, 3, 11)) == 5 * 7 * 3 * 11


@pytest.mark.parametrize(
    ('wrapper', 'times'),
    [
        (jax.jit, 1),
        (jax.checkpoint, 1),
        (lambda f: with_custom_jvp(f), 1),
        (lambda f: with_custom_vjp(f), 1),
        (lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=6)[0], 6),
        (lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: f(f(x)), x), 2),
        (lambda f: jax.grad(lambda x: f(x).sum()), 1),
        (lambda f: lambda x: (f(x), x)[1], 0),
        (lambda f: lambda x: jax.jit(lambda x: (f(x), f(x) * 2))(x)[0], 2),
    ],
)
def test_counts_inside_every_kind_of_call_and_only_what_is_needed(wrapper, times):
    weight = jnp.ones((4, 4))
    assert costs.count_macs(wrapper(lambda x: x @ weight), array(3, 4)) == times * 48


def test_resizing_and_pooling_are_left_out_also_in_the_backward_pass():
    def enlarge(x):
        y = resize.bilinear(x, (9, 13), convention='align_corners')
        return resize.adaptive_avg_pool(resize.shrink(y[:, :8, :12], 2), (3, 5)).sum()

    assert costs.count_macs(enlarge, array(1, 5, 7, 3)) == 0
    assert costs.count_macs(jax.grad(enlarge), array(1, 5, 7, 3)) == 0


def test_kinds_of_operations_are_counted_apart():
    pixels, model = 16 * 24, Layers()
    variables = costs.variable_shapes(model, (16, 24))
    found = costs.count(model, variables, (16, 24))
    assert found.conv2d == pixels // 4 * 9 * 3 * 4 + pixels * 6 * 5
    assert found.transposed == pixels // 4 * 9 * 4 * 6
    assert found.biases == pixels * (6 + 5)
    assert found.norms == pixels // 4 * 4 + pixels * 2 * 6
    every = costs.count(model, variables, (16, 24), every_output=True)
    assert every.macs - found.macs == pixels * 6 * 7
    assert every.biases - found.biases == pixels * 7


def test_espnetv2_with_the_official_head_costs_what_is_published(full):
    assert full['params']['network'] == 789_242
    assert full['params']['inference'] == 796_562
    assert round(full['macs']['network'] / 1e6, 2) == 674.46
    assert round(full['macs']['inference'] / 1e6, 2) == 1264.28
    assert full['macs']['sssr'] == 20 * 20 * 9 * (128 * 256 + 256 * 512)
    assert full['flops'] == 2 * full['macs']['inference']
    assert full['transposed']['network'] == full['conv2d']['sssr'] == 0
    assert full['biases']['inference'] == 20 * 128 * 256
    assert full['head'] == 'official_deconv'


def test_training_counts_every_branch(full):
    parts = ('network', 'sssr', 'sisr', 'transform')
    assert full['macs']['training'] == sum(full['macs'][p] for p in parts)
    assert full['params']['training'] == sum(full['params'][p] for p in parts)
    for part, macs in full['macs'].items():
        assert full['conv2d'][part] + full['transposed'][part] == macs
    assert full['macs']['transform'] == 128 * 256 * 32 * 32
    tail = 256 * 512 * (25 * 16 * 64 + 9 * 64 * 32 + 9 * 32 * 12)
    assert tail < full['macs']['sisr'] < 1.2 * tail  # the decoder below ESPCN stays light


def test_depthwise_head_adds_4_4_percent_and_bilinear_nothing():
    found = costs.report('espnetv2', (256, 512), dsrl='sssr', head='depthwise_deconv')
    assert round(100 * found['macs']['sssr'] / found['macs']['network'], 1) == 4.4
    assert set(found['macs']) == {'network', 'sssr', 'inference', 'training'}
    free = costs.report('espnetv2', (256, 512), dsrl='sssr', head='bilinear')
    assert free['macs']['inference'] == free['macs']['network'] == found['macs']['network']


def test_a_head_on_features_saves_the_networks_own_classifier():
    found = costs.report('espnetv2', (64, 128), dsrl='sssr', head='deconv_features')
    plain = costs.report('espnetv2', (64, 128))
    assert found['macs']['network'] < plain['macs']['network']
    assert plain['head'] is None and plain['macs']['inference'] == plain['macs']['training']


@pytest.mark.parametrize(('size', 'giga'), [((320, 640), 1.0538), ((368, 480), 0.9089)])
def test_plain_network_at_other_sizes(size, giga):
    model = models.create('espnetv2', num_classes=20, conv_impl='lax')
    found = costs.count(model, costs.variable_shapes(model, (64, 64)), size)
    assert round(found.macs / 1e9, 4) == giga


def test_a_classifier_is_counted_up_to_its_logits():
    found = costs.report('espnetv2_classifier', (224, 224), num_classes=1000)
    assert found['params']['inference'] == 3_498_136
    assert round(found['macs']['inference'] / 1e9, 3) == 0.286


def test_xla_estimate_is_near_twice_the_macs(full):
    assert 0.9 < full['xla_flops'] / full['flops'] < 1.5


def test_run_prints_a_table_and_one_json_line(capsys):
    found = flops.run('espnetv2', (64, 128), dsrl='sssr', options={'width': 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == found
    assert lines[0].startswith('espnetv2, width 0.5, 20 classes, input 64x128, dsrl sssr')
    head = next(line for line in lines if line.startswith('SSSR head'))
    assert '7,320' in head
    assert 'dsrl flops --paper' in lines[-2]


def test_the_command_passes_options_on(capsys):
    flags = ('--size=32x64', '--variant=vainf', '--output_stride=8', '--num_classes=19')
    assert cli.main(['flops', '--net=deeplabv3plus_resnet101', *flags]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['params']['network'] == 58_753_459
    assert (found['variant'], found['output_stride']) == ('vainf', 8)


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        (['--net=espnetv2', '--variant=x'], ["'variant'", 'width']),
        (['--net=espnetv2', '--output_stride=8'], ["'output_stride'", 'width']),
        (['--net=pspnet_resnet18', '--variant=x'], ["'x'", 'semseg', 'skd']),
        (['--size=64x64'], ['no --net', '--net=NAME --size=HxW', '--paper']),
        (['--paper'], ['--paper', '--size']),
    ],
    ids=str,
)
def test_what_a_network_lacks_or_the_paper_fixes_is_refused(flags, named, capsys):
    size = [] if flags[0].startswith('--size') else ['--size=64x64']
    assert cli.main(['flops', *size, *flags]) == 2
    line = capsys.readouterr().err
    assert all(word in line for word in named), line


def test_a_head_without_a_mode_and_an_illegal_size_are_user_errors():
    with pytest.raises(UserError, match='a mode with SSSR'):
        flops.run('espnetv2', (256, 512), head='bilinear')
    with pytest.raises(UserError, match='16'):
        flops.run('espnetv2', (250, 512), dsrl='full')
