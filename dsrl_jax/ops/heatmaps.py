"""Heatmaps of joints: [B, J, 2] places to [B, h, w, J] maps and back, as HRNet, DARK and UDP do.

Places are (x, y), pixel centres at integers. Encodings, by what stands between two heatmap pixels
and where the peak lies:

    standard   stride input pixels; the peak at the nearest pixel, cut at 3 sigma
    dark       stride input pixels; the peak at the joint itself, never cut
    udp        (input - 1) / (heatmap - 1) input pixels, so that the outermost pixels meet; the
               peak at the joint itself, cut at 3 sigma about the nearest pixel
"""

import jax
import jax.numpy as jnp
import numpy as np

ENCODINGS = ('standard', 'dark', 'udp')


def encode(joints, visible, size, stride, sigma, kind):
    """joints [B,J,2] in input pixels, visible [B,J] -> heatmaps [B,h,w,J], weights [B,J], float32.

    `size` is (h, w) of the heatmaps, the input is `stride` times as large, sigma is in heatmap
    pixels. exp(-d^2 / (2 sigma^2)), peak 1. The weight is `visible`, and 0 where no part of the
    3-sigma square reaches the map; the map of weight 0 is empty. ValueError on an unknown kind.
    """
    centre = joints.astype(jnp.float32) / spacing(size, stride, kind)[None, None]
    # Toward zero and not down, and a square that ends one pixel before the map still counts: so do
    # the originals, and the published numbers with them.
    pixel = jnp.trunc(centre + 0.5)
    peak = pixel if kind == 'standard' else centre
    middle = centre if kind == 'dark' else pixel
    radius = 3 * sigma
    low, high = jnp.trunc(middle - radius), jnp.trunc(middle + radius + 1)
    inside = jnp.all((low < jnp.float32(size[::-1])[None, None]) & (high >= 0), -1)
    weights = jnp.where(inside, visible.astype(jnp.float32), 0.0)

    def along(axis, count):
        at = jnp.arange(count, dtype=jnp.float32)[None, :, None]
        value = jnp.exp(-((at - peak[:, None, :, axis]) ** 2) / (2 * sigma**2))
        if kind == 'dark':
            return value
        return jnp.where(jnp.abs(at - pixel[:, None, :, axis]) <= radius, value, 0.0)

    maps = along(1, size[0])[:, :, None] * along(0, size[1])[:, None]
    return jnp.where((weights > 0.5)[:, None, None], maps, 0.0), weights


def decode(heatmaps, kind, sigma=2.0):
    """heatmaps [B,h,w,J] -> joints [B,J,2] in heatmap pixels, confidence [B,J], float32.

    From the highest pixel, whose value is the confidence; (0, 0) where that is not positive.
    quarter: 1/4 pixel toward the higher neighbour along each axis. dark: a Newton step on the log
    of the map, blurred with the filter of that sigma (11 taps from 2 up, 3 below). udp: the same
    with 7 taps, neighbours next to the pixel, up to the border. ValueError on an unknown kind.
    """
    refine = _known(kind, DECODERS)
    maps = heatmaps.astype(jnp.float32)
    batch, height, width, count = maps.shape
    flat = maps.reshape(batch, height * width, count)
    confidence = jnp.max(flat, 1)
    place = jnp.where(confidence > 0, jnp.argmax(flat, 1), 0)
    x, y = place % width, place // width
    return jnp.stack([x, y], -1) + refine(maps, x, y, sigma), confidence


def merge_flipped(heatmaps, flipped, order, kind):
    """Mean of heatmaps [B,h,w,J] and those of the mirrored image, mirrored back.

    `order`: for each joint the one in its place in a mirror (keypoints.mirrored). The map mirrored
    back moves right by one pixel, its first column stays: pixel x of the input lies at x / stride,
    and mirrored back at x / stride - (stride - 1) / stride. At stride 4 one pixel is the nearest
    whole number, at stride 2 it is as far off as none. No shift in udp, where the two agree.
    """
    _known(kind, ENCODINGS)
    back = jnp.take(flipped[:, :, ::-1], jnp.asarray(order), axis=-1)
    if kind != 'udp':
        back = jnp.concatenate([back[:, :, :1], back[:, :, :-1]], axis=2)
    return (heatmaps + back) / 2


def spacing(size, stride, kind):
    """Input pixels between two heatmap pixels along x and y: float32 numpy [2]."""
    _known(kind, ENCODINGS)
    heatmap = np.array(size[::-1], np.float32)
    if kind == 'udp':
        return (heatmap * stride - 1) / (heatmap - 1)
    return np.full(2, stride, np.float32)


def to_image(joints, center, scale, size, kind):
    """joints [N,J,2] in heatmap pixels -> pixels of the image, float64 numpy: no rotation.

    The box has its middle at center [N,2] and is scale [N,2] times 200 pixels wide and high. Its
    width alone counts, but in udp, whose outermost pixels lie on the edges of the box.
    """
    _known(kind, ENCODINGS)
    heatmap = np.array(size[::-1], np.float64)
    box = 200 * np.asarray(scale, np.float64)[:, None]
    if kind == 'udp':
        pixel, middle = box / (heatmap - 1), (heatmap - 1) / 2
    else:
        pixel, middle = box[..., :1] / heatmap[0], heatmap / 2
    return np.asarray(center, np.float64)[:, None] + (np.asarray(joints) - middle) * pixel


def _quarter(maps, x, y, sigma):
    """The shift [B,J,2] from the highest pixel."""
    at = _values_about(maps, x, y)
    steps = [jnp.sign(at(1, 0) - at(-1, 0)), jnp.sign(at(0, 1) - at(0, -1))]
    return jnp.where(_within(maps, x, y, 1), 0.25 * jnp.stack(steps, -1), 0.0)


def _dark(maps, x, y, sigma):
    smooth = _blur(maps, _taps(11 if sigma >= 2 else 3), reflect=False)
    top = jnp.max(smooth, (1, 2), keepdims=True)
    smooth = smooth * (jnp.max(maps, (1, 2), keepdims=True) / jnp.where(top > 0, top, 1.0))
    at = _values_about(jnp.log(jnp.maximum(smooth, 1e-10)), x, y)
    slope = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    xx = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
    yy = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    return jnp.where(_within(maps, x, y, 2), _newton(slope, xx, yy, xy), 0.0)


def _udp(maps, x, y, sigma):
    smooth = _blur(maps, _taps(7), reflect=True)
    low = jnp.min(smooth, (1, 2), keepdims=True)
    range_ = jnp.max(smooth, (1, 2), keepdims=True) - low
    smooth = (smooth - low) / jnp.where(range_ > 0, range_, 1.0)
    smooth = smooth * jnp.max(maps, (1, 2), keepdims=True)
    at = _values_about(jnp.log(jnp.clip(smooth, 1e-3, 50.0)), x, y)
    slope = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    xx = at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    yy = at(0, 1) - 2 * at(0, 0) + at(0, -1)
    beside = at(1, 0) + at(0, 1) + at(-1, 0) + at(0, -1)
    return _newton(slope, xx, yy, (at(1, 1) - beside + 2 * at(0, 0) + at(-1, -1)) / 2)


DECODERS = {'quarter': _quarter, 'dark': _dark, 'udp': _udp}


def _values_about(maps, x, y):
    """(dx, dy) -> values [B,J] at (x + dx, y + dy); beyond the border those of the border."""
    batch, height, width, count = maps.shape
    flat = maps.reshape(batch, height * width, count)

    def at(dx, dy):
        row, column = jnp.clip(y + dy, 0, height - 1), jnp.clip(x + dx, 0, width - 1)
        return jnp.take_along_axis(flat, (row * width + column)[:, None], axis=1)[:, 0]

    return at


def _within(maps, x, y, margin):
    """1 < x < w - margin, and so y: bool [B,J,1]. The first two pixels are left out in both."""
    height, width = maps.shape[1:3]
    return ((x > 1) & (x < width - margin) & (y > 1) & (y < height - margin))[..., None]


def _newton(slope, xx, yy, xy):
    """Minus the inverse Hessian times the slope, [B,J,2]; none where it has no inverse."""
    determinant = xx * yy - xy * xy
    steps = [xy * slope[1] - yy * slope[0], xy * slope[0] - xx * slope[1]]
    regular = determinant != 0
    step = jnp.stack(steps, -1) / jnp.where(regular, determinant, 1.0)[..., None]
    return jnp.where(regular[..., None], step, 0.0)


def _taps(count):
    """A Gaussian of `count` taps as OpenCV makes it when no sigma is given: fixed ones up to 7."""
    fixed = {3: (8, 16, 8), 7: (1, 3.5, 7, 9, 7, 3.5, 1)}
    if count in fixed:
        return np.array(fixed[count]) / 32
    sigma = 0.3 * ((count - 1) / 2 - 1) + 0.8
    taps = np.exp(-((np.arange(count) - count // 2) ** 2) / (2 * sigma**2))
    return taps / taps.sum()


def _blur(maps, taps, *, reflect):
    """Each map [B,h,w,J] filtered along both axes; around it zeros, or its mirror image."""
    rows, columns = (jnp.asarray(_filter(n, taps, reflect), jnp.float32) for n in maps.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    maps = jnp.einsum('yh,bhwj->bywj', rows, maps, precision=highest)
    return jnp.einsum('xw,bywj->byxj', columns, maps, precision=highest)


def _filter(n, taps, reflect):
    """The filter along an axis of n pixels as a matrix [n, n]; the mirror is the edge pixel."""
    matrix = np.zeros((n, n))
    reach = len(taps) // 2
    for out in range(n):
        for tap, source in zip(taps, range(out - reach, out + reach + 1)):
            if reflect and n > 1:
                source = abs(source) % (2 * n - 2)
                source = min(source, 2 * n - 2 - source)
            if 0 <= source < n:
                matrix[out, source] += tap
    return matrix


def _known(kind, known):
    if kind not in known:
        raise ValueError(f'kind {kind!r}: expected one of {", ".join(known)}')
    return known[kind] if isinstance(known, dict) else kind
