"""Convolutions as sums of weighted, shifted slices: [B, H, W, C] in, [B, H', W', Co] out."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dsrl_jax.ops.pixels import depth_to_space, pixel_sums


def shift(x, kernel, stride, pads, dilation, groups):
    """x [B, H, W, Ci], kernel [kh, kw, Ci/groups, Co] -> [B, H', W', Co]: one slice a tap.

    pads are ((top, bottom), (left, right)) zeros. Products are summed in float32.
    """
    taps = _taps(x, kernel, stride, pads, dilation)
    if groups > 1 and kernel.shape[2] == 1:
        product = _multiply
    else:
        product = functools.partial(_matmul, groups=groups)
    if len(taps) == 1:
        return product(*taps[0]).astype(x.dtype)
    return functools.reduce(jnp.add, (_wide(product(*tap)) for tap in taps)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def depthwise(x, kernel, stride, pads, dilation, where):
    """`shift` with one output a channel; autodiff would pad and reduce once a tap instead.

    `where` is the platform that runs it (convolution.PLATFORMS).
    """
    return shift(x, kernel, stride, pads, dilation, x.shape[-1])


def _depthwise_forward(x, kernel, stride, pads, dilation, where):
    return depthwise(x, kernel, stride, pads, dilation, where), (x, kernel)


def _depthwise_backward(stride, pads, dilation, where, kept, dy):
    x, kernel = kept
    taps = _taps(x, kernel, stride, pads, dilation)
    sums = pixel_sums(*(_wide(tap) * _wide(dy) for tap, _ in taps), where=where)
    dx = _shift_back(dy, kernel, stride, pads, dilation, x.shape[1:3])
    if where == 'gpu':
        # Sums that follow would take all taps of all branches into one slow reduction.
        dx = lax.optimization_barrier(dx)
    return dx, sums.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def maps(x, kernel, stride, pads, dilation, shuffled, where):
    """`shift` with one output a group, as a depthwise one for each input of the groups, summed.

    shuffled: the inputs of a group lie as many channels apart as there are groups.
    """
    width, groups = kernel.shape[2:]
    config = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    x, dtype = _wide(x), x.dtype
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    if shuffled:
        inputs = lax.split(x, [groups] * width, 3)
    else:
        inputs = [x[..., i::width] for i in range(width)]
    # Each is written once: inside the sums every tap would read it with gaps between the pixels.
    inputs = lax.optimization_barrier(inputs)
    kernels, none = lax.split(_wide(kernel), [1] * width, 2), ((0, 0), (0, 0))
    sums = [depthwise(y, k, stride, none, dilation, where) for y, k in zip(inputs, kernels)]
    return functools.reduce(jnp.add, sums).astype(dtype)


def _shift_back(dy, kernel, stride, pads, dilation, size):
    """Gradient of a depthwise `shift` for its input: dy [B, H', W', C] -> [B, *size, C].

    Input m * stride + phase was read by output m + offset through tap i where
    offset * stride = phase + low - i * dilation: one sum of shifts a phase.
    """
    reads = []  # of both axes, a list of (tap, offset) for each phase
    config, counts = [], []
    for n, out, k, (low, _) in zip(size, dy.shape[1:3], kernel.shape, pads):
        places = [[phase + low - i * dilation for i in range(k)] for phase in range(stride)]
        reads.append(
            [[(i, p // stride) for i, p in enumerate(at) if p % stride == 0] for at in places]
        )
        offsets = [offset for phase in reads[-1] for _, offset in phase]
        first, count = min(offsets), -(-n // stride)
        # Negative padding crops what only the zeros of the padding saw.
        config.append((-first, count + max(offsets) - out, 0))
        reads[-1] = [[(i, offset - first) for i, offset in phase] for phase in reads[-1]]
        counts.append(count)
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *config, (0, 0, 0)])

    def phase(rows, columns):
        if not rows or not columns:
            return jnp.zeros((dy.shape[0], *counts, dy.shape[3]), dy.dtype)
        taps = [
            _multiply(dy[:, m : m + counts[0], n : n + counts[1]], kernel[i, j])
            for i, m in rows
            for j, n in columns
        ]
        return functools.reduce(jnp.add, taps).astype(dy.dtype)

    phases = [phase(rows, columns) for rows in reads[0] for columns in reads[1]]
    dx = phases[0] if stride == 1 else depth_to_space(jnp.concatenate(phases, -1), stride)
    return dx[:, : size[0], : size[1]]


def _taps(x, kernel, stride, pads, dilation):
    """For each tap the padded input under it, [B, H', W', Ci], and its weights [Ci/groups, Co]."""
    kh, kw = kernel.shape[:2]
    if any(low or high for low, high in pads):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])
    height, width = (
        (n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[1:3], (kh, kw))
    )
    taps = []
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            taps.append((x[:, rows, columns], kernel[i, j]))
    return taps


def _multiply(x, weight):
    """One tap of a depthwise convolution: [B, H, W, C], [1, C] -> [B, H, W, C]."""
    return _wide(x) * _wide(weight).reshape(1, 1, 1, -1)


def _matmul(x, weight, groups):
    """One tap as matrix products, one a group: [B, H, W, Ci], [Ci/groups, Co] -> [B, H, W, Co]."""
    # Pixels flattened: contracting three axes at once in the gradient is 3 times slower on a CPU.
    flat = x.reshape(-1, groups, weight.shape[0])
    weight = weight.reshape(weight.shape[0], groups, -1)
    if groups == 1:
        y = flat[:, 0] @ weight[:, 0]
    else:
        y = jnp.einsum('ngc,cgo->ngo', flat, weight)
    return y.reshape(*x.shape[:3], -1)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
