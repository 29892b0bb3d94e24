"""Batches of persons: what leaves a source of persons for training and evaluation of a pose.

As in pipeline.py the batch of step k depends on (seed, k) alone.
"""

import functools
from collections.abc import Iterator

import numpy as np

from dsrl_jax.data import person_crop, pipeline
from dsrl_jax.errors import UserError


def train_batches(
    source, config, *, seed: int, start: int, batch_size: int, process_index=0, process_count=1
) -> Iterator[dict]:
    """The endless training batches from step `start` on, one host's rows of them.

    Each is {'target' uint8 [b,sH,sW,3], 'mask' bool [b,sH,sW], 'joints' float32 [b,J,2] (x, y in
    pixels of the input, which is s times smaller), 'visible' float32 [b,J]}. Reads the whole
    configuration: scale, data.size, data.flip, data.color, data.workers and the section pose.
    """
    view = functools.partial(
        _train_view,
        size=input_size(config, config.data.size),
        factor=config.scale,
        keypoints=source.keypoints,
        pose=config.pose,
        flip=config.data.flip,
        color=config.data.color,
    )
    return pipeline.draw_batches(
        source,
        view,
        seed=seed,
        start=start,
        batch_size=batch_size,
        workers=config.data.workers,
        process_index=process_index,
        process_count=process_count,
    )


def eval_batches(
    source, config, *, batch_size: int, process_index=0, process_count=1
) -> Iterator[dict]:
    """Every person of the source exactly once, in order, in full batches; one host's rows.

    As in training, undisturbed, and 'center' float32 [b,2], 'scale' float32 [b,2] (see
    person_crop.window), 'score' float32 [b] of the box, 'image_id', 'index' int32 [b], 'valid'
    bool [b]. Rows that only fill the last batch have valid False, ids -1 and no visible joint.
    """
    view = functools.partial(
        _eval_view,
        source=source,
        size=input_size(config, config.data.eval_size or config.data.size),
        factor=config.scale,
        pose=config.pose,
    )
    return pipeline.list_batches(
        len(source),
        view,
        batch_size=batch_size,
        workers=config.data.workers,
        process_index=process_index,
        process_count=process_count,
    )


def input_size(config, large) -> tuple[int, int]:
    """(height, width) of the input of a large view; UserError where s does not divide it."""
    if large[0] % config.scale or large[1] % config.scale:
        found = f'{large[0]}x{large[1]} (HxW)'
        expected = f'multiples of config.scale, {config.scale}'
        raise UserError('data.size', found, expected, 'correct it.')
    return large[0] // config.scale, large[1] // config.scale


def _train_view(element, rng, *, size, factor, keypoints, pose, flip, color):
    return person_crop.random_view(
        element,
        rng,
        size=size,
        factor=factor,
        keypoints=keypoints,
        pose=pose,
        flip=flip,
        color=color,
    )


def _eval_view(index, *, source, size, factor, pose):
    if index >= len(source):
        return _filling(len(source.keypoints.names), size, factor)
    element = source[int(index)]
    return {
        **person_crop.whole_view(element, size=size, factor=factor, pose=pose),
        'score': np.float32(element['score']),
        'image_id': np.int32(element['image_id']),
        'index': np.int32(index),
        'valid': np.bool_(True),
    }


def _filling(joints, size, factor):
    large = size[0] * factor, size[1] * factor
    return {
        'target': np.zeros((*large, 3), np.uint8),
        'mask': np.zeros(large, bool),
        'joints': np.zeros((joints, 2), np.float32),
        'visible': np.zeros(joints, np.float32),
        'center': np.zeros(2, np.float32),
        'scale': np.ones(2, np.float32),  # keeps the arithmetic of the row harmless
        'score': np.float32(0),
        'image_id': np.int32(-1),
        'index': np.int32(-1),
        'valid': np.bool_(False),
    }
