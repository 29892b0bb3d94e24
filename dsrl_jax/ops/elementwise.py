"""Batch normalisation and PReLU on [B, H, W, C] with their gradients in closed form.

Autodiff gives the same numbers in several times the programs to compile and passes over memory.
"""

import functools

import jax
import jax.numpy as jnp

from dsrl_jax.ops.pixels import pixel_sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise(x, scale, bias, shift, epsilon, where):
    """Batch norm in training: y, and the mean and biased variance over all but the last axis.

    Var = E[(x-s)^2] - (E[x]-s)^2 reads x once; the running mean s keeps the difference from
    cancelling. The gradient is the closed form, in one more pass; mean and variance carry none.
    `where` is the platform that runs it (convolution.PLATFORMS).
    """
    return _normalise_forward(x, scale, bias, shift, epsilon, where)[0]


def _normalise_forward(x, scale, bias, shift, epsilon, where):
    centered = x.astype(scale.dtype) - row(shift, x)
    n = x.size // x.shape[-1]
    if n == x.shape[0]:  # one pixel an image: a handful of values, which cancel in one pass
        means = jnp.mean(centered, tuple(range(x.ndim - 1)))[None]
        var = jnp.mean(jnp.square(centered - row(means[0], x)), tuple(range(x.ndim - 1)))
    else:
        means = pixel_sums(centered, centered * centered, where=where) / n
        var = jnp.maximum(means[1] - means[0] * means[0], 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (centered - row(means[0], x)) * row(scale * inverse, x) + row(bias, x)
    mean = means[0] + shift
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_backward(epsilon, where, kept, cotangents):
    x, scale, mean, inverse = kept
    dy, n = cotangents[0], x.size // x.shape[-1]
    unit = (x.astype(scale.dtype) - row(mean, x)) * row(inverse, x)
    sums = pixel_sums(dy, dy * unit, where=where)
    centre, slope = sums / n
    dx = (dy - row(centre, x) - unit * row(slope, x)) * row(scale * inverse, x)
    return dx.astype(x.dtype), sums[1], sums[0], jnp.zeros_like(mean)


normalise.defvjp(_normalise_forward, _normalise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def prelu(x, slope, where):
    """x where x > 0, else slope * x. The plain gradient is the same in three times the programs.

    `where` is the platform that runs it (convolution.PLATFORMS).
    """
    return jnp.where(x > 0, x, x * row(slope, x))


def _prelu_forward(x, slope, where):
    return prelu(x, slope, where), (x, slope)


def _prelu_backward(where, kept, dy):
    x, slope = kept
    negative = jnp.minimum(x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    dslope = pixel_sums(negative * dy.astype(negative.dtype), where=where)[0]
    if slope.size == 1:
        dslope = jnp.sum(dslope, keepdims=True)
    return jnp.where(x > 0, dy, dy * row(slope, x)), dslope.astype(slope.dtype)


prelu.defvjp(_prelu_forward, _prelu_backward)


def row(vector, like):
    """[C] -> [1, ..., 1, C] with the rank of `like`: no implicit rank promotion."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))
