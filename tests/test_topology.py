"""A run goes on, is scored and exported on other devices and processes than it was saved on."""

import json
import shutil

import jax
import numpy as np
import process_run
import pytest

from dsrl_jax import cli, inference
from dsrl_jax.records import read_metrics

STEPS, CUT = 16, 8
# The curve of Adam is no test: it follows the sign of gradients that are zero but for rounding.
RUN = (
    *('train', '--config=synthetic:tiny,dsrl=sssr,net=toy_network:Toy', f'--config.steps={STEPS}'),
    *('--config.data.batch_size=8', '--config.data.eval_batch_size=8', '--config.eval.pictures=0'),
    *('--config.optimizer.name=sgd', '--config.optimizer.lr=0.01', '--config.checkpoint.every=4'),
    '--config.checkpoint.keep=9',
)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """A finished run on the four devices of this process."""
    run = tmp_path_factory.mktemp('topology') / 'run'
    assert cli.main([*RUN, f'--workdir={run}']) == 0
    return run


def cut(run, copy, step):
    """A copy of the run with nothing later than the checkpoint of that step."""
    shutil.copytree(run, copy)
    for path in (copy / 'checkpoints').iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return copy


def curve(run):
    terms = [[v for k, v in r.items() if k.startswith('train/')] for r in read_metrics(run)]
    return np.array([row for row in terms if row])


def weights(run):
    """Parameters and batch statistics of the newest checkpoint."""
    _, variables, step = inference.from_workdir(run)
    assert step == STEPS
    return jax.tree.map(np.asarray, variables)


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


@pytest.fixture(scope='module')
def on_one(straight, tmp_path_factory):
    """Resumed, scored and exported by one process on one device."""
    folder = tmp_path_factory.mktemp('on_one')
    run = cut(straight, folder / 'run', CUT)
    words = [*RUN, f'--workdir={run}', 'then', 'eval', f'--workdir={straight}']
    words += [f'--output={folder / "scores"}', 'then', 'export', f'--workdir={straight}']
    words += [f'--output={folder / "model"}', '--format=params']
    assert process_run.finish(process_run.start(folder, 1, 1, *words)) == [0], said(folder)
    return folder


def said(folder):
    return (folder / 'output_0').read_text()


@pytest.fixture(scope='module')
def by_two(straight, tmp_path_factory):
    """Resumed by two processes with a device each."""
    folder = tmp_path_factory.mktemp('by_two')
    run = cut(straight, folder / 'run', CUT)
    running = process_run.start(folder, 2, 1, *RUN, f'--workdir={run}')
    assert process_run.finish(running) == [0, 0], said(folder)
    return folder


@pytest.fixture(scope='module')
def on_eight(straight, tmp_path_factory):
    """Resumed by one process on eight devices."""
    folder = tmp_path_factory.mktemp('on_eight')
    run = cut(straight, folder / 'run', CUT)
    running = process_run.start(folder, 1, 8, *RUN, f'--workdir={run}')
    assert process_run.finish(running) == [0], said(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('where', ['on_one', 'by_two', 'on_eight'])
def test_a_run_of_four_devices_goes_on_elsewhere(where, straight, request):
    folder = request.getfixturevalue(where)
    assert f'resumed at step {CUT}' in said(folder)
    there, here = curve(folder / 'run'), curve(straight)
    assert len(here) == STEPS and here[-1, 0] < here[0, 0]
    np.testing.assert_array_equal(there[:CUT], here[:CUT])
    np.testing.assert_allclose(there, here, rtol=1e-5)
    close(weights(folder / 'run'), weights(straight))


@pytest.mark.slow
def test_a_run_of_four_devices_is_scored_and_exported_on_one(straight, on_one):
    there = json.loads((on_one / 'scores' / 'scores.json').read_text())
    here = json.loads((straight / 'eval_val' / 'scores.json').read_text())
    assert there['images'] == 8 and there['step'] == STEPS
    assert there['iou'] == here['iou'] and there['miou'] == here['miou']
    assert same_as_exported(straight, on_one / 'model')


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_by_one_and_is_exported(straight, by_two, tmp_path, capsys):
    run = cut(by_two / 'run', tmp_path / 'run', STEPS - 4)
    assert cli.main([*RUN, f'--workdir={run}']) == 0
    assert f'resumed at step {STEPS - 4}' in capsys.readouterr().out
    np.testing.assert_allclose(curve(run), curve(straight), rtol=1e-5)
    words = ['export', f'--workdir={by_two / "run"}', f'--output={tmp_path / "model"}']
    assert cli.main([*words, '--format=params']) == 0
    assert same_as_exported(by_two / 'run', tmp_path / 'model')


def same_as_exported(run, model) -> bool:
    """Whether the model holds bit for bit what inference needs of the newest checkpoint."""
    saved, exported = weights(run), inference.load(model).variables
    for name, tree in exported['params'].items():
        jax.tree.map(np.testing.assert_array_equal, tree, saved['params'][name])
    return {'network', 'sssr'} == set(exported['params'])
