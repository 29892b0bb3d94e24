"""The affinity loss: every fast form against eq. 1-2 written out, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsrl_jax.ops.affinity import SAMPLINGS, affinity_loss, dense_affinity_loss

EPS = 1e-4
RANDOM = ('grid8', 'random_pixels', 'random_rows')


def maps(shape=(2, 5, 7), channels=(6, 4), dtype=np.float64, seed=0):
    """Two ReLU-like maps and a mask with about a fifth of the pixels padded."""
    rng = np.random.default_rng(seed)
    seg, sr = (np.maximum(rng.normal(size=(*shape, c)) + 0.3, 0).astype(dtype) for c in channels)
    return seg, sr, rng.random(shape) > 0.2


def formula(seg, sr, q=1, mask=None, pairs=None):
    """Eq. 1-2 sample by sample in numpy."""
    total = count = 0
    for sample in range(len(seg)):
        affinity = []
        for x in (seg[sample], sr[sample]):
            x = x.reshape(-1, x.shape[-1]).astype(np.float64)
            x = x / np.sqrt((x**2).sum(1, keepdims=True) + EPS)
            affinity.append(x @ x.T)
        kept = np.ones_like(affinity[0], bool)
        if mask is not None:
            kept &= np.outer(mask[sample].ravel(), mask[sample].ravel())
        if pairs is not None:
            kept &= pairs
        total += (np.abs(affinity[0] - affinity[1])[kept] ** q).sum()
        count += kept.sum()
    return total / count


def in_window(height, width, window, dilation):
    """[N,N] bool: does pixel j lie in the dilated window around pixel i?"""
    rows, columns = (index.ravel() for index in np.mgrid[:height, :width])
    offsets = np.arange(-(window // 2), window // 2 + 1) * dilation
    down, right = rows[None] - rows[:, None], columns[None] - columns[:, None]
    return np.isin(down, offsets) & np.isin(right, offsets)


def gradients(loss, seg, sr):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(seg, sr)


def assert_same(ours, oracle, tolerance=1e-12):
    """Value and both gradients agree; the gradients relative to their largest entry."""
    np.testing.assert_allclose(ours[0], oracle[0], rtol=tolerance)
    for mine, theirs in zip(ours[1], oracle[1]):
        np.testing.assert_allclose(mine, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize('q', [1, 2])
@pytest.mark.parametrize('masked', [False, True])
def test_dense_form_is_the_formula(q, masked):
    with jax.enable_x64(True):
        seg, sr, mask = maps()
        mask = mask if masked else None
        loss = dense_affinity_loss(seg, sr, q=q, mask=mask)
        np.testing.assert_allclose(loss, formula(seg, sr, q, mask), rtol=1e-12)


@pytest.mark.parametrize('tile', [4, 16, 256])  # 35 pixels: 9 strips with a filled last, 3, 1
@pytest.mark.parametrize('q', [1, 2])
@pytest.mark.parametrize('masked', [False, True])
def test_exact_equals_dense_in_value_and_gradient(tile, q, masked):
    with jax.enable_x64(True):
        seg, sr, mask = maps()
        mask = mask if masked else None
        ours = gradients(lambda a, b: affinity_loss(a, b, q=q, mask=mask, tile=tile), seg, sr)
        oracle = gradients(lambda a, b: dense_affinity_loss(a, b, q=q, mask=mask), seg, sr)
        assert_same(ours, oracle)


@pytest.mark.parametrize('window, dilation, q', [(3, 1, 1), (5, 1, 2), (3, 3, 1), (5, 4, 1)])
def test_local_equals_dense_inside_the_window(window, dilation, q):
    with jax.enable_x64(True):
        seg, sr, mask = maps((2, 6, 9))
        pairs = in_window(6, 9, window, dilation)
        ours = gradients(
            functools.partial(
                affinity_loss, sampling='local', q=q, mask=mask, window=window, dilation=dilation
            ),
            seg,
            sr,
        )
        oracle = gradients(
            functools.partial(dense_affinity_loss, q=q, mask=mask, pairs=pairs), seg, sr
        )
        assert_same(ours, oracle)
        np.testing.assert_allclose(ours[0], formula(seg, sr, q, mask, pairs), rtol=1e-12)


@pytest.mark.parametrize('q', [1, 2])
def test_random_rows_pair_the_drawn_pixels_with_all(q):
    with jax.enable_x64(True):
        seg, sr, mask = maps((2, 4, 12))
        loss = functools.partial(
            affinity_loss, sampling='random_rows', key=jax.random.key(3), tile=4
        )
        # A pixel alone in the mask has a pair, itself, only if it is drawn as a row.
        alone = np.eye(48, dtype=bool).reshape(48, 1, 4, 12)
        nothing, something = np.zeros((1, 4, 12, 1)), np.ones((1, 4, 12, 1))
        drawn = jax.jit(jax.vmap(lambda only: loss(nothing, something, mask=only)))(alone) > 0.5
        assert drawn.sum() == 48 // 8
        pairs = np.repeat(drawn[:, None], 48, axis=1)

        ours = gradients(functools.partial(loss, q=q, mask=mask), seg, sr)
        oracle = gradients(
            functools.partial(dense_affinity_loss, q=q, mask=mask, pairs=pairs), seg, sr
        )
        assert_same(ours, oracle)


def test_random_rows_are_unbiased_and_vary_less_than_random_pixels():
    seg, sr, _ = maps((1, 8, 16), dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), 800)

    def draw(sampling):
        loss = functools.partial(affinity_loss, seg, sr, sampling=sampling)
        return np.asarray(jax.jit(jax.vmap(lambda key: loss(key=key)))(keys))

    exact, rows = formula(seg, sr), draw('random_rows')
    assert rows.std() > 0
    assert abs(rows.mean() - exact) < 4 * rows.std() / np.sqrt(len(keys))
    assert rows.std() < 0.6 * draw('random_pixels').std()


def test_random_pixels_are_the_exact_loss_of_a_subset():
    # Every pixel has its own direction, so the gradient tells which ones took part.
    seg, sr, _ = maps((1, 8, 8), dtype=np.float32)
    loss = functools.partial(affinity_loss, sampling='random_pixels', subsample=4)
    step = jax.jit(jax.value_and_grad(lambda seg, key: loss(seg, sr, key=key)))
    for key in jax.random.split(jax.random.key(1), 3):
        value, grad = step(seg, key)
        used = np.abs(np.asarray(grad)).sum(-1) > 0
        assert used.sum() == 16
        np.testing.assert_allclose(value, formula(seg, sr, mask=used), rtol=1e-5)


def test_grid_is_the_exact_loss_of_one_phase_and_every_phase_comes():
    seg, sr, mask = maps((2, 7, 10), dtype=np.float32)  # neither side divides by the stride
    loss = jax.jit(
        lambda key: affinity_loss(seg, sr, sampling='grid8', subsample=3, mask=mask, key=key)
    )
    grids = [
        (slice(None), slice(i, i + 4, 3), slice(j, j + 7, 3)) for i in range(3) for j in range(3)
    ]
    phases = [formula(seg[grid], sr[grid], mask=mask[grid]) for grid in grids]
    seen = set()
    for key in jax.random.split(jax.random.key(0), 60):
        distance = np.abs(np.array(phases) - float(loss(key)))
        assert distance.min() < 1e-5
        seen.add(int(distance.argmin()))
    assert seen == set(range(9))


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_padding_and_batch_duplication_change_nothing(sampling):
    seg, sr, mask = maps((2, 8, 9), dtype=np.float32)
    options = {'sampling': sampling, 'key': jax.random.key(5), 'subsample': 4}
    loss = jax.jit(lambda a, b, m: affinity_loss(a, b, mask=m, **options))
    expected = loss(seg, sr, mask)
    # Whatever lies in the padding, not-a-number even, reaches neither value nor gradient.
    torn = np.where(mask[..., None], seg, np.nan)
    value, grad = jax.jit(jax.value_and_grad(loss))(torn, sr, mask)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(grad).all() and not np.asarray(grad)[~mask].any()
    twice = (np.concatenate([x, x]) for x in (seg, sr, mask))
    np.testing.assert_allclose(loss(*twice), expected, rtol=1e-5)
    assert loss(seg, sr, np.zeros_like(mask)) == 0


@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('q', [1, 2])
def test_identical_maps_agree(sampling, q):
    seg, _, mask = maps((1, 8, 8), dtype=np.float32)
    options = {'sampling': sampling, 'q': q, 'mask': mask, 'key': jax.random.key(0)}
    assert abs(jax.jit(functools.partial(affinity_loss, **options))(seg, seg)) < 1e-6


@pytest.mark.parametrize('sampling', ['exact', 'random_rows', 'local'])
def test_stop_gradient_changes_only_the_gradient_of_sr(sampling):
    seg, sr, mask = maps((2, 6, 8), dtype=np.float32)
    loss = functools.partial(affinity_loss, sampling=sampling, mask=mask, key=jax.random.key(2))
    value, (grad_seg, grad_sr) = gradients(loss, seg, sr)
    stopped, (kept, none) = gradients(functools.partial(loss, stop_gradient_sr=True), seg, sr)
    np.testing.assert_allclose(stopped, value, rtol=1e-6)
    np.testing.assert_allclose(kept, grad_seg, atol=1e-6 * np.abs(grad_seg).max())
    assert np.abs(grad_sr).max() > 0 and not np.asarray(none).any()


@pytest.mark.parametrize('sampling', ['exact', 'random_rows'])
@pytest.mark.parametrize('tile', [None, 16])
def test_products_of_parts_are_exact_to_float32(sampling, tile):
    # Where both branches nearly agree D is small: bfloat16 products would be noise.
    seg, sr, mask = maps((2, 5, 7), (32, 24), np.float32)
    sr = np.concatenate([sr, np.zeros_like(seg[..., :8])], -1) * 0.02 + seg
    options = {'sampling': sampling, 'mask': mask, 'key': jax.random.key(0), 'tile': tile}
    plain, parts = (
        gradients(lambda a, b, w=where: affinity_loss(a, b, where=w, **options), seg, sr)
        for where in ('cpu', 'gpu')
    )
    assert plain[0] < 0.02
    assert_same(parts, plain, 2e-5)


@pytest.mark.parametrize('sampling', ['exact', 'local'])
def test_pairs_orthogonal_in_both_maps_do_not_pull(sampling):
    # Plain differentiation of |D| would give D = 0 the slope +1.
    seg = np.zeros((1, 2, 2, 4), np.float32)
    seg[0, [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3]] = 1
    value, grads = gradients(functools.partial(affinity_loss, sampling=sampling), seg, seg)
    # Only rounding on the diagonal is left, whose direction the normalisation takes out.
    assert value < 1e-8 and all(np.abs(grad).max() < EPS for grad in grads)


@pytest.mark.parametrize('sampling', ['exact', 'local'])
@pytest.mark.parametrize('q', [1, 2])
def test_gradient_is_finite_and_moderate_at_zero_vectors(sampling, q):
    seg, sr, _ = maps((1, 5, 5), dtype=np.float32)
    seg[:, :2], sr[:, 1:4] = 0, 0
    _, grads = gradients(functools.partial(affinity_loss, sampling=sampling, q=q), seg, sr)
    for grad in grads:
        assert np.isfinite(grad).all() and np.abs(grad).max() < 1 / np.sqrt(EPS)


def test_one_positive_channel_is_a_dead_loss():
    rng = np.random.default_rng(0)
    seg, sr = (rng.uniform(1, 9, size=(1, 6, 6, 1)).astype(np.float32) for _ in range(2))
    value, grads = gradients(affinity_loss, seg, sr)
    # What is left comes from the epsilon: dn/df = eps / (f^2 + eps)^1.5, twice over 36 rows.
    assert value < EPS and all(np.abs(grad).max() < 2 * EPS / 36 for grad in grads)


def test_order_of_pixels_and_scale_of_features_do_not_matter():
    seg, sr, mask = maps((1, 6, 10), dtype=np.float32)
    order = np.random.default_rng(1).permutation(60)

    def shuffle(x):
        return x.reshape(1, 60, -1)[:, order].reshape(x.shape)

    loss = jax.jit(lambda a, b, m: affinity_loss(a, b, mask=m, tile=16))
    expected = loss(seg, sr, mask)
    np.testing.assert_allclose(loss(*map(shuffle, (seg, sr, mask))), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(seg * 100, sr * 50, mask), loss(seg * 50, sr * 100, mask), 1e-4)


def test_bfloat16_maps_give_a_float32_loss_close_by():
    seg, sr, mask = maps((2, 8, 8), (32, 32), np.float32)
    low = (jnp.asarray(x, jnp.bfloat16) for x in (seg, sr))
    value, grads = gradients(functools.partial(affinity_loss, mask=mask), *low)
    expected, (grad_seg, _) = gradients(functools.partial(affinity_loss, mask=mask), seg, sr)
    assert value.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    angle = np.vdot(grads[0].astype(np.float32), grad_seg)
    norms = np.linalg.norm(grads[0].astype(np.float32)) * np.linalg.norm(grad_seg)
    assert angle / norms > 0.98


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_memory_is_far_below_one_matrix(sampling):
    # 32,768 pixels: one N x N matrix would be 4 GiB.
    shape = jax.ShapeDtypeStruct((1, 128, 256, 32), jnp.float32)
    loss = functools.partial(affinity_loss, sampling=sampling, key=jax.random.key(0))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 2**20


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_a_split_batch_stays_split(sampling):
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
    # 4 x 6 cells for 'grid8': a grid of one pixel a map has only rounding to compare (S = 1 - eps).
    seg, sr, mask = maps((8, 32, 48), dtype=np.float32)
    options = {'sampling': sampling, 'key': jax.random.key(0), 'tile': 32}

    @jax.jit
    def step(seg, sr, mask):
        loss = functools.partial(affinity_loss, mask=mask, **options)
        return jax.value_and_grad(loss, argnums=(0, 1))(seg, sr)

    split = jax.device_put((seg, sr, mask), NamedSharding(mesh, PartitionSpec('data')))
    text = step.lower(*split).compile().as_text()
    assert 'all-reduce' in text
    for moved in ('all-gather', 'all-to-all', 'collective-permute'):
        assert moved not in text
    assert_same(step(*split), step(seg, sr, mask), 1e-5)


@pytest.mark.parametrize('sampling', RANDOM)
def test_random_samplings_ask_for_a_key(sampling):
    seg, sr, _ = maps((1, 8, 8))
    with pytest.raises(ValueError, match='key'):
        affinity_loss(seg, sr, sampling=sampling)


@pytest.mark.parametrize(
    'options, word',
    [
        ({'sampling': 'all'}, 'random_rows'),
        ({'q': 3}, 'q must'),
        ({'window': 4, 'sampling': 'local'}, 'odd'),
        ({'mask': np.ones((1, 2, 2), bool)}, 'mask'),
        ({'sampling': 'grid8', 'key': 0, 'subsample': 9}, 'stride 9'),
    ],
)
def test_wrong_options_are_named(options, word):
    seg, sr, _ = maps((1, 8, 8))
    with pytest.raises(ValueError, match=word):
        affinity_loss(seg, sr, **options)


def test_maps_of_different_grids_are_refused():
    seg, sr, _ = maps((1, 8, 8))
    with pytest.raises(ValueError, match='one grid'):
        affinity_loss(seg, sr[:, :4])
