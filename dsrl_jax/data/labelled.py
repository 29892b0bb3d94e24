"""Training with labels of some images only: others stay without theirs, or join without one.

Cross entropy alone misses them: super-resolution and feature affinity need no label.
"""

import dataclasses
from typing import Any

from dsrl_jax.data.frequencies import spaced
from dsrl_jax.data.sources import Cached, Joined, element_name
from dsrl_jax.errors import UserError


def keep_labels(source, share: float):
    """The source with the labels of a share of its images; the elements of others have none.

    Which images keep theirs depends on the share and the names alone (see `chosen`), not on the
    seed, the order of the list or how the images are stored. An image that has no label gets none.
    """
    names = [element_name(source, index) for index in range(len(source))]
    kept = chosen(names, share)
    if all(kept):
        return source
    print(f'labels of {sum(kept)} of {len(kept)} training images are used')
    if isinstance(source, Cached):  # the store stays outside: what it holds is what is asked for
        return Cached(Labelled(source.source, kept))
    return Labelled(source, kept)


def join_unlabelled(source, others):
    """The source followed by every image of the sources `others`, none of which has a label then.

    A step draws from all of them alike, so an epoch is as much longer. A few of each are read at
    once: one that cannot be raises UserError before a run starts.
    """
    others = [Labelled(other, (False,) * len(other)) for other in others]
    if not others:
        return source
    for other in others:
        for index in spaced(len(other), 4):
            other[index]
    joined = ', '.join(f'{len(other)} of {other.split}' for other in others)
    print(f'images without labels that join the {len(source)} training images: {joined}')
    if isinstance(source, Cached):
        return Cached(Joined([source.source, *others], source.split))
    return Joined([source, *others], source.split)


def chosen(names, share: float) -> tuple[bool, ...]:
    """Which of the names keep their label.

    Place r of the sorted names is in where its binary digits, read backwards after the point, are
    below the share: of 1/2 every second name from the first on, of 1/4 every fourth. The names of
    a share are among those of every larger one, and the first is always in. UserError for a share
    that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(
            'config.data.labelled',
            f'{share}',
            'a share above 0 and at most 1',
            'correct the value.',
        )
    kept = [False] * len(names)
    for place, index in enumerate(sorted(range(len(names)), key=names.__getitem__)):
        kept[index] = _mirrored(place) < share
    return tuple(kept)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A source in which only the elements marked in `kept` have their label."""

    source: Any
    kept: tuple[bool, ...]

    def __getattr__(self, name):
        if name in ('source', 'kept'):  # not set yet: the object is being unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        element = self.source[index]
        return element if self.kept[index] else _without_label(element)

    def files(self, index: int) -> dict:
        files = self.source.files(index)
        return files if self.kept[index] else _without_label(files)


def _mirrored(place: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, 5/8, ...: the binary digits of 0, 1, 2, ... behind the point."""
    value, digit = 0.0, 0.5
    while place:
        value += digit * (place & 1)
        place, digit = place >> 1, digit / 2
    return value


def _without_label(entries: dict) -> dict:
    return {name: value for name, value in entries.items() if name != 'label'}
