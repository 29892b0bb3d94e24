"""Pose without a download: a small HRNet on generated stick figures, input 64x64.

    dsrl train --config=stick_figures --workdir=runs/figures           # DSRL; dsrl=none: without

It learns on a CPU in minutes and prints the AP of 64 figures that it has not seen; docs/pose.md
says what it reached.
"""

from dsrl_jax import config as configs

SIGMA = 4.0  # of the Gaussians, in pixels of the input: half of HRNet's at 256x192


def get_config(arg=''):
    """Arguments: net, dsrl (none | sssr | sssr+sisr | full), head, width (0: the network's own),
    tiny.
    """
    small = 'dsrl_jax.models.hrnet:Small'
    arg = configs.parse_arg(
        arg, net=small, dsrl='full', head='depthwise_deconv', width=0.0, tiny=False
    )
    config = configs.base()

    config.data.name = 'stick_figures'
    config.data.size = (128, 128)
    config.data.batch_size = 16
    config.data.eval_batch_size = 16
    config.data.workers = 0  # cached scenes are faster than a worker's start

    config.model.net = arg.net
    config.model.dsrl = arg.dsrl
    config.model.width = arg.width or (16.0 if arg.net == small else None)
    config.sssr.head = arg.head
    config.sisr.trunk = 16
    config.mse.weight = 1e-4  # as in coco.py
    config.fa.weight = 1e-3

    # Peaks at the joint itself: an input of 64 pixels has none to lose to rounding.
    config.pose.encode = 'dark'
    config.pose.decode = 'dark'
    config.pose.sigma = SIGMA / (4 if arg.dsrl == 'none' else 2)
    config.pose.half_body = 0.0
    config.pose.scale_factor = 0.15
    config.pose.rotation = 15.0

    config.optimizer.name = 'adam'
    config.optimizer.lr = 0.003
    config.optimizer.weight_decay = 0.0
    config.steps = 600

    if arg.tiny:
        config.data.length = 8
        config.data.batch_size = config.data.eval_batch_size = 4
        config.model.width = 4.0 if arg.net == small else config.model.width
        config.steps = 2
        config.log.every = 1
    return config
