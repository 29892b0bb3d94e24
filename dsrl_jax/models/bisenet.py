"""BiSeNet (Yu et al., ECCV 2018) with ResNet-18, as three public code bases define it.

A spatial path keeps detail at stride 8, a context path (ResNet-18, attention refinement) brings
meaning, a fusion module weighs both.  Their sizes and arithmetic differ: see VARIANTS.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models.layers import (
    BatchNorm,
    Conv,
    Convention,
    ConvNorm,
    Dropout,
    Style,
    check_size,
    global_mean,
)
from dsrl_jax.models.resnet import ResNet
from dsrl_jax.ops import resize


class BiSeNet(nn.Module):
    """Class scores [B, H/8, W/8, num_classes] of images [B, H, W, 3]; H, W multiples of 8 or 32.

    Returns the dict of a segmentation network; `low` is c2 of the context path, as in the other
    ResNet networks, `aux` holds the scores of two auxiliary classifiers.  `variant` is the code
    base: torchseg (ycszen/TorchSeg, by the paper's author; MIT), coincheung (CoinCheung/BiSeNet;
    MIT; multiples of 32) or ooooverflow (ooooverflow/BiSeNet).  `dropout` drops whole channels of
    the maps that classifiers read (None: 0, the original).
    """

    num_classes: int
    variant: str = 'torchseg'
    dropout: float | None = None
    style: Style = Style()

    score_stride = 8
    feature_stride = 8
    aux_weight = 1.0

    @property
    def multiple(self):
        """Legal heights and widths of the input are multiples of this."""
        return lookup(VARIANTS, self.variant, 'variant').multiple

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        variant, image = VARIANTS[self.variant], image.astype(self.style.dtype)
        layers = {'kernel_init': variant.kernel_init, 'style': self.style}
        context = ResNet(18, style=self.style, name='encoder')(image, train)
        spatial = SpatialPath(variant.spatial, layers, name='spatial_path')(image, train)
        decoder = variant.decoder(
            num_classes=self.num_classes, layers=layers, dropout=self.dropout, name='decoder'
        )
        outputs = decoder(spatial, context, train)
        ends = {'low': context['c2'], 'high': context['c5']}
        return {**outputs, **ends, 'resize': variant.resize}


class SpatialPath(nn.Module):
    """Image [B, H, W, 3] -> [B, H/8, W/8, C]; `steps` are (kernel size, stride, features).

    `layers`, here and below, are the options of every layer outside the ResNet.
    """

    steps: tuple[tuple[int, int, int], ...]
    layers: Mapping

    @nn.compact
    def __call__(self, x, train: bool = False):
        block = functools.partial(ConvNorm, activation='relu', **self.layers)
        for i, (size, stride, features) in enumerate(self.steps):
            step = block(features, size, stride=stride, padding=size // 2, name=f'step{i}')
            x = step(x, train)
        return x


class SumDecoder(nn.Module):
    """Spatial map [B, H/8, W/8, 128] and c3 to c5 -> scores, features [B, H/8, W/8, width], aux.

    torchseg and coincheung: the context path brings global context, c5 and c4 to 128 channels and
    sums them from coarse to fine, each sum enlarged by `enlarge(x, size)`.  `aux` names the
    classifiers on its maps at 1/16 and 1/8.
    """

    num_classes: int
    layers: Mapping
    width: int
    aux: tuple[str, str]
    aux_width: int
    enlarge: Callable
    gate: Callable
    dropout: float | None = None

    @nn.compact
    def __call__(self, spatial, maps, train: bool = False):
        layers = self.layers
        block = functools.partial(ConvNorm, 128, activation='relu', **layers)
        x = block(1, name='global_context')(global_mean(maps['c5']), train)
        x = Refinement(128, layers, name='arm32')(maps['c5'], train) + x
        x = self.enlarge(x, maps['c4'].shape[1:3])
        sixteenth = block(name='refine32')(x, train)
        x = Refinement(128, layers, name='arm16')(maps['c4'], train) + sixteenth
        x = self.enlarge(x, maps['c3'].shape[1:3])
        eighth = block(name='refine16')(x, train)

        x = jnp.concatenate([spatial, eighth], axis=-1)
        x = Fusion(256, 1, self.gate, layers, name='ffm')(x, train)
        head = functools.partial(Head, self.num_classes, layers, dropout=self.dropout)
        scores, features = head(width=self.width, name='head')(x, train)
        coarse = zip(self.aux, (sixteenth, eighth), strict=True)
        aux = {name: head(width=self.aux_width, name=name)(x, train)[0] for name, x in coarse}
        return {'scores': scores, 'features': features, 'aux': aux}


class ConcatDecoder(nn.Module):
    """Spatial map [B, H/8, W/8, 256], c4, c5 -> scores, features [B, H/8, W/8, num_classes], aux.

    ooooverflow: c4 and c5, gated, the latter times its own mean, are enlarged to 1/8 and stand
    beside the spatial map.  The original enlarges `features` eightfold before its last 1x1
    convolution; as the weights of a bilinear resize sum to 1, the convolution may go first, bias
    included, at 1/64 of the cost.
    """

    num_classes: int
    layers: Mapping
    dropout: float | None = None

    @nn.compact
    def __call__(self, spatial, maps, train: bool = False):
        layers, size = self.layers, spatial.shape[1:3]
        fine = Attention(layers, name='arm16')(maps['c4'])
        coarse = Attention(layers, name='arm32')(maps['c5']) * global_mean(maps['c5'])
        contexts = [resize.bilinear(x, size, convention='half_pixel') for x in (fine, coarse)]

        x = jnp.concatenate([spatial, *contexts], axis=-1)
        gate = functools.partial(_two_layers, use_bias=True)
        features = Fusion(self.num_classes, 3, gate, layers, name='ffm')(x, train)
        aux = {f'sup{i}': self._scores(x, f'sup{i}', train) for i, x in enumerate(contexts, 1)}
        scores = self._scores(features, 'classifier', train)
        return {'scores': scores, 'features': features, 'aux': aux}

    def _scores(self, x, name, train):
        x = Dropout(0.0, self.dropout, channels=True)(x, train)
        return Conv(self.num_classes, 1, use_bias=True, **self.layers, name=name)(x)


class Refinement(nn.Module):
    """3x3 convolution times a gate of its own global mean; [B, H, W, C] -> [B, H, W, features]."""

    features: int
    layers: Mapping

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(self.features, activation='relu', **self.layers, name='mix')(x, train)
        return x * nn.sigmoid(_one_layer(global_mean(x), train, self.layers))


class Attention(nn.Module):
    """x times a gate of its global mean; [B, H, W, C] -> the same shape.

    The original owns a batch norm that it never calls: `unused` stands for it and never moves.
    """

    layers: Mapping

    @nn.compact
    def __call__(self, x):
        mean = global_mean(x)
        if self.is_initializing():
            BatchNorm(style=self.layers['style'], name='unused')(mean)
        gate = Conv(x.shape[-1], 1, use_bias=True, **self.layers, name='gate')(mean)
        return x * nn.sigmoid(gate)


class Fusion(nn.Module):
    """f + f * gate for a convolution f; [B, H, W, C] -> [B, H, W, features].

    `gate(mean, train, layers)` makes the gate's logits from the global mean of f.
    """

    features: int
    kernel_size: int
    gate: Callable
    layers: Mapping

    @nn.compact
    def __call__(self, x, train: bool = False):
        block = functools.partial(ConvNorm, activation='relu', **self.layers)
        x = block(self.features, self.kernel_size, name='fuse')(x, train)
        return x + x * nn.sigmoid(self.gate(global_mean(x), train, self.layers))


class Head(nn.Module):
    """Map [B, H, W, C] -> scores [B, H, W, num_classes] and the map they are read from."""

    num_classes: int
    layers: Mapping
    width: int
    dropout: float | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        features = ConvNorm(self.width, activation='relu', **self.layers, name='mix')(x, train)
        x = Dropout(0.0, self.dropout, channels=True)(features, train)
        scores = Conv(self.num_classes, 1, use_bias=True, **self.layers, name='classifier')(x)
        return scores, features


def _one_layer(mean, train, layers):
    """Logits of a gate: 1x1 convolution with norm."""
    return ConvNorm(mean.shape[-1], 1, **layers, name='gate')(mean, train)


def _two_layers(mean, train, layers, use_bias=False):
    """Logits of a gate: two 1x1 convolutions of one width, without norm."""
    conv = functools.partial(Conv, mean.shape[-1], 1, use_bias=use_bias, **layers)
    return conv(name='excite')(nn.relu(conv(name='squeeze')(mean)))


class Variant(NamedTuple):
    """What one code base makes of the paper."""

    multiple: int  # of which heights and widths are
    resize: Convention
    kernel_init: Callable  # of every kernel outside the ResNet
    spatial: tuple[tuple[int, int, int], ...]
    decoder: Callable


_fan_in = functools.partial(nn.initializers.variance_scaling, mode='fan_in', distribution='normal')
_FOUR_STEPS = ((7, 2, 64), (3, 2, 64), (3, 2, 64), (1, 1, 128))
VARIANTS = {
    'torchseg': Variant(
        multiple=8,
        resize=Convention('align_corners'),
        kernel_init=_fan_in(2.0),
        spatial=_FOUR_STEPS,
        decoder=functools.partial(
            SumDecoder,
            width=64,
            aux=('aux16', 'aux8'),
            aux_width=256,
            enlarge=functools.partial(resize.bilinear, convention='align_corners'),
            gate=_two_layers,
        ),
    ),
    'coincheung': Variant(
        multiple=32,  # it doubles maps instead of bringing them to the size of their partners
        resize=Convention('half_pixel'),
        kernel_init=_fan_in(1.0),
        spatial=_FOUR_STEPS,
        decoder=functools.partial(
            SumDecoder,
            width=256,
            aux=('aux32', 'aux16'),
            aux_width=64,
            enlarge=resize.nearest,
            gate=_one_layer,
        ),
    ),
    'ooooverflow': Variant(
        multiple=8,
        resize=Convention('half_pixel'),
        kernel_init=_fan_in(2.0),
        spatial=((3, 2, 64), (3, 2, 128), (3, 2, 256)),
        decoder=ConcatDecoder,
    ),
}
