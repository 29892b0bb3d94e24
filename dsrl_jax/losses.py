"""The DSRL objective L = L_ce + w1 L_mse + w2 L_fa (equations 1 to 5 of the paper)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax.errors import UserError
from dsrl_jax.ops import heatmaps, resize
from dsrl_jax.ops.affinity import affinity_loss
from dsrl_jax.ops.convolution import platform
from dsrl_jax.ops.hard_pixels import hard_pixels
from dsrl_jax.ops.scores import pixel_cross_entropy

# Printed in SegNet's CamVid prototxts; another label version than the published annotations.
SEGNET_CAMVID = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)
# Of the training script of EdgeNets (ESPNetv2), whose 20th output, the background, weighs 0.
EDGENETS_CITYSCAPES = (
    *(2.8149, 6.9850, 3.7890, 9.9428, 9.7702, 9.5111, 10.3114, 10.0265, 4.6323, 9.5608),
    *(7.8698, 9.5169, 10.3737, 6.6616, 10.2605, 10.2879, 10.2898, 10.4054, 10.1381),
)
# Of the training script of DABNet.
DABNET_CITYSCAPES = (
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
PUBLISHED = {
    'segnet': SEGNET_CAMVID,
    'edgenets_cityscapes': EDGENETS_CITYSCAPES,
    'dabnet_cityscapes': DABNET_CITYSCAPES,
}
INVERSE_LOG = {'inverse_log': 1.10, 'inverse_log_enet': 1.02}  # of ESPNet, and of ENet
COUNTED = ('median_frequency', *INVERSE_LOG)  # class weights that need the training split counted


def make_loss(
    config,
    class_weights: np.ndarray | None = None,
    aux_weight: float = 1.0,
    main: tuple[str, Callable] | None = None,
) -> Callable:
    """`loss(outputs, batch, *, step, key) -> {'ce', 'mse', 'fa', ..., 'total'}`, float32 scalars.

    `batch` holds `view` [B,sH,sW,3] (the large view in resize.SR_COLOR), `label` [B,sH,sW] and
    `mask` [B,sH,sW]; the terms are means over real pixels, so none depends on batch size or
    devices.  Terms whose branch is absent from `outputs` are absent from the result.  `aux_weight`
    is that of the network's auxiliary classifiers where the configuration names none.

    `main` is the term of the task: its name, and its function of maps (`scores`, `resize`) and the
    batch. It is the cross entropy of `label`, or `heatmap_term` in its place.

    `fa` is the affinity to the SISR branch, `fa_teacher` that to the features of the frozen
    `batch['teacher']`; `fa.guide` says which there are, and fa.weight times their mean is added.

    The terms of a part of a batch (`part_shares`) are scaled so that their mean over the parts is
    the term of the whole.
    """
    if config.ce.aux is not None:
        aux_weight = config.ce.aux
    term, supervise = main or ('ce', _cross_entropy_term(config, class_weights))

    def loss(outputs: dict, batch: dict, *, step: jax.Array, key: jax.Array) -> dict:
        share = part_shares(batch, config, class_weights, key)

        def scaled(name, value):
            return value * share[name] if name in share else value

        terms = {term: scaled(term, supervise(outputs, batch))}
        total = terms[term]
        if outputs.get('aux'):
            own = {'resize': outputs.get('aux_resize', outputs['resize'])}
            maps = [{'scores': scores, **own} for scores in outputs['aux'].values()]
            terms['aux'] = scaled(term, sum(supervise(aux, batch) for aux in maps))
            total += aux_weight * terms['aux']
        if 'sr' in outputs:
            error = mse(outputs['sr'], batch['view'], batch['mask'], config.mse.reduction)
            terms['mse'] = scaled('mse', error)
            total += config.mse.weight * terms['mse']
        guides = affinity_guides(outputs, batch, config)
        for name, guide in guides.items():
            frozen = name == 'fa_teacher' or config.fa.stop_gradient_sr
            seg, mask = outputs['seg_feature'], batch['mask']
            fa = feature_affinity(seg, guide, mask, config, key, frozen=frozen)
            terms[name] = scaled('fa', fa)
            weight = ramp(config.fa.weight / len(guides), config.fa.ramp, step)
            total += weight * terms[name]
        terms['total'] = total
        return terms

    return loss


def heatmap_term(config, result_size: Callable) -> tuple[str, Callable]:
    """The term of a pose network, for `make_loss`: its heatmaps against those of the joints.

    `result_size((H, W))` are the heatmaps' height and width for an input of that size. The batch
    holds `joints` [B,J,2] in pixels of the input and `visible` [B,J]; the target is drawn here, on
    the device, as section `pose` says.
    """
    pose = config.pose

    def supervise(outputs: dict, batch: dict) -> jax.Array:
        height, width = (n // config.scale for n in batch['mask'].shape[1:])
        size = result_size((height, width))
        scores = heatmap_scores(outputs, size)
        target, weight = heatmaps.encode(
            batch['joints'], batch['visible'], size, height // size[0], pose.sigma, pose.encode
        )
        return heatmap_mse(scores, target, weight)

    return 'heatmap', supervise


def heatmap_scores(outputs: dict, size: tuple[int, int]) -> jax.Array:
    """The heatmaps of a network: `scores` [B,h',w',J], enlarged where a head left that to the loss,
    as float32 [B,h,w,J] of `size` (h, w)."""
    scores = outputs['scores'].astype(jnp.float32)
    if scores.shape[1:3] == tuple(size):
        return scores
    return resize.bilinear(scores, size, convention=outputs['resize'])


def heatmap_mse(scores: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """HRNet's loss of heatmaps: scores and target [B,h,w,J], weight [B,J] of the joints; [].

    The mean over joints of 0.5 x the mean over images and pixels of (weight x difference)^2. Joints
    of weight 0 count in the means, as in the original, so that no image weighs more than another.
    """
    error = (scores.astype(jnp.float32) - target) * weight[:, None, None]
    return 0.5 * jnp.mean(jnp.square(error))


def cross_entropy(outputs: dict, label: jax.Array, config, class_weights=None) -> jax.Array:
    """Mean cross entropy of label [B,sH,sW] (255 ignored) under the network's scores (eq. 4).

    With class weights w it is sum(w l) / sum(w), as in torch. `ce.labels='input'` supervises at
    the size of the small input, as the paper's base networks are. With `ce.ohem` both sums run
    over the hard pixels of the whole batch (ops.hard_pixels), told by the loss without w.
    """
    label = _supervised(label, config)
    ce = pixel_cross_entropy(outputs['scores'], label, convention=outputs['resize'])
    weight = _pixel_weights(label, class_weights)
    if config.ce.ohem:
        kept = {'probability': config.ce.ohem, 'one_of': config.ce.ohem_keep}
        weight *= hard_pixels(ce, weight > 0, **kept)
    return jnp.sum(weight * ce) / jnp.maximum(jnp.sum(weight), 1e-6)


def _cross_entropy_term(config, class_weights):
    return lambda outputs, batch: cross_entropy(outputs, batch['label'], config, class_weights)


def _supervised(label, config):
    """The labels at the size where they supervise."""
    if config.ce.labels == 'target':
        return label
    size = tuple(n // config.scale for n in label.shape[1:])
    return resize.nearest(label[..., None], size)[..., 0]


def _pixel_weights(label, class_weights):
    """Weight of each pixel in the cross entropy, float32 of the label's shape."""
    if class_weights is None:
        return (label != 255).astype(jnp.float32)
    table = np.zeros(256, np.float32)
    table[: len(class_weights)] = class_weights
    return jnp.take(jnp.asarray(table), label.astype(jnp.int32), axis=0)


def mse(sr: jax.Array, view: jax.Array, mask: jax.Array, reduction: str = 'mean') -> jax.Array:
    """Squared error of sr against view, [B,sH,sW,3] each, over real pixels of mask (eq. 5).

    'mean' averages over channels too; 'channel_sum' is the equation to the letter, 3 x larger.
    """
    error = jnp.square(sr.astype(jnp.float32) - view)
    real = mask[..., None].astype(jnp.float32)
    mean = jnp.sum(error * real) / (jnp.maximum(jnp.sum(real), 1.0) * sr.shape[-1])
    return mean * sr.shape[-1] if reduction == 'channel_sum' else mean


def affinity_guides(outputs: dict, batch: dict, config) -> dict[str, jax.Array]:
    """The feature maps [B,h,w,C] that teach `seg_feature`, by the name of their term."""
    guides = {}
    if config.fa.guide != 'teacher' and 'sr_feature' in outputs:
        guides['fa'] = outputs['sr_feature']
    if config.fa.guide != 'sisr':
        guides['fa_teacher'] = batch['teacher']['features']
    return guides


def feature_affinity(
    seg: jax.Array, guide: jax.Array, mask: jax.Array, config, key: jax.Array, *, frozen: bool
) -> jax.Array:
    """L_fa (eq. 1-2) of two maps [B,h,w,C] on the grid of `to_grid`; float32 [].

    mask [B,sH,sW] are the real pixels; with `frozen` the guide gets no gradient.
    """
    (seg, guide), real = to_grid((seg, guide), mask, config)
    options = {'q': config.fa.q, 'eps': config.fa.eps}
    return _on_grid(seg, guide, real, config, key, frozen=frozen, **options)


def _on_grid(seg, guide, real, config, key, *, frozen, q, eps):
    fa = config.fa
    if fa.shuffle_sr:
        key, shuffle = jax.random.split(key)
        order = jax.random.permutation(shuffle, real[0].size)
        guide, moved = (_reorder(x, order) for x in (guide, real[..., None]))
        real &= moved[..., 0]
    return affinity_loss(
        seg,
        guide,
        sampling=fa.sampling,
        q=q,
        eps=eps,
        mask=real,
        key=key,
        stop_gradient_sr=frozen,
        window=fa.window,
        dilation=fa.dilation,
        where=platform(config.model.conv_impl),
    )


def to_grid(maps, mask: jax.Array, config) -> tuple[list[jax.Array], jax.Array]:
    """Maps [B,h,w,C] on the grid input/fa.grid, and which of its cells are real: bool [B,gh,gw].

    Finer maps are average-pooled and coarser ones enlarged, before any normalisation; a cell is
    real where all its pixels in the mask [B,sH,sW] are.
    """
    size = tuple(max(1, n // (config.scale * config.fa.grid)) for n in mask.shape[1:])
    maps = [resize.pool_to(x, size) for x in maps]
    return maps, resize.pool_to(mask[..., None].astype(jnp.float32), size)[..., 0] > 0.999


def part_shares(batch: dict, config, class_weights, key: jax.Array) -> dict:
    """Weight of the means over a part of a batch in those over the whole: {'ce', 'mse', 'fa'}.

    The labelled pixels, real pixels and pairs of the part, over those of an average part: float32
    scalars, 1 on average. `batch['part']` m of n parts are rows m, m + n, ... of the label and mask
    in `batch['whole']`; {} where the batch is no part. With OHEM the labelled pixels count, not the
    kept ones, which only the network knows. No 'ce' without a label: people of a pose batch weigh
    alike.
    """
    if 'whole' not in batch:
        return {}
    whole = batch['whole']

    def share(of):
        return jnp.mean(of(batch)) / jnp.maximum(jnp.mean(of(whole)), 1e-12)

    rows = len(whole['mask'])
    parts = rows // len(batch['mask'])
    _, real = to_grid((), whole['mask'], config)
    # Maps whose affinities differ by 1 in this part and by 0 elsewhere: their mean squared
    # difference is the share of its pairs, however these are drawn, in O(pixels).
    inside = (jnp.arange(rows) % parts == batch['part'])[:, None, None, None]
    ones = jnp.broadcast_to(inside, (*real.shape, 1)).astype(jnp.float32)
    maps = ones, jnp.zeros_like(ones), real
    pairs = _on_grid(*maps, config, key, frozen=True, q=2, eps=1e-12)
    shares = {'mse': share(lambda x: x['mask'].astype(jnp.float32)), 'fa': parts * pairs}
    if 'label' in batch:
        shares['ce'] = share(
            lambda x: _pixel_weights(_supervised(x['label'], config), class_weights)
        )
    return shares


def _reorder(x: jax.Array, order: jax.Array) -> jax.Array:
    """The pixels of [B,h,w,C] in another order [h*w], the same one for the whole batch."""
    return jnp.take(x.reshape(x.shape[0], -1, x.shape[-1]), order, axis=1).reshape(x.shape)


def ramp(weight: float, steps: int, step: jax.Array) -> jax.Array | float:
    """The weight, grown linearly from 0 over that many steps."""
    return weight * jnp.minimum(1.0, step / steps) if steps else weight


def class_weights(spec: str, pixels: np.ndarray, present: np.ndarray) -> np.ndarray | None:
    """Weights [K] of the classes: 'none', a name of PUBLISHED or COUNTED, or numbers.

    `pixels` [K] are the pixels of each class in the training split, `present` [K] the pixels of
    the images that hold it. Median frequency: median(f) / f_c with f = pixels / present (SegNet);
    inverse log: 1 / ln(c + p) with p the share of all pixels and c of INVERSE_LOG. A class that
    does not occur has weight 0.
    """
    classes = len(pixels)
    if spec == 'none':
        return None
    with np.errstate(divide='ignore', invalid='ignore'):
        if spec == 'median_frequency':
            frequency = pixels / present
            weights = np.median(frequency[pixels > 0]) / frequency
        elif spec in INVERSE_LOG:
            weights = 1 / np.log(INVERSE_LOG[spec] + pixels / pixels.sum())
        elif spec in PUBLISHED:
            weights = np.asarray(PUBLISHED[spec])
        else:
            weights = _numbers(spec)
    if len(weights) != classes:
        found = f'{len(weights)} class weights'
        raise UserError('config.ce.weights', found, f'{classes}', 'give one number a class.')
    return np.where(pixels > 0, weights, 0).astype(np.float32)


def _numbers(spec: str) -> np.ndarray:
    try:
        return np.asarray([float(piece) for piece in spec.strip('()[]').split(',')])
    except ValueError:
        expected = ', '.join(('none', *COUNTED, *PUBLISHED, 'or numbers'))
        raise UserError('config.ce.weights', repr(spec), expected, 'correct the value.') from None
