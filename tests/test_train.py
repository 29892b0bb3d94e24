"""Training runs: what they leave, resuming bit for bit, stopping on SIGTERM, the Python call."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import dsrl_jax
from dsrl_jax import config as configs
from dsrl_jax import inference
from dsrl_jax.records import read_metrics


def weights_of(workdir):
    _, variables, step = inference.from_workdir(workdir)
    return jax.tree.map(np.asarray, variables), step


def train_terms(workdir):
    return {
        record['step']: {k: v for k, v in record.items() if k.startswith('train/')}
        for record in read_metrics(workdir)
        if 'train/total' in record
    }


def test_a_run_leaves_what_the_contract_names(tiny_run):
    for name in ('config.json', 'dataset.json', 'metrics.jsonl', 'metrics.csv', 'parameters.txt'):
        assert (tiny_run / name).stat().st_size > 0
    scores = json.loads((tiny_run / 'eval_val' / 'scores.json').read_text())
    assert scores['images'] == 8 and 0 <= scores['miou'] <= 1 and len(scores['iou']) == 11
    assert scores['psnr'] > 0 and scores['bicubic_psnr'] > 20
    assert scores['step'] == configs.load_json(tiny_run / 'config.json').steps
    pictures = [p.relative_to(tiny_run / 'eval_val') for p in tiny_run.rglob('eval_val/**/*.png')]
    assert {p.parent.name for p in pictures} == {'', 'first', 'worst'}
    assert {p.name for p in pictures if not p.parent.name} == {'class_iou.png', 'confusion.png'}
    terms = train_terms(tiny_run)
    assert {'train/ce', 'train/mse', 'train/fa', 'train/total', 'train/lr'} <= set(terms[1])


def test_resuming_equals_going_on(tiny_run, tmp_path):
    """The run is cut back to its first checkpoint and goes on from there through the Python API."""
    workdir = tmp_path / 'again'
    shutil.copytree(tiny_run, workdir)
    steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
    first, last = steps[0], steps[-1]
    assert first < last
    for step in steps[1:]:
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    scores = dsrl_jax.train(configs.load(str(workdir / 'config.json')), workdir)
    assert scores['step'] == last
    (straight, _), (resumed, step) = weights_of(tiny_run), weights_of(workdir)
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert train_terms(workdir) == train_terms(tiny_run)


def test_a_finished_run_is_scored_again_and_not_trained(tiny_run, tmp_path, capsys):
    workdir = tmp_path / 'done'
    shutil.copytree(tiny_run, workdir)
    config = configs.load(str(workdir / 'config.json'))
    scores = dsrl_jax.train(config, workdir)
    assert f'resumed at step {config.steps}' in capsys.readouterr().out
    before = json.loads((tiny_run / 'eval_val' / 'scores.json').read_text())
    assert scores['miou'] == before['miou']


@pytest.mark.slow
def test_sigterm_saves_and_exits(tiny_run, tmp_path):
    workdir = tmp_path / 'stopped'
    command = [
        *(sys.executable, '-u', '-c', 'from dsrl_jax.cli import run; run()', 'train'),
        *(f'--config={tiny_run / "config.json"}', f'--workdir={workdir}'),
    ]
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parent)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith('parameters'):  # printed once the handler is in place
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, ''.join(seen)
    assert 'stopped by SIGTERM' in ''.join(seen)
    _, step = weights_of(workdir)
    assert step == 1
