"""Gradient accumulation: the gradient of a large batch from parts of it, one after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dsrl_jax.errors import UserError


def in_parts(gradient: Callable, parts: int) -> Callable:
    """`gradient(state, batch, teacher) -> (grads, terms, batch_stats)` of a batch, by parts of it.

    Part m is rows m, m + parts, ... [B/parts, ...]: each device takes them from its own rows.
    `gradient` finds beside them `part`, the number m, and `whole`, mask and label of all rows,
    which say what each mean over a part weighs (losses.part_shares); so the result is that of the
    large batch up to rounding. What it is not: batch norm normalises each part by itself and keeps
    its running statistics of the parts in turn, as every accumulation does (model.freeze_bn does
    away with it), dropout is drawn anew for each, and OHEM keeps the hardest pixels of each.
    """

    def accumulated(state, batch: dict, teacher: dict | None = None):
        whole = {name: batch[name] for name in ('label', 'mask') if name in batch}
        split = {name: _split(x, parts) for name, x in batch.items()}

        def add(carry, part):
            total, batch_stats = carry
            here = state.replace(batch_stats=batch_stats)
            grads, terms, batch_stats = gradient(here, {**part, 'whole': whole}, teacher)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), terms

        start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        (total, batch_stats), terms = jax.lax.scan(
            add,
            start,
            {**split, 'part': jnp.arange(parts)},
            # As in resident.repeat: a convolution inside a loop is slow on a CPU.
            unroll=jax.default_backend() == 'cpu',
        )
        mean = jax.tree.map(lambda x: x / parts, total)
        return mean, jax.tree.map(lambda x: jnp.mean(x, axis=0), terms), batch_stats

    return accumulated


def check(config) -> None:
    """UserError unless config.accumulate parts of a batch are equal, on every device."""
    parts, size, devices = config.accumulate, config.data.batch_size, jax.device_count()
    if parts > 1 and size % (parts * devices):
        unit = parts * devices
        upper = -(-size // unit) * unit
        raise UserError(
            'config.accumulate',
            f'{parts} parts of {size} images on {devices} devices',
            f'a batch of a multiple of {unit}',
            f'use data.batch_size={upper}, or accumulate=1.',
        )


def _split(x, parts):
    """[B, ...] -> [parts, B/parts, ...]: rows of a device stay there, batches being split in
    blocks."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
