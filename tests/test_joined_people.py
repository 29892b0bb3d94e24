"""People of several splits as one: trained on together, and scored where no image id meets."""

import pytest
from coco_files import annotation, edit, make, settings

from dsrl_jax import data, pose_scores
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import COCO


def test_what_the_annotations_say_scores_one(tmp_path):
    """Though both files number their annotations alike, each has people that the other has not."""
    root = make(tmp_path)
    people = {
        'train2017': [annotation(1, image=11), annotation(2, image=12, area=900.0)],
        'val2017': [annotation(1, image=1, area=2000.0)],
    }
    edit(root, 'train2017', images=lambda found: [{**i, 'id': i['id'] + 10} for i in found])
    for split, entries in people.items():
        edit(root, split, annotations=lambda _, entries=entries: entries)
    joined = data.build(settings(root).data, 'train+val')
    assert len(joined) == 3 and joined.keypoints == COCO
    assert [int(joined[index]['image_id']) for index in range(3)] == [11, 12, 1]
    truth = {**joined.ground_truth(), 'categories': [{'id': 1, 'name': 'person'}]}
    assert [entry['area'] for entry in truth['annotations']] == [500, 900, 2000]
    perfect = [
        {'image_id': a['image_id'], 'category_id': 1, 'keypoints': a['keypoints'], 'score': 1.0}
        for a in truth['annotations']
    ]
    assert pose_scores.score(perfect, truth, COCO)['AR'] == 1
    third = pose_scores.score(perfect[:1], truth, COCO)
    assert abs(third['AR'] - 1 / 3) < 1e-9


def test_an_image_of_both_splits_is_trained_on_and_not_scored(tmp_path):
    joined = data.build(settings(make(tmp_path)).data, 'train+val')
    assert len(joined) == 10 and joined[9]['image_id'] == 1
    with pytest.raises(UserError, match=r'train\+val.*image ids in several.*score one split'):
        joined.ground_truth()
