"""Records, resume, late scalars, clocks: what the logger leaves in its files and on stdout."""

import csv
import io
import json
import math
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import logger
from dsrl_jax.errors import UserError
from dsrl_jax.records import read_metrics


def make(folder, **options):
    settings = {'steps': 10, 'batch_size': 4, 'every': 2, 'seconds': 0, 'stream': io.StringIO()}
    return logger.Logger(folder, **{**settings, 'tensorboard': False, **options})


def table(folder):
    with (folder / 'metrics.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_every_nth_and_the_last_step_are_recorded_and_printed(tmp_path):
    stream = io.StringIO()
    with make(tmp_path, steps=5, stream=stream) as log:
        for step in range(1, 6):
            log.train(step, {'ce': jnp.float32(step), 'total': jnp.float32(2 * step)})
    records = read_metrics(tmp_path)
    assert [r['step'] for r in records] == [2, 4, 5]
    assert [r['train/ce'] for r in records] == [2, 4, 5]
    assert all(r['time/images_per_second'] > 0 for r in records)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith('step 2/5  ce 2  total 4') and 'eta 0:00:0' in lines[0]
    assert lines[-1].startswith('time ') and 'goodput' in lines[-1]
    assert len(lines) == 4


def test_plain_lines_keep_their_distance_in_time(tmp_path):
    stream = io.StringIO()
    with make(tmp_path, every=1, seconds=60, stream=stream) as log:
        for step in range(1, 11):
            log.train(step, {'ce': jnp.float32(1)})
    steps = [line.split()[1] for line in stream.getvalue().splitlines() if line.startswith('step')]
    assert steps == ['1/10', '10/10']
    assert len(read_metrics(tmp_path)) == 10


def test_scalars_are_fetched_one_call_late(tmp_path):
    scalars = jax.jit(lambda x: {'ce': x * 2})(jnp.float32(1))
    with make(tmp_path, every=1) as log:
        log.train(1, scalars)
        assert read_metrics(tmp_path) == []
        log.train(2, scalars)
        assert [r['step'] for r in read_metrics(tmp_path)] == [1]
        log.flush()
        log.flush()
        assert [r['step'] for r in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize('process_index', [0, 1])
def test_a_non_finite_loss_names_step_and_terms_on_every_process(tmp_path, process_index):
    with pytest.raises(UserError) as caught, make(tmp_path, process_index=process_index) as log:
        log.train(2, {'ce': jnp.float32(1), 'fa': jnp.float32(jnp.nan), 'total': jnp.inf})
        log.train(3, {'ce': jnp.float32(1)})
    text = str(caught.value)
    assert 'step 2' in text and 'train/fa=nan' in text and 'train/total=inf' in text
    assert 'train/ce' not in text
    if process_index == 0:
        (record,) = read_metrics(tmp_path)
        assert math.isnan(record['train/fa']) and record['train/ce'] == 1


def test_only_process_zero_writes(tmp_path):
    stream = io.StringIO()
    with make(tmp_path / 'w', process_index=1, stream=stream) as log:
        log.train(2, {'ce': jnp.float32(1)})
        log.eval('val', 2, {'miou': 0.5})
    assert not (tmp_path / 'w').exists() and stream.getvalue() == ''


def test_eval_scores_grow_the_table_and_arrays_stay_in_the_record(tmp_path):
    with make(tmp_path) as log:
        log.train(2, {'ce': jnp.float32(1)})
        log.eval('val', 2, {'miou': np.float64(0.25), 'iou': np.array([0.5, np.nan])})
        log.train(4, {'ce': jnp.float32(3), 'fa': jnp.float32(0.5)})
    train, scores, _ = read_metrics(tmp_path)
    assert train['step'] == scores['step'] == 2 and scores['eval/val/miou'] == 0.25
    np.testing.assert_array_equal(scores['eval/val/iou'], [0.5, np.nan])
    rows = table(tmp_path)
    assert [r['train/ce'] for r in rows] == ['1.0', '', '3.0']
    assert [r['eval/val/miou'] for r in rows] == ['', '0.25', '']
    assert [r['train/fa'] for r in rows] == ['', '', '0.5']
    assert 'eval/val/iou' not in rows[0]
    for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))


def test_resume_leaves_no_step_twice(tmp_path):
    with make(tmp_path, every=1) as log:
        for step in range(1, 7):
            log.train(step, {'ce': jnp.float32(step)})
        log.eval('val', 6, {'miou': 0.1})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 7, "train/c')  # killed while writing
    stream = io.StringIO()
    with make(tmp_path, every=1, start=5, stream=stream) as log:
        assert [r['step'] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]
        assert [r['step'] for r in table(tmp_path)] == ['1', '2', '3', '4']
        for step in range(5, 8):
            log.train(step, {'ce': jnp.float32(10 * step)})
    records = read_metrics(tmp_path)
    assert [r['step'] for r in records] == list(range(1, 8))
    assert [r['train/ce'] for r in records] == [1, 2, 3, 4, 50, 60, 70]
    assert [float(r['train/ce']) for r in table(tmp_path)] == [1, 2, 3, 4, 50, 60, 70]
    assert 'dropped 3 records of steps >= 5' in stream.getvalue()


def test_a_truncated_last_line_is_left_out_and_one_before_it_is_an_error(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1, "train/ce": 2.0}\n{"step": 2, "tra')
    assert read_metrics(path) == [{'step': 1, 'train/ce': 2.0}]
    path.write_text('{"step": 1, "tra\n{"step": 2, "train/ce": 2.0}\n')
    with pytest.raises(UserError, match=r'metrics\.jsonl:1'):
        read_metrics(path)
    with pytest.raises(UserError, match='no file'):
        read_metrics(tmp_path / 'nowhere')


def test_clocks_sum_and_are_not_counted_as_training_time(tmp_path):
    with make(tmp_path, every=1, batch_size=1) as log:
        for step in (1, 2):
            with log.clock('eval'):
                time.sleep(0.2)
            log.train(step, {'ce': jnp.float32(1)})
        log.flush()
        last = read_metrics(tmp_path)[-1]
        with pytest.raises(ValueError, match='clock'):
            log.clock('lunch').__enter__()
        with pytest.raises(KeyError), log.clock('checkpoint'):
            time.sleep(0.05)
            raise KeyError
    assert 0.4 <= last['time/eval'] <= last['time/total']
    assert last['time/data_wait'] == 0 and log.clocks['checkpoint'] >= 0.05
    # Two images in 0.4 s would be at most 5 a second with the evaluation counted.
    assert last['time/images_per_second'] > 5


def test_times_go_on_over_restarts_and_what_was_done_twice_is_lost(tmp_path):
    with make(tmp_path, every=1) as log:
        for step in range(1, 6):
            with log.clock('eval'):
                time.sleep(0.02)
            log.train(step, {'ce': jnp.float32(step)})
    first = read_metrics(tmp_path)
    stream, began = io.StringIO(), time.perf_counter() - 5
    with make(tmp_path, every=1, start=4, began=began, stream=stream) as log:
        log.train(4, {'ce': jnp.float32(4)})
    last = read_metrics(tmp_path)[-1]
    assert [r['time/starts'] for r in (first[-1], last)] == [1, 2]
    assert first[-1]['time/lost'] == 0
    lost = first[4]['time/total'] - first[2]['time/total']
    assert last['time/lost'] == pytest.approx(lost) and lost > 0.01
    assert last['time/eval'] == pytest.approx(first[2]['time/eval'])
    assert 5 <= last['time/start'] < 5.5 + first[0]['time/start']
    assert last['time/total'] > first[4]['time/total'] + 5
    said = stream.getvalue().splitlines()[-1]
    assert ' in 2 starts: ' in said and 'lost to restarts 0.' in said and said.endswith('%')


def test_a_terminal_gets_a_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with make(tmp_path, steps=4, stream=stream) as log:
        for step in range(1, 5):
            log.train(step, {'ce': jnp.float32(0.5)})
        log.eval('val', 4, {'miou': 0.5})
    text = stream.getvalue()
    assert '4/4' in text and 'eval/val/miou 0.5' in text and 'step 2/4' not in text


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path, monkeypatch):
    class Board:
        """The four calls of tensorboardX that the logger makes."""

        def __init__(self, folder, purge_step):
            self.folder, self.purge_step, self.points, self.closed = folder, purge_step, [], False
            boards.append(self)

        def add_scalar(self, key, value, step):
            self.points.append((key, value, step))

        def close(self):
            self.closed = True

    boards = []
    monkeypatch.setattr(logger, 'tensorboardX', types.SimpleNamespace(SummaryWriter=Board))
    with make(tmp_path, tensorboard=True, start=3) as log:
        log.train(4, {'ce': jnp.float32(1)})
        log.eval('val', 4, {'miou': 0.5, 'iou': np.array([0.5, 0.5])})
    (board,) = boards
    assert board.folder == str(tmp_path / 'tensorboard') and board.purge_step == 3 and board.closed
    assert ('train/ce', 1.0, 4) in board.points and ('eval/val/miou', 0.5, 4) in board.points
    assert not [key for key, _, _ in board.points if key.endswith('/iou')]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='workdir'):
        make(tmp_path / 'file' / 'run')
