"""How other projects name the weights of our networks: one module of plain data per source.

TABLES  {network: {variant: Table}}; the default variant first, '' where there is only one.
ENCODER the sub-tree of our parameters that a pretrained backbone fills, in every network.
"""

from dsrl_jax.foreign import (
    bisenet,
    dabnet,
    deeplabv3plus,
    efficientnet_lite,
    enet,
    erfnet,
    espnet,
    espnetv2,
    espnetv2_old,
    fcn8s,
    hrnet,
    pspnet,
    refinenet,
    resnet,
)

TABLES = {
    'bisenet_resnet18': bisenet.TABLES,
    'dabnet': dabnet.TABLES,
    'deeplabv3plus_efficientnet_lite0': deeplabv3plus.EFFICIENTNET_LITE0,
    'deeplabv3plus_resnet101': deeplabv3plus.RESNET101,
    'efficientnet_lite0': efficientnet_lite.TABLES,
    'enet': enet.TABLES,
    'erfnet': erfnet.TABLES,
    'espnet': espnet.TABLES,
    'espnet_c': espnet.ESPNET_C,
    'espnetv2': espnetv2.TABLES,
    'espnetv2_classifier': espnetv2.CLASSIFIER,
    'espnetv2_old': espnetv2_old.TABLES,
    'fcn8s': fcn8s.TABLES,
    'hrnet_w32': hrnet.TABLES,
    'hrnet_w48': hrnet.TABLES,
    'pspnet_resnet18': pspnet.RESNET18,
    'pspnet_resnet101': pspnet.RESNET101,
    'refinenet_resnet101': refinenet.TABLES,
    'resnet18': resnet.TABLES,
    'resnet50': resnet.TABLES,
    'resnet101': resnet.TABLES,
}
ENCODER = 'encoder'
