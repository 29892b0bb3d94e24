"""The scores of the Cityscapes server: IoU of classes and categories, and iIoU of instances.

Everything is counted over label ids, so that a prediction of an ignored class is a miss of the true
class. With pixels TP, FN, FP pooled over all images, pixels of ignored truth being no FP:

    IoU  = TP / (TP + FP + FN)         of a class; of a category, whose classes count as one
    iIoU = iTP / (iTP + FP + iFN)      a pixel of an instance weighs average size / its own size

Equal to evalPixelLevelSemanticLabeling of the package cityscapesscripts. It has the categories with
iIoU hold caravan and trailer in what is predicted, though both are ignored in the truth.
"""

import dataclasses
import pathlib

import numpy as np

from dsrl_jax.data import cityscapes
from dsrl_jax.data.images import read_pixels
from dsrl_jax.data.palettes import CITYSCAPES
from dsrl_jax.errors import UserError

CATEGORIES = {
    'flat': (7, 8),
    'construction': (11, 12, 13),
    'object': (17, 19, 20),
    'nature': (21, 22),
    'sky': (23,),
    'human': (24, 25),
    'vehicle': (26, 27, 28, 31, 32, 33),
}
# Label id -> mean size in pixels of an instance of the training set, as published.
AVERAGE_SIZES = {
    24: 3462.4756337644,
    25: 3930.4788056518,
    26: 12794.0202738185,
    27: 27855.1264367816,
    28: 35732.1511111111,
    31: 67583.7075812274,
    32: 6298.7200839748,
    33: 4672.3249222261,
}
# Categories of things alone, with the ids that count as a hit.
_THING_CATEGORIES = {'human': (24, 25), 'vehicle': (26, 27, 28, 29, 30, 31, 32, 33)}
_IDS = cityscapes.NUM_LABEL_IDS
_NAMES = dict(zip(cityscapes.LABEL_IDS, CITYSCAPES, strict=True))


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the scores need of one image or of several; `+` joins them.

    confusion int64 [34,34], rows the truth; weighted float64 [34,3] by label id of an instance:
    pixels that hit its class, pixels that hit its category, all its pixels.
    """

    confusion: np.ndarray
    weighted: np.ndarray

    def __add__(self, other: 'Counts') -> 'Counts':
        return Counts(self.confusion + other.confusion, self.weighted + other.weighted)


def empty() -> Counts:
    """Counts of no image."""
    return Counts(np.zeros((_IDS, _IDS), np.int64), np.zeros((_IDS, 3)))


def count(prediction, truth, instances=None) -> Counts:
    """Counts of one image: label ids [H,W] x2, instance ids [H,W] (id * 1000 + number) or None.

    ValueError where the sizes differ or a value is no label id.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    shapes = {np.shape(a) for a in (prediction, truth, instances) if a is not None}
    if len(shapes) != 1:
        raise ValueError(f'sizes differ: {sorted(shapes)}')
    if prediction.size and max(prediction.max(), truth.max()) >= _IDS:
        raise ValueError(f'label ids end at {_IDS - 1}')
    cells = np.bincount(
        truth.ravel().astype(np.int64) * _IDS + prediction.ravel(), minlength=_IDS**2
    )
    weighted = np.zeros((_IDS, 3))
    if instances is not None:
        thing = instances > 1000
        number = np.asarray(instances)[thing].astype(np.int64)
        kind, found = number // 1000, prediction[thing]
        same = _CATEGORY[found] == _CATEGORY[kind]
        sums = [np.bincount(number[x], minlength=1) for x in (found == kind, same, slice(None))]
        sums = np.stack([np.pad(s, (0, _IDS * 1000 - len(s))) for s in sums], -1)
        for label, average in AVERAGE_SIZES.items():
            own = sums[1000 * label : 1000 * (label + 1)]
            own = own[own[:, 2] > 0]
            weighted[label] = (own * (average / own[:, 2:])).sum(0)
    return Counts(cells.reshape(_IDS, _IDS), weighted)


def scores(counts: Counts, *, instances: bool = True) -> dict:
    """Plain numbers: miou, category_miou and, with `instances`, miiou and category_miiou.

    iou, category_iou, iiou and category_iiou hold the parts by name; None where nothing is in truth
    or prediction. Means are over the others.
    """
    matrix, weighted = counts.confusion, counts.weighted
    classes = list(cityscapes.LABEL_IDS)

    def iou(ids, predicted=None, hits=None, missed=None):
        """Of ids as one; a pixel of another class predicted as one of them is a false positive."""
        predicted = list(ids if predicted is None else predicted)
        others = [label for label in classes if label not in ids]
        false = matrix[np.ix_(others, predicted)].sum()
        if hits is None:
            hits = matrix[np.ix_(ids, ids)].sum()
            missed = matrix[list(ids)].sum() - hits
        whole = hits + missed + false
        return float(hits / whole) if whole > 0 else None

    result = {
        'iou': {_NAMES[label]: iou([label]) for label in classes},
        'category_iou': {name: iou(ids) for name, ids in CATEGORIES.items()},
    }
    if instances:
        result['iiou'] = {
            _NAMES[k]: iou([k], hits=weighted[k, 0], missed=weighted[k, 2] - weighted[k, 0])
            for k in AVERAGE_SIZES
        }
        sums = {n: weighted[list(CATEGORIES[n])].sum(0) for n in _THING_CATEGORIES}
        result['category_iiou'] = {
            name: iou(CATEGORIES[name], ids, sums[name][1], sums[name][2] - sums[name][1])
            for name, ids in _THING_CATEGORIES.items()
        }
    means = {'iou': 'miou', 'iiou': 'miiou'}
    means |= {f'category_{name}': f'category_{mean}' for name, mean in means.items()}
    return {mean: _mean(result[n].values()) for n, mean in means.items() if n in result} | result


def is_cityscapes(source) -> bool:
    """Has a source the 19 classes, in the order of the train ids?"""
    return tuple(source.classes) == tuple(CITYSCAPES)


def instance_file(source, index: int) -> pathlib.Path | None:
    """The instanceIds file beside the label file of an element, where both are there."""
    label = source.files(index).get('label')
    if label is None:
        return None
    start, cut, _ = label.name.rpartition('_label')
    path = label.with_name(f'{start}_instanceIds.png')
    return path if cut and path.is_file() else None


def count_element(source, index: int, prediction, label, *, instances: bool) -> Counts:
    """`count` of one element, from label ids predicted and its train ids, both [H,W]."""
    ids = None
    if instances and (path := instance_file(source, index)) is not None:
        ids = read_pixels(path)
        if ids.shape != label.shape:
            found, expected = ('x'.join(map(str, a.shape)) for a in (ids, label))
            raise UserError(path, found, f'{expected}, as its label', 'restore the file.')
        if ids.max(initial=0) >= _IDS * 1000:
            found, expected = f'the value {ids.max()}', f'instance ids below {_IDS * 1000}'
            raise UserError(path, found, expected, 'restore the file.')
    return count(prediction, cityscapes.to_label_ids(label), ids)


def has_instances(source) -> bool:
    """Does every element have its instanceIds file? iIoU of a part compares with nothing."""
    return all(instance_file(source, index) is not None for index in range(len(source)))


def show(result: dict) -> None:
    """Print what the class IoU does not say: categories, and instances where they were counted."""
    for title, part, mean in (
        ('category IoU', 'category_iou', 'category_miou'),
        ('iIoU', 'iiou', 'miiou'),
        ('category iIoU', 'category_iiou', 'category_miiou'),
    ):
        if part in result:
            each = ', '.join(f'{name} {_percent(v)}' for name, v in result[part].items())
            print(f'{title} {_percent(result[mean])}: {each}')


def _percent(value):
    return 'absent' if value is None else f'{100 * value:.2f}'


def _mean(values):
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def _categories():
    """Label id -> number of its category of things; 0 elsewhere."""
    table = np.zeros(_IDS, np.int64)
    for number, ids in enumerate(_THING_CATEGORIES.values(), 1):
        table[list(ids)] = number
    return table


_CATEGORY = _categories()
