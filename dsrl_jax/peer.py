"""The same work in PyTorch, in processes of its own: asked for, waited for, ended when too long.

`third_party/bench_torch.py` does it, in the checkout only.  A process a variant: what one leaves
in memory or in a compiler does not touch the next, and a compilation that does not end is ended.
"""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import dsrl_jax
from dsrl_jax import turns
from dsrl_jax.errors import UserError
from dsrl_jax.workload import Workload

_OUTPUTS = ('out', 'err')  # files: a pipe that nobody reads would stop the process
# Of the scores' standard deviation, and of a term of the loss; float32 on a small image.
TOLERANCE = 1e-3
TOLERANCES = {'heatmap': 1e-4}  # targets drawn a pixel aside change it by 2e-4
VARIANTS = (
    {'mode': 'eager', 'memory_format': 'contiguous'},
    {'mode': 'eager', 'memory_format': 'channels_last'},
    {'mode': 'compile', 'memory_format': 'contiguous'},
    {'mode': 'compile', 'memory_format': 'channels_last'},
)


def find() -> pathlib.Path:
    """The program that runs the peers; UserError where it or PyTorch is missing."""
    path = pathlib.Path(dsrl_jax.__file__).resolve().parent.parent / 'third_party/bench_torch.py'
    if not path.is_file():
        raise UserError(
            '--peer=torch',
            'an installed package, which leaves the peers out',
            'a checkout with its folder third_party',
            'run it from a clone (pip install -e .).',
        )
    if importlib.util.find_spec('torch') is None:
        raise UserError(
            '--peer=torch', 'no torch', 'PyTorch installed', "run pip install 'dsrl-jax[torch]'."
        )
    return path


def check(path: pathlib.Path, work: Workload) -> dict:
    """The torch version, and how far its scores lie from ours with the same weights, in std.

    And of a training step the `terms` of its loss, {name: relative difference}.
    UserError where there is no peer of this network, or it is not equal: then nothing is timed.
    """
    found = answer(_ask(path, {'task': 'check', 'work': work._asdict()}))
    if 'refused' in found:
        raise UserError(*found['refused'])
    if 'failed' in found:
        remedy = 'mend the peer, or leave --peer out.'
        raise UserError('--peer=torch', found['failed'], f'scores of {work.net}', remedy)
    require_equal(found)
    return found


def require_equal(found: dict) -> None:
    """UserError where a difference that `check` found is too large, or is no number."""
    if not found['difference'] <= TOLERANCE:
        raise UserError(
            '--peer=torch',
            f'scores that differ from ours by {found["difference"]:.2g} of their deviation',
            f'at most {TOLERANCE:g}',
            'mend the peer before it is timed.',
        )
    for term, difference in found.get('terms', {}).items():
        tolerance = TOLERANCES.get(term, TOLERANCE)
        if not difference <= tolerance:
            raise UserError(
                '--peer=torch',
                f'a loss whose term {term} differs from ours by {difference:.2g} of it',
                f'at most {tolerance:g}',
                'mend the peer before it is timed.',
            )


class Running(NamedTuple):
    """A process at work on a question, its folder, and when it has to end (monotonic seconds)."""

    process: subprocess.Popen
    folder: pathlib.Path
    end: float


def start(
    path: pathlib.Path,
    work: Workload,
    variant: dict,
    limit: float,
    *,
    latency: tuple[int, ...],
    wait: bool = False,
    **budget,
) -> Running:
    """Begin to measure a variant; `answer` gives its timings (seconds, as `timing.Timing`).

    `limit` bounds the seconds of the whole process, compilation included; `budget` is that of
    `timing.throughput`, `latency` are the batch sizes of single requests.  With `wait` it compiles
    and then waits for its turn (`turns`).
    """
    question = {
        'task': 'time',
        'work': work._asdict(),
        'variant': variant,
        'latency_batches': latency,
        'budget': budget,
    }
    return _ask(path, question, limit, wait=wait)


def settle(running: Running) -> None:
    """Return when the process waits for its turn, has ended, or has run out of time."""
    while running.process.poll() is None and not turns.is_ready(running.folder):
        if time.monotonic() > running.end:
            break
        time.sleep(0.1)


def answer(running: Running) -> dict:
    """Give the process its turn; the JSON object that it prints last, or {'failed': why}."""
    process, folder, end = running
    turns.give(folder)
    try:
        process.wait(None if end == math.inf else max(0.0, end - time.monotonic()))
        out, err = ((folder / name).read_text() for name in _OUTPUTS)
    except subprocess.TimeoutExpired:
        return {'failed': 'not finished in time'}
    finally:
        stop(running)
    if process.returncode:
        lines = err.strip().splitlines() or [f'exit code {process.returncode}']
        named = [line for line in lines if re.match(r'[\w.]+(Error|Exception)\b', line)]
        return {'failed': (named or lines)[-1][:300]}
    return json.loads(out.strip().splitlines()[-1])


def stop(running: Running) -> None:
    """End the process, if it has not ended, and remove its folder."""
    if running.process.poll() is None:
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    shutil.rmtree(running.folder, ignore_errors=True)


def _ask(path, question, limit=math.inf, *, wait=False) -> Running:
    folder = pathlib.Path(tempfile.mkdtemp(prefix='dsrl_peer_'))
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',  # our side of the comparison; the device is the peer's
        'PYTHONPATH': os.pathsep.join(filter(None, [*sys.path, str(path.parent.parent)])),
        # Compiled anew, so that its seconds mean something; and a compiler that was ended in
        # the middle leaves half files, which would fail the next one.
        'TORCHINDUCTOR_CACHE_DIR': str(folder / 'cache'),
    }
    question = {**question, 'turn': str(folder) if wait else None}
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(open(folder / name, 'w')) for name in _OUTPUTS)
        process = subprocess.Popen(
            [sys.executable, str(path), json.dumps(question)],
            env=environment,
            stdout=out,
            stderr=err,
            start_new_session=True,  # so that a compiler's own processes end with it
        )
    return Running(process, folder, time.monotonic() + limit)
