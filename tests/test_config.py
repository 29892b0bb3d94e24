"""Configurations: arguments, overrides, files, and that every shipped one builds."""

import json
import pathlib

import jax
import pytest

from dsrl_jax import config as configs
from dsrl_jax import inference
from dsrl_jax.errors import UserError

SHIPPED = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', SHIPPED, ids=lambda p: p.stem)
@pytest.mark.parametrize('mode', configs.DSRL_MODES)
@pytest.mark.parametrize('tiny', [False, True])
def test_every_config_builds(path, mode, tiny):
    config = configs.load(f'{path}:dsrl={mode}' + (',tiny' if tiny else ''))
    network = inference.build_network(config, classes=11)
    inference.check_size(network, config)
    shapes = inference.abstract_variables(network, config)
    branches = {'none': 1, 'sssr': 2, 'sssr+sisr': 3, 'full': 4}
    assert len(shapes['params']) == branches[mode]
    assert all(leaf.dtype == 'float32' for leaf in jax.tree.leaves(shapes))
    assert configs.total_steps(config, images=100) > 0


def test_shipped_name_needs_no_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configs.load('camvid:dsrl=none').model.dsrl == 'none'
    assert configs.load('configs/camvid.py').data.name == 'camvid'


def test_overrides_convert_to_the_type_of_the_field():
    overrides = {
        'optimizer.lr': '1',
        'data.size': '(64,96)',
        'data.flip': 'false',
        'data.eval_size': '(32,64)',
        'model.net': 'espnetv2',
        'steps': '7',
    }
    config = configs.load('synthetic', overrides.items())
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)
    assert config.data.size == (64, 96) and config.data.eval_size == (32, 64)
    assert config.data.flip is False and config.steps == 7


@pytest.mark.parametrize(
    ('spec', 'dotted', 'text', 'words'),
    [
        ('camvidd', '', '', ['camvidd', "did you mean 'camvid'"]),
        ('camvid:nett=x', '', '', ["'nett'", "did you mean 'net'"]),
        ('camvid:width=wide', '', '', ['wide', 'float']),
        ('camvid', 'optimizer.lrr', '1', ["'lrr'", "did you mean 'lr'"]),
        ('camvid', 'optimiser.lr', '1', ["'optimiser'", "did you mean 'optimizer'"]),
        ('camvid', 'optimizer', '1', ['a section']),
        ('camvid', 'steps', 'many', ["'many'", 'int']),
        ('camvid', 'model.dsrl', 'ful', ["'ful'", "did you mean 'full'"]),
        ('camvid', 'fa.sampling', 'pool', ["'pool'", "did you mean 'pool8'"]),
        ('camvid', 'scale', '3', ['3', '1, 2, 4']),
        ('camvid', 'data.eval_size', '5', ['tuple']),
    ],
)
def test_mistakes_name_the_nearest(spec, dotted, text, words):
    with pytest.raises(UserError) as caught:
        configs.load(spec, [(dotted, text)] if dotted else [])
    line = str(caught.value)
    assert '\n' not in line
    for word in words:
        assert word in line


def test_unknown_network_and_head_name_the_nearest():
    config = configs.load('camvid', [('model.net', 'espnet2')])
    with pytest.raises(UserError, match="did you mean 'espnetv2'"):
        inference.build_network(config, classes=11)
    config = configs.load('camvid', [('sssr.head', 'bilinaer')])
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        inference.build_network(config, classes=11)


def test_illegal_size_names_the_multiple():
    config = configs.load('camvid', [('data.size', '(360,480)')])
    network = inference.build_network(config, classes=11)
    with pytest.raises(UserError, match=r'multiples of 32 \(16 for espnetv2'):
        inference.check_size(network, config)


def test_saved_config_comes_back_equal(tmp_path):
    config = configs.load('camvid:net=espnetv2', [('optimizer.lr_groups', "(('network', 0.1),)")])
    (tmp_path / 'config.json').write_text(json.dumps(configs.to_dict(config)))
    assert configs.load(str(tmp_path / 'config.json')).to_dict() == config.to_dict()


def test_saved_config_with_a_foreign_key_is_refused(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'data': {'bach_size': 3}}))
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        configs.load_json(path)


def test_length_is_steps_or_epochs():
    config = configs.load('camvid')
    assert configs.total_steps(config, images=367) == round(300 * 367 / 16)
    config.steps = 5
    with pytest.raises(UserError, match='exactly one'):
        configs.total_steps(config, images=367)
