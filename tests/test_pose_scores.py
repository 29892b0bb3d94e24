"""The score of poses: on real annotations, by pycocotools by hand, and what counts for nothing."""

import importlib.util
import json

import numpy as np
import pytest

from dsrl_jax import pose_scores
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import COCO
from dsrl_jax.ops import heatmaps

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('pycocotools') is None, reason='the extra pose is not installed'
)
SPLITS = ('train2017', 'val2017')


def annotations(real_data, split):
    return real_data / f'coco_mini/annotations/person_keypoints_{split}.json'


def perfect(people):
    """What `results` takes, from annotations: each labelled person in its own place, surely."""
    people = [person for person in people if person['num_keypoints'] > 0]
    triples = np.array([person['keypoints'] for person in people], float).reshape(-1, 17, 3)
    # Joints without a label stand at (0, 0): two people of few joints would be one pose.
    boxes = np.array([person['bbox'] for person in people])
    middle = boxes[:, None, :2] + boxes[:, None, 2:] / 2
    return {
        'image_id': np.array([person['image_id'] for person in people]),
        'joints': np.where(triples[..., 2:] > 0, triples[..., :2], middle),
        'confidence': np.ones(triples.shape[:2]),
        'score': np.linspace(0.9, 0.3, len(people)),
        'scale': boxes[:, 2:] / 200 * 1.25,
    }


@pytest.mark.parametrize('split', SPLITS)
def test_perfect_poses_have_ap_1(real_data, split):
    file = annotations(real_data, split)
    people = perfect(json.loads(file.read_text())['annotations'])
    assert len(people['score']) == {'train2017': 103, 'val2017': 122}[split]
    scores = pose_scores.score(pose_scores.results(people, COCO), file, COCO)
    assert list(scores) == ['AP', 'AP50', 'AP75', 'AP_M', 'AP_L', 'AR', 'AR50', 'AR75']
    np.testing.assert_allclose(list(scores.values()), 1.0, atol=1e-12)


PAIRS = {('standard', 'quarter'): 0.97, ('dark', 'dark'): 0.985, ('udp', 'udp'): 0.985}


@pytest.mark.parametrize('pair', PAIRS, ids='-'.join)
def test_real_people_survive_heatmaps_and_the_way_back(real_data, pair):
    """What a perfect network of input 256x192 would score: heatmaps 64x48, sigma 2."""
    file = annotations(real_data, 'val2017')
    truth = json.loads(file.read_text())
    labelled = [person for person in truth['annotations'] if person['num_keypoints'] > 0]
    people = perfect(truth['annotations'])
    boxes = np.array([person['bbox'] for person in labelled])
    center = boxes[:, :2] + boxes[:, 2:] / 2
    height = np.maximum(boxes[:, 3], boxes[:, 2] * 4 / 3) * 1.25
    scale = np.stack([0.75 * height, height], 1) / 200
    # Into the input: the middle of the box to the middle of the crop.
    if pair[0] == 'udp':
        inside = (people['joints'] - center[:, None]) / (200 * scale[:, None]) + 0.5
        inside = inside * (191, 255)
    else:
        inside = (people['joints'] - center[:, None]) * (256 / height[:, None, None]) + (96, 128)
    seen = [np.array(person['keypoints'])[2::3] > 0 for person in labelled]
    maps, _ = heatmaps.encode(inside, np.array(seen), (64, 48), 4, 2, pair[0])
    joints, confidence = heatmaps.decode(maps, pair[1], sigma=2)
    joints = heatmaps.to_image(joints, center, scale, (64, 48), pair[0])
    found = {**people, 'joints': joints, 'confidence': confidence, 'scale': scale}
    scores = pose_scores.score(pose_scores.results(found, COCO), truth, COCO)
    assert PAIRS[pair] < scores['AP'] <= 1


@pytest.fixture(scope='module')
def imperfect(real_data):
    """Poses of the val split shifted, noisy and found twice, with uneven confidence."""
    people = perfect(json.loads(annotations(real_data, 'val2017').read_text())['annotations'])
    rng = np.random.default_rng(0)
    people = {key: np.concatenate([value, value[:60]]) for key, value in people.items()}
    size = np.sqrt(np.prod(200 * people['scale'], 1))[:, None, None]
    noise = rng.normal(0, 0.04, people['joints'].shape) + rng.normal(0, 0.02, (len(size), 1, 2))
    people['joints'] = people['joints'] + size * noise
    people['confidence'] = rng.uniform(0, 1, people['joints'].shape[:2])
    people['score'] = rng.uniform(0.2, 1, len(size))
    return people


@pytest.mark.parametrize('options', [{}, {'nms': 1.0}, {'nms': 0.3}, {'soft_nms': True}], ids=str)
def test_a_bad_set_is_scored_as_by_hand(real_data, imperfect, tmp_path, options):
    from pycocotools.coco import COCO as Annotations
    from pycocotools.cocoeval import COCOeval

    found = pose_scores.results(imperfect, COCO, **options)
    path = pose_scores.write(tmp_path / 'results.json', found)
    file = annotations(real_data, 'val2017')
    truth = Annotations(str(file))
    evaluation = COCOeval(truth, truth.loadRes(str(path)), 'keypoints')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    by_hand = evaluation.stats[:8].tolist()
    assert list(pose_scores.score(path, file, COCO).values()) == by_hand
    loaded = json.loads(file.read_text())
    before = json.dumps(loaded)
    assert list(pose_scores.score(found, loaded, COCO).values()) == by_hand
    assert json.dumps(loaded) == before, 'what is given stays as it is'
    assert 0.1 < by_hand[0] < 0.9


def test_results_are_what_suppression_left(imperfect):
    everyone = pose_scores.results(imperfect, COCO, nms=1.0)
    fewer = pose_scores.results(imperfect, COCO, nms=0.3)
    assert len(everyone) == len(imperfect['score']) > len(fewer)
    assert all(entry in everyone for entry in fewer)
    lower = pose_scores.results({**imperfect, 'score': imperfect['score'] / 2}, COCO, nms=0.3)
    np.testing.assert_allclose([2 * e['score'] for e in lower], [e['score'] for e in fewer])


def square(identity, image, at, side=100.0, *, labelled=17, crowd=0):
    """A person of the annotations: 17 joints along the diagonal of a box, the first labelled."""
    places = np.linspace(0.0, side, 17)
    seen = np.where(np.arange(17) < labelled, 2, 0)
    triples = np.stack([(at + places) * (seen > 0), (at + places) * (seen > 0), seen], 1)
    return {
        'id': identity,
        'image_id': image,
        'category_id': 1,
        'bbox': [at, at, side, side],
        'area': side * side,
        'iscrowd': crowd,
        'num_keypoints': labelled,
        'keypoints': triples.ravel().tolist(),
    }


def annotated(*people, images=(1, 2, 3)):
    return {
        'images': [{'id': image} for image in images],
        'categories': [{'id': 1, 'name': 'person'}],
        'annotations': list(people),
    }


def found(image, at, score, side=100.0):
    """A result in the place of `square`."""
    entry = square(0, image, at, side)
    return {key: entry[key] for key in ('image_id', 'category_id', 'keypoints')} | {'score': score}


def ap(results, truth, **options):
    return pose_scores.score(results, truth, COCO, **options)['AP']


def test_a_pose_on_an_image_without_people_is_a_false_positive():
    truth = annotated(square(1, 1, 50.0))
    hit = found(1, 50.0, 0.5)
    assert ap([hit], truth) == pytest.approx(1)
    assert ap([hit, found(2, 50.0, 0.9)], truth) == pytest.approx(0.5)
    assert ap([hit, found(2, 50.0, 0.1)], truth) == pytest.approx(1), 'below the last hit: free'
    assert ap([hit, found(2, 50.0, 0.9)], truth, images=[1]) == pytest.approx(1)


@pytest.mark.parametrize('options', [{'crowd': 1}, {'labelled': 0}, {'crowd': 1, 'labelled': 0}])
def test_crowds_and_people_without_joints_are_neither_missed_nor_wrong(options):
    truth = annotated(square(1, 1, 50.0), square(2, 1, 400.0, **options))
    hit = found(1, 50.0, 0.5)
    assert ap([hit], truth) == pytest.approx(1), 'not missed'
    assert ap([hit, found(1, 400.0, 0.9)], truth) == pytest.approx(1), 'not wrong'
    assert ap([hit, found(1, 4000.0, 0.9)], truth) == pytest.approx(0.5), 'elsewhere it is'


def test_nobody_found_and_nobody_there():
    truth = annotated(square(1, 1, 50.0))
    assert ap([], truth) == 0
    assert ap([], annotated()) is None
    assert ap([found(1, 50.0, 0.5)], annotated(square(1, 1, 50.0, labelled=0))) is None
    scores = pose_scores.score([found(1, 50.0, 0.5)], truth, COCO)
    assert scores['AP_M'] is None and scores['AP_L'] == pytest.approx(1), '100 x 100 is large'
    line = pose_scores.line(scores, '')
    assert line == (
        'AP 100.0 AP50 100.0 AP75 100.0 AP_M - AP_L 100.0 AR 100.0 AR50 100.0 AR75 100.0'
        ' (ground-truth boxes)'
    )
    assert pose_scores.line(scores, 'det.json').endswith('(boxes of det.json)')


def test_joints_of_ones_own():
    """Three joints with their sigmas, where COCO's 17 would not fit."""
    own = COCO._replace(names=('a', 'b', 'c'), sigmas=(0.05, 0.1, 0.1), flip_pairs=())
    person = square(1, 1, 50.0) | {'keypoints': [50.0, 50.0, 2] * 3, 'num_keypoints': 3}
    entry = found(1, 50.0, 0.5) | {'keypoints': [60.0, 50.0, 1] * 3}
    # OKS 0.754: above six of the ten thresholds.
    near = (np.exp(-100 / 2 / 0.1**2 / 1e4) + 2 * np.exp(-100 / 2 / 0.2**2 / 1e4)) / 3
    expected = np.mean(near >= np.arange(0.5, 1.0, 0.05))
    assert 0 < expected < 1
    scores = pose_scores.score([entry], annotated(person), own)
    assert scores['AP'] == pytest.approx(expected)


BAD = {
    'unknown image': ({'image_id': 7}, 'entry 0: found image id 7; expected an annotated image'),
    'too few joints': ({'keypoints': [1.0] * 48}, 'found 48 numbers; expected 51 numbers'),
    'no joints': ({'keypoints': None}, 'keypoints: found None'),
    'no number': ({'score': float('nan')}, 'found nan; expected finite numbers'),
    'no person': ({'category_id': 3}, 'found category 3; expected 1'),
}


@pytest.mark.parametrize('case', BAD)
def test_results_that_do_not_fit_are_refused(case):
    change, named = BAD[case]
    with pytest.raises(UserError) as refusal:
        pose_scores.score([found(1, 50.0, 0.5) | change], annotated(square(1, 1, 50.0)), COCO)
    assert named in str(refusal.value)


def test_files_that_are_none_are_refused(tmp_path):
    truth = annotated(square(1, 1, 50.0))
    with pytest.raises(UserError, match=r'gone\.json: found No such file'):
        pose_scores.score(tmp_path / 'gone.json', truth, COCO)
    (tmp_path / 'cut.json').write_text('[{"image_id": 1,')
    with pytest.raises(UserError, match=r'cut\.json: found .*; expected JSON'):
        pose_scores.score(tmp_path / 'cut.json', truth, COCO)
    with pytest.raises(UserError, match="no list 'annotations'"):
        pose_scores.score([], {'images': []}, COCO)
    short = annotated(square(1, 1, 50.0) | {'keypoints': [1, 2, 2]})
    with pytest.raises(UserError, match='annotation 0: keypoints: found 3 numbers'):
        pose_scores.score([], short, COCO)
    broken = square(1, 1, 50.0)
    del broken['area']
    with pytest.raises(UserError, match="annotation 0: found no 'area'"):
        pose_scores.score([], annotated(broken), COCO)


def test_a_diverged_network_is_named(imperfect):
    joints = imperfect['joints'].copy()
    joints[3, 5, 0] = np.nan
    image = imperfect['image_id'][3]
    with pytest.raises(UserError, match=f'pose on image {image}: found nan or inf'):
        pose_scores.results({**imperfect, 'joints': joints}, COCO)
