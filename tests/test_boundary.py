"""Bands counted by hand, by loops and by erosion; void and the frame are no border."""

import numpy as np
import pytest
from scipy import ndimage

from dsrl_jax import boundary, metrics
from dsrl_jax.errors import UserError

WIDTHS = (1, 2, 3, 4)
VOID = 255


def patches(seed, classes=4, void=False, size=(30, 41)):
    """A map of blobs of a few pixels."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((classes, *size)), (0, 2, 2))
    label = smooth.argmax(0).astype(np.uint8)
    if void:
        label[ndimage.gaussian_filter(rng.random(size), 1) > 0.6] = VOID
    return label


def split(at, size=(6, 20)):
    """Class 0 left of a vertical line, class 1 right of it."""
    return np.broadcast_to(np.arange(size[1]) >= at, size).astype(np.uint8)


def test_bands_of_a_straight_line():
    """w columns on either side, and nothing along the frame."""
    for width, band in boundary.bands(split(9), WIDTHS).items():
        columns = np.arange(20)
        expected = (columns >= 9 - width) & (columns < 9 + width)
        assert (band == expected).all() and band.sum() == 6 * 2 * width


def test_bands_equal_their_definition():
    label = patches(0, void=True)
    assert (label == VOID).any()
    bands = boundary.bands(label, (1, 3))
    for width, band in bands.items():
        for row, column in np.ndindex(label.shape):
            top, left = max(row - width, 0), max(column - width, 0)
            window = label[top : row + width + 1, left : column + width + 1]
            others = (window != label[row, column]) & (window != VOID)
            assert band[row, column] == (label[row, column] != VOID and others.any())
    assert (bands[3] >= bands[1]).all() and bands[1].any() and not bands[3].all()


def test_class_bands_are_what_erosion_takes():
    """Boundary IoU's own definition of the band: mask minus the mask eroded w times by 3x3."""
    label, prediction = patches(1), patches(2)
    got = boundary.contour_counts(prediction, label, WIDTHS, 4)
    for w, width in enumerate(WIDTHS):
        for k in range(4):
            inner = []
            for mask in (label == k, prediction == k):
                kept = ndimage.binary_erosion(mask, np.ones((3, 3)), width, border_value=1)
                inner.append(mask & ~kept)
            expected = (inner[0] & inner[1]).sum(), (inner[0] | inner[1]).sum()
            assert tuple(got[w, k]) == expected


def test_a_line_one_pixel_off():
    """Each band of w columns meets the other in w - 1; in the trimap one column is wrong."""
    label, prediction = split(9), split(10)
    iou = boundary.iou(boundary.contour_counts(prediction, label, WIDTHS, 2))
    trimap = boundary.counts(prediction, label, WIDTHS, 2)
    for w, width in enumerate(WIDTHS):
        assert iou[w] == pytest.approx([(width - 1) / (width + 1)] * 2)
        assert trimap[w].tolist() == [[6 * width, 0, 0], [6, 6 * (width - 1), 0]]
        expected = (width / (width + 1) + (width - 1) / width) / 2
        assert metrics.mean_iou(trimap[w]) == pytest.approx(expected)


def test_trimap_counts_are_the_confusion_of_the_band():
    label, prediction = patches(3, void=True), patches(4)
    prediction[::7] = VOID  # a background output that won: a miss
    got = boundary.counts(prediction, label, (4, 2), 4)
    assert got.shape == (2, 4, 5) and got.dtype == np.int64
    for counted, band in zip(got, boundary.bands(label, (4, 2)).values(), strict=True):
        for k in range(4):
            for p in (0, 1, 2, 3, VOID):
                expected = (band & (label == k) & (prediction == p)).sum()
                assert counted[k, min(p, 4)] == expected
    assert got[0, :, 4].sum() > 0


def test_void_never_counts():
    """Whatever is predicted there, also where it makes or moves a border of the prediction."""
    label = patches(5, void=True)
    void = label == VOID
    prediction = np.where(void, 0, patches(6))
    for value in (patches(7), np.full_like(label, VOID)):
        other = np.where(void, value, prediction)
        for function in (boundary.counts, boundary.contour_counts):
            expected = function(prediction, label, WIDTHS, 4)
            np.testing.assert_array_equal(function(other, label, WIDTHS, 4), expected)
    assert boundary.counts(prediction, np.full_like(label, VOID), WIDTHS, 4).sum() == 0


def test_right_everywhere_known_is_perfect():
    label = patches(8, void=True)
    prediction = np.where(label == VOID, patches(9), label)
    assert (boundary.iou(boundary.contour_counts(prediction, label, WIDTHS, 4)) == 1).all()
    assert (metrics.mean_iou(boundary.counts(prediction, label, WIDTHS, 4)) == 1).all()


def test_a_class_without_a_border_has_no_score():
    flat = np.zeros((8, 8), np.uint8)
    assert np.isnan(boundary.iou(boundary.contour_counts(flat, flat, WIDTHS, 2))).all()
    dotted = flat.copy()
    dotted[4, 4] = 1
    iou = boundary.iou(boundary.contour_counts(dotted, flat, WIDTHS, 2))
    assert (iou == 0).all()  # the dot's own border and that around it are both invented


def test_labels_beyond_the_classes_and_other_sizes_are_refused():
    label = patches(10)
    for function in (boundary.counts, boundary.contour_counts):
        with pytest.raises(UserError, match='the values 3'):
            function(label, label, WIDTHS, 3)
        with pytest.raises(ValueError, match='differ'):
            function(label[:-1], label, WIDTHS, 4)
