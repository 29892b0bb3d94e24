"""Frozen batch norms: statistics bit-equal, the gradient of the network in evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from refusals import TINY, refused

from dsrl_jax import config as configs
from dsrl_jax import inference, losses, optimizer
from dsrl_jax import state as states
from dsrl_jax.errors import UserError
from dsrl_jax.models import freezing
from dsrl_jax.step import make_forward, make_train_step

CLASSES, SIZE = 5, (32, 64)
GAIN_AND_BIAS = (('norm/(scale|bias)$', 0.0),)


def configured(freeze, dsrl='none'):
    config = configs.load(f'synthetic:tiny,net=toy_network:Toy,dsrl={dsrl}')
    config.model.freeze_bn, config.model.width = freeze, 1.0
    config.data.size = SIZE
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay = 'all'
    config.ema = 0.5
    return config


def batch_of():
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (4, *SIZE)).astype(np.uint8)
    target = rng.integers(0, 256, (4, *SIZE, 3)).astype(np.uint8)
    return {'target': target, 'label': label, 'mask': np.ones(label.shape, bool)}


def trained(freeze, dsrl='none', groups=()):
    """(state before, state after two steps); the running statistics are those of no batch."""
    config = configured(freeze, dsrl)
    config.optimizer.lr_groups = groups
    network, state = beginning(dsrl)
    tx, schedule = optimizer.make_optimizer(config.optimizer, state.params, 10)
    state = states.create(state.variables(), tx, ema=True)
    step = jax.jit(make_train_step(network, tx, losses.make_loss(config), config, schedule))
    after, _ = step(step(state, batch_of())[0], batch_of())
    return jax.device_get((state, after))


@functools.cache
def beginning(dsrl='none'):
    """(network, state before an optimizer)."""
    config = configured('', dsrl)
    network = inference.build_network(config, CLASSES)
    small = inference.input_size(config, SIZE)
    variables = jax.jit(lambda k: states.init_variables(network, small, k))(jax.random.key(0))
    # Below the mean of what they see, so that no ReLU is dead.
    variables['batch_stats'] = jax.tree.map(lambda x: x - 0.3, variables['batch_stats'])
    tx, _ = optimizer.make_optimizer(config.optimizer, variables['params'], 10)
    return network, states.create(variables, tx, ema=False)


def moved(before, after):
    """Paths of the leaves that differ."""
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after))
    return {optimizer.path_name(p) for (p, a), b in pairs if not np.array_equal(a, b)}


def paths(tree):
    return {optimizer.path_name(path) for path, _ in jax.tree.leaves_with_path(tree)}


def test_statistics_are_bit_equal_after_steps_and_everything_trains():
    before, after = trained('.', 'full')
    assert moved(before.batch_stats, after.batch_stats) == set()
    assert moved(before.params, after.params) == paths(before.params)
    branches = {path.split('/')[0] for path in paths(before.batch_stats)}
    assert branches == {'network', 'sssr', 'sisr', 'transform'}


def test_a_regex_chooses_the_norms():
    before, after = trained('stem')
    names = {'network/deep/norm/mean', 'network/deep/norm/var'}
    assert names < paths(before.batch_stats)
    assert moved(before.batch_stats, after.batch_stats) == names
    before, after = trained('')
    assert moved(before.batch_stats, after.batch_stats) == paths(before.batch_stats)


def test_scale_and_bias_are_held_by_a_learning_rate_of_nothing():
    """Weight decay of all parameters does not move them either."""
    before, after = trained('.', groups=GAIN_AND_BIAS)
    held = {path for path in paths(before.params) if '/norm/' in path}
    assert held and moved(before.params, after.params) == paths(before.params) - held


def test_the_gradient_is_that_of_the_network_in_evaluation():
    network, state = beginning()
    config, batch = configured('.'), batch_of()
    loss = losses.make_loss(config)
    prepare = make_forward(network, loss, config)

    class Evaluating:
        """The network, whatever it is told, in evaluation."""

        @staticmethod
        def apply(variables, image, *, train, mutable, rngs):
            assert train and mutable and rngs
            return network.apply(variables, image, train=False), variables

    as_evaluated = make_forward(Evaluating, loss, configured(''))

    def gradient(prepare):
        def total(params):
            return prepare(state, batch)[1](params)[0]['total']

        return jax.device_get(jax.jit(jax.value_and_grad(total))(state.params))

    (value, found), (expected_value, expected) = gradient(prepare), gradient(as_evaluated)
    assert value == expected_value
    assert not moved(expected, found)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found))


class Foreign(nn.Module):
    """Flax's own norm, told how to run in its call or in its field."""

    in_call: bool

    @nn.compact
    def __call__(self, x, train=False):
        if self.in_call:
            return nn.BatchNorm(name='bn')(x, not train)
        return nn.BatchNorm(use_running_average=not train, name='bn')(x)


def test_norms_of_flax_are_frozen_too():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5)), jnp.float32)

    def run(in_call, regex):
        module = Foreign(in_call)
        variables = module.init(jax.random.key(0), x)
        with freezing.frozen_norms(regex):
            y, updated = module.apply(variables, x, train=True, mutable=['batch_stats'])
        return y, moved(variables['batch_stats'], updated['batch_stats'])

    y, changed = run(True, 'bn')
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert not changed and run(True, 'norm')[1] == run(False, '')[1] == {'bn/mean', 'bn/var'}
    with pytest.raises(UserError, match='bn: found a field of the norm'):
        run(False, 'bn')


@pytest.mark.parametrize(
    ('regex', 'words'),
    [('True', ("'True', which no norm matches", 'network/')), ('(', ("'(': ", 'a regex'))],
)
def test_a_regex_of_no_norm_is_refused(regex, words, tmp_path, capsys):
    run = ['train', f'--config={TINY}', f'--workdir={tmp_path / "run"}']
    refused(capsys, [*run, f'--config.model.freeze_bn={regex}'], 'config.model.freeze_bn', *words)
    assert not (tmp_path / 'run').exists()
