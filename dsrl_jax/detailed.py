"""Counts of every image of a split, and the scores of any of its images from them.

One pass over the predictions (`segmentation.predictions`) gives what the pooled mean IoU, thin
classes, borders (`boundary`) and intervals over stretches of film (`statistics.block_bootstrap`)
need.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from dsrl_jax import boundary, metrics
from dsrl_jax.data import camvid


def count(
    predictions: Iterable[tuple], source, widths: Sequence[int] = boundary.WIDTHS
) -> dict[str, np.ndarray]:
    """(index, prediction [H,W], label [H,W]) of every image -> arrays in the source's order.

    names [images]; confusion int32 [images,K,K+1], rows the truth, column K predictions of no
    class; trimap int32 [images,widths,K,K+1] and contour int32 [images,widths,K,2] of `boundary`;
    widths. numpy's savez takes them as they are. ValueError unless each image comes once.
    """
    images, classes = len(source), len(source.classes)
    confusion = np.zeros((images, classes, classes + 1), np.int32)
    trimap = np.zeros((images, len(widths), classes, classes + 1), np.int32)
    contour = np.zeros((images, len(widths), classes, 2), np.int32)
    names, seen = [''] * images, np.zeros(images, int)
    for index, prediction, label in predictions:
        trimap[index] = boundary.counts(prediction, label, widths, classes)
        contour[index] = boundary.contour_counts(prediction, label, widths, classes)
        confusion[index] = _confusion(prediction, label, classes)
        names[index] = source[index]['name']
        seen[index] += 1
    if (seen != 1).any():
        raise ValueError(
            f'{(seen == 0).sum()} of {images} images missing, {(seen > 1).sum()} twice'
        )
    return {
        'names': np.array(names),
        'confusion': confusion,
        'trimap': trimap,
        'contour': contour,
        'widths': np.array(widths),
    }


def pooled(arrays: dict, classes: Sequence[str], *, rows=None, thin=camvid.THIN) -> dict:
    """Plain numbers of the images `rows` (None: all; indices or a mask) from the arrays of `count`.

    images, miou, thin_miou, pixel_accuracy, iou (list by class), and lists by width: trimap_miou,
    boundary_iou (mean over classes), thin_boundary_iou. Pixels are summed over the images first.
    None where no pixel is (thin: where the data set has none of these classes).
    """
    rows = slice(None) if rows is None else rows
    confusion, trimap, contour = (
        arrays[name][rows].sum(0, dtype=np.int64) for name in ('confusion', 'trimap', 'contour')
    )
    fine = [index for index, name in enumerate(classes) if name in thin]
    hit, truth, _ = metrics.hits_truths_unions(confusion)
    borders = boundary.iou(contour)
    return {
        'images': len(arrays['confusion'][rows]),
        'miou': _plain(metrics.mean_iou(confusion)),
        'thin_miou': _plain(metrics.mean_iou(confusion, fine)),
        'pixel_accuracy': _plain(hit.sum() / truth.sum() if truth.any() else np.nan),
        'iou': [_plain(metrics.mean_iou(confusion, [k])) for k in range(len(classes))],
        'widths': arrays['widths'].tolist(),
        'trimap_miou': [_plain(value) for value in metrics.mean_iou(trimap)],
        'boundary_iou': [_mean(row) for row in borders],
        'thin_boundary_iou': [_mean(row[fine]) for row in borders],
    }


def _confusion(prediction, label, classes: int) -> np.ndarray:
    """Counts [K,K+1] of the known pixels of one image; `boundary` has refused stray labels."""
    known = label != boundary.IGNORE
    truth, found = label[known].astype(np.int64), prediction[known].astype(np.int64)
    found = np.where((found >= 0) & (found < classes), found, classes)
    cells = np.bincount(truth * (classes + 1) + found, minlength=classes * (classes + 1))
    return cells.reshape(classes, classes + 1)


def _mean(values):
    """Mean of the entries that are numbers, None if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _plain(value):
    """A float, or None for NaN: JSON has no NaN."""
    return None if np.isnan(value) else float(value)
