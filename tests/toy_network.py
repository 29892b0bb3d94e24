"""Networks for tests of what stands around a network, named 'toy_network:Toy' in a configuration.

Most of a test of the loop, of checkpoints or of exports is the compiling of its network.
"""

from flax import linen as nn

from dsrl_jax.models import espnetv2
from dsrl_jax.models.layers import Conv, Convention, ConvNorm, Dropout, NormAct, Style
from dsrl_jax.ops import resize


class Toy(nn.Module):
    """Three convolutions: image [B, H, W, 3] -> scores, features and low at 1/2, high at 1/4."""

    num_classes: int
    width: float = 1.0
    dropout: float = 0.0
    style: Style = Style()
    score_stride = feature_stride = 2
    multiple = 8

    @nn.compact
    def __call__(self, image, train=False):
        def block(width, name):
            return ConvNorm(width, stride=2, activation='relu', style=self.style, name=name)

        low = block(4, 'stem')(image, train)
        high = block(6, 'deep')(low, train)
        scores = Conv(self.num_classes, 1, use_bias=True, style=self.style, name='head')(low)
        return {
            'scores': scores,
            'features': low,
            'low': low,
            'high': high,
            'resize': Convention('half_pixel'),
        }


class Short(nn.Module):
    """ESPNetv2 with one block of each kind, a much shorter program; maps of the strides of Toy."""

    num_classes: int
    width: float | None = None
    dropout: float | None = None
    style: Style = Style()
    score_stride = feature_stride = 2
    multiple = 8

    @nn.compact
    def __call__(self, image, train=False):
        style = self.style
        image = image.astype(style.dtype)
        low = ConvNorm(8, stride=2, activation='prelu', style=style, name='level1')(image, train)
        quarter = resize.avg_pool(image, 4, 4)
        high = espnetv2.DownSampler(16, (1, 2), style, name='level2_0')(low, quarter, train)
        high = espnetv2.EESP(16, dilations=(1, 2), style=style, name='level2_block0')(high, train)
        wide, _ = espnetv2.PyramidPool(4, 16, style=style, name='bu_dec_l1')(high, train)
        wide = resize.bilinear(wide, low.shape[1:3], convention='align_corners')
        wide = wide + espnetv2.GatedConv(16, style, name='merge_enc_dec')(low, train)
        features = NormAct(style=style, name='bu_br')(wide, train)
        x = Dropout(0.0, self.dropout, channels=True)(features, train)
        scores = Conv(self.num_classes, 1, use_bias=True, style=style, name='head')(x)
        return {
            'scores': scores,
            'features': features,
            'low': low,
            'high': high,
            'resize': Convention('align_corners'),
        }
