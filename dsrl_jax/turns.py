"""Processes that prepare side by side and use a device one after another.

Each has a folder: when it is ready it writes `ready` there and waits for the file `go`.
"""

import contextlib
import fcntl
import pathlib
import time

_POLL = 0.1  # seconds


def wait(folder) -> None:
    """Say that this process is ready, and wait until it is its turn; at once without a folder."""
    if folder is None:
        return
    folder = pathlib.Path(folder)
    (folder / 'ready').touch()
    while not (folder / 'go').exists():
        time.sleep(_POLL)


def is_ready(folder) -> bool:
    """Whether the process of that folder waits for its turn."""
    return (pathlib.Path(folder) / 'ready').exists()


def give(folder) -> None:
    """Let the process of that folder go on."""
    (pathlib.Path(folder) / 'go').touch()


@contextlib.contextmanager
def alone(path):
    """Hold a lock file, of which one process at a time has the hold; nothing without a path."""
    if path is None:
        yield
        return
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
