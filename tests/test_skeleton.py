"""Skeletons drawn: what is shown, in which colour, where; on real people as well."""

import numpy as np
from coco_files import build

from dsrl_jax import person_gallery
from dsrl_jax.keypoints import COCO, Keypoints
from dsrl_jax.report.skeleton import closeup, draw

LEFT, RIGHT, MIDDLE = (255, 128, 0), (0, 160, 255), (60, 220, 60)
JOINTS = Keypoints(
    names=('head', 'left', 'right', 'left_foot'),
    flip_pairs=((1, 2),),
    sigmas=(0.1,) * 4,
    skeleton=((0, 1), (0, 2), (1, 2), (0, 3)),
    upper=(0,),
)
COLORS = MIDDLE, LEFT, RIGHT, MIDDLE
PLACES = np.array([[[60, 10], [20, 60], [100, 60], [60, 110]]], float)
GREY = np.full((120, 120, 3), 128, np.uint8)


def at(picture, x, y):
    """The pixel, as the ink that it is nearly: edges are smooth."""
    found = picture[round(y), round(x)].astype(int)
    near = [ink for ink in (LEFT, RIGHT, MIDDLE) if np.abs(found - ink).max() < 32]
    return near[0] if near else tuple(found.tolist())


def drawn(confidence, places=PLACES, image=GREY):
    return draw(image, places, np.atleast_2d(confidence), JOINTS, COLORS)


def test_joints_and_lines_have_the_colour_of_their_side():
    picture = drawn([1, 1, 1, 1])
    assert [at(picture, *place) for place in PLACES[0]] == list(COLORS)
    assert at(picture, 40, 35) == LEFT and at(picture, 80, 35) == RIGHT
    assert at(picture, 45, 60) == MIDDLE  # from left to right
    assert at(picture, 60, 85) == MIDDLE
    assert at(picture, 5, 5) == (128, 128, 128) and (GREY == 128).all()


def test_unsure_joints_and_their_lines_are_left_out():
    assert np.array_equal(drawn([0.2, 0.1, 0.0, -np.inf]), GREY)
    picture = drawn([0.9, 0.1, 0.9, 0.1])
    assert at(picture, 80, 35) == RIGHT
    for x, y in ((40, 35), (20, 60), (45, 60), (60, 85)):
        assert at(picture, x, y) == (128, 128, 128)


def test_a_larger_person_has_thicker_lines_and_who_is_beside_the_image_none():
    large = np.full((960, 960, 3), 128, np.uint8)
    areas = [
        (drawn([1] * 4, factor * PLACES, image) != 128).any(-1).sum()
        for factor, image in ((1, GREY), (8, large))
    ]
    assert 30 < areas[1] / areas[0] < 90  # 8 times as long, nearly 8 times as wide
    assert np.array_equal(drawn([1] * 4, PLACES + 500), GREY)
    half = drawn([1] * 4, PLACES + 60)
    assert at(half, 100, 95) == LEFT and half.shape == GREY.shape


def test_a_closeup_keeps_joints_on_their_pixels():
    image = np.zeros((50, 80, 3), np.uint8)
    image[30, 40] = 255
    for box in ((20, 10, 40, 40), (-30, 7.5, 200, 31), (35, 25, 11, 300)):
        picture, place = closeup(image, box, width=160)
        x, y = place([40, 30])
        rows, columns = np.nonzero(picture[..., 0] > 100)
        assert picture.shape[1] == 160
        assert abs(columns.mean() - x) < 0.6 and abs(rows.mean() - y) < 0.6


def test_distances_are_shares_of_the_view_over_visible_joints():
    rng = np.random.default_rng(0)
    truth, joints = rng.normal(size=(2, 3, 4, 2)) * 50
    visible = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    scale = np.array([[1, 1.5], [1, 1], [0.5, 2.0]])
    found = person_gallery.distances(
        {'truth': truth, 'joints': joints, 'visible': visible, 'scale': scale}
    )
    for row in (0, 2):
        seen = visible[row] > 0
        lengths = [np.hypot(*d) for d in (truth - joints)[row][seen]]
        assert np.isclose(found[row], np.mean(lengths) / (200 * scale[row, 1]))
    assert np.isnan(found[1])


def test_real_people_change_only_where_they_are(real_data):
    source = build(real_data / 'coco_mini')
    index = int(source.labelled_joints().sum(1).argmax())
    element = source[index]
    joints, visible = element['joints'][None], element['visible'][None]
    picture = draw(element['image'], joints, visible, COCO, source.colors)
    changed = np.argwhere((picture != element['image']).any(-1))[:, ::-1]
    seen = element['joints'][element['visible'] > 0]
    margin = 4 + 0.1 * np.ptp(seen, axis=0).max()
    assert len(changed) > 100
    assert (changed >= seen.min(0) - margin).all() and (changed <= seen.max(0) + margin).all()
    places = np.round(seen).astype(int)
    inks = np.array(source.colors)[element['visible'] > 0]
    apart = np.abs(picture[places[:, 1], places[:, 0]].astype(int) - inks).max(-1)
    assert (apart < 32).mean() > 0.7  # others are covered by a neighbour
