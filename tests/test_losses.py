"""The DSRL objective: each term against numpy, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import config as configs
from dsrl_jax import losses
from dsrl_jax.errors import UserError
from dsrl_jax.models.layers import Convention
from dsrl_jax.ops import resize
from dsrl_jax.ops.affinity import dense_affinity_loss

KEY = jax.random.key(0)
B, H, W, K, C, S = 2, 16, 24, 5, 6, 2


def example(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    label = rng.integers(0, K, (B, S * H, S * W))
    label[:, :3] = 255
    mask = np.ones((B, S * H, S * W), bool)
    mask[0, -8:] = False
    outputs = {
        'scores': draw(B, H // 2, W // 2, K),
        'resize': Convention('align_corners'),
        'sr': draw(B, S * H, S * W, 3),
        'seg_feature': draw(B, H // 2, W // 2, C),
        'sr_feature': draw(B, H, W, C + 1),
    }
    batch = {
        'view': draw(B, S * H, S * W, 3),
        'label': jnp.asarray(label, jnp.uint8),
        'mask': jnp.asarray(mask),
    }
    return outputs, batch


def terms(outputs, batch, changes=(), weights=None, step=0):
    config = configs.base()
    config.scale = S
    for dotted, value in changes:
        section, _, leaf = dotted.partition('.')
        config[section][leaf] = value
    loss = losses.make_loss(config, weights)
    return loss(outputs, batch, step=jnp.asarray(step), key=KEY)


def test_total_is_the_weighted_sum():
    found = terms(*example(), changes=[('mse.weight', 0.3), ('fa.weight', 0.7)])
    assert set(found) == {'ce', 'mse', 'fa', 'total'}
    expected = found['ce'] + 0.3 * found['mse'] + 0.7 * found['fa']
    np.testing.assert_allclose(found['total'], expected, rtol=1e-6)


def test_terms_follow_the_branches():
    outputs, batch = example()
    for name in ('seg_feature', 'sr_feature'):
        del outputs[name]
    assert set(terms(outputs, batch)) == {'ce', 'mse', 'total'}
    del outputs['sr']
    found = terms(outputs, batch)
    assert set(found) == {'ce', 'total'} and found['ce'] == found['total']


def test_cross_entropy_is_the_weighted_mean_of_real_pixels():
    outputs, batch = example()
    outputs['scores'] = jnp.repeat(jnp.repeat(outputs['scores'], 4, 1), 4, 2)
    weights = np.array([1.0, 2.0, 0.5, 0.0, 3.0], np.float32)
    log_p = np.asarray(jax.nn.log_softmax(outputs['scores'].astype(jnp.float32)), np.float64)
    label = np.asarray(batch['label'])
    real = label != 255
    picked = -np.take_along_axis(log_p, np.where(real, label, 0)[..., None].astype(int), -1)[..., 0]
    w = np.where(real, weights[np.where(real, label, 0)], 0)
    found = terms(outputs, batch, weights=weights)['ce']
    np.testing.assert_allclose(found, (w * picked).sum() / w.sum(), rtol=1e-5)


def test_input_labels_supervise_at_the_small_size():
    outputs, batch = example()
    small = {**batch, 'label': batch['label'][:, 1::2, 1::2]}
    found = terms(outputs, batch, changes=[('ce.labels', 'input')])['ce']
    config = configs.base()
    np.testing.assert_allclose(
        found, losses.cross_entropy(outputs, small['label'], config), rtol=1e-6
    )


@pytest.mark.parametrize(('reduction', 'factor'), [('mean', 1), ('channel_sum', 3)])
def test_mse_leaves_padding_out(reduction, factor):
    outputs, batch = example()
    mask = np.asarray(batch['mask'])
    error = np.square(np.asarray(outputs['sr'], np.float64) - np.asarray(batch['view']))
    found = terms(outputs, batch, changes=[('mse.reduction', reduction)])['mse']
    np.testing.assert_allclose(found, factor * error[mask].mean(), rtol=1e-5)
    spoiled = jnp.where(batch['mask'][..., None], outputs['sr'], 1e6)
    np.testing.assert_allclose(
        terms({**outputs, 'sr': spoiled}, batch, changes=[('mse.reduction', reduction)])['mse'],
        found,
        rtol=1e-6,
    )


def test_affinity_is_taken_on_the_stated_grid():
    outputs, batch = example()

    def pooled(x, k):
        x = np.asarray(x)
        b, h, w, c = x.shape
        return x.reshape(b, h // k, k, w // k, k, c).mean((2, 4))

    seg, sr = pooled(outputs['seg_feature'], 4), pooled(outputs['sr_feature'], 8)
    mask = pooled(np.asarray(batch['mask'], np.float32)[..., None], 16)[..., 0] > 0.999
    assert not mask.all()
    expected = dense_affinity_loss(jnp.asarray(seg), jnp.asarray(sr), mask=jnp.asarray(mask))
    np.testing.assert_allclose(terms(outputs, batch)['fa'], expected, rtol=1e-5)


def test_a_teacher_takes_the_place_of_the_sr_features_or_stands_beside_them():
    """The dense form on the grid, from a map of another width and stride; no gradient to it."""
    outputs, batch = example()
    features = jnp.asarray(np.random.default_rng(7).normal(size=(B, 32, 48, 9)), jnp.float32)
    grid = (2, 3)
    seg, teacher, real = (
        resize.pool_to(x, grid)
        for x in (outputs['seg_feature'], features, batch['mask'][..., None].astype(jnp.float32))
    )
    expected = dense_affinity_loss(seg, teacher, mask=real[..., 0] > 0.999)
    plain = terms(outputs, batch)

    @jax.jit
    def guided(features, seg, sr):
        given = {**outputs, 'seg_feature': seg, 'sr_feature': sr}
        seen = {**batch, 'teacher': {'features': features}}
        found = {
            guide: terms(given, seen, changes=[('fa.guide', guide), ('fa.weight', 0.7)])
            for guide in ('teacher', 'both')
        }
        return found['both']['total'] + found['teacher']['total'], found

    maps = features, outputs['seg_feature'], outputs['sr_feature']
    gradients, found = jax.grad(guided, argnums=(0, 1, 2), has_aux=True)(*maps)
    assert 'fa' not in found['teacher']
    np.testing.assert_allclose(found['both']['fa'], plain['fa'], rtol=1e-6)
    for given in found.values():
        np.testing.assert_allclose(given['fa_teacher'], expected, rtol=1e-5)
    rest = plain['ce'] + 0.1 * plain['mse']
    np.testing.assert_allclose(found['teacher']['total'], rest + 0.7 * expected, rtol=1e-6)
    mean = (plain['fa'] + expected) / 2
    np.testing.assert_allclose(found['both']['total'], rest + 0.7 * mean, rtol=1e-6)
    assert [bool(jnp.any(x != 0)) for x in gradients] == [False, True, True]


def test_ramp_grows_the_affinity_term():
    outputs, batch = example()
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (30, 1.0)):
        found = terms(outputs, batch, changes=[('fa.ramp', 10)], step=step)
        rest = found['ce'] + 0.1 * found['mse']
        np.testing.assert_allclose(found['total'] - rest, share * found['fa'], atol=1e-5)


def test_loss_does_not_depend_on_batch_size():
    outputs, batch = example()
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (outputs, batch))
    one, two = terms(outputs, batch), terms(*twice)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-6)


def test_nothing_labelled_gives_zero_and_finite_gradients():
    outputs, batch = example()
    batch['label'] = jnp.full_like(batch['label'], 255)

    def total(scores):
        return terms({**outputs, 'scores': scores}, batch)['ce']

    value, grad = jax.value_and_grad(total)(outputs['scores'])
    assert value == 0 and bool(jnp.all(grad == 0))


def test_class_weights_by_formula():
    pixels, present = np.array([600.0, 300, 100, 0]), np.array([1000.0, 1000, 500, 0])
    median = losses.class_weights('median_frequency', pixels, present)
    np.testing.assert_allclose(median, [0.3 / 0.6, 1.0, 0.3 / 0.2, 0], rtol=1e-6)
    inverse = losses.class_weights('inverse_log', pixels, present)
    np.testing.assert_allclose(inverse[:3], 1 / np.log(1.10 + pixels[:3] / 1000), rtol=1e-6)
    given = losses.class_weights('1, 2, 3, 4', pixels, present)
    np.testing.assert_allclose(given, [1, 2, 3, 0])
    assert losses.class_weights('none', pixels, present) is None
    for spec, words in (('1,2', '2 class weights'), ('median', "'median'"), ('segnet', '11')):
        with pytest.raises(UserError, match=words):
            losses.class_weights(spec, pixels, present)


def test_shuffled_sr_features_keep_their_values_and_lose_their_places():
    outputs, batch = example()
    config = configs.base()
    config.fa.grid = 8
    mask = jnp.ones_like(batch['mask'])
    seg, sr = outputs['seg_feature'], outputs['sr_feature']

    def affinity(sr):
        return losses.feature_affinity(seg, sr, mask, config, KEY, frozen=False)

    plain = affinity(sr)
    # Equal in both branches: nothing differs until one of them is shuffled.
    assert affinity(seg) < 1e-6
    config.fa.shuffle_sr = True
    assert affinity(seg) > 0.05
    again = affinity(sr)
    assert again != plain and again == affinity(sr)
    # A constant map has no places to lose.
    flat = jnp.ones_like(sr)
    shuffled = affinity(flat)
    config.fa.shuffle_sr = False
    np.testing.assert_allclose(shuffled, affinity(flat), rtol=1e-6)
