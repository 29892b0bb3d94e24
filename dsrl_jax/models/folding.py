"""Batch norms merged into the convolutions before them, for deployment."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.models.layers import BatchNorm


def norms(module: nn.Module, *inputs) -> dict[tuple[str, ...], tuple[float, bool]]:
    """{path: (epsilon, absolute)} of every batch norm in `module`, traced on `inputs` shapes."""
    found = {}

    def note(call, args, kwargs, context):
        norm = context.module
        if isinstance(norm, BatchNorm):
            found[norm.path] = (norm.epsilon, norm.absolute)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return found


def fold(variables: Mapping, norms: Mapping[tuple[str, ...], tuple[float, bool]]) -> dict:
    """Variables of the same module with `folded=True`: norms merged into their convolutions.

    Every sibling pair conv, norm becomes one convolution with a bias; a lone norm becomes an
    affine map.  `norms` are those of the unfolded module: see the function of that name.
    """
    stats = variables.get('batch_stats', {})
    return {'params': _fold(variables['params'], stats, norms, ()), 'batch_stats': {}}


def _fold(params, stats, norms, path):
    if 'mean' in stats and 'scale' in params:
        epsilon, absolute = norms[path]
        scale = jnp.abs(params['scale']) + epsilon if absolute else params['scale']
        gain = scale / jnp.sqrt(stats['var'] + epsilon)
        return {'scale': gain, 'bias': params['bias'] - stats['mean'] * gain}
    out = {
        name: _fold(child, stats.get(name, {}), norms, (*path, name))
        if isinstance(child, Mapping)
        else child
        for name, child in params.items()
    }
    if 'conv' in out and 'norm' in out:
        gain, shift = out['norm']['scale'], out.pop('norm')['bias']
        kernel = out['conv']['kernel']
        # A grouped transposed kernel holds Co/groups columns: each input row sees its own group.
        gains = gain.reshape(-1, kernel.shape[-1])
        gains = jnp.repeat(gains, kernel.shape[-2] // gains.shape[0], axis=0)
        bias = out['conv'].get('bias', jnp.zeros_like(shift)) * gain + shift
        out['conv'] = {'kernel': kernel * gains[None, None], 'bias': bias}
    return out
