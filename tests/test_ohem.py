"""Hard pixels: against a sort in numpy, on any number of devices, and in the cross entropy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import config as configs
from dsrl_jax import losses, parallel
from dsrl_jax.errors import UserError
from dsrl_jax.models.layers import Convention
from dsrl_jax.ops.hard_pixels import hard_pixels

B, H, W, K = 4, 16, 24, 5
KEEP = jax.jit(functools.partial(hard_pixels, probability=0.7, one_of=16))


def drawn(seed=0, scale=1.0):
    """Losses [B,H,W] and which of them count."""
    rng = np.random.default_rng(seed)
    valid = rng.random((B, H, W)) < 0.9
    return np.float32(scale * rng.exponential(size=valid.shape)), valid


def by_sort(loss, valid, probability=0.7, one_of=16):
    """Mean and number of the kept pixels, as the original does it: sort, then cut."""
    found = np.sort(loss[valid])[::-1].astype(float)
    least = int(np.ceil(len(found) / one_of))
    hard = found[found > -np.log(probability)]
    kept = hard if len(hard) >= least else found[:least]
    return kept.mean(), len(kept)


def ohem(**ce):
    config = configs.base()
    for name, value in {'ohem': 0.7, **ce}.items():
        config.ce[name] = value
    return functools.partial(losses.cross_entropy, config=config)


@pytest.mark.parametrize('scale', [1.0, 0.01], ids=['many are hard', 'too few are'])
def test_kept_pixels_are_those_of_a_sort(scale):
    loss, valid = drawn(scale=scale)
    weight = np.asarray(KEEP(loss, valid))
    mean, count = by_sort(loss, valid)
    assert set(np.unique(weight)) == {0.0, 1.0} and weight.sum() == count
    assert not weight[~valid].any()
    assert (count > valid.sum() / 16 + 1) == (scale == 1.0)
    np.testing.assert_allclose((weight * loss).sum() / weight.sum(), mean, rtol=1e-5)
    assert loss[weight > 0].min() >= loss[valid & (weight == 0)].max()


def test_ties_share_the_last_places():
    loss, valid = drawn(scale=0.01)
    loss = np.round(loss, 2)
    weight = np.asarray(KEEP(loss, valid))
    mean, count = by_sort(loss, valid)
    np.testing.assert_allclose(weight.sum(), count, rtol=1e-6)
    np.testing.assert_allclose((weight * loss).sum() / count, mean, rtol=1e-5)
    assert all(len(np.unique(weight[valid & (loss == value)])) == 1 for value in np.unique(loss))


def test_nothing_valid_keeps_nothing_and_one_pixel_keeps_itself():
    loss, valid = drawn(scale=0.01)
    assert not np.asarray(KEEP(loss, np.zeros_like(valid))).any()
    one = np.zeros_like(valid)
    one[1, 2, 3] = True
    assert np.array_equal(KEEP(loss, one), one)


def test_what_is_not_a_number_is_kept():
    for scale in (1.0, 0.01):
        loss, valid = drawn(scale=scale)
        valid[0, 0, 0], loss[0, 0, 0] = True, np.copysign(np.nan, -1)
        assert KEEP(loss, valid)[0, 0, 0] == 1


@pytest.mark.parametrize('scale', [1.0, 0.01])
def test_four_devices_keep_what_one_keeps(scale):
    """The threshold is that of the whole batch, however unlike the devices' shares are."""
    loss, valid = drawn(scale=scale)
    loss *= np.arange(1, B + 1, dtype=np.float32)[:, None, None] / B
    placed = parallel.to_global({'loss': loss, 'valid': valid}, parallel.make_mesh())
    weight = KEEP(placed['loss'], placed['valid'])
    assert len(weight.sharding.device_set) == 4
    assert np.array_equal(weight, KEEP(loss, valid))


@pytest.mark.parametrize('weights', [None, [0.5, 1, 2, 0.25, 3]])
def test_cross_entropy_is_the_mean_over_kept_pixels(weights):
    """Chosen by the plain loss, averaged with the class weights; the rest gets no gradient."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(B, H, W, K)).astype(np.float32)
    label = rng.integers(0, K, (B, H, W)).astype(np.uint8)
    scores += 6 * np.eye(K, dtype=np.float32)[label] * (rng.random((B, H, W, 1)) < 0.9)
    label[:, :2] = 255
    valid, safe = label != 255, np.where(label == 255, 0, label)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    loss = -np.log(np.take_along_axis(p, safe[..., None].astype(int), -1)[..., 0])
    kept = valid & (loss > -np.log(0.7))
    assert valid.sum() / 16 < kept.sum() < valid.sum()
    w = kept * np.asarray(weights or [1] * K)[safe]

    def mean(scores):
        outputs = {'scores': scores, 'resize': Convention('half_pixel')}
        return ohem()(outputs, jnp.asarray(label), class_weights=weights)

    value, gradient = jax.jit(jax.value_and_grad(mean))(scores)
    np.testing.assert_allclose(value, (w * loss).sum() / w.sum(), rtol=1e-5)
    expected = (p - np.eye(K)[safe]) * (w / w.sum())[..., None]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_keeping_one_of_one_is_the_plain_cross_entropy():
    rng = np.random.default_rng(4)
    outputs = {'scores': rng.normal(size=(B, 4, 6, K)), 'resize': Convention('align_corners')}
    label = jnp.asarray(rng.integers(0, K, (B, H, W)), jnp.uint8)
    plain, kept = ohem(ohem=0.0)(outputs, label), ohem(ohem_keep=1)(outputs, label)
    np.testing.assert_allclose(kept, plain, rtol=1e-6)


def test_no_map_of_all_scores_is_made():
    """At 64 times the scores' pixels: neither the loss nor its gradient holds [B,sH,sW,K]."""
    size = 64 * 8, 64 * 8
    label = jax.ShapeDtypeStruct((2, *size), jnp.uint8)
    scores = jax.ShapeDtypeStruct((2, 64, 64, 19), jnp.bfloat16)

    def mean(scores, label):
        return ohem()({'scores': scores, 'resize': Convention('half_pixel')}, label)

    text = str(jax.make_jaxpr(jax.grad(mean))(scores, label))
    assert f'f32[2,{size[0]},{size[1]}]' in text and f'[2,{size[0]},{size[1]},19]' not in text


@pytest.mark.parametrize(('field', 'value'), [('ohem', '1.5'), ('ohem_keep', '0')])
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=f'config.ce.{field}: found {value}'):
        configs.load('cityscapes', [(f'ce.{field}', value)])
