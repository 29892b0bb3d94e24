"""Cityscapes in its official layout: 19 classes, every other label ignored.

    ROOT/leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
    ROOT/gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_labelIds.png        or _labelTrainIds.png
    ROOT/gtCoarse/train_extra/CITY/..._gtCoarse_labelIds.png             optional

An image's labelIds file is read where there is one, else its labelTrainIds file; the source's
`note` says which. Train and val need labels. The public test labels hold nothing but void, so
test is unlabelled here, whatever lies there. Train_extra has coarse labels or none.
"""

import collections
import pathlib
import re

import numpy as np

from dsrl_jax.data.images import read_pixels
from dsrl_jax.data.palettes import CITYSCAPES
from dsrl_jax.data.sources import IGNORE, IMAGE_SUFFIXES, Pair, PairSource, as_indices
from dsrl_jax.errors import UserError

SIZE = (1024, 2048)  # height and width of every public image
SPLITS = ('train', 'val', 'test')  # train_extra is a download of its own
IMAGES = {'train': 2975, 'val': 500, 'test': 1525, 'train_extra': 19998}  # of the public splits

# Train id -> label id; the classes stand in the order of their train ids.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NUM_LABEL_IDS = 34
THINGS = (24, 25, 26, 27, 28, 31, 32, 33)  # label ids that are told apart as instances

_IMAGE = re.compile(r'(?P<name>(?P<city>.+)_\d{6}_\d{6})_leftImg8bit\.png')
_LABEL = re.compile(r'(?P<name>.+)_gt(?:Fine|Coarse)_label(?:Train)?Ids\.png')
_KINDS = ('labelIds', 'labelTrainIds')  # in the order they are looked for


def build(config, split: str) -> PairSource:
    """The split below `config.root`; mistakes in the listing are in `problems`."""
    root = pathlib.Path(config.root).expanduser()
    images, labels = _places(root, split)
    pairs, problems, found = [], [], collections.Counter()
    cities = sorted(path for path in images.iterdir() if path.is_dir())
    for city in cities:
        listed, wrong, found[city.name] = _pair_city(city, labels and labels / city.name)
        pairs += listed
        problems += wrong
    problems += _strays(images, labels, {city.name for city in cities})
    if not found.total() and not problems:
        expected = 'CITY/CITY_000000_000019_leftImg8bit.png'
        problems.append(UserError(images, 'no image', expected, 'restore the split.'))
    return PairSource(
        tuple(pairs),
        split,
        tuple(CITYSCAPES),
        tuple(CITYSCAPES.values()),
        read_label,
        tuple(problems),
        note=_note(pairs, cities, labels),
        differences=_differences(images, split, found),
        public_size=SIZE,
    )


def read_label(path) -> np.ndarray:
    """A labelIds or labelTrainIds file, told by its name, as train ids: uint8 [H, W], 255 void.

    UserError where a file holds the other kind, as far as its values show it: 255 is no label id,
    and train ids end at 18.
    """
    pixels = read_pixels(path)
    trained = str(path).endswith('labelTrainIds.png')
    if pixels.ndim == 3:
        expected = f'one channel of {_KINDS[trained]}'
        remedy = 'put the official file there; the coloured one is for the eye.'
        raise UserError(path, 'a colour (RGB) label', expected, remedy)
    values = set(np.unique(pixels).tolist())
    if trained and any(len(LABEL_IDS) <= value < NUM_LABEL_IDS for value in values):
        raise _other_kind(path, f'values up to {max(values - {IGNORE})}', 'labelTrainIds')
    if not trained and IGNORE in values:
        raise _other_kind(path, f'the value {IGNORE}', 'labelIds')
    if trained:
        return as_indices(pixels, path, num_classes=len(LABEL_IDS))
    return _TRAIN_IDS[as_indices(pixels, path, num_classes=NUM_LABEL_IDS)]


def to_label_ids(train_ids) -> np.ndarray:
    """Train ids uint8 [H, W] -> label ids uint8 [H, W]; 0 (unlabeled) where there is no class."""
    return _LABEL_IDS_OF_TRAIN_IDS[train_ids]


def _table(size, entries, default):
    table = np.full(size, default, np.uint8)
    for key, value in entries:
        table[key] = value
    return table


_TRAIN_IDS = _table(256, ((label, train) for train, label in enumerate(LABEL_IDS)), IGNORE)
_LABEL_IDS_OF_TRAIN_IDS = _table(256, enumerate(LABEL_IDS), 0)


def _places(root, split):
    """(folder of the images, folder of the labels or None) of a split."""
    images = root / 'leftImg8bit' / split
    if not images.is_dir():
        there = sorted(p.name for p in images.parent.glob('*') if p.is_dir())
        public = f' of {IMAGES[split]} images' if split in IMAGES else ''
        raise UserError(
            images,
            'no such folder',
            f'the split {split}{public} (there are: {", ".join(there) or "none"})',
            'put it there, or let data.root name the folder that holds leftImg8bit and gtFine.',
        )
    if split == 'test':
        return images, None
    labels = root / ('gtCoarse' if split == 'train_extra' else 'gtFine') / split
    if labels.is_dir():
        return images, labels
    if split in ('train', 'val'):
        raise UserError(labels, 'no such folder', f'the labels of {images}', 'put them there.')
    return images, None


def _pair_city(city, labels):
    """(pairs, problems, number of images) of one city's folders."""
    pairs, problems, seen = [], [], set()
    files = sorted(p for p in city.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    there = {p.name for p in labels.iterdir()} if labels and labels.is_dir() else set()
    for path in files:
        name = _IMAGE.fullmatch(path.name)
        if name is None or name['city'] != city.name:
            expected = f'{city.name}_000000_000019_leftImg8bit.png with its own numbers'
            remedy = 'move it to where it belongs, or rename it.'
            problems.append(UserError(path, 'a foreign file', expected, remedy))
            continue
        seen.add(name['name'])
        label = None
        if labels:
            start = f'{name["name"]}_{labels.parent.parent.name}_'
            label = next((f'{start}{k}.png' for k in _KINDS if f'{start}{k}.png' in there), None)
            if label is None:
                if there:  # else one line for the whole city, below
                    problems.append(_no_label(path, labels / start, there))
                continue
        pairs.append(Pair(name['name'], path, label and labels / label))
    if labels and files and not there:
        found = 'an empty folder' if labels.is_dir() else 'no such folder'
        expected = f'the labels of the {len(files)} images in {city}'
        problems.append(UserError(labels, found, expected, 'put them there.'))
    for file in sorted(there):
        name = _LABEL.fullmatch(file)
        if name and name['name'] not in seen:
            seen.add(name['name'])  # once, where both kinds are there
            expected = f'the image {city / name["name"]}_leftImg8bit.png'
            remedy = 'add the image or remove the label.'
            problems.append(UserError(labels / file, 'a label without an image', expected, remedy))
    return pairs, problems, len(files)


def _no_label(image, start, there):
    expected = f'the file {start}labelIds.png or {start.name}labelTrainIds.png'
    if f'{start.name}polygons.json' in there:
        found = 'an image whose label is there as polygons alone'
        remedy = 'draw it: csCreateTrainIdLabelImgs of the package cityscapesscripts.'
        return UserError(image, found, expected, remedy)
    return UserError(image, 'an image without a label', expected, 'add the label.')


def _strays(images, labels, cities):
    """Problems: images outside a city's folder, cities that have labels alone."""
    loose = [p for p in sorted(images.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
    if loose:
        yield UserError(
            loose[0],
            f'{len(loose)} image{"s" * (len(loose) > 1)} outside the folder of a city',
            f'{images.name}/CITY/{loose[0].name}',
            'move each into the folder of its city.',
        )
    for path in sorted(labels.iterdir()) if labels else ():
        if path.is_dir() and path.name not in cities:
            expected = f'the images {images / path.name}'
            yield UserError(path, 'labels of a city without images', expected, 'put them there.')


def _note(pairs, cities, labels):
    kinds = collections.Counter(p.label.stem.rsplit('_', 1)[1] for p in pairs if p.label)
    read = ', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))
    read = f'labels of {labels.parent.name}: {read or "none"}' if labels else 'no labels'
    return f'{len(pairs)} images of {len(cities)} cities, {read}'


def _differences(images, split, found):
    """What the public set has and this one has not."""
    if split not in IMAGES or found.total() == IMAGES[split]:
        return ()
    cities = ', '.join(f'{name} {n}' for name, n in sorted(found.items()))
    return (
        UserError(
            images,
            f'{found.total()} images' + (f' ({cities})' if cities else ''),
            f'the {IMAGES[split]} of the public set',
            'restore the others; a part can be trained on, but its scores compare with nothing.',
        ),
    )


def _other_kind(path, found, kind):
    other = next(k for k in _KINDS if k != kind)
    return UserError(
        path,
        f'{found}: these are {other}',
        f'{kind}, as the name of the file says',
        f'give the file the ending _{other}.png, or restore it.',
    )
