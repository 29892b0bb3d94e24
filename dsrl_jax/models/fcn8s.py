"""FCN-8s on VGG-16 (Long et al., CVPR 2015) as wkentaro/pytorch-fcn defines it.

The 100 pixels of padding before the first convolution let the 7x7 of `fc6` reach every pixel, and
shift the grid of all maps: pixel (0, 0) of the image lies inside a cell, not on its corner.
"""

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models.layers import Conv, Convention, ConvTranspose, Dropout, Style, check_size
from dsrl_jax.ops import resize

# Factors of pool4 and pool3 on their way to the scores: 1 where FCN-32s, -16s and -8s are trained
# one after the other, small where FCN-8s is trained at once from VGG's large activations.
VARIANTS = {'staged': (1.0, 1.0), 'at_once': (1e-2, 1e-4)}
# convolutions of VGG-16 up to each pool: how many, of how many channels
_VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
_BORDER = 100


class FCN8s(nn.Module):
    """Class scores [B, H, W, num_classes] of images [B, H, W, 3]; H, W multiples of 8.

    Returns the dict of a segmentation network.  The original takes any size; multiples of 8 give
    the other maps their share of the image once the border is cut off: `low` (pool3) and
    `features` (the fused scores that the last layer enlarges) at 1/8, `high` (conv5_3, before
    pool5) at 1/16, rounded up.  What is left of the shifted grid: their cells lie 3 pixels up and
    left.
    """

    num_classes: int
    variant: str = 'staged'
    dropout: float | None = None
    style: Style = Style()

    score_stride = 1
    feature_stride = 8
    multiple = 8

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        factor4, factor3 = lookup(VARIANTS, self.variant, 'variant')
        height, width = image.shape[1:3]
        eighth, sixteenth = (height // 8, width // 8), (-(-height // 16), -(-width // 16))
        maps = VGG16(self.dropout, self.style, name='encoder')(image, train)

        # The offsets 5, 9 and 31 bring each skip, and the result, under the enlarged map.
        x = self._score('score_fr')(maps['fc7'])
        x = self._enlarge(2, 'upscore2')(x)
        x = x + _crop(self._score('score_pool4')(factor4 * maps['pool4']), 5, x.shape[1:3])
        x = self._enlarge(2, 'upscore_pool4')(x)
        x = x + _crop(self._score('score_pool3')(factor3 * maps['pool3']), 9, x.shape[1:3])
        scores = _crop(self._enlarge(8, 'upscore8')(x), 31, (height, width))
        return {
            'scores': scores,
            'features': _crop(x, 3, eighth),
            'low': _crop(maps['pool3'], 12, eighth),
            'high': _crop(maps['conv5'], 6, sixteenth),
            'resize': Convention('half_pixel'),
        }

    def _score(self, name):
        return Conv(
            self.num_classes,
            1,
            use_bias=True,
            style=self.style,
            kernel_init=nn.initializers.zeros,
            name=name,
        )

    def _enlarge(self, factor, name):
        return ConvTranspose(
            self.num_classes,
            kernel_size=2 * factor,
            stride=factor,
            padding=0,
            output_padding=0,
            style=self.style,
            kernel_init=_bilinear_kernel,
            name=name,
        )


class VGG16(nn.Module):
    """Image [B, H, W, 3] -> maps pool3, pool4, conv5 and fc7 of VGG-16 as a convolutional network.

    All of them are of the image with its border; sizes round up at every pool.
    """

    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool):
        x, maps = image.astype(self.style.dtype), {}
        for block, (count, features) in enumerate(_VGG16, 1):
            for i in range(1, count + 1):
                padding = _BORDER if block == i == 1 else 1
                x = self._conv(features, 3, padding, f'conv{block}_{i}')(x)
            maps[f'conv{block}'] = x
            maps[f'pool{block}'] = x = _halve(x)
        x = self._conv(4096, 7, 0, 'fc6')(x)
        x = Dropout(0.5, self.dropout, channels=True)(x, train)
        x = self._conv(4096, 1, 0, 'fc7')(x)
        return {**maps, 'fc7': Dropout(0.5, self.dropout, channels=True)(x, train)}

    def _conv(self, features, kernel_size, padding, name):
        conv = Conv(
            features, kernel_size, padding=padding, use_bias=True, style=self.style, name=name
        )
        return lambda x: nn.relu(conv(x))


def _halve(x):
    """2x2 max pool of stride 2 that rounds up."""
    return resize.max_pool(x, 2, 2, tuple((0, n % 2) for n in x.shape[1:3]))


def _crop(x, offset, size):
    """The `size` = (h, w) cells of [B, H, W, C] from row and column `offset` on."""
    return x[:, offset : offset + size[0], offset : offset + size[1]]


def _bilinear_kernel(key, shape, dtype=jnp.float32):
    """[k, k, K, K]: bilinear enlargement by k/2 of every class by itself."""
    del key
    factor = shape[0] // 2
    taps = 1 - jnp.abs(jnp.arange(shape[0], dtype=dtype) - factor + 0.5) / factor
    own = jnp.eye(*shape[2:], dtype=dtype)
    return jnp.outer(taps, taps)[:, :, None, None] * own[None, None]
