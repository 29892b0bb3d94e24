"""Convolutions on [B, H, W, C] in the form that is fast on the device at hand.

Every form computes the same sums. `lax` is the plain one, read by the MAC counter; the others
avoid what the compilers do badly: depthwise and grouped convolutions on a CPU (hundreds of times
slower than shifted slices) and the gradient of a kernel (up to 3 times slower than by rows), the
gradients of dilated convolutions on a GPU (7 to 28 times slower) and the gradient of zero
insertion in transposed ones (25 times on a GPU, 15 on a CPU).  No fast
form convolves a map spread out with zeros (`lhs_dilate`), forward or backward.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dsrl_jax.ops.pixels import depth_to_space
from dsrl_jax.ops.shifts import depthwise, maps, shift

PLATFORMS = ('cpu', 'gpu', 'tpu')  # 'auto' and these choose a form, the others are one
FORMS = ('auto', *PLATFORMS, 'lax', 'shift', 's2b', 'block', 'split', 'maps', 'phases', 'rows')
_BLOCK = 2048  # pixels in a matrix product of `_sum_of_rows`: from 512 to 4096 about equally fast


def conv(x, kernel, *, stride=1, padding=0, dilation=1, groups=1, shuffled=False, impl='auto'):
    """Convolution: x [B, H, W, Ci], kernel [kh, kw, Ci/groups, Co] -> [B, H', W', Co], type of x.

    padding is a number or ((top, bottom), (left, right)) zeros. Products are summed in float32.
    shuffled: group g has the inputs g, g + groups, g + 2 groups, ... instead of neighbours, as if
    a channel shuffle came before; the fast forms move no map for it.
    impl 'lax' plain; 'shift' one weighted shifted slice a tap; 's2b' space to batch (dilation > 1
    at stride 1, else plain); 'block' a dense convolution with a block-diagonal kernel (1 < groups,
    else plain); 'split' four of these side by side (groups a multiple of 4, else one); 'maps' a
    depthwise convolution for each input of a group, summed (one output a group, else plain);
    'phases' plain, with the gradient of a strided input by phases instead of zero insertion; 'rows'
    plain, with the gradient of the kernel summed over blocks of rows (stride, dilation and groups
    1, else plain); 'cpu', 'gpu', 'tpu' the fastest measured there, 'auto' that of the backend at
    hand. ValueError on another name or on channels that do not fit.
    """
    if impl not in FORMS:
        raise ValueError(f'impl {impl!r}: expected one of {", ".join(FORMS)}')
    kh, kw, width, features = kernel.shape
    if width * groups != x.shape[-1] or features % groups:
        raise ValueError(f'kernel {kernel.shape} in {groups} groups does not fit {x.shape}')
    kernel = kernel.astype(x.dtype)
    pads = _pads(padding)
    where, chosen = platform(impl), impl in ('auto', *PLATFORMS)
    if chosen:
        impl = _fastest(where, kernel.shape, groups, dilation, stride)
    if impl == 'shift' and width == 1 and groups > 1:
        if features > groups:  # several outputs a channel: one for each copy of it
            x = jnp.repeat(x, features // groups, axis=3)
        return depthwise(x, kernel, stride, pads, dilation, where)
    if impl == 'maps' and 1 < groups == features:
        return maps(x, kernel, stride, pads, dilation, shuffled, where)
    if impl == 'block' and groups > 1:
        kernel, dense = _block_diagonal(kernel, groups, shuffled), where if chosen else 'lax'
        return conv(x, kernel, stride=stride, padding=pads, dilation=dilation, impl=dense)
    if shuffled:
        x = x.reshape(*x.shape[:3], width, groups).swapaxes(3, 4).reshape(x.shape)
    if chosen and where == 'gpu' and x.dtype.itemsize == 2 and groups == 1:
        return _aligned(x, kernel, stride, pads, dilation, impl)
    if impl == 'shift':
        return shift(x, kernel, stride, pads, dilation, groups)
    if impl == 's2b' and dilation > 1 and stride == 1 and kh * kw > 1:
        return _space_to_batch(x, kernel, pads, dilation, groups)
    if impl == 'split' and groups > 1:
        return _split(x, kernel, stride, pads, dilation, groups)
    if impl == 'phases' and stride > 1 and dilation == groups == 1:
        return _strided(x, kernel, stride, pads)
    if impl == 'rows' and stride == dilation == groups == 1:
        return _rows(x, kernel, pads)
    return _lax(x, kernel, stride, pads, dilation, groups)


def conv_transpose(x, kernel, *, stride=2, padding=1, output_padding=1, groups=1, impl='auto'):
    """Transposed convolution: x [B, H, W, Ci], kernel [kh, kw, Ci, Co/groups] -> [B, H', W', Co].

    torch's ConvTranspose2d: every input pixel scatters its weighted, unflipped kernel; H' =
    (H - 1) stride - 2 padding + kh + output_padding. impl 'lax' convolves the zero-stuffed input;
    any other computes each of the stride^2 output phases from the input grid (sub-pixel form), by
    a convolution of that impl, and interleaves them.
    """
    if impl not in FORMS:
        raise ValueError(f'impl {impl!r}: expected one of {", ".join(FORMS)}')
    kh, kw, channels, features = kernel.shape
    if channels != x.shape[-1] or channels % groups:
        raise ValueError(f'kernel {kernel.shape} in {groups} groups does not fit {x.shape}')
    size = [
        (n - 1) * stride - 2 * padding + k + output_padding
        for n, k in zip(x.shape[1:3], kernel.shape)
    ]
    # [kh, kw, Ci/groups, groups, Co/groups]: the inputs of one group beside all outputs.
    kernel = kernel.astype(x.dtype).reshape(kh, kw, groups, channels // groups, features)
    kernel = kernel.swapaxes(2, 3)
    if impl == 'lax':
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1].reshape(kh, kw, channels // groups, groups * features),
            (1, 1),
            [(k - 1 - padding, k - 1 - padding + output_padding) for k in (kh, kw)],
            lhs_dilation=(stride, stride),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )
    return _phases(x, kernel, stride, size, (padding, padding), impl)


def platform(impl):
    """The platform that a form is for: its own name, or the backend at hand."""
    return impl if impl in PLATFORMS else jax.default_backend()


def _fastest(where, shape, groups, dilation, stride):
    """The form to use, from forward plus backward times of 3x3 and 1x1 cases on each backend."""
    kh, kw, width, features = shape
    if kh * kw == 1:
        # One matrix product, batched over the groups, which a CPU would transpose for it (256
        # channels in 4 groups, 32x64 pixels: 2.1 ms, split 0.8).
        return 'split' if where == 'cpu' and groups % 4 == 0 and width > 1 else 'shift'
    if where == 'tpu':
        # Not measured: the compiler's own forms are the safe choice, but for groups that are not
        # depthwise: for their gradient it gathers the maps of all devices (512x1024, 16 images on
        # 8 devices: 1 GB a step of ESPNetv2), for that of a dense kernel it sums the kernel.
        return 'block' if groups > 1 and (width > 1 or features > groups) else 'lax'
    if width == 1 and groups > 1:
        # A GPU has kernels for the plain ones; as shifts they join what reads them, a concatenation
        # of nine channels took 5.6 ms instead of 0.9 (16x256x512 pixels on an H100).
        return 'shift' if where == 'cpu' or dilation * stride > 1 else 'lax'
    if groups > 1:
        # Narrow groups leave matrix units idle anyway: the zeros of a dense kernel cost less than
        # the grouped convolution (3x3, 256 -> 64 in 64 groups, 16x64x128 pixels on an H100: 0.24
        # against 1.1 ms; 2x32x64 pixels on two CPU cores: 0.06 against 12 s). A CPU, which has no
        # idle units, gains by fewer zeros (the same layer, one image: 2.9 ms, split 1.0), and most
        # by none (five channels to each of ten, 128x256 pixels: 16 ms as one, 1.6 as maps).
        if where == 'cpu':
            return 'maps' if features == groups and width <= 8 else 'split'
        return 'block'
    if stride > 1:
        return 'phases'
    if where == 'cpu':
        # Its loop would sum over the devices in every turn.
        return 'rows' if dilation == 1 and jax.device_count() == 1 else 'lax'
    # Space to batch mends the gradient on a GPU (0.27 against 1.9 ms); a CPU needs no mending.
    return 's2b' if dilation > 1 else 'lax'


def _aligned(x, kernel, stride, pads, dilation, impl):
    """Dense `conv` with channels filled up with zeros to multiples of 8, as cuDNN wants bfloat16.

    It fills up others itself, by copies that took 12 % of ESPNetv2's step on an H100; here they
    join what makes or reads the maps. For three channels of colour it has kernels.
    """
    channels, features = kernel.shape[2:]
    more_channels, more_features = -channels % 8 if channels > 4 else 0, -features % 8
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more_channels)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more_channels), (0, more_features)))
    y = conv(x, kernel, stride=stride, padding=pads, dilation=dilation, impl=impl)
    return _gradient_made_first(y[..., :features]) if more_features else y


@jax.custom_vjp
def _gradient_made_first(x):
    """x; its gradient is computed before anything is done with it.

    Filled up with zeros while it is computed, that of a head's 76 channels took 7.4 ms, not 1.4.
    """
    return x


_gradient_made_first.defvjp(lambda x: (x, None), lambda _, dy: (lax.optimization_barrier(dy),))


def _lax(x, kernel, stride, pads, dilation, groups):
    # No preferred_element_type: all backends sum bfloat16 products in float32 anyway, and with it
    # the gradient would be a mixed-type convolution, which does not exist.
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _strided(x, kernel, stride, pads):
    """`_lax`; autodiff would convolve dy, spread out with zeros, for the gradient of x."""
    return _lax(x, kernel, stride, pads, 1, 1)


def _strided_forward(x, kernel, stride, pads):
    return _strided(x, kernel, stride, pads), (x, kernel)


def _strided_backward(stride, pads, kept, dy):
    x, kernel = kept
    of_kernel = jax.linear_transpose(lambda kernel: _lax(x, kernel, stride, pads, 1, 1), kernel)
    turned = kernel.swapaxes(2, 3)[:, :, :, None]
    dx = _phases(dy, turned, stride, x.shape[1:3], [low for low, _ in pads], 'lax')
    return dx, *of_kernel(dy)


_strided.defvjp(_strided_forward, _strided_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(x, kernel, pads):
    """`_lax` at stride 1; for the gradient of the kernel XLA's convolution on a CPU is slow."""
    return _lax(x, kernel, 1, pads, 1, 1)


def _rows_forward(x, kernel, pads):
    return _rows(x, kernel, pads), (x, kernel)


def _rows_backward(pads, kept, dy):
    x, kernel = kept
    of_x = jax.linear_transpose(lambda x: _lax(x, kernel, 1, pads, 1, 1), x)
    # The narrower map is the one spread out, a copy for each tap. For that of the outputs x and dy
    # change places: the kernel comes out turned, and the pads are those of the transposed form.
    if x.shape[3] <= dy.shape[3]:
        turned, narrow, wide = False, x, dy
    else:
        pads = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel.shape, pads))
        turned, narrow, wide = True, dy, x
    dkernel = _sum_of_rows(narrow, wide, kernel.shape[:2], pads)
    if turned:
        dkernel = dkernel[::-1, ::-1].swapaxes(2, 3)
    return *of_x(dy), dkernel.astype(kernel.dtype)


_rows.defvjp(_rows_forward, _rows_backward)


def _sum_of_rows(x, y, taps, pads):
    """Products of y [B, h, w, d] with x [B, H, W, c] under each tap -> float32 [kh, kw, c, d].

    One matrix product for a block of rows that stays in the caches with all its copies.
    """
    b, h, w, d = y.shape
    kh, kw = taps
    block = max(n for n in range(1, h + 1) if h % n == 0 and (n == 1 or b * n * w <= _BLOCK))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])

    def add(total, start):
        rows = lax.dynamic_slice_in_dim(x, start, block + kh - 1, 1)
        under = [rows[:, i : i + block, j : j + w] for i in range(kh) for j in range(kw)]
        of_y = lax.dynamic_slice_in_dim(y, start, block, 1)
        product = jnp.einsum(
            'bhwc,bhwd->cd',
            jnp.concatenate(under, axis=3),
            of_y,
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    total = jnp.zeros((kh * kw * x.shape[3], d))
    total, _ = lax.scan(add, total, block * jnp.arange(h // block))
    return total.reshape(kh, kw, x.shape[3], d)


def _phases(x, kernel, stride, size, padding, impl):
    """Transposed convolution: x [B, H, W, Ci], [kh, kw, Ci/g, g, Co/g] -> [B, *size, Co].

    `padding` are the rows and columns cut off before the first output.
    """
    kh, kw, width, groups, features = kernel.shape
    # Output stride*m + phase reads input m + offset through kernel row phase + low -
    # stride*offset: over all offsets and phases one contiguous run of rows, so a pad and a reshape
    # split the kernel, without a gather.
    pads, shape = [], []
    for axis, (n, k, low) in enumerate(zip(x.shape[1:3], (kh, kw), padding)):
        last = (stride - 1 + low) // stride
        first = -((k - 1 - low) // stride)
        before = stride * last - low
        after = (last - first + 1) * stride - k - before
        kernel = lax.pad(
            kernel,
            jnp.zeros((), kernel.dtype),
            [(before, after, 0) if a == axis else (0, 0, 0) for a in range(5)],
        )
        shape += [last - first + 1, stride]
        pads.append((-first, -(-size[axis] // stride) - n + last))
    kernel = kernel.reshape(*shape, *kernel.shape[2:])[::-1, :, ::-1]
    # [offsets, phases, offsets, phases, Ci/groups, groups, Co/groups] -> groups, phases, features
    kernel = kernel.transpose(0, 2, 4, 5, 1, 3, 6)
    kernel = kernel.reshape(shape[0], shape[2], width, -1)
    y = conv(x, kernel, padding=tuple(pads), groups=groups, impl=impl)
    if groups > 1:
        y = y.reshape(*y.shape[:3], groups, stride * stride, features).swapaxes(3, 4)
        y = y.reshape(*y.shape[:3], -1)
    return depth_to_space(y, stride)[:, : size[0], : size[1]]


def _space_to_batch(x, kernel, pads, dilation, groups):
    """Dilated convolution as a plain one on the dilation^2 sub-images of the padded input.

    An axis along which the kernel has one tap is not split.
    """
    b, _, _, c = x.shape
    splits = [dilation if k > 1 else 1 for k in kernel.shape[:2]]
    grown = [n + sum(p) for n, p in zip(x.shape[1:3], pads)]
    out = [n - d * (k - 1) for n, d, k in zip(grown, splits, kernel.shape[:2])]
    config = [(low, high + -n % d, 0) for (low, high), n, d in zip(pads, grown, splits)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    h, w = (n // d for n, d in zip(x.shape[1:3], splits))
    # The sample stays the major part of the new batch axis: a sharded batch stays where it is.
    x = x.reshape(b, h, splits[0], w, splits[1], c).transpose(0, 2, 4, 1, 3, 5)
    y = _lax(x.reshape(-1, h, w, c), kernel, 1, ((0, 0), (0, 0)), 1, groups)
    _, h, w, c = y.shape
    y = y.reshape(b, *splits, h, w, c).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(b, h * splits[0], w * splits[1], c)[:, : out[0], : out[1]]


def _split(x, kernel, stride, pads, dilation, groups):
    """Four convolutions of a quarter of the groups each (one of all if 4 does not divide them)."""
    impl = 'shift' if kernel.shape[0] * kernel.shape[1] == 1 else 'block'
    parts = 4 if groups % 4 == 0 else 1
    options = {'stride': stride, 'padding': pads, 'dilation': dilation, 'groups': groups // parts}
    each = (lax.split(a, [a.shape[3] // parts] * parts, 3) for a in (x, kernel))
    return jnp.concatenate([conv(*part, **options, impl=impl) for part in zip(*each)], 3)


def _block_diagonal(kernel, groups, shuffled):
    """[kh, kw, Ci/groups, Co] -> [kh, kw, Ci, Co] with zeros between the groups."""
    kh, kw, width, features = kernel.shape
    own = jnp.eye(groups, dtype=kernel.dtype)
    inputs, own_shape = ((width, 1), (1, groups)) if shuffled else ((1, width), (groups, 1))
    wide = kernel.reshape(kh, kw, *inputs, groups, features // groups)
    own = own.reshape(1, 1, *own_shape, groups, 1)
    return (own * wide).reshape(kh, kw, groups * width, features)


def _pads(padding):
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
