"""Fused cross entropy and arg-max on scores: equal to the naive full-size form, in less memory."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax.ops import resize, scores

CONVENTIONS = ('half_pixel', 'align_corners')


def draw(seed, shape, classes, size, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    z = jnp.asarray(3 * rng.normal(size=(*shape, classes)), dtype)
    label = rng.integers(0, classes, (shape[0], *size)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    return z, jnp.asarray(label)


def naive(z, label, convention):
    z = resize.bilinear(z.astype(jnp.float32), label.shape[1:], convention=convention)
    log_p = jax.nn.log_softmax(z)
    hot = jax.nn.one_hot(label, z.shape[-1])  # 255 gives a row of zeros
    return -jnp.sum(log_p * hot, -1)


def both(function, z, label):
    weight = jnp.cos(jnp.arange(label.size, dtype=jnp.float32)).reshape(label.shape)
    total, gradient = jax.value_and_grad(lambda z: jnp.sum(weight * function(z, label)))(z)
    return function(z, label), total, gradient


@pytest.mark.parametrize('convention', CONVENTIONS)
@pytest.mark.parametrize(
    'small, large, rows',
    [
        ((4, 6), (8, 12), 4),  # x2 in even blocks
        ((5, 6), (20, 24), 3),  # ragged blocks that cut an input row
        ((5, 7), (17, 13), 5),  # no common divisor
        ((9, 4), (5, 12), 2),  # rows shrink
        ((6, 6), (6, 6), 2),  # the scores have the label's size
        ((1, 1), (3, 5), 2),
    ],
)
def test_cross_entropy_equals_the_full_size_form(monkeypatch, convention, small, large, rows):
    monkeypatch.setattr(scores, '_rows_per_chunk', lambda *_: rows)
    z, label = draw(0, (2, *small), 5, large)

    def fused(z, label):
        return scores.pixel_cross_entropy(z, label, convention=convention)

    got = both(jax.jit(fused), z, label)
    want = both(jax.jit(lambda z, label: naive(z, label, convention)), z, label)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('classes', [1, scores._FEW_CLASSES, scores._FEW_CLASSES + 1])
def test_sums_class_by_class_and_by_reduction_are_one_cross_entropy(classes):
    z, label = draw(4, (2, 5, 6), classes, (5, 6))
    got = both(lambda z, y: scores.pixel_cross_entropy(z, y, convention='half_pixel'), z, label)
    want = both(lambda z, y: naive(z, y, 'half_pixel'), z, label)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_block_sizes_do_not_change_the_result(monkeypatch):
    z, label = draw(1, (2, 8, 6), 4, (16, 12))
    want = scores.pixel_cross_entropy(z, label, convention='align_corners')
    for rows in (1, 3, 7, 15, 16):
        monkeypatch.setattr(scores, '_rows_per_chunk', lambda *_, rows=rows: rows)
        got = scores.pixel_cross_entropy(z, label, convention='align_corners')
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_plain_scores_in_float64():
    z, label = draw(2, (2, 4, 6), 7, (4, 6))
    got = scores.pixel_cross_entropy(z, label, convention='half_pixel')
    wide = np.asarray(z, np.float64)
    lse = np.log(np.exp(wide).sum(-1))
    at = np.minimum(label, 6)[..., None].astype(int)
    want = np.where(label == 255, 0, lse - np.take_along_axis(wide, at, -1)[..., 0])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size', [(8, 12), (4, 6)])
def test_all_ignored_gives_zeros_and_zero_gradient(size):
    z, label = draw(3, (2, 4, 6), 5, size)
    label = jnp.full_like(label, 9)

    def loss(z):
        return scores.pixel_cross_entropy(z, label, convention='half_pixel', ignore=9)

    value, gradient = loss(z), jax.grad(lambda z: loss(z).sum())(z)
    assert value.dtype == jnp.float32 and value.shape == label.shape
    assert not np.asarray(value).any() and not np.asarray(gradient).any()


def test_an_illegal_label_is_loud():
    z, label = draw(4, (1, 4, 4), 5, (8, 8))
    label = label.at[0, 3, 3].set(5)
    loss = np.asarray(scores.pixel_cross_entropy(z, label, convention='half_pixel'))
    assert np.isnan(loss[0, 3, 3]) and np.isnan(loss).sum() == 1


def test_bfloat16_scores_are_reduced_in_float32():
    z, label = draw(5, (2, 4, 6), 19, (8, 12), jnp.bfloat16)
    for size in ((8, 12), (4, 6)):
        cut = label[:, : size[0], : size[1]]
        got = scores.pixel_cross_entropy(z, cut, convention='half_pixel')
        want = naive(z.astype(jnp.float32), cut, 'half_pixel')
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        gradient = jax.grad(
            lambda z, cut=cut: scores.pixel_cross_entropy(z, cut, convention='half_pixel').sum()
        )(z)
        assert gradient.dtype == jnp.bfloat16


def test_a_doubled_batch_has_the_same_mean():
    z, label = draw(6, (2, 4, 6), 5, (8, 12))

    def mean(z, label):
        return scores.pixel_cross_entropy(z, label, convention='half_pixel').mean()

    twice = mean(jnp.concatenate([z, z]), jnp.concatenate([label, label]))
    np.testing.assert_allclose(twice, mean(z, label), rtol=1e-6)


@pytest.mark.parametrize('enlarge', [1, 2, 8])
def test_memory_of_value_and_gradient_stays_below_one_full_map(enlarge):
    batch, height, width, classes = 8, 512, 1024, 19
    shape = (batch, height // enlarge, width // enlarge, classes)
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    label = jax.ShapeDtypeStruct((batch, height, width), jnp.uint8)

    def loss(z, y):
        return scores.pixel_cross_entropy(z, y, convention='align_corners').mean()

    compiled = jax.jit(jax.value_and_grad(loss)).lower(z, label).compile()
    full = batch * height * width * classes * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * full


def test_a_sharded_batch_is_never_gathered():
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    z, label = draw(7, (4, 8, 6), 5, (16, 12))

    def loss(z, y):
        return scores.pixel_cross_entropy(z, y, convention='half_pixel').mean()

    step = jax.jit(jax.value_and_grad(loss), in_shardings=(rows, rows))
    text = step.lower(z, label).compile().as_text()
    assert 'all-reduce' in text and 'all-gather' not in text and 'all-to-all' not in text
    for a, b in zip(step(z, label), jax.value_and_grad(loss)(z, label)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for decide in (whole_grid, own_places):
        text = jax.jit(decide, in_shardings=rows).lower(z).compile().as_text()
        assert 'all-' not in text


def whole_grid(z):
    return scores.arg_max(z, (16, 12), convention='half_pixel')


def own_places(z):
    return scores.arg_max_at(z, jnp.linspace(0, 7, 16), jnp.linspace(0, 5, 12))


def test_decisions_export_with_an_open_batch():
    (b,) = jax.export.symbolic_shape('b')
    z, _ = draw(11, (3, 8, 6), 5, (1, 1))
    for decide in (whole_grid, own_places):
        shape = jax.ShapeDtypeStruct((b, 8, 6, 5), jnp.float32)
        exported = jax.export.export(jax.jit(decide))(shape)
        np.testing.assert_array_equal(exported.call(z), decide(z))


@pytest.mark.parametrize('convention', CONVENTIONS)
@pytest.mark.parametrize('size', [(6, 5), (12, 10), (13, 7)])
def test_arg_max_equals_the_full_size_form(monkeypatch, convention, size):
    monkeypatch.setattr(scores, '_rows_per_chunk', lambda *_: 4)
    z, _ = draw(8, (2, 6, 5), 9, size)
    full = np.asarray(resize.bilinear(z, size, convention=convention))
    for competing in (None, 6):
        got = np.asarray(scores.arg_max(z, size, convention=convention, num_classes=competing))
        assert got.dtype == np.uint8 and got.shape == (2, *size)
        chosen = np.take_along_axis(full, got[..., None].astype(int), -1)[..., 0]
        np.testing.assert_allclose(chosen, full[..., :competing].max(-1), atol=1e-5)


def test_many_classes_need_sixteen_bits():
    z = jnp.zeros((1, 2, 2, 300)).at[..., 299].set(1)
    assert scores.arg_max(z, (4, 4), convention='half_pixel').dtype == jnp.uint16
    found = scores.arg_max_at(z, jnp.arange(2.0), jnp.arange(2.0))
    assert found.dtype == jnp.uint16 and (found == 299).all()


def test_arg_max_at_reads_what_arg_max_reads(monkeypatch):
    monkeypatch.setattr(scores, '_rows_per_chunk', lambda *_: 5)
    z, _ = draw(9, (2, 6, 4), 9, (1, 1))
    size = (12, 8)
    rows, columns = ((jnp.arange(2 * n) + 0.5) / 2 - 0.5 for n in (6, 4))
    want = scores.arg_max(z, size, convention='half_pixel')
    assert (scores.arg_max_at(z, rows, columns) == want).all()
    own = jnp.stack([rows, rows[::-1]])
    got = scores.arg_max_at(z, own, columns)
    assert (got[0] == want[0]).all() and (got[1] == want[1, ::-1]).all()


def test_arg_max_at_clamps_and_limits_classes():
    z, _ = draw(10, (1, 3, 3), 6, (1, 1))
    got = scores.arg_max_at(z, jnp.array([-5.0, 1.0, 9.0]), jnp.array([-1.0, 1.0, 2.5]), 4)
    assert (got == jnp.argmax(z[..., :4], -1)).all()
