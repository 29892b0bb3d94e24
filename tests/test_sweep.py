"""launch/sweep.py: what a configuration's sweep() asks for is printed, handed over, or refused."""

import json
import pathlib
import shlex
import sys

import pytest
import sweep

from dsrl_jax import cli, config
from dsrl_jax.errors import UserError


def write_config(folder, body):
    path = folder / 'mine.py'
    start = 'from dsrl_jax import config\n\n\ndef get_config(arg=""):\n    return config.base()\n'
    path.write_text(f'{start}\n\n{body}\n')
    return path


def test_a_sweep_prints_commands_that_are_understood(capsys):
    flags = ['--config=camvid:tiny', '--config.data.root=DIR', '--workdir=RUNS']
    assert sweep.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    parsed = [cli.parse(*shlex.split(line)[1:])[1] for line in lines]
    found = [config.load(args.config, args.overrides) for args in parsed]
    assert len({(c.sssr.head, c.optimizer.lr) for c in found}) == len(found) == 6
    assert len({shlex.split(line)[-1] for line in lines}) == 6, 'a workdir each'
    assert 'RUNS/head=bilinear,lr=0.1' in lines[-1]


def test_a_sweep_leaves_out_what_is_finished(tmp_path, capsys):
    body = 'def sweep():\n    for n in (2, 3):\n        yield f"r{n}", {"steps": n, "epochs": 0.0}'
    path = write_config(tmp_path, body)
    done = tmp_path / 'runs/r2'
    settings = config.load(str(path), [('steps', '2'), ('epochs', '0.0')])
    scores = done / f'eval_{settings.data.eval_split}/scores.json'
    scores.parent.mkdir(parents=True)
    (done / 'config.json').write_text(json.dumps(config.to_dict(settings)))
    flags = [f'--config={path}', f'--workdir={tmp_path / "runs"}']
    for step, left in ((2, ['r3']), (1, ['r2', 'r3'])):
        scores.write_text(json.dumps({'step': step}))
        assert sweep.main(flags) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split('/')[-1] for line in lines] == left
    scores.write_text(json.dumps({'step': 2}))
    assert sweep.main([*flags, '--config.seed=5']) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, 'another seed is another run'


def test_a_sweep_hands_each_run_over_and_stops_at_a_failure(tmp_path, capfd):
    path = write_config(tmp_path, 'def sweep():\n    yield {"seed": 1}\n    yield {"seed": 2}')
    flags = [f'--config={path}', f'--workdir={tmp_path}']
    show = f"{sys.executable} -c 'import sys; print(*sys.argv[1:])' submit"
    assert sweep.main([*flags, f'--with={show}']) == 0
    words = f'submit train --config={path} --config.seed=2 --workdir={tmp_path}/seed=2'
    assert words in capfd.readouterr().out.splitlines()
    fail = f"{sys.executable} -c 'raise SystemExit(143)'"
    assert sweep.main([*flags, f'--with={fail}']) == 143
    assert len(capfd.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ('body', 'words'),
    [
        ('', ['no sweep()', 'mine.py']),
        ('def sweep():\n    yield {"seed": 1}\n    yield {"seed": 1}', ["two runs 'seed=1'"]),
        ('def sweep():\n    yield "a/b", {"seed": 1}', ["'a/b'", 'one folder']),
        ('def sweep():\n    yield {"sead": 1}', ["'sead'", "did you mean 'seed'"]),
        ('def sweep():\n    yield {"seed": "x"}', ["'x'", 'int']),
    ],
)
def test_a_sweep_with_a_mistake_is_refused_before_anything_starts(tmp_path, body, words):
    path = write_config(tmp_path, body)
    with pytest.raises(UserError) as caught:
        sweep.main([f'--config={path}', f'--workdir={tmp_path}', '--run'])
    assert all(word in str(caught.value) for word in words), caught.value


def test_no_shipped_configuration_is_chosen_or_drawn_on_the_test_split():
    folder = pathlib.Path(cli.__file__).resolve().parent.parent / 'configs'
    for path in sorted(folder.glob('*.py')):
        spec = config.load(path.stem)
        assert 'test' not in spec.data.eval_split.split('+'), path.name
        if 'def sweep(' in path.read_text():
            for fields in sweep.runs(path.stem).values():
                assert fields['data.eval_split'].startswith('fold')
                assert fields['data.train_split'] == fields['data.eval_split'][:5] + '_train'
