"""Persons with their skeletons: a contact sheet of training views, to see what is learned."""

import itertools
import pathlib

from PIL import Image, ImageDraw, ImageFont

from dsrl_jax.data import person_batches
from dsrl_jax.data.persons import colors
from dsrl_jax.errors import UserError
from dsrl_jax.report import skeleton

_GAP, _CAPTION, _PAPER = 6, 18, (225, 225, 225)
_COLUMNS = 6


def contact_sheet(config, source, path, *, rows: int = 6, seed: int = 0, panel: int = 200):
    """Writes a PNG of `rows` rows of augmented views of persons, and gives its path.

    Each view is the large one, `panel` pixels wide, with its visible joints: orange left, blue
    right, green between. Reads what person_batches.train_batches reads.
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
            visible = batch['visible'][column]
            drawn = skeleton.draw(
                picture, joints[None], visible[None], source.keypoints, colors(source.keypoints)
            )
            place = _GAP + column * (panel + _GAP), _CAPTION + row * (tall + _GAP)
            sheet.paste(Image.fromarray(drawn), place)
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise UserError(path, str(error), 'a folder to write', 'choose --output.') from None
    return path
