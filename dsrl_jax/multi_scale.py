"""Evaluation at several scales, mirrored, and in sliding windows: sums of class probabilities.

For every scale f the image itself is brought to f times the large view, so that a large f shows
what the file holds and no enlargement of the view. Each side of the scaled view is rounded up to
the next one that the network takes: by resizing the whole image where data.eval_fit is 'resize', by
padding where it is 'pad'. A view larger than eval.window is cut into windows of that size,
eval.stride of it apart, the last flush with the edge; where windows overlap their mean counts. The
scores of a piece are enlarged bilinearly to the grid where the decision falls (the large view, or
with eval.resize='logits' the label), and the softmax over the outputs that compete is added up.

One sum [B, H, W, K] on that grid is all that is kept, whatever the number of scales and windows,
and B is one image a device. A program is compiled once for each size of a piece.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import parallel
from dsrl_jax.data import pipeline
from dsrl_jax.data.scaled import Scaled
from dsrl_jax.errors import UserError, one_of
from dsrl_jax.ops import resize
from dsrl_jax.step import PER_IMAGE, count, label_map, to_grid

SCALE_SETS = {
    '0.5..1.75': (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    '0.75..2': (0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
}


def wanted(config) -> bool:
    """Does section eval ask for more than one pass over the whole view?"""
    section = config.eval
    return tuple(section.scales) != (1.0,) or section.flip or bool(section.window)


def parse_scales(text: str) -> tuple[float, ...]:
    """'0.5,1.0', or the name of one of SCALE_SETS, as factors."""
    if text in SCALE_SETS:
        return SCALE_SETS[text]
    try:
        scales = tuple(float(part) for part in text.split(','))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        expected = f'{one_of(SCALE_SETS)}, or factors above 0'
        raise UserError('--scales', repr(text), expected, 'write them like 0.5,1.0.')
    return scales


def check(network, config) -> None:
    """Raise UserError unless the network takes windows of eval.window."""
    window = config.eval.window
    if not window or (legal := legal_size(network, config, window)) == tuple(window):
        return
    found, use = ('x'.join(map(str, size)) for size in (window, legal))
    unit = network.multiple * config.scale
    raise UserError('config.eval.window', found, f'multiples of {unit}', f'use {use}.')


def legal_size(network, config, size, factor: float = 1.0) -> tuple[int, int]:
    """`factor` times a large view (height, width), up to the next size that the network takes."""
    unit = network.multiple * config.scale
    places = [config.scale * offset for offset in network.offsets]
    sides = []
    for n in size:
        least = max(unit, math.ceil(factor * n - 1e-6))
        sides.append(min(least + (place - least) % unit for place in places))
    return tuple(sides)


def windows(length: int, window: int, stride: float) -> list[int]:
    """First pixels of the windows along an axis; one at 0 where the axis is no longer."""
    if length <= window:
        return [0]
    step = max(1, round(window * stride))
    return [*range(0, length - window, step), length - window]


def batches(source, config, network) -> Iterator[dict]:
    """Eval batches of one image a device, and under `views` the same images at every scale."""
    data, rows = config.data, jax.device_count()
    size, each = configs.eval_size(config), math.ceil(data.workers / len(config.eval.scales))

    def load(split, size):
        there = data.copy_and_resolve_references()
        with there.unlocked():
            there.update(eval_size=size, workers=each)
        process = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
        return pipeline.eval_batches(split, there, batch_size=rows, **process)

    with contextlib.ExitStack() as stack:
        opened = [load(source, size)]
        for factor in config.eval.scales:
            if factor != 1:
                split = Scaled(source, factor if data.eval_fit == 'pad' else 1.0)
                opened.append(load(split, legal_size(network, config, size, factor)))
        for loader in opened:
            stack.enter_context(contextlib.closing(loader))
        for batch, *scaled in zip(*opened, strict=True):
            scaled = iter(scaled)
            views = [batch if factor == 1 else next(scaled) for factor in config.eval.scales]
            yield {**batch, 'views': [{k: v[k] for k in ('target', 'region')} for v in views]}


def make_step(network, config, num_classes: int):
    """`step(variables, batch) -> {'prediction', 'confusion'}` for what `batches` yields."""
    check(network, config)
    competing = config.eval.classes or num_classes
    by_labels = config.eval.resize == 'labels'
    mesh = parallel.make_mesh()

    @functools.partial(jax.jit, donate_argnums=1)
    def add(variables, total, piece, flip):
        target = jnp.where(flip, piece['target'][:, :, ::-1], piece['target'])
        image = resize.small_input(target, config.scale, config.data)
        outputs = network.apply(variables, image, train=False)
        scores = outputs['scores'][..., :competing]
        scores = jnp.where(flip, scores[:, :, ::-1], scores)
        at = (
            to_grid(piece[axis], large, small, outputs['resize'])
            for axis, large, small in zip(('rows', 'columns'), target.shape[1:3], scores.shape[1:3])
        )
        found = jax.nn.softmax(_bilinear_at(scores, *at))
        weight = piece['row_weight'][:, :, None] * piece['column_weight'][:, None]
        return total + weight[..., None] * found

    shardings = parallel.of_results(('prediction', 'confusion'), PER_IMAGE)

    @functools.partial(jax.jit, out_shardings=shardings)
    def decide(total, batch):
        if by_labels:
            outputs = {'scores': total, 'resize': 'half_pixel'}
            size = total.shape[1:3]
            found = label_map(outputs, size, batch, resize_by='labels', classes=competing)
        else:
            found = jnp.argmax(total, -1).astype(jnp.uint8 if competing <= 255 else jnp.uint16)
        return count(found, batch, num_classes, competing)

    def step(variables, batch):
        grid = batch['target' if by_labels else 'label'].shape[1:3]
        rows = jax.device_count()
        total = jnp.zeros((rows, *grid, competing), device=parallel.by_batch(mesh))
        for view in batch['views']:
            for piece in _pieces(batch, view, config, grid, by_labels):
                piece = parallel.to_global(piece, mesh)
                for flip in (False, True)[: 1 + config.eval.flip]:
                    total = add(variables, total, piece, flip)
        kept = {k: batch[k] for k in ('label', 'region', 'size', 'valid')}
        return decide(total, parallel.to_global(kept, mesh))

    return step


def _pieces(batch, view, config, grid, by_labels) -> Iterator[dict]:
    """The windows of a view: target uint8 [B,h,w,3], and where the grid's pixels lie in each.

    rows [B,H] and columns [B,W] are coordinates in the window, their weights 0 outside of it and
    otherwise 1 over the number of windows that hold the pixel.
    """
    size = view['target'].shape[1:3]
    window = tuple(min(a, b) for a, b in zip(size, config.eval.window or size))
    parts = []
    for axis in (0, 1):
        at = _places(batch, view, axis, grid[axis], by_labels).clip(0, size[axis] - 1)
        starts = windows(size[axis], window[axis], config.eval.stride)
        held = [(at >= start - 0.5) & (at < start + window[axis] - 0.5) for start in starts]
        share = 1 / sum(h.astype(int) for h in held)
        parts.append([(n, at - n, h * share) for n, h in zip(starts, held)])
    for top, rows, row_weight in parts[0]:
        for left, columns, column_weight in parts[1]:
            inside = slice(top, top + window[0]), slice(left, left + window[1])
            numbers = {
                'rows': rows,
                'columns': columns,
                'row_weight': row_weight,
                'column_weight': column_weight,
            }
            yield {
                'target': view['target'][:, *inside],
                **{name: value.astype(np.float32) for name, value in numbers.items()},
            }


def _places(batch, view, axis: int, length: int, by_labels: bool) -> np.ndarray:
    """Where the rows (or columns) of the grid lie in a view: float64 [B, length]."""
    start, extent = (batch['region'][:, k, None] for k in (axis, 2 + axis))
    if by_labels:  # the grid is the large view
        share = (np.arange(length)[None] + 0.5 - start) / extent
    else:
        share = (np.arange(length)[None] + 0.5) / batch['size'][:, axis, None]
    start, extent = (view['region'][:, k, None] for k in (axis, 2 + axis))
    return start + share * extent - 0.5


def _bilinear_at(scores, rows, columns) -> jax.Array:
    """Scores [B,h,w,K] at real places rows [B,H] and columns [B,W], clamped: float32 [B,H,W,K]."""

    def along(image, at):
        at = jnp.clip(at, 0, image.shape[0] - 1)
        low = jnp.floor(at).astype(jnp.int32)
        part = (at - low)[:, None, None]
        high = jnp.minimum(low + 1, image.shape[0] - 1)
        return image[low] * (1 - part) + image[high] * part

    def one(image, row, column):
        return along(along(image, row).swapaxes(0, 1), column).swapaxes(0, 1)

    return jax.vmap(one)(scores.astype(jnp.float32), rows, columns)
