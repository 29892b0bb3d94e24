"""Training views on the device: random scale, crop, flip and colour in programs of one shape.

The arithmetic is that of Pillow, which the loader uses: the same filter, its two passes with a
rounding after each, the same rounding of colours. Sizes and places are numbers in the program, so
that every draw runs the same one; an output pixel gathers the few source pixels under its filter.
Pixel centres lie at half integers.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LUMA = (0.299, 0.587, 0.114)
_LUMA_16 = (19595, 38470, 7471)  # the same in 1/65536, as Pillow sums them for a grey image
_IGNORE = 255


class Draw(NamedTuple):
    """Where the views of a batch lie; view pixel x shows pixel x + shift of the scaled image."""

    size: jax.Array  # int32 [B, 2]: height and width of the image before scaling
    scaled: jax.Array  # int32 [B, 2]: and after it
    shift: jax.Array  # int32 [B, 2]: of rows and columns; negative where the image is placed
    flip: jax.Array  # bool [B]
    color: jax.Array  # float32 [B, 3]: factors on brightness, contrast and saturation


def draw(key, size, wanted, *, scale_range=(1.0, 1.0), flip=False, color=0.0) -> Draw:
    """Random places of views of `wanted` (height, width) in images of `size` int32 [B, 2].

    Scale log-uniform in `scale_range`, every place equally likely, a flip with probability 1/2,
    color factors uniform in 1 +- `color`.
    """
    chance = jax.random.uniform(key, (size.shape[0], 7))
    low, high = (math.log(limit) for limit in scale_range)
    factor = jnp.exp(low + (high - low) * chance[:, :1])
    scaled = jnp.maximum(jnp.round(size * factor).astype(jnp.int32), 1)
    slack = scaled - jnp.array(wanted, jnp.int32)[None]
    room = jnp.abs(slack)
    place = jnp.minimum((chance[:, 1:3] * (room + 1)).astype(jnp.int32), room)
    flips = chance[:, 3] < (0.5 if flip else 0.0)
    factors = 1 + color * (2 * chance[:, 4:] - 1)
    return Draw(size, scaled, jnp.sign(slack) * place, flips, factors)


def taps(sizes, scale_range) -> int:
    """Most source pixels along one axis under the filter, for any draw from images of `sizes`."""
    shrunk = (n / max(math.floor(n * scale_range[0]), 1) for size in sizes for n in size)
    return math.ceil(2 * max(1.0, *shrunk))


def cut(image, label, where: Draw, wanted, *, taps, fill, color=True) -> dict:
    """image uint8 [B,H,W,3], label uint8 [B,H,W] -> target [B,sH,sW,3], label and mask [B,sH,sW].

    `wanted` is (sH, sW). Image: antialiased bilinear of at most `taps` pixels an axis; label:
    nearest; around the image colour `fill`, label 255, mask False. `color` False leaves the
    factors of the draw alone.
    """
    with jax.named_scope('resize'):
        rows = _place(where, 0, wanted[0], jnp.zeros_like(where.flip))
        columns = _place(where, 1, wanted[1], where.flip)
        target = _filter(image, columns, where.size[:, 1], taps, axis=1)
        target = _filter(target, rows, where.size[:, 0], taps, axis=0)
        label = _pick(_pick(label, rows.source, axis=0), columns.source, axis=1)
    mask = rows.inside[:, :, None] & columns.inside[:, None, :]
    if color:
        target = adjust_color(target, mask, where.color)
    surround = jnp.array(fill, jnp.uint8)[None, None, None]
    return {
        'target': jnp.where(mask[..., None], target, surround),
        'label': jnp.where(mask, label, jnp.uint8(_IGNORE)),
        'mask': mask,
    }


def adjust_color(image, mask, factors):
    """uint8 [B,H,W,3] with brightness, contrast, saturation changed by `factors` float32 [B,3].

    Contrast turns about the mean grey of the pixels in `mask` [B,H,W], saturation about each
    pixel's grey. All three are linear: one rounding at the end.
    """
    wide = image.astype(jnp.int32)
    grey = (sum(weight * wide[..., i] for i, weight in enumerate(_LUMA_16)) + 2**15) >> 16
    # Whole numbers along a row, then floats: exact as far as it matters, and no overflow.
    total = jnp.sum(jnp.where(mask, grey, 0), axis=2).astype(jnp.float32).sum(1)
    mean = total / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    x = image.astype(jnp.float32)
    luma = sum(weight * x[..., i : i + 1] for i, weight in enumerate(_LUMA))
    x = brightness * contrast * (saturation * x + (1 - saturation) * luma)
    x = x + (1 - contrast) * brightness * mean[:, None, None, None]
    return _round(x)


class _Axis(NamedTuple):
    """One axis of the views, [B, L] each: what its pixels show."""

    inside: jax.Array  # bool: a real pixel
    source: jax.Array  # int32: the source pixel that holds its centre
    part: jax.Array  # float32: where in that pixel, 0..1
    reach: jax.Array  # float32 [B, 1]: of the filter, in source pixels


def _place(where, axis, length, flip):
    size, scaled, shift = (v[:, axis, None] for v in (where.size, where.scaled, where.shift))
    first = jnp.maximum(-shift, 0)
    last = jnp.minimum(scaled - shift, length) - 1
    at = jnp.arange(length)[None]
    at = jnp.where(flip[:, None], first + last - at, at) + shift
    # In whole numbers, since 32-bit floats leave an error of 1/1000 pixel in a large image.
    centre = (2 * at + 1) * size
    source = centre // (2 * scaled)
    part = (centre - source * 2 * scaled) / (2 * scaled).astype(jnp.float32)
    inside = (at >= 0) & (at < scaled)
    reach = jnp.maximum(size / scaled.astype(jnp.float32), 1.0)
    return _Axis(inside, jnp.clip(source, 0, size - 1), part, reach)


def _filter(image, axis_of, size, taps, axis):
    """The triangle of the axis' reach over `image` uint8 [B,H,W,3], one axis of it; rounded."""
    first = jnp.floor(axis_of.part - axis_of.reach - 0.5).astype(jnp.int32) + 1
    total = norm = 0
    for offset in (first + tap for tap in range(taps)):
        index = axis_of.source + offset
        weight = 1 - jnp.abs(offset + 0.5 - axis_of.part) / axis_of.reach
        weight = jnp.where((index >= 0) & (index < size[:, None]), jnp.maximum(weight, 0), 0)
        pixels = _pick(image, jnp.clip(index, 0, size[:, None] - 1), axis)
        spread = jnp.expand_dims(weight, (2, 3) if axis == 0 else (1, 3))
        total = total + spread * pixels
        norm = norm + spread
    # Kept as it is: fused into its readers it would be gathered anew by each, taps times over.
    return jax.lax.optimization_barrier(_round(total / norm))


def _pick(image, index, axis):
    """Rows (axis 0) or columns (1) `index` [B, L] of each image of the batch."""
    return jax.vmap(lambda x, i: jnp.take(x, i, axis=axis, mode='clip'))(image, index)


def _round(x):
    return jnp.floor(jnp.clip(x, 0, 255) + 0.5).astype(jnp.uint8)
