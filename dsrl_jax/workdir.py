"""The folder of a run: one run at a time in it, and the compiled programs it keeps."""

import contextlib
import datetime
import errno
import os
import pathlib
import socket
import sys
import zlib

import jax

from dsrl_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CACHE = 'compiled'
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS  # the disk, not the caller, is wrong
_ZSTD = b'\x28\xb5\x2f\xfd'


@contextlib.contextmanager
def alone(folder: str | pathlib.Path):
    """Inside, no other run writes to the folder; the lock goes with the process, however it ends.

    UserError where a run is at work there, or the folder cannot be written, now or later: its disk
    is full. Of several processes the first one holds it. A file system without locks is said on
    stderr.
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
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            remedy = 'make room; started again, the run goes on from its newest checkpoint.'
            raise UserError(folder, str(error), 'a disk that takes it', remedy) from error


def keep_compiled(folder: str | pathlib.Path) -> None:
    """Compiled programs go to FOLDER/compiled, and a later start takes them from there.

    $JAX_COMPILATION_CACHE_DIR names another place, for several runs; where it is '' none. What a
    killed run left half-written there is removed: jax would complain about it for ever, and never
    write it again. A folder that cannot be written is left to `alone` to say.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    place = pathlib.Path(folder).absolute() / CACHE
    there = next(path for path in (place, *place.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return
    for path in place.glob('*-cache') if jax.process_index() == 0 else ():
        with contextlib.suppress(FileNotFoundError):  # another start was here first
            if _torn(path.read_bytes()):
                path.unlink()
    jax.config.update('jax_compilation_cache_dir', str(place))


def _torn(data: bytes) -> bool:
    """Whether a compressed program ends too early; what is not known is taken for whole."""
    try:
        if data[:4] == _ZSTD:
            import zstandard  # jax wrote it so where this is installed

            zstandard.ZstdDecompressor().decompress(data)
        elif data[:1] == b'\x78' or not data:
            zlib.decompress(data)
    except ImportError:
        return False
    except Exception:  # zstandard has a kind of its own
        return True
    return False
