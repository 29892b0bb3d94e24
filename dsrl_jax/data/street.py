"""Draws one toy street in perspective: ground, houses, then the objects from far to near."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from dsrl_jax.data.street_canvas import (
    BOARDS,
    BUILDING,
    FAR,
    LANE_MARK,
    LEAVES,
    NEAR,
    PAVEMENT,
    ROAD,
    SHARPNESS,
    SKIES,
    SKY,
    TREE,
    WALLS,
    Pen,
    jitter,
    pick,
)
from dsrl_jax.data.street_objects import crown, furniture, hood, traffic


class Street(NamedTuple):
    """Colour [H,W,3] float32 0..255, label [H,W] uint8, shadow [H,W] 0..1, and the camera."""

    color: np.ndarray
    label: np.ndarray
    shadow: np.ndarray
    focal: float
    horizon: float
    centre: float
    bend: float


def draw_street(rng: np.random.Generator, height: int, width: int) -> Street:
    """Draws one street, [H,W] pixels; the same state of `rng` gives the same street."""
    pen = Pen(rng, height, width)
    _backdrop(pen, rng)
    road, kerb = rng.uniform(3.0, 5.5), rng.uniform(2.6, 4.2)
    _ground(pen, rng, road, road + kerb)
    for side in (-1, 1):
        _row_of_buildings(pen, rng, side, road + kerb)
    things = [*furniture(rng, road, kerb), *traffic(rng, road, kerb)]
    for draw, x, z in sorted(things, key=lambda thing: -thing[2]):
        draw(pen, rng, x, z)
    if rng.random() < 0.45:
        hood(pen, rng)
    label = np.asarray(pen.image)[SHARPNESS // 2 :: SHARPNESS, SHARPNESS // 2 :: SHARPNESS, 3]
    color = np.asarray(pen.image.convert('RGB').reduce(SHARPNESS), np.float32)
    shadow = np.asarray(pen.shadow, np.float32) / 255
    return Street(color, label, shadow, pen.focal, pen.horizon, pen.centre, pen.bend)


def _backdrop(pen, rng):
    """Sky that brightens to the horizon, bare ground, and a far skyline."""
    top = np.array(jitter(rng, pick(rng, SKIES), 12))
    rise = np.linspace(0, 1, max(int(pen.horizon * SHARPNESS), 2))[:, None] ** 1.4
    rows = np.empty((pen.height * SHARPNESS, 1, 4), np.uint8)
    rows[:, 0, :3], rows[:, 0, 3] = np.multiply(pen.haze_color, 0.8), PAVEMENT
    rows[: len(rise), 0, :3] = top * (1 - rise) + np.array(pen.haze_color) * rise
    rows[: len(rise), 0, 3] = SKY
    pen.image.paste(Image.fromarray(rows).resize(pen.image.size, Image.Resampling.NEAREST))
    x = -110.0
    while x < 110:
        wide, tall = rng.uniform(6, 16), rng.uniform(1, 15)
        if rng.random() < 0.45:
            pen.box(x, -1, x + wide, tall, FAR, pick(rng, WALLS), BUILDING)
        elif rng.random() < 0.7:
            pen.disc(x + wide / 2, 1, wide / 2, FAR, pick(rng, LEAVES), TREE, tall=0.7)
        x += wide * rng.uniform(0.5, 1.1)


def _strip(pen, x0, x1, z0, z1, rgb, label, light=1.0):
    """A band of ground between x0 and x1; several cuts let it follow the bend."""
    cuts = np.geomspace(z0, z1, 2 + int(6 * math.log(z1 / z0) / 4)).tolist()
    points = [(x0, 0, z) for z in cuts] + [(x1, 0, z) for z in reversed(cuts)]
    pen.draw.polygon([pen.at(*p) for p in points], pen.ink(rgb, label, z0, light))


def _ground(pen, rng, road, edge):
    """Pavements, kerbs, road with patches, and thin markings."""
    walk = jitter(rng, (142, 138, 132), 18)
    asphalt = jitter(rng, (104, 104, 108), 20)
    far = FAR
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
    paint = jitter(rng, pick(rng, ((214, 214, 210), (190, 190, 184), (206, 180, 90))), 12)
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
            zs = np.geomspace(NEAR, far, 12).tolist()
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
            _hedge(pen, rng, x, max(z0, NEAR), max(z1, NEAR + 1))
        elif z1 > NEAR + 1:
            _house(pen, rng, side, x, z0, z1)


def _house(pen, rng, side, x, z0, z1):
    """One house: end wall, street front with floors, windows, shop and cornice."""
    tall, wall = rng.uniform(4, 15), jitter(rng, pick(rng, WALLS), 14)
    lit, dim = (1.12, 0.72) if side == -pen.sun else (0.78, 0.98)
    end, out = max(z0, NEAR), x + side * 14
    glass = jitter(rng, pick(rng, ((50, 58, 68), (88, 104, 120), (150, 165, 180))), 12)
    if z0 > NEAR:
        pen.box(x, 0, out, tall, z0, wall, BUILDING, dim)
        if z0 < 40:
            for k in range(int(tall / 3)):
                a = x + side * rng.uniform(0.8, 2.5)
                pen.box(a, k * 3 + 1, a + side * 1.2, k * 3 + 2.4, z0, glass, BUILDING, dim)
    corners = ((x, 0, end), (x, 0, z1), (x, tall, z1), (x, tall, end))
    pen.shape(corners, wall, BUILDING, lit)

    def panel(a, b, low, high, rgb, light=lit):
        a = max(a, NEAR)
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
            panel(z0 + 0.5, z1 - 0.5, 2.4, 3.0, jitter(rng, pick(rng, BOARDS), 16))
    frame = rng.random() < 0.4
    for k in range(int(shop), int((tall - 0.5) / floor)):
        for j in range(int((z1 - z0) / pitch)):
            a, low = z0 + j * pitch + 0.4, k * floor + 0.9
            if a < NEAR or low + high > tall:
                continue
            if frame:
                panel(a - 0.15, a + wide + 0.15, low - 0.15, low + high + 0.15, wall, lit * 1.25)
            panel(a, a + wide, low, low + high, glass, rng.uniform(0.7, 1.2))


def _hedge(pen, rng, x, z0, z1):
    """A garden behind a low wall or fence: bushes and tree tops."""
    for z in np.linspace(z1, z0, 5).tolist():
        crown(pen, rng, x + math.copysign(2, x), rng.uniform(1, 3.5), rng.uniform(1.5, 3), z)
    high = rng.uniform(0.6, 1.8)
    corners = ((x, 0, z0), (x, 0, z1), (x, high, z1), (x, high, z0))
    label, table = (TREE, LEAVES) if rng.random() < 0.6 else (BUILDING, WALLS)
    pen.shape(corners, jitter(rng, pick(rng, table), 10), label)
