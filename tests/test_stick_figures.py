"""Generated persons: reproducible, sound annotations, joints on the body, learnable sides."""

import numpy as np
import pytest

from dsrl_jax import config as configs
from dsrl_jax import data
from dsrl_jax.data import person_batches
from dsrl_jax.data.stick_figures import LENGTHS, StickFigureSource
from dsrl_jax.errors import UserError

SIZE = (128, 96)


@pytest.fixture(scope='module')
def source():
    return StickFigureSource('val', SIZE)


@pytest.fixture(scope='module')
def truth(source):
    return source.ground_truth()


def test_an_item_depends_on_seed_split_and_index_alone(source):
    def same(a, b):
        return all(np.array_equal(a[k], b[k]) for k in ('image', 'joints', 'visible', 'box'))

    straight = [source[i] for i in range(6)]
    again = StickFigureSource('val', SIZE)
    assert all(same(again[i], straight[i]) for i in (5, 0, 3))
    others = [StickFigureSource('val', SIZE, seed=1)[0], StickFigureSource('test', SIZE)[0]]
    assert not any(same(straight[0], other) for other in others)
    assert np.array_equal(straight[0]['image'], straight[1]['image'])  # two persons of a scene
    assert straight[0]['image_id'] == straight[1]['image_id'] != straight[2]['image_id']


def test_shapes_lengths_and_ids(source):
    element = source[1]
    assert element['image'].shape == (*source.image_size(1), 3) == (160, 144, 3)
    assert element['joints'].shape == (17, 2) and element['visible'].shape == (17,)
    assert element['name'] == 'val_00000_1' and source.files(1) == {}
    ids = set()
    for split, length in LENGTHS.items():
        listed = StickFigureSource(split, SIZE)
        assert len(listed) == length
        ids |= {(split, int(listed[i]['image_id'])) for i in (0, length - 1)}
        with pytest.raises(IndexError):
            listed[length]
    assert len({image for _, image in ids}) == 6  # no id in two splits


def test_annotations_are_sound(source, truth):
    assert len(truth['annotations']) == len(source) == 2 * len(truth['images'])
    kinds = np.zeros(3, int)
    for index, entry in enumerate(truth['annotations']):
        marks = np.reshape(entry['keypoints'], (17, 3))
        x, y, width, height = entry['bbox']
        labelled = marks[:, 2] > 0
        assert entry['num_keypoints'] == labelled.sum() > 8
        assert (marks[~labelled] == 0).all()
        assert x >= 0 and y >= 0 and x + width <= 144 and y + height <= 160
        # Visible joints lie in the box of the pixels one sees.
        seen = marks[marks[:, 2] == 2, :2]
        assert (seen >= (x - 1, y - 1)).all() and (seen <= (x + width, y + height)).all()
        assert 0 < entry['area'] < width * height
        kinds += np.bincount(marks[:, 2].astype(int), minlength=3)
        assert np.allclose(source[index]['joints'], marks[:, :2])
        assert source[index]['image_id'] == entry['image_id']
    assert (kinds > 0).all()  # some joints are hidden, some out of sight


def test_sides_follow_from_the_face(truth):
    """Left is to the right in the image of who shows a face, and to the left of who does not."""
    right, wrong = 0, 0
    for entry in truth['annotations']:
        marks = np.reshape(entry['keypoints'], (17, 3))
        if (marks[5:7, 2] > 0).all():
            faces = marks[0, 2] > 0
            agrees = (marks[5, 0] > marks[6, 0]) == faces
            right, wrong = right + agrees, wrong + (not agrees)
    assert right > 40 and wrong == 0


def test_joints_lie_on_limbs(source):
    """A forearm has one colour from elbow to wrist, which a place beside it has not."""
    on, off = [], []
    for index in range(0, len(source), 2):
        element = source[index + 1]
        for elbow, wrist in ((7, 9), (8, 10)):
            if element['visible'][[elbow, wrist]].all():
                a, b = element['joints'][[elbow, wrist]]
                side = np.array([a[1] - b[1], b[0] - a[0]])
                side = 12 * side / (np.linalg.norm(side) + 1e-6)
                points = np.array([0.3 * a + 0.7 * b, 0.1 * a + 0.9 * b, b + side])
                x, y = np.clip(np.round(points).astype(int), 0, (143, 159)).T
                colors = element['image'][y, x].astype(float)
                on.append(np.abs(colors[0] - colors[1]).mean())
                off.append(np.abs(colors[0] - colors[2]).mean())
    assert np.median(on) < 12 < 30 < np.median(off)


def test_perfect_predictions_score_one(truth):
    """By COCO's own evaluation, so ids, areas and keypoints have the form it reads."""
    coco = pytest.importorskip('pycocotools.coco').COCO()
    from pycocotools.cocoeval import COCOeval

    coco.dataset = truth
    coco.createIndex()
    results = [
        {k: entry[k] for k in ('image_id', 'category_id', 'keypoints')} | {'score': 1.0}
        for entry in truth['annotations']
    ]
    scores = COCOeval(coco, coco.loadRes(results), 'keypoints')
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == 1.0 and scores.stats[5] == 1.0


def test_it_is_a_data_set_by_name():
    config = configs.base()
    config.data.update({'name': 'stick_figures', 'size': (64, 48), 'length': 8, 'workers': 0})
    source = data.build(config.data, 'train+val')
    assert len(source) == 16 and source.keypoints.names[0] == 'nose'
    truth = source.ground_truth()
    assert len(truth['annotations']) == 16 and len(truth['images']) == 8
    batches = person_batches.train_batches(source, config, seed=0, start=0, batch_size=4)
    batch = next(batches)
    batches.close()
    assert batch['target'].shape == (4, 64, 48, 3)


def test_user_mistakes_name_the_field():
    with pytest.raises(UserError, match=r'trian.*did you mean'):
        StickFigureSource('trian')
    with pytest.raises(UserError, match=r'data\.size'):
        StickFigureSource(size=(8, 16))
