"""Max pooling that remembers where each maximum was, and the unpooling that puts values back.

Both are compares, selects and reshapes: a gather and a scatter by index would be slow everywhere
and, in the gradient on a GPU, not deterministic.  All run in `jax.named_scope('pool')`: the MAC
counter leaves them out.
"""

import jax
import jax.numpy as jnp


def max_pool_places(x):
    """2x2 maximum at stride 2 and its place in the window: [B, H, W, C] -> two [B, H/2, W/2, C].

    Places are int32, 0 to 3 in row order; of equal values the first, and the gradient goes to it
    alone, as in torch.  NaN goes through.  ValueError unless H and W are even.
    """
    b, height, width, c = x.shape
    if height % 2 or width % 2:
        raise ValueError(f'2x2 pooling: {height}x{width} is not even')
    with jax.named_scope('pool'):
        windows = x.reshape(b, height // 2, 2, width // 2, 2, c)
        largest = windows[:, :, 0, :, 0]
        places = jnp.zeros(largest.shape, jnp.int32)
        for place in range(1, 4):
            value = windows[:, :, place // 2, :, place % 2]
            larger = (value > largest) | (value != value)
            largest = jnp.where(larger, value, largest)
            places = jnp.where(larger, place, places)
        return largest, places


def unpool(x, places):
    """Each value at its place of a 2x2 window, else 0: two [B, H, W, C] -> [B, 2H, 2W, C].

    `places` as from max_pool_places.
    """
    b, height, width, c = x.shape
    with jax.named_scope('pool'):
        at = [jnp.where(places == place, x, 0) for place in range(4)]
        rows = [jnp.stack(at[i : i + 2], axis=3) for i in (0, 2)]
        return jnp.stack(rows, axis=2).reshape(b, 2 * height, 2 * width, c)
