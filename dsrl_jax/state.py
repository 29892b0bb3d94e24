"""The training state: arrays only, made on the device under jit."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct


class TrainState(struct.PyTreeNode):
    """Everything a run needs to go on; the position in the data is `step`.

    `seed` (of data order, views on the device, dropout and sampling) is an array too, so that runs
    which differ in nothing else share one compiled program.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # averaged {'params', 'batch_stats'}, or None

    def variables(self) -> dict:
        """The variables of the training network."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    def eval_variables(self) -> dict:
        """The variables that are evaluated and exported: the averaged ones where kept."""
        return self.variables() if self.ema is None else self.ema


def init_variables(model: nn.Module, input_size: tuple[int, int], key: jax.Array) -> dict:
    """Fresh variables of every branch, for inputs [1, H, W, 3]."""
    image = jnp.zeros((1, *input_size, 3), jnp.float32)
    variables = model.init(key, image, train=False, sr=True)
    return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def create(
    variables: dict, tx: optax.GradientTransformation, *, ema: bool, seed: jax.Array | int = 0
) -> TrainState:
    """The state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=tx.init(variables['params']),
        # A copy: donation must not meet the same buffer twice.
        ema=jax.tree.map(jnp.copy, variables) if ema else None,
    )


def update_ema(ema: dict | None, variables: dict, step: jax.Array, decay: float) -> dict | None:
    """Exponential moving average with warm-up: decay_t = min(decay, (1 + t) / (10 + t))."""
    if ema is None:
        return None
    t = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, ema, variables)
