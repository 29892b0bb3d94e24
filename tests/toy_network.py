"""A network of three convolutions, named 'toy_network:Toy' in a configuration: compiles in a blink.

For tests of the loop around the network: resuming, refusing, stopping.
"""

from flax import linen as nn

from dsrl_jax.models.layers import Conv, Convention, ConvNorm, Style


class Toy(nn.Module):
    """Image [B, H, W, 3] -> scores and features at 1/2, low at 1/2, high at 1/4."""

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
