"""ESPNetv2 for segmentation as its first release sacmehta/ESPNetv2 has it; obsolete since 2019.

The encoder of `espnetv2` with a wider decoder: an EESP block and depthwise pyramids at 1/8, then
1x1 convolutions beside the skips (1,253,038 parameters at width 2.0 with 20 classes).
"""

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.models.espnetv2 import EESP, Encoder
from dsrl_jax.models.layers import Conv, Convention, ConvNorm, Dropout, NormAct, Style, check_size
from dsrl_jax.ops import resize

_DILATIONS = (1, 1, 2, 3)  # of the decoder's EESP block: receptive fields up to 7
_LEVELS = 4  # of its pyramid: 1/16 to 1/128


class ESPNetv2Old(nn.Module):
    """Class scores [B, H/2, W/2, num_classes] of images [B, H, W, 3]; H, W multiples of 16.

    `features` [B, H/2, W/2, C + num_classes] is the finest skip beside the scores from below.
    `aux` holds `l3`, the scores at 1/8 brought to 1/2: the original doubles them three times,
    which is not one resize by eight; the last doubling is left, as that of the scores is.
    `dropout` replaces the rate at which whole channels are dropped before both classifiers, 0.2,
    or 0.1 up to width 0.5.
    """

    num_classes: int
    width: float = 2.0
    dropout: float | None = None
    style: Style = Style()

    score_stride = 2
    feature_stride = 2
    multiple = 16
    aux_weight = 1.0

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        style, classes = self.style, self.num_classes
        rate = 0.1 if self.width <= 0.5 else 0.2
        level1, level2, level3, level4 = Encoder(self.width, style, name='encoder')(image, train)
        middle = level3.shape[-1]

        x = _project(middle, style, name='proj_L4_C')(level4, train)
        x = jnp.concatenate([level3, _twice(x)], axis=-1)
        x = EESP(middle, dilations=_DILATIONS, style=style, name='psp_eesp')(x, train)
        x = Pyramid(middle, style, name='psp')(x, train)
        x = Dropout(rate, self.dropout, channels=True, name='drop_l3')(x, train)
        coarse = Conv(classes, 1, style=style, name='project_l3')(x)

        x = NormAct(style=style, name='act_l3')(coarse, train)
        x = jnp.concatenate([level2, _twice(x)], axis=-1)
        x = _project(classes, style, name='project_l2')(x, train)
        features = jnp.concatenate([level1, _twice(x)], axis=-1)
        x = Dropout(rate, self.dropout, channels=True, name='drop_l1')(features, train)
        return {
            'scores': Conv(classes, 1, style=style, name='project_l1')(x),
            'features': features,
            'low': level1,
            'high': level4,
            'aux': {'l3': _twice(_twice(coarse))},
            'resize': Convention('align_corners'),
        }


class Pyramid(nn.Module):
    """Depthwise convolutions of a map halved one to four times, merged with the map itself.

    [B, H, W, C] -> [B, H, W, features].
    """

    features: int
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool):
        channels, size, style = x.shape[-1], x.shape[1:3], self.style
        maps, halved = [x], x
        for i in range(_LEVELS):
            halved = resize.avg_pool(halved, 3, 2, 1)
            conv = Conv(channels, groups=channels, style=style, name=f'stages_{i}')
            maps.append(resize.bilinear(conv(halved), size, convention='align_corners'))
        return _project(self.features, style, name='project')(jnp.concatenate(maps, -1), train)


def _project(features, style, name):
    return ConvNorm(features, 1, activation='prelu', style=style, name=name)


def _twice(x):
    size = (2 * x.shape[1], 2 * x.shape[2])
    return resize.bilinear(x, size, convention='align_corners')
