"""What stands, walks and drives in a toy street; each draws itself at (x, z) in metres."""

import math

import numpy as np

from dsrl_jax.data.street_canvas import (
    BOARDS,
    CAR,
    CLOTHES,
    GREYS,
    LEAVES,
    PAINTS,
    PERSON,
    POLE,
    RIDER,
    SHARPNESS,
    SIGN,
    TREE,
    VOID,
    jitter,
    pick,
)


def furniture(rng, road, kerb):
    """Lamps, signs, trees and bins beside the road: (draw, x, z)."""
    for side in (-1, 1):
        if rng.random() < 0.85:
            for z in np.arange(rng.uniform(5, 14), 60, rng.uniform(9, 18)).tolist():
                yield _lamp, side * (road + rng.uniform(0.3, 0.7)), z
        if rng.random() < 0.7:
            for z in np.arange(rng.uniform(6, 20), 60, rng.uniform(6, 14)).tolist():
                yield _tree, side * (road + kerb * rng.uniform(0.3, 0.7)), z
        for _ in range(rng.integers(1, 5)):
            yield _sign, side * (road + rng.uniform(0.3, 1.0)), rng.uniform(5, 24)
        if rng.random() < 0.4:
            yield _bin, side * (road + kerb * rng.uniform(0.2, 0.9)), rng.uniform(5, 22)


def traffic(rng, road, kerb):
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
            yield _person, side * (road + kerb * rng.uniform(0.1, 0.9)), rng.uniform(4, 20)
        if rng.random() < 0.75:
            yield _rider, side * road * rng.uniform(0.2, 0.75), rng.uniform(4, 16)
    if rng.random() < 0.3:
        yield _person, rng.uniform(-road, road), rng.uniform(8, 24)


def _lamp(pen, rng, x, z):
    grey, tall = jitter(rng, pick(rng, GREYS), 10), rng.uniform(4.5, 8)
    reach = -math.copysign(rng.uniform(0.6, 2.0), x)
    pen.line(((x, 0), (x, tall), (x + reach, tall + 0.3)), rng.uniform(0.15, 0.26), z, grey, POLE)
    pen.box(x + reach * 0.8, tall + 0.2, x + reach * 1.25, tall + 0.45, z, grey, POLE, 0.8)
    pen.cast(((x - 0.1, z), (x + 0.1, z), (x - pen.sun * 6, z + 1.6), (x - pen.sun * 6, z + 1.3)))


def _sign(pen, rng, x, z):
    tall, size = rng.uniform(2.1, 3.4), rng.uniform(0.4, 0.62)
    pen.line(((x, 0), (x, tall)), 0.11, z, jitter(rng, pick(rng, GREYS), 10), POLE)
    rgb, inner = jitter(rng, pick(rng, BOARDS), 14), jitter(rng, pick(rng, BOARDS), 14)
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
        lamp, low = pick(
            rng, (((220, 50, 40), 0.35), ((230, 170, 40), 0.0), ((60, 200, 110), -0.35))
        )
        pen.disc(x, tall + low, 0.15, z, lamp, SIGN)


def _tree(pen, rng, x, z):
    tall, wide = rng.uniform(3, 7), rng.uniform(1.0, 2.2)
    bark = jitter(rng, (84, 70, 58), 12)
    pen.line(((x, 0), (x, tall)), rng.uniform(0.16, 0.4), z, bark, TREE)
    pen.cast(
        [(x + a * wide - pen.sun, z + b) for a, b in ((-1, -0.8), (1, -0.8), (1, 0.8), (-1, 0.8))],
        90,
    )
    if rng.random() < 0.75:
        crown(pen, rng, x, tall, wide, z)
        return
    for _ in range(9):  # bare branches
        low, reach = tall * rng.uniform(0.5, 1), rng.uniform(-1, 1) * wide
        tip = low + rng.uniform(0.6, 1.6) * wide
        pen.line(
            ((x, low), (x + reach * 0.5, (low + tip) / 2), (x + reach, tip)), 0.09, z, bark, TREE
        )


def crown(pen, rng, x, y, wide, z):
    """Leaves: discs around (x, y), darker below, smaller at the rim."""
    leaf = jitter(rng, pick(rng, LEAVES), 10)
    count = 44 if z < 16 else 26 if z < 32 else 12
    angles, radii = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0, 1, count))
    for a, r in sorted(zip(angles.tolist(), radii.tolist()), key=lambda p: math.sin(p[0]) * p[1]):
        light = 0.85 + 0.3 * math.sin(a) * r + 0.1 * math.cos(a) * pen.sun
        spot = (x + wide * r * math.cos(a), y + wide * 0.8 * r * math.sin(a))
        pen.disc(*spot, wide * (0.45 - 0.34 * r * r), z, leaf, TREE, light)


def _bin(pen, rng, x, z):
    """A box that nobody labelled."""
    rgb, wide, tall = (
        jitter(rng, pick(rng, PAINTS), 12),
        rng.uniform(0.3, 0.8),
        rng.uniform(0.7, 1.4),
    )
    pen.box(x - wide, 0, x + wide, tall, z, rgb, VOID)
    pen.box(x - wide, tall * 0.8, x + wide, tall, z, rgb, VOID, 0.7)


def _car(pen, rng, x, z):
    """A car seen from behind or ahead, with the flank that faces the camera."""
    paint, glass = jitter(rng, pick(rng, PAINTS), 14), (44, 52, 60)
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
    lamp = pick(rng, ((190, 40, 36), (232, 226, 200)))
    for s in (-1, 1):
        pen.box(x + s * w * 0.92, belt * 0.7, x + s * w * 0.62, belt * 0.9, z, lamp, CAR)
        pen.box(x + s * w * 0.95, 0.0, x + s * w * 0.65, 0.25, z, (28, 28, 30), CAR)
    pen.box(x - 0.25, belt * 0.42, x + 0.25, belt * 0.58, z, (214, 212, 200), CAR)
    pen.box(x - w, 0.22, x + w, 0.36, z, (50, 50, 54), CAR)


def _person(pen, rng, x, z, label=PERSON, base=0.0):
    """A walker: legs, body, arms and head."""
    tall = rng.uniform(1.5, 1.9) if rng.random() < 0.85 else rng.uniform(0.9, 1.3)
    top, legs = jitter(rng, pick(rng, CLOTHES), 16), jitter(rng, pick(rng, CLOTHES), 16)
    skin = jitter(rng, pick(rng, ((214, 172, 146), (168, 118, 88), (98, 68, 52))), 8)
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
    pen.disc(x, base + tall * 0.96, 0.1 * s, z, jitter(rng, (56, 44, 36), 16), label)
    if label == PERSON:
        pen.cast(((x - 0.25, z), (x + 0.25, z), (x - pen.sun * 1.5, z + 0.8)))


def _rider(pen, rng, x, z):
    """Somebody on a bicycle, from the side or from behind; bicycle and rider are one class."""
    metal, tyre = jitter(rng, pick(rng, PAINTS), 12), (34, 34, 36)
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


def hood(pen, rng):
    """The bonnet of the own car: not labelled."""
    w, h = pen.width * SHARPNESS, pen.height * SHARPNESS
    rise, rgb = rng.uniform(0.05, 0.12) * h, jitter(rng, pick(rng, PAINTS), 10)
    pen.draw.ellipse((-0.1 * w, h - rise, 1.1 * w, h + rise), pen.ink(rgb, VOID))
    pen.draw.ellipse((0.1 * w, h - rise * 0.8, 0.9 * w, h + rise), pen.ink(rgb, VOID, light=1.2))
