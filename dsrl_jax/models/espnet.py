"""ESPNet and ESPNet-C (Mehta et al., ECCV 2018) as their authors' release sacmehta/ESPNet has them.

`Encoder` reduces, splits over five dilations, sums and merges at 1/4 and 1/8; ESPNet-C classifies
its last map; ESPNet adds a decoder of 2x2 transposed convolutions (365,109 parameters, 20 classes).
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
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

# variant -> the map at 1/2 that the decoder reads: level1 and its image pyramid, or level1 alone
SKIPS = {'train': 'b1', 'test': 'level1'}
_DILATIONS = (1, 2, 4, 8, 16)
_EPSILON = 1e-3


class ESPNet(nn.Module):
    """Class scores [B, H, W, num_classes] of images [B, H, W, 3]; H, W multiples of 8.

    `p` and `q` are the numbers of ESP blocks at 1/4 and 1/8.  The authors have two models:
    `variant` 'train' is that of their training code and their CamVid weights, 'test' that of their
    test code and their Cityscapes weights.  `dropout` drops whole channels of `features`
    [B, H/2, W/2, num_classes] on their way to the scores (None: 0, the original).
    """

    num_classes: int
    p: int = 2
    q: int = 8
    variant: str = 'train'
    dropout: float | None = None
    style: Style = Style()

    score_stride = 1
    feature_stride = 2
    multiple = 8

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        skip = lookup(SKIPS, self.variant, 'variant')
        classes, style = self.num_classes, self.style
        maps = Encoder(self.p, self.q, style, name='encoder')(image, train)

        coarse = _conv_norm(classes, 1, style=style, name='coarse')(maps['b3'], train)
        coarse = _double(classes, style, name='up_l3')(coarse)
        fine = _conv(classes, 1, style=style, name='level3_C')(maps['b2'])
        x = jnp.concatenate([fine, coarse], axis=-1)
        x = _norm_act(style=style, name='combine_br')(x, train)
        # Every dilation needs a channel: the original cannot do with fewer than five classes.
        width = max(classes, len(_DILATIONS))
        x = ESP(width, residual=False, style=style, name='combine_esp')(x, train)
        x = _conv_norm(
            classes,
            2,
            stride=2,
            transposed=True,
            activation='prelu',
            style=style,
            kernel_init=torch_uniform_transposed,
            name='up_l2',
        )(x, train)
        x = jnp.concatenate([x, maps[skip]], axis=-1)
        features = _conv_norm(classes, activation='prelu', style=style, name='merge')(x, train)
        x = Dropout(0.0, self.dropout, channels=True)(features, train)
        return {
            'scores': _double(classes, style, name='classifier')(x),
            'features': features,
            'low': maps[skip],
            'high': maps['b3'],
            'resize': Convention('half_pixel'),
        }


class ESPNetC(nn.Module):
    """Class scores [B, H/8, W/8, num_classes] of images [B, H, W, 3]; H, W multiples of 8.

    The encoder and a 1x1 convolution; the authors train it first, on labels at 1/8, and start
    ESPNet from it.  `p`, `q` and `dropout` as in ESPNet.
    """

    num_classes: int
    p: int = 2
    q: int = 8
    dropout: float | None = None
    style: Style = Style()

    score_stride = 8
    feature_stride = 8
    multiple = 8

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        maps = Encoder(self.p, self.q, self.style, name='encoder')(image, train)
        x = Dropout(0.0, self.dropout, channels=True)(maps['b3'], train)
        return {
            'scores': _conv(self.num_classes, 1, style=self.style, name='classifier')(x),
            'features': maps['b3'],
            'low': maps['b1'],
            'high': maps['b3'],
            'resize': Convention('align_corners'),
        }


class Encoder(nn.Module):
    """Maps of images [B, H, W, 3]: level1 (1/2, 16), b1 (1/2, 19), b2 (1/4, 131), b3 (1/8, 256)."""

    p: int = 2
    q: int = 8
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool):
        style = self.style
        image = image.astype(style.dtype)
        half = _halve(image)

        level1 = _conv_norm(16, stride=2, activation='prelu', style=style, name='level1')
        level1 = level1(image, train)
        b1 = _merge([level1, half], style, train, name='b1')

        down = x = ESP(64, stride=2, residual=False, style=style, name='level2_0')(b1, train)
        for i in range(self.p):
            x = ESP(64, style=style, name=f'level2_block{i}')(x, train)
        b2 = _merge([x, down, _halve(half)], style, train, name='b2')

        down = x = ESP(128, stride=2, residual=False, style=style, name='level3_0')(b2, train)
        for i in range(self.q):
            x = ESP(128, style=style, name=f'level3_block{i}')(x, train)
        b3 = _merge([down, x], style, train, name='b3')
        return {'level1': level1, 'b1': b1, 'b2': b2, 'b3': b3}


class ESP(nn.Module):
    """Reduce, split over five dilations, sum, merge: [B, H, W, C] -> [B, H/s, W/s, features].

    The branches of dilation 2 to 16 are summed up one after the other, which hides the gridding of
    the large ones; that of dilation 1, which takes the channels left over, stands apart.  `stride`
    2 reduces by a 3x3 convolution, else it is 1x1; `residual` adds the input.
    """

    features: int
    stride: int = 1
    residual: bool = True
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        style, branch = self.style, self.features // len(_DILATIONS)
        reduce = _conv(branch, 2 * self.stride - 1, stride=self.stride, style=style, name='c1')
        reduced, outputs = reduce(x), []
        for dilation in _DILATIONS:
            width = branch if outputs else self.features - branch * (len(_DILATIONS) - 1)
            y = _conv(width, dilation=dilation, style=style, name=f'd{dilation}')(reduced)
            outputs.append(y + outputs[-1] if len(outputs) > 1 else y)
        y = jnp.concatenate(outputs, axis=-1)
        return _norm_act(style=style, name='br')(x + y if self.residual else y, train)


_conv = functools.partial(Conv, kernel_init=torch_uniform)
_conv_norm = functools.partial(ConvNorm, epsilon=_EPSILON, kernel_init=torch_uniform)
_norm_act = functools.partial(NormAct, epsilon=_EPSILON)


def _merge(maps, style, train, name):
    return _norm_act(style=style, name=name)(jnp.concatenate(maps, axis=-1), train)


def _double(features, style, name):
    """2x2 transposed convolution of stride 2: every input pixel makes its own four."""
    return ConvTranspose(
        features,
        2,
        padding=0,
        output_padding=0,
        style=style,
        kernel_init=torch_uniform_transposed,
        name=name,
    )


def _halve(image):
    """3x3 average pool of stride 2; the zeros of the padding count in the divisor."""
    return resize.avg_pool(image, 3, 2, 1)
