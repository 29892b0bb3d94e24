"""A run as several processes on this machine, each on its own devices, as `dsrl` is called.

Every process lists in written_INDEX what it made, opened for writing, renamed or removed, but for
tensorstore's files.
"""

import os
import pathlib
import socket
import subprocess
import sys

_CODE = """
import atexit, os, sys
written = set()
def look(event, args):
    if event == 'open' and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
        written.add(os.path.abspath(args[0]))
    elif event in ('os.mkdir', 'os.rename', 'os.remove'):
        written.add(os.path.abspath(args[0]))
sys.addaudithook(look)
atexit.register(lambda: open(sys.argv[1], 'w').write('\\n'.join(sorted(written))))
from dsrl_jax.cli import main
sys.exit(main(sys.argv[2:]))
"""
HERE = pathlib.Path(__file__).parent


def start(folder, processes: int, devices: int, *argv: str) -> list[subprocess.Popen]:
    """`dsrl` with those words as so many processes; `finish` waits for them."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        'JAX_NUM_CPU_DEVICES': str(devices),
        'PYTHONPATH': os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    joined = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}']
    folder.mkdir(parents=True, exist_ok=True)
    running = []
    for index in range(processes):
        words = [*argv, *joined, f'--process_id={index}'] if processes > 1 else argv
        output = (folder / f'output_{index}').open('w')
        command = [sys.executable, '-u', '-c', _CODE, str(folder / f'written_{index}'), *words]
        running.append(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        )
        output.close()
    return running


def finish(running: list[subprocess.Popen], seconds: float = 240) -> list[int]:
    """The exit codes; none outlives the test."""
    try:
        return [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()
