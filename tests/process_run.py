"""A run as several processes on this machine, each on its own devices, as `dsrl` is called.

Every process lists in written_INDEX what it made, opened for writing, renamed or removed, but for
tensorstore's files. One that is killed by `kill` leaves in stack_INDEX where its main thread was,
written by a thread that holds the interpreter's lock: faulthandler, which reads running threads
without it, now and then ends the process by a segmentation fault.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

_CODE = """
import atexit, os, signal, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def answer():
    while signal.sigwait([signal.SIGUSR1]):
        frame, lines = sys._current_frames()[threading.main_thread().ident], []
        while frame:
            code = frame.f_code
            lines.append(f'File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
            frame = frame.f_back
        with open(sys.argv[2], 'w') as file:
            file.write('\\n'.join(lines))
threading.Thread(target=answer, daemon=True).start()
written = set()
def look(event, args):
    if event == 'open' and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
        written.add(os.path.abspath(args[0]))
    elif event in ('os.mkdir', 'os.rename', 'os.remove'):
        written.add(os.path.abspath(args[0]))
sys.addaudithook(look)
atexit.register(lambda: open(sys.argv[1], 'w').write('\\n'.join(sorted(written))))
from dsrl_jax.cli import main
words = sys.argv[3:]
while words:
    end = words.index('then') if 'then' in words else len(words)
    code = main(words[:end])
    if code:
        sys.exit(code)
    words = words[end + 1:]
"""
HERE = pathlib.Path(__file__).parent


def start(folder, processes: int, devices: int, *argv: str, **variables) -> list[subprocess.Popen]:
    """`dsrl` with those words as so many processes; `finish` waits for them.

    Their output goes to FOLDER/output_INDEX; `variables` are added to their environment. The word
    'then' stands between commands of which each follows the one before in the same process.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        'JAX_NUM_CPU_DEVICES': str(devices),
        'PYTHONPATH': os.pathsep.join([str(HERE.parent), str(HERE)]),
        **variables,
    }
    joined = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}']
    folder.mkdir(parents=True, exist_ok=True)
    running = []
    heard = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited: deaf until it listens
    for index in range(processes):
        words = [*argv, *joined, f'--process_id={index}'] if processes > 1 else argv
        output = (folder / f'output_{index}').open('w')
        files = [str(folder / f'{name}_{index}') for name in ('written', 'stack')]
        command = [sys.executable, '-u', '-c', _CODE, *files, *words]
        running.append(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        )
        output.close()
    signal.signal(signal.SIGUSR1, heard)
    return running


def finish(running: list[subprocess.Popen], seconds: float = 240) -> list[int]:
    """The exit codes; none outlives the test."""
    try:
        return [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()


def kill(process: subprocess.Popen, folder, index: int) -> str:
    """kill -9; the main thread's stack a few milliseconds before it, '' while Python starts."""
    path, before, size = folder / f'stack_{index}', 0, 0
    process.send_signal(signal.SIGUSR1)
    until = time.monotonic() + 0.2
    while time.monotonic() < until and not (size and size == before):
        time.sleep(0.005)
        before, size = size, _size(path)
    process.kill()
    return path.read_text() if size else ''


def wait_until_spent(process: subprocess.Popen, seconds: float) -> float:
    """Waits until a process has used so much processor time, or ended; what it has used."""
    spent = 0.0
    while process.poll() is None and spent < seconds:
        time.sleep(0.01)
        spent = max(spent, _spent(process))
    return spent


def _spent(process) -> float:
    try:
        fields = pathlib.Path(f'/proc/{process.pid}/stat').read_text().rsplit(')')[-1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _size(path):
    return path.stat().st_size if path.exists() else 0
