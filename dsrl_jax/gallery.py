"""Pictures of an evaluation: the first images and the worst, IoU by class, the confusion matrix."""

import pathlib
from collections.abc import Iterator

import numpy as np

from dsrl_jax import boundary, parallel
from dsrl_jax.report.confusion import plot_confusion
from dsrl_jax.report.curves import plot_class_iou
from dsrl_jax.report.overlay import colorize, error_map, grid, overlay, save_png

_BORDER = 4  # pixels


class Gallery:
    """The first images of a split and those with the lowest pixel accuracy, as pictures.

    Of several processes each sees its own rows, and the first one's are drawn.
    """

    def __init__(self, count: int):
        self.wanted, self.first, self.worst = count, [], []

    def add(self, batch: dict, result: dict) -> None:
        """Look at one batch; keep what belongs in the pictures."""
        sr = parallel.local_rows(result['sr']) if 'sr' in result else None
        for row, found, truth in images(batch, result):
            known = truth != 255
            accuracy = float((truth == found)[known].mean()) if known.any() else 1.0
            keep_first = len(self.first) < self.wanted
            if keep_first or len(self.worst) < self.wanted or accuracy < self.worst[-1][0]:
                top, left, h, w = batch['region'][row]
                image = batch['target'][row, top : top + h, left : left + w]
                view = None if sr is None else sr[row, top : top + h, left : left + w]
                item = (accuracy, int(batch['index'][row]), image, truth, found, view)
                if keep_first:
                    self.first.append(item)
                self.worst = sorted([*self.worst, item], key=lambda i: i[0])[: self.wanted]

    def save(self, folder: pathlib.Path, source, counts, iou) -> None:
        """Write one PNG an image under first/ and worst/, class_iou.png and confusion.png.

        `counts` [K+1,K+1] are those of metrics.Confusion, `iou` [K] shares, None where absent.
        """
        colors, classes = source.colors, source.classes
        shares = [np.nan if value is None else value for value in iou]
        plot_class_iou({source.split: shares}, classes, folder / 'class_iou.png')
        plot_confusion(counts[: len(classes)], classes, folder / 'confusion.png')
        for name, items in (('first', self.first), ('worst', self.worst)):
            for rank, (accuracy, index, image, truth, found, view) in enumerate(items):
                pictures, captions = [image], ['image']
                if view is not None:
                    pictures.append(np.uint8(np.round(255 * view)))
                    captions.append('SR branch')
                pictures += [
                    overlay(_like(image, truth), truth, colors),
                    colorize(found, colors),
                    error_map(found, truth, boundary.bands(truth, (_BORDER,))[_BORDER]),
                ]
                captions += ['truth', f'prediction, {100 * accuracy:.1f} % right']
                captions.append(f'errors, amber within {_BORDER} pixels of a border')
                save_png(grid([pictures], [captions]), folder / name / f'{rank}_{index:05d}.png')


def images(batch: dict, result: dict) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, prediction, label) of this process's images of a batch, [H,W] at their own sizes."""
    prediction = parallel.local_rows(result['prediction'])
    for row in np.flatnonzero(batch['valid']):
        height, width = batch['size'][row]
        yield row, prediction[row, :height, :width], batch['label'][row, :height, :width]


def _like(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The image at the label's size, by nearest pixels."""
    rows = np.arange(label.shape[0]) * image.shape[0] // label.shape[0]
    columns = np.arange(label.shape[1]) * image.shape[1] // label.shape[1]
    return image[rows][:, columns]
