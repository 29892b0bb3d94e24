"""A contact sheet of training views, to see with one's own eyes what a network will be fed."""

import itertools
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsrl_jax import data
from dsrl_jax.data import pipeline
from dsrl_jax.errors import UserError

_TITLES = ('large view (target)', 'small input', 'label', 'overlay', 'mask')
_GAP, _CAPTION, _PAPER = 6, 18, (225, 225, 225)  # the mask of a full view is white


def contact_sheet(config, path, *, scale: int = 2, rows: int = 6, seed: int = 0, panel: int = 320):
    """Writes a PNG of `rows` augmented training views of a data config, and gives its path.

    Columns: the large view, the small input (antialiased by Pillow, for display only), the
    coloured label (ignored pixels black), the label over the view, the mask of real pixels (white).
    Panels are `panel` pixels wide; below them stand the class colours.
    """
    source = data.build(config, config.train_split)
    batches = pipeline.train_batches(source, config, seed=seed, start=0, batch_size=1)
    views = [{k: v[0] for k, v in b.items()} for b in itertools.islice(batches, rows)]
    batches.close()
    height, width = views[0]['label'].shape
    tall = round(panel * height / width)
    legend = _legend(source, len(_TITLES) * (panel + _GAP))
    sheet = Image.new(
        'RGB',
        (len(_TITLES) * (panel + _GAP) + _GAP, rows * (tall + _CAPTION + _GAP) + legend.height),
        _PAPER,
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    small = (height // scale, width // scale)
    notes = [f'{height}x{width}', f'{small[0]}x{small[1]}, 1/{scale}', '', '', '']
    for row, view in enumerate(views):
        top = row * (tall + _CAPTION + _GAP)
        for column, picture in enumerate(_pictures(view, source, small)):
            left = _GAP + column * (panel + _GAP)
            sheet.paste(picture.resize((panel, tall), _filter(column)), (left, top + _CAPTION))
            caption = f'{_TITLES[column]} {notes[column]}'.strip()
            if column == len(_TITLES) - 1:
                caption += f', {100 * view["mask"].mean():.0f} % real'
            pen.text((left, top + 2), caption, fill='black', font=font)
    sheet.paste(legend, (_GAP, sheet.height - legend.height))
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise UserError(path, str(error), 'a folder to write', 'choose --output.') from None
    return path


def colored(label, colors) -> np.ndarray:
    """label uint8 [H, W] -> uint8 RGB [H, W, 3] in the class colours, black where ignored."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    return table[label]


def _pictures(view, source, small):
    target, label = view['target'], colored(view['label'], source.colors)
    known = (view['label'] != source.ignore)[..., None]
    overlay = np.where(known, target // 2 + label // 2, target)
    large = Image.fromarray(target)
    yield large
    yield large.resize((small[1], small[0]), Image.Resampling.BILINEAR)
    for array in (label, overlay, view['mask'].astype(np.uint8) * 255):
        yield Image.fromarray(array).convert('RGB')


def _filter(column):
    # Labels, masks and the coarse pixels of the small input are shown as they are.
    return Image.Resampling.BILINEAR if column in (0, 3) else Image.Resampling.NEAREST


def _legend(source, width):
    """An image of named colour patches, wrapped to `width`."""
    font = ImageFont.load_default(12)
    places, x, y = [], 0, 4
    entries = [*zip(source.classes, source.colors, strict=True), ('ignored', (0, 0, 0))]
    for name, color in entries:
        wide = 18 + int(font.getlength(name)) + 14
        if x + wide > width:
            x, y = 0, y + 18
        places.append((x, y, name, tuple(color)))
        x += wide
    legend = Image.new('RGB', (width, y + 22), _PAPER)
    pen = ImageDraw.Draw(legend)
    for x, y, name, color in places:
        pen.rectangle((x, y, x + 13, y + 13), fill=color, outline='black')
        pen.text((x + 18, y), name, fill='black', font=font)
    return legend
