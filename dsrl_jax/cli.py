"""`dsrl VERB ...`: parse the flags of a verb and call its module; user errors are one line."""

import argparse
import importlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable

from dsrl_jax import __version__
from dsrl_jax.errors import UserError, nearest, one_of

# verb -> (module, what it does). The module has `flags(parser)` and `main(args)`.
VERBS = {
    'train': ('dsrl_jax.train', 'train a network and score it'),
    'eval': ('dsrl_jax.evaluate', 'score a training run or an exported model'),
    'export': ('dsrl_jax.export', 'write the inference-only network'),
    'predict': ('dsrl_jax.predict', 'class maps, or skeletons of people, on pictures'),
    'convert': ('dsrl_jax.convert', "bring another project's weights into a model directory"),
    'data': ('dsrl_jax.data.command', 'check, show, pack or generate a data set'),
    'flops': ('dsrl_jax.flops', 'parameters and multiply-adds, with and without the head'),
    'bench': ('dsrl_jax.bench', 'speed, latency, compile time and memory; beside PyTorch'),
    'reproduce': ('dsrl_jax.reproduce', 'ladders over seeds: what DSRL gives, at its true cost'),
    'compare': ('dsrl_jax.compare', 'one report of several training runs'),
}

_HUGE_PAGES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_GLIBC = 'GLIBC_TUNABLES'


class _Parser(argparse.ArgumentParser):
    """Errors of flags are user errors, in the same one line."""

    def error(self, message):
        raise UserError('command line', message, 'known flags', f'see `{self.prog} --help`.')

    def names(self) -> list[str]:
        """All flags of the verb."""
        return [name for action in self._actions for name in action.option_strings]


def main(argv: list[str]) -> int:
    """Run one command; the exit code is 0, that of a user error (2), or the verb's own."""
    debug = '--debug' in argv
    argv = [item for item in argv if item != '--debug']
    try:
        return _dispatch(argv) or 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f'error: {error}', file=sys.stderr)
        return error.code


def run() -> None:
    """Entry point of the console script."""
    _use_huge_pages()
    sys.exit(main(sys.argv[1:]))


def _use_huge_pages() -> None:
    """Large blocks of memory in pages of 2 MiB, where Linux gives them to those who ask.

    A CPU trains the plain ESPNetv2 1.5 times as fast (docs/performance.md, CPU). glibc reads its
    setting when a process starts, so this one starts again, once, under the same number.
    """
    try:
        to_those_who_ask = '[madvise]' in _HUGE_PAGES.read_text()
    except OSError:  # another system
        return
    if to_those_who_ask and _GLIBC not in os.environ:
        os.environ[_GLIBC] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(f'dsrl {__version__}: dual super-resolution learning\n')
        for verb, (_, text) in VERBS.items():
            print(f'  dsrl {verb:<9} {text}')
        print('\n`dsrl VERB --help` lists the flags of a verb; --debug shows tracebacks.')
        return 0
    if argv[0] == '--version':
        print(__version__)
        return 0
    _prepare()
    module, args = parse(*argv)
    return module.main(args)


def parse(verb: str, *argv: str):
    """The module of a verb and its flags as a namespace, `--config.` fields in `overrides`."""
    if verb not in VERBS:
        raise UserError('command line', f'the verb {verb!r}', one_of(VERBS), nearest(verb, VERBS))
    module = importlib.import_module(VERBS[verb][0])
    parser = _Parser(prog=f'dsrl {verb}', description=VERBS[verb][1], allow_abbrev=False)
    module.flags(parser)
    rest, overrides = _overrides(argv, parser.names())
    args = parser.parse_args(rest)
    args.overrides = overrides
    return module, args


def _overrides(argv: Iterable[str], known: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """What the verb's parser reads, and the `--config.a.b=value` flags as (dotted path, text).

    Unknown flags are refused here: argparse would first ask for the required ones.
    """
    rest, pairs = [], []
    for item in argv:
        name, equals, value = item.partition('=')
        if '--config' in known and name.startswith('--config.') and equals:
            pairs.append((name.removeprefix('--config.'), value))
        elif name.startswith('--') and name not in known:
            names = [*known, '--config.FIELD=VALUE'] if '--config' in known else known
            raise UserError('command line', repr(item), one_of(names), nearest(name, names))
        else:
            rest.append(item)
    return rest, pairs


def _prepare() -> None:
    """Settings that must precede the first use of their library."""
    from absl import flags, logging

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the loader's worker processes read absl flags
    logging.set_verbosity(logging.WARNING)
    # On a CPU JAX reads batches where the loader's processes put them. Those still held at the end
    # are freed by Python's tracker of shared memory, which would warn of each as of a leak.
    before, quiet = os.environ.get('PYTHONWARNINGS', ''), 'ignore:resource_tracker'
    if quiet not in before:
        os.environ['PYTHONWARNINGS'] = f'{before},{quiet}'.strip(',')
