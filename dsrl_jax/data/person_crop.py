"""The view of one person: which window of the image, drawn as HRNet draws it, and the warp out.

Points are (x, y) with pixel centres at integers; sizes are (height, width). A window is a centre
and a `scale`: its width and height in units of 200 pixels, as HRNet's files have them.
"""

import math

import numpy as np
from PIL import Image

from dsrl_jax.data import geometry
from dsrl_jax.keypoints import mirrored

UNIT = 200
_PADDING, _HALF_PADDING = 1.25, 1.5  # of a box, and of the box around half of the joints
_HALF_JOINTS = 8  # more have to be visible for a view of half a body
_TURNED = 0.6  # probability of a rotation


def random_view(element, rng, *, size, factor, keypoints, pose, flip=True, color=0.0) -> dict:
    """A person -> {'target' uint8 [sH,sW,3], 'mask' bool [sH,sW], 'joints' [J,2], 'visible' [J]}.

    `size` is the network's input (H, W), `factor` s. Drawn in HRNet's order: half a body, scale,
    rotation, mirror image; then colour jitter of strength `color` of the image's own pixels. Reads
    half_body, scale_factor, rotation and encode of the section `pose`. The joints are in pixels
    of the input, (0, 0) where not visible.
    """
    image, joints, visible = element['image'], element['joints'], element['visible']
    aspect = size[1] / size[0]
    center, scale = window(element['box'], aspect)
    if visible.sum() > _HALF_JOINTS and rng.random() < pose.half_body:
        half = half_body(joints, visible, keypoints.upper, aspect, rng)
        center, scale = half or (center, scale)
    spread = pose.scale_factor
    scale = scale * np.clip(1 + spread * rng.normal(), 1 - spread, 1 + spread)
    rotation = 0.0
    if rng.random() < _TURNED:
        rotation = float(np.clip(rng.normal(), -2, 2)) * pose.rotation
    if flip and rng.random() < 0.5:
        image, joints, visible, center = mirror(image, joints, visible, center, keypoints)
    if color:
        image = geometry.jitter_color(image, color, rng)
    matrix = affine(center, scale, rotation, size, udp=pose.encode == 'udp')
    return _view(image, joints, visible, matrix, size, factor)


def whole_view(element, *, size, factor, pose) -> dict:
    """A person -> what `random_view` gives, undisturbed, with its window: 'center', 'scale' [2]."""
    center, scale = window(element['box'], size[1] / size[0])
    matrix = affine(center, scale, 0.0, size, udp=pose.encode == 'udp')
    view = _view(element['image'], element['joints'], element['visible'], matrix, size, factor)
    return {**view, 'center': np.float32(center), 'scale': np.float32(scale)}


def window(box, aspect: float):
    """A box (x, y, width, height) -> centre [2] and scale [2] of its window.

    The shorter side is extended to the aspect (width / height) of the input, then both by 1.25.
    """
    x, y, width, height = (float(value) for value in box)
    center = np.array([x + width / 2, y + height / 2])
    return center, _extended(width, height, aspect) * _PADDING


def half_body(joints, visible, upper, aspect: float, rng):
    """The window of the visible joints [J,2] of one half of the body, or None.

    The upper half where a standard normal draw is below 0.5 and it has more than two joints, else
    the lower, or the upper again where that has two at most. Fewer than two joints, or all in
    one place, are no window.
    """
    is_upper = np.isin(np.arange(len(joints)), upper)
    above, below = joints[(visible > 0) & is_upper], joints[(visible > 0) & ~is_upper]
    if rng.normal() < 0.5 and len(above) > 2:
        chosen = above
    else:
        chosen = below if len(below) > 2 else above
    if len(chosen) < 2 or not np.ptp(chosen, axis=0).any():
        return None
    width, height = np.ptp(chosen, axis=0).tolist()
    return chosen.mean(0, dtype=float), _extended(width, height, aspect) * _HALF_PADDING


def mirror(image, joints, visible, center, keypoints):
    """The mirror image [H,W,3], its joints with left and right exchanged, its centre."""
    last, order = image.shape[1] - 1, list(mirrored(keypoints))
    joints = np.stack([last - joints[order, 0], joints[order, 1]], axis=1)
    return image[:, ::-1], joints, visible[order], np.array([last - center[0], center[1]])


def affine(center, scale, rotation: float, size, *, udp: bool = False) -> np.ndarray:
    """[2,3]: points of the image -> points of the view of `size` (H, W); rotation in degrees.

    The window's centre goes to (W/2, H/2) and its width to W pixels; its height follows from the
    same factor. With `udp` lengths are measured between pixel centres: width and height go
    to W - 1 and H - 1, the centre to the middle of those.
    """
    height, width = size
    window = np.asarray(scale, float) * UNIT
    if udp:
        end = np.array([width - 1, height - 1], float)
        factors = end / window
    else:
        end = np.array([width, height], float)
        factors = np.full(2, width / window[0])
    cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    linear = factors[:, None] * np.array([[cosine, sine], [-sine, cosine]])
    return np.hstack([linear, (end / 2 - linear @ np.asarray(center, float))[:, None]])


def enlarged(matrix, factor: int) -> np.ndarray:
    """[2,3] to a view -> [2,3] to the view of `factor` times the size, of which it is the shrink.

    A pixel of the small view covers factor x factor pixels of the large one, so its centre lies
    between theirs: large = factor * small + (factor - 1) / 2.
    """
    return factor * np.asarray(matrix) + [[0, 0, (factor - 1) / 2]]


def transform(matrix, points) -> np.ndarray:
    """Points [..., 2] under the affine map [2,3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp(image, matrix, size) -> np.ndarray:
    """uint8 [H,W,3] -> uint8 [h,w,3] of `size`: the image under `matrix`, bilinear, black outside.

    Black begins a pixel beyond the last centres, and values are rounded down, as Pillow does.
    """
    height, width = size
    inverse = _inverse(matrix)
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    reached = transform(inverse, corners)
    # Only what the view shows is handed over, with a black pixel around the image.
    low = np.maximum(np.floor(reached.min(0)).astype(int) - 1, -1)
    high = np.minimum(
        np.ceil(reached.max(0)).astype(int) + 2, [image.shape[1] + 1, image.shape[0] + 1]
    )
    if (high - low < 2).any():
        return np.zeros((height, width, 3), np.uint8)
    piece = np.zeros((high[1] - low[1], high[0] - low[0], 3), np.uint8)
    first, last = np.maximum(low, 0), np.minimum(high, [image.shape[1], image.shape[0]])
    inside = tuple(slice(a - l, b - l) for a, b, l in zip(first[::-1], last[::-1], low[::-1]))
    piece[inside] = image[first[1] : last[1], first[0] : last[0]]
    # Pillow's centres lie at half integers.
    shift = inverse[:, 2] - low + 0.5 - inverse[:, :2].sum(1) / 2
    data = np.hstack([inverse[:, :2], shift[:, None]]).ravel().tolist()
    way = Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    return np.array(Image.fromarray(piece).transform((width, height), *way))


def _view(image, joints, visible, matrix, size, factor):
    large = size[0] * factor, size[1] * factor
    joints = np.where(visible[:, None] > 0, transform(matrix, joints), 0)
    return {
        'target': warp(image, enlarged(matrix, factor), large),
        'mask': np.ones(large, bool),  # black beyond the image is a part of the view, as in HRNet
        'joints': joints.astype(np.float32),
        'visible': visible.astype(np.float32),
    }


def _extended(width, height, aspect):
    """The smallest [2] of the aspect around width and height, in units of 200 pixels."""
    return np.array([max(width, height * aspect), max(height, width / aspect)]) / UNIT


def _inverse(matrix):
    linear = np.linalg.inv(matrix[:, :2])
    return np.hstack([linear, -(linear @ matrix[:, 2])[:, None]])
