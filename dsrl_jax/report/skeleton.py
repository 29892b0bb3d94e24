"""Skeletons of people for eyes: their joints and the lines between them over an image."""

import numpy as np
from PIL import Image, ImageDraw

CONFIDENT = 0.2  # what is less sure is not drawn
_ACROSS = (60, 220, 60)  # of a line from left to right
_EDGE = (20, 22, 26)
_THICKNESS, _THINNEST = 1 / 80, 1.3  # of a line: share of the person, and pixels
_FINE, _LARGEST = 4, 4096  # drawn so many times larger, at most so many pixels a side, and shrunk


def draw(image, joints, confidence, keypoints, colors, *, threshold=CONFIDENT) -> np.ndarray:
    """Image [H,W,3] with people's joints [P,J,2] whose confidence [P,J] is above the threshold.

    Places are (x, y), pixel centres at integers. `keypoints` names the lines (`skeleton`) and the
    sides (`flip_pairs`), `colors` has one RGB a joint. A line has the colour of its side, lines
    and joints are as thick as the person is large. uint8 in and out.
    """
    picture = Image.fromarray(np.asarray(image, np.uint8))
    lines = list(zip(keypoints.skeleton, _inks(keypoints, colors)))
    for places, sure in zip(np.asarray(joints, float), np.asarray(confidence)):
        seen = sure > threshold
        if seen.any():
            _draw_person(picture, places, seen, lines, colors)
    return np.array(picture)


def closeup(image, box, *, width: int = 320):
    """The part of an image [H,W,3] in a box (x, y, width, height), `width` pixels wide.

    Gives the picture, uint8 [h,w,3], and the function from joints [...,2] of the image to those of
    the picture. What lies outside the image is cut off.
    """
    x, y, wide, high = (float(value) for value in box)
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(image.shape[1]), x + wide), min(float(image.shape[0]), y + high)
    factor = width / (right - left)
    size = width, max(1, round((bottom - top) * factor))
    way = {'resample': Image.Resampling.BICUBIC, 'box': (left, top, right, bottom)}
    picture = np.array(Image.fromarray(image).resize(size, **way))

    def place(joints):
        return (np.asarray(joints, float) + 0.5 - (left, top)) * factor - 0.5

    return picture, place


def _draw_person(picture, places, seen, lines, colors):
    extent = np.ptp(places[seen], axis=0).max()
    thick = max(_THINNEST, extent * _THICKNESS)
    margin = np.ceil(3 * thick)
    low = np.maximum(np.floor(places[seen].min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(places[seen].max(0) + margin) + 1, picture.size).astype(int)
    if (high <= low).any():
        return  # beside the image
    fine = int(np.clip(_LARGEST // (high - low).max(), 1, _FINE))
    layer = Image.new('RGBA', tuple((fine * (high - low)).tolist()))
    pen = ImageDraw.Draw(layer)
    at = [tuple(p) for p in ((places + 0.5 - low) * fine - 0.5).tolist()]
    drawn = [(at[a], at[b], ink) for (a, b), ink in lines if seen[a] and seen[b]]
    edge = max(0.5, thick / 4)
    for grown, dark in ((edge, True), (0, False)):
        for start, end, ink in drawn:
            pen.line([start, end], _EDGE if dark else ink, round((thick + 2 * grown) * fine))
        radius = (1.3 * thick + grown) * fine
        for (x, y), ink, here in zip(at, colors, seen):
            if here:
                disk = [x - radius, y - radius, x + radius, y + radius]
                pen.ellipse(disk, _EDGE if dark else tuple(ink))
    layer = layer.resize(tuple((high - low).tolist()), Image.Resampling.BOX)
    picture.paste(layer, tuple(low.tolist()), layer)


def _inks(keypoints, colors):
    """One colour a line: of the side it is on, or that of lines between the sides."""
    left, right = (set(side) for side in zip(*keypoints.flip_pairs or [(-1, -1)]))
    inks = []
    for a, b in keypoints.skeleton:
        sides = [joint for joint in (a, b) if joint in left | right]
        across = len({joint in left for joint in sides}) == 2
        inks.append(_ACROSS if across else tuple(colors[sides[0] if sides else a]))
    return inks
