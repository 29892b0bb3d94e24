"""OKS against the formula and pycocotools, rescoring, and suppression of the same pose."""

import json

import numpy as np
import pytest

from dsrl_jax import oks
from dsrl_jax.keypoints import COCO

NOSE, HIP = 0, 11


@pytest.fixture
def pose():
    """[17, 2] in pixels."""
    return np.random.default_rng(0).uniform(0, 100, (17, 2))


def test_known_values(pose):
    assert oks.similarity(pose, pose[None], 1000.0, COCO.sigmas) == 1
    # A distance of k sqrt(2 area) takes a joint to 1/e, and it is one of 17.
    moved = pose.copy()
    moved[HIP, 0] += 2 * COCO.sigmas[HIP] * np.sqrt(2 * 1000)
    [near] = oks.similarity(pose, moved[None], 1000.0, COCO.sigmas)
    np.testing.assert_allclose(near, (16 + np.exp(-1)) / 17)
    counted = np.arange(17) == HIP
    [near] = oks.similarity(pose, moved[None], 1000.0, COCO.sigmas, counted)
    np.testing.assert_allclose(near, np.exp(-1))
    assert oks.similarity(pose, moved[None], 1000.0, COCO.sigmas, counted & False) == 0
    assert oks.similarity(pose, moved[None][:0], 1000.0, COCO.sigmas).shape == (0,)


def test_similarity_knows_no_scale_and_no_place(pose):
    moved = pose + np.random.default_rng(1).normal(0, 3, (5, 17, 2))
    near = oks.similarity(pose, moved, 900.0, COCO.sigmas)
    assert 0 < near.min() < near.max() < 1
    again = oks.similarity(3 * pose + 7, 3 * moved + 7, 9 * 900.0, COCO.sigmas)
    np.testing.assert_allclose(again, near)


def test_rescoring():
    confidence = [[0.1, 0.9, 0.5, 0.2], [0.1, 0.2, 0.0, 0.1], [1, 1, 1, 1]]
    scores = oks.rescore([0.5, 0.9, 0.8], confidence)
    np.testing.assert_allclose(scores, [0.5 * 0.7, 0, 0.8])


@pytest.fixture
def people(pose):
    """Joints, scores, areas: two people far apart, and near copies of the first."""
    shifts = np.array([0, 1000, 1, 30, 0])[:, None, None]
    return pose + shifts, np.array([0.6, 0.5, 0.9, 0.7, 0.6]), np.full(5, 10000.0)


def test_the_best_of_each_person_stays(people):
    joints, scores, areas = people
    assert oks.suppress(joints, scores, areas, COCO.sigmas) == [2, 3, 1]
    assert oks.suppress(joints, scores, areas, COCO.sigmas, 1.0) == [2, 3, 0, 4, 1]
    assert oks.suppress(joints, scores, areas, COCO.sigmas, 1e-9) == [2, 1]
    assert oks.suppress(joints[:0], scores[:0], areas[:0], COCO.sigmas) == []
    # Two share the mean of their areas: one large person swallows the neighbour.
    areas = np.array([1e4, 1e4, 1e7, 1e4, 1e4])
    assert oks.suppress(joints, scores, areas, COCO.sigmas, 0.8) == [2, 1]


def test_the_soft_form_puts_copies_last(people):
    joints, scores, areas = people
    before = scores.copy()
    kept = oks.suppress(joints, scores, areas, COCO.sigmas, soft=True)
    assert kept == [2, 3, 1, 0, 4]
    np.testing.assert_array_equal(scores, before)
    near = oks.similarity(joints[2], joints[3:4], 1e4, COCO.sigmas)
    assert scores[3] * np.exp(-(near**2) / 0.9) > 0.5, 'a neighbour loses less than a copy'


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('threshold', [0.3, 0.6, 0.9])
def test_suppression_equals_plain_loops(pose, soft, threshold):
    rng = np.random.default_rng(2)
    joints = pose + rng.normal(0, 12, (15, 1, 2)) + rng.normal(0, 2, (15, 17, 2))
    scores, areas = rng.uniform(0.1, 1, 15), rng.uniform(3e3, 3e4, 15)
    left, kept = dict(enumerate(scores)), []
    while left:
        best = max(left, key=left.get)
        del left[best]
        kept.append(best)
        for other in list(left):
            distance = ((joints[best] - joints[other]) ** 2).sum(1)
            spread = 2 * (2 * np.array(COCO.sigmas)) ** 2 * (areas[best] + areas[other]) / 2
            near = np.exp(-distance / spread).mean()
            if soft:
                left[other] *= np.exp(-(near**2) / threshold)
            elif near > threshold:
                del left[other]
    assert oks.suppress(joints, scores, areas, COCO.sigmas, threshold, soft=soft) == kept


def test_the_soft_form_keeps_twenty(pose):
    joints = pose + 1000 * np.arange(30)[:, None, None]
    kept = oks.suppress(joints, np.linspace(0.1, 1, 30), np.ones(30), COCO.sigmas, soft=True)
    assert kept == list(range(29, 9, -1))


def test_similarity_is_that_of_pycocotools(real_data):
    coco = pytest.importorskip('pycocotools.coco')
    evaluation = pytest.importorskip('pycocotools.cocoeval')
    file = real_data / 'coco_mini/annotations/person_keypoints_val2017.json'
    truth = coco.COCO(str(file))
    people = [
        person
        for person in json.loads(file.read_text())['annotations']
        if person['num_keypoints'] > 0
    ]
    rng = np.random.default_rng(0)
    found = [
        {
            'image_id': person['image_id'],
            'category_id': 1,
            'keypoints': (np.array(person['keypoints']) + rng.normal(0, 5, 51)).tolist(),
            'score': 0.1 + i / 1000,
        }
        for i, person in enumerate(people)
    ]
    theirs = evaluation.COCOeval(truth, truth.loadRes(found), 'keypoints')
    theirs.evaluate()
    compared = 0
    for image in {person['image_id'] for person in people}:
        mine = sorted(
            (entry for entry in found if entry['image_id'] == image), key=lambda e: -e['score']
        )
        joints = np.array([entry['keypoints'] for entry in mine]).reshape(-1, 17, 3)[..., :2]
        for column, person in enumerate(truth.loadAnns(truth.getAnnIds(imgIds=[image]))):
            if person['num_keypoints'] == 0:
                continue
            place = np.array(person['keypoints']).reshape(17, 3)
            near = oks.similarity(
                place[:, :2], joints, person['area'], COCO.sigmas, place[:, 2] > 0
            )
            np.testing.assert_allclose(near, theirs.ious[image, 1][:, column], rtol=1e-9)
            compared += len(near)
    assert compared > 200
