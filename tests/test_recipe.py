"""The Cityscapes recipe: names of the table rows, the originals' settings, published weights."""

import jax
import numpy as np
import pytest

from dsrl_jax import config as configs
from dsrl_jax import inference, losses, optimizer
from dsrl_jax.errors import UserError


@pytest.mark.parametrize('size', ['256x512', '320x640', '384x768', '448x896', '512x1024'])
def test_res_is_the_height_of_a_size(size):
    by_size = configs.load(f'cityscapes:size={size}').to_dict()
    assert configs.load(f'cityscapes:res={size[:3]}').to_dict() == by_size
    assert configs.load(f'cityscapes:res={size[:3]},size={size}').to_dict() == by_size


@pytest.mark.parametrize(
    ('arg', 'words'),
    [('res=257', "did you mean '256'"), ('res=256,size=320x640', 'size=320x640 and res=256')],
)
def test_another_height_is_refused(arg, words):
    with pytest.raises(UserError, match=words):
        configs.load(f'cityscapes:{arg}')


def test_paper_decays_everything_and_lets_all_outputs_of_the_release_compete():
    plain, paper = configs.load('cityscapes'), configs.load('cityscapes:paper')
    assert (plain.optimizer.decay, paper.optimizer.decay) == ('kernels', 'all')
    assert (plain.model.num_classes, plain.eval.classes) == (0, 0)
    assert (paper.model.num_classes, paper.eval.classes) == (20, 20)
    inference.check_outputs(paper, 19)
    assert paper.ce.labels == 'target'
    assert configs.load('cityscapes:paper,dsrl=none').ce.labels == 'input'
    assert configs.load('cityscapes:paper,net=dabnet').model.num_classes == 0


def test_original_gives_ten_times_the_rate_to_the_decoder():
    config = configs.load('cityscapes:original,tiny')
    assert config.ce.weights == 'edgenets_cityscapes' and config.ce.ohem == 0
    network = inference.build_network(config, classes=19)
    params = inference.abstract_variables(network, config)['params']
    factors = optimizer.lr_factors(config.optimizer.lr_groups, params)
    found = {}
    for path, factor in jax.tree.leaves_with_path(factors):
        branch, child = optimizer.path_name(path).split('/')[:2]
        found.setdefault((branch, child == 'encoder'), set()).add(factor)
    assert found == {
        ('network', True): {1.0},
        ('network', False): {10.0},
        ('sssr', False): {10.0},
        ('sisr', False): {1.0},
        ('transform', False): {1.0},
    }


def test_original_mines_where_the_original_does():
    for net, ohem in {'bisenet_resnet18': 0.7, 'dabnet': 0.7, 'pspnet_resnet101': 0.0}.items():
        assert configs.load(f'cityscapes:original,net={net}').ce.ohem == ohem
        assert configs.load(f'cityscapes:net={net}').ce.ohem == 0
    assert configs.load('cityscapes:net=espnetv2').optimizer.lr_groups == ()


def test_published_weights_are_as_printed():
    """The first and last of the 19 classes; nothing of the training split is needed."""
    ends = {'edgenets_cityscapes': (2.8149, 10.1381), 'dabnet_cityscapes': (0.8373, 1.0507)}
    for name, (first, last) in ends.items():
        weights = losses.class_weights(name, np.ones(19), np.ones(19))
        np.testing.assert_allclose(weights[[0, -1]], [first, last])
        with pytest.raises(UserError, match='19 class weights'):
            losses.class_weights(name, np.ones(11), np.ones(11))
    pixels = np.array([900.0, 100])
    enet = losses.class_weights('inverse_log_enet', pixels, pixels)
    np.testing.assert_allclose(enet, 1 / np.log(1.02 + np.array([0.9, 0.1])), rtol=1e-6)
