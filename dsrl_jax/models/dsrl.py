"""DSRL around any network: SSSR replaces its scores, SISR and the transform join in training."""

import inspect
from collections.abc import Mapping

from flax import linen as nn

from dsrl_jax.errors import UserError, lookup
from dsrl_jax.models import heads
from dsrl_jax.models.layers import CONVENTIONS, Convention, Style
from dsrl_jax.ops.resize import pool_to

# Which branches a mode builds: SSSR, SISR, feature transform.
MODES = {
    'none': (False, False, False),
    'sssr': (True, False, False),
    'sssr+sisr': (True, True, False),
    'full': (True, True, True),
}
INFERENCE = ('network', 'sssr')  # the sub-trees a prediction needs
BRANCHES = (*INFERENCE, 'sisr', 'transform')


def wrap(
    module: nn.Module,
    *,
    num_classes: int,
    mode: str = 'full',
    scale: int = 2,
    sssr: Mapping | None = None,
    sisr: Mapping | None = None,
    transform: Mapping | None = None,
    features: str = 'features',
    stride: int | None = None,
    style: Style | None = None,
):
    """DSRL around `module`, any Linen network `(image, train)` that returns a dict of maps.

    It needs `scores` [B, h, w, K] and the map that `features` names, which the affinity loss
    compares.  `high` (default: that map) feeds the SISR branch, `low` (default: none) is its skip,
    `resize` (default: half_pixel) says how scores reach the input size.  `stride`: legal heights
    and widths of the input are multiples of it (default: the module's own `multiple`).
    `sssr` holds head and width, `sisr` activation, skip, trunk, norm (heads.sssr, heads.SISR),
    `transform` grid: 0, the transform reads the map as it is; else averaged to input/grid first;
    and always: there is one in every mode, for a guide of the affinity loss that is not SISR.
    Raises UserError for an unknown mode, scale or option, or a module without a multiple.
    """
    style = style or Style()
    has_sssr, has_sisr, has_transform = lookup(MODES, mode, 'model.dsrl')
    if scale not in (1, 2, 4):
        raise UserError('scale', repr(scale), '1, 2 or 4', 'set scale=2 as in the paper.')
    stride = stride or getattr(module, 'multiple', None)
    if stride is None:
        raise UserError(
            'wrap',
            f'a {type(module).__name__} without `multiple`, and no stride',
            'what heights and widths of its input must be multiples of',
            'give stride=, or the class an attribute `multiple`.',
        )
    if 'train' not in inspect.signature(type(module).__call__).parameters:
        expected = 'a call (image, train=False)'
        raise UserError('wrap', f'{type(module).__name__} without train', expected, 'add it.')
    sssr = _known(sssr, ('head', 'width'), 'sssr')
    sisr = _known(sisr, ('activation', 'skip', 'trunk', 'norm'), 'sisr')
    transform = _known(transform, ('grid', 'always'), 'transform')
    has_transform |= transform.get('always', False)
    return DSRL(
        network=module,
        sssr=heads.sssr(num_classes=num_classes, style=style, **sssr) if has_sssr else None,
        sisr=heads.SISR(scale=scale, style=style, **sisr) if has_sisr else None,
        transform=heads.FeatureTransform(style=style) if has_transform else None,
        scale=scale,
        features=features,
        multiple=stride,
        grid=transform.get('grid', 0),
    )


class DSRL(nn.Module):
    """Image [B, H, W, 3] -> the network's dict with `scores` super-resolved; built by `wrap`.

    `scores` [B, h, w, K] and `resize` say how to reach (sH, sW), both over `result_stride` where
    the network has one (pose heatmaps).  With `sr` (None: as `train`) also sr [B, sH, sW, 3],
    normalised RGB, and where there is a transform seg_feature [B, h', w', 32] and (with SISR)
    sr_feature [B, H, W, 32], the two maps of the affinity loss.  `features` names the map of the
    network that the transform reads.  A branch that is None has no parameters.
    """

    network: nn.Module
    sssr: nn.Module | None = None
    sisr: nn.Module | None = None
    transform: nn.Module | None = None
    scale: int = 2
    features: str = 'features'
    multiple: int = 1  # legal heights and widths of the input are multiples of this
    grid: int = 0  # the transform reads its map averaged to input/grid; 0: as it is

    @property
    def task(self):
        """What its scores are for: 'segmentation', or 'pose' (heatmaps, one a joint)."""
        return getattr(self.network, 'task', 'segmentation')

    @property
    def result_stride(self):
        """How many times its result is smaller than the image it is for: 1, or 4 (heatmaps)."""
        return getattr(self.network, 'result_stride', 1)

    @property
    def offsets(self):
        """Legal sizes are a multiple plus one of these."""
        return getattr(self.network, 'offsets', (0,))

    @property
    def aux_weight(self):
        """Weight of the losses of the network's auxiliary classifiers, as in its original."""
        return getattr(self.network, 'aux_weight', 1.0)

    def result_size(self, size) -> tuple[int, int]:
        """Height and width of its result for images of `size`; `resize` brings scores there."""
        factor = self.scale if self.sssr is not None else 1
        return tuple(factor * n // self.result_stride for n in size)

    @nn.compact
    def __call__(self, image, train: bool = False, sr: bool | None = None):
        sr = train if sr is None else sr
        height, width = image.shape[1:3]
        outputs = self._complete(self.network(image, train=train))
        added = {}
        if self.sssr is not None:
            size = self.result_size((height, width))
            added['scores'], added['resize'] = self.sssr(outputs, size, train)
            if 'aux' in outputs:  # its maps are still brought to size as in the network
                added['aux_resize'] = outputs['resize']
        if sr and self.sisr is not None:
            added['sr'], sr_feature = self.sisr(outputs, (height, width), train)
        if sr and self.transform is not None:
            read = outputs[self.features]
            if self.grid:
                read = pool_to(read, tuple(max(1, n // self.grid) for n in (height, width)))
            added['seg_feature'] = self.transform(read, train)
            if self.sisr is not None:
                added['sr_feature'] = sr_feature
        return {**outputs, **added}

    def _complete(self, outputs):
        """The network's dict with defaults for what it need not name."""
        if not isinstance(outputs, Mapping) or 'scores' not in outputs:
            raise UserError(
                'model.net',
                f'a {type(self.network).__name__} that returns no map `scores`',
                'a network that returns a dict with it',
                'choose another network, or return one.',
            )
        named = outputs.get('resize', 'half_pixel')
        lookup(dict.fromkeys(CONVENTIONS), named, '`resize` of the network')
        outputs = {**outputs, 'resize': Convention(named)}
        if self.sisr is None and self.transform is None:
            return outputs
        maps = {name: x for name, x in outputs.items() if getattr(x, 'ndim', 0) == 4}
        return {'high': lookup(maps, self.features, 'model.tap'), **outputs}


def inference_variables(variables: Mapping) -> dict:
    """The part of a DSRL model's variables that predictions need: network and sssr, as they are.

    {'params': {branch: ...}, 'batch_stats': {branch: ...}} -> the same without other branches.
    """
    return {
        collection: {name: tree[name] for name in INFERENCE if name in tree}
        for collection, tree in variables.items()
    }


def _known(options, names, section):
    table = dict.fromkeys(names)
    for name in options or {}:
        lookup(table, name, f'option of {section}')
    return dict(options or {})
