"""What every network must do, whatever its layers: the contract, DSRL around it, one training step.

Values are the golden sets' business (test_golden).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from dsrl_jax import config as configs
from dsrl_jax import inference, losses, models, optimizer, pretrained, state, step
from dsrl_jax.foreign import ENCODER, TABLES
from dsrl_jax.models import dsrl

NETWORKS = list(models.NETWORKS)
WIDER = 'hrnet_w48'  # the graph of a sibling at twice the arithmetic: traced, not trained
# Trained with one module a stage, one block a branch: the same layers, a fifth of the programs.
SHORTER = {'hrnet_w32': 'dsrl_jax.models.hrnet:Small'}
# Parameters that no loss reaches, because the original never uses them.
UNUSED = {
    'espnetv2_old': {f'encoder/level{i}_0/eesp/module_act/slope' for i in (2, 3, 4)},
    'erfnet': {'encoder_classifier/kernel', 'encoder_classifier/bias'},
}
CLASSES, SCALE = 4, 2


@functools.cache
def shapes(name, size, mode=None):
    """(outputs, variables) of a network, of `size`, in training; nothing runs."""
    module = models.create(name, num_classes=CLASSES, dsrl=mode)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(
        functools.partial(module.init_with_output, train=True), jax.random.key(0), image
    )


def smallest(name):
    """A small legal size that is no square and no power of two in one direction."""
    unit = max(32, models.create(name, num_classes=CLASSES).multiple)
    return (unit, 3 * unit)


@pytest.mark.parametrize('name', NETWORKS)
def test_the_dict_of_maps_and_their_strides(name):
    size = smallest(name)
    module = models.create(name, num_classes=CLASSES)
    outputs, variables = shapes(name, size)
    wanted = {'scores': module.score_stride, 'features': module.feature_stride}
    for key, stride in wanted.items():
        for n, m in zip(size, outputs[key].shape[1:3]):
            assert abs(n / stride - m) <= 1, (key, outputs[key].shape)  # some pyramids round up
    assert outputs['scores'].shape[-1] == CLASSES
    for key in ('low', 'high'):
        assert outputs[key].ndim == 4
    assert np.prod(outputs['high'].shape[1:3]) <= np.prod(outputs['low'].shape[1:3])
    assert outputs['resize'] in ('align_corners', 'half_pixel')
    for aux in outputs.get('aux', {}).values():
        assert aux.shape[-1] == CLASSES and module.aux_weight > 0
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize('name', [*models.NETWORKS, *models.CLASSIFIERS])
def test_names_of_weights_are_known_one_to_one(name):
    for variant, table in TABLES[name].items():
        options = {'variant': variant} if variant else {}
        module = models.create(name, num_classes=CLASSES, **options)
        leaves = pretrained._leaves(module)
        keys = pretrained._keys(leaves, table)
        assert len(set(keys.values())) == len(leaves)
        assert table.classes in keys.values()
        if table.backbone:
            encoder = [place for place in leaves if place[1] == ENCODER]
            keys = pretrained._keys(encoder, pretrained.find_table(table.backbone))
            assert encoder and len(set(keys.values())) == len(encoder)
            backbone = pretrained._leaves(models.create(table.backbone, num_classes=CLASSES))
            deep = ('stem0', 'stem1', 'stem2', 'layer1_block0')  # where a deep stem differs
            assert all(place in backbone for place in encoder if place[2] not in deep)


@pytest.mark.parametrize('name', NETWORKS)
def test_dsrl_around_it(name):
    size = smallest(name)
    large = tuple(SCALE * n for n in size)
    plain, inner = shapes(name, size)
    outputs, variables = shapes(name, size, 'full')
    module = models.create(name, num_classes=CLASSES)
    stride = getattr(module, 'result_stride', 1)
    assert outputs['scores'].shape == (1, large[0] // stride, large[1] // stride, CLASSES)
    assert outputs['sr'].shape == (1, *large, 3)
    assert outputs['seg_feature'].shape == (*plain['features'].shape[:3], 32)
    assert outputs['sr_feature'].shape == (1, *size, 32)
    assert set(variables['params']) == set(dsrl.BRANCHES)
    assert variables['params']['network'] == inner['params']
    kept = dsrl.inference_variables(variables)
    assert set(kept['params']) == set(dsrl.INFERENCE)


VARIANTS = [
    *((name, {}) for name in NETWORKS if name != WIDER),
    ('bisenet_resnet18', {'variant': 'coincheung'}),
    ('bisenet_resnet18', {'variant': 'ooooverflow'}),
    ('deeplabv3plus_resnet101', {'variant': 'vainf', 'output_stride': 8}),
    ('pspnet_resnet18', {'variant': 'semseg'}),
    ('pspnet_resnet18', {'output_stride': 16}),
    ('espnet', {'variant': 'test'}),
]


@pytest.mark.parametrize('name, options', VARIANTS)
def test_sizes_change_no_parameter_and_the_compute_type_is_kept(name, options):
    """What is trained at one size is evaluated at another; 368x480 is the paper's CamVid."""
    module = models.create(name, num_classes=CLASSES, dsrl='full', dtype='bfloat16', **options)
    trees = []
    others = [(713, 713), (721, 721)] if 1 in module.offsets else [(368, 480), (96, 160)]
    legal = [n for n in others if all(m % module.multiple in module.offsets for m in n)]
    for wanted in ((64, 96), legal[0]):
        image = jax.ShapeDtypeStruct((2, *wanted, 3), jnp.float32)
        init = functools.partial(module.init_with_output, train=True)
        outputs, variables = jax.eval_shape(init, jax.random.key(0), image)
        trees.append(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables))
        large = tuple(SCALE * n // module.result_stride for n in wanted)
        assert outputs['scores'].shape[1:3] == large
        assert outputs['sr'].shape[1:3] == tuple(SCALE * n for n in wanted)
        maps = {key: outputs[key] for key in ('scores', 'sr', 'seg_feature', 'sr_feature')}
        assert {x.dtype.name for x in maps.values()} == {'bfloat16'}
    assert trees and all(tree == trees[0] for tree in trees)


def test_auxiliary_losses_do_not_depend_on_the_head():
    """Their maps are brought to size by the network's own convention, whatever the head's is."""
    config = configs.base()
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (1, 32, 32)).astype(np.uint8)
    aux = {'aux': jnp.asarray(rng.normal(size=(1, 5, 5, CLASSES)), jnp.float32)}

    class Network(nn.Module):
        multiple = 16

        @nn.compact
        def __call__(self, image, train=False):
            scores = jnp.zeros((1, 4, 4, CLASSES))
            maps = {'scores': scores, 'features': scores, 'aux': aux}
            return {**maps, 'resize': models.Convention('align_corners')}

    terms = []
    for mode in ('none', 'sssr'):
        model = dsrl.wrap(Network(), num_classes=CLASSES, mode=mode)
        outputs, _ = model.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        loss = losses.make_loss(config)
        terms.append(loss(outputs, {'label': label}, step=0, key=jax.random.key(0))['aux'])
    assert terms[0] == terms[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in NETWORKS if n not in (WIDER, 'espnetv2')])
def test_one_step_of_dsrl_moves_every_leaf_that_has_a_gradient(name):
    """Of all but ESPNetv2, which test_step trains."""
    config = configs.base()
    config.model.update(net=SHORTER.get(name, name), dsrl='full', dropout=0.0)
    config.data.size = tuple(SCALE * n for n in smallest(name))
    config.optimizer.update(name='adam', lr=1e-3, weight_decay=0.0)
    config.fa.grid = 16
    network = inference.build_network(config, CLASSES)
    shapes = inference.abstract_variables(network, config)
    variables = filled(shapes)
    tx, schedule = optimizer.make_optimizer(config.optimizer, variables['params'], 10)
    loss = losses.make_loss(config, aux_weight=network.aux_weight)
    train = jax.jit(step.make_train_step(network, tx, loss, config, schedule))
    rng = np.random.default_rng(1)
    batch = {
        'target': rng.integers(0, 256, (2, *config.data.size, 3), np.uint8),
        'label': rng.integers(0, CLASSES, (2, *config.data.size)).astype(np.uint8),
        'mask': np.ones((2, *config.data.size), bool),
    }
    after, scalars = train(state.create(variables, tx, ema=False), batch)
    assert all(np.isfinite(value) for value in scalars.values()), scalars
    terms = {'ce', 'mse', 'fa'} | ({'aux'} if hasattr(network.network, 'aux_weight') else set())
    assert terms <= set(scalars)
    before, after = (
        traverse_util.flatten_dict(tree, sep='/') for tree in (variables['params'], after.params)
    )
    still = {path for path in before if np.array_equal(before[path], after[path])}
    assert still == {f'network/{path}' for path in UNUSED.get(name, ())}


def filled(shapes):
    """Random numpy leaves of the usual sizes: no random keys to compile, activations near 1."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == 'kernel':
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (spread * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)
        if path[-1].key in ('bias', 'mean'):
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(fill, shapes)
