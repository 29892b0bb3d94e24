"""Losses and decisions on class scores at full size, without the full-size float32 map.

[B, H, W, K] float32 is the largest array of a segmentation step (a 512x1024 view with 19 classes:
38 MiB an image, several times over with its gradient). The functions here enlarge the scores a
block of output rows at a time and keep only one number a pixel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dsrl_jax.ops import resize

_CHUNK_BYTES = 16 * 2**20  # float32 of one block of rows
_MOST_CHUNKS = 32  # a large batch gets larger blocks instead of a longer loop
_FEW_CLASSES = 32  # whose sums are written out class by class
_FEW_CHUNKS = 4  # a single image's blocks stand in the program one by one, without a loop


def pixel_cross_entropy(scores, label, *, convention, ignore=255):
    """Cross entropy a pixel: scores [B, h, w, K], label [B, H, W] integer -> float32 [B, H, W].

    logsumexp(z) - z[label] of the scores z enlarged bilinearly to the label's size, computed in
    float32; 0 with zero gradient where label == ignore, NaN at any other label outside 0..K-1.
    """
    if scores.shape[1:3] == label.shape[1:3]:
        return _cross_entropy(scores, label, ignore)
    return _cross_entropy_by_rows(scores, label, str(convention), ignore)


def arg_max(scores, size, *, convention, num_classes=None):
    """Class of the largest score: [B, h, w, K] -> [B, *size] uint8 (uint16 if K > 255).

    The scores are enlarged bilinearly; only the first num_classes outputs compete.
    """
    scores = scores[..., :num_classes]
    if scores.shape[1:3] == tuple(size):
        return _decide(scores)
    starts, weights = _blocks(scores.shape, size, convention)

    def chunk(operands):
        start, weight = operands
        block = lax.dynamic_slice_in_dim(scores, start, weight.shape[1], axis=1)
        return _decide(_enlarge(block, weight, size[1], convention))

    if len(starts) <= _FEW_CHUNKS:
        blocks = jnp.stack([chunk(operands) for operands in zip(starts, weights)])
    else:
        blocks = lax.map(chunk, (starts, weights))
    return _join(blocks, size[0])


def arg_max_at(scores, rows, columns, num_classes=None):
    """Class of the largest score at a grid of places: [B, h, w, K] -> [B, H', W'] uint8 or uint16.

    rows [H'] or [B, H'] and columns [W'] or [B, W'] are real-valued coordinates in the scores'
    grid (0 = centre of the first pixel), read bilinearly, clamped at the edges. Not for gradients.
    """
    scores = scores[..., :num_classes]
    batch, h, w, _ = scores.shape
    rows = jnp.broadcast_to(jnp.atleast_2d(rows), (batch, jnp.shape(rows)[-1]))
    columns = jnp.broadcast_to(jnp.atleast_2d(columns), (batch, jnp.shape(columns)[-1]))
    height = rows.shape[1]
    rows = _split(rows, _rows_per_chunk(batch, height, columns.shape[1], scores.shape[-1]), 0)

    def one(image, row, column):
        top, bottom, part = _neighbours(row, h)
        image = _mix(image[top], image[bottom], part[:, None, None])
        left, right, part = _neighbours(column, w)
        return _decide(_mix(image[:, left], image[:, right], part[None, :, None]))

    return _join(lax.map(lambda row: jax.vmap(one)(scores, row, columns), rows), height)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cross_entropy_by_rows(scores, label, convention, ignore):
    return _by_rows_forward(scores, label, convention, ignore)[0]


def _by_rows_forward(scores, label, convention, ignore):
    height, width = label.shape[1:]
    starts, weights = _blocks(scores.shape, (height, width), convention)

    def chunk(operands):
        start, weight, label = operands
        block = lax.dynamic_slice_in_dim(scores, start, weight.shape[1], axis=1)
        z = _enlarge(block, weight, width, convention)
        loss, (_, _, lse) = _cross_entropy_forward(z, label, ignore)
        return loss, lse

    loss, lse = lax.map(chunk, (starts, weights, _split(label, weights.shape[1], ignore)))
    return _join(loss, height), (scores, label, lse)


def _by_rows_backward(convention, ignore, residuals, cotangent):
    # Written out because the transposed loop would add one map of the scores' size for each block;
    # here each block adds its few rows in place.
    scores, label, lse = residuals
    width = label.shape[2]
    starts, weights = _blocks(scores.shape, label.shape[1:], convention)

    def chunk(gradient, operands):
        start, weight, *rest = operands
        span = weight.shape[1]
        block = lax.dynamic_slice_in_dim(scores, start, span, axis=1)
        z, pull = jax.vjp(lambda block: _enlarge(block, weight, width, convention), block)
        label, lse, cotangent = rest
        (piece,) = pull(_cross_entropy_backward(ignore, (z, label, lse), cotangent)[0])
        piece += lax.dynamic_slice_in_dim(gradient, start, span, axis=1)
        return lax.dynamic_update_slice_in_dim(gradient, piece, start, axis=1), None

    rows = weights.shape[1]
    operands = starts, weights, _split(label, rows, ignore), lse, _split(cotangent, rows, 0)
    return lax.scan(chunk, jnp.zeros_like(scores), operands)[0], None


_cross_entropy_by_rows.defvjp(_by_rows_forward, _by_rows_backward)


def _blocks(shape, size, convention):
    """First source row [count] and row weights [count, T, S] of each block of T output rows.

    A block reads S source rows; zero weights fill the last one up.
    """
    batch, h, _, classes = shape
    height, width = size
    rows = _rows_per_chunk(batch, height, width, classes)
    count = -(-height // rows)
    matrix = resize.bilinear_matrix(h, height, convention=convention)
    matrix = np.pad(matrix, ((0, count * rows - height), (0, 0))).reshape(count, rows, h)
    read = matrix.any(axis=1)
    first, last = read.argmax(axis=1), h - 1 - read[:, ::-1].argmax(axis=1)
    span = np.max(last - first) + 1
    starts = np.minimum(first, h - span)
    weights = [m[:, start : start + span] for m, start in zip(matrix, starts)]
    return jnp.asarray(starts, jnp.int32), jnp.asarray(np.stack(weights), jnp.float32)


def _enlarge(block, weight, width, convention):
    """Source rows to output rows: [B, S, w, K], weight [T, S] -> [B, T, width, K] float32."""
    block = resize.bilinear_axis(block.astype(jnp.float32), 2, width, convention=convention)
    batch, span, _, classes = block.shape
    weight = jnp.broadcast_to(weight, (batch, *weight.shape))
    with jax.named_scope('resize'):
        flat = block.reshape(batch, span, width * classes)
        z = jnp.matmul(weight, flat, precision=lax.Precision.HIGHEST)
    return z.reshape(batch, weight.shape[1], width, classes)


def _rows_per_chunk(batch, height, width, classes):
    batch = batch if isinstance(batch, int) else 1  # an exported function may leave it open
    fit = _CHUNK_BYTES // (4 * batch * width * classes)
    return min(height, max(1, fit, -(-height // _MOST_CHUNKS)))


def _split(x, rows, fill):
    """Blocks of rows, the last filled up: [B, H, ...] -> [count, B, rows, ...]."""
    batch, height, *rest = x.shape
    count = -(-height // rows)
    pads = [(0, 0), (0, count * rows - height), *((0, 0) for _ in rest)]
    x = jnp.pad(x, pads, constant_values=fill)
    return jnp.moveaxis(x.reshape(batch, count, rows, *rest), 1, 0)


def _join(blocks, height):
    """[count, B, T, W] -> [B, height, W]."""
    count, batch, rows, width = blocks.shape
    return jnp.moveaxis(blocks, 0, 1).reshape(batch, count * rows, width)[:, :height]


def _decide(scores):
    kind = jnp.uint8 if scores.shape[-1] <= 255 else jnp.uint16
    return jnp.argmax(scores, axis=-1).astype(kind)


def _mix(a, b, part):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return a + (b - a) * part


def _neighbours(at, n):
    """The two pixels about each coordinate and the weight of the second."""
    at = jnp.clip(at.astype(jnp.float32), 0, n - 1)
    first = jnp.floor(at)
    low = first.astype(jnp.int32)
    return low, jnp.minimum(low + 1, n - 1), at - first


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cross_entropy(scores, label, ignore):
    return _cross_entropy_forward(scores, label, ignore)[0]


def _cross_entropy_forward(scores, label, ignore):
    classes = scores.shape[-1]
    lse, picked = (_sums_of_few if classes <= _FEW_CLASSES else _sums)(scores, label)
    legal = (label >= 0) & (label < classes)
    loss = jnp.where(legal, lse - picked, jnp.nan)
    return jnp.where(label == ignore, 0, loss), (scores, label, lse)


def _sums_of_few(scores, label):
    """logsumexp of a pixel's scores and the label's score: float32 [B, H, W] both.

    Class by class: a compiler makes one loop over the pixels of it, which reads the scores once.
    """
    each = [scores[..., k].astype(jnp.float32) for k in range(scores.shape[-1])]
    top, label = functools.reduce(jnp.maximum, each), label.astype(jnp.int32)
    lse = top + jnp.log(sum(jnp.exp(z - top) for z in each))
    picked = sum(jnp.where(label == k, z, 0) for k, z in enumerate(each))
    # One kernel for both, and neither anew for each score in the gradient.
    return lax.optimization_barrier((lse, picked))


def _sums(scores, label):
    """The same by reductions, for any number of classes."""
    z = scores.astype(jnp.float32)
    # Barriers: a GPU compiler would otherwise fuse these short reductions into whoever reads
    # them and compute them anew for each of the K scores of a pixel.
    top = lax.optimization_barrier(jnp.max(z, axis=-1))
    # Compare and sum, not a gather: one loop over the scores gives both sums.
    total, picked = lax.reduce(
        (jnp.exp(z - top[..., None]), jnp.where(_hot(label, scores.shape[-1]), z, 0)),
        (jnp.zeros((), z.dtype),) * 2,
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        (z.ndim - 1,),
    )
    return lax.optimization_barrier(top + jnp.log(total)), picked


def _cross_entropy_backward(ignore, residuals, cotangent):
    # The closed form: autodiff would keep exp(z - max) of every score in float32.
    scores, label, lse = residuals
    cotangent = jnp.where(label == ignore, 0, cotangent)[..., None]
    soft = jnp.exp(scores.astype(jnp.float32) - lse[..., None])
    gradient = (soft - _hot(label, scores.shape[-1])) * cotangent
    return gradient.astype(scores.dtype), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _hot(label, classes):
    return label[..., None].astype(jnp.int32) == jnp.arange(classes).reshape(*[1] * label.ndim, -1)
