"""DABNet as Reagan1311/DABNet (MIT) defines it; names of weights as there."""

import torch
import torch.nn.functional as F
from torch import nn

from .layers import chain, conv, halve

# dilations of the modules of blocks 1 and 2
DILATIONS = ((2, 2, 2), (4, 4, 8, 8, 16, 16))


class DABNet(nn.Module):
    """Image [B, 3, H, W], multiples of 8 -> the dict of a peer, scores and features at 1/8."""

    aux_weight = 0.0

    def __init__(self, num_classes: int, dropout: float | None = None):
        super().__init__()
        self.maps = {
            'scores': (num_classes, 8),
            'features': (259, 8),
            'low': (32, 2),
            'high': (128, 8),
        }
        self.init_conv = nn.Sequential(
            _conv(3, 32, stride=2, act=True), _conv(32, 32, act=True), _conv(32, 32, act=True)
        )
        self.bn_prelu_1 = _norm_act(35)
        self.downsample_1 = Downsampling(35, 64)
        self.DAB_Block_1 = _block(1, 64)
        self.bn_prelu_2 = _norm_act(131)
        self.downsample_2 = Downsampling(131, 128)
        self.DAB_Block_2 = _block(2, 128)
        self.bn_prelu_3 = _norm_act(259)
        self.dropout = nn.Dropout2d(dropout or 0.0)
        self.classifier = nn.Sequential(_conv(259, num_classes, 1))

    def forward(self, image):
        low = self.init_conv(image)
        # Beside maps of an autocast type, an image of float32 would make the whole map float32.
        half = halve(image.to(low.dtype))
        quarter = halve(half)
        x = self.bn_prelu_1(torch.cat([low, half], 1))

        down = self.downsample_1(x)
        x = self.DAB_Block_1(down)
        x = self.bn_prelu_2(torch.cat([x, down, quarter], 1))

        down = self.downsample_2(x)
        high = self.DAB_Block_2(down)
        features = self.bn_prelu_3(torch.cat([high, down, halve(quarter)], 1))
        return {
            'scores': self.classifier(self.dropout(features)),
            'features': features,
            'low': low,
            'high': high,
            'resize': 'half_pixel',
        }


class Downsampling(nn.Module):
    """Strided 3x3 convolution, beside a max pool where channels grow, then norm and PReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.grows = inputs < outputs
        self.conv3x3 = _conv(inputs, outputs - inputs if self.grows else outputs, stride=2)
        self.bn_prelu = _norm_act(outputs)

    def forward(self, x):
        y = self.conv3x3(x)
        if self.grows:
            y = torch.cat([y, F.max_pool2d(x, 2)], 1)
        return self.bn_prelu(y)


class DABModule(nn.Module):
    """x plus a bottleneck of two depthwise branches, one of them dilated."""

    def __init__(self, channels, dilation):
        super().__init__()
        inner = channels // 2
        self.bn_relu_1 = _norm_act(channels)
        self.conv3x3 = _conv(channels, inner, act=True)
        self.dconv3x1 = _depthwise(inner, (3, 1))
        self.dconv1x3 = _depthwise(inner, (1, 3))
        self.ddconv3x1 = _depthwise(inner, (3, 1), dilation)
        self.ddconv1x3 = _depthwise(inner, (1, 3), dilation)
        self.bn_relu_2 = _norm_act(inner)
        self.conv1x1 = _conv(inner, channels, 1)

    def forward(self, x):
        y = self.conv3x3(self.bn_relu_1(x))
        y = self.dconv1x3(self.dconv3x1(y)) + self.ddconv1x3(self.ddconv3x1(y))
        return x + self.conv1x1(self.bn_relu_2(y))


def _block(number, channels):
    modules = enumerate(DILATIONS[number - 1])
    return chain(**{f'DAB_Module_{number}_{i}': DABModule(channels, d) for i, d in modules})


def _depthwise(channels, size, dilation=1):
    return _conv(channels, channels, size, dilation=dilation, groups=channels, act=True)


def _conv(inputs, outputs, size=3, stride=1, dilation=1, groups=1, act=False):
    layers = {'conv': conv(inputs, outputs, size, stride, dilation, groups)}
    return chain(**layers, **({'bn_prelu': _norm_act(outputs)} if act else {}))


def _norm_act(channels):
    return chain(bn=nn.BatchNorm2d(channels, eps=1e-3), acti=nn.PReLU(channels))
