"""How a computation is timed: calls are queued, one wait ends them, the median of repeats counts.

Nothing here knows a library: `call` queues one step and returns its result, `wait(result)` blocks
until that result is there (jax.block_until_ready, or a synchronisation of torch).
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

REPEATS = 10
_FEWEST = 3  # a median of fewer says nothing of the spread
_MOST_STEPS = 1000


class Timing(NamedTuple):
    """Seconds of one call: median, fastest and slowest of `repeats` runs of `steps` calls."""

    median: float
    fastest: float
    slowest: float
    repeats: int
    steps: int


def throughput(
    call: Callable[[], Any],
    wait: Callable[[Any], Any],
    *,
    seconds: float = 2.0,
    repeats: int | None = None,
    steps: int | None = None,
    most: int = REPEATS,
) -> Timing:
    """Seconds a call takes when the next ones already queue behind it.

    As many calls as fit into `seconds` are split over `most` repeats; where even that is too much,
    there are fewer repeats, three at least.  `repeats` and `steps` (calls in a repeat) overrule.
    Calls must run in the order in which they are queued.
    """
    wait(call())  # the first call also loads and allocates
    once = max(_run(call, wait, 1), 1e-9)
    if steps is None:
        steps = max(1, min(_MOST_STEPS, int(seconds / (repeats or most) / once)))
    if repeats is None:
        repeats = max(_FEWEST, min(most, int(seconds / (steps * once))))
    if steps > 1:
        _run(call, wait, steps)  # clocks rise and allocators settle: not counted
    found = sorted(_run(call, wait, steps) / steps for _ in range(repeats))
    return Timing(statistics.median(found), found[0], found[-1], repeats, steps)


def latency(call: Callable[[], Any], wait: Callable[[Any], Any], *, seconds: float = 2.0) -> Timing:
    """Seconds from one call to its result, nothing else queued: what a single request waits."""
    return throughput(call, wait, seconds=seconds, steps=1, most=100)


def _run(call, wait, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        result = call()
    wait(result)
    return time.perf_counter() - start
