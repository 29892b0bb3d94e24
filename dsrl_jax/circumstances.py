"""What stands beside every figure: commit, device, versions and time."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

from dsrl_jax import __version__, roofline

_LIBRARIES = ('jax', 'jaxlib', 'flax')


def circumstances() -> dict:
    """Commit, device, platform, whether huge pages were asked for, versions, date in UTC."""
    return {
        'commit': commit(),
        'device': roofline.device_name(),
        'platform': jax.default_backend(),
        'huge_pages': 'hugetlb=' in os.environ.get('GLIBC_TUNABLES', ''),
        'versions': {
            'dsrl_jax': __version__,
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
            'python': platform.python_version(),
        },
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }


def commit() -> str | None:
    """That of the checkout, '-dirty' behind it where files differ; None: installed elsewhere."""
    command = ['git', '-C', str(pathlib.Path(__file__).parent), 'describe', '--always', '--dirty']
    command += ['--abbrev=40', '--match=']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
