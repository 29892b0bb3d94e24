"""User errors: one line that says where, what was found, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend; the command line prints it as one line and exits with `code`.

    `where` names the file, flag or config field; `found` and `expected` are short phrases;
    `remedy` is an imperative sentence.
    """

    def __init__(self, where: object, found: str, expected: str, remedy: str, code: int = 2):
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        self.code = code
        line = f'{where}: found {found}; expected {expected}; {remedy}'
        super().__init__(' '.join(line.split()))

    def __reduce__(self):
        # Loader processes send it back: by default only the joined line would reach __init__.
        return UserError, (self.where, self.found, self.expected, self.remedy, self.code)


def lookup(table, name, what: str):
    """The entry `name` of the dict `table`; an unknown name raises with the nearest one."""
    if name in table:
        return table[name]
    raise UserError(what, repr(name), one_of(table), nearest(name, table))


def nearest(name: object, known: Iterable[object]) -> str:
    """The remedy for an unknown name: the nearest known one, or a hint to choose from the list."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.4)
    return f'did you mean {close[0]!r}?' if close else 'choose one of these.'


def one_of(known: Iterable[object]) -> str:
    """The phrase 'one of a, b, c'."""
    return 'one of ' + ', '.join(str(k) for k in known)
