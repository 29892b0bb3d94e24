"""DSRL around a network of the user's own: what it must return, and what it need not."""

import jax
import jax.numpy as jnp
import pytest
import toy_network
from flax import linen as nn

from dsrl_jax import models
from dsrl_jax.errors import UserError
from dsrl_jax.models import dsrl

SIZE, CLASSES = (16, 24), 5


def images():
    return jnp.zeros((2, *SIZE, 3))


class Plain(nn.Module):
    """What a user writes first: flax layers, two maps, no field or attribute of ours."""

    num_classes: int

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), strides=4)(image))
        return {'scores': nn.Conv(self.num_classes, (1, 1))(x), 'encoded': x}


def test_a_network_needs_to_name_no_more_than_scores_and_features():
    with pytest.raises(UserError, match='without `multiple`, and no stride'):
        dsrl.wrap(Plain(CLASSES), num_classes=CLASSES, features='encoded')
    model = dsrl.wrap(Plain(CLASSES), num_classes=CLASSES, features='encoded', stride=4)
    assert model.multiple == 4 and model.aux_weight == 1.0
    outputs, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images(), train=True)
    )
    height, width = (2 * n for n in SIZE)
    assert outputs['scores'].shape == (2, height, width, CLASSES)
    assert outputs['sr'].shape == (2, height, width, 3) and outputs['resize'] == 'half_pixel'
    assert 'skip' not in variables['params']['sisr']
    plain = dsrl.wrap(
        Plain(CLASSES), num_classes=CLASSES, features='encoded', stride=4, mode='none'
    )
    outputs = jax.eval_shape(lambda: plain.init_with_output(jax.random.key(0), images()))[0]
    assert outputs['resize'] == 'half_pixel'


class Heatmaps(toy_network.Toy):
    """Its result is a map at half of the image."""

    result_stride = 2


def test_a_result_smaller_than_the_image_grows_by_the_scale_alone():
    model = dsrl.wrap(Heatmaps(CLASSES), num_classes=CLASSES)
    outputs, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images(), train=True)
    )
    assert outputs['scores'].shape == (2, *SIZE, CLASSES)
    assert set(variables['params']['sssr']) == {'up0'}
    assert outputs['sr'].shape == (2, 2 * SIZE[0], 2 * SIZE[1], 3)


class Odd(nn.Module):
    """Returns whatever it is told to."""

    result: object
    multiple = 1

    def __call__(self, image, train=False):
        return self.result


@pytest.mark.parametrize(
    ('result', 'message'),
    [
        (1, 'returns no map `scores`'),
        ({'logits': 1}, 'returns no map `scores`'),
        ({'scores': 1, 'resize': 'half_pixels'}, "did you mean 'half_pixel'"),
        ({'scores': 1}, 'model.tap'),
    ],
)
def test_what_a_network_returns_is_checked(result, message):
    model = dsrl.wrap(Odd(result), num_classes=CLASSES)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images()))


def test_a_classifier_and_a_network_without_train_are_refused():
    with pytest.raises(UserError, match=r'resnet18.*a classifier.*model\.init_from'):
        models.create('resnet18', num_classes=10, dsrl='full')
    module = nn.Dense(3)
    with pytest.raises(UserError, match='Dense without train'):
        dsrl.wrap(module, num_classes=3, stride=1)
