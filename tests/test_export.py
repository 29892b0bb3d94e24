"""Exported models: equal to the training network, folded, as StableHLO, and used to predict."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

import dsrl_jax
from dsrl_jax import cli, inference
from dsrl_jax import config as configs
from dsrl_jax.data import pipeline
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError
from dsrl_jax.step import make_eval_step


@pytest.fixture(scope='module', params=['exact', 'deploy'])
def exported(request, tiny_run, tmp_path_factory):
    """(kind, model directory, what the command printed)."""
    folder = tmp_path_factory.mktemp('export') / 'model'
    from dsrl_jax import export

    model, variables, step = inference.from_workdir(tiny_run)
    report = export.export(model, variables, folder, kind=request.param, step=step, source='a test')
    return request.param, folder, report


def test_export_is_the_training_network(exported):
    kind, folder, report = exported
    if kind == 'exact':
        assert report['difference'] == 0
    else:
        assert report['difference'] < 1e-4 * report['span']
    assert report['agreement'] > 0.999 and report['stablehlo_agreement'] > 0.999
    model = dsrl_jax.load(folder)
    assert set(model.variables['params']) == {'network', 'sssr'}
    assert model.folded == (kind == 'deploy')
    names = {str(key.key) for path, _ in jax.tree.leaves_with_path(model.variables) for key in path}
    assert ('mean' in names) == (kind == 'exact')  # folded: no statistics left
    card = (folder / 'card.md').read_text()
    assert 'without' in card and 'multiply-adds' in card


def test_exported_file_takes_any_batch(exported):
    _, folder, _ = exported
    model = dsrl_jax.load(folder)
    function = jax_export.deserialize((folder / 'model.jaxexport').read_bytes())
    assert set(function.platforms) == {'cpu', 'cuda', 'tpu'}
    weights = jax.tree.map(np.asarray, model.variables)
    size = configs.eval_size(model.config)
    source = SyntheticSource('test', size=size, length=3)
    images = np.stack([source[i]['image'] for i in range(3)])
    found = np.asarray(function.call(weights, images))  # the export itself tried two
    assert found.shape == (3, *size) and found.dtype == np.uint8
    expected = np.asarray(model.label_map(model.variables, images))
    assert (found == expected).mean() > 0.999


def test_prediction_is_what_evaluation_scores(exported):
    """The same image through `predict` and through the evaluation step: the same classes."""
    _, folder, _ = exported
    model = dsrl_jax.load(folder)
    config = model.config
    source = SyntheticSource('test', size=config.data.size, length=2)
    batch = next(iter(pipeline.eval_batches(source, config.data, batch_size=2)))
    step = jax.jit(make_eval_step(model.network, config, len(model.classes), sr=False))
    found = np.asarray(step(model.variables, batch)['prediction'])
    for i in range(2):
        np.testing.assert_array_equal(model.predict(source[i]['image']).labels, found[i])


@pytest.mark.parametrize('size', [(64, 128), (37, 51), (200, 90), (7, 300)])
def test_predict_takes_any_size(exported, size):
    _, folder, _ = exported
    model = dsrl_jax.load(folder)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    for resize in (True, False):
        result = model.predict(image, resize=resize)
        assert result.labels.shape == size and result.labels.max() < len(model.classes)
        assert result.overlay().shape == (*size, 3)
        assert abs(sum(result.shares().values()) - 1) < 1e-6


def test_predict_refuses_what_is_no_image(exported):
    _, folder, _ = exported
    model = dsrl_jax.load(folder)
    with pytest.raises(UserError, match='uint8'):
        model.predict(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UserError, match='uint8'):
        model.predict(np.zeros((4, 4), np.uint8))


def test_predict_command_writes_ids_colours_overlay(exported, tmp_path, capsys):
    _, folder, _ = exported
    picture = SyntheticSource('test', size=(64, 128), length=1)[0]['image']
    Image.fromarray(picture).save(tmp_path / 'street.png')
    output = tmp_path / 'out'
    arguments = ['predict', f'--model={folder}', f'--output={output}', str(tmp_path / 'street.png')]
    assert cli.main(arguments) == 0
    ids = np.asarray(Image.open(output / 'street_ids.png'))
    np.testing.assert_array_equal(ids, dsrl_jax.load(folder).predict(picture).labels)
    assert Image.open(output / 'street_overlay.png').size == (128, 64)
    assert Image.open(output / 'street_colors.png').mode == 'RGB'


def test_model_and_run_score_alike(exported, tiny_run, tmp_path, capsys):
    kind, folder, _ = exported
    lines = {}
    for flag in (f'--model={folder}', f'--workdir={tiny_run}'):
        assert cli.main(['eval', flag, '--split=test', f'--output={tmp_path / flag[2:7]}']) == 0
        lines[flag] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    ours, theirs = lines.values()
    tolerance = 0 if kind == 'exact' else 1e-3
    assert abs(ours['miou'] - theirs['miou']) <= tolerance
    assert 'psnr' in theirs and 'psnr' not in ours  # the SR branch is not exported


def test_a_spoiled_model_directory_says_so(exported, tmp_path):
    _, folder, _ = exported
    for name, words in (('config.json', 'config.json'), ('params', 'params')):
        copy = tmp_path / name.replace('.', '_')
        shutil.copytree(folder, copy)
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.write_text('{')
        with pytest.raises(UserError, match=words):
            dsrl_jax.load(copy)
