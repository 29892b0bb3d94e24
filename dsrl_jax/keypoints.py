"""The joints of a person: names, left-right pairs, OKS sigmas and skeleton, checked together."""

from collections.abc import Sequence
from typing import NamedTuple

from dsrl_jax.errors import UserError


class Keypoints(NamedTuple):
    """J joints. Pairs, skeleton and upper hold indices into `names`.

    flip_pairs change places in a mirrored image; sigmas are the spread of annotators per joint in
    OKS; skeleton holds the lines to draw; upper is the upper body of the half-body augmentation.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    skeleton: tuple[tuple[int, int], ...]
    upper: tuple[int, ...]


# The order of person_keypoints_*.json; sigmas and skeleton as COCO publishes them.
COCO = Keypoints(
    names=(
        'nose',
        'left_eye',
        'right_eye',
        'left_ear',
        'right_ear',
        'left_shoulder',
        'right_shoulder',
        'left_elbow',
        'right_elbow',
        'left_wrist',
        'right_wrist',
        'left_hip',
        'right_hip',
        'left_knee',
        'right_knee',
        'left_ankle',
        'right_ankle',
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035),
        *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
        *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
    skeleton=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12)),
        *((5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
        *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    upper=tuple(range(11)),
)


def check(keypoints: Keypoints, where: object) -> None:
    """Refuse metadata that does not fit together: UserError that names `where` and the part."""
    names = keypoints.names
    count = len(names)
    if not count or len(set(names)) < count:
        remedy = 'give every joint a name of its own.'
        raise UserError(f'{where}: names', _short(names), 'one or more different names', remedy)
    sigmas = keypoints.sigmas
    if len(sigmas) != count or not all(_positive(sigma) for sigma in sigmas):
        found = f'{len(sigmas)} values: {_short(sigmas)}'
        remedy = 'give one sigma a joint, in the order of the names.'
        raise UserError(f'{where}: sigmas', found, f'{count} positive numbers', remedy)
    for part in ('flip_pairs', 'skeleton'):
        for pair in getattr(keypoints, part):
            _check_pair(f'{where}: {part}', pair, count)
    _check_distinct(f'{where}: flip_pairs', [j for pair in keypoints.flip_pairs for j in pair])
    for joint in keypoints.upper:
        _check_joint(f'{where}: upper', joint, count)
    _check_distinct(f'{where}: upper', keypoints.upper)


def from_lists(content: dict) -> Keypoints:
    """The joints of a JSON object, whose fields are there and are lists; not yet checked."""
    return Keypoints(**{field: _tuples(content[field]) for field in Keypoints._fields})


def mirrored(keypoints: Keypoints) -> tuple[int, ...]:
    """For each of the J joints the one that lies in its place in a mirrored image."""
    order = list(range(len(keypoints.names)))
    for left, right in keypoints.flip_pairs:
        order[left], order[right] = right, left
    return tuple(order)


def _check_pair(where, pair, count):
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise UserError(where, repr(pair), 'two joints', 'name two joints by their indices.')
    for joint in pair:
        _check_joint(where, joint, count)
    if pair[0] == pair[1]:
        raise UserError(where, repr(pair), 'two different joints', 'pair a joint with another.')


def _check_joint(where, joint, count):
    # bool is an int: True would pass as joint 1.
    if not isinstance(joint, int) or isinstance(joint, bool) or not 0 <= joint < count:
        expected = f'an index from 0 to {count - 1}'
        raise UserError(where, repr(joint), expected, f'count the {count} names from 0.')


def _check_distinct(where, joints):
    again = sorted({j for j in joints if list(joints).count(j) > 1})
    if again:
        raise UserError(where, f'joint {again[0]} twice', 'each joint once', 'remove one of them.')


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _positive(value):
    return isinstance(value, int | float) and 0 < value < float('inf')


def _short(values):
    text = repr(tuple(values))
    return text if len(text) <= 60 else text[:57] + '...'
