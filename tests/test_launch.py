"""Shell scripts are whole; every `dsrl` command in scripts, pages and configs is understood."""

import pathlib
import re
import shlex
import subprocess

import pytest

from dsrl_jax import cli, config

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted(ROOT.glob('launch/*.s*')), ROOT / '.ci/run']
PAGES = [*SCRIPTS, *sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('configs/*.py'))]


def commands():
    """The words of every line that begins with `dsrl` or `exec dsrl` and leaves nothing out."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding='utf-8').replace('\\\n', ' ')
        for line in re.findall(r'^[ $]*(?:exec )?dsrl ([a-z].*)$', text, re.M):
            words = shlex.split(_fill(line, text), comments=True)
            cut = [n for n, word in enumerate(words) if word in ('|', '&&', '||', '>', '&', ';')]
            words = words[: cut[0]] if cut else words
            if not {'--help', '...'} & set(words):
                name = f'{path.relative_to(ROOT)}: {" ".join(words)[:60]}'
                found.append(pytest.param(words, id=name))
    return found


def _fill(line, text):
    """The line with shell variables at their first value of a loop, their default, or a word."""
    values = dict(re.findall(r'^\s*for (\w+) in ([^\s;]+)', text, re.M))
    values |= dict(re.findall(r'^\s*(\w+)="?\$\{\w+:-([^}?]+)\}', text, re.M))
    line = line.replace('"$@"', '')
    return re.sub(r'\$\{?(\w+)\}?', lambda found: values.get(found[1], found[1]), line)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_stops_at_the_first_failure(path):
    done = subprocess.run(['bash', '-n', path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'set -euo pipefail' in path.read_text(encoding='utf-8')


@pytest.mark.parametrize('words', commands())
def test_a_command_that_is_written_down_is_understood(words):
    _, args = cli.parse(*words)
    if getattr(args, 'config', None):
        config.load(args.config, args.overrides)


def test_scripts_hold_the_commands_they_are_there_for():
    verbs = {item.values[0][0] for item in commands()}
    assert verbs >= {'train', 'eval', 'export', 'predict', 'data'}
