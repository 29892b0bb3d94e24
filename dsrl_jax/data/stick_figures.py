"""The pose data without a download: two stick figures a scene, drawn from (seed, split, index).

Left and right look alike, so the body decides: a figure with a face stands towards the viewer, one
without has its back to them and no nose or eyes. The nearer figure may hide joints of the other,
which are labelled then as COCO labels hidden ones (v = 1); joints outside the scene are not.
"""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from dsrl_jax.data.persons import colors
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.keypoints import COCO

LENGTHS = {'train': 512, 'val': 64, 'test': 64}  # persons
_FIGURES = 2  # in a scene
_FINE = 2  # scenes are drawn so many times larger, then averaged


class StickFigureSource:
    """Random access to persons; see persons.py for the elements. `size` is that of the large view.

    Nothing is stored, so the object pickles as its few arguments; item i depends on
    (seed, split, i, size) alone. Raises UserError for an unknown split or an unusable size.
    """

    keypoints = COCO
    classes = COCO.names
    colors = colors(COCO)
    num_classes = len(COCO.names)
    ignore = 255

    def __init__(self, split='train', size=(256, 192), length=None, seed=0):
        self.split, self.seed = split, int(seed)
        default = lookup(LENGTHS, split, 'data.split')
        self._length = int(default if length is None else length)
        if min(size) < 32:
            remedy = 'choose a size of at least 32x32.'
            raise UserError('data.size', f'{size}', 'room for a figure', remedy)
        # Two figures that fill most of the height, now and then one before the other.
        self.size = round(size[0] * 5 / 4), round(size[1] * 3 / 2)

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        image, figure = self._figure(index)
        return {
            'image': image,
            'joints': figure['joints'],
            'visible': (figure['v'] > 0).astype(np.float32),
            'box': figure['box'],
            'score': np.float32(1),
            'image_id': np.int32(self._image_id(index)),
            'name': self.element_name(index),
        }

    def files(self, index):
        """No item lies on disk."""
        return {}

    def element_name(self, index):
        """Split, scene and person."""
        return f'{self.split}_{index // _FIGURES:05d}_{index % _FIGURES}'

    def image_size(self, index):
        """Every scene is drawn at one size."""
        return self.size

    def labelled_joints(self) -> np.ndarray:
        """bool [N,J]: which joints of the persons are labelled."""
        return np.array([self._figure(index)[1]['v'] > 0 for index in range(len(self))])

    def ground_truth(self) -> dict:
        """Images and annotations of the split in COCO's form."""
        height, width = self.size
        scenes = sorted({self._image_id(index) for index in range(len(self))})
        return {
            'images': [
                {'id': n, 'file_name': f'{n:012d}.png', 'height': height, 'width': width}
                for n in scenes
            ],
            'annotations': [self._annotation(index) for index in range(len(self))],
            'categories': [
                {
                    'id': 1,
                    'name': 'person',
                    'supercategory': 'person',
                    'keypoints': list(COCO.names),
                    'skeleton': [[a + 1, b + 1] for a, b in COCO.skeleton],
                }
            ],
        }

    def _annotation(self, index):
        figure = self._figure(index)[1]
        marks = np.column_stack([figure['joints'], figure['v']]).astype(float)
        return {
            'id': self._first_id() + index,
            'image_id': self._image_id(index),
            'category_id': 1,
            'iscrowd': 0,
            'area': float(figure['area']),
            'bbox': figure['box'].astype(float).tolist(),
            'num_keypoints': int((figure['v'] > 0).sum()),
            'keypoints': marks.ravel().tolist(),
        }

    def _image_id(self, index):
        return self._first_id() + index // _FIGURES

    def _first_id(self):
        # No image has the id of one of another split; ids start at 1, as COCO's evaluation needs.
        return list(LENGTHS).index(self.split) * 10**6 + 1

    def _figure(self, index):
        """(image [H,W,3], {'joints' [J,2], 'v' [J], 'box' [4], 'area'}) of one person."""
        index = int(index)
        if not 0 <= index < self._length:
            raise IndexError(f'index {index} of a split of {self._length} persons')
        key = (self.seed, list(LENGTHS).index(self.split), index // _FIGURES)
        image, figures = _scene(key, *self.size)
        return image.copy(), figures[index % _FIGURES]


@functools.lru_cache(maxsize=4)
def _scene(key, height, width):
    """image uint8 [H,W,3] and its figures, the farther one first."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    picture = _background(rng, height * _FINE, width * _FINE)
    figures, masks = [], []
    places = rng.permutation(_FIGURES)
    for place in places:
        tall = height * rng.uniform(0.55, 0.8)
        across = width * (place + 0.5 + np.clip(rng.normal(0, 0.2), -0.3, 0.3)) / _FIGURES
        joints, front = _body(rng)
        # The body's origin is its hip, which half of its height lies below.
        joints = joints * tall + [across, height * rng.uniform(0.47, 0.58)]
        mask = Image.new('L', picture.size)
        _draw(rng, picture, mask, joints * _FINE, tall * _FINE, front)
        figures.append((joints, front))
        masks.append(np.array(mask.reduce(_FINE)) > 127)
    image = np.array(picture.reduce(_FINE)).astype(float)
    image = image * rng.uniform(0.8, 1.15) + rng.normal(0, 4, (height, width, 1))
    seen = [masks[0] & ~masks[1], masks[1]]
    marked = [
        _mark(joints, front, visible, mask)
        for (joints, front), visible, mask in zip(figures, seen, masks)
    ]
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), marked


def _mark(joints, front, seen, mask):
    """What is annotated of a figure whose pixels are `mask` [H,W], of which one sees `seen`."""
    height, width = mask.shape
    columns, rows = np.round(joints).astype(int).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    at = np.where(inside, rows, 0), np.where(inside, columns, 0)
    v = np.where(inside, np.where(mask[at] & ~seen[at], 1, 2), 0)
    if not front:
        v[:3] = 0  # nose and eyes
    y, x = np.nonzero(seen)
    box = np.array([x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1], np.float32)
    joints = np.where(v[:, None] > 0, joints, 0).astype(np.float32)
    return {'joints': joints, 'v': v, 'box': box, 'area': seen.sum()}


def _body(rng):
    """(the joints [17,2] of a body of height 1 about its hip, whether one sees its face)."""
    front = rng.random() < 0.75
    turn = rng.uniform(0.55, 1)  # how much of the width one sees
    lean = math.radians(rng.normal(0, 9))
    up = np.array([math.sin(lean), -math.cos(lean)])
    # Towards the left hand: to the right in the image where the face is seen.
    left = np.array([-up[1], up[0]]) * (1 if front else -1)
    neck = 0.30 * up
    nod = lean + math.radians(rng.normal(0, 10))
    above = np.array([math.sin(nod), -math.cos(nod)])
    aside = np.array([-above[1], above[0]]) * (1 if front else -1)
    head = neck + 0.115 * above
    look = rng.uniform(-0.018, 0.018) * aside
    joints = [head + look - 0.006 * above]
    joints += [head + look + 0.02 * above + side * 0.027 * turn * aside for side in (1, -1)]
    joints += [head + side * 0.062 * max(turn, 0.8) * aside for side in (1, -1)]
    shoulders = [neck + side * 0.115 * turn * left for side in (1, -1)]
    hips = [side * 0.068 * turn * left for side in (1, -1)]
    arms = [
        _limb(rng, s, -up, side * left, (0.16, 0.15), (-15, 150), (-25, 110))
        for s, side in zip(shoulders, (1, -1))
    ]
    legs = [
        _limb(rng, s, -up, side * left, (0.24, 0.24), (-8, 32), (-22, 12))
        for s, side in zip(hips, (1, -1))
    ]
    for pair in (shoulders, [a[0] for a in arms], [a[1] for a in arms]):
        joints += pair
    for pair in (hips, [a[0] for a in legs], [a[1] for a in legs]):
        joints += pair
    return np.array(joints), front


def _limb(rng, start, down, out, lengths, swings, bends):
    """The two joints after `start`: angles in degrees from `down` towards `out`."""
    first = math.radians(rng.uniform(*swings))
    second = first + math.radians(rng.uniform(*bends))
    middle = start + lengths[0] * (math.cos(first) * down + math.sin(first) * out)
    return middle, middle + lengths[1] * (math.cos(second) * down + math.sin(second) * out)


def _draw(rng, picture, mask, joints, tall, front):
    """Paint a figure on the picture, and its shape on the mask."""
    skin = _SKINS[rng.integers(len(_SKINS))]
    shirt, trousers, hair = (rng.integers(20, 235, 3) for _ in range(3))
    sleeve = shirt * rng.uniform(0.7, 0.9)
    canvases = ImageDraw.Draw(picture), ImageDraw.Draw(mask)

    def line(a, b, width, color):
        for pen, ink in zip(canvases, (_ink(color), 255)):
            pen.line([*a, *b], ink, round(width))
            for x, y in (a, b):
                pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], ink)

    def disc(center, radius, color, *, shape=True):
        for pen, ink in list(zip(canvases, (_ink(color), 255)))[: 2 if shape else 1]:
            pen.ellipse([*(center - radius), *(center + radius)], ink)

    for hip, knee, ankle in ((11, 13, 15), (12, 14, 16)):
        line(joints[hip], joints[knee], 0.075 * tall, trousers)
        line(joints[knee], joints[ankle], 0.06 * tall, trousers * 0.9)
    torso = [tuple(joints[j]) for j in (5, 6, 12, 11)]
    for pen, ink in zip(canvases, (_ink(shirt), 255)):
        pen.polygon(torso, ink)
    for a, b in ((5, 6), (6, 12), (12, 11), (11, 5)):
        line(joints[a], joints[b], 0.06 * tall, shirt)
    head = joints[[3, 4]].mean(0)
    line(joints[[5, 6]].mean(0), head, 0.055 * tall, skin)
    for ear in (3, 4):
        disc(joints[ear], 0.016 * tall, skin)
    disc(head, 0.064 * tall, skin if front else hair)
    if front:
        crown = head + 0.035 * (head - joints[[5, 6]].mean(0)) / 0.115
        disc(crown, 0.045 * tall, hair)
        for eye in (1, 2):
            disc(joints[eye], 0.011 * tall, (20, 20, 30), shape=False)
        disc(joints[0], 0.009 * tall, np.array(skin) * 0.6, shape=False)
    for shoulder, elbow, wrist in ((5, 7, 9), (6, 8, 10)):
        line(joints[shoulder], joints[elbow], 0.055 * tall, sleeve)
        line(joints[elbow], joints[wrist], 0.042 * tall, skin)


_SKINS = ((236, 188, 160), (200, 150, 115), (150, 100, 70), (95, 62, 45))


def _background(rng, height, width):
    """A soft wall of colours with rods and boxes on it, some of the width of limbs."""
    colors = rng.integers(40, 215, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(4, 10)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        ink = _ink(rng.integers(20, 235, 3))
        if rng.random() < 0.5:
            angle, length = rng.uniform(0, math.pi), rng.uniform(0.1, 0.6) * height
            end = x + length * math.cos(angle), y + length * math.sin(angle)
            pen.line([x, y, *end], ink, round(height * rng.uniform(0.01, 0.05)))
        else:
            pen.rectangle(
                [x, y, x + rng.uniform(0.03, 0.25) * width, y + rng.uniform(0.05, 0.3) * height],
                ink,
            )
    return picture


def _ink(color):
    return tuple(int(value) for value in color)
