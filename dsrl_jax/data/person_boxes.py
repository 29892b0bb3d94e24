"""Boxes of persons: what a sound one is, and those of a detector in place of the annotated ones.

A file of detections is a JSON list of {'image_id', 'category_id', 'bbox': [x, y, width, height],
'score'}, the form of HRNet's COCO_val2017_detections_AP_H_56_person.json.
"""

import collections
import dataclasses
import pathlib

import numpy as np

from dsrl_jax.data.listings import read_json
from dsrl_jax.data.persons import Persons, PersonSource
from dsrl_jax.data.sources import Cached
from dsrl_jax.errors import UserError


def with_boxes(source, path):
    """The source with the boxes of a file of detections; with its own where `path` is ''.

    The elements have no joints then: all (0, 0) and not visible. UserError for the first mistake.
    """
    if not path:
        return source
    plain = source.source if isinstance(source, Cached) else source
    detected, problems = list_boxes(plain, path)
    if problems:
        raise problems[0]
    print(f'{plain.split}: {detected.note}')
    return Cached(detected) if isinstance(source, Cached) else detected


def list_boxes(source: PersonSource, path) -> tuple[PersonSource, list[UserError]]:
    """(the source with the boxes of a file, everything wrong in it).

    Only the category of persons is kept, whatever the score, as in HRNet's evaluation.
    UserError where the file cannot be read, or the source is not one split of files.
    """
    if not isinstance(source, PersonSource):
        expected = "'' (ground-truth boxes) for this data"
        raise UserError('pose.boxes', str(path), expected, 'name one split of a set of files.')
    path = pathlib.Path(path).expanduser()
    category = person_category(source.ground_truth())
    places = {image.id: place for place, image in enumerate(source.images)}
    rows, problems, unknown = [], [], collections.Counter()
    others = 0
    for number, entry in enumerate(_entries(path)):
        where = f'{path}: detection {number}'
        if not isinstance(entry, dict) or not _FIELDS.issubset(entry):
            found = str(sorted(entry) if isinstance(entry, dict) else entry)[:60]
            expected = 'an object with ' + ', '.join(sorted(_FIELDS))
            problems.append(UserError(where, found, expected, _REMEDY))
        elif entry['category_id'] != category:
            others += 1
        elif (place := _place(places, entry['image_id'])) is None:
            unknown[str(entry['image_id'])[:60]] += 1
        elif problem := _score_problem(where, entry['score']) or box_problem(
            where, entry['bbox'], source.images[place][2:]
        ):
            problems.append(problem)
        else:
            rows.append((place, number, entry['bbox'], entry['score']))
    for image, count in unknown.items():
        found = f'image id {image} in {count} detection{"s" * (count > 1)}'
        expected = f'ids of the images in {source.annotations}'
        remedy = 'choose the detections of this split.'
        problems.append(UserError(path, found, expected, remedy))
    if not rows and not problems:
        expected = f'at least one of category {category}'
        problems.append(UserError(path, 'no detection of a person', expected, _REMEDY))
    columns = list(zip(*rows)) if rows else [[]] * 4
    joints = len(source.keypoints.names)
    note = f'{len(rows)} detected boxes of {path}'
    persons = Persons(
        np.array(columns[0], int),
        np.array(columns[1], int),
        np.array(columns[2], np.float32).reshape(-1, 4),
        np.array(columns[3], np.float32),
        np.zeros((len(rows), joints, 2), np.float32),
        np.zeros((len(rows), joints), np.float32),
    )
    if others:
        note += f' ({others} of other categories left out)'
    return dataclasses.replace(source, persons=persons, note=note), problems


def box_problem(where, box, size) -> UserError | None:
    """What is wrong with a box (x, y, width, height) on an image of size (height, width)."""
    values = box if isinstance(box, list | tuple) else []
    if len(values) != 4 or not all(map(is_number, values)):
        found = f'the box {str(box)[:60]}'
        return UserError(where, found, 'four numbers x, y, width, height', _REMEDY)
    x, y, width, height = values
    shown = f'a box of {width:g}x{height:g} (width x height) at ({x:g}, {y:g})'
    if width <= 0 or height <= 0:
        return UserError(where, shown, 'a width and a height above 0', _REMEDY)
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        expected = f'a box on the image of {size[1]}x{size[0]} (width x height)'
        return UserError(where, f'{shown}, outside the image', expected, _REMEDY)
    return None


def is_number(value) -> bool:
    """A number of JSON, and one that a float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST  # False of nan


def person_category(content: dict) -> int:
    """The id of the category that has keypoints; 1, COCO's person, where none says so."""
    known = content.get('categories', ())
    return next((c.get('id') for c in known if isinstance(c, dict) and 'keypoints' in c), 1)


_FIELDS = {'image_id', 'category_id', 'bbox', 'score'}
_REMEDY = 'correct or remove it.'
_LARGEST = float(np.finfo(np.float32).max)


def _entries(path):
    entries = read_json(path, 'a JSON list of detections', 'check pose.boxes.')
    if not isinstance(entries, list):
        raise UserError(path, f'a {type(entries).__name__}', 'a JSON list of detections', _REMEDY)
    return entries


def _place(places, image):
    return places.get(image) if type(image) is int else None


def _score_problem(where, score):
    if is_number(score):
        return None
    return UserError(where, f'the score {str(score)[:60]}', 'a number', _REMEDY)
