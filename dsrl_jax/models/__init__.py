"""All networks, by name: `create(name, num_classes=..., ...)` gives a Linen module.

A network maps images [B, H, W, 3] to a dict: `scores` [B, h, w, num_classes] before the last
resize, `features`, the encoder maps `low` and `high`, `aux` where the original has auxiliary
classifiers, and `resize`, the convention that brings scores to the input size.
"""

import importlib
import inspect

import jax.numpy as jnp

from dsrl_jax import errors
from dsrl_jax.models import espnetv2
from dsrl_jax.models.dsrl import wrap
from dsrl_jax.models.layers import Convention, Style
from dsrl_jax.ops.convolution import FORMS

__all__ = ['NETWORKS', 'Convention', 'Style', 'create']

NETWORKS = {
    'espnetv2': espnetv2.ESPNetv2,
    'espnetv2_classifier': espnetv2.Classifier,
}
DTYPES = {name: jnp.dtype(name) for name in ('float32', 'bfloat16', 'float16', 'float64')}


def create(
    name: str,
    *,
    num_classes: int,
    dsrl: str | None = None,
    dtype: str = 'float32',
    conv_impl: str = 'auto',
    folded: bool = False,
    dropout: float = 0.0,
    scale: int = 2,
    sssr: dict | None = None,
    sisr: dict | None = None,
    tap: str = 'features',
    **options,
):
    """The network `name`, or the DSRL model around it when `dsrl` names a mode.

    `name` is a key of NETWORKS or 'module:factory' of the user's own; `options` are the
    network's own fields (ESPNetv2: width).  UserError for an unknown name, type or option.
    """
    style = Style(
        dtype=errors.lookup(DTYPES, dtype, 'model.dtype'),
        conv_impl=errors.lookup({form: form for form in FORMS}, conv_impl, 'model.conv_impl'),
        folded=folded,
    )
    factory = _import(name) if ':' in name else errors.lookup(NETWORKS, name, 'model.net')
    known = set(inspect.signature(factory).parameters) - {'parent', 'name'}
    for option in options:
        errors.lookup(dict.fromkeys(sorted(known)), option, f'option of {name}')
    network = factory(num_classes=num_classes, dropout=dropout, style=style, **options)
    if dsrl is None:
        return network
    return wrap(
        network,
        num_classes=num_classes,
        mode=dsrl,
        scale=scale,
        sssr=sssr,
        sisr=sisr,
        tap=tap,
        style=style,
    )


def _import(name):
    path, _, attribute = name.partition(':')
    try:
        return getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as problem:
        raise errors.UserError(
            'model.net',
            f'{name!r} ({problem})',
            'an importable module:factory',
            'check the spelling and PYTHONPATH.',
        ) from problem
