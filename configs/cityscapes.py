"""Cityscapes, 19 classes: large view of twice the input, scored on 1024x2048 labels.

    dsrl data check --dataset=cityscapes --root=DIR
    dsrl train --config=cityscapes:net=espnetv2,size=256x512 --config.data.root=DIR --workdir=W
    dsrl eval --workdir=W

`size` is the network's input, one of the five of the paper's Table 2; `res=256` is 256x512, as the
table's rows are named. Crops and scales are the release's. The whole image is shrunk to the large
view in evaluation, no sliding window. `dsrl=none` is the honest reference: the plain network,
bilinear scores, trained and scored on full-resolution labels. `paper` takes the paper's optimiser
to the letter (decay on all parameters), for `dsrl=none` its base (labels of the input's size), and
the release's 20 outputs of ESPNetv2, which all compete. `original` takes the learning rates, class
weights and OHEM of the network's own code base (ORIGINALS); auxiliary classifiers have their
original weights in any case. `data make-cityscapes` writes a generated set to try it on.
"""

import math

from dsrl_jax import config as configs
from dsrl_jax.errors import UserError, lookup

NAMES = ('256x512', '320x640', '384x768', '448x896', '512x1024')
SIZES = {name: configs.parse_size(name) for name in NAMES}

# New layers learn ten times as fast as the encoder, which ImageNet trained (model.init_from). The
# originals know no branches of DSRL: SSSR, which ends the decoder, goes with it; SISR and the
# transform keep the plain rate.
DECODER_10X = (('/encoder/', 1.0), ('^(network|sssr)/', 10.0))
HARD = {'ce.ohem': 0.7, 'ce.ohem_keep': 16}

# What the code bases of the networks set for Cityscapes; a network that is not here has nothing to
# set. The optimiser stays the paper's.
ORIGINALS = {
    # TorchSeg: the least number kept counts all pixels there, labelled ones here.
    'bisenet_resnet18': {'optimizer.lr_groups': DECODER_10X, **HARD},
    'dabnet': {'ce.weights': 'dabnet_cityscapes', **HARD},  # as TorchSeg; no encoder of its own
    'deeplabv3plus_resnet101': {'optimizer.lr_groups': DECODER_10X},  # jfzhang95: no OHEM
    'enet': {'ce.weights': 'inverse_log_enet'},
    'espnet': {'ce.weights': 'inverse_log'},
    'espnet_c': {'ce.weights': 'inverse_log'},
    'espnetv2': {'optimizer.lr_groups': DECODER_10X, 'ce.weights': 'edgenets_cityscapes'},
    'pspnet_resnet101': {'optimizer.lr_groups': DECODER_10X},  # hszhao: no class weights, no OHEM
}
RELEASED = {'espnetv2': 20}  # outputs, the last of which is a background


def get_config(arg=''):
    """Arguments: net, dsrl, head, size (HEIGHTxWIDTH of the input) or res (its height), width (0:
    the network's own; 2.0 for espnetv2), epochs, paper, original, tiny.
    """
    arg = configs.parse_arg(
        arg,
        net='espnetv2',
        dsrl='full',
        head='official_deconv',
        size='',
        res=0,
        width=0.0,
        epochs=300.0,
        paper=False,
        original=False,
        tiny=False,
    )
    config = configs.base()
    height, width = input_size(arg.size, arg.res)

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

    if arg.original:
        for dotted, value in ORIGINALS.get(arg.net, {}).items():
            section, _, field = dotted.partition('.')
            config[section][field] = value
    if arg.paper:
        config.optimizer.decay = 'all'
        config.ce.labels = 'input' if arg.dsrl == 'none' else 'target'
        config.model.num_classes = config.eval.classes = RELEASED.get(arg.net, 0)
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


def input_size(size, res):
    """Height and width of the input named by `size` (''), by `res`, its height (0), or by both."""
    heights = {name.partition('x')[0]: name for name in NAMES}
    named = lookup(heights, str(res), 'config argument res') if res else size or NAMES[0]
    if size and named != size:
        found = f'size={size} and res={res}'
        raise UserError('config arguments', found, 'one of them', f'leave out one of {found}.')
    return lookup(SIZES, named, 'config argument size')


def scale_range(columns):
    """Random scales of the whole image for crops of that width.

    The release has 0.35 to 1.0 for 1024 and 1.0 to 2.0 for 2048. Between them each end grows as
    a power of the width: our choice, nothing is published.
    """
    octaves = math.log2(columns / 1024)
    return round(0.35 ** (1 - octaves), 4), round(2.0**octaves, 4)
