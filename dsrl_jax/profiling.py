"""Where the time goes: a trace of a few steps, and its costliest operations."""

import pathlib
import re
import warnings
from collections import defaultdict
from typing import NamedTuple

import jax
from jax.profiler import ProfileData

from dsrl_jax.errors import UserError

# Their bodies are in the trace too.
_CONTAINERS = re.compile(r'(while|conditional|call)(\.|$)')


class Operation(NamedTuple):
    """An operation of the compiled program: total milliseconds, share of all, times it ran."""

    name: str
    ms: float
    share: float
    calls: int
    scope: str  # where in the network it comes from


def record(call, steps: int, folder: str) -> None:
    """Run `call()` so many times and write the trace under a folder (for xprof, TensorBoard)."""
    try:
        with jax.profiler.trace(folder):
            jax.block_until_ready([call() for _ in range(steps)])
    except (OSError, RuntimeError) as error:
        remedy = 'choose another folder.'
        raise UserError('--profile', str(error), 'a folder to write a trace in', remedy) from None


def costliest(folder: str, program: str = '', count: int = 10) -> list[Operation]:
    """The operations of the newest trace in a folder that took longest, the longest first.

    `program` is the compiled program's text (`compiled.as_text()`), which names where an operation
    comes from.  Empty where the trace holds no operation.
    """
    traces = sorted(pathlib.Path(folder).rglob('*.xplane.pb'), key=lambda p: p.stat().st_mtime)
    if not traces:
        return []
    return rank(ProfileData.from_file(str(traces[-1])), program, count)


def rank(trace: ProfileData, program: str = '', count: int = 10) -> list[Operation]:
    """The costliest operations of a loaded trace; see `costliest`."""
    spent, calls = defaultdict(float), defaultdict(int)
    with warnings.catch_warnings():
        # A type of the trace reader warns when it is made; as an error that would end the process.
        warnings.simplefilter('ignore', DeprecationWarning)
        operations = _operations(trace)
    for name, nanoseconds in operations:
        spent[name] += nanoseconds / 1e6
        calls[name] += 1
    total, scopes = sum(spent.values()), _scopes(program)
    longest = sorted(spent, key=spent.get, reverse=True)[:count]
    return [
        Operation(name, spent[name], spent[name] / total, calls[name], scopes.get(name, ''))
        for name in longest
    ]


def _operations(trace):
    """(name, nanoseconds) of everything that ran for the program, on the device where there is one.

    A GPU's plane has a line for each stream, with a kernel an event, and the CPU's a line for each
    thread; what the CPU does to launch kernels carries the same names, so it counts only alone.
    """
    planes = {plane.name: list(plane.lines) for plane in trace.planes}
    devices = [lines for name, lines in planes.items() if name.startswith('/device:')]
    for candidates in (devices, planes.values()):
        lines = [line for lines in candidates for line in lines]
        chosen = [line for line in lines if re.match(r'Stream|XLA Ops', line.name)] or lines
        found = [operation for line in chosen for operation in _named(line)]
        if found:
            return found
    return []


def _named(line):
    for event in line.events:
        name = str(dict(event.stats).get('hlo_op', ''))
        if line.name.startswith(('Stream', 'XLA Ops')) and (
            not name or name.startswith('command_buffer')
        ):
            # A CUDA graph names its kernels alone; XLA's end in _7 where the operation ends in .7.
            name = re.sub(r'_(\d+)$', r'.\1', event.name)
        if name and not _CONTAINERS.match(name):
            yield name, event.duration_ns


def _scopes(program: str) -> dict[str, str]:
    """{operation: name scope} of a compiled program's text, without the outermost jit(...)."""
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.M)
    return {name: re.sub(r'^jit\([^)]*\)/', '', scope) for name, scope in found}
