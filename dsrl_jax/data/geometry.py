"""Geometry and colour of training and evaluation views; NumPy arrays, Pillow's filters.

Everything here acts on the large view; the small input is made from it later, on the device.
Pixel centres lie at half integers, for images and labels alike, so the two stay aligned.
"""

import math

import numpy as np
from PIL import Image

from dsrl_jax.data.sources import IGNORE
from dsrl_jax.errors import UserError

_LUMA = np.array([0.299, 0.587, 0.114])


def random_view(image, label, size, rng, *, scale_range=(1.0, 1.0), flip=False, color=0.0, fill):
    """image [H, W, 3], label [H, W] -> {'target' [sH, sW, 3], 'label', 'mask' [sH, sW]}: a view.

    Scale log-uniform in `scale_range`, a random crop (or a random place on the `fill` colour where
    the scaled image is smaller), a flip with probability 1/2, and colour jitter of the real pixels.
    """
    height, width = image.shape[:2]
    factor = math.exp(rng.uniform(math.log(scale_range[0]), math.log(scale_range[1])))
    scaled = max(round(height * factor), 1), max(round(width * factor), 1)
    rows, columns = (_random_window(n, m, rng) for n, m in zip(scaled, size, strict=True))
    window = (rows[0], columns[0], rows[1], columns[1])
    image, label = scaled_crop(image, label, scaled, window)
    if flip and rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    if color:
        image = jitter_color(image, color, rng)
    return place(image, label, size, (rows[2], columns[2]), fill)


def scaled_crop(image, label, scaled, window):
    """The window (top, left, height, width) of both arrays resized to `scaled` (height, width).

    Image: antialiased bilinear; label: nearest. Only the window is computed, which for a crop
    from an enlarged image is most of the time saved.
    """
    top, left, height, width = window
    fy, fx = image.shape[0] / scaled[0], image.shape[1] / scaled[1]
    if (fy, fx) == (1, 1):
        inside = slice(top, top + height), slice(left, left + width)
        return image[inside], label[inside]
    box = (left * fx, top * fy, (left + width) * fx, (top + height) * fy)
    rows = np.minimum(((top + np.arange(height) + 0.5) * fy).astype(int), image.shape[0] - 1)
    columns = np.minimum(((left + np.arange(width) + 0.5) * fx).astype(int), image.shape[1] - 1)
    return _bilinear(image, (height, width), box), label[rows][:, columns]


def place(image, label, size, offset, fill):
    """The view of `size` with the image at `offset`; around it colour `fill`, 255, mask False."""
    (top, left), (height, width) = offset, image.shape[:2]
    inside = slice(top, top + height), slice(left, left + width)
    target = np.empty((*size, 3), np.uint8)
    target[:] = fill
    target[inside] = image
    label_view = np.full(size, IGNORE, label.dtype)
    label_view[inside] = label
    mask = np.zeros(size, bool)
    mask[inside] = True
    return {'target': target, 'label': label_view, 'mask': mask}


def jitter_color(image, strength: float, rng):
    """uint8 [H, W, 3] -> the same with brightness, contrast and saturation changed.

    Three factors uniform in 1 +- strength; contrast about the mean grey of the image, saturation
    about each pixel's grey. All three are linear, so they are one 3x4 matrix and one rounding.
    """
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, 3)
    picture = Image.fromarray(np.ascontiguousarray(image))
    grey = brightness * float(np.asarray(picture.convert('L')).mean())
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * _LUMA)
    offset = np.full((3, 1), (1 - contrast) * grey)  # the grey axis is what saturation keeps
    return np.array(picture.convert('RGB', tuple(np.hstack([matrix, offset]).ravel())))


def fit(image, size, how: str, fill, name='image'):
    """image [H, W, 3] -> {'target' [sH, sW, 3], 'mask' [sH, sW], 'region' int32 [4]} for scoring.

    how='pad': the image in the middle of the `fill` colour, the odd row or column below or right;
    how='resize': antialiased bilinear to the whole view. `region` is (top, left, height, width) of
    the real image inside the target. Raises UserError where 'pad' meets a larger image.
    """
    height, width = image.shape[:2]
    if how == 'resize':
        whole = (0, 0, *size)
        if (height, width) != tuple(size):
            image = _bilinear(image, size, (0, 0, width, height))
        return {
            'target': np.array(image),
            'mask': np.ones(size, bool),
            'region': np.array(whole, np.int32),
        }
    if how != 'pad':
        raise UserError('data.eval_fit', repr(how), "'pad' or 'resize'", 'choose one of these.')
    if height > size[0] or width > size[1]:
        raise UserError(
            name,
            f'an image of {height}x{width} (HxW)',
            f'at most the evaluation size {size[0]}x{size[1]}',
            'enlarge data.eval_size or set data.eval_fit=resize.',
        )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    view = place(image, np.zeros((height, width), np.uint8), size, (top, left), fill)
    region = np.array((top, left, height, width), np.int32)
    return {'target': view['target'], 'mask': view['mask'], 'region': region}


def _random_window(length: int, wanted: int, rng) -> tuple[int, int, int]:
    """(start in the scaled image, length taken, start in the view) along one axis."""
    slack = length - wanted
    start = int(rng.integers(abs(slack) + 1))
    return (start, wanted, 0) if slack >= 0 else (0, length, start)


def _bilinear(image, size, box):
    # Pillow's BILINEAR widens its triangle when it shrinks: that is the antialiasing.
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box))
