"""Text that comes with a data set: list files, JSON, and the names of files that stand in them.

A name in a file is foreign text: it may only lead to files inside the data set.
"""

import json
import pathlib

from dsrl_jax.errors import UserError

_LONGEST_NAME = 255  # bytes of one part of a path, on every file system in use


def read_lines(path: pathlib.Path, expected: str) -> list[str]:
    """The lines of a UTF-8 text file; UserError where it is none."""
    try:
        return path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, ValueError) as error:
        raise UserError(path, _brief(error), expected, 'restore the file.') from None


def read_json(path: pathlib.Path, expected: str, remedy='restore the file.', **options):
    """The content of a JSON file; `options` are those of json.loads. UserError where it is none."""
    try:
        return json.loads(path.read_text(encoding='utf-8-sig'), **options)
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets without end
        raise UserError(path, f'no JSON ({_brief(error)})', expected, remedy) from None


def plain(name) -> bool:
    """Does a name, with / between its parts, lead down from a folder and nowhere else?"""
    if not isinstance(name, str) or not name.isprintable():
        return False
    parts = name.replace('\\', '/').split('/')
    return all(
        0 < len(part.encode(errors='replace')) <= _LONGEST_NAME and part not in ('.', '..')
        for part in parts
    ) and (':' not in parts[0])


def check_link(path: pathlib.Path, folder: pathlib.Path, where) -> None:
    """UserError where `path`, a file below `folder` that is there, leads out of it by a link.

    The folder and those directly in it may be links themselves, as large data sets are often laid
    out over disks; what lies in them may not.
    """
    first = folder / path.relative_to(folder).parts[0]
    places = [folder.resolve(), *([first.resolve()] if first != path else [])]
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in places):
        found, remedy = f'{path}, a link out of it', 'put the file there.'
        raise UserError(where, found, f'a file inside {folder}', remedy)


def _brief(error):
    return (str(error) or type(error).__name__).splitlines()[0][:200]
