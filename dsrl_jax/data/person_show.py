"""Persons with their skeletons: a contact sheet of training views, to see what is learned."""

import itertools
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsrl_jax.data import person_batches
from dsrl_jax.data.persons import colors
from dsrl_jax.errors import UserError

_GAP, _CAPTION, _PAPER = 6, 18, (225, 225, 225)
_COLUMNS = 6


def contact_sheet(config, source, path, *, rows: int = 6, seed: int = 0, panel: int = 200):
    """Writes a PNG of `rows` rows of augmented views of persons, and gives its path.

    Each view is the large one, `panel` pixels wide, with its visible joints: orange left, blue
    right. Reads what person_batches.train_batches reads.
    """
    batches = person_batches.train_batches(source, config, seed=seed, start=0, batch_size=_COLUMNS)
    views = list(itertools.islice(batches, rows))
    batches.close()
    height, width = views[0]['target'].shape[1:3]
    tall = round(panel * height / width)
    size = _COLUMNS * (panel + _GAP) + _GAP, rows * (tall + _GAP) + _CAPTION + _GAP
    sheet = Image.new('RGB', size, _PAPER)
    small = person_batches.input_size(config, (height, width))
    caption = f'large views {height}x{width} of the input {small[0]}x{small[1]} (HxW)'
    ImageDraw.Draw(sheet).text((_GAP, 2), caption, fill='black', font=ImageFont.load_default(12))
    for row, batch in enumerate(views):
        for column in range(_COLUMNS):
            picture = Image.fromarray(batch['target'][column]).resize((panel, tall))
            # From pixels of the input to those of the panel, centre to centre.
            joints = (batch['joints'][column] + 0.5) * (panel / small[1]) - 0.5
            draw_skeleton(picture, joints, batch['visible'][column], source.keypoints)
            place = _GAP + column * (panel + _GAP), _CAPTION + row * (tall + _GAP)
            sheet.paste(picture, place)
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise UserError(path, str(error), 'a folder to write', 'choose --output.') from None
    return path


def draw_skeleton(picture: Image.Image, joints, visible, keypoints, *, width: int = 2) -> None:
    """Draw on the picture the joints [J,2] that are `visible` [J] > 0, and the lines between."""
    pen, inks, seen = ImageDraw.Draw(picture), colors(keypoints), np.asarray(visible) > 0
    points = [tuple(map(float, joint)) for joint in joints]
    for a, b in keypoints.skeleton:
        if seen[a] and seen[b]:
            # A line between the sides has the colour of neither.
            ink = inks[a] if inks[a] == inks[b] else (230, 230, 80)
            pen.line([points[a], points[b]], ink, width)
    for (x, y), ink, here in zip(points, inks, seen):
        if here:
            pen.ellipse([x - width, y - width, x + width, y + width], ink, 'black')
