"""DeepLabv3+ with ResNet-101 as jfzhang95/pytorch-deeplab-xception (MIT) defines it."""

import torch
from torch import nn

from .layers import GlobalMean, classify, conv, conv_norm_relu, enlarge
from .resnet import ResNet

# output stride -> dilations of the pyramid's 3x3 convolutions
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


class DeepLabv3Plus(nn.Module):
    """Image [B, 3, H, W], multiples of the output stride -> the dict of a peer, scores at 1/4.

    `aspp` is the merged pyramid before its dropout.
    """

    aux_weight = 0.0

    def __init__(self, num_classes: int, output_stride: int = 16, dropout: float | None = None):
        super().__init__()
        self.maps = {
            'scores': (num_classes, 4),
            'features': (256, 4),
            'low': (256, 4),
            'high': (2048, output_stride),
        }
        self.backbone = ResNet(101, output_stride, multi_grid=(1, 2, 4))
        self.aspp = ASPP(2048, RATES[output_stride])
        self.decoder = Decoder(num_classes, dropout)

    def forward(self, image):
        low, _, _, high = self.backbone(image)
        aspp = self.aspp(high)
        scores, features = self.decoder(aspp, low)
        return {
            'scores': scores,
            'features': features,
            'aspp': aspp,
            'low': low,
            'high': high,
            'resize': 'align_corners',
        }


class ASPP(nn.Module):
    """A 1x1 convolution, three dilated 3x3 and the global mean side by side, then a 1x1."""

    def __init__(self, inputs, rates):
        super().__init__()
        self.aspp1 = Branch(inputs, 1)
        self.aspp2, self.aspp3, self.aspp4 = (Branch(inputs, 3, rate) for rate in rates)
        self.global_avg_pool = nn.Sequential(GlobalMean(), *conv_norm_relu(inputs, 256, 1))
        self.conv1, self.bn1, self.relu = conv_norm_relu(1280, 256, 1)

    def forward(self, x):
        maps = [branch(x) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        maps.append(self.global_avg_pool(x).expand_as(maps[0]))
        return self.relu(self.bn1(self.conv1(torch.cat(maps, 1))))


class Branch(nn.Module):
    """One convolution of the pyramid with norm and ReLU."""

    def __init__(self, inputs, size, rate=1):
        super().__init__()
        self.atrous_conv, self.bn, self.relu = conv_norm_relu(inputs, 256, size, dilation=rate)

    def forward(self, x):
        return self.relu(self.bn(self.atrous_conv(x)))


class Decoder(nn.Module):
    """Pyramid and low-level map -> scores and the map they are read from, both at 1/4.

    `dropout` replaces all three of the original's rates.
    """

    def __init__(self, num_classes, dropout):
        super().__init__()
        rates = (0.5, 0.5, 0.1) if dropout is None else (dropout,) * 3
        self.conv1, self.bn1, self.relu = conv_norm_relu(256, 48, 1)
        self.aspp_dropout = nn.Dropout(rates[0])
        self.last_conv = nn.Sequential(
            *conv_norm_relu(304, 256),
            nn.Dropout(rates[1]),
            *conv_norm_relu(256, 256),
            nn.Dropout(rates[2]),
            conv(256, num_classes, 1, bias=True),
        )

    def forward(self, aspp, low):
        low = self.relu(self.bn1(self.conv1(low)))
        x = enlarge(self.aspp_dropout(aspp), low.shape[2:])
        return classify(self.last_conv, torch.cat([x, low], 1))
