"""Labelled images on disk as random-access sources, and what class indices are.

A source is an object with `len()`, `source[i]` -> {'image': uint8 [H, W, 3], 'label': uint8
[H, W] (absent where there is none), 'name': str}, `files(i)` -> dict of paths, and the attributes
`classes` (names), `colors` (RGB triples), `num_classes`, `ignore` (255), `split`; one that knows
sizes without decoding has `image_size(i)`, one that knows names `element_name(i)`. Sources are
pickled into worker processes, so they hold paths, never open files.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from dsrl_jax.data.images import orientation, read_image, upright_size
from dsrl_jax.errors import UserError

IGNORE = 255
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')


@dataclasses.dataclass(frozen=True)
class Pair:
    """One image file and its label file (None in a split without labels)."""

    name: str
    image: pathlib.Path
    label: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class PairSource:
    """A split of image and label files; an unreadable or mismatched pair raises UserError.

    `read_label(path)` gives class indices, uint8 [H, W]. `problems` are the mistakes met while
    the files were listed: `data.build` raises the first, `data.check` reports all. Where the
    set is a public one, `differences` from it and images not of `public_size` (height, width) are
    reported by `data.check` alone: a part of it can be used. `note` says what was found.
    """

    pairs: tuple[Pair, ...]
    split: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    read_label: Callable[[pathlib.Path], np.ndarray]
    problems: tuple[UserError, ...] = ()
    ignore: int = IGNORE
    note: str = ''
    differences: tuple[UserError, ...] = ()
    public_size: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> dict[str, pathlib.Path]:
        pair = self.pairs[index]
        return {'image': pair.image} | ({'label': pair.label} if pair.label else {})

    def element_name(self, index: int) -> str:
        return self.pairs[index].name

    def __getitem__(self, index: int) -> dict:
        pair = self.pairs[index]
        image = read_image(pair.image)
        if pair.label is None:
            return {'image': image, 'name': pair.name}
        label = self.read_label(pair.label)
        if label.shape != image.shape[:2]:
            raise _mismatch(pair, image.shape[:2], label.shape)
        return {'image': image, 'label': label, 'name': pair.name}


class Cached:
    """A source that keeps every decoded element: for splits that fit in memory.

    The arrays are read-only because later epochs see them again. The store stays behind when the
    source is pickled: every worker process fills its own.
    """

    def __init__(self, source):
        self.source, self._store = source, {}

    def __getattr__(self, name):
        if name in ('source', '_store'):  # not set yet: the object is being unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if index not in self._store:
            element = self.source[index]
            for value in element.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False
            self._store[index] = element
        return dict(self._store[index])

    def __reduce__(self):
        return Cached, (self.source,)


class Joined:
    """Several splits of one data set, one after the other ('train+val')."""

    def __init__(self, sources, split: str):
        self.sources, self.split = tuple(sources), split
        self.classes, self.colors = self.sources[0].classes, self.sources[0].colors
        self.num_classes, self.ignore = self.sources[0].num_classes, self.sources[0].ignore
        if hasattr(self.sources[0], 'keypoints'):
            self.keypoints = self.sources[0].keypoints
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        source, index = self._locate(index)
        return source[index]

    def files(self, index: int) -> dict:
        source, index = self._locate(index)
        return source.files(index)

    def image_size(self, index: int) -> tuple[int, int]:
        return image_size(*self._locate(index))

    def element_name(self, index: int) -> str:
        return element_name(*self._locate(index))

    def ground_truth(self) -> dict:
        """Of sources of persons: the annotations of all, numbered anew, as files may number alike.

        UserError where the splits have an image id in common: results name the image alone.
        """
        parts = [source.ground_truth() for source in self.sources]
        images = [image for part in parts for image in part['images']]
        if len({image['id'] for image in images}) < len(images):
            expected = 'splits without an image in common'
            raise UserError(self.split, 'image ids in several splits', expected, 'score one split.')
        annotations = [entry for part in parts for entry in part['annotations']]
        annotations = [{**entry, 'id': number} for number, entry in enumerate(annotations, 1)]
        return parts[0] | {'images': images, 'annotations': annotations}

    def _locate(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side='right'))
        start = int(self._ends[part - 1]) if part else 0
        return self.sources[part], int(index) - start


def image_size(source, index: int) -> tuple[int, int]:
    """(height, width) of one element, undecoded where the source or the file's header says it."""
    known = getattr(source, 'image_size', None)
    if known is not None:
        return known(index)
    path = source.files(index).get('image')
    if path is None:
        return source[index]['image'].shape[:2]
    return upright_size(path)


def element_name(source, index: int) -> str:
    """The 'name' of one element, undecoded where the source says it."""
    known = getattr(source, 'element_name', None)
    return source[index]['name'] if known is None else known(index)


def as_indices(pixels, path, *, num_classes: int, void: int | None = None) -> np.ndarray:
    """Integers [H, W] -> uint8 [H, W] of 0..K-1 and 255; UserError names any other value."""
    keep = (pixels >= 0) & (pixels < num_classes)
    ignored = (pixels == IGNORE) | (pixels == (IGNORE if void is None else void))
    wrong = np.unique(pixels[~(keep | ignored)])
    if wrong.size:
        shown = ', '.join(str(v) for v in wrong[:5]) + (', ...' if wrong.size > 5 else '')
        plural = 's' if wrong.size > 1 else ''
        also = '' if void is None else f', {void} (void)'
        raise UserError(
            path,
            f'label value{plural} {shown}',
            f'class indices 0..{num_classes - 1}{also} or 255 (ignore)',
            'correct the label or the list of classes.',
        )
    return np.where(keep, pixels, IGNORE).astype(np.uint8)


def color_codes(pixels) -> np.ndarray:
    """Colours uint8 [H, W, 3] -> one number each, uint32 [H, W]: 65536 red + 256 green + blue."""
    codes = pixels[..., 0].astype(np.uint32)  # in place from here on: images may be large
    for channel in (1, 2):
        codes <<= 8
        codes |= pixels[..., channel]
    return codes


def _mismatch(pair: Pair, image: tuple, label: tuple) -> UserError:
    turned = orientation(pair.image)
    note = f' after turning it by its EXIF orientation {turned}' if turned != 1 else ''
    return UserError(
        pair.label,
        f'a label of {label[0]}x{label[1]} (HxW)',
        f'{image[0]}x{image[1]}, the size of {pair.image}{note}',
        'make image and label the same size.',
    )
