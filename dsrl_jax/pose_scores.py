"""Poses as COCO results, and their score by pycocotools: AP and AR as the paper's Table 5 has them.

AP is the mean over OKS thresholds 0.50, 0.55, ... 0.95 of the precision at 101 recalls, over the 20
best poses of each image; M are people of 32^2 to 96^2 pixels, L larger ones. A detection counts
wherever no person is. People without labelled joints and crowds are no misses, and whoever is
found there is no false positive.
"""

import contextlib
import io
import json
import math
import pathlib

import numpy as np

from dsrl_jax import oks
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import Keypoints

# Table 5's columns -> place among the ten numbers of COCOeval.
STATISTICS = {'AP': 0, 'AP50': 1, 'AP75': 2, 'AP_M': 3, 'AP_L': 4, 'AR': 5, 'AR50': 6, 'AR75': 7}
PERSON = 1  # category id


def results(people, keypoints: Keypoints, *, nms=0.9, soft_nms=False, rescore=0.2) -> list[dict]:
    """COCO results of N poses: [{image_id, category_id, keypoints (x, y, confidence), score}, ...].

    `people`: image_id [N], joints [N,J,2] in pixels of the image, confidence [N,J], score [N] and
    scale [N,2] of the boxes (in units of 200 pixels). Scores are the boxes' times the mean
    confidence above `rescore`; oks.suppress chooses within each image. UserError on a place or
    confidence that is not finite.
    """
    joints = np.asarray(people['joints'], np.float64).reshape(-1, len(keypoints.names), 2)
    confidence = np.asarray(people['confidence'], np.float64).reshape(joints.shape[:2])
    images = np.asarray(people['image_id']).reshape(-1)
    _check_finite(joints, confidence, images)
    scores = oks.rescore(np.asarray(people['score'], np.float64), confidence, rescore)
    areas = np.prod(200 * np.asarray(people['scale'], np.float64).reshape(-1, 2), axis=1)
    found = []
    for image in dict.fromkeys(images.tolist()):
        mine = np.flatnonzero(images == image)
        kept = oks.suppress(
            joints[mine], scores[mine], areas[mine], keypoints.sigmas, nms, soft=soft_nms
        )
        for i in mine[kept]:
            triples = np.concatenate([joints[i], confidence[i, :, None]], 1)
            found.append(
                {
                    'image_id': image,
                    'category_id': PERSON,
                    'keypoints': triples.ravel().tolist(),
                    'score': float(scores[i]),
                }
            )
    return found


def write(path, found: list[dict]) -> pathlib.Path:
    """Write results as the JSON file that COCO's server and pycocotools read."""
    path = pathlib.Path(path)
    path.write_text(json.dumps(found, allow_nan=False) + '\n', encoding='utf-8')
    return path


def score(found, truth, keypoints: Keypoints, *, images=None) -> dict[str, float | None]:
    """{'AP': 0..1, 'AP50', ...} of results against annotations, each a JSON file or what it holds.

    None where the annotations have no person to find (of that size). `images`: count these ids
    alone. UserError where a file or an entry is not in COCO's form or names an unknown image, and
    where pycocotools is missing.
    """
    truth, truth_name = _load(truth, 'the annotations')
    found, found_name = _load(found, 'the results')
    joints = len(keypoints.names)
    known = _check_truth(truth, truth_name, joints)
    _check_results(found, found_name, known, joints)
    COCO, COCOeval = _pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = _indexed(COCO, truth, [dict(entry) for entry in truth['annotations']])
        evaluation = COCOeval(annotations, _indexed(COCO, truth, _measured(found)), 'keypoints')
        evaluation.params.kpt_oks_sigmas = np.array(keypoints.sigmas)
        evaluation.params.catIds = [PERSON]
        if images is not None:
            evaluation.params.imgIds = sorted(set(images))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: float(evaluation.stats[place]) for name, place in STATISTICS.items()}
    return {name: value if value >= 0 else None for name, value in values.items()}


def line(scores: dict, boxes: str) -> str:
    """Scores in percent as Table 5 prints them, with the boxes they are of ('': ground truth)."""
    shown = [f'{n} {"-" if scores[n] is None else f"{100 * scores[n]:.1f}"}' for n in STATISTICS]
    return f'{" ".join(shown)} ({f"boxes of {boxes}" if boxes else "ground-truth boxes"})'


def _indexed(COCO, truth, annotations):
    """A COCO object with the images of the truth and these annotations."""
    coco = COCO()
    # Not its loadRes: that one fails on results without a single pose.
    coco.dataset = {**truth, 'annotations': annotations}
    coco.createIndex()
    return coco


def _measured(found):
    """Results with the id, box and area that pycocotools gives them: the box of all joints."""
    measured = []
    for number, entry in enumerate(found, 1):
        x, y = entry['keypoints'][0::3], entry['keypoints'][1::3]
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        # A copy with its own box: one that the file gives is of the detector.
        measured.append({**entry, 'id': number, 'bbox': box, 'area': box[2] * box[3]})
    return measured


def _load(source, what):
    """(content, name for messages) of a JSON file, or of content itself."""
    if not isinstance(source, str | pathlib.Path):
        return source, what
    try:
        return json.loads(pathlib.Path(source).read_text(encoding='utf-8')), source
    except OSError as problem:
        remedy = 'name a file that can be read.'
        raise UserError(source, problem.strerror or 'no file', 'a JSON file', remedy) from problem
    except ValueError as problem:
        raise UserError(source, str(problem), 'JSON', 'write the file again.') from problem


def _check_truth(truth, where, joints):
    """The ids of the images, once all annotations have what the score needs."""
    remedy = 'give person_keypoints_*.json.'
    if not isinstance(truth, dict):
        raise UserError(where, type(truth).__name__, 'an object', remedy)
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(truth.get(key), list):
            raise UserError(where, f'no list {key!r}', 'images, annotations, categories', remedy)
    known = set()
    for number, image in enumerate(truth['images']):
        _check_keys(image, f'{where}: image {number}', ('id',))
        known.add(image['id'])
    for number, entry in enumerate(truth['annotations']):
        name = f'{where}: annotation {number}'
        _check_keys(entry, name, ('id', 'category_id', 'image_id'))
        if entry['category_id'] == PERSON:
            _check_keys(entry, name, ('bbox', 'area', 'keypoints', 'num_keypoints'))
            _check_pose(entry, name, known, joints)
    return known


def _check_results(found, where, known, joints):
    if not isinstance(found, list):
        raise UserError(where, type(found).__name__, 'a list of poses', 'give COCO results.')
    for number, entry in enumerate(found):
        name = f'{where}: entry {number}'
        _check_keys(entry, name, ('image_id', 'category_id', 'keypoints', 'score'))
        if entry['category_id'] != PERSON:
            remedy = 'drop what is no person.'
            raise UserError(name, f'category {entry["category_id"]!r}', str(PERSON), remedy)
        _check_pose(entry, name, known, joints)
        for value in (*entry['keypoints'], entry['score']):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(name, repr(value), 'finite numbers', 'mend or drop the entry.')


def _check_keys(entry, where, keys):
    if not isinstance(entry, dict):
        raise UserError(where, type(entry).__name__, 'an object', 'give a file in COCO form.')
    for key in keys:
        if key not in entry:
            raise UserError(where, f'no {key!r}', ', '.join(keys), f'add {key!r}.')


def _check_pose(entry, where, known, joints):
    if entry['image_id'] not in known:
        remedy = 'use results and annotations of the same split.'
        raise UserError(where, f'image id {entry["image_id"]!r}', 'an annotated image', remedy)
    values = entry['keypoints']
    if not isinstance(values, list) or len(values) != 3 * joints:
        found = f'{len(values)} numbers' if isinstance(values, list) else repr(values)
        expected = f'{3 * joints} numbers, three for each of {joints} joints'
        raise UserError(f'{where}: keypoints', found, expected, 'give every joint x, y and v.')


def _check_finite(joints, confidence, images):
    bad = ~(np.isfinite(joints).all((1, 2)) & np.isfinite(confidence).all(1))
    if bad.any():
        image = images[np.flatnonzero(bad)[0]]
        remedy = 'look whether training diverged.'
        raise UserError(f'pose on image {image}', 'nan or inf', 'finite joints', remedy)


def _pycocotools():
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as problem:
        remedy = "run pip install 'dsrl-jax[pose]'."
        raise UserError('the score of poses', 'no pycocotools', 'the package', remedy) from problem
    return COCO, COCOeval
