"""DABNet (Li et al., BMVC 2019) as its authors' release, Reagan1311/DABNet (MIT), defines it.

Depthwise asymmetric bottlenecks: plain and dilated 3x1 and 1x3 convolutions side by side, with
the image put in again at every stride.  756,643 parameters with 19 classes.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.models.layers import (
    Conv,
    Convention,
    ConvNorm,
    Dropout,
    NormAct,
    Style,
    check_size,
    he_fan_in,
)
from dsrl_jax.ops import resize

# dilations of the modules of DAB blocks 1 and 2
DILATIONS = ((2, 2, 2), (4, 4, 8, 8, 16, 16))
_Conv = functools.partial(Conv, kernel_init=he_fan_in)
_ConvNorm = functools.partial(ConvNorm, activation='prelu', epsilon=1e-3, kernel_init=he_fan_in)
_NormAct = functools.partial(NormAct, epsilon=1e-3)


class DABNet(nn.Module):
    """Class scores [B, H/8, W/8, num_classes] of images [B, H, W, 3]; H, W multiples of 8.

    Returns the dict of a segmentation network; `features` [B, H/8, W/8, 259] is the map before the
    last 1x1 convolution.  `dropout` drops whole channels of it (None: 0, the original).
    """

    num_classes: int
    dropout: float | None = None
    style: Style = Style()

    score_stride = 8
    feature_stride = 8
    multiple = 8

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        style = self.style
        image = image.astype(style.dtype)
        half = _halve(image)
        quarter = _halve(half)
        eighth = _halve(quarter)

        x = _ConvNorm(32, stride=2, padding=1, style=style, name='init_conv0')(image, train)
        x = _ConvNorm(32, style=style, name='init_conv1')(x, train)
        low = _ConvNorm(32, style=style, name='init_conv2')(x, train)
        x = _join([low, half], 'joined1', style, train)

        down = Downsampling(64, style, name='downsample1')(x, train)
        x = _modules(down, 1, style, train)
        x = _join([x, down, quarter], 'joined2', style, train)

        down = Downsampling(128, style, name='downsample2')(x, train)
        high = _modules(down, 2, style, train)
        features = _join([high, down, eighth], 'joined3', style, train)

        x = Dropout(0.0, self.dropout, channels=True)(features, train)
        return {
            'scores': _Conv(self.num_classes, 1, style=style, name='classifier')(x),
            'features': features,
            'low': low,
            'high': high,
            'resize': Convention('half_pixel'),
        }


class Downsampling(nn.Module):
    """Strided 3x3 convolution, beside a max pool where channels grow, then norm and PReLU.

    [B, H, W, C] -> [B, H/2, W/2, features].
    """

    features: int
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        grows = x.shape[-1] < self.features
        added = self.features - x.shape[-1] if grows else self.features
        y = _Conv(added, stride=2, padding=1, style=self.style, name='conv3x3')(x)
        if grows:
            y = jnp.concatenate([y, resize.max_pool(x, 2, 2)], axis=-1)
        return _NormAct(style=self.style, name='bn_prelu')(y, train)


class DABModule(nn.Module):
    """x plus a bottleneck of two depthwise branches (fig. 2c); [B, H, W, C] -> the same shape."""

    dilation: int
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        style, inner = self.style, x.shape[-1] // 2

        def depthwise(x, size, dilation, name):
            return _ConvNorm(inner, size, dilation=dilation, groups=inner, style=style, name=name)(
                x, train
            )

        y = _NormAct(style=style, name='bn_relu1')(x, train)
        y = _ConvNorm(inner, style=style, name='conv3x3')(y, train)
        near = depthwise(depthwise(y, (3, 1), 1, 'dconv3x1'), (1, 3), 1, 'dconv1x3')
        far = depthwise(y, (3, 1), self.dilation, 'ddconv3x1')
        far = depthwise(far, (1, 3), self.dilation, 'ddconv1x3')
        y = _NormAct(style=style, name='bn_relu2')(near + far, train)
        return x + _Conv(x.shape[-1], 1, style=style, name='conv1x1')(y)


def _modules(x, block, style, train):
    """DAB block 1 or 2."""
    for i, dilation in enumerate(DILATIONS[block - 1]):
        x = DABModule(dilation, style, name=f'block{block}_module{i}')(x, train)
    return x


def _join(maps, name, style, train):
    """Concatenation, norm, PReLU."""
    return _NormAct(style=style, name=name)(jnp.concatenate(maps, axis=-1), train)


def _halve(x):
    """3x3 average pool of stride 2; the zeros of the padding count in the divisor."""
    return resize.avg_pool(x, 3, 2, 1)
