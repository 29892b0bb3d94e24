"""Shell scripts are whole; every `dsrl` command in scripts, pages and configs is understood."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from dsrl_jax import cli, config

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted(ROOT.glob('launch/*.s*')), ROOT / '.ci/run']
PAGES = [
    *SCRIPTS,
    *(p for g in ('*.md', 'docs/*.md', 'configs/*.py') for p in sorted(ROOT.glob(g))),
]


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


def test_the_speed_table_shows_ratios_targets_and_what_does_not_count(tmp_path):
    def row(work, ours, peers=(), **more):
        variants = [{'mode': mode, **figures} for mode, figures in peers]
        common = {
            'net': 'espnetv2',
            'work': work,
            'device': 'a GPU',
            'dtype': 'bfloat16',
            'date': '2026-01-01',
            'versions': {'jax': '0.11', 'python': '3.12'},
            'batch': 16,
            'images_per_second': ours,
            'ms': 16000 / ours,
            'latency': {'1': {'ms': 1000 / ours}},
            'peer': {'torch': '2.11', 'variants': variants} if variants else None,
            'matmul_fraction': 0.25,
            'copy_fraction': 0.5,
            'memory': {'peak': 2**30},
        }
        return json.dumps({**common, **more})

    rows = [
        row(
            'full',
            300,
            [
                ('eager', {'images_per_second': 100}),
                ('eager', {'images_per_second': 80}),
                ('compile', {'images_per_second': 240}),
                ('compile', {'failed': 'not finished in 300 s'}),
            ],
        ),
        row('plain', 400),
        row(
            'prediction',
            500,
            [('eager', {'latency': {'1': {'ms': 8}}}), ('compile', {'failed': ''})],
        ),
    ]
    path = tmp_path / 'speed.jsonl'
    path.write_text('\n'.join(rows) + '\n')
    command = [sys.executable, 'launch/speed_table.py', 'table', f'--results={path}']
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    full, plain, prediction = shown.splitlines()[-3:]
    assert 'eager 3.00, compiled 1.25, step 1.33 x plain' in full and '| no, yes |' in full
    assert '400.0 img/s' in plain
    assert 'eager 4.00' in prediction and '| no compiled PyTorch |' in prediction
