"""Views of persons: windows, affine maps and the warp against plain forms, and HRNet's draws."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from dsrl_jax import config as configs
from dsrl_jax.data import person_crop
from dsrl_jax.keypoints import COCO, mirrored

SIZE = (160, 128)  # 4:5, not 3:4
SWAPPED = list(mirrored(COCO))


def pose(**changes):
    return ConfigDict(configs.base().pose.to_dict() | changes)


def person(seed=0, height=60, width=80):
    """Seventeen visible joints in a box, on noise."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform((20, 12), (50, 48), (17, 2)).astype(np.float32)
    return {
        'image': rng.integers(0, 256, (height, width, 3), np.uint8),
        'joints': joints,
        'visible': np.ones(17, np.float32),
        'box': np.array([20, 12, 30, 36], np.float32),
    }


def test_a_window_has_the_aspect_of_the_input():
    center, scale = person_crop.window((10, 20, 40, 100), 128 / 160)
    assert np.allclose(center, (30, 70))
    assert np.allclose(scale * 200, (80 * 1.25, 100 * 1.25))  # 0.8 x 100 wide
    center, scale = person_crop.window((0, 0, 120, 30), 0.75)
    assert np.allclose(scale * 200, (120 * 1.25, 160 * 1.25))


@pytest.mark.parametrize('rotation', [0.0, 30.0, -75.0])
def test_the_affine_map_is_that_of_three_points(rotation):
    """Centre, the point half a width above it (turned), and the third of a right angle."""
    center, scale = np.array([31.0, 44.0]), np.array([0.5, 0.9])
    angle = np.radians(rotation)
    up = 50 * np.array([np.sin(angle), -np.cos(angle)])
    middle, rise = np.array([64.0, 80.0]), np.array([0.0, -64.0])

    def three(origin, arrow):
        turned = np.array([-arrow[1], arrow[0]])
        return np.array([origin, origin + arrow, origin + arrow + turned])

    here = np.hstack([three(center, up), np.ones((3, 1))])
    expected = np.linalg.solve(here, three(middle, rise)).T
    found = person_crop.affine(center, scale, rotation, SIZE)
    assert np.allclose(found, expected)
    # The height of the window plays no part.
    assert np.allclose(found, person_crop.affine(center, scale * [1, 2], rotation, SIZE))


def test_udp_measures_between_pixel_centres():
    center, scale = np.array([31.0, 44.0]), np.array([0.4, 0.5])
    matrix = person_crop.affine(center, scale, 0.0, SIZE, udp=True)
    corners = center + np.array([[-40, -50], [40, 50], [0, 0]])
    found = person_crop.transform(matrix, corners)
    assert np.allclose(found, [[0, 0], [127, 159], [63.5, 79.5]])
    turned = person_crop.affine(center, scale, 90.0, (101, 101), udp=True)
    square = person_crop.affine(center, scale, 90.0, (100, 100))
    assert np.sign(turned[:, :2]).tolist() == np.sign(square[:, :2]).tolist()


@pytest.mark.parametrize('udp', [False, True])
@pytest.mark.parametrize('factor', [1, 2, 4])
def test_the_large_view_shrinks_to_the_small_one(factor, udp):
    """On a slope the mean of each block of the large view is the pixel of the small one."""
    y, x = np.mgrid[:120, :160]
    slope = np.stack([x, y, x / 2 + y / 2], -1).astype(np.uint8)
    matrix = person_crop.affine((80, 60), (0.2, 0.25), 20.0, (30, 24), udp=udp)
    large = person_crop.warp(
        slope, person_crop.enlarged(matrix, factor), (30 * factor, 24 * factor)
    )
    mean = large.reshape(30, factor, 24, factor, 3).mean((1, 3))
    v, u = np.mgrid[:30, :24]
    linear = np.linalg.inv(matrix[:, :2])
    px, py = np.moveaxis((np.stack([u, v], -1) - matrix[:, 2]) @ linear.T, -1, 0)
    # Values are rounded down: half a grey level on average, one at most.
    error = np.stack([px, py]) - np.moveaxis(mean[..., :2], -1, 0)
    assert error.min() > -1e-6 and error.max() < 1 + 1e-6


def plain_warp(image, matrix, size):
    """Bilinear sampling of the image continued by zeros, rounded down."""
    linear = np.linalg.inv(matrix[:, :2])
    v, u = np.mgrid[: size[0], : size[1]]
    x, y = np.moveaxis((np.stack([u, v], -1) - matrix[:, 2]) @ linear.T, -1, 0)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total = 0
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
            value = image[np.where(inside, row, 0), np.where(inside, column, 0)] * inside[..., None]
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row))
            total = total + weight[..., None] * value
    return total


@pytest.mark.parametrize(
    ('center', 'scale', 'rotation'),
    [
        ((40, 30), 0.2, 0),
        ((40, 30), 0.2, 33),
        ((2, 55), 0.3, -80),
        ((79, 0), 1.0, 140),
        ((40, 30), 0.02, 5),
    ],
)
def test_the_warp_is_bilinear_with_zeros_beyond_the_image(center, scale, rotation):
    image = person()['image']
    matrix = person_crop.affine(center, (scale, scale), rotation, (48, 40))
    exact = plain_warp(image, matrix, (48, 40))
    found = person_crop.warp(image, matrix, (48, 40)).astype(float)
    below = exact - found
    assert below.min() > -1e-6 and below.max() < 1 + 1e-6
    assert found.any() and (found[exact.max(-1) == 0] == 0).all()


def test_a_view_beside_the_image_is_black():
    matrix = person_crop.affine((1000, 1000), (0.2, 0.2), 10, (16, 12))
    assert not person_crop.warp(person()['image'], matrix, (16, 12)).any()


def test_a_mirror_image_exchanges_left_and_right():
    element = person()
    image, joints, visible = element['image'], element['joints'], np.arange(17.0)
    once = person_crop.mirror(image, joints, visible, np.array([33.0, 7.0]), COCO)
    assert np.allclose(once[1][5], [79 - joints[6, 0], joints[6, 1]])  # shoulders
    assert once[2][15] == 16 and once[2][0] == 0
    twice = person_crop.mirror(*once, COCO)
    assert np.array_equal(twice[0], image) and np.allclose(twice[3], (33, 7))
    assert np.allclose(twice[1], joints) and np.array_equal(twice[2], visible)


class Script:
    """Draws that are given, and the order in which they were asked for."""

    def __init__(self, **values):
        self.values, self.asked = values, []

    def random(self):
        self.asked.append('uniform')
        return self.values['uniform'].pop(0)

    def normal(self):
        self.asked.append('normal')
        return self.values['normal'].pop(0)


def view(element, rng, size=(20, 16), factor=2, **changes):
    return person_crop.random_view(
        element, rng, size=size, factor=factor, keypoints=COCO, pose=pose(**changes)
    )


def test_draws_come_in_the_order_of_the_protocol():
    full = Script(uniform=[0.29, 0.59, 0.49], normal=[0.4, 1.0, 0.5])
    view(person(), full)
    # half a body: whether, which; scale; rotation: whether, how far; mirror image
    assert full.asked == ['uniform', 'normal', 'normal', 'uniform', 'normal', 'uniform']
    few = person()
    few['visible'][8:] = 0  # eight joints are too few for half a body
    still = Script(uniform=[0.61, 0.51], normal=[0.0])
    found = view(few, still)
    assert still.asked == ['normal', 'uniform', 'uniform']
    plain = person_crop.whole_view(few, size=(20, 16), factor=2, pose=pose())
    assert all(np.array_equal(found[key], plain[key]) for key in found)
    assert not found['joints'][8:].any() and found['visible'].sum() == 8


def test_half_a_body_is_the_box_of_its_joints():
    joints = np.zeros((17, 2)) + np.arange(17)[:, None] * [1.0, 2.0]
    visible = np.ones(17)
    for draw, half in ((0.49, joints[:11]), (0.5, joints[11:])):
        rng = Script(normal=[draw])
        center, scale = person_crop.half_body(joints, visible, COCO.upper, 0.8, rng)
        assert np.allclose(center, half.mean(0))
        assert np.allclose(scale * 200, np.array([0.8, 1]) * np.ptp(half[:, 1]) * 1.5)
    visible[11:15] = 0  # two joints below: the upper half again
    center, _ = person_crop.half_body(joints, visible, COCO.upper, 0.8, Script(normal=[2.0]))
    assert np.allclose(center, joints[:11].mean(0))
    visible[1:] = 0
    assert person_crop.half_body(joints, visible, COCO.upper, 0.8, Script(normal=[0.0])) is None
    together = np.ones((17, 2))
    assert person_crop.half_body(together, np.ones(17), COCO.upper, 0.8, Script(normal=[0])) is None


def recovered(element, found, size):
    """(mirrored, window width / box window width, degrees) of a view, from its joints."""
    raw = np.hstack([element['joints'], np.ones((17, 1))])
    fits = [
        np.linalg.lstsq(raw, found['joints'][order].astype(float), rcond=None)[0]
        for order in (list(range(17)), SWAPPED)
    ]
    errors = [
        np.abs(raw @ fit - found['joints'][order]).max()
        for fit, order in zip(fits, (list(range(17)), SWAPPED))
    ]
    assert min(errors) < 1e-2, 'joints are not an affine image of those of the person'
    flipped = errors[1] < errors[0]
    fit = fits[int(flipped)]
    linear = fit[:2].T * ([-1, 1] if flipped else [1, 1])
    width = person_crop.window(element['box'], size[1] / size[0])[1][0] * 200
    factor = np.sqrt(np.linalg.det(linear))
    return flipped, size[1] / factor / width, np.degrees(np.arctan2(linear[0, 1], linear[0, 0]))


def test_draws_have_the_distributions_of_the_protocol():
    element, rng = person(), np.random.default_rng(5)
    drawn = [
        recovered(element, view(element, rng, size=(10, 8), factor=1, half_body=0.0), (10, 8))
        for _ in range(1500)
    ]
    flips, scales, angles = (np.array(values) for values in zip(*drawn))
    assert abs(flips.mean() - 0.5) < 0.05
    assert np.allclose((scales.min(), scales.max()), (0.65, 1.35), atol=1e-3)
    edge = 0.1587  # of a normal beyond one deviation
    assert abs((scales < 0.6501).mean() - edge) < 0.04 and abs(np.median(scales) - 1) < 0.05
    turned = np.abs(angles) > 1e-3
    assert abs(turned.mean() - 0.6) < 0.05
    assert np.abs(angles).max() < 90.01 and abs((np.abs(angles[turned]) < 45).mean() - 0.683) < 0.05


def test_upper_bodies_are_seven_of_ten():
    rng, joints = np.random.default_rng(6), person()['joints']
    upper = [
        np.allclose(
            person_crop.half_body(joints, np.ones(17), COCO.upper, 0.8, rng)[0],
            joints[:11].mean(0, dtype=float),
        )
        for _ in range(2000)
    ]
    assert abs(np.mean(upper) - 0.6915) < 0.04


@pytest.mark.parametrize('encode', ['standard', 'udp'])
def test_joints_stay_on_their_pixels(encode):
    """Each joint is painted in a colour of its own; the view has that colour where it says."""
    element = person(1, 200, 240)
    element['image'][:] = 0
    places = np.array([(40 + 40 * (j % 5), 40 + 30 * (j // 5)) for j in range(17)], np.float32)
    element['joints'], element['box'] = places, np.array([35, 35, 170, 110], np.float32)
    for j, (x, y) in enumerate(places.astype(int)):
        element['image'][y - 6 : y + 7, x - 6 : x + 7] = (15 * j, 255 - 15 * j, 200)
    rng, seen, flips = np.random.default_rng(2), 0, set()
    for _ in range(20):
        found = view(element, rng, size=(80, 64), factor=2, encode=encode)
        at = np.round(found['joints'] * 2 + 0.5).astype(int)
        inside = ((at >= 2) & (at < (126, 158))).all(1)
        colors = found['target'][at[inside, 1], at[inside, 0]].astype(int)
        plain = 15 * np.arange(17)[inside]
        swapped = 15 * np.array(SWAPPED)[inside]
        straight = np.abs(colors[:, 0] - plain).max() <= 1
        assert straight or np.abs(colors[:, 0] - swapped).max() <= 1
        seen, flips = seen + inside.sum(), flips | {bool(straight)}
    assert seen > 100 and len(flips) == 2
