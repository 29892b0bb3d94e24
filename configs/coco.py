"""COCO keypoints by HRNet: the six rows of the paper's Table 5.

    dsrl train --config=coco:net=hrnet_w32,size=128x96,dsrl=full --config.data.root=DIR --workdir=W
    dsrl eval --workdir=W --config.pose.decode=dark

`size` is the network's input; the large view, which the SISR branch learns, is the person at twice
that size from the original image. `dsrl=none` is the paper's baseline, heatmaps of a quarter of
the input; with DSRL they are half of it.

The recipe is HRNet's own: Adam at 1e-3, a tenth of it after epochs 170 and 200 of 210, 32 people on
each of 4 GPUs, no weight decay in effect. Its encoder starts from ImageNet weights
(`--config.model.init_from`). The paper says neither the head, nor the weights of its three losses
for pose, nor the sigma of its heatmaps. Ours: a head without batch norm, since that of the
segmentation release (`head=official_deconv`) starts heatmaps at unit variance, where those of a
person are nearly empty; weights a thousandth of those for segmentation, since an empty heatmap
costs 0.003 where an untrained class map costs about 3 (docs/pose.md has what was measured); sigmas
in the proportion of those in use (defaults.heatmap_sigma).
"""

from dsrl_jax import config as configs
from dsrl_jax.errors import lookup

SIZES = {name: configs.parse_size(name) for name in ('256x192', '160x128', '128x96')}
EPOCHS, DROPS = 210, (170, 200)
MSE_WEIGHT, FA_WEIGHT = 1e-4, 1e-3


def get_config(arg=''):
    """Arguments: net, dsrl (none | sssr | sssr+sisr | full), head, size (HEIGHTxWIDTH of the
    input), epochs, encode (standard | dark | udp), width (0: the network's own), tiny.
    """
    arg = configs.parse_arg(
        arg,
        net='hrnet_w32',
        dsrl='full',
        head='depthwise_deconv',
        size='256x192',
        epochs=float(EPOCHS),
        encode='standard',
        width=0.0,
        tiny=False,
    )
    config = configs.base()
    height, width = lookup(SIZES, arg.size, 'config argument size')

    config.data.name = 'coco'
    config.data.size = (config.scale * height, config.scale * width)
    config.data.batch_size = 128
    config.data.eval_batch_size = 32
    config.data.workers = 8
    config.data.cache = False  # 118,000 images

    config.model.net = arg.net
    config.model.dsrl = arg.dsrl
    config.model.width = arg.width or None
    config.sssr.head = arg.head
    config.mse.weight, config.fa.weight = MSE_WEIGHT, FA_WEIGHT

    config.pose.encode = arg.encode
    config.pose.sigma = configs.heatmap_sigma(height // (4 if arg.dsrl == 'none' else 2))

    config.optimizer.name = 'adam'
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = 'step'
    config.optimizer.milestones = tuple(epoch / EPOCHS for epoch in DROPS)
    config.epochs = arg.epochs

    if arg.tiny:
        config.data.size = (128, 64)
        config.data.batch_size = config.data.eval_batch_size = 4
        config.data.workers = 0
        config.pose.sigma = 1.0
        config.steps, config.epochs = 2, 0.0
        config.log.every = 1
    return config
