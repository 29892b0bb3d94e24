"""What the affinity loss does to the encoder: both affinities, and its gradient beside that of CE.

A program of its own, run every `log.affinity` steps: the training step never knows of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax import losses, parallel
from dsrl_jax.errors import UserError
from dsrl_jax.step import make_forward

CELLS = 256  # of the grid, evenly spread; all pairs of them are measured
# Whose map a term of the loss compares with the segmentation's.
_GUIDES = {'fa': 'sr', 'fa_teacher': 'teacher'}


def make_measure(model, loss: Callable, config, guide: Callable | None = None) -> Callable:
    """`measure(state, batch, teacher=None) -> {'affinity_seg_mean', ..., 'cosine_fa_ce'}`.

    To be jitted; state, batch and teacher are those of the training step, and so is the pass that
    is measured: its parameters, views, dropout and batch statistics. float32 scalars:
    affinity_seg_mean, _std   cosines of pairs of cells of the transformed features (`statistics`)
    affinity_sr_mean, _std    the same of the SISR branch; affinity_teacher_* of the teacher
    cosine_fa_ce              between the gradients of the affinity terms and of the cross entropy
                              (the loss of heatmaps) in the parameters of `network`; 0 where one of
                              them vanishes
    """
    prepare = make_forward(model, loss, config, guide)

    def measure(state, batch: dict, teacher: dict | None = None) -> dict[str, jax.Array]:
        seen, forward = prepare(state, batch, teacher)

        def terms_of(network):
            terms, outputs, _ = forward({**state.params, 'network': network})
            main = next(terms[name] for name in ('ce', 'heatmap') if name in terms)
            return (sum(terms[name] for name in _GUIDES if name in terms), main), outputs

        (fa, ce), pull, outputs = jax.vjp(terms_of, state.params['network'], has_aux=True)
        one, none = jnp.ones_like(fa), jnp.zeros_like(ce)
        (of_fa,), (of_ce,) = pull((one, none)), pull((none, one))

        guides = losses.affinity_guides(outputs, seen, config)
        maps = [outputs['seg_feature'], *guides.values()]
        maps, real = losses.to_grid(maps, seen['mask'], config)
        found = {'cosine_fa_ce': _cosine(of_fa, of_ce)}
        for name, x in zip(['seg', *(_GUIDES[term] for term in guides)], maps):
            mean, std = statistics(x, real, config.fa.eps)
            found |= {f'affinity_{name}_mean': mean, f'affinity_{name}_std': std}
        return found

    return measure


def statistics(x: jax.Array, real: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Mean and spread of the cosines of pairs of cells: [B,h,w,C], bool [B,h,w] -> [], [].

    All pairs of two different real cells of an image, among CELLS of its cells at most; 0 where
    there is none.
    """
    count = x.shape[1] * x.shape[2]
    cells = np.linspace(0, count - 1, min(count, CELLS)).round().astype(int)
    x = x.reshape(x.shape[0], count, -1)[:, cells].astype(jnp.float32)
    real = real.reshape(len(real), count)[:, cells]
    x *= jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps)
    cosines = jnp.einsum('bic,bjc->bij', x, x, precision=jax.lax.Precision.HIGHEST)
    kept = real[:, :, None] & real[:, None, :] & ~np.eye(len(cells), dtype=bool)[None]
    pairs = jnp.maximum(jnp.sum(kept, dtype=jnp.float32), 1)
    # Two passes: a plain float32 sum of a million cosines near 1 is off by more than their spread
    # where a branch collapses, and a mean of squares more so.
    rough = jnp.sum(cosines, where=kept) / pairs
    shift = jnp.sum(cosines - rough, where=kept) / pairs
    spread = jnp.sqrt(jnp.sum(jnp.square(cosines - rough - shift), where=kept) / pairs)
    return rough + shift, spread


def make_record(measure: Callable, batch: Callable | None, config, mesh, logger) -> Callable:
    """`record(step, length, state, pixels, teacher)`: measures where it is due, before the state
    of `step` steps is trained for `length` more.

    It is due once in a dispatch that holds a multiple of log.affinity: at its first step, so that
    a dispatch of one step is measured at that multiple. `batch(pixels, step, seed)` (None: pixels
    are the batch) draws the views of that step from images in device memory.
    """
    every = config.log.affinity

    def run(state, pixels, teacher):
        return measure(state, batch(pixels, state.step, state.seed) if batch else pixels, teacher)

    run = jax.jit(run, out_shardings=parallel.replicated(mesh))

    def record(step, length, state, pixels, teacher):
        if every and (step + length) // every > step // every:
            logger.flush()  # the wait for earlier steps is theirs
            with logger.clock('eval'):
                logger.diagnose(step + 1, run(state, pixels, teacher))

    return record


def measurable(config) -> bool:
    """Whether the run has an affinity loss."""
    return config.model.dsrl == 'full' or config.fa.guide != 'sisr'


def check(config) -> None:
    """UserError where log.affinity is set and there is no affinity loss to measure."""
    if config.log.affinity and not measurable(config):
        found = f'{config.log.affinity} with model.dsrl={config.model.dsrl}'
        expected = 'a run with the affinity loss: model.dsrl=full, or fa.guide=teacher'
        raise UserError('config.log.affinity', found, expected, 'set it to 0.')


def _cosine(a, b) -> jax.Array:
    """Cosine of the angle between two trees of arrays; 0 where one is all zero."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    product, first, second = (
        sum(jnp.sum(x * y) for x, y in chosen)
        for chosen in (pairs, [(x, x) for x, _ in pairs], [(y, y) for _, y in pairs])
    )
    norms = jnp.sqrt(first) * jnp.sqrt(second)
    return jnp.where(norms > 0, product / jnp.where(norms > 0, norms, 1), 0)
