"""ESPNetv2 for segmentation as sacmehta/EdgeNets (MIT) defines it; names of weights as there."""

import math

import torch
from torch import nn

from .layers import GlobalMean, chain, conv, enlarge, halve, interleave, pool_to

# width -> channels of levels 1 to 4
CHANNELS = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
_WIDE, _MEDIUM = (1, 2, 3, 4), (1, 1, 2, 3)  # dilations of the four branches
_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)


class ESPNetv2(nn.Module):
    """Image [B, 3, H, W], multiples of 16 -> the dict of a peer, scores and features at 1/2."""

    aux_weight = 0.0

    def __init__(self, num_classes: int, width: float = 2.0, dropout: float | None = None):
        super().__init__()
        channels = CHANNELS[width]
        self.maps = {
            'scores': (num_classes, 2),
            'features': (32, 2),
            'low': (channels[0], 2),
            'high': (channels[3], 16),
        }
        self.base_net = Encoder(channels)
        pool = max(1, min(num_classes // 2, 16))
        self.bu_dec_l1 = PyramidPool(channels[3], pool, 64)
        self.merge_enc_dec_l2 = GatedConv(channels[2], 64)
        self.bu_br_l2 = _norm_act(64)
        self.bu_dec_l2 = PyramidPool(64, pool, 48)
        self.merge_enc_dec_l3 = GatedConv(channels[1], 48)
        self.bu_br_l3 = _norm_act(48)
        self.bu_dec_l3 = PyramidPool(48, pool, 32)
        self.merge_enc_dec_l4 = GatedConv(channels[0], 32)
        self.bu_br_l4 = _norm_act(32)
        self.dropout = nn.Dropout2d(dropout or 0.0)
        self.bu_dec_l4 = PyramidPool(32, pool, num_classes, last=True)

    def forward(self, image):
        level1, level2, level3, level4 = self.base_net(image)
        x = self.bu_dec_l1(level4)
        x = self.bu_br_l2(_twice(x) + self.merge_enc_dec_l2(level3))
        x = self.bu_dec_l2(x)
        x = self.bu_br_l3(_twice(x) + self.merge_enc_dec_l3(level2))
        x = self.bu_dec_l3(x)
        features = self.bu_br_l4(_twice(x) + self.merge_enc_dec_l4(level1))
        return {
            'scores': self.bu_dec_l4(self.dropout(features)),
            'features': features,
            'low': level1,
            'high': level4,
            'resize': 'align_corners',
        }


class Encoder(nn.Module):
    """Maps of levels 1 to 4, strides 2, 4, 8, 16."""

    def __init__(self, channels):
        super().__init__()
        one, two, three, four = channels
        self.level1 = _conv_norm_act(3, one, 3, stride=2)
        self.level2_0 = DownSampler(one, two)
        self.level3_0 = DownSampler(two, three)
        self.level3 = nn.Sequential(*[EESP(three, three, 1, _WIDE) for _ in range(3)])
        self.level4_0 = DownSampler(three, four)
        self.level4 = nn.Sequential(*[EESP(four, four, 1, _MEDIUM) for _ in range(7)])

    def forward(self, image):
        # The original pools the image anew for every level; the smaller ones are the larger's.
        quarter = halve(halve(image))
        eighth = halve(quarter)
        level1 = self.level1(image)
        level2 = self.level2_0(level1, quarter)
        level3 = self.level3(self.level3_0(level2, eighth))
        level4 = self.level4(self.level4_0(level3, halve(eighth)))
        return level1, level2, level3, level4


class DownSampler(nn.Module):
    """Mean pool beside a strided EESP, plus the image at that size."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.eesp = EESP(inputs, outputs - inputs, 2, _WIDE)
        self.inp_reinf = nn.Sequential(
            _conv_norm_act(3, 3, 3),
            chain(conv=conv(3, outputs, 1), bn=nn.BatchNorm2d(outputs)),
        )
        self.act = nn.PReLU(outputs)

    def forward(self, x, image):
        x = torch.cat([halve(x), self.eesp(x)], 1)
        return self.act(x + self.inp_reinf(image))


class EESP(nn.Module):
    """Reduce, four depthwise convolutions of growing dilation, running sums, expand."""

    def __init__(self, inputs, outputs, stride, dilations):
        super().__init__()
        branch = outputs // 4
        self.proj_1x1 = _conv_norm_act(inputs, branch, 1, groups=4)
        self.spp_dw = nn.ModuleList(
            chain(conv=conv(branch, branch, 3, stride, dilation, groups=branch))
            for dilation in dilations
        )
        self.br_after_cat = chain(bn=nn.BatchNorm2d(outputs), act=nn.PReLU(outputs))
        self.conv_1x1_exp = chain(
            conv=conv(branch * 4, outputs, 1, groups=4), bn=nn.BatchNorm2d(outputs)
        )
        self.module_act = nn.PReLU(outputs)  # the strided form owns it and never calls it
        self.strided, self.residual = stride > 1, inputs == outputs

    def forward(self, x):
        reduced = self.proj_1x1(x)
        sums = []
        for branch in self.spp_dw:
            y = branch(reduced)
            sums.append(sums[-1] + y if sums else y)
        y = self.conv_1x1_exp(self.br_after_cat(torch.cat(sums, 1)))
        if self.strided:
            return y
        return self.module_act(x + y if self.residual else y)


class PyramidPool(nn.Module):
    """Depthwise convolutions at five scales, shuffled and merged by a grouped one."""

    def __init__(self, inputs, channels, outputs, last=False):
        super().__init__()
        wide = channels * len(_SCALES)
        self.projection_layer = _cbr(inputs, channels, 1)
        self.stages = nn.ModuleList(conv(channels, channels, groups=channels) for _ in _SCALES)
        self.merge_layer = nn.Sequential(
            chain(br=_norm_act(wide)),
            Interleave(len(_SCALES)),
            _cbr(wide, channels, 3, groups=channels),
            conv(channels, outputs, 1, bias=last),
        )
        self.br = nn.Identity() if last else chain(br=_norm_act(outputs))

    def forward(self, x):
        size = tuple(x.shape[2:])
        x = self.projection_layer(x)
        stages = []
        for scale, stage in zip(_SCALES, self.stages):
            target = tuple(max(5, math.ceil(n * scale)) for n in size)
            if scale == 1:
                stages.append(stage(x))
            elif scale > 1:
                stages.append(pool_to(stage(enlarge(x, target)), size))
            else:
                stages.append(enlarge(stage(pool_to(x, target)), size))
        return self.br(self.merge_layer(torch.cat(stages, 1)))


class GatedConv(nn.Module):
    """Grouped 3x3 convolution times a gate of the input's global mean."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.wt_layer = nn.Sequential(GlobalMean(), conv(inputs, outputs, 1), nn.Sigmoid())
        self.expansion_layer = _cbr(inputs, outputs, 3, groups=math.gcd(inputs, outputs))

    def forward(self, x):
        return self.expansion_layer(x) * self.wt_layer(x)


class Interleave(nn.Module):
    """Channel shuffle: afterwards each channel's scales lie side by side."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        return interleave(x, self.groups)


def _conv_norm_act(inputs, outputs, size, stride=1, groups=1):
    return chain(
        conv=conv(inputs, outputs, size, stride, groups=groups),
        bn=nn.BatchNorm2d(outputs),
        act=nn.PReLU(outputs),
    )


def _cbr(inputs, outputs, size, groups=1):
    layers = [conv(inputs, outputs, size, groups=groups), nn.BatchNorm2d(outputs)]
    return chain(cbr=nn.Sequential(*layers, nn.PReLU(outputs)))


def _norm_act(channels):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))


def _twice(x):
    return enlarge(x, (2 * x.shape[2], 2 * x.shape[3]))
