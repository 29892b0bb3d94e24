"""Structured knowledge distillation: a trained network, the teacher, guides the one in training.

Liu et al., Structured Knowledge Distillation for Semantic Segmentation (CVPR 2019, TPAMI 2020),
https://github.com/irfanICMLL/structure_knowledge_distillation (BSD-2-Clause). Its pixel-wise and
pair-wise terms are here; the third one, adversarial (a discriminator on the score maps, weight
0.1), is optional there and left out.
"""

import functools
import pathlib
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dsrl_jax import inference
from dsrl_jax.errors import UserError
from dsrl_jax.ops import resize
from dsrl_jax.ops.affinity import affinity_loss, dense_affinity_loss

_BLOCK_BYTES = 16 * 2**20  # float32 scores of one block of rows
_MOST_BLOCKS = 32  # a large batch gets larger blocks instead of a longer loop


def load_teacher(config, classes: list[str]) -> inference.Model | None:
    """The exported model that `config.kd.teacher` names, for a student of those classes; or None.

    Any network in any DSRL mode, folded or not; it computes in the student's type. UserError where
    the directory is no model, the classes differ, or the teacher cannot take the input.
    """
    kd = config.kd
    _check_guide(config)
    if not kd.teacher:
        return None
    if not 0 < kd.pair_pool <= 0.5:
        expected = 'a share of the map above 0 and at most 0.5'
        raise UserError('config.kd.pair_pool', str(kd.pair_pool), expected, 'use 0.5 or 0.25.')
    if not (pathlib.Path(kd.teacher) / 'params').is_dir():
        expected = 'a directory that `dsrl export` or `dsrl convert` wrote'
        remedy = 'export the teacher first: dsrl export --workdir=W --output=M.'
        raise UserError(f'config.kd.teacher={kd.teacher}', 'no model', expected, remedy)
    saved = inference.load(kd.teacher)
    if list(classes) != saved.classes:
        texts = [', '.join(names) for names in (saved.classes, classes)]
        remedy = 'give a teacher of the same classes, in this order.'
        raise UserError(f'config.kd.teacher={kd.teacher}', *texts, remedy)
    size = [n // _factor(config) for n in config.data.size]
    unit = saved.network.multiple
    if any(n % unit not in saved.network.offsets for n in size):
        raise UserError(
            f'config.kd.teacher={kd.teacher}',
            f'an input of {"x".join(map(str, size))}',
            f'multiples of {unit} for {saved.config.model.net}',
            'change config.data.size, or the teacher.',
        )
    saved.config.model.dtype = config.model.dtype
    return inference.Model(
        saved.config, saved.variables, saved.classes, saved.colors, folded=saved.folded
    )


def identity(teacher: inference.Model) -> str:
    """The teacher's network and a checksum of its variables, wherever its directory lies."""
    checksum = 0
    for leaf in jax.tree.leaves(teacher.variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return f'{teacher.config.model.net} {checksum:08x}'


def make_guide(teacher: inference.Model, config) -> Callable:
    """`guide(variables, target)`: uint8 large view [B,sH,sW,3] -> the teacher's outputs.

    These are scores [B,h,w,K] of its K classes (without a background output), features
    [B,h',w',C] and resize, in evaluation mode and without gradient. The teacher sees the student's
    small input or (`kd.input='view'`) the large view, normalised as in its own training.
    """
    factor = _factor(config)

    def guide(variables: dict, target: jax.Array) -> dict:
        image = resize.small_input(target, factor, teacher.config.data)
        outputs = teacher.network.apply(variables, image, train=False)
        kept = {
            'scores': outputs['scores'][..., : len(teacher.classes)],
            'features': outputs[teacher.config.model.tap],
            'resize': outputs['resize'],
        }
        return lax.stop_gradient(kept)

    return guide


def add_terms(loss: Callable, config) -> Callable:
    """`loss` (losses.make_loss) with `kd_pixel` and `kd_pair`, weighted into its total.

    The batch holds the teacher's outputs as `teacher`. A weight of 0 leaves its term out.
    """
    kd, tap = config.kd, config.model.tap

    def guided(outputs: dict, batch: dict, *, step: jax.Array, key: jax.Array) -> dict:
        terms = loss(outputs, batch, step=step, key=key)
        teacher, total = batch['teacher'], terms.pop('total')
        if kd.pixel:
            convention = teacher['resize']
            scores = outputs['scores'][..., : teacher['scores'].shape[-1]]
            terms['kd_pixel'] = pixel_wise(
                scores, teacher['scores'], batch['mask'], convention=convention
            )
            total += kd.pixel * terms['kd_pixel']
        if kd.pair:
            terms['kd_pair'] = pair_wise(
                outputs[tap], teacher['features'], batch['mask'], share=kd.pair_pool
            )
            total += kd.pair * terms['kd_pair']
        return {**terms, 'total': total}

    return guided


def pixel_wise(scores, teacher, mask, *, convention) -> jax.Array:
    """Mean KL divergence of the student's class distributions from the teacher's, float32 [].

    scores [B,h,w,K], teacher [B,h',w',K], mask [B,sH,sW] of real pixels; see `divergence`. The
    original's soft cross entropy is this plus the teacher's entropy, of no gradient. It sums over
    the images of a device (its script: 8) where this is their mean, and counts padding too.
    """
    real = resize.nearest(mask[..., None], scores.shape[1:3])[..., 0].astype(jnp.float32)
    each = divergence(scores, teacher, convention=convention)
    return jnp.sum(each * real) / jnp.maximum(jnp.sum(real), 1)


def divergence(scores, teacher, *, convention) -> jax.Array:
    """KL(teacher || student) at each score of the student, in float32: [B,h,w].

    scores [B,h,w,K]; teacher [B,h',w',K] is brought bilinearly to their grid and gets no gradient.
    Both passes go by blocks of rows: of [B,h,w,K] no float32 copy is made.
    """
    return _divergence(scores, teacher, str(convention))


def pair_wise(features, teacher, mask, *, share: float) -> jax.Array:
    """Mean squared difference of the cosine similarities of all pairs of nodes, float32 [].

    features [B,h,w,C] and teacher [B,h',w',C'] are what the last classifier convolution reads. A
    node is the maximum over the real pixels of a cell that covers `share` of height and width
    (0.5: 2x2 nodes); nodes of padding alone are left out. This is the loss of `ops.affinity` with
    q = 2 on a coarse grid and without the transform. Its norms have a gradient, the original's do
    not; and the original rounds the cell down, so an odd map has a last node of one row.
    """
    count = round(1 / share)
    size = tuple(min(count, *n) for n in zip(features.shape[1:3], teacher.shape[1:3]))
    student, real = _nodes(features, mask, size)
    teacher, there = _nodes(teacher, mask, size)
    # One form holds nodes x nodes, the other channels x channels: the smaller one.
    few = size[0] * size[1] <= student.shape[-1] + teacher.shape[-1]
    form = dense_affinity_loss if few else affinity_loss
    return form(student, teacher, q=2, mask=real & there)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _divergence(scores, teacher, convention):
    def part(start, wanted, found):
        return jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1)

    out = jnp.zeros(scores.shape[:3], jnp.float32)
    return _by_rows(part, out, scores, teacher, convention)


def _divergence_forward(scores, teacher, convention):
    return _divergence(scores, teacher, convention), (scores, teacher)


def _divergence_backward(convention, residuals, cotangent):
    # Written out, as autodiff would stack the blocks' gradients and then copy them in order.
    def part(start, wanted, found):
        above = lax.dynamic_slice_in_dim(cotangent, start, found.shape[1], axis=1)
        return (jnp.exp(found) - jnp.exp(wanted)) * above[..., None]

    scores, teacher = residuals
    return _by_rows(part, jnp.zeros_like(scores), scores, teacher, convention), None


_divergence.defvjp(_divergence_forward, _divergence_backward)


def _by_rows(part, out, scores, teacher, convention):
    """`out` [B,h,w,...] filled with part(first row, log p, log q) of each block of rows.

    p, q are the distributions of teacher and student there, [B,rows,w,K] in float32.
    """
    batch, height, width, classes = scores.shape
    fit = _BLOCK_BYTES // (4 * batch * width * classes)
    rows = min(height, max(1, fit, -(-height // _MOST_BLOCKS)))
    starts = np.minimum(np.arange(0, height, rows), height - rows)  # the last two may overlap
    # Where the student's rows lie in the teacher's grid: the weights, applied to the row numbers.
    places = np.arange(teacher.shape[1])
    at = resize.bilinear_matrix(len(places), height, convention=convention) @ places
    at = at[starts[:, None] + np.arange(rows)]
    low = np.floor(at).astype(np.int32)
    high, share = np.minimum(low + 1, len(places) - 1), np.float32(at - low)

    def block(out, operands):
        start, low, high, share = operands
        above, below = (jnp.take(teacher, n, axis=1).astype(jnp.float32) for n in (low, high))
        wanted = above + (below - above) * share[None, :, None, None]
        wanted = resize.bilinear_axis(wanted, 2, width, convention=convention)
        found = lax.dynamic_slice_in_dim(scores, start, rows, axis=1).astype(jnp.float32)
        new = part(start, jax.nn.log_softmax(wanted), jax.nn.log_softmax(found)).astype(out.dtype)
        return lax.dynamic_update_slice_in_dim(out, new, start, axis=1), None

    return lax.scan(block, out, (starts, low, high, share))[0]


def _nodes(x, mask, size):
    """The maximum of each cell, and which cells have real pixels: [B,*size,C], bool [B,*size]."""
    real = resize.nearest(mask[..., None], x.shape[1:3])
    x = jnp.where(real, x, -jnp.inf)
    for axis, count in zip((1, 2), size):
        x = _cells(x, axis, count)
    return x, x[..., 0] != -jnp.inf


def _cells(x, axis, count):
    """Maxima over positions floor(i n/count) .. ceil((i + 1) n/count) - 1 of an axis n long.

    Of equal values the first takes the gradient, as in torch.
    """
    n = x.shape[axis]
    ends = [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
    return jnp.stack([_maximum(lax.slice_in_dim(x, *end, axis=axis), axis) for end in ends], axis)


def _maximum(x, axis):
    # The gradient of jnp.max divides by the number of elements that equal the maximum. Where the
    # compiler computes x anew for it and rounds otherwise that is none, and the gradient NaN.
    first = jnp.argmax(x, axis, keepdims=True)
    return jnp.sum(jnp.where(lax.broadcasted_iota(first.dtype, x.shape, axis) == first, x, 0), axis)


def _check_guide(config) -> None:
    """UserError where fa.guide names a guide that this configuration does not have."""
    guide, where = config.fa.guide, 'config.fa.guide'
    if guide != 'sisr' and not config.kd.teacher:
        remedy = 'give one as config.kd.teacher, or set fa.guide=sisr.'
        raise UserError(where, f'{guide!r} without a teacher', 'an exported model', remedy)
    if guide == 'both' and config.model.dsrl != 'full':
        found = f"'both' with model.dsrl={config.model.dsrl}"
        remedy = 'set model.dsrl=full, or fa.guide=teacher.'
        raise UserError(where, found, 'the mode in which the SISR branch guides', remedy)


def _factor(config) -> int:
    """How many times the teacher's input is smaller than the large view."""
    return config.scale if config.kd.input == 'small' else 1
