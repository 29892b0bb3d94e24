"""BiSeNet with ResNet-18 as ycszen/TorchSeg (MIT) defines it; names of weights as there."""

import torch
from torch import nn

from .layers import GlobalMean, chain, conv, enlarge
from .resnet import ResNet


class BiSeNet(nn.Module):
    """Image [B, 3, H, W], multiples of 8 -> the dict of a peer, scores and features at 1/8.

    `aux` holds aux16 and aux8, the scores of two auxiliary classifiers.
    """

    aux_weight = 1.0

    def __init__(self, num_classes: int, dropout: float | None = None):
        super().__init__()
        self.maps = {
            'scores': (num_classes, 8),
            'features': (64, 8),
            'low': (64, 4),
            'high': (512, 32),
        }
        self.spatial_path = chain(
            conv_7x7=_block(3, 64, 7, 2),
            conv_3x3_1=_block(64, 64, 3, 2),
            conv_3x3_2=_block(64, 64, 3, 2),
            conv_1x1=_block(64, 128, 1),
        )
        self.context_path = ResNet(18)
        self.global_context = nn.Sequential(GlobalMean(), _block(512, 128, 1))
        self.arms = nn.ModuleList([Refinement(512, 128), Refinement(256, 128)])
        self.refines = nn.ModuleList([_block(128, 128, 3), _block(128, 128, 3)])
        self.ffm = Fusion(256)
        self.heads = nn.ModuleList(
            Head(inputs, width, num_classes, dropout or 0.0)
            for inputs, width in ((128, 256), (128, 256), (256, 64))
        )

    def forward(self, image, aux: bool | None = None):
        spatial = self.spatial_path(image)
        c2, c3, c4, c5 = self.context_path(image)
        # A mean over the whole map: adding it is what resizing it and adding would do.
        x = self.arms[0](c5) + self.global_context(c5)
        sixteenth = self.refines[0](enlarge(x, c4.shape[2:]))
        x = self.arms[1](c4) + sixteenth
        eighth = self.refines[1](enlarge(x, c3.shape[2:]))
        x = self.ffm(torch.cat([spatial, eighth], 1))
        scores, features = self.heads[2](x)
        outputs = {'scores': scores, 'features': features, 'low': c2, 'high': c5}
        if self.training if aux is None else aux:
            outputs['aux'] = {
                'aux16': self.heads[0](sixteenth)[0],
                'aux8': self.heads[1](eighth)[0],
            }
        return {**outputs, 'resize': 'align_corners'}


class Refinement(nn.Module):
    """3x3 convolution times a gate of its own global mean."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv_3x3 = _block(inputs, outputs, 3)
        gate = chain(conv=conv(outputs, outputs, 1), bn=nn.BatchNorm2d(outputs))
        self.channel_attention = nn.Sequential(GlobalMean(), gate, nn.Sigmoid())

    def forward(self, x):
        x = self.conv_3x3(x)
        return x * self.channel_attention(x)


class Fusion(nn.Module):
    """f + f * gate for a 1x1 convolution f of both paths."""

    def __init__(self, channels):
        super().__init__()
        self.conv_1x1 = _block(channels, channels, 1)
        self.channel_attention = nn.Sequential(
            GlobalMean(),
            chain(conv=conv(channels, channels, 1), relu=nn.ReLU(inplace=True)),
            chain(conv=conv(channels, channels, 1)),
            nn.Sigmoid(),
        )

    def forward(self, x):
        x = self.conv_1x1(x)
        return x + x * self.channel_attention(x)


class Head(nn.Module):
    """Scores and the map they are read from."""

    def __init__(self, inputs, width, num_classes, dropout):
        super().__init__()
        self.conv_3x3 = _block(inputs, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_1x1 = conv(width, num_classes, 1, bias=True)

    def forward(self, x):
        features = self.conv_3x3(x)
        return self.conv_1x1(self.dropout(features)), features


def _block(inputs, outputs, size, stride=1):
    return chain(
        conv=conv(inputs, outputs, size, stride),
        bn=nn.BatchNorm2d(outputs),
        relu=nn.ReLU(inplace=True),
    )
