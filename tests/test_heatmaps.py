"""Heatmaps: every encoding and decoding against plain loops, known values, and there and back."""

import functools
import math

import jax
import numpy as np
import pytest

from dsrl_jax.ops import heatmaps

SIZE, STRIDE, SIGMA = (20, 16), 4, 2
JOINTS = 24


@functools.cache
def encoder(kind):
    return jax.jit(
        functools.partial(heatmaps.encode, size=SIZE, stride=STRIDE, sigma=SIGMA, kind=kind)
    )


@functools.cache
def decoder(kind):
    return jax.jit(functools.partial(heatmaps.decode, kind=kind, sigma=SIGMA))


def encode(joints, visible, kind):
    """Padded to one shape, so that each kind is compiled once."""
    joints, visible = np.asarray(joints, np.float32), np.asarray(visible, np.float32)
    count = joints.shape[1]
    more = ((0, 0), (0, JOINTS - count))
    maps, weights = encoder(kind)(np.pad(joints, (*more, (0, 0))), np.pad(visible, more))
    return np.asarray(maps)[..., :count], np.asarray(weights)[:, :count]


def decode(maps, kind):
    more = JOINTS - maps.shape[-1]
    padded = np.pad(np.asarray(maps, np.float32), ((0, 0), (0, 0), (0, 0), (0, more)))
    joints, confidence = decoder(kind)(padded)
    return np.asarray(joints)[:, : maps.shape[-1]], np.asarray(confidence)[:, : maps.shape[-1]]


@pytest.fixture(scope='module')
def joints():
    """[1, J, 2] in input pixels, from well outside the input to its middle."""
    far = np.random.default_rng(1).uniform(-0.6, 1.6, (1, JOINTS, 2))
    return (far * (64, 80)).astype(np.float32)


@pytest.mark.parametrize('kind', heatmaps.ENCODINGS)
def test_encoding_equals_plain_loops(kind, joints):
    visible = (np.arange(JOINTS) % 5 > 0).astype(np.float32)[None]
    maps, weights = encode(joints, visible, kind)
    for j in range(JOINTS):
        map_, weight = plain_encoding(*joints[0, j].tolist(), visible[0, j], kind)
        assert weights[0, j] == weight
        np.testing.assert_allclose(maps[0, :, :, j], map_, atol=2e-6)
    assert (weights == 0).sum() > (visible == 0).sum(), 'some joint should lie outside'


def plain_encoding(x, y, visible, kind):
    """One joint after HRNet, DARK or UDP, in float64."""
    height, width = SIZE
    if kind == 'udp':
        x *= (width - 1) / (STRIDE * width - 1)
        y *= (height - 1) / (STRIDE * height - 1)
    else:
        x, y = x / STRIDE, y / STRIDE
    near_x, near_y = int(x + 0.5), int(y + 0.5)
    square_x, square_y = (x, y) if kind == 'dark' else (near_x, near_y)
    for middle, count in ((square_x, width), (square_y, height)):
        if int(middle - 3 * SIGMA) >= count or int(middle + 3 * SIGMA + 1) < 0:
            visible = 0
    map_ = np.zeros(SIZE)
    if not visible:
        return map_, 0
    for row in range(height):
        for column in range(width):
            if kind != 'dark' and max(abs(row - near_y), abs(column - near_x)) > 3 * SIGMA:
                continue
            dx, dy = (
                (column - near_x, row - near_y) if kind == 'standard' else (column - x, row - y)
            )
            map_[row, column] = math.exp(-(dx * dx + dy * dy) / (2 * SIGMA**2))
    return map_, visible


def test_known_maps():
    place = [[[29.9, 34.0]]]  # in heatmap pixels 7.475, 8.5
    maps, weights = encode(place, [[1]], 'standard')
    assert weights.tolist() == [[1.0]]
    assert maps[0, 9, 7, 0] == 1, 'the half goes up'
    np.testing.assert_allclose(maps[0, 9, 5, 0], np.exp(-0.5), rtol=1e-6)
    assert maps[0, 9, 14, 0] == 0 < maps[0, 9, 13, 0], 'cut at 3 sigma'
    maps, _ = encode(place, [[1]], 'dark')
    np.testing.assert_allclose(maps[0, 8, 7, 0], np.exp(-(0.475**2 + 0.5**2) / 8), rtol=1e-5)
    assert maps[0, 9, 14, 0] > 0, 'never cut'
    # The outermost pixels of input and heatmap meet.
    maps, _ = encode([[[63.0, 79.0]]], [[1]], 'udp')
    assert maps[0, 19, 15, 0] == 1


@pytest.mark.parametrize('kind', heatmaps.ENCODINGS)
def test_a_joint_without_weight_leaves_an_empty_map(kind):
    places = [[[30, 30], [-60, 30], [30, 140], [-8, 30]]]
    maps, weights = encode(places, [[0, 1, 1, 1]], kind)
    assert weights.tolist() == [[0, 0, 0, 1]], 'invisible, left of it, below it, its square reaches'
    assert not maps[..., :3].any() and maps[..., 3].any()


@pytest.fixture(scope='module')
def uneven():
    """Maps [1,h,w,J] as a network gives them: uneven bumps, some at a border, two maps without."""
    rng = np.random.default_rng(2)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    maps = []
    for j in range(JOINTS):
        y, x = rng.uniform(0, 1, 2) * (np.array(SIZE) - 1)
        y, x = [(0, x), (1, x), (y, 0), (y, 15), (18.6, x), (y, 14)][j] if j < 6 else (y, x)
        y, x = (8.3, 7.6) if j in (8, 9) else (y, x)
        bump = np.exp(
            -((columns - x) ** 2 / 6 + (rows - y) ** 2 / 9 + (columns - x) * (rows - y) / 9)
        )
        maps.append(rng.uniform(0.3, 1) * bump + 0.02 * rng.standard_normal(SIZE))
    maps[6] = -np.abs(maps[6]) - 0.1
    maps[7][:] = 0.0
    maps[8] *= 3e-3  # faint: what is below the floor of the logarithm
    maps[9] *= 3e-10
    return np.stack(maps, -1)[None].astype(np.float32)


@pytest.mark.parametrize('kind', heatmaps.DECODERS)
def test_decoding_equals_plain_loops(kind, uneven):
    places, confidence = decode(uneven, kind)
    for j in range(JOINTS):
        want = plain_decoding(uneven[0, :, :, j].astype(np.float64), kind)
        np.testing.assert_allclose(places[0, j], want, atol=5e-3)
    np.testing.assert_array_equal(confidence[0], uneven[0].max((0, 1)))
    assert not places[0, 6:8].any(), 'nothing positive: (0, 0)'


def plain_decoding(map_, kind):
    """The joint (x, y) of one map [h, w] after HRNet, DARK or UDP."""
    height, width = map_.shape
    y, x = np.unravel_index(map_.argmax(), map_.shape)
    top = map_.max()
    if top <= 0:
        return np.zeros(2)
    place = np.array([x, y], float)
    if kind == 'quarter':
        if 1 < x < width - 1 and 1 < y < height - 1:
            steps = map_[y, x + 1] - map_[y, x - 1], map_[y + 1, x] - map_[y - 1, x]
            place += 0.25 * np.sign(steps)
        return place
    if kind == 'dark':
        if not (1 < x < width - 2 and 1 < y < height - 2):
            return place
        taps = np.exp(-(np.arange(-5, 6) ** 2) / 8)
        smooth = filtered(map_, taps / taps.sum(), 'constant')
        logs = np.log(np.maximum(smooth * top / smooth.max(), 1e-10))
        slope = np.array([logs[y, x + 1] - logs[y, x - 1], logs[y + 1, x] - logs[y - 1, x]]) / 2
        xx = (logs[y, x + 2] - 2 * logs[y, x] + logs[y, x - 2]) / 4
        yy = (logs[y + 2, x] - 2 * logs[y, x] + logs[y - 2, x]) / 4
        ends = logs[y + 1, x + 1], logs[y - 1, x - 1], logs[y + 1, x - 1], logs[y - 1, x + 1]
        xy = (ends[0] + ends[1] - ends[2] - ends[3]) / 4
    else:
        smooth = filtered(map_, np.array([4, 14, 28, 36, 28, 14, 4]) / 128, 'reflect')
        smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * top
        near = np.pad(np.log(np.clip(smooth, 0.001, 50)), 1, 'edge')[y : y + 3, x : x + 3]
        slope = np.array([near[1, 2] - near[1, 0], near[2, 1] - near[0, 1]]) / 2
        xx, yy = (side[0] - 2 * side[1] + side[2] for side in (near[1], near[:, 1]))
        cross = near[1, 0] + near[1, 2] + near[0, 1] + near[2, 1]
        xy = (near[2, 2] + near[0, 0] + 2 * near[1, 1] - cross) / 2
    if xx * yy == xy * xy:
        return place
    return place - np.linalg.solve([[xx, xy], [xy, yy]], slope)


def filtered(map_, taps, mode):
    reach = len(taps) // 2
    for axis in (0, 1):
        around = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(map_, around, mode)
        count = map_.shape[axis]
        map_ = sum(tap * padded.take(range(i, i + count), axis=axis) for i, tap in enumerate(taps))
    return map_


# What a perfect network loses within the map, in heatmap pixels: (largest error, mean error).
INNER = {
    ('standard', 'quarter'): (0.71, 0.45),  # rounding: half a pixel along each axis
    ('standard', 'dark'): (0.71, 0.45),
    ('standard', 'udp'): (0.71, 0.45),
    ('dark', 'quarter'): (0.36, 0.25),  # a quarter of one is left
    ('dark', 'dark'): (0.03, 0.005),
    ('dark', 'udp'): (0.03, 0.005),
    ('udp', 'quarter'): (0.36, 0.25),
    ('udp', 'dark'): (0.03, 0.005),
    ('udp', 'udp'): (0.03, 0.005),
}


@pytest.mark.parametrize('kind', heatmaps.ENCODINGS)
def test_there_and_back(kind):
    part = np.random.default_rng(3).uniform(0.32, 0.68, (1, JOINTS, 2))
    joints = (part * (np.array(SIZE[::-1]) * STRIDE)).astype(np.float32)
    maps, _ = encode(joints, np.ones((1, JOINTS)), kind)
    at = joints / heatmaps.spacing(SIZE, STRIDE, kind)
    for decoding in heatmaps.DECODERS:
        error = np.linalg.norm(decode(maps, decoding)[0] - at, axis=-1)
        largest, mean = INNER[kind, decoding]
        assert error.max() < largest and error.mean() < mean, decoding


def test_decoding_is_symmetric():
    """A mirrored map gives the mirrored joint."""
    part = np.random.default_rng(4).uniform(0.4, 0.6, (1, JOINTS, 2))
    maps, _ = encode(part * (64, 80), np.ones((1, JOINTS)), 'dark')
    for kind in heatmaps.DECODERS:
        places, confidence = decode(maps, kind)
        mirrored, same = decode(maps[:, :, ::-1], kind)
        np.testing.assert_allclose(mirrored * [-1, 1] + [SIZE[1] - 1, 0], places, atol=1e-3)
        np.testing.assert_array_equal(same, confidence)


def test_flipped_maps_are_brought_back():
    order = (0, 2, 1)
    maps = np.zeros((1, 4, 6, 3), np.float32)
    flipped = np.zeros_like(maps)
    flipped[0, 1, 4, 2] = 1  # of the mirrored image: its joint 2 is our joint 1
    merged = np.asarray(heatmaps.merge_flipped(maps, flipped, order, 'udp'))
    assert merged[0, 1, 1, 1] == 0.5 and merged.sum() == 0.5
    merged = np.asarray(heatmaps.merge_flipped(maps, flipped, order, 'standard'))
    assert merged[0, 1, 2, 1] == 0.5 and merged.sum() == 0.5
    flipped[:] = np.arange(6)[None, None, :, None]
    merged = np.asarray(heatmaps.merge_flipped(maps, flipped, order, 'dark'))
    assert (2 * merged[0, 0, :, 0]).tolist() == [5, 5, 4, 3, 2, 1], 'the first column stays'


def test_udp_agrees_with_its_mirror_image_and_the_shift_is_near_it_at_stride_4():
    place = np.array([[[27.0, 38.0]]], np.float32)
    mirror = np.array([[[63 - 27.0, 38.0]]], np.float32)
    for kind, error in (('udp', 1e-3), ('dark', 0.13)):
        maps, mirrored = (encode(p, [[1]], kind)[0] for p in (place, mirror))
        merged = np.asarray(heatmaps.merge_flipped(maps, mirrored, (0,), kind))
        alone, both = (decode(m, 'dark')[0] for m in (maps, merged))
        np.testing.assert_allclose(both, alone, atol=error)


def test_joints_return_to_the_image():
    center, scale = np.array([[150.0, 90.0]]), np.array([[0.48, 0.6]])  # a box of 96 x 120
    corners = np.array([[[0, 0], [8, 10], [15, 19]]], float)
    image = heatmaps.to_image(corners, center, scale, SIZE, 'standard')
    np.testing.assert_allclose(image, [[[102, 30], [150, 90], [192, 144]]])
    np.testing.assert_allclose(heatmaps.to_image(corners, center, scale, SIZE, 'dark'), image)
    image = heatmaps.to_image(corners, center, scale, SIZE, 'udp')
    np.testing.assert_allclose(image[0, [0, 2]], [[102, 30], [198, 150]])


def test_an_unknown_kind_is_refused(joints):
    with pytest.raises(ValueError, match=r"'taylor': expected one of quarter, dark, udp"):
        heatmaps.decode(np.zeros((1, 4, 4, 1)), 'taylor')
    with pytest.raises(ValueError, match=r"'quarter': expected one of standard, dark, udp"):
        heatmaps.encode(joints, joints[..., 0], SIZE, STRIDE, SIGMA, 'quarter')
