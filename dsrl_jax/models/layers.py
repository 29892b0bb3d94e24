"""Layers every network is built from; maps are [B, H, W, C], parameters float32.

A convolution keeps `kernel` [kh, kw, Ci/groups, Co] (transposed: [kh, kw, Ci, Co/groups]) and
`bias` [Co]; a norm keeps `scale`, `bias` [C] and the statistics `mean`, `var` [C].  Sibling
children called `conv` and `norm` always mean "norm directly after conv": `folding` relies on it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import UserError
from dsrl_jax.ops import convolution
from dsrl_jax.ops.elementwise import normalise, prelu, row

# Normal with std sqrt(2 / (Co kh kw)): torch's kaiming normal, fan_out; groups are not divided.
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
he_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
# torch's default for convolutions and linear layers: uniform within 1 / sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# Of a transposed convolution torch counts the outputs as its fan.
torch_uniform_transposed = nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')


@dataclasses.dataclass(frozen=True)
class Style:
    """Numerics shared by all layers of a network: compute type, convolution form, folded norms, and
    how many images share batch statistics (0: all of a batch)."""

    dtype: Any = jnp.float32
    conv_impl: str = 'auto'
    folded: bool = False
    bn_group: int = 0

    @property
    def platform(self) -> str:
        """The platform that conv_impl names, else the backend at hand."""
        return convolution.platform(self.conv_impl)


CONVENTIONS = ('align_corners', 'half_pixel')  # see ops.resize.bilinear


@jax.tree_util.register_static
class Convention(str):
    """Name of a resize convention; has no leaves, so a dict that holds it passes through jit."""

    def __new__(cls, name: str):
        if name not in CONVENTIONS:
            raise ValueError(f'unknown resize convention {name!r}')
        return super().__new__(cls, name)


class Conv(nn.Module):
    """Convolution, [B, H, W, Ci] -> [B, H', W', features]; padding None keeps H, W at stride 1."""

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    padding: Any = None
    dilation: int = 1
    groups: int = 1
    shuffled: bool = False  # see ops.convolution.conv
    use_bias: bool = False
    style: Style = Style()
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x, train: bool = False):
        size = _pair(self.kernel_size)
        padding = self.padding
        if padding is None:
            padding = tuple((self.dilation * (k - 1) // 2,) * 2 for k in size)
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        y = convolution.conv(
            x.astype(self.style.dtype),
            kernel.astype(self.style.dtype),
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            shuffled=self.shuffled,
            impl=self.style.conv_impl,
        )
        return _add_bias(self, y) if self.use_bias else y


class ConvTranspose(nn.Module):
    """Transposed convolution, [B, H, W, Ci] -> [B, (H-1) s - 2p + k + op, ..., features]."""

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 2
    padding: int = 1
    output_padding: int = 1
    groups: int = 1
    use_bias: bool = False
    style: Style = Style()
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x, train: bool = False):
        shape = (*_pair(self.kernel_size), x.shape[-1], self.features // self.groups)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        y = convolution.conv_transpose(
            x.astype(self.style.dtype),
            kernel.astype(self.style.dtype),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            groups=self.groups,
            impl=self.style.conv_impl,
        )
        return _add_bias(self, y) if self.use_bias else y


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, [B, H, W, C] -> the same shape.

    Training normalises with the biased variance over (B, H, W), global under a sharded jit, and
    keeps the unbiased one n/(n-1), as torch does: new = momentum * old + (1 - momentum) * batch.
    With style.bn_group each so many images in a row have statistics of their own, and what is kept
    is their mean over the groups.  Statistics are float32 (float64 for float64 input).  `absolute`
    multiplies by |scale| + epsilon instead of scale, as in-place activated batch norm does.
    Folded: x * scale + bias, no statistics.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    absolute: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scale, bias = scale.astype(wide), bias.astype(wide)
        if self.style.folded:
            return (x * row(scale, x) + row(bias, x)).astype(self.style.dtype)
        if self.absolute:
            scale = jnp.abs(scale) + self.epsilon
        kept_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        kept_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        mean, var = kept_mean.value.astype(wide), kept_var.value.astype(wide)
        if not train:
            gain = scale * jax.lax.rsqrt(var + self.epsilon)
            return ((x - row(mean, x)) * row(gain, x) + row(bias, x)).astype(self.style.dtype)
        if x.size == channels and not self.is_initializing():
            raise UserError(
                'data.batch_size',
                f'one value a channel at {"/".join(self.path)}, a norm behind a global mean',
                'a batch of at least 2 in training',
                'raise it.',
            )
        groups = _groups(len(x), self.style.bn_group)
        if groups > 1:
            # Rows of a group lie in a row, and so on few devices: their sums stay among these.
            parts = x.reshape(groups, -1, *x.shape[1:])
            y, mean, var = jax.vmap(
                lambda part: normalise(part, scale, bias, mean, self.epsilon, self.style.platform)
            )(parts)
            y, mean, var = y.reshape(x.shape), mean.mean(0), var.mean(0)
        else:
            y, mean, var = normalise(x, scale, bias, mean, self.epsilon, self.style.platform)
        if not self.is_initializing():
            n = x.size // channels // groups
            self._keep(kept_mean, mean)
            self._keep(kept_var, var * (n / max(n - 1, 1)))
        return y.astype(self.style.dtype)

    def _keep(self, kept, value):
        value = value.astype(kept.value.dtype)
        kept.value = self.momentum * kept.value + (1 - self.momentum) * value


def _groups(images: int, size: int) -> int:
    """How many groups of `size` images (0: all) a batch has; 1 where it is no larger than one."""
    if not size or images <= size:
        return 1
    if images % size:
        expected = f'a divisor of the {images} images of a step'
        raise UserError('config.model.bn_group', str(size), expected, 'correct it.')
    return images // size


class PReLU(nn.Module):
    """x where x > 0, else slope * x; [B, H, W, C] -> the same shape.

    One slope per channel, or a single one where `shared`.
    """

    shared: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        shape = (1 if self.shared else x.shape[-1],)
        slope = self.param('slope', nn.initializers.constant(0.25), shape, jnp.float32)
        return prelu(x, slope.astype(x.dtype), self.style.platform)


class Dropout(nn.Module):
    """Zero entries of [B, H, W, C] in training, whole channels where `channels`; rescale the rest.

    The rate is `rate`, or `original` where that is None: a network's own option `dropout`.
    """

    original: float
    rate: float | None = None
    channels: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        rate = self.original if self.rate is None else self.rate
        axes = (1, 2) if self.channels else ()
        return nn.Dropout(rate, broadcast_dims=axes)(x, deterministic=not train)


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation (see ACTIVATIONS); children conv, norm, act.

    [B, H, W, Ci] -> [B, H/stride, W/stride, features]; `transposed` enlarges by stride instead.
    Folded: the convolution carries the bias and there is no norm.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    padding: Any = None
    dilation: int = 1
    groups: int = 1
    shuffled: bool = False
    use_bias: bool = False
    activation: str | None = None
    transposed: bool = False
    style: Style = Style()
    epsilon: float = 1e-5
    momentum: float = 0.9
    absolute: bool = False
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x, train: bool = False):
        common = {
            'features': self.features,
            'kernel_size': self.kernel_size,
            'stride': self.stride,
            'groups': self.groups,
            'use_bias': self.use_bias or self.style.folded,
            'style': self.style,
            'kernel_init': self.kernel_init,
            'name': 'conv',
        }
        if self.transposed:
            if self.dilation != 1 or self.shuffled:
                raise ValueError('a transposed ConvNorm has neither dilation nor shuffled groups')
            size = self.kernel_size
            padding = (size - 1) // 2 if self.padding is None else self.padding
            # The output padding that makes the output exactly stride times the input.
            rest = self.stride - size + 2 * padding
            x = ConvTranspose(**common, padding=padding, output_padding=rest)(x)
        else:
            own = {'padding': self.padding, 'dilation': self.dilation, 'shuffled': self.shuffled}
            x = Conv(**common, **own)(x)
        if not self.style.folded:
            x = _norm(self)(x, train)
        return _activate(x, self.activation, self.style)


class NormAct(nn.Module):
    """Batch norm, activation; [B, H, W, C] -> the same shape; children norm, act."""

    activation: str | None = 'prelu'
    style: Style = Style()
    epsilon: float = 1e-5
    momentum: float = 0.9
    absolute: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        return _activate(_norm(self)(x, train), self.activation, self.style)


def global_mean(x):
    """Mean over all pixels, [B, H, W, C] -> [B, 1, 1, C], summed in float32."""
    with jax.named_scope('pool'):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return x.mean((1, 2), keepdims=True, dtype=wide).astype(x.dtype)


def check_size(image, multiple: int, offsets: tuple[int, ...] = (0,)) -> None:
    """Raise UserError unless H and W of image [B, H, W, 3] are a multiple plus one of `offsets`."""
    height, width = image.shape[1:3]
    if height % multiple not in offsets or width % multiple not in offsets:
        raise UserError(
            'input size',
            f'{height}x{width}',
            f'height and width multiples of {multiple}'
            + ''.join(f', or {offset} more' for offset in offsets if offset),
            'change the size of the input in the config.',
        )


def _norm(block):
    """The batch norm of a ConvNorm or NormAct."""
    return BatchNorm(
        epsilon=block.epsilon,
        momentum=block.momentum,
        absolute=block.absolute,
        style=block.style,
        name='norm',
    )


def _activate(x, name, style):
    if name in ('prelu', 'prelu_shared'):
        return PReLU(shared=name == 'prelu_shared', style=style, name='act')(x)
    if name not in ACTIVATIONS:
        raise ValueError(f'unknown activation {name!r}')
    return ACTIVATIONS[name](x)


# Beside these `prelu`, a slope per channel, and `prelu_shared`, one slope.
ACTIVATIONS = {
    None: lambda x: x,
    'relu': nn.relu,
    'relu6': nn.relu6,
    'leaky_relu': nn.leaky_relu,
    'tanh': jnp.tanh,
}


def _add_bias(module, y):
    bias = module.param('bias', nn.initializers.zeros, (module.features,), jnp.float32)
    return y + row(bias.astype(y.dtype), y)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)
