"""Metadata of joints: COCO's fits together, and a misfit is named."""

import pytest

from dsrl_jax import keypoints
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import COCO


def test_coco_is_the_order_of_its_annotations():
    keypoints.check(COCO, 'COCO')
    assert len(COCO.names) == 17
    assert all(COCO.names[i].startswith('left') for i, _ in COCO.flip_pairs)
    for left, right in COCO.flip_pairs:
        assert COCO.names[right] == COCO.names[left].replace('left', 'right')
        assert COCO.sigmas[left] == COCO.sigmas[right]
    assert COCO.names[max(COCO.upper)] == 'right_wrist'
    assert {joint for line in COCO.skeleton for joint in line} == set(range(17))


def test_the_skeleton_is_its_own_mirror_image():
    order = keypoints.mirrored(COCO)
    lines = {frozenset(line) for line in COCO.skeleton}
    assert {frozenset(order[joint] for joint in line) for line in lines} == lines
    assert [order[joint] for joint in order] == list(range(17)), 'mirroring twice changes nothing'


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'names': ()}, 'names'),
        ({'names': ('nose', *COCO.names[:-1])}, 'names'),
        ({'sigmas': COCO.sigmas[:-1]}, 'sigmas: found 16 values'),
        ({'sigmas': (0.0, *COCO.sigmas[1:])}, 'sigmas'),
        ({'sigmas': (float('nan'), *COCO.sigmas[1:])}, 'sigmas'),
        ({'flip_pairs': ((1, 2), (2, 3))}, 'flip_pairs: found joint 2 twice'),
        ({'flip_pairs': ((15, 17),)}, 'flip_pairs: found 17'),
        ({'flip_pairs': ((1, 2, 3),)}, 'flip_pairs: found (1, 2, 3)'),
        ({'flip_pairs': ((3, 3),)}, 'flip_pairs: found (3, 3)'),
        ({'flip_pairs': (('left_eye', 'right_eye'),)}, "flip_pairs: found 'left_eye'"),
        ({'skeleton': ((0, -1),)}, 'skeleton: found -1'),
        ({'upper': (0, 0)}, 'upper: found joint 0 twice'),
        ({'upper': (True,)}, 'upper: found True'),
    ],
)
def test_metadata_that_does_not_fit_is_refused(change, named):
    with pytest.raises(UserError) as refusal:
        keypoints.check(COCO._replace(**change), 'joints.json')
    assert f'joints.json: {named}' in str(refusal.value)
