"""Label pictures for eyes: colours, overlays, error maps and captioned grids, all uint8 RGB."""

import os
import pathlib
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsrl_jax.errors import UserError

IGNORE = 255
_INK, _PAPER = (28, 32, 38), (255, 255, 255)


def colorize(label, colors):
    """Class colours of a label: [H,W] integer, K colours (r,g,b) -> [H,W,3].

    255 becomes black with grey hatching, to differ from a class that is black. Any other value
    outside the K classes raises ValueError.
    """
    label = np.asarray(label)
    ignored = label == IGNORE
    if label.size and (np.any(label < 0) or np.any((label >= len(colors)) & ~ignored)):
        raise ValueError(f'label values outside 0..{len(colors) - 1} and {IGNORE}')
    table = np.zeros((max(IGNORE + 1, len(colors)), 3), np.uint8)
    table[: len(colors)] = colors
    picture = table[label]
    picture[ignored] = 0
    rows, columns = np.indices(label.shape)
    picture[ignored & ((rows + columns) % 8 < 2)] = 90
    return picture


def overlay(image, label, colors, alpha=0.5):
    """Image under its class colours: [H,W,3], [H,W] -> [H,W,3]; ignored pixels stay as they are."""
    image, label = np.asarray(image), np.asarray(label)
    if image.shape[:2] != label.shape:
        raise ValueError(f'image {image.shape[:2]} and label {label.shape} differ in size')
    mixed = image * (1 - alpha) + colorize(label, colors) * alpha
    return np.where((label == IGNORE)[..., None], image, mixed + 0.5).astype(np.uint8)


def error_map(prediction, label, border=None):
    """Where a prediction fails: two [H,W] -> [H,W,3]; right pale, wrong red, ignored grey.

    `border` [H,W] bool are pixels near a border of the label: pale blue where right, amber where
    wrong, so that red is left for what is wrong away from them.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    if prediction.shape != label.shape:
        raise ValueError(f'prediction {prediction.shape} and label {label.shape} differ in size')
    picture = np.full((*label.shape, 3), 244, np.uint8)
    wrong = prediction != label
    picture[wrong] = (206, 32, 44)
    if border is not None:
        picture[border & ~wrong] = (206, 220, 240)
        picture[border & wrong] = (240, 160, 20)
    picture[label == IGNORE] = (150, 154, 160)
    return picture


def grid(rows, captions=None, *, cell_width=384, gap=8):
    """One sheet of several pictures: rows of [H,W,3] (None = empty cell) -> [H',W',3].

    Every picture is brought to `cell_width` pixels, keeping its shape; enlarging repeats pixels so
    that their true size stays visible. `captions` has the form of `rows`, or is one row for all.
    """
    rows = [list(row) for row in rows]
    if not rows or not any(rows):
        raise ValueError('a grid needs at least one picture')
    if captions and isinstance(captions[0], str):
        captions = [captions, *([()] * (len(rows) - 1))]
    font = ImageFont.load_default(size=15)
    strips = []
    for r, row in enumerate(rows):
        cells = [None if c is None else _fit(c, cell_width) for c in row]
        words = list(captions[r]) if captions else []
        head = 24 if any(words) else 0
        tall = max((c.height for c in cells if c), default=0)
        strip = Image.new('RGB', ((cell_width + gap) * len(cells) + gap, head + tall + gap), _PAPER)
        draw = ImageDraw.Draw(strip)
        for i, cell in enumerate(cells):
            left = gap + i * (cell_width + gap)
            if cell:
                strip.paste(cell, (left, head))
            if i < len(words) and words[i]:
                text = _shorten(str(words[i]), font, cell_width)
                draw.text((left, 3), text, fill=_INK, font=font)
        strips.append(strip)
    size = max(s.width for s in strips), sum(s.height for s in strips) + gap
    sheet, top = Image.new('RGB', size, _PAPER), gap
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return np.asarray(sheet)


def legend(classes, colors, *, columns=6, cell_width=150):
    """Names beside their colours: K names, K colours -> [H,W,3]."""
    font = ImageFont.load_default(size=15)
    lines = -(-len(classes) // columns)
    sheet = Image.new('RGB', (columns * cell_width, lines * 26 + 6), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, (name, color) in enumerate(zip(classes, colors, strict=True)):
        x, y = k % columns * cell_width + 6, k // columns * 26 + 6
        draw.rectangle((x, y, x + 18, y + 18), fill=tuple(color), outline=_INK)
        draw.text((x + 26, y), _shorten(name, font, cell_width - 34), fill=_INK, font=font)
    return np.asarray(sheet)


def save_png(array, path):
    """Writes uint8 [H,W] or [H,W,3] as PNG and returns the path; makes the folders.

    The file appears whole or not at all: it is written beside its place, then renamed. UserError
    where the folder cannot be written.
    """
    array, path = np.asarray(array), pathlib.Path(path)
    if array.dtype != np.uint8:
        raise ValueError(f'a PNG takes uint8, got {array.dtype}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix='.png', prefix='.part_', dir=path.parent)
    except OSError as error:
        raise UserError(path, str(error), 'a folder to write', 'choose another folder.') from None
    try:
        with os.fdopen(handle, 'wb') as file:
            Image.fromarray(array).save(file, 'PNG')
        os.chmod(part, 0o644)  # mkstemp keeps its files from other readers
        os.replace(part, path)
    except BaseException:
        pathlib.Path(part).unlink(missing_ok=True)
        raise
    return path


def _fit(picture, width):
    picture = Image.fromarray(np.asarray(picture, np.uint8)).convert('RGB')
    height = max(round(picture.height * width / picture.width), 1)
    way = Image.Resampling.NEAREST if width > picture.width else Image.Resampling.BOX
    return picture.resize((width, height), way)


def _shorten(text, font, width):
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '...') > width:
        text = text[:-1]
    return text + '...'
