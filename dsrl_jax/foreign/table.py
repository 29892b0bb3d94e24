"""The form of a table of foreign weight names."""

from typing import NamedTuple


class Table(NamedTuple):
    """How one public code base names the weights of one of our networks.

    `renames` are (regex, replacement) pairs, applied in order to the path of a layer of ours, dots
    for slashes; the result is its torch path, and weight, bias, running_mean or running_var follow
    from the leaf.  One to one, so that one table serves both directions.
    """

    renames: tuple[tuple[str, str], ...]
    classes: str  # the torch key one of whose axes counts the classes
    axis: int = 0  # that axis
    backbone: str | None = None  # our classifier whose `encoder` is this network's too
    counters: bool = True  # its norms count their batches (num_batches_tracked)
    # how it prepares images, keys of that module's table; several where it depends on the data set
    preprocessing: tuple[str, ...] = ('imagenet',)
    ignored: tuple[str, ...] = ()  # regexes of keys that repeat others or that nothing reads
