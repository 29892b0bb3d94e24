"""Scores near class borders: trimap counts and boundary IoU, 1 to 4 pixels wide.

Trimap (Kraehenbuehl and Koltun, NIPS 2011): the confusion matrix of the pixels that lie within w
pixels of a border of the label. Boundary IoU (Cheng et al., CVPR 2021): a class mask's inner band
is what an erosion by w pixels takes away; the IoU is that of the label's band with the
prediction's.

Distance is the chessboard's, max(|rows|, |columns|): w erosions by a 3x3 square, as in the public
code of boundary IoU (the trimap's authors do not say), so a straight border has a band of w pixels
on either side. A border runs between two known classes. Void and the frame of the picture are
none, since nobody knows what lies there (the code of boundary IoU counts the frame, on which every
prediction is right): void pixels are taken out of the prediction too and are in no count.
"""

from collections.abc import Sequence

import numpy as np

from dsrl_jax.errors import UserError

WIDTHS = (1, 2, 3, 4)
IGNORE = 255
_VOID = -1  # while counting: no class, and not the background K of a prediction


def bands(label: np.ndarray, widths: Sequence[int] = WIDTHS, ignore: int = IGNORE) -> dict:
    """Class map [H,W] -> {width: bool [H,W], known pixels within `width` of another class}."""
    near = border_distance(label, max(widths), ignore)
    return {width: near <= width for width in widths}


def counts(
    prediction, label, widths: Sequence[int], num_classes: int, ignore: int = IGNORE
) -> np.ndarray:
    """Confusion counts of the label's bands: maps [H,W] x2 -> int64 [widths,K,K+1].

    Rows are the truth; column K holds predictions of none of the K classes, which are misses.
    `metrics.mean_iou` of the sum over images is the trimap mean IoU of each width.
    """
    prediction, label = _checked(prediction, label, num_classes, ignore)
    near = border_distance(label, max(widths), _VOID)
    cell = label * (num_classes + 1) + prediction
    return _by_width(near, cell, widths, num_classes * (num_classes + 1)).reshape(
        len(widths), num_classes, num_classes + 1
    )


def contour_counts(
    prediction, label, widths: Sequence[int], num_classes: int, ignore: int = IGNORE
) -> np.ndarray:
    """Pixels in both and in either inner band of each class: maps [H,W] x2 -> int64 [widths,K,2].

    `iou` of the sum over images is the boundary IoU of each width and class.
    """
    prediction, label = _checked(prediction, label, num_classes, ignore)
    true, found = (border_distance(m, max(widths), _VOID) for m in (label, prediction))
    agreed = np.where(prediction == label, np.maximum(true, found), max(widths) + 1)
    both = _by_width(agreed, label, widths, num_classes)
    of_label = _by_width(true, label, widths, num_classes)
    of_prediction = _by_width(found, prediction, widths, num_classes)
    return np.stack([both, of_label + of_prediction - both], -1)


def iou(contours) -> np.ndarray:
    """Summed contour counts [..., 2] -> boundary IoU [...] float64, NaN where no band is."""
    both, either = np.moveaxis(np.asarray(contours, np.float64), -1, 0)
    return np.where(either > 0, both / np.where(either > 0, either, 1), np.nan)


def border_distance(label: np.ndarray, furthest: int, ignore: int = IGNORE) -> np.ndarray:
    """Chessboard distance to the nearest known pixel of another class, [H,W] -> uint8 [H,W].

    1 .. furthest; furthest + 1 where it is more and at void pixels.
    """
    label = np.asarray(label).astype(np.int32)
    void = label == ignore
    # A window holds another class where its least or its greatest known value is another one.
    least = np.where(void, np.iinfo(np.int32).max, label)
    most = np.where(void, np.iinfo(np.int32).min, label)
    distance = np.ones(label.shape, np.uint8)
    for _ in range(furthest):
        least, most = _grown(least, np.minimum), _grown(most, np.maximum)
        distance += (least >= label) & (most <= label)
    distance[void] = furthest + 1
    return distance


def _grown(x: np.ndarray, of_two) -> np.ndarray:
    """The minimum or maximum of every 3x3 window that lies in the picture."""
    out = x.copy()
    of_two(out[1:], x[:-1], out=out[1:])
    of_two(out[:-1], x[1:], out=out[:-1])
    x = out.copy()
    of_two(out[:, 1:], x[:, :-1], out=out[:, 1:])
    of_two(out[:, :-1], x[:, 1:], out=out[:, :-1])
    return out


def _by_width(distance, cell, widths, cells: int) -> np.ndarray:
    """Pixels of each cell within each width, [H,W] x2 -> int64 [widths, cells]."""
    inside = (distance <= max(widths)) & (cell >= 0) & (cell < cells)
    flat = (distance[inside].astype(np.int64) - 1) * cells + cell[inside]
    rings = np.bincount(flat, minlength=max(widths) * cells).reshape(max(widths), cells)
    return rings.cumsum(0)[np.array(widths) - 1]


def _checked(prediction, label, num_classes: int, ignore: int):
    """Both maps as int32, _VOID where the label is void; the prediction K where it is no class."""
    prediction, label = np.asarray(prediction, np.int32), np.asarray(label, np.int32)
    if prediction.shape != label.shape:
        raise ValueError(f'prediction {prediction.shape} and label {label.shape} differ')
    void = label == ignore
    wrong = np.unique(label[~void & ((label < 0) | (label >= num_classes))])
    if wrong.size:
        raise UserError(
            'labels',
            f'the values {", ".join(map(str, wrong[:5]))}',
            f'ids 0..{num_classes - 1} or {ignore} (ignore)',
            'map the labels first, or mend num_classes.',
        )
    known = (prediction >= 0) & (prediction < num_classes)
    prediction = np.where(known, prediction, num_classes)
    return np.where(void, _VOID, prediction), np.where(void, _VOID, label)
