"""Weights of other projects: torch state dicts to our variables, and runs that start from them.

A state dict is {torch key: array} in torch layout (convolution OIHW, transposed IOHW, linear OI);
`foreign` holds the names, `weight_files` reads the files, this file has the rules.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from dsrl_jax import models
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.foreign import ENCODER, TABLES
from dsrl_jax.foreign.table import Table
from dsrl_jax.models import layers
from dsrl_jax.weight_files import read_weights as read_weights  # where callers look for it


class Leaf(NamedTuple):
    """A variable of ours: its shape, and whether it is a transposed convolution's kernel."""

    shape: tuple[int, ...]
    transposed: bool


def from_torch(name: str, state_dict: dict, *, source='', **options) -> dict:
    """{torch key: array} of network `name` -> {'params', 'batch_stats'}, float32 numpy leaves.

    `options` are those of models.create; num_classes is read off the weights when absent; `source`
    is the file that errors name.
    UserError unless every tensor is used exactly once and fills every leaf in the right shape.
    """
    options.setdefault('num_classes', num_outputs(name, state_dict, options.get('variant')) or 1)
    leaves, table = _leaves(models.create(name, **options)), find_table(name, **options)
    state_dict = _strip(state_dict, table.ignored)
    return _fill(_keys(leaves, table), leaves, state_dict, source or f'weights of {name}', name)


def to_torch(name: str, variables: dict, **options) -> dict:
    """The inverse of `from_torch`: {'params', 'batch_stats'} -> {torch key: numpy array}.

    `variables` are those of network `name` made with `options`, alone or under `network` of a DSRL
    model (whose branches the original lacks); num_classes is read off them when absent.  Where the
    original's norms count batches the count is 0: nothing reads it.
    UserError where the variables are not the network's.
    """
    table = find_table(name, **options)
    if 'network' in variables['params']:
        variables = {kind: tree.get('network', {}) for kind, tree in variables.items()}
    flat = {kind: traverse_util.flatten_dict(tree) for kind, tree in variables.items()}
    flat = {(kind, *path): leaf for kind, tree in flat.items() for path, leaf in tree.items()}
    if 'num_classes' not in options:
        ours = {key: place for place, key in _keys(flat, table).items()}
        options['num_classes'] = flat[ours[table.classes]].shape[-1] if table.classes in ours else 1
    leaves = _leaves(models.create(name, **options))
    wrong = [
        '/'.join(place[1:])
        for place in {**leaves, **flat}
        if place not in leaves
        or place not in flat
        or tuple(flat[place].shape) != leaves[place].shape
    ]
    if wrong:
        raise UserError(
            f'variables of {name}',
            f'{len(wrong)} leaves that differ ({", ".join(wrong[:4])})',
            f'the {len(leaves)} leaves of the network',
            'give the options the network was made with.',
        )
    state_dict = {}
    for place, key in _keys(leaves, table).items():
        state_dict[key] = np.ascontiguousarray(_to_theirs(np.asarray(flat[place]), leaves[place]))
        if table.counters and place[-1] == 'var':
            state_dict[key.replace('running_var', 'num_batches_tracked')] = np.zeros((), np.int64)
    return state_dict


def find_table(name: str, variant: str | None = None, **options) -> Table:
    """The names that the code base `variant` (None: the default) gives to network `name`."""
    del options  # those of models.create that do not decide the names
    tables = lookup(TABLES, name, 'weights of network')
    if variant and list(tables) == ['']:
        raise UserError(f'variant of {name}', repr(variant), 'none: it has one', 'leave it out.')
    return tables[next(iter(tables))] if variant is None else lookup(tables, variant, 'variant')


def num_outputs(name: str, state_dict: dict, variant: str | None = None) -> int | None:
    """How many classes the last layer of a state dict of network `name` has; None without one."""
    table = find_table(name, variant)
    classes = _strip(state_dict).get(table.classes)
    return None if classes is None else np.shape(classes)[table.axis]


def init_encoder(name: str, variables: dict, state_dict: dict, *, source='', **options):
    """(`variables` with the encoder of `state_dict`, number of tensors taken, Table they fit).

    `variables` are those of network `name`, alone or under `network` of a DSRL model; the state
    dict is a segmentation network's of any number of classes or the ImageNet classifier's.  All
    else stays as it is.  UserError when a tensor of the encoder is missing or of another shape.
    """
    table = find_table(name, **options)
    variables = {'batch_stats': {}, **variables}
    prefix = ('network',) if 'network' in variables['params'] else ()
    flat = traverse_util.flatten_dict(variables)
    start = (*prefix, ENCODER)
    leaves = {
        (kind, *path[len(prefix) :]): Leaf(tuple(leaf.shape), transposed=False)
        for (kind, *path), leaf in flat.items()
        if tuple(path[: len(start)]) == start
    }
    if not leaves:
        raise UserError(
            f'init_from with {name}', 'no encoder', 'a network with one', 'leave it empty.'
        )
    state_dict = _strip(state_dict)
    tables = [table, *([find_table(table.backbone)] if table.backbone else [])]
    # Of equal ones the classifier: its files and those of its encoder alone are alike.
    table = max(
        reversed(tables),
        key=lambda table: len(set(_keys(leaves, table).values()).intersection(state_dict)),
    )
    keys = _keys(leaves, table)
    taken = {key: state_dict[key] for key in keys.values() if key in state_dict}
    filled = _fill(keys, leaves, taken, source or f'encoder of {name}', f'the encoder of {name}')
    filled = traverse_util.flatten_dict(filled)
    flat.update({(kind, *prefix, *path): leaf for (kind, *path), leaf in filled.items()})
    return traverse_util.unflatten_dict(flat), len(filled), table


def _strip(state_dict, ignored=()):
    """Without the prefix of a torch DataParallel checkpoint, batch counters and ignored keys."""
    if state_dict and all(key.startswith('module.') for key in state_dict):
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    ignored = (r'(^|\.)num_batches_tracked$', *ignored)
    return {
        key: value
        for key, value in state_dict.items()
        if not any(re.search(pattern, key) for pattern in ignored)
    }


def _leaves(module) -> dict:
    """{(collection, *path): Leaf} of all variables of a module."""
    transposed = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.ConvTranspose):
            transposed.add(context.module.path)
        return call(*args, **kwargs)

    size = getattr(module, 'multiple', 32)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with nn.intercept_methods(note):
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return {
        place: Leaf(tuple(leaf.shape), place[1:-1] in transposed)
        for place, leaf in traverse_util.flatten_dict(variables).items()
    }


def _keys(leaves, table) -> dict:
    """{(collection, *path): torch key} of every leaf."""
    keys = {}
    for place in leaves:
        path = '.'.join(place[1:-1])
        for pattern, replacement in table.renames:
            path = re.sub(pattern, replacement, path)
        keys[place] = f'{path}.{_PARTS[place[-1]]}'
    return keys


# our leaf -> the last part of its torch key
_PARTS = {
    'kernel': 'weight',
    'scale': 'weight',
    'slope': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


def _fill(keys, leaves, state_dict, where, what):
    """The tree of `leaves` filled with arrays in our layout; UserError that names what misfits."""
    missing, misshapen, filled = [], [], {}
    for place, key in keys.items():
        if key not in state_dict:
            missing.append(f'{key} for ours {"/".join(place[1:])}')
            continue
        array = np.asarray(state_dict[key])
        ours = _to_ours(array, leaves[place], place[-1])
        if ours.shape == leaves[place].shape:
            filled[place] = np.ascontiguousarray(ours, np.float32)
        else:
            misshapen.append(f'{key} {list(array.shape)} for ours {list(leaves[place].shape)}')
    unknown = sorted(set(state_dict).difference(keys.values()))
    faults = [
        f'{len(names)} {what} ({", ".join(names[:4])}{", ..." if len(names) > 4 else ""})'
        for what, names in (('missing', missing), ('unknown', unknown), ('misshapen', misshapen))
        if names
    ]
    if faults:
        raise UserError(
            where,
            '; '.join(faults),
            f'the {len(keys)} tensors of {what}, each used once and of our shape',
            'check the network, its options and the number of classes against the file.',
        )
    return {'params': {}, 'batch_stats': {}, **traverse_util.unflatten_dict(filled)}


def _to_ours(array, leaf, name):
    if name != 'kernel' or array.ndim not in (2, 4):
        return array
    if array.ndim == 2:
        return array.T
    return array.transpose(2, 3, 0, 1) if leaf.transposed else array.transpose(2, 3, 1, 0)


def _to_theirs(array, leaf):
    if array.ndim == 2:
        return array.T
    if array.ndim == 4:
        return array.transpose(2, 3, 0, 1) if leaf.transposed else array.transpose(3, 2, 0, 1)
    return array
