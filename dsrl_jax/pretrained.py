"""Weights of other projects: torch state dicts to our variables, and runs that start from them.

A state dict is {torch key: array} in torch layout (convolution OIHW, transposed IOHW, linear OI);
`foreign` holds the names, this file the rules.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from dsrl_jax import models
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.foreign import TABLES
from dsrl_jax.models import layers


def from_torch(name: str, state_dict: dict, **options) -> dict:
    """{torch key: array} of network `name` -> {'params', 'batch_stats'}, float32 numpy leaves.

    `options` are those of models.create; num_classes is read off the weights when absent.
    UserError unless every tensor is used exactly once and fills every leaf in the right shape.
    """
    table = lookup(TABLES, name, 'weights of network')
    options.setdefault('num_classes', num_outputs(name, state_dict) or 1)
    state_dict = _strip(state_dict)
    module = models.create(name, **options)
    wanted, transposed = _leaves(module)
    found, unknown = _rename(state_dict, table, wanted)
    return _fill(wanted, found, transposed, unknown, f'weights of {name}')


def num_outputs(name: str, state_dict: dict) -> int | None:
    """How many classes the last layer of a state dict of network `name` has; None without one."""
    table = lookup(TABLES, name, 'weights of network')
    classes = _strip(state_dict).get(table.CLASSES[name])
    return None if classes is None else len(classes)


def init_encoder(name: str, variables: dict, state_dict: dict) -> tuple[dict, int]:
    """`variables` with the encoder taken from `state_dict`, and the number of tensors taken.

    `variables` are those of network `name`, alone or under `network` of a DSRL model; the state
    dict is a segmentation network's of any number of classes or the ImageNet classifier's.  All
    else stays as it is.  UserError when a tensor of the encoder is missing or of another shape.
    """
    table = lookup(TABLES, name, 'weights of network')
    variables = {'batch_stats': {}, **variables}
    prefix = ('network',) if 'network' in variables['params'] else ()
    flat = traverse_util.flatten_dict(variables)
    start = (*prefix, table.ENCODER)
    wanted = {
        (kind, *path[len(prefix) :]): leaf
        for (kind, *path), leaf in flat.items()
        if tuple(path[: len(start)]) == start
    }
    found, _ = _rename(_strip(state_dict), table, wanted)
    filled = traverse_util.flatten_dict(_fill(wanted, found, (), [], f'encoder of {name}'))
    flat.update({(kind, *prefix, *path): leaf for (kind, *path), leaf in filled.items()})
    return traverse_util.unflatten_dict(flat), len(filled)


def read_weights(path) -> dict:
    """{key: numpy array} of a .npz, .safetensors, .pth or .pt file (the last two need torch).

    Nothing in the file is executed.  A training checkpoint's `state_dict` or `model` is unwrapped.
    """
    path = pathlib.Path(path)
    read = lookup(_READERS, path.suffix, f'file type of {path}')
    if not path.is_file():
        raise UserError(path, 'no such file', 'a file of weights', 'check the path.')
    try:
        return read(path)
    except UserError:
        raise
    except Exception as problem:  # zip, zlib, torch and safetensors each raise their own kinds
        raise UserError(
            path,
            f'an unreadable file ({type(problem).__name__}: {str(problem)[:120]})',
            f'a complete {path.suffix} file of plain arrays',
            'fetch or export it again.',
        ) from problem


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _read_safetensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def _read_torch(path):
    try:
        import torch
    except ImportError as problem:
        raise UserError(
            path,
            'a torch file but no torch',
            'PyTorch installed, or weights as .npz or .safetensors',
            "run pip install 'dsrl-jax[torch]'.",
        ) from problem
    weights = torch.load(path, map_location='cpu', weights_only=True)
    for wrapper in ('state_dict', 'model'):
        if isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    return {
        key: (value.float() if value.is_floating_point() else value).numpy()
        for key, value in weights.items()
    }


_READERS = {
    '.npz': _read_npz,
    '.safetensors': _read_safetensors,
    '.pth': _read_torch,
    '.pt': _read_torch,
}


def _strip(state_dict):
    """Without the prefix of a torch DataParallel checkpoint and without batch counters."""
    kept = {k: v for k, v in state_dict.items() if not k.endswith('num_batches_tracked')}
    if kept and all(key.startswith('module.') for key in kept):
        return {key.removeprefix('module.'): value for key, value in kept.items()}
    return kept


def _leaves(module):
    """{(collection, *path): shape} of all variables, and the paths of transposed convolutions."""
    transposed = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.ConvTranspose):
            transposed.add(context.module.path)
        return call(*args, **kwargs)

    size = getattr(module, 'multiple', 32)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with nn.intercept_methods(note):
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return traverse_util.flatten_dict(variables), transposed


def _rename(state_dict, table, wanted):
    """{our path: (torch key, array)} of every known tensor, and the keys that fit nowhere."""
    found, unknown = {}, []
    for key, array in state_dict.items():
        path, _, part = key.rpartition('.')
        for pattern, replacement in table.RENAMES:
            path = re.sub(pattern, replacement, path)
        path = tuple(path.split('.'))
        names = [n for n in _NAMES.get(part, ()) if (n[0], *path, n[1]) in wanted]
        place = (names[0][0], *path, names[0][1]) if names else None
        if place is None or place in found:
            unknown.append(key)
        else:
            found[place] = (key, array)
    return found, unknown


# last part of a torch key -> (collection, leaf), the first one that the layer holds
_NAMES = {
    'weight': (('params', 'kernel'), ('params', 'scale'), ('params', 'slope')),
    'bias': (('params', 'bias'),),
    'running_mean': (('batch_stats', 'mean'),),
    'running_var': (('batch_stats', 'var'),),
}


def _fill(wanted, found, transposed, unknown, where):
    """The tree of `wanted` filled with arrays in our layout; UserError that names what misfits."""
    misshapen, filled = [], {}
    for place, (key, array) in found.items():
        array = np.asarray(array)
        ours = _to_ours(array, place[-1], place[1:-1] in transposed)
        if ours.shape == wanted[place].shape:
            filled[place] = np.ascontiguousarray(ours, np.float32)
        else:
            misshapen.append(f'{key} {list(array.shape)} for ours {list(wanted[place].shape)}')
    missing = ['/'.join(place[1:]) for place in wanted if place not in found]
    faults = [
        f'{len(names)} {what} ({", ".join(names[:4])}{", ..." if len(names) > 4 else ""})'
        for what, names in (('missing', missing), ('unknown', unknown), ('misshapen', misshapen))
        if names
    ]
    if faults:
        raise UserError(
            where,
            '; '.join(faults),
            f'{len(wanted)} tensors, each used once and of our shape',
            'check --net, its width and the number of classes against the file.',
        )
    return {'params': {}, 'batch_stats': {}, **traverse_util.unflatten_dict(filled)}


def _to_ours(array, leaf, transposed):
    if leaf != 'kernel' or array.ndim not in (2, 4):
        return array
    if array.ndim == 2:
        return array.T
    return array.transpose(2, 3, 0, 1) if transposed else array.transpose(2, 3, 1, 0)
