"""Cityscapes, 19 classes: large view of twice the input, scored on 1024x2048 labels.

    dsrl data check --dataset=cityscapes --root=DIR
    dsrl train --config=cityscapes:net=espnetv2,size=256x512 --config.data.root=DIR --workdir=W
    dsrl eval --workdir=W

`size` is the network's input, one of the five of the paper's Table 2; crops and scales are the
release's. The whole image is shrunk to the large view in evaluation, no sliding window.
`dsrl=none` is the honest reference: the plain network, bilinear scores, trained and scored on
full-resolution labels. `data make-cityscapes` writes a generated set to try it on.
"""

import math

from dsrl_jax import config as configs
from dsrl_jax.errors import lookup

NAMES = ('256x512', '320x640', '384x768', '448x896', '512x1024')
SIZES = {name: configs.parse_size(name) for name in NAMES}


def get_config(arg=''):
    """Arguments: net, dsrl, head, size (HEIGHTxWIDTH of the input), width (0: the network's own;
    2.0 for espnetv2), epochs, tiny.
    """
    arg = configs.parse_arg(
        arg,
        net='espnetv2',
        dsrl='full',
        head='official_deconv',
        size='256x512',
        width=0.0,
        epochs=300.0,
        tiny=False,
    )
    config = configs.base()
    height, width = lookup(SIZES, arg.size, 'config argument size')

    config.data.name = 'cityscapes'
    config.data.train_split = 'train'
    config.data.eval_split = 'val'
    config.data.size = (config.scale * height, config.scale * width)
    config.data.eval_fit = 'resize'
    config.data.scale_range = scale_range(config.data.size[1])
    config.data.batch_size = 16
    config.data.eval_batch_size = 4
    config.data.workers = 4
    config.data.cache = False  # 19 GB decoded

    config.model.net = arg.net
    config.model.dsrl = arg.dsrl
    espnetv2 = arg.net == 'espnetv2'
    config.model.width = arg.width or (2.0 if espnetv2 else None)
    config.sssr.head = arg.head

    config.epochs = arg.epochs

    if arg.tiny:
        config.data.size = (64, 128)
        config.data.scale_range = scale_range(1024)
        config.data.batch_size = 4
        config.data.eval_batch_size = 4
        config.data.workers = 0
        config.model.width = 0.5 if espnetv2 else config.model.width
        config.steps, config.epochs = 2, 0.0
        config.log.every = 1
    return config


def scale_range(columns):
    """Random scales of the whole image for crops of that width.

    The release has 0.35 to 1.0 for 1024 and 1.0 to 2.0 for 2048. Between them each end grows as
    a power of the width: our choice, nothing is published.
    """
    octaves = math.log2(columns / 1024)
    return round(0.35 ** (1 - octaves), 4), round(2.0**octaves, 4)
