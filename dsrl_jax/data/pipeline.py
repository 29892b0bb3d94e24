"""Batches: what leaves the data set for training and evaluation.

Position is step: the batch of step k depends on (seed, k) alone, so a run that starts at k sees
the batches k, k+1, ... of a straight run, with any number of worker processes, and the rows of
step k are the same images for any number of hosts.
"""

import contextlib
import functools
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from dsrl_jax.data import geometry
from dsrl_jax.data.sources import IGNORE, image_size
from dsrl_jax.errors import UserError

# Grain's defaults (16 threads, 500 elements) suit kilobyte records; here an element is a batch of
# many megabytes, so few are kept.
_IN_PROCESS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
_IN_WORKER = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)


def train_batches(
    source, config, *, seed: int, start: int, batch_size: int, process_index=0, process_count=1
) -> Iterator[dict]:
    """The endless training batches from step `start` on, one host's rows of them.

    Each is {'target': uint8 [b, sH, sW, 3], 'label': uint8 [b, sH, sW], 'mask': bool [b, sH, sW]}
    with b = batch_size / process_count. Every epoch is shuffled anew; it need not divide by the
    batch. Reads size, scale_range, flip, color, fill and workers of the data config.
    """
    check_views(config)
    view = functools.partial(
        geometry.random_view,
        size=tuple(config.size),
        scale_range=tuple(config.scale_range),
        flip=config.flip,
        color=config.color,
        fill=tuple(config.fill),
    )
    return draw_batches(
        source,
        functools.partial(_train_view, view=view),
        seed=seed,
        start=start,
        batch_size=batch_size,
        workers=config.workers,
        process_index=process_index,
        process_count=process_count,
    )


def eval_batches(
    source, config, *, batch_size: int, process_index=0, process_count=1
) -> Iterator[dict]:
    """Every image of the source exactly once, in order, in full batches; one host's rows.

    Each is {'target' uint8 [b, sH, sW, 3], 'mask' bool [b, sH, sW], 'region' int32 [b, 4] (top,
    left, height, width of the image in the target), 'label' uint8 [b, Hl, Wl] (at the image's own
    size, 255 beyond it up to the largest of the split), 'size' int32 [b, 2] (that size), 'valid'
    bool [b], 'index' int32 [b]}. Rows that only fill the last batch have valid False, index -1,
    label 255, mask False. All hosts get the same number of batches. Reads eval_size (None: size),
    eval_fit, fill and workers of the data config; raises UserError before the first batch where an
    image does not fit.
    """
    size = tuple(config.eval_size or config.size)
    sizes = np.array([image_size(source, i) for i in range(len(source))])
    if config.eval_fit == 'pad':
        for index in np.flatnonzero((sizes > size).any(1))[:1]:
            name = source.files(index).get('image', f'image {index}')
            geometry.fit(np.zeros((*sizes[index], 3), np.uint8), size, 'pad', 0, name)
    view = functools.partial(
        _eval_view,
        source=source,
        size=size,
        how=config.eval_fit,
        fill=tuple(config.fill),
        largest=tuple(int(n) for n in sizes.max(0)),
    )
    return list_batches(
        len(source),
        view,
        batch_size=batch_size,
        workers=config.workers,
        process_index=process_index,
        process_count=process_count,
    )


def draw_batches(
    source, view, *, seed, start, batch_size, workers, process_index=0, process_count=1
) -> Iterator[dict]:
    """Endless batches, from step `start` on, of `view(element, rng)`, a dict of arrays each.

    What every kind of training data goes through: shuffle, view, one host's rows, batch.
    """
    rows = _rows(batch_size, process_count, 'batch_size')
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    # Views are drawn before the hosts take their rows: the randomness belongs to the position in
    # the whole sequence, whatever the number of hosts. Host i has the i-th part of every batch.
    dataset = dataset.random_map(view).batch(rows, drop_remainder=True)
    dataset = dataset[process_index::process_count][start:]
    return _iterate(dataset, workers)


def list_batches(
    length: int, view, *, batch_size, workers, process_index=0, process_count=1
) -> Iterator[dict]:
    """Full batches of `view(index)` for 0, 1, ... `length` - 1 and, in the last, beyond."""
    rows = _rows(batch_size, process_count, 'eval_batch_size')
    batches = -(-length // batch_size)
    dataset = grain.MapDataset.range(batches * batch_size).map(view)
    return _iterate(dataset.batch(rows, drop_remainder=True)[process_index::process_count], workers)


def check_views(config) -> None:
    """Raise UserError where no training view can be drawn as the data config asks."""
    low, high = config.scale_range
    if not 0 < low <= high:
        raise UserError(
            'data.scale_range', f'{low}, {high}', '0 < low <= high', 'correct the range.'
        )
    if not 0 <= config.color < 1:
        raise UserError(
            'data.color', str(config.color), 'a strength from 0 to below 1', 'reduce it.'
        )


def _train_view(element, rng, *, view):
    image = element['image']
    label = element.get('label')
    if label is None:
        label = np.full(image.shape[:2], IGNORE, np.uint8)
    return view(image, label, rng=rng)


def _eval_view(index, *, source, size, how, fill, largest):
    label = np.full(largest, IGNORE, np.uint8)
    if index >= len(source):
        # A whole-view region keeps the arithmetic of a filling row harmless.
        return {
            'target': np.zeros((*size, 3), np.uint8),
            'mask': np.zeros(size, bool),
            'region': np.array((0, 0, *size), np.int32),
            'label': label,
            'size': np.array(largest, np.int32),
            'valid': np.bool_(False),
            'index': np.int32(-1),
        }
    element = source[int(index)]
    height, width = element['image'].shape[:2]
    if 'label' in element:
        label[:height, :width] = element['label']
    return {
        **geometry.fit(element['image'], size, how, fill, element['name']),
        'label': label,
        'size': np.array((height, width), np.int32),
        'valid': np.bool_(True),
        'index': np.int32(index),
    }


def _rows(batch_size, process_count, field):
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f'data.{field}',
            str(batch_size),
            f'a positive multiple of the number of processes, {process_count}',
            'change the batch size.',
        )
    return batch_size // process_count


def _iterate(dataset, workers):
    if not workers:
        return iter(dataset.to_iter_dataset(_IN_PROCESS))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain gives its workers the absl flags of main
    dataset = dataset.to_iter_dataset(_IN_WORKER)
    return _watched(iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))))


def _watched(batches):
    """The batches; UserError where the process that makes them is gone."""
    with contextlib.closing(batches):
        try:
            yield from batches
        except RuntimeError as error:
            if 'terminated unexpectedly' not in str(error):
                raise
            found = str(error).splitlines()[0].split('. ')[0]
            remedy = 'look for a lack of memory, or lower it; run again to go on.'
            raise UserError('data.workers', found, 'processes that live on', remedy) from error
