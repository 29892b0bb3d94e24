"""Canvas, camera, classes and colours of the toy streets.

Metres in, pixels out: x to the right, y up from the ground, z ahead of a camera 1.5 m above
the road. Everything is drawn `SHARPNESS` times finer than the picture.
"""

import math

from PIL import Image, ImageDraw

CLASSES = {
    'sky': (128, 128, 128),
    'building': (128, 0, 0),
    'pole': (192, 192, 128),
    'road': (128, 64, 128),
    'pavement': (60, 40, 222),
    'tree': (128, 128, 0),
    'sign': (192, 128, 128),
    'lane_mark': (255, 220, 60),
    'car': (64, 0, 128),
    'person': (64, 64, 0),
    'rider': (0, 128, 192),
}
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, LANE_MARK, CAR, PERSON, RIDER = range(11)
VOID = 255
SHARPNESS = 3  # odd: the middle sample of a cell sits on the centre of the picture's pixel

NEAR, FAR = 1.6, 85.0

# Colours overlap between classes on purpose: no class can be told by its colour alone.
WALLS = (
    *((150, 148, 145), (178, 160, 135), (150, 92, 76), (200, 190, 170), (120, 122, 128)),
    *((168, 130, 100), (205, 205, 205), (110, 120, 108), (94, 90, 92), (196, 166, 110)),
)
GREYS = ((70, 72, 74), (112, 114, 116), (150, 150, 148), (90, 82, 74), (58, 74, 66))
LEAVES = ((62, 92, 44), (84, 110, 52), (46, 76, 50), (122, 112, 50), (134, 88, 46), (70, 84, 64))
PAINTS = (
    *((30, 32, 36), (206, 208, 210), (140, 144, 148), (150, 34, 34), (36, 60, 120)),
    *((88, 94, 100), (46, 88, 70), (190, 160, 60), (112, 60, 44), (236, 236, 232), (70, 110, 160)),
)
CLOTHES = (*PAINTS, (60, 50, 44), (38, 44, 60), (180, 120, 90), (110, 130, 90), (200, 90, 120))
BOARDS = ((190, 36, 40), (36, 76, 160), (222, 186, 50), (230, 230, 228), (40, 110, 70))
SKIES = (
    *((118, 156, 206), (158, 184, 212), (200, 206, 212), (176, 178, 180)),
    *((224, 206, 186), (138, 148, 166), (214, 220, 228)),
)


class Pen:
    """Canvas and camera; lengths in metres, colours 0..255.

    Class ids ride in the alpha channel, so that one stroke paints picture and label alike.
    """

    def __init__(self, rng, height, width):
        self.height, self.width = height, width
        self.focal = height * rng.uniform(0.9, 1.3)
        self.horizon = height * rng.uniform(0.36, 0.5)
        self.centre = width * rng.uniform(0.36, 0.64)
        self.bend = rng.normal(0, 0.0012)
        self.haze_color = jitter(rng, (196, 204, 212), 22)
        self.haze_length = rng.uniform(60, 260)
        self.sun = rng.choice((-1, 1))
        self.image = Image.new('RGBA', (width * SHARPNESS, height * SHARPNESS))
        self.draw = ImageDraw.Draw(self.image)
        self.shadow = Image.new('L', (width, height))
        self.shade = ImageDraw.Draw(self.shadow)

    def at(self, x, y, z, scale=SHARPNESS):
        """Pixel of a point in metres."""
        u = self.centre + self.focal * (x + self.bend * z * z) / z
        v = self.horizon + self.focal * (1.5 - y) / z
        return u * scale, v * scale

    def ink(self, rgb, label, z=0.0, light=1.0):
        """Colour seen at distance z, with the class id as alpha."""
        clear = math.exp(-z / self.haze_length)
        gain, (r, g, b), (hr, hg, hb) = light * clear, rgb, self.haze_color
        fog = 1 - clear
        return (
            min(int(r * gain + hr * fog), 255),
            min(int(g * gain + hg * fog), 255),
            min(int(b * gain + hb * fog), 255),
            label,
        )

    def shape(self, points, rgb, label, light=1.0):
        """A polygon through points (x, y, z) in metres."""
        z = min(p[2] for p in points)
        self.draw.polygon([self.at(*p) for p in points], self.ink(rgb, label, z, light))

    def flat(self, points, z, rgb, label, light=1.0):
        """A polygon through points (x, y) that faces the camera at distance z."""
        self.draw.polygon([self.at(x, y, z) for x, y in points], self.ink(rgb, label, z, light))

    def box(self, x0, y0, x1, y1, z, rgb, label, light=1.0):
        """An upright rectangle that faces the camera."""
        self.flat(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), z, rgb, label, light)

    def disc(self, x, y, radius, z, rgb, label, light=1.0, tall=1.0):
        """An ellipse of the given radius, `tall` times as high as wide; never under a pixel."""
        u, v = self.at(x, y, z)
        a = max(self.focal * SHARPNESS * radius / z, 1.0)
        b = a * tall
        self.draw.ellipse((u - a, v - b, u + a, v + b), self.ink(rgb, label, z, light))

    def line(self, points, thick, z, rgb, label, light=1.0):
        """A stroke through points (x, y) at distance z, `thick` metres wide."""
        pixels = max(round(self.focal * SHARPNESS * thick / z), 1)
        path = [self.at(x, y, z) for x, y in points]
        self.draw.line(path, self.ink(rgb, label, z, light), pixels)

    def cast(self, points, depth=150):
        """Shadow on the ground under points (x, z)."""
        self.shade.polygon([self.at(x, 0, max(z, NEAR), 1) for x, z in points], depth)


def jitter(rng, rgb, spread):
    """A colour near `rgb`: common brightness and small shifts of each channel."""
    shift = rng.normal(0, spread) + rng.normal(0, spread / 4, 3)
    return tuple(float(min(max(c + s, 8), 247)) for c, s in zip(rgb, shift))


def pick(rng, table):
    """One entry of a table."""
    return table[int(rng.integers(len(table)))]
