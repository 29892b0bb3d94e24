"""ENet (Paszke et al., 2016) as davidtvs/PyTorch-ENet defines it.

Bottlenecks of a quarter of the channels throughout; two max pools keep the places of their maxima
and the decoder unpools by them (351,660 parameters with 19 classes).
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.models.layers import (
    Conv,
    Convention,
    ConvNorm,
    ConvTranspose,
    Dropout,
    NormAct,
    PReLU,
    Style,
    check_size,
    torch_uniform,
    torch_uniform_transposed,
)
from dsrl_jax.ops import pooling, resize

# Stages 2 and 3: kind of the middle convolution and its dilation.
_EIGHT = (
    ('regular', 1),
    ('dilated', 2),
    ('asymmetric', 1),
    ('dilated', 4),
    ('regular', 1),
    ('dilated', 8),
    ('asymmetric', 1),
    ('dilated', 16),
)
# The encoder's activations have one slope each, for all channels.
_SLOPE, _RELU = 'prelu_shared', 'relu'


class ENet(nn.Module):
    """Class scores [B, H, W, num_classes] of images [B, H, W, 3]; H, W multiples of 8.

    `features` [B, H/2, W/2, 16] is the map that the last transposed convolution reads.  `dropout`
    replaces the rates 0.01 (stage 1) and 0.1 at which whole channels of a bottleneck are dropped.
    """

    num_classes: int
    dropout: float | None = None
    style: Style = Style()

    score_stride = 1
    feature_stride = 2
    multiple = 8

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        style = self.style
        kwargs = {'dropout': self.dropout, 'style': style}
        low, high, places1, places2 = Encoder(**kwargs, name='encoder')(image, train)

        x = Upsampling(64, **kwargs, name='upsample4_0')(high, places2, train)
        x = Bottleneck(64, **kwargs, activation=_RELU, name='regular4_1')(x, train)
        x = Bottleneck(64, **kwargs, activation=_RELU, name='regular4_2')(x, train)
        x = Upsampling(16, **kwargs, name='upsample5_0')(x, places1, train)
        x = Bottleneck(16, **kwargs, activation=_RELU, name='regular5_1')(x, train)
        last = ConvTranspose(
            self.num_classes,
            kernel_init=torch_uniform_transposed,
            style=style,
            name='transposed_conv',
        )
        return {
            'scores': last(x),
            'features': x,
            'low': low,
            'high': high,
            'resize': Convention('half_pixel'),
        }


class Encoder(nn.Module):
    """Images [B, H, W, 3] -> maps at 1/2 (16 channels) and 1/8 (128), places of two max pools.

    The places are those of the 2x2 windows at 1/2 (16 channels) and at 1/4 (64 channels).
    """

    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool):
        kwargs = {'dropout': self.dropout, 'style': self.style}
        image = image.astype(self.style.dtype)
        low = _initial(image, train, self.style)

        down = Downsampling(64, original=0.01, **kwargs, name='downsample1_0')
        x, places1 = down(low, train)
        for i in range(1, 5):
            x = Bottleneck(64, original=0.01, **kwargs, name=f'regular1_{i}')(x, train)

        x, places2 = Downsampling(128, **kwargs, name='downsample2_0')(x, train)
        for stage, first in ((2, 1), (3, 0)):
            for i, (kind, dilation) in enumerate(_EIGHT, start=first):
                block = Bottleneck(
                    128,
                    dilation=dilation,
                    asymmetric=kind == 'asymmetric',
                    **kwargs,
                    name=f'{kind}{stage}_{i}',
                )
                x = block(x, train)
        return low, x, places1, places2


class Bottleneck(nn.Module):
    """x plus 1x1, middle and 1x1 convolutions of it; [B, H, W, features] -> the same shape.

    The middle one is 3x3 with `dilation`, or 5x1 and 1x5 where `asymmetric`.  `original` is the
    rate of the original's dropout, `dropout` the one that replaces it.
    """

    features: int
    dilation: int = 1
    asymmetric: bool = False
    activation: str = _SLOPE
    original: float = 0.1
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(_conv_norm, activation=self.activation, style=self.style)
        narrow = self.features // 4
        y = conv(narrow, 1, name='ext_conv1')(x, train)
        if self.asymmetric:
            y = conv(narrow, (5, 1), name='ext_conv2')(y, train)
            y = conv(narrow, (1, 5), name='ext_conv2_across')(y, train)
        else:
            y = conv(narrow, dilation=self.dilation, name='ext_conv2')(y, train)
        y = conv(self.features, 1, name='ext_conv3')(y, train)
        y = Dropout(self.original, self.dropout, channels=True)(y, train)
        return _activate(x + y, self.activation, self.style)


class Downsampling(nn.Module):
    """[B, H, W, C] -> [B, H/2, W/2, features], and the places of the maxima [B, H/2, W/2, C].

    A max pool, zeros for the channels it lacks, plus 2x2/2, 3x3 and 1x1 convolutions.
    """

    features: int
    original: float = 0.1
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(_conv_norm, activation=_SLOPE, style=self.style)
        narrow, lacking = x.shape[-1] // 4, self.features - x.shape[-1]
        pooled, places = pooling.max_pool_places(x)
        pooled = jnp.pad(pooled, ((0, 0), (0, 0), (0, 0), (0, lacking)))
        y = conv(narrow, 2, stride=2, padding=0, name='ext_conv1')(x, train)
        y = conv(narrow, name='ext_conv2')(y, train)
        y = conv(self.features, 1, name='ext_conv3')(y, train)
        y = Dropout(self.original, self.dropout, channels=True)(y, train)
        return _activate(pooled + y, _SLOPE, self.style), places


class Upsampling(nn.Module):
    """[B, H, W, C] and the places of a max pool -> [B, 2H, 2W, features].

    A 1x1 convolution, unpooled, plus 1x1, 2x2/2 transposed and 1x1 convolutions.
    """

    features: int
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, x, places, train: bool):
        conv = functools.partial(_conv_norm, style=self.style)
        narrow = x.shape[-1] // 4
        main = pooling.unpool(conv(self.features, 1, name='main_conv1')(x, train), places)
        y = conv(narrow, 1, activation=_RELU, name='ext_conv1')(x, train)
        y = conv(
            narrow,
            2,
            stride=2,
            transposed=True,
            activation=_RELU,
            kernel_init=torch_uniform_transposed,
            name='ext_tconv1',
        )(y, train)
        y = conv(self.features, 1, name='ext_conv2')(y, train)
        y = Dropout(0.1, self.dropout, channels=True)(y, train)
        return _activate(main + y, _RELU, self.style)


def _initial(image, train, style):
    """3x3/2 convolution to 13 channels beside a 3x3/2 max pool of the image: 16 channels at 1/2."""
    conv = Conv(13, stride=2, kernel_init=torch_uniform, style=style, name='initial_conv')
    x = jnp.concatenate([conv(image), resize.max_pool(image, 3, 2, 1)], axis=-1)
    return NormAct(_SLOPE, style=style, name='initial_br')(x, train)


def _activate(x, activation, style):
    if activation == _RELU:
        return nn.relu(x)
    return PReLU(shared=True, style=style, name='out_activation')(x)


_conv_norm = functools.partial(ConvNorm, kernel_init=torch_uniform)
