"""Generated street scenes in the layout of Cityscapes, to run and test its whole path anywhere.

    ROOT/leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
    ROOT/gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_{labelIds,labelTrainIds,instanceIds,color}.png

The toy streets of `synthetic.py` at full size, under cities that do not exist. They show ten of
the 19 classes; a rider and his bicycle are one. An instance is a connected patch of one class: a
person behind a pole may be two, and two cars that touch are one.
"""

import pathlib
import shutil

import numpy as np
from PIL import Image
from scipy import ndimage

from dsrl_jax.data import cityscapes, palettes
from dsrl_jax.data.sources import IGNORE
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError, lookup

CITIES = {
    'train': ('arvenholm', 'brissow', 'caldrath', 'dornvik'),
    'val': ('elmquist', 'fjorheim'),
    'test': ('galdern', 'hovrath'),
}

# Class of the toy streets -> class of Cityscapes.
CLASSES = {
    'sky': 'sky',
    'building': 'building',
    'pole': 'pole',
    'road': 'road',
    'pavement': 'sidewalk',
    'tree': 'vegetation',
    'sign': 'traffic sign',
    'lane_mark': 'road',
    'car': 'car',
    'person': 'person',
    'rider': 'rider',
}

_README = 'Generated street scenes in the folder layout of Cityscapes; no image of it is here.\n'


def make(root, images: int, *, splits=tuple(CITIES), size=cityscapes.SIZE, seed=0, say=print):
    """Write that many scenes of `size` (height, width), divided as the public splits are.

    A scene depends on (seed, split, its number, size) alone. Labels of test are void, as in the
    public set. The folder appears when all of it is written; UserError where one is there.
    """
    root = pathlib.Path(root).expanduser()
    partial = root.with_name(f'{root.name}.partial')
    for path in (root, partial):
        if path.exists():
            remedy = 'remove it or choose another --root.'
            raise UserError(path, 'something that exists', 'a new folder', remedy)
    if seed < 0:
        raise UserError('--seed', str(seed), 'a number from 0 on', 'choose another.')
    numbers = divide(images, splits)
    sources = {s: SyntheticSource(s, size, length=n, seed=seed) for s, n in numbers.items()}
    try:
        partial.mkdir(parents=True)
        (partial / 'README.txt').write_text(_README, encoding='utf-8')
        for split, source in sources.items():
            for index in range(len(source)):
                _write(partial, split, index, source[index])
            say(f'{split}: {len(source)} scenes of {size[0]}x{size[1]}')
        partial.rename(root)
    except OSError as error:
        raise UserError(root, str(error), 'a folder to write', 'choose another --root.') from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def divide(images: int, splits) -> dict[str, int]:
    """{split: number of images} in the shares of the public splits, at least one each.

    5000 over train, val and test are 2975, 500 and 1525.
    """
    splits = tuple(dict.fromkeys(splits))
    for split in splits:
        lookup(CITIES, split, '--split')
    if images < len(splits):
        expected = f'at least {len(splits)}, one a split'
        raise UserError('--images', str(images), expected, 'ask for more.')
    total = sum(cityscapes.IMAGES[split] for split in splits)
    first, *others = splits
    numbers = {s: max(1, images * cityscapes.IMAGES[s] // total) for s in others}
    return {first: images - sum(numbers.values()), **numbers}


def train_ids(label) -> np.ndarray:
    """A label of the toy streets -> train ids, uint8 [H, W]; its void is void."""
    table = np.full(256, IGNORE, np.uint8)
    for index, name in enumerate(SyntheticSource.classes):
        table[index] = list(palettes.CITYSCAPES).index(CLASSES[name])
    return table[label]


def instance_ids(label_ids) -> np.ndarray:
    """Label ids [H, W] -> uint16 [H, W]: id * 1000 + n (0, 1, ...) of things, the id elsewhere.

    Patches of one class are parted where not even their corners touch.
    """
    ids = label_ids.astype(np.uint16)
    for thing in cityscapes.THINGS:
        patches, count = ndimage.label(label_ids == thing, np.ones((3, 3)))
        if count > 1000:
            found = f'{count} patches of the label id {thing}'
            raise UserError('--size', found, 'at most 1000 in a scene', 'choose another size.')
        ids = np.where(patches > 0, thing * 1000 + patches - 1, ids).astype(np.uint16)
    return ids


def _write(root, split, index, element):
    cities = CITIES[split]
    city, sequence = cities[index % len(cities)], index // len(cities)
    name = f'{city}_{sequence:06d}_000019'
    classes = train_ids(element['label'])
    if split == 'test':
        classes[:] = IGNORE
    ids = cityscapes.to_label_ids(classes)
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palettes.CITYSCAPES)] = list(palettes.CITYSCAPES.values())
    files = {
        f'leftImg8bit/{split}/{city}/{name}_leftImg8bit': element['image'],
        f'gtFine/{split}/{city}/{name}_gtFine_labelIds': ids,
        f'gtFine/{split}/{city}/{name}_gtFine_labelTrainIds': classes,
        f'gtFine/{split}/{city}/{name}_gtFine_instanceIds': instance_ids(ids),
        f'gtFine/{split}/{city}/{name}_gtFine_color': colors[classes],
    }
    for file, pixels in files.items():
        path = root / f'{file}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)
