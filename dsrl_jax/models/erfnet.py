"""ERFNet (Romera et al., T-ITS 2018) as its authors' PyTorch release defines it."""

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
    Style,
    check_size,
    torch_uniform,
    torch_uniform_transposed,
)
from dsrl_jax.ops import resize

_EPSILON = 1e-3  # of every norm
_DILATIONS = (2, 4, 8, 16)
# Its training keeps torch's initialisation.
_conv = functools.partial(Conv, kernel_init=torch_uniform)
_conv_norm = functools.partial(ConvNorm, kernel_init=torch_uniform)
_conv_transpose = functools.partial(ConvTranspose, kernel_init=torch_uniform_transposed)


class ERFNet(nn.Module):
    """Class scores [B, H, W, num_classes] of images [B, H, W, 3]; H, W multiples of 8.

    Returns the dict of a segmentation network; `features` [B, H/2, W/2, 16].  `encoder`
    [B, H/8, W/8, num_classes] are the scores of the encoder alone: the original trains them first,
    then drops them, so with `scores` in the loss their convolution gets no gradient.
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
        low, high = Encoder(self.dropout, style, name='encoder')(image, train)

        x = _up(64, style, 'decoder0')(high, train)
        x = NonBottleneck(style=style, name='decoder1')(x, train)
        x = NonBottleneck(style=style, name='decoder2')(x, train)
        x = _up(16, style, 'decoder3')(x, train)
        x = NonBottleneck(style=style, name='decoder4')(x, train)
        features = NonBottleneck(style=style, name='decoder5')(x, train)

        scores = _conv_transpose(
            self.num_classes,
            kernel_size=2,
            padding=0,
            output_padding=0,
            use_bias=True,
            style=style,
            name='classifier',
        )(features)
        encoder = _conv(self.num_classes, 1, use_bias=True, style=style, name='encoder_classifier')
        return {
            'scores': scores,
            'features': features,
            'encoder': encoder(high),
            'low': low,
            'high': high,
            'resize': Convention('half_pixel'),
        }


class Encoder(nn.Module):
    """Maps [B, H/2, W/2, 16] and [B, H/8, W/8, 128] of images [B, H, W, 3]."""

    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool):
        style = self.style
        low = Down(16, style, name='initial')(image.astype(style.dtype), train)
        x = Down(64, style, name='layer0')(low, train)
        for i in range(1, 6):
            x = NonBottleneck(0.03, self.dropout, style=style, name=f'layer{i}')(x, train)
        x = Down(128, style, name='layer6')(x, train)
        for i, dilation in enumerate(2 * _DILATIONS, 7):
            x = NonBottleneck(0.3, self.dropout, dilation, style, name=f'layer{i}')(x, train)
        return low, x


class Down(nn.Module):
    """Strided convolution beside max pooling, norm, ReLU; [B, H, W, C] -> [B, H/2, W/2, features].

    The convolution makes the channels that the pooled input lacks.
    """

    features: int
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        added = self.features - x.shape[-1]
        y = _conv(added, stride=2, padding=1, use_bias=True, style=self.style, name='conv')(x)
        y = jnp.concatenate([y, resize.max_pool(x, 2, 2)], axis=-1)
        return NormAct('relu', self.style, _EPSILON, name='merge')(y, train)


class NonBottleneck(nn.Module):
    """Non-bottleneck-1D block, [B, H, W, C] -> the same shape: two factorised 3x3 convolutions.

    The second pair is dilated.  Whole channels of the residual are dropped at the rate `drop`,
    or at `dropout` where the original drops any; the decoder's blocks have drop 0.
    """

    drop: float = 0.0
    dropout: float | None = None
    dilation: int = 1
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        y = self._pair(x, 1, 1, 'relu', train)
        y = self._pair(y, 2, self.dilation, None, train)
        return nn.relu(x + Dropout(self.drop, self.dropout, channels=True)(y, train))

    def _pair(self, x, number, dilation, activation, train):
        common = {'dilation': dilation, 'use_bias': True, 'style': self.style}
        column = _conv(x.shape[-1], (3, 1), **common, name=f'conv3x1_{number}')
        row = _conv_norm(
            x.shape[-1],
            (1, 3),
            **common,
            activation=activation,
            epsilon=_EPSILON,
            name=f'conv1x3_{number}',
        )
        return row(nn.relu(column(x)), train)


def _up(features, style, name):
    """[B, H, W, C] -> [B, 2H, 2W, features]: 3x3 transposed convolution, norm, ReLU."""
    return _conv_norm(
        features,
        stride=2,
        transposed=True,
        use_bias=True,
        activation='relu',
        style=style,
        epsilon=_EPSILON,
        name=name,
    )
