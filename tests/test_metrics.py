"""Confusion counts against loops, IoU conventions, totals beyond int32, PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dsrl_jax import metrics
from dsrl_jax.errors import UserError

CLASSES = 4


def sample(seed, batch=4, ignore=255):
    """Random prediction (with ids beyond the classes), label (with void) and valid mask."""
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, CLASSES + 2, (batch, 6, 5)).astype(np.uint8)
    label = rng.choice([*range(CLASSES), ignore], (batch, 6, 5)).astype(np.uint8)
    return prediction, label, rng.random((batch, 6, 5)) < 0.7


def by_loop(prediction, label, valid, ignore=255):
    counts = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    for p, t, v in zip(prediction.ravel(), label.ravel(), valid.ravel()):
        if v:
            counts[CLASSES if t == ignore else t, min(p, CLASSES)] += 1
    return counts


def measure(prediction, label, valid=None, **options):
    return metrics.Confusion.from_model_output(
        prediction=jnp.asarray(prediction),
        label=jnp.asarray(label),
        valid=None if valid is None else jnp.asarray(valid),
        num_classes=CLASSES,
        **options,
    )


@pytest.mark.parametrize('ignore', [255, 11])
def test_counts_equal_a_loop(ignore):
    prediction, label, valid = sample(0, ignore=ignore)
    got = jax.jit(lambda p, t, v: measure(p, t, v, ignore=ignore))(prediction, label, valid)
    np.testing.assert_array_equal(got.counts, by_loop(prediction, label, valid, ignore))
    assert got.counts.dtype == jnp.int32 and int(got.stray) == 0


def test_a_row_that_pads_the_batch_leaves_no_count():
    prediction, label, _ = sample(1)
    rows = np.array([True, True, False, True])
    expected = by_loop(prediction[rows], label[rows], np.ones_like(label[rows], bool))
    np.testing.assert_array_equal(measure(prediction, label, rows).counts, expected)


def test_one_device_and_four_agree():
    prediction, label, valid = sample(2)
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec('data'))
    batch = [jax.device_put(x, spread) for x in (prediction, label, valid)]
    together = jax.jit(measure, out_shardings=NamedSharding(mesh, PartitionSpec()))(*batch)
    np.testing.assert_array_equal(together.counts, measure(prediction, label, valid).counts)
    total = metrics.Confusion.empty(CLASSES).merge(together)
    np.testing.assert_array_equal(total.counts, by_loop(prediction, label, valid))


def test_scores_of_batches_are_those_of_all_pixels():
    parts = [sample(seed) for seed in range(3)]
    total = metrics.Confusion.empty(CLASSES)
    for part in parts:
        total = total.merge(measure(*part))
    whole = measure(*(np.concatenate(x) for x in zip(*parts))).compute()
    for name, value in total.compute().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)
    mean = np.mean([measure(*part).compute()['miou'] for part in parts])
    assert mean != whole['miou']


def test_merge_is_a_sum_in_jit_and_on_the_host():
    one, two = measure(*sample(3)), measure(*sample(4))
    traced = jax.jit(lambda a, b: a.merge(b))(one, two)
    host = one.merge(two)
    assert isinstance(host.counts, np.ndarray) and host.counts.dtype == np.int64
    np.testing.assert_array_equal(traced.counts, host.counts)


def test_totals_pass_int32():
    """2,975 images of 2048x1024: 6.2e9 pixels, of which one class alone may hold more than 2^31."""
    batch = measure(np.zeros((2, 512, 1024), np.uint8), np.zeros((2, 512, 1024), np.uint8))
    total, merged = metrics.Confusion.empty(CLASSES), 2975 * 2048 * 1024 // 2**20
    doubled, times = batch, merged
    while times:  # the merges of a whole split, by doubling
        if times % 2:
            total = total.merge(doubled)
        doubled, times = doubled.merge(doubled), times // 2
    assert total.counts[0, 0] == 2975 * 2048 * 1024 > 2**31
    assert total.compute()['pixel_accuracy'] == 1


def test_iou_by_hand():
    label = np.array([[[0, 0, 0, 1, 1, 255, 255, 2]]], np.uint8)
    guess = np.array([[[0, 0, 1, 1, 9, 0, 1, 9]]], np.uint8)
    counted = measure(guess, label)
    scores = counted.compute()
    # class 0: 2 hits, 1 missed; class 1: 1 hit, 1 missed to "other", 1 false; class 2: missed.
    np.testing.assert_allclose(scores['iou'], [2 / 3, 1 / 3, 0, np.nan])
    assert scores['miou'] == pytest.approx(1 / 3)
    assert scores['pixel_accuracy'] == 3 / 6
    assert scores['class_accuracy'] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    kept = counted.compute(void='count')
    np.testing.assert_allclose(kept['iou'], [2 / 4, 1 / 4, 0, np.nan])
    assert kept['pixel_accuracy'] == 3 / 6
    with pytest.raises(ValueError, match='void'):
        counted.compute(void='drop')


def test_other_predictions_miss_their_class_and_no_other():
    label = np.zeros((1, 2, 4), np.uint8)
    label[0, 1] = 1
    guess = label.copy()
    before = measure(guess, label).compute()['iou']
    guess[0, 0, :2] = CLASSES  # an extra background output
    after = measure(guess, label).compute()['iou']
    assert after[0] == 0.5 and after[1] == before[1] == 1


def test_nothing_counted_is_nan_and_no_warning():
    scores = metrics.Confusion.empty(CLASSES).compute()
    assert all(np.isnan(v).all() for v in scores.values())


def test_a_label_that_is_no_class_is_refused():
    prediction, label, valid = sample(5)
    label[0, 0, 0] = 200
    valid[0, 0, 0] = False
    measure(prediction, label, valid).compute()
    valid[0, 0, 0] = True
    with pytest.raises(UserError, match='1 pixels'):
        metrics.Confusion.empty(CLASSES).merge(measure(prediction, label, valid)).compute()


def images(seed=0, shape=(2, 20, 24, 3)):
    rng = np.random.default_rng(seed)
    a = rng.random(shape).astype(np.float32)
    return a, np.clip(a + rng.normal(0, 0.1, shape), 0, 1).astype(np.float32)


def test_psnr_and_ssim_equal_scikit_image():
    a, b = images()
    a[1] = 0.9 + 0.05 * a[1]  # bright and flat: the variances are differences of near numbers
    b[1] = 0.9 + 0.05 * b[1]
    for got, x, y in zip(metrics.psnr(a, b), a, b):
        assert float(got) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), rel=1e-5)
    for got, x, y in zip(metrics.ssim(a, b), a, b):
        expected = structural_similarity(
            x.astype(np.float64),
            y.astype(np.float64),
            channel_axis=-1,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(got) == pytest.approx(expected, abs=2e-5)


def test_a_rectangular_mask_equals_its_crop():
    a, b = images(1)
    mask = np.zeros(a.shape[:3], bool)
    mask[:, 3:18, 2:20] = True
    for measure_ in (metrics.psnr, metrics.ssim):
        cropped = measure_(a[:, 3:18, 2:20], b[:, 3:18, 2:20])
        np.testing.assert_allclose(measure_(a, b, mask), cropped, rtol=1e-5)
    changed = np.where(mask[..., None], a, 0.5)
    np.testing.assert_array_equal(metrics.ssim(changed, b, mask), metrics.ssim(a, b, mask))


def test_equal_images_and_missing_windows():
    a, _ = images(2)
    assert np.isinf(metrics.psnr(a, a)).all()
    np.testing.assert_allclose(metrics.ssim(a, a), 1, rtol=1e-6)
    assert np.isnan(metrics.ssim(a[:, :10], a[:, :10])).all()
    assert np.isnan(metrics.ssim(a, a, np.zeros(a.shape[:3], bool))).all()


def test_image_quality_is_the_mean_over_real_images():
    a, b = images(3, (3, 16, 16, 3))
    valid = np.array([True, False, True])
    whole = metrics.ImageQuality.from_model_output(
        image=jnp.asarray(a), target=jnp.asarray(b), valid=jnp.asarray(valid)
    )
    scores = metrics.ImageQuality.empty().merge(whole).merge(whole).compute()
    assert scores['psnr'] == pytest.approx(np.asarray(metrics.psnr(a, b))[valid].mean(), rel=1e-5)
    assert scores['ssim'] == pytest.approx(np.asarray(metrics.ssim(a, b))[valid].mean(), rel=1e-5)
    mask = np.ones((3, 16, 16), bool)
    mask[1] = False
    masked = metrics.ImageQuality.from_model_output(
        image=jnp.asarray(a), target=jnp.asarray(b), mask=jnp.asarray(mask)
    )
    assert masked.compute()['psnr'] == pytest.approx(scores['psnr'], rel=1e-5)
    assert np.isnan(metrics.ImageQuality.empty().compute()['psnr'])


def test_bicubic_equals_pillow():
    image = np.random.default_rng(4).random((7, 9)).astype(np.float32)
    expected = Image.fromarray(image).resize((18, 14), Image.Resampling.BICUBIC)
    got = metrics.bicubic(jnp.asarray(image)[None, ..., None], 2)[0, ..., 0]
    np.testing.assert_allclose(got, np.asarray(expected), atol=1e-5)
