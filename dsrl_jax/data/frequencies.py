"""How often each class occurs in a source: the numbers that class weights are made of."""

import numpy as np


def class_frequencies(source, n: int | None = None) -> dict:
    """Counts over `n` evenly spaced elements (None: all) of a source, int64, K classes.

    'pixels' [K] pixels of each class; 'presence' [K] images that hold it; 'present_pixels' [K]
    all pixels of those images, ignored ones too, as SegNet counts; 'ignored' pixels of no class;
    'images' labelled images. Median-frequency balancing takes f = pixels / present_pixels and
    weights median(f) / f; inverse-log weights take pixels / sum(pixels).
    """
    elements = (source[i] for i in spaced(len(source), n) if _may_have_label(source, i))
    counts = [count(e['label'], source.num_classes) for e in elements if 'label' in e]
    return summarize(counts, source.num_classes)


def spaced(length: int, n: int | None) -> list[int]:
    """`n` evenly spaced positions of 0..length-1, the first among them; all for None."""
    if n is None or n >= length:
        return list(range(length))
    return [i * length // n for i in range(n)]


def count(label, num_classes: int) -> np.ndarray:
    """label uint8 [H, W] -> int64 [K + 1]: pixels of each class, pixels of no class last."""
    counts = np.bincount(label.ravel(), minlength=256)
    return np.append(counts[:num_classes], counts[num_classes:].sum())


def summarize(counts, num_classes: int) -> dict:
    """A list of per-image counts [K + 1] -> the dict of `class_frequencies`."""
    table = np.array(counts, np.int64).reshape(-1, num_classes + 1)
    pixels, present = table[:, :-1], table[:, :-1] > 0
    return {
        'pixels': pixels.sum(0),
        'presence': present.sum(0),
        'present_pixels': (table.sum(1, keepdims=True) * present).sum(0),
        'ignored': int(table[:, -1].sum()),
        'images': len(table),
    }


def _may_have_label(source, index: int) -> bool:
    """Not where the files of an element are known and no label is among them: it stays unread."""
    files = source.files(index)
    return 'label' in files or not files
