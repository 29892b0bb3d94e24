"""Batch norms that keep their statistics in training, chosen by their paths: fine-tuning."""

import contextlib
import re

from flax import linen as nn

from dsrl_jax.errors import UserError
from dsrl_jax.models.layers import BatchNorm


def frozen_norms(regex: str):
    """A context in which the norms whose path the regex finds run as in evaluation; '': none.

    A path is that of the module, 'network/encoder/level1/norm'. Such a norm normalises by its
    running statistics and leaves them as they are, its scale and bias are trained like any other
    (to hold them too: a factor 0 in optimizer.lr_groups). Flax's own BatchNorm is frozen as well,
    where use_running_average is an argument of its call.
    """
    if not regex:
        return contextlib.nullcontext()

    def run(call, args, kwargs, context):
        module = context.module
        norm = isinstance(module, BatchNorm | nn.BatchNorm) and context.method_name == '__call__'
        if not (norm and re.search(regex, '/'.join(module.path))):
            return call(*args, **kwargs)
        if isinstance(module, BatchNorm):
            return call(args[0], train=False)
        if module.use_running_average is not None:
            expected = 'use_running_average as an argument of the call'
            where, found = '/'.join(module.path), 'a field of the norm'
            raise UserError(where, found, expected, 'move it, or clear config.model.freeze_bn.')
        return call(*args[:1], **{**kwargs, 'use_running_average': True})

    return nn.intercept_methods(run)


def check(regex: str, batch_stats) -> None:
    """UserError where `regex` (config.model.freeze_bn) is none, or finds no norm of the network."""
    where = 'config.model.freeze_bn'
    try:
        found = re.compile(regex)
    except re.error as error:
        raise UserError(where, f'{regex!r}: {error}', 'a regex', 'correct it.') from None
    paths = _norms(batch_stats)
    if regex and not any(found.search(path) for path in paths):
        expected = "a regex of paths such as 'encoder', or '.' for all"
        example = f'the paths are like {paths[0]}.' if paths else 'this network has none; clear it.'
        raise UserError(where, f'{regex!r}, which no norm matches', expected, example)


def _norms(tree, path=()) -> list[str]:
    """The paths of the modules that keep statistics."""
    if not any(hasattr(child, 'keys') for child in tree.values()):
        return ['/'.join(path)] if tree else []
    return [name for key, child in tree.items() for name in _norms(child, (*path, key))]
