"""COCO keypoints as HRNet filters them, or a user's own joints in the same form.

    ROOT/annotations/person_keypoints_train2017.json
    ROOT/train2017/000000000009.jpg          or ROOT/images/train2017/...
    ROOT/annotations/keypoints.json          optional: joints of one's own, see `read_keypoints`

The split `train` is train2017 where that is there, else `train` itself. An annotation is a
person where it is no crowd, has an area and at least one labelled joint. Its box is clipped to
the centres of the image's pixels, whose last column is width - 1.
"""

import collections
import os
import pathlib

import numpy as np

from dsrl_jax.data.listings import check_link, plain, read_json
from dsrl_jax.data.person_boxes import box_problem, is_number, person_category
from dsrl_jax.data.persons import ImageFile, Persons, PersonSource
from dsrl_jax.errors import UserError, nearest, one_of
from dsrl_jax.keypoints import COCO, Keypoints, check, from_lists

_LARGEST_ID = 2**31 - 1
_LARGEST_SIDE = 2**20  # pixels; whether an image may be decoded is decided on its file
_IMAGE_FIELDS = ('id', 'file_name', 'height', 'width')


def build(config, split: str) -> PersonSource:
    """The split below `config.root`; mistakes in the annotations are in `problems`."""
    root = pathlib.Path(config.root).expanduser()
    name, path = _annotations(root, split)
    keypoints = read_keypoints(root / 'annotations' / 'keypoints.json')
    content = _read(path)
    _check_names(path, content, keypoints)
    folder = _folder(root, name)
    images, problems = _images(path, content, folder)
    rows, wrong, left_out = _rows(path, content, images, keypoints)
    missing = _missing(images, folder)
    needed = {row[0] for row in rows}
    problems += wrong + [error for place, error in missing.items() if place in needed]
    differences = [error for place, error in missing.items() if place not in needed]
    columns = list(zip(*rows)) if rows else [[]] * 4
    marks = np.array(columns[3], np.float32).reshape(-1, len(keypoints.names), 3)
    persons = Persons(
        np.array(columns[0], int),
        np.array(columns[1], int),
        np.array(columns[2], np.float32).reshape(-1, 4),
        np.ones(len(rows), np.float32),
        np.ascontiguousarray(marks[..., :2]),
        (marks[..., 2] > 0).astype(np.float32),
    )
    note = f'{len(rows)} persons on {len(needed)} of {len(images)} images, annotated boxes'
    others = ', '.join(f'{count} {why}' for why, count in sorted(left_out.items()))
    note += f' (left out: {others})' if others else ''
    return PersonSource(
        tuple(images), persons, split, path, keypoints, tuple(problems), tuple(differences), note
    )


def read_keypoints(path: pathlib.Path) -> Keypoints:
    """The joints of a JSON file, checked, or COCO's where there is no such file.

    {"names": ["head", ...], "flip_pairs": [[1, 2], ...], "sigmas": [0.03, ...], "skeleton":
    [[0, 1], ...], "upper": [0, 1, ...]}: pairs, skeleton and upper are indices into names.
    """
    if not path.is_file():
        return COCO
    content = read_json(path, 'an object with ' + ', '.join(Keypoints._fields))
    for field in Keypoints._fields:
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            found = repr(content.get(field)) if isinstance(content, dict) else 'no object'
            raise UserError(path, found, f'a list named {field}', 'add it.')
    for field in content:
        if field not in Keypoints._fields:
            known = Keypoints._fields
            raise UserError(path, repr(field), one_of(known), nearest(field, known))
    if not all(isinstance(name, str) for name in content['names']):
        raise UserError(path, f'names {_short(content["names"])}', 'words', 'correct them.')
    keypoints = from_lists(content)
    check(keypoints, path)
    return keypoints


def _annotations(root, split):
    """(name of the split on disk, its annotation file)."""
    folder = root / 'annotations'
    for name in (f'{split}2017', split):
        if (path := folder / f'person_keypoints_{name}.json').is_file():
            return name, path
    there = sorted(
        p.stem.removeprefix('person_keypoints_') for p in folder.glob('person_keyp*.json')
    )
    raise UserError(
        folder / f'person_keypoints_{split}2017.json',
        'no such file',
        f'the annotations of a split (there are: {", ".join(there) or "none"})',
        'put it there, or check data.root.',
    )


def _folder(root, name):
    places = [root / name, root / 'images' / name]
    for place in places:
        if place.is_dir():
            return place
    expected = f'the images there, or in {places[1]}'
    raise UserError(places[0], 'no such folder', expected, 'put them there.')


def _read(path):
    content = read_json(path, 'COCO annotations')
    content = {'categories': [], **content} if isinstance(content, dict) else {}
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content.get(key), list):
            raise UserError(path, f'no list of {key}', 'COCO annotations', 'restore the file.')
    return content


def _check_names(path, content, keypoints):
    """The file's own list of joints, where it has one, is that of the metadata."""
    for category in content['categories']:
        names = category.get('keypoints') if isinstance(category, dict) else None
        if names is not None and not isinstance(names, list):
            expected = 'a list of names'
            raise UserError(path, f'keypoints {_short(names)}', expected, 'restore the file.')
        if names is not None and names != list(keypoints.names):
            found = f'{len(names)} joints: {", ".join(map(str, names[:3]))}, ...'
            expected = f'{len(keypoints.names)}: {", ".join(keypoints.names[:3])}, ...'
            remedy = f'describe its joints in {path.parent / "keypoints.json"}.'
            raise UserError(path, found, expected, remedy)


def _images(path, content, folder):
    images, problems = {}, []
    for number, entry in enumerate(content['images']):
        where = f'{path}: image {number}'
        fields = [entry.get(k) for k in _IMAGE_FIELDS] if isinstance(entry, dict) else [None]
        if None in fields:
            expected = 'an object with ' + ', '.join(_IMAGE_FIELDS)
            problems.append(UserError(where, _short(entry), expected, 'restore the file.'))
            continue
        key, name, *size = fields
        if type(key) is not int or not 0 <= key <= _LARGEST_ID or key in images:
            again = type(key) is int and key in images
            found = f'the id {_short(key)}' + ' again' * again
            expected = f'whole numbers up to {_LARGEST_ID}, each once'
            problems.append(UserError(where, found, expected, 'renumber it.'))
        elif not plain(name):
            found, remedy = f'the file_name {_short(name)}', 'write it relative to that folder.'
            problems.append(UserError(where, found, f'a path inside {folder}', remedy))
        elif any(type(side) is not int or not 0 < side <= _LARGEST_SIDE for side in size):
            found = f'height {_short(size[0])}, width {_short(size[1])}'
            problems.append(UserError(where, found, 'numbers of pixels', 'restore the file.'))
        else:
            images[key] = ImageFile(key, folder / name, *size)
    return list(images.values()), problems


def _rows(path, content, images, keypoints):
    """([(image, annotation id, box, [[x, y, v], ...])], problems, why others were left out)."""
    category = person_category(content)
    places = {image.id: place for place, image in enumerate(images)}
    rows, problems, left_out = [], [], collections.Counter()
    for number, entry in enumerate(content['annotations']):
        number = entry.get('id', number) if isinstance(entry, dict) else number
        where = f'{path}: annotation {_short(number)}'
        image_id = entry.get('image_id') if isinstance(entry, dict) else None
        if type(number) is not int or not 0 <= number < 2**63:
            found, expected = f'the id {_short(number)}', 'a whole number'
            problems.append(UserError(where, found, expected, 'renumber it.'))
            continue
        if type(image_id) is not int or image_id not in places:
            found = _short(entry)
            if isinstance(entry, dict):
                found = f'image id {_short(image_id)}'
            expected = 'an annotation of an image that the file lists'
            problems.append(UserError(where, found, expected, 'correct or remove it.'))
            continue
        if entry.get('category_id') != category:
            left_out['of other categories'] += 1
            continue
        if entry.get('iscrowd'):
            left_out['crowds'] += 1
            continue
        marks = entry.get('keypoints')
        if problem := _marks_problem(where, marks, len(keypoints.names)):
            problems.append(problem)
            continue
        if not any(marks[2::3]):
            left_out['without a labelled joint'] += 1
            continue
        image = images[places[image_id]]
        if problem := box_problem(where, entry.get('bbox'), image[2:]):
            problems.append(problem)
            continue
        box = _clipped(entry['bbox'], image)
        if not is_number(area := entry.get('area', 1)):
            problems.append(UserError(where, f'the area {_short(area)}', 'a number', 'correct it.'))
            continue
        if area <= 0 or not any(box[2:]):
            left_out['without area'] += 1
            continue
        rows.append((places[image.id], number, box, np.reshape(marks, (-1, 3))))
    return rows, problems, left_out


def _marks_problem(where, marks, count):
    """What is wrong with the list x, y, v, x, y, v, ... of an annotation."""
    if not isinstance(marks, list) or len(marks) != 3 * count:
        found = f'{len(marks)} keypoint values' if isinstance(marks, list) else 'no keypoints'
        expected = f'{3 * count}: x, y, v of {count} joints'
        return UserError(where, found, expected, 'correct the array.')
    for value in marks:
        if not is_number(value):
            return UserError(where, f'the value {_short(value)}', 'numbers', 'correct the array.')
    wrong = [value for value in marks[2::3] if value not in (0, 1, 2)]
    if wrong:
        expected = '0 (not labelled), 1 (hidden) or 2 (visible)'
        return UserError(where, f'the visibility {wrong[0]!r}', expected, 'correct the array.')
    return None


def _clipped(box, image):
    """The box between the pixel centres it covers: one pixel less each way, inside the image."""
    x, y, width, height = box
    left, top = max(0, x), max(0, y)
    right = min(image.width - 1, left + max(0, width - 1))
    bottom = min(image.height - 1, top + max(0, height - 1))
    return left, top, max(0, right - left), max(0, bottom - top)


def _missing(images, folder):
    """{place among the images: problem} of those that are not on disk, or lead out of the root."""
    # One listing for the flat folder of the public set; a file deeper down is looked for.
    there = {entry.name: entry.is_symlink() for entry in os.scandir(folder)}
    remedy = 'restore the image, or take it out of the annotations.'
    found = {}
    for place, image in enumerate(images):
        linked = there.get(image.path.name) if image.path.parent == folder else True
        if linked is None or (linked and not image.path.is_file()):
            expected = 'an image that is annotated'
            found[place] = UserError(image.path, 'no such file', expected, remedy)
        elif linked:
            try:
                check_link(image.path, folder, image.path)
            except UserError as problem:
                found[place] = problem
    return found


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
