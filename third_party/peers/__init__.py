"""The paper's networks in PyTorch, equal to the public code, for parity and for timing.

    network = peers.create('espnetv2', num_classes=19)
    outputs = network(image)  # [B, 3, H, W] -> scores, features, low, high, resize, some aux
    logits = peers.logits(outputs, (1024, 2048))

Names and options are those of dsrl_jax.models.create.  Keys of a state dict are those of the public
code, so its weights load as they are.  Training compiles without graph breaks, in either memory
format, under autocast.  `dsrl` puts the paper's branches and losses around a network.
"""

import functools
import inspect

from torch import nn

from dsrl_jax.errors import lookup

from .bisenet import BiSeNet
from .dabnet import DABNet
from .deeplabv3plus import DeepLabv3Plus
from .espnetv2 import ESPNetv2
from .hrnet import HRNet
from .layers import enlarge
from .pspnet import Distilled, Semseg

# network -> {variant: class}; the default variant first
PEERS = {
    'bisenet_resnet18': {'torchseg': BiSeNet},
    'dabnet': {'': DABNet},
    'deeplabv3plus_resnet101': {'jfzhang95': DeepLabv3Plus},
    'espnetv2': {'': ESPNetv2},
    'hrnet_w32': {'': functools.partial(HRNet, width=32)},
    'pspnet_resnet18': {
        'skd': functools.partial(Distilled, depth=18),
        'semseg': functools.partial(Semseg, depth=18),
    },
    'pspnet_resnet101': {'semseg': Semseg, 'skd': Distilled},
}


def create(name: str, num_classes: int, *, variant: str | None = None, **options) -> nn.Module:
    """The network `name`: image [B, 3, H, W] -> dict of maps [B, C, h, w] and `resize`.

    The dict is that of our networks: `scores` before the last resize, `features`, `low`, `high`,
    and in training (or with aux=True where there is one) `aux`.  `network.maps` says their
    channels and strides.  An option that is None keeps its default.
    UserError for a name, variant or option that no peer has.
    """
    variants = lookup(PEERS, name, 'PyTorch peer')
    factory = lookup(variants, next(iter(variants)) if variant is None else variant, 'variant')
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        lookup(inspect.signature(factory).parameters, key, f'option of the peer of {name}')
    return factory(num_classes, **given)


def logits(outputs: dict, size):
    """Full-size class scores, outputs of a network -> float32 [B, K, H, W] at size = (H, W)."""
    return enlarge(outputs['scores'].float(), size, outputs['resize'])
