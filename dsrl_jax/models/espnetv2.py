"""ESPNetv2 (Mehta et al., CVPR 2019) as its authors' EdgeNets release defines it.

`Encoder` is the ImageNet network without its last level, `ESPNetv2` adds the pyramid-pooling
decoder (789,242 parameters at width 2.0 with 20 classes), `Classifier` the ImageNet head.
"""

import math

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models.layers import (
    Conv,
    Convention,
    ConvNorm,
    Dropout,
    NormAct,
    PReLU,
    Style,
    check_size,
    global_mean,
)
from dsrl_jax.ops import resize

# width -> channels of level1, level2, level3, level4, level5 and of the classifier's last map
CHANNELS = {
    0.5: (16, 32, 64, 128, 256, 1024),
    1.0: (32, 64, 128, 256, 512, 1024),
    1.25: (32, 80, 160, 320, 640, 1024),
    1.5: (32, 96, 192, 384, 768, 1024),
    2.0: (32, 128, 256, 512, 1024, 1280),
}
# Each level limits its receptive fields 3, 5, 7, 9; a field above the limit falls back to 3.
_WIDE, _MEDIUM, _NARROW = (1, 2, 3, 4), (1, 1, 2, 3), (1, 1, 1, 2)
_DECODER = (64, 48, 32)
_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)


class ESPNetv2(nn.Module):
    """Class scores [B, H/2, W/2, num_classes] of images [B, H, W, 3]; H, W multiples of 16.

    Returns the dict of a segmentation network; `features` [B, H/2, W/2, 32] is the map before
    the last pyramid, `merge` [B, H/2, W/2, P] the narrow one before its last 1x1 convolution.
    `dropout` drops whole channels of `features` on their way to the scores (None: 0, the original).
    """

    num_classes: int
    width: float = 2.0
    dropout: float | None = None
    style: Style = Style()

    score_stride = 2
    feature_stride = 2
    multiple = 16

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        style, (wide, middle, narrow) = self.style, _DECODER
        level1, level2, level3, level4 = Encoder(self.width, style, name='encoder')(image, train)

        pool = max(1, min(self.num_classes // 2, 16))
        x, _ = PyramidPool(pool, wide, style=style, name='bu_dec_l1')(level4, train)
        x = _twice(x) + GatedConv(wide, style, name='merge_enc_dec_l2')(level3, train)
        x = NormAct(style=style, name='bu_br_l2')(x, train)

        x, _ = PyramidPool(pool, middle, style=style, name='bu_dec_l2')(x, train)
        x = _twice(x) + GatedConv(middle, style, name='merge_enc_dec_l3')(level2, train)
        x = NormAct(style=style, name='bu_br_l3')(x, train)

        x, _ = PyramidPool(pool, narrow, style=style, name='bu_dec_l3')(x, train)
        x = _twice(x) + GatedConv(narrow, style, name='merge_enc_dec_l4')(level1, train)
        features = NormAct(style=style, name='bu_br_l4')(x, train)

        x = Dropout(0.0, self.dropout, channels=True)(features, train)
        last = PyramidPool(pool, self.num_classes, last=True, style=style, name='bu_dec_l4')
        scores, merge = last(x, train)
        return {
            'scores': scores,
            'features': features,
            'merge': merge,
            'low': level1,
            'high': level4,
            'resize': Convention('align_corners'),
        }


class Classifier(nn.Module):
    """ImageNet logits [B, num_classes] float32 of images [B, H, W, 3]; H, W multiples of 32.

    Also returns the maps `low` (1/2), `features` (1/16) and `high` (1/32, before pooling).
    """

    num_classes: int = 1000
    width: float = 2.0
    dropout: float | None = None
    style: Style = Style()

    feature_stride = 16
    multiple = 32

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        style, channels = self.style, lookup(CHANNELS, self.width, 'width')
        level1, _, _, level4 = Encoder(self.width, style, name='encoder')(image, train)
        x = DownSampler(channels[4], _MEDIUM, style, name='level5_0')(level4, None, train)
        for i in range(3):
            x = EESP(channels[4], dilations=_NARROW, style=style, name=f'level5_block{i}')(x, train)
        x = ConvNorm(
            channels[4], groups=channels[4], activation='prelu', style=style, name='level5_block3'
        )(x, train)
        high = ConvNorm(
            channels[5], 1, groups=4, activation='prelu', style=style, name='level5_block4'
        )(x, train)
        wide = high.astype(jnp.promote_types(high.dtype, jnp.float32))
        pooled = Dropout(0.2, self.dropout)(global_mean(wide)[:, 0, 0], train)
        logits = nn.Dense(
            self.num_classes,
            dtype=pooled.dtype,
            kernel_init=nn.initializers.normal(0.001),
            name='classifier',
        )(pooled)
        return {'logits': logits, 'low': level1, 'features': level4, 'high': high}


class Encoder(nn.Module):
    """Maps of levels 1 to 4, strides 2, 4, 8, 16, of images [B, H, W, 3]."""

    width: float = 2.0
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool):
        style, channels = self.style, lookup(CHANNELS, self.width, 'width')
        image = image.astype(style.dtype)
        quarter = _halve(_halve(image))
        eighth = _halve(quarter)

        level1 = ConvNorm(channels[0], stride=2, activation='prelu', style=style, name='level1')
        level1 = level1(image, train)
        level2 = DownSampler(channels[1], _WIDE, style, name='level2_0')(level1, quarter, train)
        level3 = DownSampler(channels[2], _WIDE, style, name='level3_0')(level2, eighth, train)
        for i in range(3):
            block = EESP(channels[2], dilations=_WIDE, style=style, name=f'level3_block{i}')
            level3 = block(level3, train)
        down = DownSampler(channels[3], _WIDE, style, name='level4_0')
        level4 = down(level3, _halve(eighth), train)
        for i in range(7):
            block = EESP(channels[3], dilations=_MEDIUM, style=style, name=f'level4_block{i}')
            level4 = block(level4, train)
        return level1, level2, level3, level4


class DownSampler(nn.Module):
    """[B, H, W, C] and the image at half that size -> [B, H/2, W/2, features].

    Average pool and strided EESP side by side, plus the `image` (input reinforcement) when given.
    Without one its branch still owns its parameters, as in the original: they stay untouched.
    """

    features: int
    dilations: tuple[int, ...]
    style: Style = Style()

    @nn.compact
    def __call__(self, x, image, train: bool):
        style, added = self.style, self.features - x.shape[-1]
        eesp = EESP(added, stride=2, dilations=self.dilations, style=style, name='eesp')
        x = jnp.concatenate([_halve(x), eesp(x, train)], axis=-1)

        thin = ConvNorm(3, activation='prelu', style=style, name='inp_reinf_0')
        widen = ConvNorm(self.features, 1, style=style, name='inp_reinf_1')
        if image is not None:
            x = x + widen(thin(image, train), train)
        elif self.is_initializing():
            widen(thin(jnp.zeros((1, 1, 1, 3), style.dtype), False), False)
        return PReLU(style=style, name='act')(x)


class EESP(nn.Module):
    """Reduce, four depthwise convolutions of growing dilation, fuse, expand (ESPNetv2, fig. 1).

    [B, H, W, C] -> [B, H/stride, W/stride, features].  Branch i adds the sum of the branches
    before it, which hides the gridding of large dilations.  A strided block returns before its
    activation, whose slopes exist in the original all the same and never get a gradient.
    """

    features: int
    stride: int = 1
    dilations: tuple[int, ...] = _WIDE
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        style, branch = self.style, self.features // len(self.dilations)
        reduced = ConvNorm(branch, 1, groups=4, activation='prelu', style=style, name='proj_1x1')
        reduced = reduced(x, train)

        sums = []
        for i, dilation in enumerate(self.dilations):
            conv = Conv(
                branch,
                stride=self.stride,
                dilation=dilation,
                groups=branch,
                style=style,
                name=f'spp_dw_{i}',
            )
            y = conv(reduced)
            sums.append(sums[-1] + y if sums else y)
        y = NormAct(style=style, name='br_after_cat')(jnp.concatenate(sums, axis=-1), train)
        y = ConvNorm(self.features, 1, groups=4, style=style, name='conv_1x1_exp')(y, train)

        act = PReLU(style=style, name='module_act')
        if self.stride > 1:
            if self.is_initializing():
                act(y)
            return y
        return act(x + y if x.shape == y.shape else y)


class PyramidPool(nn.Module):
    """Depthwise convolutions at five scales, merged; [B, H, W, C] -> [B, H, W, features] and merge.

    Scales above 1 are reached by bilinear enlarging and left by average pooling, those below the
    other way round; no side gets below 5.  `merge` [B, H, W, channels] feeds the last 1x1.
    """

    channels: int
    features: int
    last: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        style, size = self.style, x.shape[1:3]
        x = ConvNorm(self.channels, 1, activation='prelu', style=style, name='projection')(x, train)
        stages = []
        for i, scale in enumerate(_SCALES):
            target = tuple(max(5, math.ceil(n * scale)) for n in size)
            conv = Conv(self.channels, groups=self.channels, style=style, name=f'stages_{i}')
            if scale == 1:
                stages.append(conv(x))
            elif scale > 1:
                stages.append(resize.adaptive_avg_pool(conv(_enlarge(x, target)), size))
            else:
                stages.append(_enlarge(conv(resize.adaptive_avg_pool(x, target)), size))

        y = NormAct(style=style, name='merge_br')(jnp.concatenate(stages, axis=-1), train)
        # Each group sees one channel at all five scales.
        options = {'groups': self.channels, 'shuffled': True, 'activation': 'prelu'}
        merge = ConvNorm(self.channels, **options, style=style, name='merge')(y, train)
        y = Conv(self.features, 1, use_bias=self.last, style=style, name='expand')(merge)
        return (y if self.last else NormAct(style=style, name='br')(y, train)), merge


class GatedConv(nn.Module):
    """Grouped 3x3 convolution times a gate; [B, H, W, C] -> [B, H, W, features].

    The gate, one number per sample and channel, comes from the global mean of the input.
    """

    features: int
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        style, groups = self.style, math.gcd(x.shape[-1], self.features)
        gate = nn.sigmoid(Conv(self.features, 1, style=style, name='gate')(global_mean(x)))
        expand = ConvNorm(
            self.features, groups=groups, activation='prelu', style=style, name='expand'
        )
        return expand(x, train) * gate


def _halve(x):
    """3x3 average pool of stride 2; the zeros of the padding count in the divisor."""
    return resize.avg_pool(x, 3, 2, 1)


def _twice(x):
    return _enlarge(x, (2 * x.shape[1], 2 * x.shape[2]))


def _enlarge(x, size):
    return resize.bilinear(x, size, convention='align_corners')
