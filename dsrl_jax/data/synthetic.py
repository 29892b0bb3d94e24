"""The data set without a download: toy street scenes drawn on demand from (seed, split, index).

Colours overlap between classes and much is thin or far away, so that shape, place and fine
detail decide, as in real streets. `street.py` draws the shapes; textures and light come on here.
"""

import functools

import numpy as np

from dsrl_jax.data import street, street_canvas
from dsrl_jax.errors import UserError, lookup

LENGTHS = {'train': 512, 'val': 64, 'test': 64}


class SyntheticSource:
    """Random access to street scenes: item i is image [H,W,3] uint8, label [H,W] uint8, name.

    Nothing is stored, so the object pickles as its few arguments; item i depends on
    (seed, split, i, size) alone. Raises UserError for an unknown split or an unusable size.
    """

    classes = list(street_canvas.CLASSES)
    colors = list(street_canvas.CLASSES.values())
    num_classes = len(street_canvas.CLASSES)
    ignore = street_canvas.VOID

    def __init__(self, split='train', size=(256, 512), length=None, seed=0):
        self.split, self.seed = split, int(seed)
        self._length = int(lookup(LENGTHS, split, 'data.split') if length is None else length)
        lookup(LENGTHS, split, 'data.split')
        self.size = int(size[0]), int(size[1])
        if min(self.size) < 32:
            remedy = 'choose a size of at least 32x32.'
            raise UserError('data.size', f'{size}', 'room for a street', remedy)

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        index = int(index)
        if not 0 <= index < self._length:
            raise IndexError(f'index {index} of a split of {self._length} scenes')
        key = (self.seed, list(LENGTHS).index(self.split), index)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        scene = street.draw_street(rng, *self.size)
        name = self.element_name(index)
        return {'image': _light(rng, scene), 'label': scene.label.copy(), 'name': name}

    def files(self, index):
        """No item lies on disk."""
        return {}

    def element_name(self, index):
        """Split and number."""
        return f'{self.split}_{index:05d}'

    def image_size(self, index):
        """Every scene is drawn at one size."""
        return self.size


# Strength of the fine, medium and coarse grain of each class, as shares of its brightness.
_GRAIN = {
    'sky': (0.004, 0.005, 0.05),
    'building': (0.035, 0.05, 0.05),
    'pole': (0.02, 0.03, 0.02),
    'tree': (0.12, 0.15, 0.06),
    'sign': (0.02, 0.02, 0.02),
    'car': (0.015, 0.02, 0.06),
    'person': (0.04, 0.06, 0.02),
    'rider': (0.04, 0.06, 0.02),
}


def _light(rng, scene):
    """Textures, shadows, exposure and sensor noise: Street -> image [H,W,3] uint8."""
    label, (height, width) = scene.label, scene.label.shape
    grain = np.zeros((3, 256), np.float32)
    for name, strengths in _GRAIN.items():
        grain[:, list(street_canvas.CLASSES).index(name)] = strengths
    factor = np.ones((height, width), np.float32)
    for strength, exponent in zip(grain, (0.0, 1.0, 2.2)):
        factor += strength[label] * _noise(rng, exponent, height, width)
    _texture_ground(rng, scene, factor)
    tint = rng.uniform(0.95, 1.05, 3) * rng.uniform(0.75, 1.15)
    slope = np.linspace(-1, 1, width) * rng.normal(0, 0.06)
    factor *= (1 + slope).astype(np.float32)[None]
    image = scene.color * factor[..., None]
    image *= tint.astype(np.float32)
    image += _noise(rng, 0.0, height, width)[..., None] * np.float32(rng.uniform(1, 4))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _texture_ground(rng, scene, factor):
    """Asphalt grain, paving joints and shadows below the horizon, in place on factor [H,W]."""
    first = int(scene.horizon) + 2
    label = scene.label[first:]
    height, width = label.shape
    z = scene.focal * 1.5 / (np.arange(first, first + height) + 0.5 - scene.horizon)
    x = (np.arange(width) + 0.5 - scene.centre)[None] * (z / scene.focal)[:, None]
    x -= (scene.bend * z * z)[:, None]
    tile = _tile(1.0)
    rows = (z * 24 + rng.integers(256)).astype(np.int64) % 256
    columns = (x * 24 + rng.integers(512)).astype(np.int64) % 512
    near = np.minimum(6 / z, 1).astype(np.float32)[:, None]
    ground = (
        (label == street_canvas.ROAD)
        | (label == street_canvas.PAVEMENT)
        | (label == street_canvas.LANE_MARK)
    )
    grain = 1 + np.float32(rng.uniform(0.05, 0.14)) * near * tile[rows[:, None], columns]
    slab, joint = rng.uniform(0.5, 1.2), 0.05
    joints = ((x / slab) % 1 < joint / slab) | ((z / slab) % 1 < joint / slab)[:, None]
    paving = (label == street_canvas.PAVEMENT) & joints & (z < 14)[:, None]
    grain -= np.float32(rng.uniform(0.08, 0.25)) * paving
    grain *= 1 - np.float32(rng.uniform(0.35, 0.75)) * scene.shadow[first:]
    factor[first:] *= np.where(ground, grain, 1)


def _noise(rng, exponent, height, width):
    """A window [H,W] of the noise tile at a random place."""
    rows = (np.arange(height) + rng.integers(256)) % 256
    columns = (np.arange(width) + rng.integers(512)) % 512
    return _tile(exponent)[rows[:, None], columns]


@functools.cache
def _tile(exponent):
    """Periodic noise [256,512] of unit variance, amplitude falling as 1 / frequency**exponent."""
    white = np.random.Generator(np.random.PCG64(int(exponent * 10) + 1)).normal(size=(256, 512))
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(512)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / 512)
    noise = np.fft.irfft2(np.fft.rfft2(white) / frequency**exponent, (256, 512))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)
