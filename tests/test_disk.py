"""What happens to a run from outside: a full or read-only disk, a dead worker, a wrong clock.

Full is a file system of 200 KiB where one may be mounted, else a limit of the size of a file.
"""

import contextlib
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import threading
import time
import zlib

import jax
import numpy as np
import process_run
import pytest
from refusals import TINY, refused

from dsrl_jax import cli, inference, workdir
from dsrl_jax.records import read_metrics

RUN = (
    *('train', f'--config={TINY},dsrl=none', '--config.steps=60', '--config.checkpoint.every=10'),
    '--config.eval.pictures=0',
)
SIZE = 12 * 1024  # metrics.jsonl is longer at the end, every file of a checkpoint shorter


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """The workdir of a run that nothing happened to."""
    run = tmp_path_factory.mktemp('straight') / 'run'
    assert cli.main([*RUN, f'--workdir={run}']) == 0
    return run


def weights(run):
    _, variables, step = inference.from_workdir(run)
    return step, jax.tree.map(np.asarray, variables)


def same_end(run, straight):
    """The run ended as the other one: equal arrays, the same steps."""
    (step, found), (last, expected) = weights(run), weights(straight)
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    steps = [r['step'] for r in read_metrics(run)]
    assert steps == [r['step'] for r in read_metrics(straight)]


def mounted(place, *words) -> bool:
    place.mkdir(exist_ok=True)
    done = subprocess.run(['mount', *words, str(place)], capture_output=True)
    return done.returncode == 0


@contextlib.contextmanager
def narrow(place):
    """(the folder, how to make room): nothing large can be written there."""
    if mounted(place, '-t', 'tmpfs', '-o', 'size=200k', 'none'):
        try:
            yield lambda: subprocess.run(['mount', '-o', 'remount,size=9m', place], check=True)
        finally:
            subprocess.run(['umount', place], check=True)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_full_disk_is_a_line_and_the_run_goes_on_when_there_is_room(straight, tmp_path):
    folder, run = tmp_path / 'output', tmp_path / 'narrow' / 'run'
    (tmp_path / 'narrow').mkdir()
    with narrow(tmp_path / 'narrow') as make_room:
        running = process_run.start(
            folder, 1, 4, *RUN, f'--workdir={run}', JAX_COMPILATION_CACHE_DIR=''
        )
        assert process_run.finish(running) == [2]
        lines = (folder / 'output_0').read_text().splitlines()
        wrong = [line for line in lines if 'rror' in line or 'raceback' in line]
        assert wrong == [lines[-1]] and lines[-1].startswith('error: '), lines
        assert 'No space left' in lines[-1] or 'File too large' in lines[-1]
        saved = [int(p.name) for p in (run / 'checkpoints').iterdir() if p.name.isdecimal()]
        assert 0 < max(saved) < 60
        make_room()
        assert cli.main([*RUN, f'--workdir={run}']) == 0
        same_end(run, straight)


@contextlib.contextmanager
def read_only(folder, place):
    """The folder, seen at a place where nothing can be written."""
    if not mounted(place, '--bind', str(folder)):
        pytest.skip('only root may mount; root writes wherever file modes forbid it')
    try:
        subprocess.run(['mount', '-o', 'remount,bind,ro', place], check=True)
        yield place
    finally:
        subprocess.run(['umount', place], check=True)


def test_a_read_only_workdir_is_a_line_and_can_be_exported(straight, tmp_path, capsys, monkeypatch):
    with read_only(straight, tmp_path / 'place') as place:
        monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')  # programs would be kept in the workdir
        for run in (place, place / 'new'):
            refused(capsys, [*RUN, f'--workdir={run}'], str(run), 'Read-only', 'choose --workdir')
        words = ['export', f'--workdir={place}', '--format=params']
        assert cli.main([*words, f'--output={tmp_path / "model"}']) == 0


def test_a_worker_that_dies_is_a_line(tmp_path, capsys):
    run = tmp_path / 'run'

    def kill():
        records = run / 'metrics.jsonl'
        while not records.exists() or not records.read_text():
            time.sleep(0.05)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    words = [*RUN, '--config.steps=1000000', '--config.data.workers=2', f'--workdir={run}']
    refused(capsys, words, 'data.workers', 'exit code -9', 'run again to go on')
    killer.join()
    assert not multiprocessing.active_children()


def test_a_clock_that_jumps_by_days_changes_nothing(straight, tmp_path, monkeypatch):
    """Forward by a day from the 20th reading on, back by two from the 40th."""
    real, read = time.time, []

    def jumping():
        read.append(0)
        return real() + (0, 86400, -86400)[min(len(read) // 20, 2)]

    monkeypatch.setattr(time, 'time', jumping)
    run = tmp_path / 'run'
    assert cli.main([*RUN, f'--workdir={run}']) == 0
    monkeypatch.undo()
    assert len(read) > 60
    same_end(run, straight)
    times = [r['time/total'] for r in read_metrics(run) if 'time/total' in r]
    assert times[0] > 0 and times == sorted(times) and times[-1] < 3600


def test_a_second_run_in_a_workdir_is_refused_until_the_first_ends(straight, tmp_path, capsys):
    run = tmp_path / 'run'
    with workdir.alone(run):
        named = (str(run), f'process {os.getpid()} on ', 'a folder of its own', 'choose another')
        refused(capsys, [*RUN, f'--workdir={run}'], *named)
    assert [p.name for p in run.iterdir()] == ['lock']
    with workdir.alone(run):
        pass


def test_only_what_a_kill_tore_is_removed_from_the_kept_programs(tmp_path, monkeypatch):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    place, whole = tmp_path / 'compiled', zlib.compress(b'program' * 99)
    place.mkdir()
    contents = {'whole': whole, 'torn': whole[:-3], 'empty': b'', 'other': b'unknown format'}
    for name, data in contents.items():
        (place / f'{name}-cache').write_bytes(data)
    before = jax.config.jax_compilation_cache_dir
    try:
        workdir.keep_compiled(tmp_path)
        assert pathlib.Path(jax.config.jax_compilation_cache_dir) == place
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
    assert {p.name for p in place.iterdir()} == {'whole-cache', 'other-cache'}
