"""Draws one toy street in perspective: `draw_street(rng, height, width) -> Street`.

Metres in, pixels out: x to the right, y up from the ground, z ahead of a camera 1.5 m above
the road. Shapes are drawn far to near on a canvas `SHARPNESS` times finer than the picture.
"""

import math
from typing import NamedTuple

import numpy as np
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

_NEAR, _FAR = 1.6, 85.0


class Street(NamedTuple):
    """Colour [H,W,3] float32 0..255, label [H,W] uint8, ground shadow [H,W] 0..1, and the camera."""

    color: np.ndarray
    label: np.ndarray
    shadow: np.ndarray
    focal: float
    horizon: float
    centre: float
    bend: float


def draw_street(rng: np.random.Generator, height: int, width: int) -> Street:
    """Draws one street, [H,W] pixels; the same state of `rng` gives the same street."""
    pen = _Pen(rng, height, width)
    _backdrop(pen, rng)
    road, kerb = rng.uniform(3.0, 5.5), rng.uniform(2.6, 4.2)
    _ground(pen, rng, road, road + kerb)
    for side in (-1, 1):
        _row_of_buildings(pen, rng, side, road + kerb)
    things = [*_furniture(rng, road, kerb), *_traffic(rng, road, kerb)]
    for draw, x, z in sorted(things, key=lambda thing: -thing[2]):
        draw(pen, rng, x, z)
    if rng.random() < 0.45:
        _hood(pen, rng)
    label = np.asarray(pen.image)[SHARPNESS // 2 :: SHARPNESS, SHARPNESS // 2 :: SHARPNESS, 3]
    color = np.asarray(pen.image.convert('RGB').reduce(SHARPNESS), np.float32)
    shadow = np.asarray(pen.shadow, np.float32) / 255
    return Street(color, label, shadow, pen.focal, pen.horizon, pen.centre, pen.bend)


class _Pen:
    """Canvas and camera. Class ids ride in the alpha channel, so each shape is drawn once."""

    def __init__(self, rng, height, width):
        self.height, self.width = height, width
        self.focal = height * rng.uniform(0.9, 1.3)
        self.horizon = height * rng.uniform(0.36, 0.5)
        self.centre = width * rng.uniform(0.36, 0.64)
        self.bend = rng.normal(0, 0.0012)
        self.haze_color = np.array(_jitter(rng, (196, 204, 212), 22))
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
        r, g, b = (
            int(min(max(c * light * clear + h * (1 - clear), 0), 255))
            for c, h in zip(rgb, self.haze_color)
        )
        return r, g, b, label

    def shape(self, points, rgb, label, light=1.0):
        """A polygon through points (x, y, z) in metres."""
        z = min(p[2] for p in points)
        self.draw.polygon([self.at(*p) for p in points], self.ink(rgb, label, z, light))

    def flat(self, points, z, rgb, label, light=1.0):
        """A polygon through points (x, y) that faces the camera at distance z."""
        self.draw.polygon([self.at(x, y, z) for x, y in points], self.ink(rgb, label, z, light))

    def box(self, x0, y0, x1, y1, z, rgb, label, light=1.0):
        self.flat(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), z, rgb, label, light)

    def disc(self, x, y, radius, z, rgb, label, light=1.0, tall=1.0):
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
        self.shade.polygon([self.at(x, 0, max(z, _NEAR), 1) for x, z in points], depth)


def _jitter(rng, rgb, spread):
    """A colour near `rgb`: common brightness and small shifts of each channel."""
    shift = rng.normal(0, spread) + rng.normal(0, spread / 2, 3)
    return tuple(float(min(max(c + s, 8), 247)) for c, s in zip(rgb, shift))


def _pick(rng, table):
    return table[int(rng.integers(len(table)))]


# Colours overlap between classes on purpose: no class can be told by its colour alone.
_WALLS = (
    *((150, 148, 145), (178, 160, 135), (150, 92, 76), (200, 190, 170), (120, 122, 128)),
    *((168, 130, 100), (205, 205, 205), (110, 120, 108), (94, 90, 92), (196, 166, 110)),
)
_GREYS = ((70, 72, 74), (112, 114, 116), (150, 150, 148), (90, 82, 74), (58, 74, 66))
_LEAVES = ((62, 92, 44), (84, 110, 52), (46, 76, 50), (122, 112, 50), (134, 88, 46), (70, 84, 64))
_PAINTS = (
    *((30, 32, 36), (206, 208, 210), (140, 144, 148), (150, 34, 34), (36, 60, 120)),
    *((88, 94, 100), (46, 88, 70), (190, 160, 60), (112, 60, 44), (236, 236, 232), (70, 110, 160)),
)
_CLOTHES = (*_PAINTS, (60, 50, 44), (38, 44, 60), (180, 120, 90), (110, 130, 90), (200, 90, 120))
_BOARDS = ((190, 36, 40), (36, 76, 160), (222, 186, 50), (230, 230, 228), (40, 110, 70))
_SKIES = (
    *((118, 156, 206), (158, 184, 212), (200, 206, 212), (176, 178, 180)),
    *((224, 206, 186), (138, 148, 166), (214, 220, 228)),
)


def _backdrop(pen, rng):
    """Sky that brightens to the horizon, bare ground, and a far skyline."""
    top = np.array(_jitter(rng, _pick(rng, _SKIES), 12))
    rise = np.linspace(0, 1, max(int(pen.horizon * SHARPNESS), 2))[:, None] ** 1.4
    rows = np.empty((pen.height * SHARPNESS, 1, 4), np.uint8)
    rows[:, 0, :3], rows[:, 0, 3] = pen.haze_color * 0.8, PAVEMENT
    rows[: len(rise), 0, :3] = top * (1 - rise) + pen.haze_color * rise
    rows[: len(rise), 0, 3] = SKY
    pen.image.paste(Image.fromarray(rows).resize(pen.image.size, Image.Resampling.NEAREST))
    x = -110.0
    while x < 110:
        wide, tall = rng.uniform(6, 16), rng.uniform(1, 15)
        if rng.random() < 0.45:
            pen.box(x, -1, x + wide, tall, _FAR, _pick(rng, _WALLS), BUILDING)
        elif rng.random() < 0.7:
            pen.disc(x + wide / 2, 1, wide / 2, _FAR, _pick(rng, _LEAVES), TREE, tall=0.7)
        x += wide * rng.uniform(0.5, 1.1)


def _strip(pen, x0, x1, z0, z1, rgb, label, light=1.0):
    """A band of ground between x0 and x1; several cuts let it follow the bend."""
    cuts = np.geomspace(z0, z1, 2 + int(6 * math.log(z1 / z0) / 4)).tolist()
    points = [(x0, 0, z) for z in cuts] + [(x1, 0, z) for z in reversed(cuts)]
    pen.draw.polygon([pen.at(*p) for p in points], pen.ink(rgb, label, z0, light))


def _ground(pen, rng, road, edge):
    """Pavements, kerbs, road with patches, and thin markings."""
    walk = _jitter(rng, (142, 138, 132), 18)
    asphalt = _jitter(rng, (104, 104, 108), 20)
    far = _FAR
    for x0, x1 in ((-edge - 60, -road), (road, edge + 60)):
        _strip(pen, x0, x1, 1.0, far, walk, PAVEMENT)
    _strip(pen, -road, road, 1.0, far, asphalt, ROAD)
    for _ in range(rng.integers(1, 5)):  # mended asphalt and puddles: bright, yet road
        x, z = rng.uniform(-road, road * 0.6), rng.uniform(3, 25)
        light = rng.uniform(0.75, 1.35)
        _strip(
            pen, x, x + rng.uniform(0.3, 2.0), z, z * rng.uniform(1.05, 1.6), asphalt, ROAD, light
        )
    for x in (-road, road):
        _strip(pen, x - 0.12, x + 0.12, 1.0, far, walk, PAVEMENT, rng.uniform(0.8, 1.25))
    paint = _jitter(rng, _pick(rng, ((214, 214, 210), (190, 190, 184), (206, 180, 90))), 12)
    wide = rng.uniform(0.12, 0.22)
    lines = [0.0] if rng.random() < 0.8 else [-road / 3, road / 3]
    period, phase = rng.uniform(5, 9), rng.uniform(0, 5)
    for x in lines:
        z = 1.5 + phase
        while z < 60:
            _strip(pen, x - wide / 2, x + wide / 2, z, z + period * 0.5, paint, LANE_MARK)
            z += period
    if rng.random() < 0.65:
        for x in (0.5 - road, road - 0.5):
            _strip(pen, x - wide / 2, x + wide / 2, 1.0, 70.0, paint, LANE_MARK)
    if rng.random() < 0.4:
        z, step = rng.uniform(5, 18), rng.uniform(0.9, 1.2)
        for x in np.arange(-road + 0.5, road - 0.5, step).tolist():
            _strip(pen, x, x + step * 0.5, z, z + 2.6, paint, LANE_MARK)
    for side in (-1, 1):
        if side == pen.sun and rng.random() < 0.7:  # the shade of the whole row of houses
            reach = edge - rng.uniform(1, road + edge * 0.6)
            zs = np.geomspace(_NEAR, far, 12).tolist()
            near = [(side * reach + rng.uniform(-0.4, 0.4), z) for z in zs]
            pen.cast(near + [(side * (edge + 60), z) for z in reversed(zs)], 120)


def _row_of_buildings(pen, rng, side, edge):
    """Houses along one side, far to near, with gaps of green."""
    lots, z = [], rng.uniform(-6, 3)
    while z < 75:
        deep = rng.uniform(6, 16)
        lots.append((z, z + deep))
        z += deep + (rng.uniform(1, 5) if rng.random() < 0.3 else 0)
    for z0, z1 in reversed(lots):
        x = side * (edge + abs(rng.normal(0, 0.5)))
        if rng.random() < 0.2:
            _hedge(pen, rng, x, max(z0, _NEAR), max(z1, _NEAR + 1))
        elif z1 > _NEAR + 1:
            _house(pen, rng, side, x, z0, z1)


def _house(pen, rng, side, x, z0, z1):
    """One house: end wall, street front with floors, windows, shop and cornice."""
    tall, wall = rng.uniform(4, 15), _jitter(rng, _pick(rng, _WALLS), 14)
    lit, dim = (1.12, 0.72) if side == -pen.sun else (0.78, 0.98)
    end, out = max(z0, _NEAR), x + side * 14
    glass = _jitter(rng, _pick(rng, ((50, 58, 68), (88, 104, 120), (150, 165, 180))), 12)
    if z0 > _NEAR:
        pen.box(x, 0, out, tall, z0, wall, BUILDING, dim)
        if z0 < 40:
            for k in range(int(tall / 3)):
                a = x + side * rng.uniform(0.8, 2.5)
                pen.box(a, k * 3 + 1, a + side * 1.2, k * 3 + 2.4, z0, glass, BUILDING, dim)
    corners = ((x, 0, end), (x, 0, z1), (x, tall, z1), (x, tall, end))
    pen.shape(corners, wall, BUILDING, lit)

    def panel(a, b, low, high, rgb, light=lit):
        a = max(a, _NEAR)
        if b > a:
            pen.shape(((x, low, a), (x, low, b), (x, high, b), (x, high, a)), rgb, BUILDING, light)

    panel(z0, z1, tall - 0.4, tall, wall, lit * rng.uniform(0.7, 1.25))
    pitch, floor = rng.uniform(1.6, 3.4), rng.uniform(2.6, 3.4)
    wide, high = pitch * rng.uniform(0.35, 0.7), floor * rng.uniform(0.4, 0.65)
    if z0 > 32:  # too far for single windows: bands
        for k in range(1, int(tall / floor)):
            panel(z0, z1, k * floor + 0.8, k * floor + 2, glass, lit * 0.9)
        return
    shop = rng.random() < 0.5
    if shop:
        panel(z0, z1, 0.4, 2.3, glass, 0.8)
        if rng.random() < 0.6:  # a board or awning in the colours of signs
            panel(z0 + 0.5, z1 - 0.5, 2.4, 3.0, _jitter(rng, _pick(rng, _BOARDS), 16))
    frame = rng.random() < 0.4
    for k in range(int(shop), int((tall - 0.5) / floor)):
        for j in range(int((z1 - z0) / pitch)):
            a, low = z0 + j * pitch + 0.4, k * floor + 0.9
            if a < _NEAR or low + high > tall:
                continue
            if frame:
                panel(a - 0.15, a + wide + 0.15, low - 0.15, low + high + 0.15, wall, lit * 1.25)
            panel(a, a + wide, low, low + high, glass, rng.uniform(0.7, 1.2))


def _hedge(pen, rng, x, z0, z1):
    """A garden behind a low wall or fence: bushes and tree tops."""
    for z in np.linspace(z1, z0, 5).tolist():
        _crown(pen, rng, x + math.copysign(2, x), rng.uniform(1, 3.5), rng.uniform(1.5, 3), z)
    high = rng.uniform(0.6, 1.8)
    corners = ((x, 0, z0), (x, 0, z1), (x, high, z1), (x, high, z0))
    label, table = (TREE, _LEAVES) if rng.random() < 0.6 else (BUILDING, _WALLS)
    pen.shape(corners, _jitter(rng, _pick(rng, table), 10), label)


def _furniture(rng, road, kerb):
    """Lamps, signs, trees and bins beside the road: (draw, x, z)."""
    for side in (-1, 1):
        if rng.random() < 0.85:
            for z in np.arange(rng.uniform(5, 14), 60, rng.uniform(9, 18)).tolist():
                yield _lamp, side * (road + rng.uniform(0.3, 0.7)), z
        if rng.random() < 0.7:
            for z in np.arange(rng.uniform(6, 20), 60, rng.uniform(6, 14)).tolist():
                yield _tree, side * (road + kerb * rng.uniform(0.3, 0.7)), z
        for _ in range(rng.integers(1, 5)):
            yield _sign, side * (road + rng.uniform(0.3, 1.0)), rng.uniform(5, 32)
        if rng.random() < 0.4:
            yield _bin, side * (road + kerb * rng.uniform(0.2, 0.9)), rng.uniform(5, 22)


def _traffic(rng, road, kerb):
    """Cars, walkers and riders: (draw, x, z)."""
    for side in (-1, 1):
        if rng.random() < 0.65:
            z = rng.uniform(4, 16)
            while z < 55:
                yield _car, side * (road - 1.1), z
                z += rng.uniform(5, 12)
        for _ in range(rng.integers(0, 3)):
            yield _car, side * rng.uniform(0.25, 0.6) * road, rng.uniform(9, 50)
        for _ in range(rng.integers(1, 6)):
            yield _person, side * (road + kerb * rng.uniform(0.1, 0.9)), rng.uniform(5, 30)
        if rng.random() < 0.55:
            yield _rider, side * (road - rng.uniform(0.3, 2.2)), rng.uniform(5, 24)
    if rng.random() < 0.3:
        yield _person, rng.uniform(-road, road), rng.uniform(8, 24)


def _lamp(pen, rng, x, z):
    grey, tall = _jitter(rng, _pick(rng, _GREYS), 10), rng.uniform(4.5, 8)
    reach = -math.copysign(rng.uniform(0.6, 2.0), x)
    pen.line(((x, 0), (x, tall), (x + reach, tall + 0.3)), rng.uniform(0.11, 0.2), z, grey, POLE)
    pen.box(x + reach * 0.8, tall + 0.2, x + reach * 1.25, tall + 0.45, z, grey, POLE, 0.8)
    pen.cast(((x - 0.1, z), (x + 0.1, z), (x - pen.sun * 6, z + 1.6), (x - pen.sun * 6, z + 1.3)))


def _sign(pen, rng, x, z):
    tall, size = rng.uniform(2.1, 3.4), rng.uniform(0.32, 0.5)
    pen.line(((x, 0), (x, tall)), 0.09, z, _jitter(rng, _pick(rng, _GREYS), 10), POLE)
    rgb, inner = _jitter(rng, _pick(rng, _BOARDS), 14), _jitter(rng, _pick(rng, _BOARDS), 14)
    kind = rng.integers(4)
    if kind == 0:
        pen.disc(x, tall, size, z, rgb, SIGN)
        pen.disc(x, tall, size * 0.65, z, inner, SIGN)
    elif kind == 1:
        for s, c in ((size * 1.2, rgb), (size * 0.7, inner)):
            pen.flat(((x - s, tall - s * 0.8), (x + s, tall - s * 0.8), (x, tall + s)), z, c, SIGN)
    elif kind == 2:
        wide = size * rng.uniform(0.8, 2.4)
        pen.box(x - wide, tall - size, x + wide, tall + size, z, rgb, SIGN)
        pen.box(
            x - wide * 0.8, tall - size * 0.2, x + wide * 0.7, tall + size * 0.3, z, inner, SIGN
        )
    else:  # traffic light
        pen.box(x - 0.2, tall - 0.6, x + 0.2, tall + 0.6, z, (32, 34, 34), SIGN)
        lamp, low = _pick(
            rng, (((220, 50, 40), 0.35), ((230, 170, 40), 0.0), ((60, 200, 110), -0.35))
        )
        pen.disc(x, tall + low, 0.15, z, lamp, SIGN)


def _tree(pen, rng, x, z):
    tall, wide = rng.uniform(3, 7), rng.uniform(1.0, 2.2)
    bark = _jitter(rng, (84, 70, 58), 12)
    pen.line(((x, 0), (x, tall)), rng.uniform(0.16, 0.4), z, bark, TREE)
    pen.cast(
        [(x + a * wide - pen.sun, z + b) for a, b in ((-1, -0.8), (1, -0.8), (1, 0.8), (-1, 0.8))],
        90,
    )
    if rng.random() < 0.75:
        _crown(pen, rng, x, tall, wide, z)
        return
    for _ in range(9):  # bare branches
        low, reach = tall * rng.uniform(0.5, 1), rng.uniform(-1, 1) * wide
        tip = low + rng.uniform(0.6, 1.6) * wide
        pen.line(
            ((x, low), (x + reach * 0.5, (low + tip) / 2), (x + reach, tip)), 0.09, z, bark, TREE
        )


def _crown(pen, rng, x, y, wide, z):
    """Leaves: discs around (x, y), darker below, smaller at the rim."""
    leaf = _jitter(rng, _pick(rng, _LEAVES), 10)
    count = 26 if z < 25 else 12
    angles, radii = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0, 1, count))
    for a, r in sorted(zip(angles.tolist(), radii.tolist()), key=lambda p: math.sin(p[0]) * p[1]):
        light = 0.85 + 0.3 * math.sin(a) * r + 0.1 * math.cos(a) * pen.sun
        spot = (x + wide * r * math.cos(a), y + wide * 0.8 * r * math.sin(a))
        pen.disc(*spot, wide * (0.42 - 0.26 * r), z, leaf, TREE, light)


def _bin(pen, rng, x, z):
    """A box that nobody labelled."""
    rgb, wide, tall = (
        _jitter(rng, _pick(rng, _PAINTS), 12),
        rng.uniform(0.3, 0.8),
        rng.uniform(0.7, 1.4),
    )
    pen.box(x - wide, 0, x + wide, tall, z, rgb, VOID)
    pen.box(x - wide, tall * 0.8, x + wide, tall, z, rgb, VOID, 0.7)


def _car(pen, rng, x, z):
    """A car seen from behind or ahead, with the flank that faces the camera."""
    paint, glass = _jitter(rng, _pick(rng, _PAINTS), 14), (44, 52, 60)
    w, h, long = rng.uniform(0.8, 0.95), rng.uniform(1.35, 1.6), rng.uniform(3.6, 4.8)
    if rng.random() < 0.15:
        w, h, long = 1.0, rng.uniform(2.0, 2.7), rng.uniform(4.8, 6.5)
    belt = h * 0.58
    pen.cast(
        (
            (x - w - 0.2, z - 0.3),
            (x + w + 0.2, z - 0.3),
            (x + w + 0.2, z + long),
            (x - w - 0.2, z + long),
        ),
        190,
    )
    flank, light = (x - w, 0.85) if x + pen.bend * z * z > 0 else (x + w, 0.85)
    if flank == (x - w if pen.sun > 0 else x + w):
        light = 1.1
    a, b = z + long * 0.1, z + long * 0.7
    slab = (
        (flank, 0.25, z),
        (flank, 0.25, z + long),
        (flank, belt * 0.9, z + long),
        (flank, belt, z),
    )
    cabin = ((flank, belt, z), (flank, belt, z + long * 0.85), (flank, h, b), (flank, h, a))
    pane = [(p, y * 0.86 + h * 0.1, q * 0.85 + (z + long * 0.4) * 0.15) for p, y, q in cabin]
    pen.shape(slab, paint, CAR, light)
    pen.shape(cabin, paint, CAR, light * 0.95)
    pen.shape(pane, glass, CAR)
    for q in (z + long * 0.18, z + long * 0.82):
        turn = [(flank, 0.3 + 0.3 * math.sin(t), q + 0.3 * math.cos(t)) for t in range(6)]
        pen.shape(turn, (28, 28, 30), CAR)
    pen.flat(((x - w, 0.22), (x + w, 0.22), (x + w, belt), (x - w, belt)), z, paint, CAR)
    roof = ((x - w, belt), (x + w, belt), (x + w * 0.78, h), (x - w * 0.78, h))
    pen.flat(roof, z, paint, CAR, 1.05)
    inner = (
        (x - w * 0.82, belt * 1.05),
        (x + w * 0.82, belt * 1.05),
        (x + w * 0.68, h * 0.94),
        (x - w * 0.68, h * 0.94),
    )
    pen.flat(inner, z, glass, CAR)
    lamp = _pick(rng, ((190, 40, 36), (232, 226, 200)))
    for s in (-1, 1):
        pen.box(x + s * w * 0.92, belt * 0.7, x + s * w * 0.62, belt * 0.9, z, lamp, CAR)
        pen.box(x + s * w * 0.95, 0.0, x + s * w * 0.65, 0.25, z, (28, 28, 30), CAR)
    pen.box(x - 0.25, belt * 0.42, x + 0.25, belt * 0.58, z, (214, 212, 200), CAR)
    pen.box(x - w, 0.22, x + w, 0.36, z, (50, 50, 54), CAR)


def _person(pen, rng, x, z, label=PERSON, base=0.0):
    """A walker: legs, body, arms and head."""
    tall = rng.uniform(1.5, 1.9) if rng.random() < 0.85 else rng.uniform(0.9, 1.3)
    top, legs = _jitter(rng, _pick(rng, _CLOTHES), 16), _jitter(rng, _pick(rng, _CLOTHES), 16)
    skin = _jitter(rng, _pick(rng, ((214, 172, 146), (168, 118, 88), (98, 68, 52))), 8)
    stride, s = rng.uniform(0, 0.28) * tall, tall / 1.75
    hip, neck = base + tall * 0.48, base + tall * 0.84
    for foot in (-stride, stride):
        pen.line(((x, hip + 0.05), (x + foot * 0.6, base)), 0.17 * s, z, legs, label, 0.9)
    wide = rng.uniform(0.17, 0.25) * s
    body = ((x - wide * 0.85, hip), (x + wide * 0.85, hip), (x + wide, neck), (x - wide, neck))
    pen.flat(body, z, top, label)
    for side in (-1, 1):
        arm = ((x + side * wide, neck - 0.06), (x + side * (wide + 0.08 + stride * 0.3), hip))
        pen.line(arm, 0.1 * s, z, top, label, 0.8)
    pen.disc(x, base + tall * 0.92, 0.11 * s, z, skin, label, tall=1.25)
    pen.disc(x, base + tall * 0.96, 0.1 * s, z, _jitter(rng, (56, 44, 36), 16), label)
    if label == PERSON:
        pen.cast(((x - 0.25, z), (x + 0.25, z), (x - pen.sun * 1.5, z + 0.8)))


def _rider(pen, rng, x, z):
    """Somebody on a bicycle, from the side or from behind; bicycle and rider are one class."""
    metal, tyre = _jitter(rng, _pick(rng, _PAINTS), 12), (34, 34, 36)
    if rng.random() < 0.5:
        for q in (x - 0.52, x + 0.52):
            ring = [
                (q + 0.34 * math.cos(t), 0.34 + 0.34 * math.sin(t)) for t in np.linspace(0, 6.3, 11)
            ]
            pen.line(ring, 0.06, z, tyre, RIDER)
        frame = ((x - 0.52, 0.34), (x - 0.15, 0.8), (x + 0.4, 0.82), (x, 0.34), (x - 0.52, 0.34))
        pen.line(frame, 0.06, z, metal, RIDER)
        pen.line(((x + 0.52, 0.34), (x + 0.36, 1.05)), 0.06, z, metal, RIDER)
    else:
        pen.line(((x, 0), (x, 0.75)), 0.08, z, tyre, RIDER)
        pen.line(((x - 0.3, 1.0), (x + 0.3, 1.0)), 0.06, z, metal, RIDER)
    _person(pen, rng, x, z, RIDER, 0.25)
    pen.cast(((x - 0.6, z), (x + 0.6, z), (x - pen.sun * 1.6, z + 0.7)))


def _hood(pen, rng):
    """The bonnet of the own car: not labelled."""
    w, h = pen.width * SHARPNESS, pen.height * SHARPNESS
    rise, rgb = rng.uniform(0.05, 0.12) * h, _jitter(rng, _pick(rng, _PAINTS), 10)
    pen.draw.ellipse((-0.1 * w, h - rise, 1.1 * w, h + rise), pen.ink(rgb, VOID))
    pen.draw.ellipse((0.1 * w, h - rise * 0.8, 0.9 * w, h + rise), pen.ink(rgb, VOID, light=1.2))
