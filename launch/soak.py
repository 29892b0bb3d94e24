"""Kills a training run again and again: its parameters must equal those of an undisturbed run.

    python launch/soak.py --kills=20 --processes=1 --output=FILE [--seed=0] [--workdir=DIR]

A network of three convolutions is trained to its end once. Then runs of the same configuration are
killed by `kill -9` at moments drawn at random between 0 and the processor time of an undisturbed
start, and started again until they are done. A run that is done makes room for the next one until
all kills are spent. Of two processes one is killed, in turns, and the other must end by itself with
the exit code of a lost process, or be ended by JAX. Every finished run must have the arrays of the
undisturbed one bit for bit, the same checksums in its checkpoint, and every step and every
evaluation exactly once in metrics.jsonl. FILE gets a part for each number of processes.
"""

import argparse
import collections
import json
import os
import pathlib
import platform
import random
import re
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import numpy as np  # noqa: E402
import process_run  # noqa: E402

from dsrl_jax import checkpoint, parallel  # noqa: E402
from dsrl_jax.circumstances import circumstances  # noqa: E402
from dsrl_jax.records import read_metrics  # noqa: E402

STEPS, SAVED, SCORED = 90, 5, 15
RUN = (
    *('train', '--config=synthetic:tiny,dsrl=sssr,net=toy_network:Toy', f'--config.steps={STEPS}'),
    *(f'--config.checkpoint.every={SAVED}', f'--config.eval.every={SCORED}'),
    *('--config.log.every=1', '--config.eval.pictures=0'),
    *('--start_timeout=60', '--heartbeat_timeout=10'),
)
DEVICES = 2  # of all processes together
PATIENCE = 120  # seconds in which a process must have noticed that another one is gone
# How the other process may end: by its own line, or by JAX where that hears of the loss first.
ENDS = parallel.LOST, -signal.SIGABRT
# The function of train.py or initial.py that the run was in -> what it was doing, innermost first.
PHASES = {
    '_score': 'evaluation',
    '_dispatches': 'data',
    'program': 'compile',
    'initial_state': 'start',
    'train': 'step',
}
KINDS = ('train/', 'eval/')  # of records in metrics.jsonl


def main():
    """Run the soak, print a line a kill and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--processes', type=int, default=1, choices=(1, 2))
    parser.add_argument('--output', required=True, help='JSON file; other parts of it are kept')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--workdir', help='new folder for the runs; default: one that is removed')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(args.workdir or folder, args.kills, args.processes, args.seed)
    path = pathlib.Path(args.output)
    parts = json.loads(path.read_text()) if path.exists() else {}
    parts[f'processes={args.processes}'] = result
    path.write_text(json.dumps(parts, indent=1) + '\n')
    print(f'{args.kills} kills, {result["runs"]} runs, all equal to the undisturbed one: {path}')


def soak(folder, kills: int, processes: int = 1, seed: int = 0) -> dict:
    """What main writes, as a dict; AssertionError where a run is not as it should be."""
    folder, rng = pathlib.Path(folder), random.Random(seed)
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'compiled')
        os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        _undisturbed(folder / 'first', processes)  # what is killed finds its programs compiled
    length = _undisturbed(folder / 'straight', processes)
    records, runs = [], 0
    while len(records) < kills:
        run = folder / f'killed_{runs}'
        records += _until_done(run, processes, length, kills - len(records), len(records), rng)
        _compare(run, folder / 'straight')
        runs += 1
        print(f'run {runs} is done and equal', flush=True)
    return {
        'kills': records,
        'phases': dict(collections.Counter(record['phase'] for record in records)),
        'runs': runs,
        'equal': True,  # else _compare had ended this
        'command': ' '.join(RUN),
        'undisturbed_processor_s': round(length, 2),
        'devices': f'{DEVICES} CPU devices in {processes} processes, {platform.machine()}',
        'seed': seed,
        **circumstances(),
    }


def _undisturbed(folder, processes) -> float:
    """The run that nobody kills; the processor time that each of its processes took."""
    running = _start(folder, processes)
    took = process_run.wait_until_spent(running[0], float('inf'))
    assert process_run.finish(running) == [0] * processes, _said(folder)
    return took


def _until_done(folder, processes, length, kills, before, rng) -> list[dict]:
    """One run, killed at most `kills` times on its way; a record of each, `before` counted."""
    records, saved = [], 0
    while True:
        running, record = _start(folder, processes), None
        if len(records) < kills:
            victim = (before + len(records)) % processes
            spent = process_run.wait_until_spent(running[victim], rng.uniform(0, length))
            record, began = _kill(folder, running, victim, spent), time.monotonic()
        codes = process_run.finish(running, PATIENCE)
        resumed = re.search(r'^resumed at step (\d+)$', _said(folder), re.M)
        assert not resumed or int(resumed[1]) == saved, f'{resumed}, but {saved} was saved'
        if codes == [0] * processes:
            return records
        assert record, f'{codes}: {_said(folder)}'
        for index, code in enumerate(codes):
            expected = (-signal.SIGKILL,) if index == victim else ENDS
            expected += (0,) if record['last_logged'] == STEPS else ()  # it was done by then
            assert code in expected, f'process {index} ended with {code}: {_said(folder, index)}'
        saved = max((int(p.name) for p in _saves(folder) if p.name.isdecimal()), default=0)
        ended = round(time.monotonic() - began, 2)
        record |= {'all_ended_after_s': ended, 'exit_codes': codes, 'resumed_from': saved}
        records.append(record)
        print(f'kill {before + len(records)}: {json.dumps(record)}', flush=True)


def _start(folder, processes):
    words = (*RUN, f'--workdir={folder / "run"}')
    return process_run.start(folder, processes, DEVICES // processes, *words)


def _kill(folder, running, victim, at) -> dict:
    """Kills one process; when it was, and what the run was doing."""
    stack = process_run.kill(running[victim], folder, victim)
    frames = re.findall(r'dsrl_jax/(?:train|initial)\.py", line \d+ in (\w+)', stack)
    phase = next((PHASES[name] for name in frames if name in PHASES), 'start')
    if phase == 'step' and 'parameters (' not in _said(folder):
        phase = 'start'
    if 'dsrl_jax/checkpoint.py' in stack and phase == 'step':
        phase = 'checkpoint'
    logged = folder / 'run' / 'metrics.jsonl'
    steps = [r['step'] for r in read_metrics(logged)] if logged.exists() else []
    return {
        'at_processor_s': round(at, 2),
        'process': victim,
        'phase': phase,
        'half_written': [p.name for p in _saves(folder) if not p.name.isdecimal()],
        'last_logged': max(steps, default=0),
    }


def _saves(folder) -> list:
    return sorted((folder / 'run' / checkpoint.FOLDER).glob('*'))


def _said(folder, index=0) -> str:
    return (folder / f'output_{index}').read_text()


def _compare(folder, straight) -> None:
    """AssertionError unless the run ended as the undisturbed one did."""
    found, expected = (_last_checkpoint(f / 'run') for f in (folder, straight))
    assert found[0] == expected[0], 'other checksums'
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    found, expected = (read_metrics(f / 'run') for f in (folder, straight))
    terms, evals = ([_of(records, kind) for records in (found, expected)] for kind in KINDS)
    assert [step for step, _ in terms[0]] == list(range(1, STEPS + 1)), 'steps left out or twice'
    assert terms[0] == terms[1] and evals[0] == evals[1], 'other numbers in metrics.jsonl'
    scores = [(f / 'run' / 'eval_val' / 'scores.json').read_text() for f in (folder, straight)]
    assert scores[0] == scores[1], 'other scores'


def _of(records, kind) -> list:
    """(step, values of that kind) of the records that have any."""
    rows = [(r['step'], {k: v for k, v in r.items() if k.startswith(kind)}) for r in records]
    return [(step, values) for step, values in rows if values]


def _last_checkpoint(run):
    """Checksums and arrays."""
    arrays = checkpoint.load_params(run / checkpoint.FOLDER / str(STEPS) / 'state')
    return checkpoint.checksums(run), arrays


if __name__ == '__main__':
    main()
