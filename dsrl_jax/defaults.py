"""Every field of a configuration with its default, and what its values may be."""

import math

import ml_collections
from ml_collections.config_dict import placeholder

DSRL_MODES = ('none', 'sssr', 'sssr+sisr', 'full')

# Closed sets of values. Names of networks, heads and data sets live in the tables that build them.
CHOICES = {
    'model.dsrl': DSRL_MODES,
    'model.dtype': ('float32', 'bfloat16'),
    'model.conv_impl': ('auto', 'lax', 'shift', 's2b'),
    'data.eval_fit': ('pad', 'resize'),
    'data.order': ('rgb', 'bgr'),
    'data.resident': ('auto', 'never', 'always'),
    'ce.labels': ('target', 'input'),
    'mse.reduction': ('mean', 'channel_sum'),
    'fa.guide': ('sisr', 'teacher', 'both'),
    'fa.sampling': ('pool8', 'grid8', 'random_pixels', 'random_rows', 'local', 'exact'),
    'fa.q': (1, 2),
    'fa.transform': ('map', 'grid'),
    'kd.input': ('small', 'view'),
    'sisr.activation': ('tanh', 'relu'),
    'optimizer.name': ('sgd', 'adam'),
    'optimizer.schedule': ('poly', 'step', 'constant'),
    'optimizer.decay': ('kernels', 'all'),
    'eval.resize': ('labels', 'logits'),
    'pose.encode': ('standard', 'dark', 'udp'),
    'pose.decode': ('quarter', 'dark', 'udp'),
    'scale': (1, 2, 4),
}

# Numbers between two bounds, both legal.
RANGES = {
    'seed': (0, 2**32 - 1),
    'model.dropout': (0, 0.99),
    'model.bn_group': (0, math.inf),
    'ce.aux': (0, math.inf),
    'ce.ohem': (0, 1),
    'ce.ohem_keep': (1, math.inf),
    'accumulate': (1, math.inf),
    'mse.weight': (0, math.inf),
    'fa.weight': (0, math.inf),
    'log.affinity': (0, math.inf),
    'kd.pixel': (0, math.inf),
    'kd.pair': (0, math.inf),
    'eval.classes': (0, math.inf),
    'eval.stride': (0.1, 1),
    'pose.sigma': (0.1, math.inf),
    'pose.nms': (0, 1),
    'pose.rescore': (0, math.inf),
    'pose.half_body': (0, 1),
    'pose.scale_factor': (0, 0.99),
    'pose.rotation': (0, 90),
}


def heatmap_sigma(height: int) -> float:
    """Sigma in pixels of heatmaps of that many rows, from those that are in use.

    1 at 32x24 (DarkPose), 2 at 64x48, 3 at 96x72 (HRNet), in proportion between these; outside of
    them it stays. The paper says none: its 80x64 and 128x96 have 2.5 and 3 so.
    """
    return min(max(height / 32, 1.0), 3.0)


def base() -> ml_collections.ConfigDict:
    """Every field with its default; an experiment in `configs/` changes what differs."""
    section = ml_collections.ConfigDict
    config = section({'seed': 0, 'scale': 2})
    config.data = section(
        {
            'name': 'synthetic',
            'root': '',  # folder of the data set; the synthetic one needs none
            'train_split': 'train',  # 'train+val' joins splits
            'eval_split': 'val',
            # Share of the training images whose labels are used; see data/labelled.py.
            'labelled': 1.0,
            # Images that join the training images without a label: splits of the data set, or
            # folders of images (a path with a /), joined by +. See data/labelled.py.
            'unlabelled': '',
            'size': (128, 256),  # height and width of the large training crop
            'eval_size': placeholder(tuple),  # large view in evaluation; None: as `size`
            'eval_fit': 'pad',  # bring an image to eval_size by padding or by resizing
            'scale_range': (0.75, 1.5),  # random scale of the image before the crop, log-uniform
            'flip': True,
            'color': 0.0,  # strength of brightness, contrast and saturation jitter
            'fill': (124, 116, 104),  # colour of padded pixels: the mean, zero after normalisation
            'mean': (0.485, 0.456, 0.406),  # of 0..1, in the order of the network's channels
            'std': (0.229, 0.224, 0.225),
            'order': 'rgb',  # of the network's channels: rgb or bgr
            'batch_size': 16,
            'eval_batch_size': 8,
            'workers': 2,  # loader processes; 0 reads in this process
            'cache': True,  # keep decoded images in memory
            # Training images in device memory, views drawn there: auto is on an accelerator where
            # they fit. Not read by worker processes then.
            'resident': 'auto',
            'length': 0,  # synthetic: number of scenes; 0: the split's default
            'seed': 0,  # synthetic: which world is drawn
        }
    )
    config.model = section(
        {
            'net': 'espnetv2',
            'num_classes': 0,  # outputs of the network; 0: as many as the data set has classes
            'dsrl': 'full',
            'tap': 'features',  # which map of the network the affinity loss reads
            # Options of the network; None: its own default. One that it lacks is refused.
            'width': placeholder(float),  # of its channels
            'output_stride': placeholder(int),  # of its encoder: 8 or 16
            'variant': placeholder(str),  # which public code base it equals
            'dropout': placeholder(float),  # replaces the original's rates
            'dtype': 'float32',
            'conv_impl': 'auto',
            # How many images in a row of a step's batch share batch statistics; 0: all. Bounds how
            # many devices of a large pod wait for each other at every norm.
            'bn_group': 0,
            'init_from': '',  # weight file whose encoder starts the run
            # Regex of paths of batch norms that keep their running statistics, for fine-tuning:
            # 'encoder', or '.' for all. Scale and bias train on, unless optimizer.lr_groups has
            # them at 0: (('norm/(scale|bias)$', 0.0),). A branch that starts fresh has statistics
            # of nothing yet (mean 0, variance 1).
            'freeze_bn': '',
        }
    )
    config.sssr = section(
        {
            'head': 'official_deconv',
            'width': placeholder(int),  # deconv_features: its channels
        }
    )
    config.sisr = section({'activation': 'tanh', 'skip': True, 'trunk': 64, 'norm': True})
    config.ce = section(
        {
            'weights': 'none',  # see losses.class_weights
            'aux': placeholder(float),  # weight of auxiliary classifiers; None: the original's
            'labels': 'target',  # supervise at the large size, or (paper's base) at the input's
            # Only the hard pixels count: those whose true class is less probable than this (0.7 in
            # BiSeNet and DABNet), and at least one of `ohem_keep` labelled ones; 0: all count.
            'ohem': 0.0,
            'ohem_keep': 16,
        }
    )
    config.mse = section({'weight': 0.1, 'reduction': 'mean'})
    config.fa = section(
        {
            'weight': 1.0,
            # Whose features teach: the SISR branch's (paper), those of the frozen kd.teacher (in
            # any mode, without SISR too), or the mean of both losses. With kd.pixel=0 kd.pair=0 a
            # teacher teaches by this loss alone.
            'guide': 'sisr',
            'sampling': 'pool8',
            'grid': 8,  # cells of the affinity grid are input/grid
            # Where the 1x1 feature transform works: on the map itself (paper), or on the grid,
            # which costs next to nothing and averages before the ReLU instead of after.
            'transform': 'map',
            'q': 1,
            'eps': 1e-4,
            'stop_gradient_sr': False,
            # A control: the SR features of an image change places at random, so that only their
            # statistics can teach. No use otherwise.
            'shuffle_sr': False,
            'window': 5,  # local: edge of the window in cells
            'dilation': 1,  # local: distance of its cells
            'ramp': 0,  # steps over which the weight grows from 0
        }
    )
    config.kd = section(
        {
            'teacher': '',  # directory of `dsrl export` whose network guides the run; '': none
            'input': 'small',  # what it sees: the student's small input, or the large view
            'pixel': 10.0,  # weight of the divergence of class distributions
            'pair': 0.5,  # weight of the difference of similarities between nodes
            'pair_pool': 0.5,  # share of the map's height and width that a node covers
        }
    )
    config.optimizer = section(
        {
            'name': 'sgd',
            'lr': 0.01,
            'momentum': 0.9,
            'weight_decay': 5e-4,
            'decay': 'kernels',  # what is decayed: kernels alone, or (paper) all parameters
            'schedule': 'poly',
            'power': 0.9,
            'milestones': (),  # step schedule: fractions of the run after which lr is a tenth
            'warmup': 0,  # steps of linear warm-up
            'clip_norm': 0.0,  # 0: gradients are not clipped
            'lr_groups': (),  # ((regex of a parameter path, factor on lr), ...)
        }
    )
    config.ema = 0.0  # decay of the averaged weights that are evaluated; 0: none
    config.accumulate = 1  # parts of a batch whose gradients are summed one after the other
    config.steps = 0  # length of the run: steps, or epochs where steps is 0
    config.epochs = 0.0
    # Training steps in one program where the data is resident; 0: 10, or 1 on a CPU.
    config.steps_per_dispatch = 0
    config.eval = section(
        {
            'every': 0,  # steps between evaluations; 0: at the end alone
            'resize': 'labels',  # how the map reaches the label's size: nearest, or bilinear scores
            # Arg-max over so many outputs; 0: over the data set's classes. One more that wins (a
            # background) is a miss of the true class.
            'classes': 0,
            # Sums of class probabilities, see multi_scale.py: factors on the large view, and every
            # one mirrored too; a sliding window (height, width) of the large view, () for none,
            # and how far it moves, as a share of itself.
            'scales': (1.0,),
            'flip': False,
            'window': (),
            'stride': 2 / 3,
            'pictures': 4,  # overlays and worst images written as PNG
        }
    )
    # Human pose alone; see data/person_crop.py and ops/heatmaps.py.
    config.pose = section(
        {
            # How a joint becomes a heatmap and is read from one. `encode` udp also makes the views
            # in its own unit of length.
            'encode': 'standard',
            'decode': 'quarter',
            'sigma': 2.0,  # of the Gaussian, in pixels of the heatmap
            'flip_test': True,  # average with the heatmaps of the mirror image
            'boxes': '',  # evaluation: a file of detections; '': ground-truth boxes
            'nms': 0.9,  # OKS above which the lower of two persons is dropped
            'soft_nms': False,  # lower its score instead
            'rescore': 0.2,  # joints more confident than this count in a person's score
            'half_body': 0.3,  # probability of a view of the upper or lower half of the joints
            'scale_factor': 0.35,  # standard deviation, and bound, of the relative scale
            'rotation': 45.0,  # degrees: standard deviation; twice that is the bound
        }
    )
    config.checkpoint = section({'every': 0, 'keep': 2})  # every 0: ten times a run
    # affinity: steps between measurements of both affinities and of the angle between the gradients
    # of FA and CE (see diagnostics.py); 0: none
    config.log = section({'every': 20, 'affinity': 0})
    return config
