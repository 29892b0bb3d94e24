"""DSRL around a peer: the branches, losses and inputs of dsrl_jax, in PyTorch; maps [B, C, H, W].

SSSR is the head of the authors' release (transposed convolutions); the rest of the arithmetic is
that of dsrl_jax's defaults, so that one set of weights gives the same losses and gradients.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .layers import chain, conv, depth_to_space, enlarge, pool_to

# Which branches a mode builds: SSSR, SISR, feature transform.
MODES = {
    'none': (False, False, False),
    'sssr': (True, False, False),
    'sssr+sisr': (True, True, False),
    'full': (True, True, True),
}
_FEATURES = 32  # width of both maps the affinity loss compares
_TRUNK, _FLOOR, _SKIP = 64, 16, 8  # widths of the SISR decoder: start, end, projection of `low`


class DSRL(nn.Module):
    """Image [B, 3, H, W] -> the network's dict with `scores` super-resolved.

    With `sr` (None: as training) also sr [B, 3, sH, sW], seg_feature and sr_feature [B, 32, h, w],
    as far as `mode` has the branches.
    """

    def __init__(self, network: nn.Module, *, mode: str = 'full', scale: int = 2):
        super().__init__()
        has_sssr, has_sisr, has_transform = MODES[mode]
        self.network, self.scale = network, scale
        self.aux_weight = network.aux_weight
        self.task = getattr(network, 'task', 'segmentation')
        self.stride = getattr(network, 'result_stride', 1)  # of the large labels, heatmaps say
        maps = network.maps
        self.sssr = self.sisr = self.transform = None
        if has_sssr:
            classes, stride = maps['scores']
            self.sssr = SSSR(classes, _steps(scale * stride // self.stride))
        if has_sisr:
            self.sisr = SISR(maps['high'], maps['low'], scale)
        if has_transform:
            self.transform = chain(project=_block(maps['features'][0], _FEATURES, 1))

    def result_size(self, size) -> tuple[int, int]:
        """Height and width of its result for images of `size`."""
        factor = self.scale if self.sssr is not None else 1
        return tuple(factor * n // self.stride for n in size)

    def forward(self, image, sr: bool | None = None):
        sr = self.training if sr is None else sr
        height, width = image.shape[2:]
        outputs = self.network(image)
        added = {}
        if self.sssr is not None:
            size = self.result_size((height, width))
            added = {'scores': self.sssr(outputs, size), 'resize': 'half_pixel'}
            added['aux_resize'] = outputs['resize']  # those are brought to size as in the network
        if sr and self.sisr is not None:
            added['sr'], sr_feature = self.sisr(outputs, (height, width))
        if sr and self.transform is not None:
            added['seg_feature'] = self.transform(outputs['features'])
            added['sr_feature'] = sr_feature
        return {**outputs, **added}


class SSSR(nn.Module):
    """Scores [B, K, h, w] -> [B, K, sH, sW]: x2 blocks of transposed convolution, norm, PReLU."""

    def __init__(self, num_classes, steps):
        super().__init__()
        self.steps = [f'up{i}' for i in range(steps)]
        for name in self.steps:
            block = chain(
                conv=nn.ConvTranspose2d(
                    num_classes, num_classes, 3, 2, 1, output_padding=1, bias=False
                ),
                norm=nn.BatchNorm2d(num_classes),
                act=nn.PReLU(num_classes),
            )
            self.add_module(name, block)

    def forward(self, outputs, size):
        x = _fit(outputs, 'scores', size, len(self.steps))
        for name in self.steps:
            x = getattr(self, name)(x)
        return x


class SISR(nn.Module):
    """Maps high and low, given as (channels, stride) -> sr [B, 3, sH, sW], sr_feature.

    A narrow decoder climbs to the input size by sub-pixel steps, joined by a projection of `low` at
    its size; then the three layers of ESPCN.
    """

    def __init__(self, high, low, scale):
        super().__init__()
        self.scale, self.ups = scale, _steps(high[1])
        self.joining = max(0, self.ups - _steps(low[1]))
        self.reduce = _block(high[0], _TRUNK, 1)
        self.trunk = _block(_TRUNK, _TRUNK, 3)
        self.skip = _block(low[0], _SKIP, 1)
        width = _TRUNK
        for step in range(self.ups):
            inputs = width + (_SKIP if step == self.joining else 0)
            width = max(_FLOOR, _TRUNK >> (step + 1))
            self.add_module(f'up{step}', _block(inputs, 4 * width, 3))
        width += _SKIP if self.joining == self.ups else 0
        self.espcn1 = conv(width, 64, 5, bias=True)
        self.espcn2 = conv(64, _FEATURES, bias=True)
        self.espcn3 = conv(_FEATURES, 3 * scale**2, bias=True)

    def forward(self, outputs, size):
        low = _fit(outputs, 'low', size, self.ups - self.joining)
        x = self.trunk(self.reduce(_fit(outputs, 'high', size, self.ups)))
        for step in range(self.ups + 1):
            if step == self.joining:
                x = torch.cat([x, self.skip(low)], 1)
            if step < self.ups:
                x = depth_to_space(getattr(self, f'up{step}')(x), 2)
        feature = torch.tanh(self.espcn2(torch.tanh(self.espcn1(x))))
        return depth_to_space(self.espcn3(feature), self.scale), feature


def inputs(target, mean, std, scale: int = 2):
    """Large view uint8 [B, sH, sW, 3] -> image [B, 3, H, W] and view [B, 3, sH, sW], normalised.

    The image is the antialiased shrink of the view; mean and std are tensors [3, 1, 1] of 0..1.
    """
    view = (target.permute(0, 3, 1, 2).float() / 255 - mean) / std
    size = (view.shape[2] // scale, view.shape[3] // scale)
    return F.interpolate(view, size, mode='bilinear', antialias=True), view


def cross_entropy(scores, label, convention):
    """Mean over the pixels of label [B, H, W] int64 (255 ignored) of scores [B, K, h, w]."""
    logits = enlarge(scores, label.shape[1:], convention)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), label, ignore_index=255)


def losses(
    outputs: dict,
    view,
    truth,
    mask,
    *,
    main: tuple[str, Callable] = ('ce', cross_entropy),
    aux_weight: float = 1.0,
    mse_weight: float = 0.1,
    fa_weight: float = 1.0,
    scale: int = 2,
    grid: int = 8,
) -> dict:
    """Terms ce, aux, mse, fa, as far as outputs has them, and total: scalars, means over pixels.

    view [B, 3, sH, sW] is the normalised large view, mask [B, sH, sW] bool its real pixels.  `main`
    is the term of the task, its name and its function of scores, truth and convention: the cross
    entropy, whose truth is label [B, sH, sW], or `heatmaps.heatmap_term` in its place.  The
    affinity grid is the input's over `grid`.
    """
    term, supervise = main
    terms = {term: supervise(outputs['scores'], truth, outputs['resize'])}
    total = terms[term]
    if outputs.get('aux'):
        own = outputs.get('aux_resize', outputs['resize'])
        terms['aux'] = sum(supervise(x, truth, own) for x in outputs['aux'].values())
        total = total + aux_weight * terms['aux']
    if 'sr' in outputs:
        real = mask[:, None]
        error = (outputs['sr'].to(view.dtype) - view).square() * real
        terms['mse'] = error.sum() / (view.shape[1] * real.sum().clamp(min=1))
        total = total + mse_weight * terms['mse']
    if 'sr_feature' in outputs:
        size = tuple(max(1, n // (scale * grid)) for n in mask.shape[1:])
        maps = (_to_grid(outputs[name], size) for name in ('seg_feature', 'sr_feature'))
        cells = _to_grid(mask[:, None].to(view.dtype), size) > 0.999
        terms['fa'] = affinity_loss(*maps, cells)
        total = total + fa_weight * terms['fa']
    return {**terms, 'total': total}


def affinity_loss(seg, sr, real, eps: float = 1e-4):
    """Mean |S_seg - S_sr| over pixel pairs: [B, C, h, w] twice, real [B, 1, h, w] bool -> scalar.

    S_ij is the cosine of pixels i and j of one image, in float32 whatever autocast says; with
    f = [a, b] and g = [a, -b] of the normalised maps the difference is one product f^T g.
    """
    with torch.autocast(seg.device.type, enabled=False):
        a, b = (_unit(x, real, eps) for x in (seg, sr))
        difference = torch.bmm(torch.cat([a, b], 1).mT, torch.cat([a, -b], 1))
        pairs = real.flatten(1).sum(1).square().sum().clamp(min=1)
        return difference.abs().sum() / pairs


def state_dict(name: str, variables: dict, **options) -> dict:
    """A tree of our DSRL model of network `name`, made with `options` -> {key of DSRL: tensor}.

    variables = {'params', 'batch_stats'}; gradients in the place of parameters serve as well.
    """
    # Here, so that the networks can be timed without loading JAX beside them.
    import jax
    import numpy as np

    from dsrl_jax import pretrained

    found = {f'network.{k}': v for k, v in pretrained.to_torch(name, variables, **options).items()}
    for tree in variables.values():
        for path, leaf in jax.tree.leaves_with_path(tree):
            branch, *middle, last = (part.key for part in path)
            if branch == 'network':
                continue
            array = np.asarray(leaf)
            if last == 'kernel':
                array = (
                    array.transpose(2, 3, 0, 1) if branch == 'sssr' else array.transpose(3, 2, 0, 1)
                )
            module = '.'.join((branch, *middle))
            found[f'{module}.{_LEAVES.get(last, last)}'] = array
            if last == 'var':
                found[f'{module}.num_batches_tracked'] = np.zeros((), np.int64)
    return {key: torch.from_numpy(np.array(value)) for key, value in found.items()}


# our leaf -> torch's, where they differ
_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'slope': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
}


def _steps(stride):
    return round(math.log2(stride))


def _block(inputs, outputs, size):
    return chain(
        conv=conv(inputs, outputs, size),
        norm=nn.BatchNorm2d(outputs),
        act=nn.ReLU(inplace=True),
    )


def _fit(outputs, name, size, steps):
    """The map `name` where `steps` doublings lead to `size`, resized if it is a little off."""
    return enlarge(outputs[name], (size[0] >> steps, size[1] >> steps), outputs['resize'])


def _to_grid(x, size):
    """Mean over cells along axes finer than the grid, bilinear (half-pixel) along coarser ones."""
    x = pool_to(x, tuple(min(n, out) for n, out in zip(x.shape[2:], size)))
    return enlarge(x, size, 'half_pixel')


def _unit(x, real, eps):
    """Pixels of unit length (zero where not real): [B, C, h, w] -> [B, C, h w]."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~real, 0).flatten(2)
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + eps)
