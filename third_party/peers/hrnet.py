"""HRNet-W32 for human pose as leoxiaobin/deep-high-resolution-net.pytorch (MIT) defines it."""

import functools
import operator

from torch import nn

from .layers import conv, conv_norm_relu
from .resnet import BasicBlock, Bottleneck

MODULES = (1, 4, 3)  # of the stages of two, three and four branches
BLOCKS = 4  # of layer1, and of every branch of every module


class HRNet(nn.Module):
    """Image [B, 3, H, W], multiples of 32 -> the dict of a peer; `scores` are heatmaps at 1/4.

    `high` is branch 3 of the last module before the maps are fused.  Fewer `modules` a stage and
    `blocks` a branch than the original's make a small network, as in ours.
    """

    task = 'pose'
    aux_weight = 0.0

    def __init__(
        self,
        num_classes: int = 17,
        width: int = 32,
        modules: tuple[int, int, int] = MODULES,
        blocks: int = BLOCKS,
        dropout: float | None = None,
    ):
        super().__init__()
        widths = [width << i for i in range(4)]
        self.maps = {
            'scores': (num_classes, 4),
            'features': (width, 4),
            'low': (256, 4),
            'high': (widths[3], 32),
        }
        self.result_stride = 4
        self.conv1, self.bn1, self.relu = conv_norm_relu(3, 64, 3, 2)
        self.conv2, self.bn2, _ = conv_norm_relu(64, 64, 3, 2)
        self.layer1 = nn.Sequential(*[Bottleneck(256 if i else 64, 64) for i in range(blocks)])
        # Only new branches have a transition: {branch: layers}, the first one into two.
        self.transition1 = nn.ModuleDict(
            {
                '0': nn.Sequential(*conv_norm_relu(256, width)),
                '1': _opened(256, widths[1]),
            }
        )
        self.transition2 = nn.ModuleDict({'2': _opened(widths[1], widths[2])})
        self.transition3 = nn.ModuleDict({'3': _opened(widths[2], widths[3])})
        self.stage2, self.stage3, self.stage4 = (
            nn.ModuleList(
                Exchange(widths[:stage], 1 if (stage, i) == (4, count - 1) else stage, blocks)
                for i in range(count)
            )
            for stage, count in enumerate(modules, 2)
        )
        self.dropout = nn.Dropout2d(dropout or 0.0)
        self.final_layer = conv(width, num_classes, 1, bias=True)

    def forward(self, image):
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        low = self.layer1(x)
        maps = [self.transition1['0'](low), self.transition1['1'](low)]
        maps, _ = _run(self.stage2, maps)
        maps, _ = _run(self.stage3, [*maps, self.transition2['2'](maps[-1])])
        maps, high = _run(self.stage4, [*maps, self.transition3['3'](maps[-1])])
        return {
            'scores': self.final_layer(self.dropout(maps[0])),
            'features': maps[0],
            'low': low,
            'high': high,
            'resize': 'half_pixel',
        }


class Exchange(nn.Module):
    """Residual blocks in every branch, then `outputs` sums of all branches.

    Maps [B, C_j, H/2^j, W/2^j] -> the fused maps, and the lowest unfused.
    """

    def __init__(self, widths, outputs, blocks):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*[BasicBlock(width, width) for _ in range(blocks)]) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_bring(widths, j, i) for j in range(len(widths))) for i in range(outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        brought = ((bring(x) for bring, x in zip(row, maps)) for row in self.fuse_layers)
        fused = [self.relu(functools.reduce(operator.add, row)) for row in brought]
        return fused, maps[-1]


def _run(modules, maps):
    for module in modules:
        maps, high = module(maps)
    return maps, high


def _opened(inputs, outputs):
    return nn.Sequential(nn.Sequential(*conv_norm_relu(inputs, outputs, 3, 2)))


def _bring(widths, j, i):
    """What takes branch j to the size and width of branch i."""
    if j == i:
        return nn.Identity()
    if j > i:
        return nn.Sequential(
            conv(widths[j], widths[i], 1),
            nn.BatchNorm2d(widths[i]),
            nn.Upsample(scale_factor=2 ** (j - i)),
        )
    steps = [nn.Sequential(*conv_norm_relu(widths[j], widths[j], 3, 2)) for _ in range(i - j - 1)]
    last = nn.Sequential(conv(widths[j], widths[i], 3, 2), nn.BatchNorm2d(widths[i]))
    return nn.Sequential(*steps, last)
