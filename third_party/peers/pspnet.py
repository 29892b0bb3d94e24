"""PSPNet as hszhao/semseg (MIT) and irfanICMLL/structure_knowledge_distillation (BSD-2) define it.

Names of weights as there: the ResNet's layers lie at the root.
"""

import functools

import torch
from torch import nn

from .layers import InPlaceNorm, classify, conv, conv_norm_relu, enlarge, pool_to
from .resnet import LAYOUTS, layers

_BINS = (1, 2, 3, 6)


class Semseg(nn.Module):
    """Image [B, 3, H, W], 8k or 8k + 1 -> the dict of a peer, scores and features at 1/8.

    `aux` holds `aux`, the scores of an auxiliary classifier on layer3.
    """

    aux_weight = 0.4

    def __init__(self, num_classes: int, depth: int = 101, dropout: float | None = None):
        super().__init__()
        wide = 512 * LAYOUTS[depth][1]
        self.maps = _maps(num_classes, wide)
        self.layer0 = nn.Sequential(
            *conv_norm_relu(3, 64, 3, 2),
            *conv_norm_relu(64, 64),
            *conv_norm_relu(64, 128),
            nn.MaxPool2d(3, 2, 1),
        )
        self.layer1, self.layer2, self.layer3, self.layer4 = layers(depth, 8, stem=128)
        self.ppm = Pyramid(wide)
        self.cls = _head(2 * wide, wide // 4, num_classes, dropout)
        self.aux = _head(wide // 2, wide // 8, num_classes, dropout)

    def forward(self, image, aux: bool | None = None):
        low = self.layer1(self.layer0(image))
        c4 = self.layer3(self.layer2(low))
        high = self.layer4(c4)
        scores, features = classify(self.cls, self.ppm(high))
        outputs = {'scores': scores, 'features': features, 'low': low, 'high': high}
        if self.training if aux is None else aux:
            outputs['aux'] = {'aux': classify(self.aux, c4)[0]}
        return {**outputs, 'resize': 'align_corners'}


class Distilled(nn.Module):
    """As Semseg, but of the distillation code: in-place norms, leaky ReLU in both heads.

    Its stem's max pool rounds up: maps of H/8 + 1 rows.
    """

    aux_weight = 0.4

    def __init__(self, num_classes: int, depth: int = 101, dropout: float | None = None):
        super().__init__()
        wide = 512 * LAYOUTS[depth][1]
        rate = 0.1 if dropout is None else dropout
        self.maps = _maps(num_classes, wide)
        self.conv1, self.bn1 = conv(3, 64, 3, 2), InPlaceNorm(64)
        self.conv2, self.bn2 = conv(64, 64), InPlaceNorm(64)
        self.conv3, self.bn3 = conv(64, 128), InPlaceNorm(128)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        made = layers(depth, 8, stem=128, norm=InPlaceNorm)
        self.layer1, self.layer2, self.layer3, self.layer4 = made
        self.pspmodule = DistilledPyramid(wide)
        self.dropout = nn.Dropout2d(rate)
        self.head = conv(wide // 4, num_classes, 1, bias=True)
        self.dsn = nn.Sequential(
            conv(wide // 2, wide // 4, bias=True),
            _leaky(wide // 4),
            nn.Dropout2d(rate),
            conv(wide // 4, num_classes, 1, bias=True),
        )

    def forward(self, image, aux: bool | None = None):
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        low = self.layer1(self.maxpool(x))
        c4 = self.layer3(self.layer2(low))
        high = self.layer4(c4)
        features = self.pspmodule(high)
        outputs = {'scores': self.head(self.dropout(features)), 'features': features}
        if self.training if aux is None else aux:
            outputs['aux'] = {'aux': self.dsn(c4)}
        return {**outputs, 'low': low, 'high': high, 'resize': 'align_corners'}


class Pyramid(nn.Module):
    """The map and its means over 1, 2x2, 3x3, 6x6 cells, projected and enlarged, side by side."""

    def __init__(self, inputs):
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(Cells(n), *conv_norm_relu(inputs, inputs // 4, 1)) for n in _BINS
        )

    def forward(self, x):
        return torch.cat([x, *(enlarge(mean(x), x.shape[2:]) for mean in self.features)], 1)


class DistilledPyramid(nn.Module):
    """The means first, the map last, then a 3x3 convolution."""

    def __init__(self, inputs):
        super().__init__()
        narrow = inputs // 4
        self.stages = nn.ModuleList(
            nn.Sequential(Cells(n), conv(inputs, narrow, 1), _leaky(narrow)) for n in _BINS
        )
        self.bottleneck = nn.Sequential(conv(2 * inputs, narrow), _leaky(narrow))

    def forward(self, x):
        means = [enlarge(mean(x), x.shape[2:]) for mean in self.stages]
        return self.bottleneck(torch.cat([*means, x], 1))


class Cells(nn.Module):
    """Means over n x n cells: [B, C, H, W] -> [B, C, n, n]."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return pool_to(x, (self.n, self.n))


_leaky = functools.partial(InPlaceNorm, slope=0.01)


def _maps(num_classes, wide):
    return {
        'scores': (num_classes, 8),
        'features': (wide // 4, 8),
        'low': (wide // 8, 4),
        'high': (wide, 8),
    }


def _head(inputs, width, num_classes, dropout):
    return nn.Sequential(
        *conv_norm_relu(inputs, width),
        nn.Dropout2d(0.1 if dropout is None else dropout),
        conv(width, num_classes, 1, bias=True),
    )
