"""A run that is killed ends as one that nobody touched; the moments are drawn by launch/soak.py."""

import json
import shutil

import pytest
import soak
from refusals import TINY

from dsrl_jax import cli
from dsrl_jax.records import read_metrics


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'kills', 'seed'), [(1, 3, 7), (2, 1, 5)])
def test_a_killed_run_ends_as_an_undisturbed_one(processes, kills, seed, tmp_path):
    result = soak.soak(tmp_path, kills, processes, seed)
    assert len(result['kills']) == kills
    assert all(record['at_processor_s'] > 0 for record in result['kills'])


RUN = (
    *('train', f'--config={TINY},dsrl=none', '--config.steps=4', '--config.checkpoint.every=2'),
    *('--config.eval.every=2', '--config.eval.pictures=0'),
)


def scored(run):
    return [r['step'] for r in read_metrics(run) if 'eval/val/miou' in r]


def test_an_evaluation_that_a_kill_left_undone_is_made_up_for_once(tmp_path, capsys):
    """The run died after the checkpoint of step 2, before its evaluation was recorded."""
    run, records = tmp_path / 'run', tmp_path / 'run' / 'metrics.jsonl'
    assert cli.main([*RUN, f'--workdir={run}']) == 0
    assert scored(run) == [2, 4]
    lines = records.read_text().splitlines()
    before = [line for line in lines if json.loads(line)['step'] <= 2 and 'eval/' not in line]
    records.write_text('\n'.join(before) + '\n')
    shutil.rmtree(run / 'checkpoints' / '4')
    for _ in range(2):  # the second time it is finished, and scored again
        assert cli.main([*RUN, f'--workdir={run}']) == 0
        assert scored(run) == [2, 4]
        named = [{k: v for k, v in r.items() if 'time/' not in k} for r in read_metrics(run)]
        expected = [{k: v for k, v in json.loads(n).items() if 'time/' not in k} for n in lines]
        assert named == expected
