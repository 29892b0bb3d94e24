"""Labelled images on disk as random-access sources, and the reading of single files.

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
from PIL import Image, UnidentifiedImageError

from dsrl_jax.errors import UserError

IGNORE = 255
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


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
    image = _open(path)
    width, height = image.size
    turned = _orientation(image) in _SIDEWAYS
    return (width, height) if turned else (height, width)


def element_name(source, index: int) -> str:
    """The 'name' of one element, undecoded where the source says it."""
    known = getattr(source, 'element_name', None)
    return source[index]['name'] if known is None else known(index)


def read_image(path, *, upright: bool = True) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3].

    Grey becomes RGB, alpha is dropped, and the pixels are turned upright as the EXIF orientation
    says, as viewers and labelling tools do; `upright=False` leaves them as stored. Sixteen-bit grey
    and float images raise UserError.
    """
    image = _open(path)
    turn = _TURNS.get(_orientation(image)) if upright else None
    image = _load(image, path)
    if image.mode.startswith('I') or image.mode == 'F':
        raise UserError(
            path,
            f'an image of mode {image.mode} (more than 8 bits)',
            '8 bits per channel',
            'convert the image to 8-bit RGB.',
        )
    if turn is not None:
        image = image.transpose(turn)
    return np.array(image.convert('RGB'))


def read_pixels(path) -> np.ndarray:
    """A label file as stored: integers [H, W] for grey, palette (its indices), 16-bit and 1-bit
    files, uint8 [H, W, 3] for colour files."""
    image = _load(_open(path), path)
    if image.mode in ('RGB', 'RGBA', 'CMYK'):
        return np.array(image.convert('RGB'))
    if image.mode in ('L', 'P', '1') or image.mode.startswith('I'):
        pixels = np.array(image)
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    raise UserError(
        path,
        f'a label of mode {image.mode}',
        'a PNG with one channel of class indices',
        'save the class indices as 8-bit greyscale PNG.',
    )


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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _open(path) -> Image.Image:
    path = pathlib.Path(path)
    expected = 'a PNG or JPEG image'
    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise UserError(path, 'no such file', expected, 'check the path.') from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        found = 'an empty file' if path.is_file() and not path.stat().st_size else 'no image'
        found = f'{found} ({_first_line(error)})' if found == 'no image' else found
        raise UserError(path, found, expected, 'restore or remove the file.') from None
    # Pillow only warns up to twice this limit; a warning would leave the file unnamed.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(path)
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that was opened and not loaded; 1: upright.

    Pillow's own method for PNG reads all pixels first, for what may stand behind them: slow, and
    an error where the file is cut. What stands there does not count here.
    """
    return Image.Image.getexif(image).get(_ORIENTATION, 1)


def _load(image: Image.Image, path) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise UserError(
            path,
            f'a damaged file ({_first_line(error)})',
            'a complete PNG or JPEG image',
            'restore the file from its source.',
        ) from None
    return image


def _too_large(path) -> UserError:
    return UserError(
        path,
        'an image with too many pixels (a decompression bomb?)',
        f'at most {Image.MAX_IMAGE_PIXELS} pixels',
        'cut the image into tiles.',
    )


def _mismatch(pair: Pair, image: tuple, label: tuple) -> UserError:
    turned = _orientation(_open(pair.image))
    note = f' after turning it by its EXIF orientation {turned}' if turned != 1 else ''
    return UserError(
        pair.label,
        f'a label of {label[0]}x{label[1]} (HxW)',
        f'{image[0]}x{image[1]}, the size of {pair.image}{note}',
        'make image and label the same size.',
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
