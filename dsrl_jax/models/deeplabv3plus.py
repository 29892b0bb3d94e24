"""DeepLabv3+ (Chen et al., ECCV 2018): atrous spatial pyramid on a dilated encoder, small decoder.

`ResNet101` is the network of the paper's tables as two public code bases define it:
jfzhang95/pytorch-deeplab-xception (59,343,795 parameters with 19 classes, the likelier origin) and
VainF/DeepLabV3Plus-Pytorch (58,753,459).  `EfficientNetLite0` is the light one.  A decoder reads
the dict of an encoder's maps, c2 at stride 4 and c5 at the output stride, and returns the dict of
a segmentation network.
"""

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models import efficientnet_lite
from dsrl_jax.models.layers import (
    Conv,
    Convention,
    ConvNorm,
    Dropout,
    Style,
    check_size,
    global_mean,
    he_fan_in,
)
from dsrl_jax.models.resnet import ResNet
from dsrl_jax.ops import resize

# output stride -> dilations of the pyramid's 3x3 convolutions
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
_WIDTH, _LOW_WIDTH = 256, 48


class ResNet101(nn.Module):
    """Class scores [B, H/4, W/4, num_classes] of images [B, H, W, 3]; H, W multiples of the OS.

    Returns the dict of a segmentation network; `features` [B, H/4, W/4, 256] is the map before the
    last 1x1 convolution, `aspp` [B, H/OS, W/OS, 256] the merged pyramid.  `output_stride` (OS) is
    16 or 8.  UserError for another one, or for an unknown `variant`.
    """

    num_classes: int
    output_stride: int = 16
    variant: str = 'jfzhang95'
    dropout: float | None = None
    style: Style = Style()

    score_stride = 4
    feature_stride = 4

    @property
    def multiple(self):
        """Legal heights and widths are multiples of this."""
        return self.output_stride

    @nn.compact
    def __call__(self, image, train: bool = False):
        rates = lookup(RATES, self.output_stride, 'output_stride')
        dilated, decoder = lookup(VARIANTS, self.variant, 'variant')
        check_size(image, self.multiple)
        encoder = ResNet(101, self.output_stride, **dilated, style=self.style, name='encoder')
        decoder = decoder(self.num_classes, rates, self.dropout, self.style, name='decoder')
        return decoder(encoder(image, train), train)


class EfficientNetLite0(nn.Module):
    """Class scores [B, H/4, W/4, num_classes] of images [B, H, W, 3]; H, W multiples of the OS.

    The light network: EfficientNet-Lite0 under the decoder of separable convolutions, for images
    (x - 127) / 128 of 0..255 where it starts from the ImageNet encoder.  Otherwise as `ResNet101`.
    """

    num_classes: int
    output_stride: int = 16
    dropout: float | None = None
    style: Style = Style()

    score_stride = 4
    feature_stride = 4

    @property
    def multiple(self):
        """Legal heights and widths are multiples of this."""
        return self.output_stride

    @nn.compact
    def __call__(self, image, train: bool = False):
        rates = lookup(RATES, self.output_stride, 'output_stride')
        check_size(image, self.multiple)
        encoder = efficientnet_lite.Encoder(self.output_stride, self.style, name='encoder')
        decoder = Separable(self.num_classes, rates, self.dropout, self.style, name='decoder')
        return decoder(encoder(image, train), train)


class Jfzhang95(nn.Module):
    """Decoder of jfzhang95: two 3x3 convolutions over [pyramid, low], corners aligned."""

    num_classes: int
    rates: tuple[int, ...]
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, maps, train: bool = False):
        style, resized = self.style, Convention('align_corners')
        aspp = ASPP(self.rates, style=style, name='aspp')(maps['c5'], train)
        x = Dropout(0.5, self.dropout)(aspp, train)
        low = _block(_LOW_WIDTH, 1, 'low', style)(maps['c2'], train)
        x = resize.bilinear(x, low.shape[1:3], convention=resized)
        x = jnp.concatenate([x, low], axis=-1)
        x = _block(_WIDTH, 3, 'fuse0', style)(x, train)
        x = Dropout(0.5, self.dropout)(x, train)
        features = _block(_WIDTH, 3, 'fuse1', style)(x, train)
        scores = _classifier(self)(Dropout(0.1, self.dropout)(features, train))
        return _outputs(maps, aspp, features, scores, resized)


class Vainf(nn.Module):
    """Decoder of VainF: one 3x3 convolution over [low, pyramid], pixel centres aligned."""

    num_classes: int
    rates: tuple[int, ...]
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, maps, train: bool = False):
        style, resized = self.style, Convention('half_pixel')
        aspp = ASPP(self.rates, style=style, name='aspp')(maps['c5'], train)
        x = Dropout(0.1, self.dropout)(aspp, train)
        low = _block(_LOW_WIDTH, 1, 'low', style)(maps['c2'], train)
        x = resize.bilinear(x, low.shape[1:3], convention=resized)
        x = jnp.concatenate([low, x], axis=-1)
        features = _block(_WIDTH, 3, 'fuse0', style)(x, train)
        return _outputs(maps, aspp, features, _classifier(self)(features), resized)


class Separable(nn.Module):
    """Decoder of depthwise separable convolutions, the paper's own proposal (its section 3.1).

    What mmsegmentation calls DepthwiseSeparableASPPHead (pixel centres aligned, dropout of whole
    channels before the classifier), in the paper's widths and with its 1x1 convolution after the
    pyramid: mmsegmentation's 3x3 there would cost more than the whole light encoder.
    """

    num_classes: int
    rates: tuple[int, ...]
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, maps, train: bool = False):
        style, resized = self.style, Convention('half_pixel')
        aspp = ASPP(self.rates, separable=True, style=style, name='aspp')(maps['c5'], train)
        low = _block(_LOW_WIDTH, 1, 'low', style)(maps['c2'], train)
        x = resize.bilinear(aspp, low.shape[1:3], convention=resized)
        x = jnp.concatenate([x, low], axis=-1)
        x = SeparableConv(_WIDTH, style=style, name='fuse0')(x, train)
        features = SeparableConv(_WIDTH, style=style, name='fuse1')(x, train)
        x = Dropout(0.1, self.dropout, channels=True)(features, train)
        return _outputs(maps, aspp, features, _classifier(self)(x), resized)


# variant -> how its ResNet dilates, and its decoder
VARIANTS = {
    'jfzhang95': ({'multi_grid': (1, 2, 4)}, Jfzhang95),
    'vainf': ({'dilate_first': False}, Vainf),
}


class ASPP(nn.Module):
    """Atrous spatial pyramid: [B, h, w, C] -> [B, h, w, 256].

    A 1x1 convolution, a 3x3 one for each rate and the global mean, side by side, then a 1x1.
    """

    rates: tuple[int, ...]
    separable: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        style, conv = self.style, SeparableConv if self.separable else _dense
        branches = [_block(_WIDTH, 1, 'branch0', style)(x, train)]
        for i, rate in enumerate(self.rates, 1):
            branch = conv(_WIDTH, dilation=rate, style=style, name=f'branch{i}')
            branches.append(branch(x, train))
        mean = _block(_WIDTH, 1, 'image', style)(global_mean(x), train)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = jnp.concatenate(branches, axis=-1)
        return _block(_WIDTH, 1, 'project', style)(x, train)


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise convolution, both with norm and ReLU: [B, h, w, C] -> features.

    The size stays.
    """

    features: int
    dilation: int = 1
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        channels, rate = x.shape[-1], self.dilation
        x = _block(channels, 3, 'depthwise', self.style, dilation=rate, groups=channels)(x, train)
        return _block(self.features, 1, 'pointwise', self.style)(x, train)


def _dense(features, *, dilation, style, name):
    return _block(features, 3, name, style, dilation=dilation)


def _block(features, kernel_size, name, style, **options):
    return ConvNorm(
        features,
        kernel_size,
        activation='relu',
        kernel_init=he_fan_in,
        style=style,
        name=name,
        **options,
    )


def _classifier(decoder):
    return Conv(
        decoder.num_classes,
        1,
        use_bias=True,
        kernel_init=he_fan_in,
        style=decoder.style,
        name='classifier',
    )


def _outputs(maps, aspp, features, scores, resized):
    return {
        'scores': scores,
        'features': features,
        'aspp': aspp,
        'low': maps['c2'],
        'high': maps['c5'],
        'resize': resized,
    }
