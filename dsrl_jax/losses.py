"""The DSRL objective L = L_ce + w1 L_mse + w2 L_fa (equations 1 to 5 of the paper)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax.errors import UserError
from dsrl_jax.ops import resize
from dsrl_jax.ops.affinity import affinity_loss
from dsrl_jax.ops.convolution import platform
from dsrl_jax.ops.scores import pixel_cross_entropy

# Printed in SegNet's CamVid prototxts; another label version than the published annotations.
SEGNET_CAMVID = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)


def make_loss(config, class_weights: np.ndarray | None = None, aux_weight: float = 1.0) -> Callable:
    """`loss(outputs, batch, *, step, key) -> {'ce', 'mse', 'fa', ..., 'total'}`, float32 scalars.

    `batch` holds `view` [B,sH,sW,3] (the large view in resize.SR_COLOR), `label` [B,sH,sW] and
    `mask` [B,sH,sW]; the terms are means over real pixels, so none depends on batch size or
    devices.  Terms whose branch is absent from `outputs` are absent from the result.  `aux_weight`
    is that of the network's auxiliary classifiers where the configuration names none.

    `fa` is the affinity to the SISR branch, `fa_teacher` that to the features of the frozen
    `batch['teacher']`; `fa.guide` says which there are, and fa.weight times their mean is added.
    """
    if config.ce.aux is not None:
        aux_weight = config.ce.aux

    def loss(outputs: dict, batch: dict, *, step: jax.Array, key: jax.Array) -> dict:
        terms = {'ce': cross_entropy(outputs, batch['label'], config, class_weights)}
        total = terms['ce']
        if outputs.get('aux'):
            own = {'resize': outputs.get('aux_resize', outputs['resize'])}
            maps = [{'scores': scores, **own} for scores in outputs['aux'].values()]
            label = batch['label']
            terms['aux'] = sum(cross_entropy(aux, label, config, class_weights) for aux in maps)
            total += aux_weight * terms['aux']
        if 'sr' in outputs:
            terms['mse'] = mse(outputs['sr'], batch['view'], batch['mask'], config.mse.reduction)
            total += config.mse.weight * terms['mse']
        guides = affinity_guides(outputs, batch, config)
        for name, guide in guides.items():
            frozen = name == 'fa_teacher' or config.fa.stop_gradient_sr
            seg, mask = outputs['seg_feature'], batch['mask']
            terms[name] = feature_affinity(seg, guide, mask, config, key, frozen=frozen)
            weight = ramp(config.fa.weight / len(guides), config.fa.ramp, step)
            total += weight * terms[name]
        terms['total'] = total
        return terms

    return loss


def cross_entropy(outputs: dict, label: jax.Array, config, class_weights=None) -> jax.Array:
    """Mean cross entropy of label [B,sH,sW] (255 ignored) under the network's scores (eq. 4).

    With class weights w it is sum(w l) / sum(w), as in torch. `ce.labels='input'` supervises at
    the size of the small input, as the paper's base networks are.
    """
    if config.ce.labels == 'input':
        size = tuple(n // config.scale for n in label.shape[1:])
        label = resize.nearest(label[..., None], size)[..., 0]
    ce = pixel_cross_entropy(outputs['scores'], label, convention=outputs['resize'])
    weight = (label != 255).astype(jnp.float32)
    if class_weights is not None:
        table = np.zeros(256, np.float32)
        table[: len(class_weights)] = class_weights
        weight = jnp.take(jnp.asarray(table), label.astype(jnp.int32), axis=0)
    return jnp.sum(weight * ce) / jnp.maximum(jnp.sum(weight), 1e-6)


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
    fa = config.fa
    (seg, guide), real = to_grid((seg, guide), mask, config)
    if fa.shuffle_sr:
        key, shuffle = jax.random.split(key)
        order = jax.random.permutation(shuffle, real[0].size)
        guide, moved = (_reorder(x, order) for x in (guide, real[..., None]))
        real &= moved[..., 0]
    return affinity_loss(
        seg,
        guide,
        sampling=fa.sampling,
        q=fa.q,
        eps=fa.eps,
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


def _reorder(x: jax.Array, order: jax.Array) -> jax.Array:
    """The pixels of [B,h,w,C] in another order [h*w], the same one for the whole batch."""
    return jnp.take(x.reshape(x.shape[0], -1, x.shape[-1]), order, axis=1).reshape(x.shape)


def ramp(weight: float, steps: int, step: jax.Array) -> jax.Array | float:
    """The weight, grown linearly from 0 over that many steps."""
    return weight * jnp.minimum(1.0, step / steps) if steps else weight


def class_weights(spec: str, pixels: np.ndarray, present: np.ndarray) -> np.ndarray | None:
    """Weights [K] of the classes: 'none', 'segnet', 'median_frequency', 'inverse_log', or numbers.

    `pixels` [K] are the pixels of each class in the training split, `present` [K] the pixels of
    the images that hold it. Median frequency: median(f) / f_c with f = pixels / present (SegNet);
    inverse log: 1 / ln(1.10 + p) with p the share of all pixels (ESPNet; ENet takes 1.02). A class
    that does not occur has weight 0.
    """
    classes = len(pixels)
    if spec == 'none':
        return None
    with np.errstate(divide='ignore', invalid='ignore'):
        if spec == 'median_frequency':
            frequency = pixels / present
            weights = np.median(frequency[pixels > 0]) / frequency
        elif spec == 'inverse_log':
            weights = 1 / np.log(1.10 + pixels / pixels.sum())
        elif spec == 'segnet':
            weights = np.asarray(SEGNET_CAMVID)
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
        expected = 'none, median_frequency, inverse_log, segnet, or numbers'
        raise UserError('config.ce.weights', repr(spec), expected, 'correct the value.') from None
