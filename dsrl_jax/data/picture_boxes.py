"""The people of pictures of one's own: a file of boxes as detectors write it, by picture.

A JSON list of {'file_name' or 'image_id', 'bbox': [x, y, width, height], 'score', 'category_id'}.
The name is that of the picture's file, whatever its folder; an image_id alone is the number that
the name is (785: 000000000785.jpg). Without a score a box has 1; other categories are passed over.
"""

import json
import math
import pathlib
from typing import NamedTuple

from dsrl_jax.data.images import read_image
from dsrl_jax.data.person_boxes import box_problem, person_category
from dsrl_jax.errors import UserError


class People(NamedTuple):
    """Those of one picture: its id in COCO results, and their boxes [P] (x, y, width, height)."""

    image_id: int
    boxes: list | None  # None: the whole picture
    scores: list | None


def whole(paths) -> list[People]:
    """One person a picture, who is the whole of it."""
    return [People(number, None, None) for number in _numbers(paths)]


def read(file, paths) -> list[People]:
    """The people of every picture in `paths`, whose names differ, by the file.

    UserError for the first entry that is not in its form, names none of the pictures or has a box
    beside it, and for a picture without a box.
    """
    places = {path.name: place for place, path in enumerate(paths)}
    by_number = {int(path.stem): place for place, path in enumerate(paths) if _is_number(path)}
    found, ids, sizes = [[] for _ in paths], {}, {}
    for number, entry in enumerate(_entries(file)):
        where = f'{file}: box {number}'
        if not isinstance(entry, dict) or 'bbox' not in entry or not _NAMES & set(entry):
            shown = f'{sorted(entry) if isinstance(entry, dict) else entry!r}'
            expected = 'an object with bbox, and file_name or image_id'
            raise UserError(where, shown, expected, _REMEDY)
        if entry.get('category_id', _PERSON) != _PERSON:
            continue
        place = _place(entry, places, by_number)
        if place is None:
            shown = ', '.join(f'{key} {entry[key]!r}' for key in sorted(_NAMES & set(entry)))
            expected = 'one of the pictures given'
            raise UserError(where, shown, expected, 'name its picture too, or remove it.')
        image_id = entry.get('image_id')
        if image_id is not None and ids.setdefault(place, image_id) != image_id:
            shown, expected = f'image_id {image_id!r}', f'{ids[place]!r}, as of the same picture'
            raise UserError(where, shown, expected, _REMEDY)
        score = entry.get('score', 1.0)
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise UserError(where, f'the score {score!r}', 'a number', _REMEDY)
        if place not in sizes:
            sizes[place] = read_image(paths[place]).shape[:2]
        if problem := box_problem(where, entry['bbox'], sizes[place]):
            raise problem
        found[place].append((entry['bbox'], float(score)))
    for path, rows in zip(paths, found):
        if not rows:
            remedy = 'add one, or leave the picture out.'
            raise UserError(file, f'no person on {path}', 'a box on every picture', remedy)
    numbers = [ids.get(place, number) for place, number in enumerate(_numbers(paths))]
    _check_ids(file, numbers)
    return [People(n, *map(list, zip(*rows))) for n, rows in zip(numbers, found)]


_NAMES, _REMEDY = {'file_name', 'image_id'}, 'correct or remove it.'
_PERSON = person_category({})


def _entries(file):
    try:
        entries = json.loads(pathlib.Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(file, str(error), 'a JSON list of boxes', 'check --boxes.') from None
    if not isinstance(entries, list):
        raise UserError(file, f'a {type(entries).__name__}', 'a list of boxes', 'check --boxes.')
    return entries


def _place(entry, places, by_number):
    """Which picture an entry is of, or None; a name goes before a number."""
    if 'file_name' in entry:
        return places.get(pathlib.PurePath(str(entry['file_name'])).name)
    number = entry['image_id']
    return by_number.get(number) if isinstance(number, int) else None


def _numbers(paths):
    """The numbers that all the names are, or else the places, from 1."""
    if all(map(_is_number, paths)) and len({int(path.stem) for path in paths}) == len(paths):
        return [int(path.stem) for path in paths]
    return list(range(1, len(paths) + 1))


def _is_number(path):
    return path.stem.isascii() and path.stem.isdecimal()


def _check_ids(file, numbers):
    for number in numbers:
        if not isinstance(number, int) or numbers.count(number) > 1:
            found, expected = f'image_id {number!r}', 'a whole number, one a picture'
            raise UserError(file, found, expected, 'number all the pictures, or none.')
