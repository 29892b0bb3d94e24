"""What the networks share: named sequences, convolutions, resizes; maps are [B, C, H, W].

Everything keeps the memory format it is given and runs under autocast and torch.compile.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def chain(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row under the names that the public code gives them."""
    return nn.Sequential(OrderedDict(modules))


def conv(inputs, outputs, size=3, stride=1, dilation=1, groups=1, bias=False) -> nn.Conv2d:
    """Convolution that keeps height and width at stride 1; `size` may be a pair."""
    size = (size, size) if isinstance(size, int) else size
    padding = tuple(dilation * (n // 2) for n in size)
    return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias)


def conv_norm_relu(inputs, outputs, size=3, stride=1, dilation=1) -> list[nn.Module]:
    """The three layers most networks repeat, to be spread into an nn.Sequential."""
    return [
        conv(inputs, outputs, size, stride, dilation),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class InPlaceNorm(nn.Module):
    """Batch norm of gain |weight| + eps, leaky ReLU where there is a slope; [B, C, H, W] -> same.

    The arithmetic of in-place activated batch norm, which keeps no count of batches.
    """

    def __init__(self, channels: int, slope: float | None = None):
        super().__init__()
        self.slope, self.eps = slope, 1e-5
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer('running_mean', torch.zeros(channels))
        self.register_buffer('running_var', torch.ones(channels))

    def forward(self, x):
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight.abs() + self.eps,
            self.bias,
            self.training,
            momentum=0.1,
            eps=self.eps,
        )
        return x if self.slope is None else F.leaky_relu(x, self.slope, inplace=True)


def classify(head: nn.Sequential, x):
    """Scores of a head that ends in dropout and classifier, and the map before these two."""
    *body, dropout, classifier = head
    for layer in body:
        x = layer(x)
    return classifier(dropout(x)), x


class GlobalMean(nn.Module):
    """Mean over all pixels: [B, C, H, W] -> [B, C, 1, 1]."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


def halve(x):
    """3x3 mean of stride 2, zeros of the padding counted: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return F.avg_pool2d(x, 3, 2, 1)


def pool_to(x, size):
    """Adaptive average pool to size = (h, w), the faster plain one where h and w divide H and W."""
    height, width = x.shape[2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(x, size)
    cell = (height // size[0], width // size[1])
    return x if cell == (1, 1) else F.avg_pool2d(x, cell)


def enlarge(x, size, convention='align_corners'):
    """Bilinear resize to size = (h, w); convention align_corners or half_pixel."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode='bilinear', align_corners=convention == 'align_corners')


def interleave(x, groups: int):
    """Channel shuffle: channel j P + p of x [B, groups P, H, W] becomes channel p groups + j."""
    batch, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        # Written in the order of memory: one copy, and it stays channels_last.
        x = x.permute(0, 2, 3, 1).reshape(batch, height, width, groups, -1)
        return x.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def depth_to_space(x, r: int):
    """Pixel shuffle: channel (row r + column) C + c of x [B, r r C, H, W] -> [B, C, r H, r W].

    With the channels of one output pixel side by side, unlike in nn.PixelShuffle, whole rows of C
    are copied where memory is channels_last, and the result stays so.
    """
    batch, channels, height, width = x.shape
    large = (batch, r * height, r * width, -1)
    if x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(batch, height, width, r, r, -1)
        return x.transpose(2, 3).reshape(large).permute(0, 3, 1, 2)
    x = x.reshape(batch, r, r, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // (r * r), r * height, r * width)
