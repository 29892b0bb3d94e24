"""A folder of your own images and index masks, no code: see the README for its layout.

dsrl data check --dataset=folder --root=DIR
dsrl train --config=folder --config.data.root=DIR --workdir=W
"""

from dsrl_jax import config as configs


def get_config(arg=''):
    """Arguments: net, dsrl, head, width (0: 1.0 for espnetv2, else the network's own); rows and
    columns of the large view; epochs, tiny.
    """
    arg = configs.parse_arg(
        arg,
        net='espnetv2',
        dsrl='full',
        head='official_deconv',
        width=0.0,
        rows=256,
        columns=512,
        epochs=100.0,
        tiny=False,
    )
    config = configs.base()

    config.data.name = 'folder'
    config.data.size = (arg.rows, arg.columns)
    config.data.eval_fit = 'resize'  # images of any size
    config.data.scale_range = (0.75, 1.5)
    config.data.color = 0.2
    config.data.batch_size = 8
    config.data.eval_batch_size = 4
    config.data.workers = 0
    config.data.cache = False  # of unknown size: set it where the images fit into memory

    config.model.net = arg.net
    config.model.dsrl = arg.dsrl
    espnetv2 = arg.net == 'espnetv2'
    config.model.width = arg.width or (1.0 if espnetv2 else None)
    config.sssr.head = arg.head

    config.optimizer.warmup = 20
    config.ema = 0.99
    config.epochs = arg.epochs

    if arg.tiny:
        config.data.size = (64, 96)
        config.data.batch_size = 4
        config.model.width = 0.5 if espnetv2 else config.model.width
        config.optimizer.warmup = 0
        config.ema = 0.0
        config.steps, config.epochs = 2, 0.0
        config.log.every = 1
    return config
