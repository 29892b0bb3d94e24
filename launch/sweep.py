"""The runs of a configuration's `sweep()`: prints their commands, runs them, or hands them over.

    python launch/sweep.py --config=camvid --config.data.root=DIR --workdir=RUNS
    python launch/sweep.py --config=camvid --config.data.root=DIR --workdir=RUNS --run
    python launch/sweep.py ... --with='sbatch launch/slurm.sbatch'     # each a job of its own

`sweep()` stands in the configuration file beside get_config and yields {dotted field: value} or
(name, {...}). Each run has the workdir RUNS/NAME. Finished ones are left out; stopped ones go on.
Flags that are not of this program are those of every `dsrl train`.
"""

import argparse
import importlib.util
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys

from dsrl_jax import cli
from dsrl_jax import config as configs
from dsrl_jax.errors import UserError

DSRL = (sys.executable, '-c', 'from dsrl_jax.cli import run; run()')


def main(argv=None) -> int:
    """Print, run or hand over every run that is not finished; the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--config', required=True, help='as of `dsrl train`')
    parser.add_argument('--workdir', required=True, help='folder of the folders of the runs')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--run', action='store_true', help='one after the other, here')
    how.add_argument('--with', dest='launcher', help='command that takes each: sbatch ...')
    args, others = parser.parse_known_args(argv)
    todo = []
    for name, fields in runs(args.config).items():
        flags = [f'--config.{field}={value}' for field, value in fields.items()]
        folder = pathlib.Path(args.workdir, name)
        words = ['train', f'--config={args.config}', *others, *flags, f'--workdir={folder}']
        _, parsed = cli.parse(*words)
        if _is_finished(folder, configs.load(args.config, parsed.overrides)):
            print(f'{folder}: finished', file=sys.stderr)
        else:
            todo.append(words)
    if not (args.run or args.launcher):
        for words in todo:
            print(shlex.join(['dsrl', *words]))
        return 0
    command = shlex.split(args.launcher) if args.launcher else DSRL
    for words in todo:
        print('$', shlex.join(['dsrl', *words]), flush=True)
        code = _run([*command, *words])
        if code:
            return code
    return 0


def runs(spec: str) -> dict[str, dict]:
    """{name: {dotted field: value}} of the sweep of the configuration 'file.py:arg'."""
    path = configs.find(spec.partition(':')[0])
    module_spec = importlib.util.spec_from_file_location(f'sweep_{path.stem}', path)
    if not module_spec:
        raise UserError(path, 'no Python', 'a configuration file with sweep()', 'give its source.')
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, 'sweep'):
        remedy = 'add one that yields {dotted field: value}, as configs/camvid.py does.'
        raise UserError(path, 'no sweep()', 'one beside get_config()', remedy)
    found = {}
    for item in module.sweep():
        name, fields = item if isinstance(item, tuple) else (_name(item), item)
        if not re.fullmatch(r'[\w=+-][\w.,=+-]*', name):
            raise UserError(f'{path} sweep()', f'the name {name!r}', 'one folder', 'rename it.')
        if name in found:
            remedy = 'give them names of their own: yield (name, fields).'
            raise UserError(f'{path} sweep()', f'two runs {name!r}', 'one of each name', remedy)
        found[name] = fields
    return found


def _name(fields) -> str:
    """'head=bilinear,lr=0.01': the last words of the fields and their values."""
    pairs = (f'{field.split(".")[-1]}={value}' for field, value in fields.items())
    return re.sub(r'[^\w.,=+-]', '_', ','.join(pairs))


def _is_finished(folder, config) -> bool:
    """Has a run of this very configuration its final scores there?"""
    scores = folder / f'eval_{config.data.eval_split.replace("+", "_")}' / 'scores.json'
    saved = folder / 'config.json'
    if not (scores.is_file() and saved.is_file()):
        return False
    if configs.to_dict(configs.load_json(saved)) != configs.to_dict(config):
        return False  # `dsrl train` says what differs
    return not config.steps or json.loads(scores.read_text())['step'] == config.steps


def _run(command) -> int:
    """Run it to its end; SIGTERM is passed on. Its exit code, as a shell gives it."""
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return 128 - code if code < 0 else code


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.code)
