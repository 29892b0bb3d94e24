"""ResNet-18, -50 and -101 (He et al., CVPR 2016) in torchvision's layout, dilated where asked.

The encoder of DeepLabv3+, PSPNet, BiSeNet and RefineNet, and its ImageNet classifier.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models.layers import (
    ConvNorm,
    Dropout,
    Style,
    check_size,
    global_mean,
    he_normal,
    torch_uniform,
)
from dsrl_jax.ops import resize

# depth -> blocks of layer1 to layer4, and whether they are bottlenecks
LAYOUTS = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}
_PLANES = (64, 128, 256, 512)
# output stride -> strides of layer1 to layer4 and the dilations that replace the missing ones
_STRIDES = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
}


class ResNet(nn.Module):
    """Image [B, H, W, 3] -> maps c1 (stride 2, before the max pool), c2 (4), c3, c4, c5.

    `output_stride` 8, 16 or 32 is c5's; a layer that keeps its size dilates its 3x3 convolutions
    instead, in every block, or from the second on with the first as in the layer before
    (`dilate_first` False: torchvision).  `multi_grid` multiplies the dilations of layer4's blocks.
    `stem` is one 7x7 convolution (`conv7`) or three 3x3 (`deep`).  `ceil_mode` rounds the max
    pool's size up.  `width` scales all channels; `absolute` is the norms' (see layers.BatchNorm).
    """

    depth: int = 101
    output_stride: int = 32
    stem: str = 'conv7'
    dilate_first: bool = True
    multi_grid: tuple[int, ...] = ()
    ceil_mode: bool = False
    absolute: bool = False
    width: float = 1.0
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool = False):
        counts, bottleneck = lookup(LAYOUTS, self.depth, 'depth of ResNet')
        strides, dilations = lookup(_STRIDES, self.output_stride, 'output_stride')
        maps = {'c1': self._stem(image.astype(self.style.dtype), train)}
        # Rounding up, a last window may begin on the last row and column.
        ends = (1, 2) if self.ceil_mode else (1, 1)
        x = resize.max_pool(maps['c1'], 3, 2, (ends, ends))
        before = 1
        for layer, (blocks, stride, dilation) in enumerate(zip(counts, strides, dilations), 1):
            grid = self.multi_grid if layer == 4 and self.multi_grid else (1,) * blocks
            for i in range(blocks):
                x = Block(
                    round(_PLANES[layer - 1] * self.width),
                    stride=1 if i else stride,
                    dilation=grid[i] * (dilation if self.dilate_first or i else before),
                    bottleneck=bottleneck,
                    absolute=self.absolute,
                    style=self.style,
                    name=f'layer{layer}_block{i}',
                )(x, train)
            maps[f'c{layer + 1}'], before = x, dilation
        return maps

    def _stem(self, x, train):
        if lookup({'conv7': True, 'deep': False}, self.stem, 'stem of ResNet'):
            return self._first(64, 7, 2, 'stem')(x, train)
        x = self._first(64, 3, 2, 'stem0')(x, train)
        x = self._first(64, 3, 1, 'stem1')(x, train)
        return self._first(128, 3, 1, 'stem2')(x, train)

    def _first(self, features, kernel_size, stride, name):
        return ConvNorm(
            round(features * self.width),
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            activation='relu',
            absolute=self.absolute,
            style=self.style,
            name=name,
        )


class Block(nn.Module):
    """Residual block, [B, H, W, C] -> [B, H/stride, W/stride, planes], or 4 planes in a bottleneck.

    Basic: two 3x3 convolutions, the first with the stride.  Bottleneck: 1x1, 3x3 with the stride,
    1x1.  The shortcut is projected where the shape changes.
    """

    planes: int
    stride: int = 1
    dilation: int = 1
    bottleneck: bool = False
    absolute: bool = False
    style: Style = Style()
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x, train: bool = False):
        def block(features, kernel_size, name, stride=1, activation=None):
            return ConvNorm(
                features,
                kernel_size,
                stride=stride,
                dilation=self.dilation if kernel_size == 3 else 1,
                padding=self.dilation * (kernel_size // 2),
                activation=activation,
                absolute=self.absolute,
                style=self.style,
                kernel_init=self.kernel_init,
                name=name,
            )

        if self.bottleneck:
            y = block(self.planes, 1, 'conv1', activation='relu')(x, train)
            y = block(self.planes, 3, 'conv2', self.stride, 'relu')(y, train)
            y = block(4 * self.planes, 1, 'conv3')(y, train)
        else:
            y = block(self.planes, 3, 'conv1', self.stride, 'relu')(x, train)
            y = block(self.planes, 3, 'conv2')(y, train)
        if x.shape != y.shape:
            x = block(y.shape[-1], 1, 'downsample', self.stride)(x, train)
        return nn.relu(x + y)


class Classifier(nn.Module):
    """ImageNet logits [B, num_classes] float32 of images [B, H, W, 3], and the encoder's maps.

    The maps are c2 to c5 of ResNet; `low` (c2), `features` and `high` (c5) name them as every
    network does.  `dropout` is that of the pooled features (the original: none).
    """

    num_classes: int = 1000
    depth: int = 101
    output_stride: int = 32
    dropout: float | None = None
    style: Style = Style()

    multiple = 32

    @property
    def feature_stride(self):
        """Stride of `features`."""
        return self.output_stride

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        encoder = ResNet(self.depth, self.output_stride, style=self.style, name='encoder')
        maps = encoder(image, train)
        wide = maps['c5'].astype(jnp.promote_types(maps['c5'].dtype, jnp.float32))
        pooled = Dropout(0.0, self.dropout)(global_mean(wide)[:, 0, 0], train)
        logits = nn.Dense(
            self.num_classes, dtype=pooled.dtype, kernel_init=torch_uniform, name='classifier'
        )(pooled)
        named = {'low': maps['c2'], 'features': maps['c5'], 'high': maps['c5']}
        return {'logits': logits, **maps, **named}
