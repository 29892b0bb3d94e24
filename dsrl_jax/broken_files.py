"""What orbax and tensorstore raise, log and print where files are broken, brought to one line."""

import contextlib
import gc
import io
import logging
import os
import re
import sys
import time


def hush() -> None:
    """From here on no traces of what the caller is told by an error anyway."""
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(_from_elsewhere)
    sys.unraisablehook = _show_unraisable


def attempt(read):
    """read() -> (value, None), or (None, reason) from whatever broken files make it raise.

    Orbax and tensorstore raise anything from KeyError to JaxRuntimeError, and print traces of
    abandoned reads from threads and finalizers; the one line of the caller replaces those.
    """
    noise, log = io.StringIO(), logging.getLogger('asyncio')
    with contextlib.redirect_stderr(noise):
        log.disabled = True  # its handlers may hold the stderr of before
        try:
            value, trouble = read(), None
        except Exception as error:
            value, trouble = None, brief(error)
        if trouble:
            gc.collect()
            time.sleep(0.2)
            gc.collect()  # what ended meanwhile speaks up when it is collected
        log.disabled = False
    if not trouble:
        sys.stderr.write(noise.getvalue())
    return value, trouble


def brief(error: BaseException) -> str:
    """The kind of an error and the two ends of its text on one line; what the system says first."""
    text = ' '.join(str(error).split('[source')[0].split())
    text = text if len(text) < 180 else f'{text[:90]}...{text[-80:]}'
    code = re.search(r"os_error_code='(\d+)'", str(error))
    reason = f'{os.strerror(int(code[1]))}; ' if code else ''
    return f'{reason}{type(error).__name__}: {text}'


def _from_elsewhere(record):
    """Errors of orbax's threads and tasks are raised here too, there to be told in one line."""
    return record.levelno < logging.ERROR or 'orbax' not in record.pathname + record.getMessage()


def _show_unraisable(unraisable, show=sys.unraisablehook):
    """Nor is there news in what tensorstore's threads raise after a save that failed."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        show(unraisable)
