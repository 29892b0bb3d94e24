"""The folder of a run: one run at a time in it, and the compiled programs it keeps."""

import contextlib
import datetime
import os
import pathlib
import socket
import sys

import jax

from dsrl_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CACHE = 'compiled'


@contextlib.contextmanager
def alone(folder: str | pathlib.Path):
    """Inside, no other run writes to the folder; the lock goes with the process, however it ends.

    UserError where a run is at work there, or the folder cannot be written. Of several processes
    the first one holds it. A file system without locks is said on stderr.
    """
    if jax.process_index() or fcntl is None:
        yield
        return
    path = pathlib.Path(folder) / 'lock'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a+')
    except OSError as error:
        raise UserError(folder, str(error), 'a folder to write', 'choose --workdir.') from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            found = f'a run at work there ({file.read().strip() or "not said by whom"})'
            remedy = 'let it end, or choose another --workdir.'
            raise UserError(folder, found, 'a folder of its own', remedy) from None
        except OSError as error:
            print(f'note: {path} cannot be locked ({error})', file=sys.stderr)
        now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()} since {now}\n')
        file.flush()
        yield


def keep_compiled(folder: str | pathlib.Path) -> None:
    """Compiled programs go to FOLDER/compiled, and a later start takes them from there.

    $JAX_COMPILATION_CACHE_DIR names another place, for several runs; where it is '' none.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        place = pathlib.Path(folder).absolute() / CACHE
        jax.config.update('jax_compilation_cache_dir', str(place))
