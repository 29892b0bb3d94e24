"""The same work in PyTorch, in processes of its own: asked for, waited for, ended when too long.

`third_party/bench_torch.py` does it, in the checkout only.  A process a variant: what one leaves
in memory or in a compiler does not touch the next, and a compilation that does not end is ended.
"""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import dsrl_jax
from dsrl_jax.errors import UserError
from dsrl_jax.workload import LATENCY_BATCHES, Workload

TOLERANCE = 1e-3  # of the scores' standard deviation, float32 on a small image
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

    UserError where there is no peer of this network, or it is not equal: then nothing is timed.
    """
    found = _ask(path, {'task': 'check', 'work': work._asdict()}, limit=None)
    if 'refused' in found:
        raise UserError(*found['refused'])
    if 'failed' in found:
        remedy = 'mend the peer, or leave --peer out.'
        raise UserError('--peer=torch', found['failed'], f'scores of {work.net}', remedy)
    if not found['difference'] <= TOLERANCE:
        raise UserError(
            '--peer=torch',
            f'scores that differ from ours by {found["difference"]:.2g} of their deviation',
            f'at most {TOLERANCE:g}',
            'mend the peer before it is timed.',
        )
    return found


def measure(path: pathlib.Path, work: Workload, variant: dict, limit: float, **budget) -> dict:
    """Timings of one variant (seconds, as `timing.Timing`), or {'failed': why}.

    `limit` bounds the seconds of the whole process, compilation included; `budget` is that of
    `timing.throughput`.
    """
    question = {
        'task': 'time',
        'work': work._asdict(),
        'variant': variant,
        'latency_batches': LATENCY_BATCHES,
        'budget': budget,
    }
    return {**variant, **_ask(path, question, limit)}


def _ask(path, question, limit):
    """The JSON object that the program prints last."""
    with tempfile.TemporaryDirectory(prefix='dsrl_peer_') as cache:
        environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',  # our side of the comparison; the device is the peer's
            'PYTHONPATH': os.pathsep.join(filter(None, [*sys.path, str(path.parent.parent)])),
            # Compiled anew, so that its seconds mean something; and a compiler that was ended in
            # the middle leaves half files, which would fail the next one.
            'TORCHINDUCTOR_CACHE_DIR': cache,
        }
        process = subprocess.Popen(
            [sys.executable, str(path), json.dumps(question)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a compiler's own processes end with it
        )
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {'failed': f'not finished in {limit:g} s'}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    if process.returncode:
        lines = err.strip().splitlines() or [f'exit code {process.returncode}']
        named = [line for line in lines if re.match(r'[\w.]+(Error|Exception)\b', line)]
        return {'failed': (named or lines)[-1][:300]}
    return json.loads(out.strip().splitlines()[-1])
