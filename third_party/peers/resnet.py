"""ResNet-18 and -101 in torchvision's layout (BSD-3-Clause), dilated where asked."""

from torch import nn

from .layers import conv

# depth -> blocks of layers 1 to 4, and how much wider a block's output is than its planes
LAYOUTS = {18: ((2, 2, 2, 2), 1), 101: ((3, 4, 23, 3), 4)}
# output stride -> strides of the layers, and the dilations that replace the missing ones
STRIDES = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
}


class ResNet(nn.Module):
    """Image [B, 3, H, W] -> maps c2 (stride 4), c3, c4, c5 (the output stride)."""

    def __init__(self, depth: int, output_stride: int = 32, multi_grid=(1, 1, 1)):
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        made = layers(depth, output_stride, multi_grid=multi_grid)
        self.layer1, self.layer2, self.layer3, self.layer4 = made

    def forward(self, image):
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(image)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)


def layers(
    depth, output_stride, stem=64, multi_grid=(1, 1, 1), norm=nn.BatchNorm2d
) -> list[nn.Sequential]:
    """The four layers after the stem: a layer that keeps its size dilates its 3x3 convolutions."""
    counts, expansion = LAYOUTS[depth]
    block = Bottleneck if expansion > 1 else BasicBlock
    strides, dilations = STRIDES[output_stride]
    made, inputs = [], stem
    for i, (count, stride, dilation) in enumerate(zip(counts, strides, dilations)):
        grid = multi_grid if i == 3 else (1,) * count
        row = []
        for k in range(count):
            row.append(block(inputs, 64 << i, 1 if k else stride, dilation * grid[k], norm))
            inputs = expansion * (64 << i)
        made.append(nn.Sequential(*row))
    return made


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, and the shortcut."""

    def __init__(self, inputs, planes, stride=1, dilation=1, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = conv(inputs, planes, 3, stride, dilation)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(planes, planes, 3, 1, dilation)
        self.bn2 = norm(planes)
        self.downsample = _shortcut(inputs, planes, stride, norm)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the planes, and the shortcut."""

    def __init__(self, inputs, planes, stride=1, dilation=1, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = conv(inputs, planes, 1)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, 3, stride, dilation)
        self.bn2 = norm(planes)
        self.conv3 = conv(planes, 4 * planes, 1)
        self.bn3 = norm(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * planes, stride, norm)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def _shortcut(inputs, outputs, stride, norm):
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
