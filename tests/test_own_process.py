"""What a command does to its own process: huge pages, by starting again once; no idle warnings."""

import os
import pathlib
import subprocess
import sys

import pytest

from dsrl_jax import cli


@pytest.fixture
def started_again(monkeypatch, tmp_path):
    """Call it with what the kernel says: the arguments of the new process, or None."""
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
    monkeypatch.setattr(sys, 'orig_argv', ['python', '-u', '/bin/dsrl', 'flops'])

    def call(kernel):
        found = []
        path = tmp_path / 'enabled'
        if kernel is not None:
            path.write_text(kernel)
        monkeypatch.setattr(cli, '_HUGE_PAGES', path)
        monkeypatch.setattr(os, 'execv', lambda *given: found.append(given))
        cli._use_huge_pages()
        return found[0] if found else None

    return call


def test_it_starts_again_with_the_same_arguments(started_again):
    expected = (sys.executable, [sys.executable, '-u', '/bin/dsrl', 'flops'])
    assert started_again('always [madvise] never') == expected
    assert os.environ['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'
    assert started_again('always [madvise] never') is None  # once


@pytest.mark.parametrize('kernel', ['[always] madvise never', 'always madvise [never]', None])
def test_it_goes_on_where_nothing_would_change(started_again, kernel):
    assert started_again(kernel) is None and 'GLIBC_TUNABLES' not in os.environ


def test_a_setting_of_the_user_stays(started_again, monkeypatch):
    monkeypatch.setenv('GLIBC_TUNABLES', '')
    assert started_again('always [madvise] never') is None


def test_a_command_keeps_its_exit_code_and_its_one_line():
    """A user error is still one line and exit code 2 from the process that started again."""
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
    command = [
        sys.executable,
        '-c',
        'from dsrl_jax.cli import run; run()',
        'flops',
        '--net=nothing',
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_run_with_loader_processes_ends_without_warnings(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parent)}
    environment.pop('PYTHONWARNINGS', None)
    words = ['train', '--config=synthetic:tiny,net=toy_network:Toy,dsrl=none', '--config.steps=2']
    words += ['--config.data.workers=1', '--config.eval.pictures=0', f'--workdir={tmp_path / "w"}']
    command = [sys.executable, '-c', 'from dsrl_jax.cli import run; run()', *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'resource_tracker' not in done.stderr
