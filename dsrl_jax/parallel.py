"""The one place that knows devices: mesh, shardings, and the way of host rows onto it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dsrl_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, 'data'.

    The axis type is Auto: the compiler then places the collectives, and batch statistics are
    those of the global batch without a word in the model.
    """
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Rows of the first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Rows of this process, [b, ...] each -> global arrays [B, ...] split along the batch."""
    sharding = by_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for key, value in batch.items()
    }


def check_divisible(batch_size: int, field: str) -> None:
    """Raise UserError unless every device gets the same number of rows."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        lower = max(devices, batch_size // devices * devices)
        raise UserError(
            f'config.{field}',
            f'{batch_size} rows for {devices} devices',
            f'a multiple of {devices}',
            f'use {lower} or {lower + devices}.',
        )
