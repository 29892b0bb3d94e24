"""CamVid in SegNet's layout: 11 classes, void ignored.

    ROOT/SPLIT.txt           lines `image label`; without it the folders are paired by name
    ROOT/SPLIT/NAME.png      or .jpg
    ROOT/SPLITannot/NAME.png class indices 0..10 with 11 = void, or the 32 original colours
                             (NAME.png or NAME_L.png), grouped to 11 as SegNet's labels are

Beside the lists there are parts of them, by drive (the name before the underscore): `fold1_train`
and `fold1_val` to `fold3_...`, which divide the training list, and `test_Seq05VD`, `test_0001TP`.
The published val clip lies inside a training drive, so selection is on the folds.

Paths in the lists are relative to ROOT; of an absolute path such as /SegNet/CamVid/train/X.png
only the last two parts count. A listed .png that is there as .jpg, or the other way, is taken.
Colours outside the palette are void (one test label holds some two hundred such pixels).
"""

import dataclasses
import pathlib
import re

import numpy as np

from dsrl_jax.data import folder
from dsrl_jax.data.images import read_pixels
from dsrl_jax.data.listings import check_link, plain, read_lines
from dsrl_jax.data.sources import IGNORE, IMAGE_SUFFIXES, Pair, PairSource, as_indices, color_codes
from dsrl_jax.errors import UserError

VOID = 11

CLASSES = {
    'Sky': (128, 128, 128),
    'Building': (128, 0, 0),
    'Pole': (192, 192, 128),
    'Road': (128, 64, 128),
    'Pavement': (60, 40, 222),
    'Tree': (128, 128, 0),
    'SignSymbol': (192, 128, 128),
    'Fence': (64, 64, 128),
    'Car': (64, 0, 128),
    'Pedestrian': (64, 64, 0),
    'Bicyclist': (0, 128, 192),
}

# Narrow or small things, scored apart.
THIN = ('Pole', 'SignSymbol', 'Pedestrian', 'Bicyclist')

# (drive, first frame) held out of the training list by folds 1, 2 and 3. The third has a gap in
# the film before it, so no frame beside a held-out one is trained on.
FOLDS = (('0006R0', 0), ('0001TP', 0), ('0016E5', 4350))
TEST_DRIVES = ('Seq05VD', '0001TP')  # never seen in training; the same drive as in training

# Part -> (list, (drive, first frame), whether those frames are the part or what it leaves out).
PARTS = {
    **{f'fold{n}_train': ('train', held, False) for n, held in enumerate(FOLDS, 1)},
    **{f'fold{n}_val': ('train', held, True) for n, held in enumerate(FOLDS, 1)},
    **{f'test_{drive}': ('test', (drive, 0), True) for drive in TEST_DRIVES},
}

# The grouping that SegNet's 480x360 labels contain, measured on them; other groupings in use send
# Bridge, Archway, TrafficCone, Child or Animal to a class and RoadShoulder to Pavement.
ORIGINAL_COLORS = {
    'Sky': [(128, 128, 128)],
    'Building': [(128, 0, 0), (64, 192, 0), (64, 0, 64)],  # Building, Wall, Tunnel
    'Pole': [(192, 192, 128)],
    # Road, LaneMkgsDriv, LaneMkgsNonDriv, RoadShoulder
    'Road': [(128, 64, 128), (128, 0, 192), (192, 0, 64), (128, 128, 192)],
    'Pavement': [(0, 0, 192), (64, 192, 128)],  # Sidewalk, ParkingBlock
    'Tree': [(128, 128, 0), (192, 192, 0)],  # Tree, VegetationMisc
    'SignSymbol': [(192, 128, 128), (128, 128, 64), (0, 64, 64)],  # + Misc_Text, TrafficLight
    'Fence': [(64, 64, 128)],
    # Car, SUVPickupTruck, Truck_Bus, Train
    'Car': [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128)],
    'Pedestrian': [(64, 64, 0)],
    'Bicyclist': [(0, 128, 192), (192, 0, 192)],  # Bicyclist, MotorcycleScooter
}


def build(config, split: str) -> PairSource:
    """The split below `config.root`, a list or a name in PARTS; mistakes met are in `problems`."""
    if split in PARTS:
        return _part(config, split)
    root = pathlib.Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(root, 'no such folder', 'the root of CamVid', 'check data.root.')
    listing, images = root / f'{split}.txt', root / split
    if listing.is_file():
        pairs, problems = read_list(listing)
    elif images.is_dir():
        labels = root / f'{split}annot'
        labels = labels if labels.is_dir() else None
        pairs, problems = folder.pair_by_stem(images, labels, ('.png', '_L.png'))
    else:
        raise UserError(
            root,
            f'no split {split!r}',
            f'the list {split}.txt or the folder {split}',
            'check data.root and the name of the split.',
        )
    return PairSource(
        tuple(pairs), split, tuple(CLASSES), tuple(CLASSES.values()), read_label, tuple(problems)
    )


def read_label(path) -> np.ndarray:
    """A label file, indices or original colours, as uint8 [H, W] of 0..10 and 255."""
    pixels = read_pixels(path)
    if pixels.ndim == 2:
        return as_indices(pixels, path, num_classes=len(CLASSES), void=VOID)
    return group_colors(pixels)


def group_colors(pixels) -> np.ndarray:
    """Original label colours uint8 [H, W, 3] -> class indices uint8 [H, W], 255 where void."""
    codes = color_codes(pixels)
    label = np.full(codes.shape, IGNORE, np.uint8)
    for index, name in enumerate(CLASSES):
        for red, green, blue in ORIGINAL_COLORS[name]:
            label[codes == (red << 16) + (green << 8) + blue] = index
    return label


def read_list(listing: pathlib.Path) -> tuple[list[Pair], list[UserError]]:
    """(pairs, problems) of a list file; every line that cannot be used is a problem."""
    root, pairs, problems, seen = listing.parent, [], [], {}
    for number, line in enumerate(read_lines(listing, 'lines `image label`'), 1):
        where, entries = f'{listing}:{number}', line.split()
        if not entries:
            continue
        if len(entries) != 2:
            problems.append(
                UserError(where, repr(line.strip()), '`image label`', 'correct the line.')
            )
            continue
        try:
            image, label = (_resolve(root, entry, where) for entry in entries)
        except UserError as problem:
            problems.append(problem)
            continue
        if image.stem in seen:
            problems.append(
                UserError(
                    where,
                    f'{image.stem} a second time (first in line {seen[image.stem]})',
                    'every image once',
                    'remove the line.',
                )
            )
            continue
        seen[image.stem] = number
        pairs.append(Pair(image.stem, image, label))
    if not pairs and not problems:
        problems.append(
            UserError(listing, 'an empty list', 'lines `image label`', 'restore the list.')
        )
    return pairs, problems


def _part(config, split: str) -> PairSource:
    """The frames of a part, in the order of its list; UserError where the list does not divide."""
    whole, (drive, first), chosen = PARTS[split]
    source = build(config, whole)
    inside = [_within(pair.name, drive, first) for pair in source.pairs]
    if source.pairs and sum(inside) in (0, len(inside)):
        raise UserError(
            pathlib.Path(config.root) / whole,
            f'{sum(inside)} of {len(inside)} frames of the drive {drive}, frame {first} or later',
            f'some of them and some others, for {split}',
            'take the published lists.',
        )
    pairs = tuple(pair for pair, held in zip(source.pairs, inside) if held == chosen)
    return dataclasses.replace(source, pairs=pairs, split=split)


def _within(name: str, drive: str, first: int) -> bool:
    """Is a frame such as 0016E5_04350 or Seq05VD_f00030 of the drive, from `first` on?"""
    parts = re.fullmatch(r'([^_]+)_f?(\d+)', name)
    return parts is not None and parts[1] == drive and int(parts[2]) >= first


def _resolve(root: pathlib.Path, entry: str, where: str) -> pathlib.Path:
    """The file that an entry of a list names; UserError unless it is there, below the root."""
    parts = pathlib.PurePosixPath(entry.replace('\\', '/')).parts
    outside = '..' in parts  # asked first: shortening the path would hide it
    if any(part.lower() in ('camvid', 'segnet') for part in parts[:-2]):
        parts = parts[-2:]
    if outside or not plain('/'.join(parts)):
        raise UserError(
            where, f'the path {entry}', f'a path inside {root}', 'write it relative to the root.'
        )
    path = root.joinpath(*parts)
    for candidate in (path, *(path.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)):
        if candidate.is_file():
            check_link(candidate, root, where)
            return candidate
    raise UserError(where, f'no file {path}', 'an existing file', 'add it or remove the line.')
