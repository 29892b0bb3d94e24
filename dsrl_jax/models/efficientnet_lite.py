"""EfficientNet-Lite0 (TensorFlow TPU repository, 2020): EfficientNet-B0 for phones and EdgeTPUs.

No squeeze-and-excitation, ReLU6 instead of swish.  `Encoder` are its inverted residual blocks,
dilated where asked, `Classifier` the ImageNet network (4,652,008 parameters).  As in TensorFlow
a convolution of stride 2 pads less before than behind, and the norms have epsilon 1e-3.
"""

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models.layers import (
    ConvNorm,
    Dropout,
    Style,
    check_size,
    global_mean,
    he_fan_in,
    he_normal,
)

# expansion, channels, blocks, depthwise kernel, stride of the first block
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
# The last stage of each resolution ends a map.
_MAPS = {0: 'c1', 1: 'c2', 2: 'c3', 4: 'c4', 6: 'c5'}
_STEM, _HEAD = 32, 1280
_uniform_fan_out = nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')


class Classifier(nn.Module):
    """ImageNet logits [B, num_classes] float32 of images [B, H, W, 3]; H, W multiples of 32.

    Also returns the encoder's maps c1 to c5, `low` (c2), `high` (c5) and `features`
    [B, H/32, W/32, 1280].  Made for RGB images (x - 127) / 128 of 0..255.  The stochastic depth of
    the original's training is left out.
    """

    num_classes: int = 1000
    dropout: float | None = None
    style: Style = Style()

    feature_stride = 32
    multiple = 32

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        maps = Encoder(style=self.style, name='encoder')(image, train)
        features = _block(_HEAD, 1, 'head', self.style)(maps['c5'], train)
        wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        pooled = Dropout(0.2, self.dropout)(global_mean(wide)[:, 0, 0], train)
        logits = nn.Dense(
            self.num_classes, dtype=pooled.dtype, kernel_init=_uniform_fan_out, name='classifier'
        )(pooled)
        named = {'low': maps['c2'], 'features': features, 'high': maps['c5']}
        return {'logits': logits, **maps, **named}


class Encoder(nn.Module):
    """Image [B, H, W, 3] -> maps c1 (stride 2, 16 channels), c2 (4, 24), c3 (8, 40), c4, c5.

    c4 has 112 channels at stride 16, c5 320 at 32, or both at most at `output_stride` 8 or 16: a
    stage that would go beyond keeps its size, and from its second block on all depthwise
    convolutions dilate instead.  UserError for another stride.
    """

    output_stride: int = 32
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool = False):
        lookup(dict.fromkeys((8, 16, 32)), self.output_stride, 'output_stride')
        x = image.astype(self.style.dtype)
        x = _block(_STEM, 3, 'stem', self.style, stride=2)(x, train)
        maps, reached, dilation, count = {}, 2, 1, 0
        for stage, (expansion, channels, blocks, kernel_size, stride) in enumerate(STAGES):
            # The first block keeps the dilation of the stage before, as its input does.
            first_dilation = dilation
            if reached * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            for i in range(blocks):
                x = InvertedResidual(
                    channels,
                    expansion,
                    kernel_size,
                    stride=1 if i else stride,
                    dilation=dilation if i else first_dilation,
                    style=self.style,
                    name=f'block{count}',
                )(x, train)
                count += 1
            if stage in _MAPS:
                maps[_MAPS[stage]] = x
        return maps


class InvertedResidual(nn.Module):
    """[B, H, W, C] -> [B, H/stride, W/stride, features]: 1x1 to expansion * C, depthwise, 1x1.

    The last has no activation; the input is added where the shape stays.  Without expansion the
    first 1x1 is left out.
    """

    features: int
    expansion: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        y, width = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = _block(width, 1, 'expand', self.style)(y, train)
        y = _block(
            width,
            self.kernel_size,
            'depthwise',
            self.style,
            stride=self.stride,
            dilation=self.dilation,
            groups=width,
            kernel_init=he_fan_in,
        )(y, train)
        y = _block(self.features, 1, 'project', self.style, activation=None)(y, train)
        return x + y if x.shape == y.shape else y


def _block(features, kernel_size, name, style, *, stride=1, activation='relu6', **options):
    padding = None
    if stride == 2:
        # TensorFlow's SAME for even sizes, the only legal ones: one pixel more behind.
        before = (kernel_size - 2) // 2
        padding = ((before, kernel_size - 2 - before),) * 2
    return ConvNorm(
        features,
        kernel_size,
        stride=stride,
        padding=padding,
        activation=activation,
        epsilon=1e-3,
        momentum=0.99,
        style=style,
        name=name,
        **{'kernel_init': he_normal, **options},
    )
