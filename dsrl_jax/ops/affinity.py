"""Feature affinity loss (DSRL, CVPR 2020, eq. 1-2): cosine similarities of all pixel pairs.

With a, b the maps of the two branches, rows scaled to unit length, the loss is the mean over pairs
of |D_ij|^q, D = a a^T - b b^T. Side by side, f = [a, b] and g = [a, -b] give D = f g^T: one
product a pair, and its gradient at q = 1 is 2 sign(D) g. No N x N object outlives its strip.

Matrix products run in float32 at the highest precision whatever the type of the maps: TF32 or
bfloat16 products are off by about 1e-3, the size of D where the branches nearly agree. On a GPU
they are sums of bfloat16 products of the three parts of each float32, exact to its rounding.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

SAMPLINGS = ('exact', 'pool8', 'grid8', 'random_pixels', 'random_rows', 'local')
_STRIP = 2**28  # entries of D at a time on a GPU: each strip adds to the whole gradient once

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def affinity_loss(
    seg: jax.Array,
    sr: jax.Array,
    *,
    sampling: str = 'exact',
    q: int = 1,
    eps: float = 1e-4,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    stop_gradient_sr: bool = False,
    tile: int | None = None,
    subsample: int = 8,
    window: int = 5,
    dilation: int = 1,
    where: str | None = None,
) -> jax.Array:
    """Mean |S_seg - S_sr|^q over pixel pairs: [B,h,w,Cseg], [B,h,w,Csr] -> float32 [] (eq. 1-2).

    S_ij = n_i . n_j, n = f * rsqrt(sum_c f^2 + eps) in float32: the epsilon (> 0) inside the root
    keeps the gradient finite at an all-zero vector. q = 1 is the paper's; q = 2 is the mean SQUARED
    difference (the 2-norm of a scalar would be q = 1 again), in O(N C^2) through Gram matrices.
    Every pair of the batch weighs the same, so duplicating the batch changes nothing. Pairs with a
    pixel where `mask` [B,h,w] is False leave the sum and the count; no pair left gives 0.

    `sampling`, of the N^2 pairs (N = h w) of the grid given:
      exact          all, `tile` columns (None: 256, on a GPU more, up to 4096) against all rows at
                     a time: O(N (C + tile)) memory
      pool8          the same; the name says that the caller pooled both maps to 1/8 (1/4096 of the
                     pairs of the finer map)
      grid8          every `subsample`-th row and column of pixels from a random phase, all pairs
                     among them: 1/subsample^4
      random_pixels  N/subsample random pixels, all pairs among them: 1/subsample^2
      random_rows    N/subsample random pixels against all N: 1/subsample; where nothing is masked
                     an unbiased estimate of `exact`, of lower variance than random_pixels
      local          each pixel against the window x window around it, `dilation` apart:
                     about window^2/N; pairs that leave the map drop out
    The random ones need `key`, a new one each step; all samples share the draw, so a batch split
    over devices stays split. `stop_gradient_sr` sends no gradient to `sr`. `where` is the platform
    that runs it (convolution.PLATFORMS), None the backend at hand.

    One channel never learns: post-ReLU maps of one channel have the constant affinity 1.
    Raises ValueError for unequal grids, an unknown sampling, q, or a missing key.
    """
    _check(seg, sr, mask, sampling, q, key, subsample, window)
    if mask is None:
        mask = jnp.ones(seg.shape[:3], bool)
    if stop_gradient_sr:
        sr = lax.stop_gradient(sr)
    if sampling == 'grid8':
        phase = jax.random.randint(key, (2,), 0, subsample)
        seg, sr, mask = (_strided(x, phase, subsample) for x in (seg, sr, mask))

    f = jnp.concatenate([_unit(seg, mask, eps), _unit(sr, mask, eps)], axis=-1)
    split = seg.shape[-1]
    if sampling == 'local':
        total, count = _local_sum(f, mask, split, q, window, dilation)
        return total / jnp.maximum(count, 1)

    f, mask = f.reshape(f.shape[0], -1, f.shape[-1]), mask.reshape(mask.shape[0], -1)
    rows, row_mask = None, mask
    if sampling.startswith('random'):
        pixels = f.shape[1]
        # One sort: jax.random.choice without replacement compiles and runs several.
        drawn = jnp.argsort(jax.random.bits(key, (pixels,)))[: max(1, pixels // subsample)]
        rows, row_mask = jnp.take(f, drawn, axis=1), jnp.take(mask, drawn, axis=1)
        if sampling == 'random_pixels':
            f, mask, rows = rows, row_mask, None
    count = jnp.sum(_pixels(row_mask, f.dtype) * _pixels(mask, f.dtype))
    if q == 2:
        total = _squared_sum(f, rows, split)
    else:
        total = _absolute_sum(f, rows, split, tile, where or jax.default_backend())
    return total / jnp.maximum(count, 1)


def dense_affinity_loss(
    seg: jax.Array,
    sr: jax.Array,
    *,
    q: int = 1,
    eps: float = 1e-4,
    mask: jax.Array | None = None,
    pairs: jax.Array | None = None,
) -> jax.Array:
    """The plain form of `affinity_loss`: [B,h,w,Cseg], [B,h,w,Csr] -> float32 [], O(N^2) memory.

    Eq. 1-2 as they are written, differentiated by JAX: what the fast forms are tested against, and
    enough for small N. `pairs` [N,N] bool keeps only some pairs (a window, say).
    """
    batch, height, width, _ = seg.shape
    if mask is None:
        mask = jnp.ones((batch, height, width), bool)
    a, b = (_unit(x, mask, eps).reshape(batch, height * width, -1) for x in (seg, sr))
    mask = mask.reshape(batch, -1)
    kept = mask[:, :, None] & mask[:, None, :]
    if pairs is not None:
        kept &= pairs[None]
    difference = _einsum('bic,bjc->bij', a, a) - _einsum('bic,bjc->bij', b, b)
    total = jnp.sum(jnp.where(kept, _power(difference, q), 0))
    return total / jnp.maximum(jnp.sum(kept, dtype=a.dtype), 1)


def _check(seg, sr, mask, sampling, q, key, subsample, window):
    if seg.ndim != 4 or seg.shape[:3] != sr.shape[:3]:
        raise ValueError(f'affinity needs two [B,h,w,C] maps of one grid: {seg.shape}, {sr.shape}')
    if mask is not None and mask.shape != seg.shape[:3]:
        raise ValueError(f'mask {mask.shape} must be [B,h,w] of the maps, {seg.shape[:3]}')
    if sampling not in SAMPLINGS:
        raise ValueError(f'unknown sampling {sampling!r}; one of {", ".join(SAMPLINGS)}')
    if q not in (1, 2):
        raise ValueError(f'q must be 1 or 2, not {q!r}')
    if key is None and (sampling == 'grid8' or sampling.startswith('random')):
        raise ValueError(f'sampling {sampling!r} draws anew each step: give it a random key')
    if sampling == 'grid8' and min(seg.shape[1:3]) < subsample:
        raise ValueError(f'a grid of stride {subsample} does not fit into {seg.shape[1:3]} pixels')
    if window < 1 or window % 2 == 0:
        raise ValueError(f'the window must be odd and positive, not {window}')


def _unit(x, mask, eps):
    """Rows of unit length (zero where masked): [...,C], bool [...] -> float32 [...,C]."""
    # Masked before the root: what lies in the padding, NaN even, must not reach value or gradient.
    x = jnp.where(mask[..., None], x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps)


def _power(difference, q):
    """|D|^q, differentiated at D = 0 as 0."""
    # JAX gives abs the slope +1 at 0, and D is exactly 0 for every pair orthogonal in both maps:
    # common after a ReLU, and a pull in one direction.
    return jnp.where(difference == 0, 0, jnp.abs(difference)) if q == 1 else difference**2


def _pixels(mask, dtype):
    """Valid pixels of each sample: bool [B,N] -> [B]."""
    return jnp.sum(mask, axis=1, dtype=dtype)


def _strided(x, phase, stride):
    """Every stride-th pixel from `phase` [2]: [B,h,w,...] -> [B,h//stride,w//stride,...]."""
    batch, height, width, *rest = x.shape
    height, width = height // stride, width // stride
    x = x[:, : height * stride, : width * stride]
    x = x.reshape(batch, height, stride, width, stride, *rest)
    x = lax.dynamic_index_in_dim(x, phase[0], axis=2, keepdims=False)
    return lax.dynamic_index_in_dim(x, phase[1], axis=3, keepdims=False)


def _negate(f, split):
    """g = [a, -b] from f = [a, b], a of `split` channels: [...,C] -> [...,C]."""
    return jnp.concatenate([f[..., :split], -f[..., split:]], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _absolute_sum(f, rows, split, tile, where):
    """Sum of |D_ij|: i in `rows` [B,R,C] (None: the pixels themselves), j in f [B,N,C] -> []."""
    return _absolute_sum_forward(f, rows, split, tile, where)[0]


def _absolute_sum_forward(f, rows, split, tile, where):
    # The sum is a scalar, so its whole gradient is known up to a factor while a strip of D is at
    # hand: the backward pass never forms D again, and what waits for it is as small as f. And
    # |D_ij| = sign(D_ij) r_i . g_j: the sum is the product of rows and gradient.
    left = f if rows is None else rows
    gradient = _pull(left, _negate(f, split), tile, where)
    total = jnp.sum(left * gradient)
    if rows is None:
        return total, (2 * gradient, None)
    return total, (_pull(f, _negate(rows, split), tile, where), gradient)


def _absolute_sum_backward(split, tile, where, gradients, cotangent):
    return jax.tree.map(lambda gradient: cotangent * gradient, gradients)


_absolute_sum.defvjp(_absolute_sum_forward, _absolute_sum_backward)


def _pull(rows, other, tile, where):
    """sign(D) g, D = rows g^T: rows [B,R,C], g = `other` [B,N,C] -> [B,R,C]."""
    batch, count, _ = rows.shape
    if where == 'gpu' and rows.dtype == jnp.float32:
        return _pull_parts(rows, other, tile or min(4096, max(256, _STRIP // (batch * count))))

    # All rows against `tile` columns: both products of a strip have R rows.  A strip of few rows
    # against all columns would sum N terms into a result too small to fill a GPU.
    def strip(part):
        difference = _einsum('bic,bjc->bij', rows, part)
        return _einsum('bij,bjc->bic', jnp.sign(difference), part)

    return _sum_strips(strip, (other,), tile or 256)


def _pull_parts(rows, other, tile):
    """`_pull` of float32 on matrix units: products of bfloat16 parts, added in float32."""
    (r1, r2, r3), (g1, g2, g3) = _parts(rows), _parts(other)
    # The six products down to 2^-24 of the largest, side by side: one product of six times the
    # length, bound by memory all the same.
    rows = jnp.concatenate([r1, r1, r2, r1, r2, r3], axis=-1)
    six = jnp.concatenate([g1, g2, g1, g3, g2, g1], axis=-1)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def strip(six, three):
        # The sign in one chain of operations, which a GPU compiler joins to the product (jnp.sign
        # it does not): D is never written. 2^126 takes every normal number to 1 or beyond.
        sign = jnp.clip(einsum('bic,bjc->bij', rows, six) * 2.0**126, -1, 1).astype(jnp.bfloat16)
        return einsum('bij,bjc->bic', sign, three)

    three = jnp.concatenate([g1, g2, g3], axis=-1)
    return sum(jnp.split(_sum_strips(strip, (six, three), tile), 3, axis=-1))


def _parts(x):
    """Three bfloat16 arrays whose sum is x, float32, up to its last bit."""
    # reduce_precision: compilers may drop the rounding of a mere conversion there and back.
    high = lax.reduce_precision(x, 8, 7)
    middle = lax.reduce_precision(x - high, 8, 7)
    return [part.astype(jnp.bfloat16) for part in (high, middle, x - high - middle)]


def _sum_strips(strip, columns, tile):
    """Sum of strip(*part) over strips of at most `tile` pixels of the arrays [B,N,...]."""
    batch, pixels = columns[0].shape[:2]
    strips = -(-pixels // tile)
    if strips == 1:
        return strip(*columns)
    length = -(-pixels // strips)  # even strips; the last is filled with zeros, D = 0
    parts = [jnp.pad(x, ((0, 0), (0, strips * length - pixels), (0, 0))) for x in columns]
    parts = [x.reshape(batch, strips, length, -1).swapaxes(0, 1) for x in parts]
    found = jax.eval_shape(strip, *(x[0] for x in parts))
    add = lambda found, part: (found + strip(*part), None)  # noqa: E731
    return lax.scan(add, jnp.zeros(found.shape, found.dtype), parts)[0]


def _squared_sum(f, rows, split):
    """Sum of D_ij^2 over i in `rows` [B,R,C] (None: the pixels themselves), j in f [B,N,C] -> [].

    sum_ij (r_i . g_j)^2 = <r^T r, g^T g>, the Gram form of |aa^T|^2 + |bb^T|^2 - 2 |a^T b|^2.
    """
    left, right = f if rows is None else rows, _negate(f, split)
    return jnp.sum(_einsum('bic,bid->bcd', left, left) * _einsum('bjc,bjd->bcd', right, right))


def _local_sum(f, mask, split, q, window, dilation):
    """Sum of |D_ij|^q and number of pairs inside the dilated window: f [B,h,w,C] -> [], []."""
    half, reach = window // 2, window // 2 * dilation
    around = ((0, 0), (0, reach), (reach, reach))
    g = jnp.pad(_negate(f, split), (*around, (0, 0)))  # zeros, like masked pixels: D is 0 there
    valid = jnp.pad(mask, around)

    # One offset at a time and nothing kept of it: memory does not grow with the window.
    @jax.checkpoint
    def shifted(f, g, offset):
        partner = lax.dynamic_slice(g, (0, offset[0], offset[1], 0), f.shape)
        there = lax.dynamic_slice(valid, (0, offset[0], offset[1]), mask.shape)
        size = _power(jnp.sum(f * partner, axis=-1), q)
        return jnp.stack([jnp.sum(size), jnp.sum(mask & there, dtype=f.dtype)])

    # D is symmetric: of two opposite offsets one stands for both.
    offsets = [(i, j) for i in range(half + 1) for j in range(-half, half + 1) if (i, j) >= (0, 0)]
    weights = jnp.array([1 if offset == (0, 0) else 2 for offset in offsets], f.dtype)
    starts = jnp.array(offsets) * dilation + jnp.array([[0, reach]])
    total, count = weights @ lax.map(lambda start: shifted(f, g, start), starts)
    return total, count
