"""RefineNet (Lin et al., CVPR 2017) on a ResNet-101: four refinement blocks, coarse to fine.

After DrSleep/refinenet-pytorch, a port of the authors' MATLAB network for non-commercial use: the
definition was read off it, no code was taken.
"""

import jax
from flax import linen as nn

from dsrl_jax.models.layers import Conv, Convention, Dropout, Style, check_size, torch_uniform
from dsrl_jax.models.resnet import ResNet
from dsrl_jax.ops import resize

# Channels of the blocks, on c5 (1/32) to c2 (1/4).
_WIDTHS = (512, 256, 256, 256)


class RefineNet(nn.Module):
    """Class scores [B, H/4, W/4, num_classes] of images [B, H, W, 3]; H, W multiples of 16.

    `features` [B, H/4, W/4, 256] is the map before the last convolution, `low` the encoder's at
    1/4, `high` at 1/32, rounded up.  `dropout` acts on the encoder's two deepest maps and on
    `features` (None: 0.5, the original).  UserError for another size.
    """

    num_classes: int
    dropout: float | None = None
    style: Style = Style()

    score_stride = 4
    feature_stride = 4
    multiple = 16

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        maps = ResNet(101, output_stride=32, style=self.style, name='encoder')(image, train)
        deepest = Dropout(0.5, self.dropout, name='dropout_c5')(maps['c5'], train)
        deep = Dropout(0.5, self.dropout, name='dropout_c4')(maps['c4'], train)

        x = None
        for i, skip in enumerate((deepest, deep, maps['c3'], maps['c2'])):
            x = RefineBlock(_WIDTHS[i], style=self.style, name=f'refine{i + 1}')(skip, x)

        kept = Dropout(0.5, self.dropout, name='dropout_features')(x, train)
        classifier = Conv(
            self.num_classes,
            use_bias=True,
            kernel_init=torch_uniform,
            style=self.style,
            name='classifier',
        )
        return {
            'scores': classifier(kept),
            'features': x,
            'low': maps['c2'],
            'high': maps['c5'],
            'resize': Convention('align_corners'),
        }


class RefineBlock(nn.Module):
    """Adapt an encoder map, fuse it with the coarser block's, pool, refine (RefineNet, fig. 3).

    skip [B, h, w, C] and coarser [B, h', w', C'], None in the coarsest block, -> [B, h, w,
    features].  No batch norm anywhere.
    """

    features: int
    style: Style = Style()

    @nn.compact
    def __call__(self, skip, coarser):
        x = self._conv('reduce')(skip)
        for i in (1, 2):
            x = self._residual(f'adapt{i}')(x)

        if coarser is not None:
            coarser = self._conv('fuse_coarser')(coarser)
            coarser = resize.bilinear(coarser, x.shape[1:3], convention='align_corners')
            x = self._conv('fuse')(x) + coarser

        # Chained residual pooling: every link sees two pixels further and joins the sum.
        x = link = jax.nn.relu(x)
        for i in (1, 2, 3, 4):
            link = self._conv(f'link{i}')(resize.max_pool(link, 5, 1, 2))
            x = x + link

        for i in (1, 2, 3):
            x = self._residual(f'output{i}')(x)
        return x

    def _conv(self, name):
        return Conv(self.features, kernel_init=torch_uniform, style=self.style, name=name)

    def _residual(self, name):
        return ResidualUnit(style=self.style, name=name)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), [B, H, W, C] -> the same shape; 3x3, the first with a bias."""

    style: Style = Style()

    @nn.compact
    def __call__(self, x):
        common = {'features': x.shape[-1], 'kernel_init': torch_uniform, 'style': self.style}
        y = Conv(**common, use_bias=True, name='conv1')(jax.nn.relu(x))
        return x + Conv(**common, name='conv2')(jax.nn.relu(y))
