"""CamVid at 360x480 (SegNet's copy): large view 384x480 (padded), input 192x240, 11 classes.

    dsrl data check --dataset=camvid --root=DIR
    dsrl train --config=camvid:net=espnetv2,dsrl=full --config.data.root=DIR --workdir=W
    dsrl eval --workdir=W --split=test

`dsrl=none` is the honest reference: the plain network, bilinear scores, trained and scored on
full-resolution labels. `paper` takes the paper's optimiser to the letter (decay on all
parameters) and, for `dsrl=none`, its base (labels of the input's size).
"""

from dsrl_jax import config as configs


def get_config(arg=''):
    """Arguments: net, dsrl, head, width (0: the network's own), epochs, paper, tiny."""
    arg = configs.parse_arg(
        arg,
        net='espnetv2',
        dsrl='full',
        head='official_deconv',
        width=0.0,
        epochs=300.0,
        paper=False,
        tiny=False,
    )
    config = configs.base()

    config.data.name = 'camvid'
    config.data.train_split = 'train'
    config.data.eval_split = 'test'
    config.data.size = (384, 480)  # 360 rows and padding: the input must be a multiple of 16
    config.data.scale_range = (0.75, 1.5)
    config.data.color = 0.2
    config.data.batch_size = 16
    config.data.eval_batch_size = 8
    config.data.workers = 2

    config.model.net = arg.net
    config.model.dsrl = arg.dsrl
    espnetv2 = arg.net == 'espnetv2'
    config.model.width = arg.width or (2.0 if espnetv2 else None)
    config.sssr.head = arg.head

    config.ema = 0.999
    config.epochs = arg.epochs

    if arg.paper:
        config.optimizer.decay = 'all'
        config.ce.labels = 'input' if arg.dsrl == 'none' else 'target'
        config.ema = 0.0
    if arg.tiny:
        config.data.size = (64, 96)
        config.data.eval_fit = 'resize'
        config.data.batch_size = 4
        config.data.eval_batch_size = 4
        config.data.workers = 0
        config.model.width = 0.5 if espnetv2 else config.model.width
        config.ema = 0.0
        config.steps, config.epochs = 2, 0.0
        config.log.every = 1
    return config
