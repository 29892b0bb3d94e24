"""Online hard example mining: the pixels a loss keeps, found by counting, not by sorting."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def hard_pixels(loss: jax.Array, valid: jax.Array, *, probability: float, one_of: int) -> jax.Array:
    """Weight of each pixel in the mean over the hard ones: loss [...], valid bool [...] -> float32.

    Hard is a cross entropy above -ln(probability): the true class has less than that. Where these
    are fewer than n = ceil(valid pixels / one_of), the n pixels of the largest loss are kept. The
    weights are 0 or 1 and sum to the number kept, exactly; pixels that tie for the last places
    share them evenly, so the result knows no order of the pixels. A NaN counts as hardest. The
    threshold is that of all pixels given, on however many devices: only counts pass between them.
    No gradient.
    """
    # Floats from 0 up are in the order of their bits, NaN last.
    bits = lax.bitcast_convert_type(lax.stop_gradient(loss).astype(jnp.float32), jnp.int32)
    bits = jnp.where(valid, bits & 0x7FFFFFFF, -1)
    hard = bits > np.float32(abs(np.log(probability))).view(np.int32)
    wanted = -(-_count(valid) // one_of)
    last = _nth_largest(bits, wanted)
    above, ties = bits > last, bits == last
    part = (wanted - _count(above)) / jnp.maximum(_count(ties), 1)
    hardest = jnp.where(above, 1.0, jnp.where(ties, part, 0.0))
    return jnp.where(_count(hard) >= wanted, hard.astype(jnp.float32), hardest)


def _nth_largest(bits, n):
    """The n-th largest of int32 values from 0 up (-1: none), bit by bit from the highest."""

    def decide(i, found):
        higher = found | (1 << (30 - i))
        return jnp.where(_count(bits >= higher) >= n, higher, found)

    return lax.fori_loop(0, 31, decide, jnp.int32(0))


def _count(flags):
    return jnp.sum(flags, dtype=jnp.int32)
