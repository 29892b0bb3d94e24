"""The arms of the ladder: what each one changes of the plain network, and the protocol of all.

CamVid at a view of 384x480 (360x480 padded, padding ignored), input 192x240, the same for all arms
that do not say otherwise; batch 16, SGD, poly, EMA of the last step. The reference is the plain
network with bilinear scores, trained and scored on full-size labels: no extra convolutions.

SCOUTS are cheap trials on the folds, each one change of `recommended`: none reads the test split.
"""

from typing import Any, NamedTuple

import ml_collections

from dsrl_jax import config as configs
from dsrl_jax import costs, inference
from dsrl_jax.errors import UserError, lookup


class Rung(NamedTuple):
    """An arm: its title in tables, fields of the configuration, and runs it needs results of.

    `needs` are rungs of the same stage, seed and grid point whose runs come first. `ramp` is the
    share of the run over which the weight of the affinity loss grows. `prediction` was written
    before the arm was run, `outcome` after.
    """

    title: str
    fields: dict[str, Any]
    needs: tuple[str, ...] = ()
    ramp: float = 0.0
    prediction: str = ''
    outcome: str = 'not run'


_FULL = {'model.dsrl': 'full', 'sssr.head': 'official_deconv'}
_RECOMMENDED = {'model.dsrl': 'full', 'sssr.head': 'bilinear'}
# The full-size network of the same seed teaches, by the affinity of its features alone.
_TAUGHT = {'kd.input': 'view', 'kd.pixel': 0.0, 'kd.pair': 0.0}
_NEW_BRANCHES = r'^(sssr|sisr|transform)/'

RUNGS = {
    'paper_base': Rung(
        "paper's base: labels of the input's size", {'model.dsrl': 'none', 'ce.labels': 'input'}
    ),
    'reference': Rung('reference: plain network, full-size labels', {'model.dsrl': 'none'}),
    'sssr': Rung('+ SSSR', {**_FULL, 'model.dsrl': 'sssr'}),
    'sisr': Rung('+ SISR', {**_FULL, 'model.dsrl': 'sssr+sisr'}),
    'full': Rung('+ FA: DSRL as published', _FULL),
    'recommended': Rung(
        'full, head without cost',
        _RECOMMENDED,
        prediction='Above full: nothing mixes class scores after they are made.',
    ),
    'matched_low': Rung('plain network, next size below the cost of full', {'model.dsrl': 'none'}),
    'matched_high': Rung('plain network, next size above it', {'model.dsrl': 'none'}),
    'ceiling': Rung('plain network, full-size input', {'model.dsrl': 'none', 'scale': 1}),
    'equal_time': Rung(
        "reference, as long as full's training takes",
        {'model.dsrl': 'none'},
        ('reference', 'full'),
    ),
    'shuffled': Rung('control: full, SR features shuffled', {**_FULL, 'fa.shuffle_sr': True}),
    'distilled': Rung(
        'control: reference, logits of the full-size teacher',
        {'model.dsrl': 'none', 'kd.input': 'view', 'kd.pair': 0.0},
        ('ceiling',),
    ),
}

SCOUTS = {
    'local5_grid4': Rung(
        'FA in windows of 5x5 cells, cells of 4 pixels',
        {**_RECOMMENDED, 'fa.sampling': 'local', 'fa.window': 5, 'fa.grid': 4},
        prediction='Above: near pairs carry the edges that pooled distant pairs wash out.',
    ),
    'local9_grid4': Rung(
        'FA in windows of 9x9 cells, cells of 4 pixels',
        {**_RECOMMENDED, 'fa.sampling': 'local', 'fa.window': 9, 'fa.grid': 4},
        prediction='As local5_grid4: most of what a window teaches lies in its middle.',
    ),
    'local5_grid2': Rung(
        'FA in windows of 5x5 cells, cells of 2 pixels',
        {**_RECOMMENDED, 'fa.sampling': 'local', 'fa.window': 5, 'fa.grid': 2},
        prediction="Above local5_grid4 on thin classes: cells as fine as the network's own scores.",
    ),
    'local9_grid2': Rung(
        'FA in windows of 9x9 cells, cells of 2 pixels',
        {**_RECOMMENDED, 'fa.sampling': 'local', 'fa.window': 9, 'fa.grid': 2},
        prediction='As local5_grid4, which sees about the same reach of pixels.',
    ),
    'pool_grid4': Rung(
        'FA over all pairs, cells of 4 pixels',
        {**_RECOMMENDED, 'fa.grid': 4},
        prediction='A little above: thin things are no longer averaged away.',
    ),
    'exact_grid2': Rung(
        'FA over all pairs, cells of 2 pixels',
        {**_RECOMMENDED, 'fa.sampling': 'exact', 'fa.grid': 2},
        prediction='As pool_grid4, at many times the training cost.',
    ),
    'stop_gradient': Rung(
        'no gradient of FA into the SR side',
        {**_RECOMMENDED, 'fa.stop_gradient_sr': True},
        prediction='Above: the guide cannot give way to what it is to guide.',
    ),
    'ramp': Rung(
        'weight of FA grown over the first fifth of the run',
        _RECOMMENDED,
        ramp=0.2,
        prediction='No difference: the untrained guide is gone after a few epochs anyway.',
    ),
    'no_fa': Rung(
        'no FA: the SR branch and its MSE beside cross entropy',
        {**_RECOMMENDED, 'model.dsrl': 'sssr+sisr'},
        prediction='Above in short runs: FA asks the scores to wait for an untrained guide.',
    ),
    'fa_tenth': Rung(
        'FA at a tenth of its weight',
        {**_RECOMMENDED, 'fa.weight': 0.1},
        prediction='Above in short runs, where recommended lost to the plain network.',
    ),
    'mse_tenth': Rung(
        'MSE of the SR branch at a tenth of its weight',
        {**_RECOMMENDED, 'mse.weight': 0.01},
        prediction='Above in short runs, by less than fa_tenth; a worse PSNR.',
    ),
    'head_depthwise': Rung(
        'head depthwise_deconv',
        {**_RECOMMENDED, 'sssr.head': 'depthwise_deconv'},
        prediction='No difference: it starts as the bilinear one and has little to add.',
    ),
    'head_features': Rung(
        'head deconv_features',
        {**_RECOMMENDED, 'sssr.head': 'deconv_features'},
        prediction='Above, on boundaries most: it classifies at full size. Dearer at inference.',
    ),
    'head_shuffle': Rung(
        'head pixel_shuffle',
        {**_RECOMMENDED, 'sssr.head': 'pixel_shuffle'},
        prediction='A little above, on boundaries: four classifiers see where an edge lies.',
    ),
    'sisr_no_skip': Rung(
        'SISR without the finest skip',
        {**_RECOMMENDED, 'sisr.skip': False},
        prediction='Above, with a worse PSNR: the deep encoder has to carry what is drawn.',
    ),
    'sisr_no_norm': Rung(
        'no batch norm in the SISR branch',
        {**_RECOMMENDED, 'sisr.norm': False},
        prediction='Below: without norms the branch learns late, and till then is noise.',
    ),
    'branches_lr_tenth': Rung(
        'a tenth of the learning rate in the new branches',
        {**_RECOMMENDED, 'optimizer.lr_groups': ((_NEW_BRANCHES, 0.1),)},
        prediction='Below: a branch that learns slowly leaves noise to imitate.',
    ),
    'branches_lr_ten': Rung(
        'ten times the learning rate in the new branches',
        {**_RECOMMENDED, 'optimizer.lr_groups': ((_NEW_BRANCHES, 10.0),)},
        prediction='A little above where it trains stably: the guide is good sooner.',
    ),
    'guide_teacher': Rung(
        'FA to the features of the frozen full-size network, no SISR branch',
        {**_RECOMMENDED, 'model.dsrl': 'sssr', 'fa.guide': 'teacher', **_TAUGHT},
        ('ceiling',),
        prediction='Above: a network of the classes knows what a photograph does not.',
    ),
    'guide_both': Rung(
        'FA to that network and to the SISR branch, half each',
        {**_RECOMMENDED, 'fa.guide': 'both', **_TAUGHT},
        ('ceiling',),
        prediction='Between recommended and guide_teacher.',
    ),
    'transform_grid': Rung(
        'feature transform on the affinity grid',
        {**_RECOMMENDED, 'fa.transform': 'grid'},
        prediction='No difference in mIoU, less time a step.',
    ),
}
ARMS = {**RUNGS, **SCOUTS}

# The two questions asked before any run: a minus b. `matched` lies between two sizes.
CONTRASTS = {
    'full - reference': ('full', 'reference'),
    'full - matched cost': ('full', 'matched'),
}
# Asked beside these, of the final runs and of the folds; no part of their correction.
BESIDE = (
    ('recommended', 'reference'),
    ('full', 'shuffled'),
    ('recommended', 'distilled'),
    ('guide_teacher', 'distilled'),
)

# Tuned alike for every rung: each pair is tried on every fold.
# A short run at a laptop's size was 6 points better at 0.1 than at 0.01.
GRID = tuple({'lr': lr, 'decay': decay} for lr in (0.01, 0.03, 0.1) for decay in (5e-4, 1e-4))
FOLDS = (1, 2, 3)

# Height and width of the images themselves, without padding, in lowest terms.
_ASPECTS = {'camvid': (3, 4), 'synthetic': (1, 2)}


def protocol(
    dataset: str,
    rung: str,
    net: str,
    *,
    tiny: bool = False,
    scale: int = 2,
    width: float | None = None,
    view: tuple[int, int] | None = None,
) -> ml_collections.ConfigDict:
    """The unlocked configuration of an arm before folds, seeds and tuned values are set.

    `matched_low` and `matched_high` have their size, rungs with `needs` still lack what
    these tell, `ramp` its number of steps. `scale` is the view's size over that of the
    input; the view is padded up to a size that is legal at it. `width` is the network's
    (None: the data set's own choice), `view` another size (height, width) that whole images
    are brought to, or UserError where it is not one of `matched_views`.
    """
    fields = lookup(ARMS, rung, '--rungs').fields
    config = configs.load(f'{dataset}:net={net},dsrl=none' + (',tiny=true' if tiny else ''))
    config = config.copy_and_resolve_references()
    config.unlock()
    config.optimizer.name, config.optimizer.schedule = 'sgd', 'poly'
    config.optimizer.warmup, config.ce.weights = 0, 'none'
    config.ema = 0.0 if tiny else 0.999
    config.checkpoint.keep = 1
    config.eval.pictures = 0
    if width is not None:
        config.model.width = width
    usual = config.data.size[1], tuple(config.data.scale_range)
    if scale != config.scale:
        _rescale(config, scale)
    _set(config, fields)
    if view is not None:
        _check_view(config, view, _ASPECTS[dataset])
        _show_whole(config, view, usual)
    if rung.startswith('matched'):
        full = protocol(dataset, 'full', net, tiny=tiny, scale=scale, width=width, view=view)
        _match(config, _ASPECTS[dataset], macs(full), usual, high=rung == 'matched_high')
    return config


def scouting() -> str:
    """The scouting arms as a Markdown table: what changes, prediction, outcome."""
    rows = [('arm', 'what changes', 'prediction, mIoU against `recommended`', 'outcome')]
    rows.append(('---',) * 4)
    base = RUNGS['recommended']
    rows.append(('`recommended`', f'the base: {base.title}', base.prediction, base.outcome))
    rows += [(f'`{name}`', a.title, a.prediction, a.outcome) for name, a in SCOUTS.items()]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def matched_views(
    multiple: int, aspect: tuple[int, int], scale: int, most: int = 4096
) -> list[tuple[int, int]]:
    """Views (height, width) of the images' own aspect whose input is legal, smallest first."""
    rows, columns = aspect
    found = []
    for k in range(1, most // max(aspect) + 1):
        view = rows * k, columns * k
        if all(n % (scale * multiple) == 0 for n in view):
            found.append(view)
    return found


def _rescale(config, scale):
    """Another scale, the view padded up to the next size that the network takes at it."""
    config.scale = scale
    unit = scale * inference.build_network(config, 2).multiple
    config.data.size = tuple(-(-n // unit) * unit for n in config.data.size)


def _check_view(config, view, aspect):
    """Raise UserError where a view cannot hold whole images, or the network not take its input."""
    legal = matched_views(inference.build_network(config, 2).multiple, aspect, config.scale)
    if tuple(view) not in legal:
        near = sorted(legal, key=lambda v: abs(v[0] - view[0]))[:3]
        expected = f'{aspect[0]}:{aspect[1]} and sizes that {config.model.net} takes'
        remedy = f'use {", ".join(f"{h}x{w}" for h, w in sorted(near))}, for instance.'
        raise UserError('--view', f'{view[0]}x{view[1]}', expected, remedy)


def _show_whole(config, view, usual):
    """Whole images fill the view: what an image is enlarged by for that, crops are too.

    `usual` are the width of the usual view, which images fill as they are, and its range of scales.
    """
    width, scale_range = usual
    config.data.size = view
    config.data.eval_fit = 'resize'
    config.data.scale_range = tuple(view[1] / width * limit for limit in scale_range)


def _match(config, aspect, target, usual, *, high):
    """The plain network at the legal size next below or above so many multiply-adds."""
    network = inference.build_network(config, 2)
    below = None
    for view in matched_views(network.multiple, aspect, config.scale):
        config.data.size = view
        cost = macs(config)
        if cost >= target:
            break
        below = view
    else:
        found = f'{target / 1e6:.1f} M multiply-adds, more than the largest size takes'
        raise UserError('the matched cost', found, 'a size that takes it', 'leave these rungs out.')
    if below is None:
        found = f'{target / 1e6:.1f} M multiply-adds, less than the smallest legal size takes'
        raise UserError('the matched cost', found, 'a larger input', 'raise data.size.')
    _show_whole(config, view if high else below, usual)


def macs(config, classes: int = 11) -> int:
    """Multiply-adds of a prediction, head included, for that many classes."""
    plain = inference.build_network(config, classes, conv_impl='lax')
    size = inference.input_size(config, configs.eval_size(config))
    return costs.count(plain, costs.variable_shapes(plain, size), size).macs


def _set(config, fields):
    for dotted, value in fields.items():
        *path, last = dotted.split('.')
        node = config
        for part in path:
            node = node[part]
        node[last] = value
