"""PSPNet (Zhao et al., CVPR 2017): a dilated ResNet, means over four grids, one classifier.

Two public definitions: `semseg`, its first author's (hszhao/semseg, MIT), and `skd`, teacher and
student of structured knowledge distillation (Liu et al., CVPR 2019;
irfanICMLL/structure_knowledge_distillation, BSD-2-Clause).
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import lookup
from dsrl_jax.models.layers import (
    Conv,
    Convention,
    ConvNorm,
    Dropout,
    Style,
    check_size,
    torch_uniform,
)
from dsrl_jax.models.resnet import ResNet
from dsrl_jax.ops import resize

_BINS = (1, 2, 3, 6)


class Definition(NamedTuple):
    """What the public code bases do differently."""

    activation: str  # of the pyramid and both heads; the ResNet has ReLU everywhere
    absolute: bool  # in-place activated norms, gain |scale| + epsilon
    ceil_mode: bool  # of the stem's max pool: maps of 1/8 + 1 rows and columns
    input_first: bool  # where the pyramid's input stands among its means
    aux_width: int  # channels of c4 per channel of the auxiliary head
    aux_bias: bool  # of the auxiliary head's 3x3 convolution


VARIANTS = {
    'semseg': Definition(
        activation='relu',
        absolute=False,
        ceil_mode=False,
        input_first=True,
        aux_width=4,
        aux_bias=False,
    ),
    'skd': Definition(
        activation='leaky_relu',
        absolute=True,
        ceil_mode=True,
        input_first=False,
        aux_width=2,
        aux_bias=True,
    ),
}


class PSPNet(nn.Module):
    """Class scores [B, H/8, W/8, num_classes] of images [B, H, W, 3]; H, W are 8k or 8k + 1.

    That is at `output_stride` 8, as published; 16 costs a quarter.
    `features` [B, H/8, W/8, C/4] is the map before the last 1x1, C the channels of layer4.  From
    8k + 1 pixels align_corners brings the k + 1 scores exactly onto every eighth pixel; `skd` makes
    k + 1 of 8k too.  `width` multiplies the ResNet's channels, and pyramid and heads, which
    are fractions of those, follow; the authors of `skd` publish results at width 0.5 but no code.
    `dropout` drops whole channels before both classifiers (None: 0.1, the original).
    UserError for another size or an unknown variant or depth.
    """

    num_classes: int
    depth: int = 101
    width: float = 1.0
    output_stride: int = 8
    variant: str = 'semseg'
    dropout: float | None = None
    style: Style = Style()

    offsets = (0, 1)
    aux_weight = 0.4

    @property
    def multiple(self):
        """Legal heights and widths are multiples of this, or 1 more."""
        return self.output_stride

    @property
    def score_stride(self):
        """Stride of `scores`, or one row and column more."""
        return self.output_stride

    @property
    def feature_stride(self):
        """Stride of `features`, as of the scores."""
        return self.output_stride

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple, self.offsets)
        definition = lookup(VARIANTS, self.variant, 'variant')
        maps = ResNet(
            self.depth,
            output_stride=self.output_stride,
            stem='deep',
            dilate_first=True,
            ceil_mode=definition.ceil_mode,
            absolute=definition.absolute,
            width=self.width,
            style=self.style,
            name='encoder',
        )(image, train)
        shared = {'definition': definition, 'style': self.style}
        x = Pyramid(**shared, name='pyramid')(maps['c5'], train)

        heads = {**shared, 'num_classes': self.num_classes, 'dropout': self.dropout}
        main = Head(maps['c5'].shape[-1] // 4, **heads, name='head')
        aux = Head(
            maps['c4'].shape[-1] // definition.aux_width,
            use_bias=definition.aux_bias,
            **heads,
            name='aux',
        )
        scores, features = main(x, train)
        return {
            'scores': scores,
            'features': features,
            'low': maps['c2'],
            'high': maps['c5'],
            'aux': {'aux': aux(maps['c4'], train)[0]},
            'resize': Convention('align_corners'),
        }


class Pyramid(nn.Module):
    """The map and its means over 1, 2x2, 3x3, 6x6 cells; [B, H, W, C] -> [B, H, W, 2 C].

    Each grid of means is projected to C/4 channels and enlarged to H x W.
    """

    definition: Definition
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        means = []
        for i, n in enumerate(_BINS):
            project = ConvNorm(
                x.shape[-1] // len(_BINS),
                1,
                activation=self.definition.activation,
                absolute=self.definition.absolute,
                style=self.style,
                kernel_init=torch_uniform,
                name=f'bin{i}',
            )
            mean = project(resize.adaptive_avg_pool(x, (n, n)), train)
            means.append(resize.bilinear(mean, x.shape[1:3], convention='align_corners'))
        return jnp.concatenate([x, *means] if self.definition.input_first else [*means, x], axis=-1)


class Head(nn.Module):
    """3x3 convolution, norm, 1x1 classifier: [B, H, W, C] -> scores [.., classes], map [.., width].

    The map is the classifier's input before dropout.
    """

    width: int
    num_classes: int
    definition: Definition
    use_bias: bool = False
    dropout: float | None = None
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        features = ConvNorm(
            self.width,
            use_bias=self.use_bias,
            activation=self.definition.activation,
            absolute=self.definition.absolute,
            style=self.style,
            kernel_init=torch_uniform,
            name='bottleneck',
        )(x, train)
        classifier = Conv(
            self.num_classes,
            1,
            use_bias=True,
            style=self.style,
            kernel_init=torch_uniform,
            name='classifier',
        )
        return classifier(Dropout(0.1, self.dropout, channels=True)(features, train)), features
