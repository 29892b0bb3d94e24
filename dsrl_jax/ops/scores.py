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


def pixel_cross_entropy(scores, label, *, convention, ignore=255):
    """Cross entropy a pixel: scores [B, h, w, K], label [B, H, W] integer -> float32 [B, H, W].

    logsumexp(z) - z[label] of the scores z enlarged bilinearly to the label's size, computed in
    float32; 0 with zero gradient where label == ignore, NaN at any other label outside 0..K-1.
    """
    if scores.shape[1:3] == label.shape[1:3]:
        return _cross_entropy(scores, label, ignore)
    chunk = functools.partial(_cross_entropy, ignore=ignore)
    return _by_rows(chunk, scores, label.shape[1:3], convention, (label, ignore))


def arg_max(scores, size, *, convention, num_classes=None):
    """Class of the largest score: [B, h, w, K] -> [B, *size] uint8 (uint16 if K > 255).

    The scores are enlarged bilinearly; only the first num_classes outputs compete.
    """
    scores = scores[..., :num_classes]
    if scores.shape[1:3] == tuple(size):
        return _decide(scores)
    return _by_rows(_decide, scores, tuple(size), convention)


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
    step = _rows_per_chunk(batch, height, columns.shape[1], scores.shape[-1])
    count = -(-height // step)
    rows = jnp.pad(rows, ((0, 0), (0, count * step - height))).reshape(batch, count, step)

    def one(image, row, column):
        top, bottom, part = _neighbours(row, h)
        image = _mix(image[top], image[bottom], part[:, None, None])
        left, right, part = _neighbours(column, w)
        return _decide(_mix(image[:, left], image[:, right], part[None, :, None]))

    found = lax.map(lambda row: jax.vmap(one)(scores, row, columns), jnp.moveaxis(rows, 1, 0))
    return _join(found, height)


def _by_rows(function, scores, size, convention, extra=None):
    """function(z [B, T, W, K] float32[, extra rows]) over blocks of T output rows, joined.

    Blocks of source rows with their neighbours are stacked before the loop: reading them from the
    whole map inside it would make the backward pass add one whole map a block.
    """
    batch, h, _, classes = scores.shape
    height, width = size
    rows = _rows_per_chunk(batch, height, width, classes)
    step = max(1, round(rows * h / height))  # source rows a block
    rows = max(1, step * height // h)
    count = -(-height // rows)
    matrix = resize.bilinear_matrix(h, height, convention=convention)
    at, source = np.nonzero(matrix)
    offset = source - at // rows * step
    low, high = max(0, -offset.min()), max(0, offset.max() + 1 - step)
    weights = np.zeros((count, rows, low + step + high), np.float32)
    weights[at // rows, at % rows, offset + low] = matrix[at, source]

    end = max(0, count * step + high - h)
    padded = jnp.pad(scores, ((0, 0), (low, end), (0, 0), (0, 0)))
    before = [_stack(padded, i, 1, step, count) for i in range(low)]
    after = [_stack(padded, low + step + i, 1, step, count) for i in range(high)]
    blocks = jnp.concatenate([*before, _stack(padded, low, step, step, count), *after], axis=2)

    @jax.checkpoint
    def chunk(operands):
        block, weight, *rest = operands
        block = resize.bilinear_axis(block.astype(jnp.float32), 2, width, convention=convention)
        flat = block.reshape(*block.shape[:2], width * classes)
        weight = jnp.broadcast_to(weight, (batch, *weight.shape))
        z = jnp.matmul(weight, flat, precision=lax.Precision.HIGHEST)
        return function(z.reshape(batch, rows, width, classes), *rest)

    operands = [blocks, jnp.asarray(weights)]
    if extra is not None:
        value, fill = extra
        value = jnp.pad(value, ((0, 0), (0, count * rows - height), (0, 0)), constant_values=fill)
        operands.append(_stack(value, 0, rows, rows, count))
    return _join(lax.map(chunk, operands), height)


def _rows_per_chunk(batch, height, width, classes):
    fit = _CHUNK_BYTES // (4 * batch * width * classes)
    return min(height, max(1, fit, -(-height // _MOST_CHUNKS)))


def _stack(x, start, size, step, count):
    """Rows start.. of each of count blocks `step` apart: [B, H, ...] -> [count, B, size, ...]."""
    if size == step:
        x = x[:, start : start + count * step]
    else:
        x = x[:, start : start + (count - 1) * step + 1 : step]
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)


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
    z = scores.astype(jnp.float32)
    # Barriers: a GPU compiler would otherwise fuse these short reductions into whoever reads
    # them and compute them anew for each of the K scores of a pixel.
    top = lax.optimization_barrier(jnp.max(z, axis=-1))
    total = jnp.sum(jnp.exp(z - top[..., None]), axis=-1)
    lse = lax.optimization_barrier(top + jnp.log(total))
    # Compare and sum, not a gather: it fuses with the reduction above and needs no scatter back.
    picked = jnp.sum(jnp.where(_hot(label, scores.shape[-1]), z, 0), axis=-1)
    legal = (label >= 0) & (label < scores.shape[-1])
    loss = jnp.where(legal, lse - picked, jnp.nan)
    return jnp.where(label == ignore, 0, loss), (scores, label, lse)


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
