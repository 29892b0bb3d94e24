"""The arms of the ladder: what each one changes of the plain network, and the protocol of all.

CamVid at a view of 384x480 (360x480 padded, padding ignored), input 192x240, the same for all arms
that do not say otherwise; batch 16, SGD, poly, EMA of the last step. The reference is the plain
network with bilinear scores, trained and scored on full-size labels: no extra convolutions.
"""

from typing import Any, NamedTuple

import ml_collections

from dsrl_jax import config as configs
from dsrl_jax import costs, inference
from dsrl_jax.errors import UserError, lookup


class Rung(NamedTuple):
    """An arm: its title in tables, fields of the configuration, and runs it needs results of.

    `needs` are rungs of the same stage, seed and grid point whose runs come first.
    """

    title: str
    fields: dict[str, Any]
    needs: tuple[str, ...] = ()


_FULL = {'model.dsrl': 'full', 'sssr.head': 'official_deconv'}

RUNGS = {
    'paper_base': Rung(
        "paper's base: labels of the input's size", {'model.dsrl': 'none', 'ce.labels': 'input'}
    ),
    'reference': Rung('reference: plain network, full-size labels', {'model.dsrl': 'none'}),
    'sssr': Rung('+ SSSR', {**_FULL, 'model.dsrl': 'sssr'}),
    'sisr': Rung('+ SISR', {**_FULL, 'model.dsrl': 'sssr+sisr'}),
    'full': Rung('+ FA: DSRL as published', _FULL),
    'recommended': Rung('full, head without cost', {'model.dsrl': 'full', 'sssr.head': 'bilinear'}),
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

# The two questions asked before any run: a minus b. `matched` lies between two sizes.
CONTRASTS = {
    'full - reference': ('full', 'reference'),
    'full - matched cost': ('full', 'matched'),
}

# Tuned alike for every rung: each pair is tried on every fold.
GRID = tuple({'lr': lr, 'decay': decay} for lr in (0.01, 0.03) for decay in (5e-4, 1e-4))
FOLDS = (1, 2, 3)

# Height and width of the images themselves, without padding, in lowest terms.
_ASPECTS = {'camvid': (3, 4), 'synthetic': (1, 2)}


def protocol(dataset: str, rung: str, net: str, *, tiny: bool = False) -> ml_collections.ConfigDict:
    """The unlocked configuration of a rung before folds, seeds and tuned values are set.

    `matched_low` and `matched_high` have their size, `equal_time` and `distilled` still lack what
    their `needs` tell.
    """
    fields = lookup(RUNGS, rung, '--rungs').fields
    config = configs.load(f'{dataset}:net={net},dsrl=none' + (',tiny=true' if tiny else ''))
    config = config.copy_and_resolve_references()
    config.unlock()
    config.optimizer.name, config.optimizer.schedule = 'sgd', 'poly'
    config.optimizer.warmup, config.ce.weights = 0, 'none'
    config.ema = 0.0 if tiny else 0.999
    config.checkpoint.keep = 1
    config.eval.pictures = 0
    _set(config, fields)
    if rung.startswith('matched'):
        _match(config, dataset, net, tiny, high=rung == 'matched_high')
    return config


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


def _match(config, dataset, net, tiny, *, high):
    """The plain network at the legal size next below or above the cost of DSRL as published."""
    full = protocol(dataset, 'full', net, tiny=tiny)
    target = macs(full)
    before = config.data.size
    aspect = _ASPECTS[dataset]
    network = inference.build_network(config, 2)
    below = None
    for view in matched_views(network.multiple, aspect, config.scale):
        config.data.size = view
        cost = macs(config)
        if cost >= target:
            break
        below = view
    if below is None:
        found = f'{target / 1e6:.1f} M multiply-adds, less than the smallest legal size takes'
        raise UserError('the matched cost', found, 'a larger input', 'raise data.size.')
    config.data.size = view if high else below
    # The same field of view: what an image is enlarged by to fill the view, crops are too.
    config.data.eval_fit = 'resize'
    zoom = config.data.size[1] / before[1]
    config.data.scale_range = tuple(zoom * limit for limit in config.data.scale_range)


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
