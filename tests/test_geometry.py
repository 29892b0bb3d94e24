"""Geometry: image and label stay aligned, nothing leaks over a border, colours move as said."""

import numpy as np
import pytest

from dsrl_jax.data import geometry
from dsrl_jax.errors import UserError

FILL = (9, 8, 7)


def edge(height, width, column):
    """An image white from `column` on, and its label."""
    label = np.zeros((height, width), np.uint8)
    label[:, column:] = 1
    return np.repeat(label[..., None] * 255, 3, axis=-1).astype(np.uint8), label


def position(row, high):
    """Where along a row the value passes from 0 to `high`: the sub-pixel place of its edge."""
    return len(row) - row.sum() / high


@pytest.mark.parametrize('factor', [0.4, 0.5, 0.71, 1.0, 1.5, 2.3])
@pytest.mark.parametrize('vertical', [False, True])
def test_scaled_edges_of_image_and_label_agree(factor, vertical):
    """Within half a pixel, wherever the crop lies; and where geometry says the edge must be."""
    image, label = edge(40, 64, 37)
    if vertical:
        image, label = image.swapaxes(0, 1), label.T
    scaled = tuple(round(n * factor) for n in label.shape)
    axis = 0 if vertical else 1
    expected = 37 * scaled[axis] / label.shape[axis]
    window = [0, 0, *scaled]
    window[axis] = round(expected) - 6
    window[2 + axis] = 12
    view, crop = geometry.scaled_crop(image, label, scaled, tuple(window))
    pixels = view[..., 0].astype(float)
    pixels, crop = (pixels.T, crop.T) if vertical else (pixels, crop)
    expected -= window[axis]
    for row in range(len(crop)):
        assert abs(position(pixels[row], 255) - expected) < 0.03
        assert abs(position(crop[row].astype(float), 1) - expected) <= 0.5


def test_flipped_views_stay_aligned():
    """After scale, crop, flip and placing: wherever the label changes, so does the image."""
    image, label = edge(48, 64, 21)
    flips = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        view = geometry.random_view(
            image, label, (32, 48), rng, scale_range=(0.5, 2.0), flip=True, fill=(0, 0, 0)
        )
        columns = view['mask'].any(0)
        real = view['target'][view['mask'].any(1)][:, columns][0, :, 0].astype(float)
        truth = view['label'][view['mask'].any(1)][:, columns][0].astype(float)
        if truth[0] > truth[-1]:
            flips += 1
            real, truth = real[::-1], truth[::-1]
        assert abs(position(real, 255) - position(truth, 1)) <= 0.55
    assert 5 < flips < 35


def test_crop_is_the_part_of_the_whole_resized_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, 3), np.uint8)
    label = rng.integers(0, 5, (30, 40), np.uint8)
    for scaled in ((21, 28), (45, 60), (33, 41)):
        whole = geometry.scaled_crop(image, label, scaled, (0, 0, *scaled))
        part = geometry.scaled_crop(image, label, scaled, (3, 5, 14, 17))
        assert np.abs(whole[0][3:17, 5:22].astype(int) - part[0]).max() <= 1
        assert np.array_equal(whole[1][3:17, 5:22], part[1])


def test_halving_is_antialiased():
    """One-pixel stripes become grey; a filter of fixed support would keep or invert them."""
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    view, _ = geometry.scaled_crop(stripes, stripes[..., 0], (8, 8), (0, 0, 8, 8))
    assert np.abs(view[:, 1:-1].astype(int) - 100).max() <= 1


def test_small_images_are_placed_and_large_ones_cropped():
    rng = np.random.default_rng(0)
    image = rng.integers(10, 256, (10, 30, 3), np.uint8)
    label = rng.integers(0, 3, (10, 30), np.uint8)
    seen = set()
    for seed in range(30):
        view = geometry.random_view(image, label, (16, 20), np.random.default_rng(seed), fill=FILL)
        mask = view['mask']
        assert view['target'].shape == (16, 20, 3) and view['label'].dtype == np.uint8
        assert mask.sum() == 10 * 20 and (view['target'][~mask] == FILL).all()
        assert (view['label'][~mask] == 255).all() and (view['label'][mask] < 3).all()
        top = int(mask.any(1).argmax())
        left = next(
            x
            for x in range(11)
            if np.array_equal(image[:, x : x + 20], view['target'][mask].reshape(10, 20, 3))
        )
        assert np.array_equal(label[:, left : left + 20], view['label'][mask].reshape(10, 20))
        seen.add((top, left))
    assert {t for t, _ in seen} == set(range(7)) and len({x for _, x in seen}) > 5


def test_scale_is_log_uniform_and_flip_fair():
    image, label = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)
    rng = np.random.default_rng(0)
    sizes = [
        geometry.random_view(image, label, (40, 40), rng, scale_range=(0.5, 2.0), fill=FILL)['mask']
        .any(0)
        .sum()
        for _ in range(400)
    ]
    assert min(sizes) >= 10 and max(sizes) <= 40
    assert abs(np.mean(np.array(sizes) < 20) - 0.5) < 0.08  # half of the draws shrink


def test_jitter_is_the_three_adjustments():
    """Against the textbook chain brightness, contrast, saturation in floating point."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (12, 14, 3), np.uint8)  # no value reaches 0 or 255
    luma = np.array([0.299, 0.587, 0.114])
    b, c, s = 1 + 0.3 * np.random.default_rng(5).uniform(-1, 1, 3)
    expected = image * b
    expected = (expected @ luma).mean() * (1 - c) + c * expected
    expected = (expected @ luma)[..., None] * (1 - s) + s * expected
    result = geometry.jitter_color(image, 0.3, np.random.default_rng(5))
    assert np.abs(result - np.clip(expected, 0, 255)).max() < 1.1
    assert np.array_equal(geometry.jitter_color(image, 0.0, rng), image)


def test_views_do_not_write_into_their_source():
    image, label = edge(20, 20, 9)
    image.flags.writeable = label.flags.writeable = False
    rng = np.random.default_rng(0)
    view = geometry.random_view(image, label, (20, 20), rng, flip=True, color=0.2, fill=FILL)
    view['target'][:] = 0
    whole = geometry.fit(image, (20, 20), 'resize', FILL)
    whole['target'][:] = 0
    assert image.max() == 255


def test_fit_by_padding_and_by_resizing():
    image, _ = edge(9, 12, 6)
    padded = geometry.fit(image, (12, 16), 'pad', FILL)
    assert padded['region'].tolist() == [1, 2, 9, 12]
    assert np.array_equal(padded['target'][1:10, 2:14], image)
    assert padded['mask'].sum() == 108 and (padded['target'][~padded['mask']] == FILL).all()
    resized = geometry.fit(image, (18, 24), 'resize', FILL)
    assert resized['region'].tolist() == [0, 0, 18, 24] and resized['mask'].all()
    assert abs(position(resized['target'][0, :, 0].astype(float), 255) - 12) < 0.03
    with pytest.raises(UserError, match=r'street\.png.*9x12.*8x16.*eval_size'):
        geometry.fit(image, (8, 16), 'pad', FILL, 'street.png')
    with pytest.raises(UserError, match='stretch'):
        geometry.fit(image, (8, 16), 'stretch', FILL)
