"""A user's own data set as plain folders, with no code to write.

    ROOT/classes.txt               one class per line: `name red green blue`; index = line order
    ROOT/classes.json              or this: {"name": [red, green, blue], ...}, in the same order
    ROOT/images/SPLIT/NAME.jpg     or .jpeg, .png
    ROOT/labels/SPLIT/NAME.png     class indices 0..K-1, 255 = ignore; 8-bit grey or palette

A split without a labels folder is unlabelled. Lines of classes.txt that start with # are comments.
A colour (RGB) label is read where every pixel has the colour of one class; black is ignored where
no class is black.
"""

import functools
import pathlib

import numpy as np

from dsrl_jax.data.images import read_pixels
from dsrl_jax.data.listings import read_json, read_lines
from dsrl_jax.data.sources import IGNORE, IMAGE_SUFFIXES, Pair, PairSource, as_indices, color_codes
from dsrl_jax.errors import UserError

_TRAIN_IDS, _LABEL_IDS = 19, 34  # how many Cityscapes has of both kinds


def build(config, split: str) -> PairSource:
    """The split of the folder `config.root`; mistakes in the listing are in `problems`."""
    root = pathlib.Path(config.root).expanduser()
    classes, colors = read_classes(_class_file(root))
    images, labels = root / 'images' / split, root / 'labels' / split
    if not images.is_dir():
        splits = sorted(p.name for p in (root / 'images').glob('*') if p.is_dir())
        raise UserError(
            images,
            'no such folder',
            f'one folder per split (there are: {", ".join(splits) or "none"})',
            'check the root and the name of the split.',
        )
    pairs, problems = pair_by_stem(images, labels if labels.is_dir() else None)
    reader = functools.partial(read_label, colors=colors)
    return PairSource(tuple(pairs), split, classes, colors, reader, tuple(problems))


def list_images(path) -> PairSource:
    """Every image below a folder, at any depth, without labels; the path is its split's name."""
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(root, 'no such folder', 'a folder of images', 'check data.unlabelled.')
    files = sorted(p for p in root.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        expected = 'files ending in ' + ', '.join(IMAGE_SUFFIXES)
        raise UserError(root, 'no image', expected, 'check data.unlabelled.')
    pairs = tuple(Pair(p.relative_to(root).with_suffix('').as_posix(), p, None) for p in files)
    return PairSource(pairs, str(path), (), (), read_pixels)


def read_label(path, *, colors) -> np.ndarray:
    """A label file as class indices, uint8 [H, W]: 0..K-1 in the order of `colors`, 255 ignored.

    Raises UserError for any other value or colour.
    """
    pixels = read_pixels(path)
    if pixels.ndim == 3:
        return _indices_of_colors(pixels, path, colors)
    values = np.unique(pixels[pixels != IGNORE])
    if len(colors) == _TRAIN_IDS and values.size and _TRAIN_IDS <= values[-1] < _LABEL_IDS:
        raise UserError(
            path,
            f'label values up to {values[-1]}: these are labelIds, if the classes are Cityscapes',
            f'train ids, 0..{_TRAIN_IDS - 1} or 255 (ignore)',
            'write train ids, or read the public layout with data.name=cityscapes.',
        )
    return as_indices(pixels, path, num_classes=len(colors))


def read_classes(path: pathlib.Path) -> tuple[tuple, tuple]:
    """(names, colours) of a classes.txt or classes.json; the first bad entry raises UserError."""
    if not path.parent.is_dir():
        raise UserError(
            path.parent, 'no such folder', 'the root of the data set', 'check data.root.'
        )
    if not path.is_file():
        raise UserError(
            path,
            'no such file',
            'one class per line, `name red green blue`',
            'write the list of classes.',
        )
    entries = _json_entries(path) if path.suffix == '.json' else _text_entries(path)
    names, colors = [], []
    for where, name, color in entries:
        if name in names:
            raise UserError(where, f'{name!r} twice', 'each class once', 'rename one.')
        names.append(name)
        colors.append(color)
    if not 1 <= len(names) <= 255:
        raise UserError(path, f'{len(names)} classes', '1 to 255 classes', 'correct the list.')
    return tuple(names), tuple(colors)


def pair_by_stem(images: pathlib.Path, labels: pathlib.Path | None, label_endings=('.png',)):
    """(pairs, problems): every image of a folder with the label NAME + ending that exists first.

    labels=None leaves the images unlabelled. Problems: no image, two images of one stem, an image
    without a label, a label without an image.
    """
    files = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    pairs, problems, seen = [], [], {}
    for path in files:
        if path.stem in seen:
            problems.append(
                UserError(
                    path,
                    f'a second image of the name {path.stem} (beside {seen[path.stem].name})',
                    'one image per name',
                    'remove or rename one of them.',
                )
            )
            continue
        seen[path.stem] = path
        label = None
        if labels is not None:
            candidates = [labels / (path.stem + ending) for ending in label_endings]
            label = next((c for c in candidates if c.is_file()), None)
            if label is None:
                problems.append(_no_label(path, candidates[0]))
                continue
        pairs.append(Pair(path.stem, path, label))
    if not files:
        problems.append(
            UserError(
                images,
                'no image',
                'files ending in ' + ', '.join(IMAGE_SUFFIXES),
                'put the images there or correct data.root.',
            )
        )
    if labels is not None:
        known = {stem + ending for stem in seen for ending in label_endings}
        problems += [
            UserError(
                path,
                'a label without an image',
                f'an image {path.stem} in {images}',
                'add the image or remove the label.',
            )
            for path in sorted(labels.glob('*.png'))
            if path.name not in known
        ]
    return pairs, problems


def _class_file(root):
    text, other = root / 'classes.txt', root / 'classes.json'
    if text.is_file() and other.is_file():
        raise UserError(other, 'a second list of classes', f'{text} alone', 'remove one of them.')
    return other if other.is_file() else text


def _text_entries(path):
    """(where, name, colour) of every class."""
    for number, line in enumerate(read_lines(path, 'lines `name red green blue`'), 1):
        fields = line.split()
        if not fields or fields[0].startswith('#'):
            continue
        color = tuple(int(f) for f in fields[-3:] if f.isdecimal() and int(f) < 256)
        if len(fields) < 4 or len(color) != 3:
            raise UserError(
                f'{path}:{number}',
                repr(line.strip()),
                '`name red green blue` with colours 0..255',
                'correct the line.',
            )
        yield f'{path}:{number}', ' '.join(fields[:-3]), color


def _json_entries(path):
    expected = '{"name": [red, green, blue], ...} with colours 0..255'
    # Pairs, because a name that stands there twice would hide in a dict.
    entries = read_json(path, expected, 'correct the file.', object_pairs_hook=tuple)
    if not isinstance(entries, tuple):
        raise UserError(path, type(entries).__name__, expected, 'correct the file.')
    for name, color in entries:
        sound = isinstance(color, list) and len(color) == 3
        if not sound or any(type(c) is not int or not 0 <= c < 256 for c in color):
            raise UserError(path, f'{name!r}: {color!r}', expected, 'correct the entry.')
        yield path, name, tuple(color)


def _indices_of_colors(pixels, path, colors) -> np.ndarray:
    """uint8 [H, W, 3] of the classes' colours -> class indices uint8 [H, W]."""
    remedy = 'replace every colour by the index of its class.'
    expected = f'class indices 0..{len(colors) - 1}, or the colours of the classes'
    if len(set(colors)) < len(colors):
        found = 'a colour (RGB) label, where two classes have one colour'
        raise UserError(path, found, expected, remedy)
    codes = color_codes(pixels)
    label = np.full(codes.shape, IGNORE, np.uint8)
    unknown = codes != 0
    for index, (red, green, blue) in enumerate(colors):
        inside = codes == (red << 16) + (green << 8) + blue
        label[inside] = index
        unknown &= ~inside
    if unknown.any():
        first = tuple(pixels[unknown][0].tolist())
        found = f'a colour (RGB) label with {len(np.unique(codes[unknown]))} colours of no class'
        raise UserError(path, f'{found}, such as {first}', expected, remedy)
    return label


def _no_label(image: pathlib.Path, label: pathlib.Path) -> UserError:
    lossy = [s for s in ('.jpg', '.jpeg') if label.with_suffix(s).is_file()]
    if lossy:
        return UserError(
            label.with_suffix(lossy[0]),
            'a JPEG label',
            f'the PNG {label.name}',
            'write the label as PNG again from its source: JPEG changes class indices.',
        )
    return UserError(
        image, 'an image without a label', f'the file {label}', 'add the label or remove the image.'
    )
