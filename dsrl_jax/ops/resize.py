"""Every change of resolution: torch's bilinear and nearest, PIL's antialiased shrink, pooling.

All bodies run in `jax.named_scope('resize')` or `('pool')`: the MAC counter leaves them out.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def bilinear(x, size, *, convention):
    """Bilinear resize without antialiasing: [B, h, w, C] -> [B, *size, C], dtype of x.

    convention 'half_pixel' (torch align_corners=False): src = max(0, (dst + 0.5) in/out - 0.5);
    'align_corners': src = dst (in - 1)/(out - 1), 0 where out = 1. Far edge clamped. Computed
    in float32. ValueError on another convention.
    """
    matrix = functools.partial(bilinear_matrix, convention=convention)
    with jax.named_scope('resize'):
        return _along_both(x, size, matrix)


def bilinear_axis(x, axis, out, *, convention):
    """`bilinear` along one axis of any float array, in its own dtype."""
    with jax.named_scope('resize'):
        return _apply(bilinear_matrix(x.shape[axis], out, convention=convention), x, axis)


def bilinear_matrix(n, out, *, convention):
    """The weights of `bilinear` along one axis: float64 numpy [out, n], rows sum to 1."""
    at = np.arange(out)
    if convention == 'align_corners':
        at = at * (n - 1) / max(out - 1, 1)
    elif convention == 'half_pixel':
        at = np.clip((at + 0.5) * n / out - 0.5, 0, n - 1)
    else:
        raise ValueError(f'convention {convention!r}: expected half_pixel or align_corners')
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None]))


def nearest(x, size):
    """Nearest resize, src = floor((dst + 0.5) in/out): [B, h, w, C] -> [B, *size, C], any dtype."""
    with jax.named_scope('resize'):
        for axis, out in zip((1, 2), size):
            x = _nearest_axis(x, axis, out)
        return x


def shrink(x, factor):
    """Antialiased bilinear shrink by an integer: [B, sH, sW, C] -> [B, H, W, C] float.

    PIL's triangle filter: weight max(0, 1 - |x - centre|/s) about centre (dst + 0.5) s of pixel
    centres x, the weights inside the image normalised to 1. factor 1 = identity. ValueError if a
    side is not a multiple of the factor.
    """
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f'shrink by {factor}: {x.shape[1]}x{x.shape[2]} is not a multiple of it')
    if factor == 1:
        return x
    with jax.named_scope('resize'):
        return _along_both(x, (x.shape[1] // factor, x.shape[2] // factor), _triangle)


class Color(NamedTuple):
    """How a network wants its pixels; `config.data`, which has these fields too, serves as one."""

    mean: tuple[float, ...]  # of 0..1, in the order of the channels
    std: tuple[float, ...]
    order: str = 'rgb'  # or 'bgr'


# The picture that the SR branch gives, whatever the network's own preprocessing: the weight of its
# error means the same for all.
SR_COLOR = Color((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def small_input(target, factor, color):
    """The network's input from the large view: uint8 [B, sH, sW, 3] -> float32 [B, H, W, 3].

    The RGB view is shrunk by the factor, then normalised as `color` (Color) says.
    """
    return normalise(shrink(target.astype(jnp.float32), factor), color)


def normalise(image, color):
    """(image/255 - mean)/std: RGB [B, H, W, 3] of 0..255 (uint8 or float) -> float32 [B, H, W, 3].

    The channels come out in the order of `color` (Color).
    """
    mean, std = _color(color)
    return (_ordered(image, color).astype(jnp.float32) / 255 - mean) / std


def denormalise(x, color):
    """The inverse of `normalise`, clipped: [B, H, W, 3] -> RGB of 0..1, float32."""
    mean, std = _color(color)
    return _ordered(jnp.clip(x.astype(jnp.float32) * std + mean, 0, 1), color)


def _color(color):
    return (np.asarray(v, np.float32).reshape(1, 1, 1, -1) for v in (color.mean, color.std))


def _ordered(image, color):
    return image[..., ::-1] if color.order == 'bgr' else image


def avg_pool(x, window, stride, padding=0):
    """Mean over square windows, zeros of the padding counted: [B, H, W, C] -> [B, H', W', C].

    padding is a number or ((top, bottom), (left, right)), as in torch's count_include_pad.
    """
    with jax.named_scope('pool'):
        y = _wide(x)
        for axis, pads in zip((1, 2), _pads(padding)):
            y = _apply(_pool_matrix(y.shape[axis], window, stride, pads), y, axis)
        return y.astype(x.dtype)


def max_pool(x, window, stride, padding=0):
    """Maximum over square windows, padded with -inf: [B, H, W, C] -> [B, H', W', C].

    padding is a number or ((top, bottom), (left, right)); more at the end gives torch's ceil mode.
    Of equal values the first in row order takes the gradient, as in torch.
    """
    with jax.named_scope('pool'):
        # Columns first, so that the first of equal values is the first in row order. Shifted
        # slices, not reduce_window: its gradient (select-and-scatter) is not deterministic.
        for axis in (2, 1):
            slices = _windows(x, axis, window, stride, _pads(padding)[axis - 1], -jnp.inf)
            x = functools.reduce(_larger, slices)
        return x


def adaptive_avg_pool(x, size):
    """Mean over rows floor(i in/out) .. ceil((i + 1) in/out) - 1: [B, H, W, C] -> [B, *size, C]."""
    with jax.named_scope('pool'):
        return _along_both(x, size, _adaptive)


def pool_to(x, size):
    """Bring a map to a grid: [B, h, w, C] -> [B, *size, C].

    Mean over cells along an axis that is finer than the grid (overlapping by a pixel where the
    grid does not divide it), bilinear (half-pixel) where it is coarser.
    """
    finer = tuple(min(n, out) for n, out in zip(x.shape[1:3], size))
    x = adaptive_avg_pool(x, finer)
    return x if finer == tuple(size) else bilinear(x, size, convention='half_pixel')


def _along_both(x, size, matrix):
    """Apply matrix(in, out), a dense numpy [out, in], along rows and columns, in float32."""
    y = _wide(x)
    # The axis that shrinks most goes first: fewer elements for the other one.
    for axis in sorted((1, 2), key=lambda axis: size[axis - 1] / y.shape[axis]):
        y = _apply(matrix(y.shape[axis], size[axis - 1]), y, axis)
    return y.astype(x.dtype)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _apply(matrix, x, axis):
    """The [out, in] matrix along one axis; the gradient is the transposed matrix, applied alike.

    Autodiff would pad and add once a slice instead: a fifth more programs in a whole network.
    """
    apply = jax.custom_vjp(functools.partial(_product, matrix, axis=axis))
    apply.defvjp(
        lambda x: (_product(matrix, x, axis), None),
        lambda _, dy: (_product(matrix.T, dy, axis),),
    )
    return apply(x)


def _product(matrix, x, axis):
    """The [out, in] matrix along one axis.

    With out/in = r/q in lowest terms, output r*i + p reads inputs near q*i: a few weighted shifted
    slices a phase p and an interleave replace the dense product, which at 256x512 -> 512x1024 and
    19 channels costs more than a small network, and the gather, whose gradient is a scatter.
    Large whole factors weigh all phases of a slice at once (`_blockwise`); other ratios without a
    short pattern take the dense product.
    """
    out, n = matrix.shape
    if n == out and np.array_equal(matrix, np.eye(n)):
        return x
    blocks = math.gcd(n, out)
    r, q = out // blocks, n // blocks
    if r == 1 and np.allclose(matrix, np.kron(np.eye(out), np.full((1, q), 1 / q))):
        if q > 4:
            cells = x.reshape(*x.shape[:axis], out, q, *x.shape[axis + 1 :])
            return jnp.mean(cells, axis=axis + 1)
        # Sums of slices join the loop that makes x; a reduction would have it written out first.
        # Of x itself, not of x reshaped: a loop that also read x pixel by pixel (the gradient of a
        # tanh) may on a CPU be written over x while its cells are still read (jax 0.10, 0.12).
        wide = _wide(x)
        parts = (lax.slice_in_dim(wide, i, n, q, axis) for i in range(q))
        return (functools.reduce(jnp.add, parts) / q).astype(x.dtype)
    row, column = np.nonzero(matrix)
    phase, tap = row % r, column - row // r * q
    if len(set(zip(phase, tap))) > 24:
        return (_blockwise if 1 in (r, q) else _dense)(matrix, x, axis)
    weights = np.zeros((r, np.ptp(tap) + 1, blocks))
    weights[phase, tap - tap.min(), row // r] = matrix[row, column]
    low, high = max(0, -tap.min()), max(0, tap.max() + 1 - q)
    padded = jnp.pad(x, [(low, high) if a == axis else (0, 0) for a in range(x.ndim)])
    column_shape = [blocks if a == axis else 1 for a in range(x.ndim)]
    phases = []
    for p in range(r):
        total = 0
        # An output that reads nothing (an input that a pool leaves out, transposed) is a zero.
        taps = np.flatnonzero(weights[p].any(axis=1))
        for t in taps if len(taps) else (0,):
            start = int(t + tap.min() + low)
            part = lax.slice_in_dim(padded, start, start + (blocks - 1) * q + 1, q, axis)
            total = total + part * weights[p, t].astype(x.dtype).reshape(column_shape)
        phases.append(total)
    if r == 1:
        return phases[0]
    return jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], out, *x.shape[axis + 1 :])


def _blockwise(matrix, x, axis):
    """`_product` for out = r n or n = r out: a few blocks of inputs for each block of outputs.

    Enlarging by 16, an output reads two or three inputs; the dense product reads them all.
    """
    out, n = matrix.shape
    blocks = math.gcd(n, out)
    r, q = out // blocks, n // blocks
    parts = matrix.reshape(blocks, r, blocks, q)
    row, column = np.nonzero(parts.any(axis=(1, 3)))
    offsets = np.unique(column - row)
    low, high = max(0, -offsets.min()), max(0, offsets.max())
    split = x.reshape(*x.shape[:axis], blocks, q, *x.shape[axis + 1 :])
    split = jnp.pad(split, [(low, high) if a == axis else (0, 0) for a in range(split.ndim)])
    total = 0
    for offset in offsets:
        weight = np.zeros((blocks, r, q))
        for block in range(max(0, -offset), blocks - max(0, offset)):
            weight[block] = parts[block, :, block + offset]
        shape = [1] * x.ndim + [1]
        shape[axis : axis + 2] = blocks, r * q
        part = lax.slice_in_dim(split, low + offset, low + offset + blocks, axis=axis)
        part = part * weight.astype(x.dtype).reshape(shape)
        total = total + (part if q == 1 else jnp.sum(part, axis + 1))
    return total.reshape(*x.shape[:axis], out, *x.shape[axis + 1 :])


def _dense(matrix, x, axis):
    # Full precision: the TF32 of a GPU's default would cost three digits.
    matrix = jnp.asarray(matrix, x.dtype)
    y = lax.dot_general(x, matrix, (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, -1, axis)


def _triangle(n, out):
    factor = n / out
    centre = (np.arange(out)[:, None] + 0.5) * factor
    weight = np.maximum(0, 1 - np.abs(np.arange(n)[None] + 0.5 - centre) / factor)
    return weight / weight.sum(1, keepdims=True)


def _adaptive(n, out):
    i = np.arange(out)
    low, high = i * n // out, -(-(i + 1) * n // out)
    at = np.arange(n)[None]
    inside = (at >= low[:, None]) & (at < high[:, None])
    return inside / inside.sum(1, keepdims=True)


def _pool_matrix(n, window, stride, pads):
    low, high = pads
    first = np.arange((n + low + high - window) // stride + 1)[:, None] * stride - low
    at = np.arange(n)[None]
    return ((at >= first) & (at < first + window)) / window


def _nearest_axis(x, axis, out):
    n = x.shape[axis]
    if n == out:
        return x
    if out % n == 0:
        return jnp.repeat(x, out // n, axis=axis)
    index = ((2 * np.arange(out) + 1) * n) // (2 * out)
    return jnp.take(x, index, axis=axis)


def _windows(x, axis, window, stride, pads, fill):
    """The `window` shifted and strided slices of the padded axis."""
    low, high = pads
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), config) if low or high else x
    out = (padded.shape[axis] - window) // stride + 1
    return [
        lax.slice_in_dim(padded, i, i + (out - 1) * stride + 1, stride, axis) for i in range(window)
    ]


def _larger(a, b):
    # A select, so that the first of equal values gets the whole gradient; NaN goes through.
    return jnp.where((b > a) | (b != b), b, a)


def _pads(padding):
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
