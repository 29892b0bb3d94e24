"""HRNet for human pose (Sun et al., CVPR 2019) as its authors' release defines it.

Branches of stride 4, 8, 16, 32 and width w, 2w, 4w, 8w run side by side and exchange their maps.
"""

import functools

from flax import linen as nn

from dsrl_jax.models.layers import Conv, Convention, ConvNorm, Dropout, Style, check_size
from dsrl_jax.models.resnet import Block
from dsrl_jax.ops import resize

_MODULES = (1, 4, 3)  # of the stages of two, three and four branches
_BLOCKS = 4  # of layer1, and of every branch of every module
_normal = nn.initializers.normal(0.001)
_conv = functools.partial(ConvNorm, activation='relu', kernel_init=_normal)
_block = functools.partial(Block, kernel_init=_normal)


class HRNet(nn.Module):
    """Heatmaps `scores` [B, H/4, W/4, num_classes], one a joint; H, W multiples of 32.

    Images are [B, H, W, 3].  Returns the dict of a network: `features` [B, H/4, W/4, width] is
    branch 0 of the last module, `low` [B, H/4, W/4, 256] the map of layer1, `high`
    [B, H/32, W/32, 8 width] branch 3 of the last module before the maps are fused: the deepest map
    that the heatmaps depend on.  `dropout` drops whole channels of `features` on their way to the
    heatmaps (None: 0, the original).  Fewer `modules` a stage and `blocks` a branch than the
    original's make a small network for a CPU.
    """

    num_classes: int = 17
    width: int = 32
    modules: tuple[int, int, int] = _MODULES
    blocks: int = _BLOCKS
    dropout: float | None = None
    style: Style = Style()

    score_stride = 4
    feature_stride = 4
    task = 'pose'
    result_stride = 4  # the heatmaps it is trained for lie at 1/4 of its input
    multiple = 32

    @nn.compact
    def __call__(self, image, train: bool = False):
        check_size(image, self.multiple)
        width = int(self.width)  # a configuration gives 8.0
        encoder = Encoder(width, self.modules, self.blocks, self.style, name='encoder')
        maps = encoder(image, train)
        x = Dropout(0.0, self.dropout, channels=True)(maps['features'], train)
        last = Conv(
            self.num_classes,
            1,
            use_bias=True,
            style=self.style,
            kernel_init=_normal,
            name='final_layer',
        )
        return {'scores': last(x), **maps, 'resize': Convention('half_pixel')}


# One module a stage and one block a branch: what a CPU trains in minutes.
Small = functools.partial(HRNet, modules=(1, 1, 1), blocks=1)


class Encoder(nn.Module):
    """The maps `low`, `features` and `high` of images [B, H, W, 3]: all but the last layer."""

    width: int = 32
    modules: tuple[int, int, int] = _MODULES
    blocks: int = _BLOCKS
    style: Style = Style()

    @nn.compact
    def __call__(self, image, train: bool):
        style = self.style
        x = _conv(64, stride=2, padding=1, style=style, name='conv1')(image, train)
        x = _conv(64, stride=2, padding=1, style=style, name='conv2')(x, train)
        for i in range(self.blocks):
            x = _block(64, bottleneck=True, style=style, name=f'layer1_block{i}')(x, train)

        low = lowest = x
        maps = [_conv(self.width, style=style, name='transition1_0')(low, train)]
        for stage, modules in enumerate(self.modules, 2):
            # Each stage opens one branch more, below the lowest.
            name = f'transition{stage - 1}_{stage - 1}'
            opened = _conv(2 * maps[-1].shape[-1], stride=2, padding=1, style=style, name=name)
            maps.append(opened(lowest, train))
            for i in range(modules):
                last = (stage, i) == (len(self.modules) + 1, modules - 1)
                outputs, name = 1 if last else stage, f'stage{stage}_module{i}'
                module = Exchange(outputs, self.blocks, style, name=name)
                maps, high = module(maps, train)
            lowest = maps[-1]
        return {'low': low, 'features': maps[0], 'high': high}


class Exchange(nn.Module):
    """Residual blocks in every branch, then fusion: every output sums the maps of all branches.

    Maps [B, H/2^j, W/2^j, C_j] -> the first `outputs` of them, fused, and the lowest unfused.
    """

    outputs: int
    blocks: int = _BLOCKS
    style: Style = Style()

    @nn.compact
    def __call__(self, maps, train: bool):
        branches = []
        for j, x in enumerate(maps):
            for k in range(self.blocks):
                x = _block(x.shape[-1], style=self.style, name=f'branch{j}_block{k}')(x, train)
            branches.append(x)
        fused = [
            nn.relu(sum(self._bring(branches, j, i, train) for j in range(len(branches))))
            for i in range(self.outputs)
        ]
        return fused, branches[-1]

    def _bring(self, branches, j, i, train):
        """Branch j in the size and width of branch i."""
        x, target = branches[j], branches[i]
        if j > i:
            thin = _conv(
                target.shape[-1], 1, activation=None, style=self.style, name=f'fuse_{i}_{j}'
            )
            return resize.nearest(thin(x, train), target.shape[1:3])
        for k in range(i - j):
            last = k == i - j - 1
            x = _conv(
                target.shape[-1] if last else x.shape[-1],
                stride=2,
                padding=1,
                activation=None if last else 'relu',
                style=self.style,
                name=f'fuse_{i}_{j}_{k}',
            )(x, train)
        return x
