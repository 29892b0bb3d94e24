"""Damaged and foreign runs, checkpoints, models and weight files: one line that names them each.

All runs go through `cli.main`; one run of a toy network serves the whole file.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from golden import golden_weights
from PIL import Image
from refusals import TINY, refused

from dsrl_jax import cli, config

GOLDEN = pathlib.Path(__file__).with_name('golden')
TOY = ('train', f'--config={TINY}', '--config.checkpoint.every=2')


@pytest.fixture(scope='module')
def toy_run(tmp_path_factory):
    """The workdir of a finished run of the toy network, checkpoints after steps 2 and 4."""
    workdir = tmp_path_factory.mktemp('toy') / 'run'
    assert cli.main([*TOY, '--config.steps=4', f'--workdir={workdir}']) == 0
    return workdir


@pytest.fixture(scope='module')
def toy_model(toy_run, tmp_path_factory):
    """The toy run, exported."""
    output = tmp_path_factory.mktemp('toy_model') / 'model'
    argv = ['export', f'--workdir={toy_run}', f'--output={output}', '--format=params']
    assert cli.main(argv) == 0
    return output


@pytest.fixture
def run(toy_run, tmp_path):
    """A copy of the toy run that a test may spoil."""
    return shutil.copytree(toy_run, tmp_path / 'run')


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (96, 64), (90, 120, 60)).save(path)


def resuming(run, *changes):
    return (*TOY, '--config.steps=4', *changes, f'--workdir={run}')


@pytest.mark.parametrize(
    ('change', 'was'),
    [('optimizer.lr=0.01', '0.003'), ('sisr.trunk=32', '64'), ('data.batch_size=8', '4')],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, was, run, capsys):
    field, _, value = change.partition('=')
    named = (
        f'config {field}',
        f'found {value}',
        f'expected {was}, as in the checkpoint',
        'workdir',
    )
    refused(capsys, resuming(run, f'--config.{change}'), *named)
    assert config.get(config.load_json(run / 'config.json'), field) == float(was), 'overwritten'


def test_a_half_written_checkpoint_is_passed_over_and_said(run, capsys):
    largest = max((run / 'checkpoints/4').rglob('*'), key=lambda p: p.is_file() * p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert cli.main(list(resuming(run))) == 0
    streams = capsys.readouterr()
    warning = [line for line in streams.err.splitlines() if 'checkpoints/4' in line]
    assert len(warning) == 1 and 'using step 2' in warning[0], streams.err
    assert 'Traceback' not in streams.err and 'resumed at step 2' in streams.out
    steps = [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4] and (run / 'checkpoints/4').is_dir()


def test_no_checkpoint_can_be_read(run, capsys):
    for path in (run / 'checkpoints').glob('*/state/*'):
        shutil.rmtree(path) if path.is_dir() else path.write_bytes(b'')
    named = ('checkpoints', 'step 4', 'step 2', 'one that can be read', 'train again')
    refused(capsys, ('eval', f'--workdir={run}'), *named)


def test_a_run_that_diverges_names_step_and_terms_and_keeps_no_such_state(tmp_path, capsys):
    flags = ('--config.optimizer.lr=1e30', '--config.steps=6', f'--workdir={tmp_path / "w"}')
    line = refused(capsys, (*TOY, *flags), 'train/ce=', 'train/total=', 'lower the learning rate')
    step = int(re.match(r'error: step (\d+): found non-finite', line).group(1))
    saved = [int(p.name) for p in (tmp_path / 'w/checkpoints').iterdir()]
    assert all(number < step for number in saved)


def test_a_workdir_below_a_file(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    argv = (*TOY, '--config.steps=4', f'--workdir={tmp_path / "file/run"}')
    refused(capsys, argv, str(tmp_path / 'file/run'), 'a folder to write', 'choose')


@pytest.mark.parametrize('flag', ['--workdir', '--model'])
@pytest.mark.parametrize('there', [False, True])
def test_a_folder_that_is_no_run_and_no_model(flag, there, tmp_path, capsys):
    folder = tmp_path / 'folder'
    if there:
        folder.mkdir()
    refused(capsys, ['eval', f'{flag}={folder}'], str(folder), 'expected')


def test_a_run_whose_notes_are_damaged(run, capsys):
    (run / 'dataset.json').write_text('{')
    refused(capsys, ['eval', f'--workdir={run}'], 'dataset.json', 'check the directory')
    (run / 'config.json').write_text('{"seed": 0')
    refused(capsys, ['eval', f'--workdir={run}'], 'config.json', 'a saved configuration')


def test_scoring_on_other_classes_or_with_a_field_of_training(toy_run, tmp_path, capsys):
    argv = ['eval', f'--workdir={toy_run}', f'--output={tmp_path / "o"}']
    refused(capsys, [*argv, '--split=tset'], "'tset'", "did you mean 'test'?")
    refused(capsys, [*argv, '--config.optimizer.lr=1.0'], 'config.optimizer.lr', 'leave it out')
    save(tmp_path / 'set/images/val/a.png')
    (tmp_path / 'set/classes.txt').write_text('road 128 64 128\nsky 70 130 180\ncar 0 0 142\n')
    other = ['--config=folder:tiny', f'--config.data.root={tmp_path / "set"}']
    refused(capsys, [*argv, *other], 'road, sky, car', 'sky, building', 'trained for')


def test_comparing_what_was_not_scored_or_has_no_name(toy_run, tmp_path, capsys):
    argv = ['compare', f'--output={tmp_path / "report"}']
    scores = f'{toy_run}/eval_test/scores.json'
    refused(capsys, [*argv, f'toy={toy_run}'], scores, 'no such file', 'dsrl eval', 'first')
    refused(capsys, [*argv, toy_run], str(toy_run), 'NAME=WORKDIR', 'name every run')
    refused(capsys, [*argv, f'toy={tmp_path}'], str(tmp_path), 'no config.json')


def test_export_over_what_is_there_and_of_an_unknown_kind(toy_run, tmp_path, capsys):
    argv = ['export', f'--workdir={toy_run}']
    refused(capsys, [*argv, f'--output={tmp_path}'], str(tmp_path), 'exists', 'remove it')
    free = [*argv, f'--output={tmp_path / "m"}']
    refused(capsys, [*free, '--kind=exakt'], "'exakt'", "did you mean 'exact'?")
    refused(capsys, [*free, '--format=stablehol'], "did you mean 'stablehlo'?")


def test_predicting_what_is_no_picture(toy_model, tmp_path, capsys):
    argv = ['predict', f'--model={toy_model}', f'--output={tmp_path / "o"}']
    (tmp_path / 'text.png').write_text('no picture')
    refused(capsys, [*argv, tmp_path / 'text.png'], 'text.png', 'no image', 'PNG or JPEG')
    refused(capsys, [*argv, tmp_path / 'gone.png'], 'gone.png', 'no such file')
    (tmp_path / 'empty').mkdir()
    refused(capsys, [*argv, tmp_path / 'empty'], 'empty', 'no pictures', '.jpg')
    save(tmp_path / 'same/x.png')
    save(tmp_path / 'again/x.png')
    twice = [tmp_path / 'same', tmp_path / 'again']
    refused(capsys, [*argv, *twice], 'again/x.png', 'same/x.png', 'different folders')


def test_results_that_cannot_be_written(toy_run, toy_model, tmp_path, capsys):
    save(tmp_path / 'x.png')
    (tmp_path / 'file').write_text('')
    argv = ['predict', f'--model={toy_model}', f'--output={tmp_path / "file"}', tmp_path / 'x.png']
    refused(capsys, argv, str(tmp_path / 'file'), 'a folder to write', 'choose')
    argv = ['export', f'--workdir={toy_run}', f'--output={tmp_path / "file/m"}', '--format=params']
    refused(capsys, argv, str(tmp_path / 'file/m'), 'a folder to write', 'choose')
    argv = ['data', 'show', '--dataset=synthetic', '--images=1', f'--output={tmp_path / "file"}']
    refused(capsys, argv, str(tmp_path / 'file'), 'a folder to write', 'choose')


def test_a_model_directory_that_is_damaged(toy_model, tmp_path, capsys):
    model = shutil.copytree(toy_model, tmp_path / 'm')
    argv = ['predict', f'--model={model}', f'--output={tmp_path / "o"}', 'x.png']
    shutil.rmtree(model / 'params')
    refused(capsys, argv, str(model / 'params'), 'saved parameters', 'export again')
    saved = json.loads((model / 'config.json').read_text())
    del saved['classes']
    (model / 'config.json').write_text(json.dumps(saved))
    refused(capsys, argv, 'config.json', 'no classes', 'dsrl export')


def converting(path, tmp_path, *more):
    return ('convert', '--net=espnetv2', f'--weights={path}', f'--output={tmp_path / "m"}', *more)


GAMMA = 'base_net.level1.bn.weight'


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({GAMMA: None}, ['1 missing', 'level1/norm/scale']),
        ({'surplus.weight': np.ones(3)}, ['1 unknown', 'surplus.weight']),
        ({GAMMA: np.ones(16)}, ['1 misshapen', GAMMA, '[16]', '[32]']),
    ],
    ids=['missing', 'extra', 'misshapen'],
)
def test_weights_that_do_not_fit_the_network(change, named, tmp_path, capsys):
    weights = golden_weights.state_dict(GOLDEN / 'ESPNetv2_s2.0_20.keys.json') | change
    np.savez(tmp_path / 'w.npz', **{k: v for k, v in weights.items() if v is not None})
    named = ('espnetv2', 'check the network', *named)
    refused(capsys, converting(tmp_path / 'w.npz', tmp_path), *named)


def test_files_that_are_no_weights(tmp_path, capsys):
    (tmp_path / 'text.npz').write_text('no archive')
    np.savez(tmp_path / 'pickled.npz', a=np.array([{}], dtype=object))
    (tmp_path / 'text.safetensors').write_text('no archive')
    (tmp_path / 'w.bin').write_text('')
    for name, found in (
        ('text.npz', 'an unreadable file'),
        ('pickled.npz', 'Object arrays cannot be loaded'),
        ('text.safetensors', 'an unreadable file'),
        ('gone.npz', 'no such file'),
        ('w.bin', 'file type'),
    ):
        refused(capsys, converting(tmp_path / name, tmp_path), name, found)
    path = tmp_path / 'text.npz'
    other = ('convert', '--net=espnetv', f'--weights={path}', f'--output={tmp_path / "m"}')
    refused(capsys, (*other[:3], f'--output={tmp_path}'), str(tmp_path), 'exists', 'remove it')
    np.savez(path, a=np.ones(3))
    refused(capsys, other, "'espnetv'", "did you mean 'espnetv2'?")
    assert not (tmp_path / 'm').exists()
