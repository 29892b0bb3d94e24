"""What training, evaluation and benchmarks leave to a task: its batches, its loss, its scores.

A task is a module with the public functions of `segmentation`; `pose` has the same. A source with
`keypoints` is for pose. A network says in its attribute `task` what it is for; one that does not is
for segmentation.
"""

import types

from dsrl_jax.errors import UserError, lookup
from dsrl_jax.tasks import pose, segmentation

__all__ = ['TASKS', 'check_network', 'of', 'pose', 'segmentation']

TASKS = {'segmentation': segmentation, 'pose': pose}


def of(thing) -> types.ModuleType:
    """The task of a source or of a network."""
    return lookup(TASKS, _name(thing), 'task')


def check_network(network, source, config) -> None:
    """Raise UserError unless the network is for the task of the source."""
    if _name(network) != _name(source):
        raise UserError(
            'config.model.net',
            f'{config.model.net}, for {_name(network)}',
            f'a network for {_name(source)}, as the data set {config.data.name} is',
            'choose another network, or another data set.',
        )


def _name(thing) -> str:
    return getattr(thing, 'task', 'pose' if hasattr(thing, 'keypoints') else 'segmentation')
