"""Generated street scenes, no download: large view 128x256, input 64x128.

    dsrl train --config=synthetic:dsrl=full --workdir=runs/full

`tiny` shrinks the run to two steps of a narrow network, for tests and a first look. The numbers
reached are in the README.
"""

from dsrl_jax import config as configs


def get_config(arg=''):
    """Arguments: net, dsrl (none | sssr | sssr+sisr | full), head, width (0: 1.0 for
    espnetv2, else the network's own), tiny.
    """
    arg = configs.parse_arg(
        arg, net='espnetv2', dsrl='full', head='official_deconv', width=0.0, tiny=False
    )
    config = configs.base()

    config.data.name = 'synthetic'
    config.data.size = (128, 256)
    config.data.scale_range = (0.8, 1.4)
    config.data.batch_size = 4
    config.data.eval_batch_size = 8
    config.data.workers = 0  # cached scenes are faster than a worker's start

    config.model.net = arg.net
    config.model.dsrl = arg.dsrl
    espnetv2 = arg.net == 'espnetv2'
    config.model.width = arg.width or (1.0 if espnetv2 else None)
    config.sssr.head = arg.head

    # A short run from scratch: Adam, because the authors' head, whose scores are normalised and
    # mixed across classes, needs far more than these few steps under SGD (README).
    config.optimizer.name = 'adam'
    config.optimizer.lr = 0.003
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup = 20
    config.ce.weights = 'inverse_log'
    config.ema = 0.99
    config.steps = 500

    if arg.tiny:
        config.data.size = (64, 128)
        config.data.length = 8
        config.data.batch_size = 4
        config.data.eval_batch_size = 4
        config.model.width = 0.5 if espnetv2 else config.model.width
        config.optimizer.warmup = 0
        config.ce.weights = 'none'
        config.ema = 0.0
        config.steps = 2
        config.eval.pictures = 1
        config.log.every = 1
    return config
