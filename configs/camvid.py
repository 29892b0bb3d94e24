"""CamVid, 11 classes: SegNet's copy at 360x480, or the original frames at 720x960.

    dsrl data check --dataset=camvid --root=DIR
    dsrl train --config=camvid:net=espnetv2,dsrl=full --config.data.root=DIR --workdir=W
    dsrl eval --workdir=W --split=test

`size` is the network's input. 192x240 is for SegNet's copy, its frames padded to the large view of
384x480. 368x480 is the paper's, for the original frames: the large view is 736x960, to which the
whole frame is resized in evaluation. Labels are scored at the frame's own size.

`dsrl=none` is the honest reference: the plain network, bilinear scores, trained and scored on
full-resolution labels. `paper` takes the paper's optimiser to the letter (decay on all
parameters) and, for `dsrl=none`, its base (labels of the input's size).

    python launch/sweep.py --config=camvid --config.data.root=DIR --workdir=RUNS --run
"""

from dsrl_jax import config as configs
from dsrl_jax.errors import lookup

NAMES = ('192x240', '368x480')
SIZES = {name: configs.parse_size(name) for name in NAMES}


def get_config(arg=''):
    """Arguments: net, dsrl, head, size (HEIGHTxWIDTH of the input), width (0: the network's own;
    2.0 for espnetv2), epochs, paper, tiny.
    """
    arg = configs.parse_arg(
        arg,
        net='espnetv2',
        dsrl='full',
        head='official_deconv',
        size='192x240',
        width=0.0,
        epochs=300.0,
        paper=False,
        tiny=False,
    )
    config = configs.base()
    height, width = lookup(SIZES, arg.size, 'config argument size')

    config.data.name = 'camvid'
    config.data.train_split = 'train'
    config.data.eval_split = 'val'  # test is read by `dsrl eval --split=test`, at the end
    config.data.size = (config.scale * height, config.scale * width)
    config.data.scale_range = (0.75, 1.5)
    config.data.color = 0.2
    config.data.batch_size = 16
    config.data.eval_batch_size = 8
    config.data.workers = 2
    if arg.size == '368x480':
        config.data.eval_fit = 'resize'
        config.data.cache = False  # 1 GB decoded, in each worker

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


def sweep():
    """Runs of launch/sweep.py: two heads at three learning rates, judged on a held-out drive."""
    held_out = {'data.train_split': 'fold1_train', 'data.eval_split': 'fold1_val'}
    for head in ('official_deconv', 'bilinear'):
        for lr in (0.01, 0.03, 0.1):
            fields = {'sssr.head': head, 'optimizer.lr': lr, **held_out}
            yield f'head={head},lr={lr}', fields
