"""All networks, by name: `create(name, num_classes=..., ...)` gives a Linen module.

A network maps images [B, H, W, 3] to a dict: `scores` [B, h, w, num_classes] before the last
resize, `features`, the encoder maps `low` and `high`, `aux` where the original has auxiliary
classifiers, and `resize`, the convention that brings scores to the input size.
"""

import functools
import importlib
import inspect
import os
import sys

import jax.numpy as jnp

from dsrl_jax import errors
from dsrl_jax.models import (
    bisenet,
    dabnet,
    deeplabv3plus,
    efficientnet_lite,
    enet,
    erfnet,
    espnet,
    espnetv2,
    espnetv2_old,
    fcn8s,
    hrnet,
    pspnet,
    refinenet,
    resnet,
)
from dsrl_jax.models.dsrl import wrap
from dsrl_jax.models.layers import Convention, Style
from dsrl_jax.ops.convolution import FORMS

__all__ = ['CLASSIFIERS', 'NETWORKS', 'Convention', 'Style', 'create']

NETWORKS = {
    'bisenet_resnet18': bisenet.BiSeNet,
    'dabnet': dabnet.DABNet,
    'deeplabv3plus_efficientnet_lite0': deeplabv3plus.EfficientNetLite0,
    'deeplabv3plus_resnet101': deeplabv3plus.ResNet101,
    'enet': enet.ENet,
    'erfnet': erfnet.ERFNet,
    'espnet': espnet.ESPNet,
    'espnet_c': espnet.ESPNetC,
    'espnetv2': espnetv2.ESPNetv2,
    'espnetv2_old': espnetv2_old.ESPNetv2Old,
    'fcn8s': fcn8s.FCN8s,
    'hrnet_w32': functools.partial(hrnet.HRNet, width=32),
    'hrnet_w48': functools.partial(hrnet.HRNet, width=48),
    'pspnet_resnet18': functools.partial(pspnet.PSPNet, depth=18, variant='skd'),
    'pspnet_resnet101': functools.partial(pspnet.PSPNet, depth=101),
    'refinenet_resnet101': refinenet.RefineNet,
}
# ImageNet networks, whose encoders others share; no score maps, so no DSRL.
CLASSIFIERS = {
    'efficientnet_lite0': efficientnet_lite.Classifier,
    'espnetv2_classifier': espnetv2.Classifier,
    'resnet18': functools.partial(resnet.Classifier, depth=18),
    'resnet50': functools.partial(resnet.Classifier, depth=50),
    'resnet101': functools.partial(resnet.Classifier, depth=101),
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
    bn_group: int = 0,
    dropout: float | None = None,
    scale: int = 2,
    sssr: dict | None = None,
    sisr: dict | None = None,
    transform: dict | None = None,
    tap: str = 'features',
    **options,
):
    """The network `name`, or the DSRL model around it when `dsrl` names a mode.

    `name` is a key of NETWORKS or 'module:factory' of the user's own, called with num_classes and,
    where it takes them, dropout and style; `options` are the network's own fields (ESPNetv2:
    width).  `dropout` None keeps the original's rates; `bn_group`: see layers.BatchNorm.
    UserError for an unknown name, type or option.
    """
    style = Style(
        dtype=errors.lookup(DTYPES, dtype, 'model.dtype'),
        conv_impl=errors.lookup({form: form for form in FORMS}, conv_impl, 'model.conv_impl'),
        folded=folded,
        bn_group=bn_group,
    )
    factory = _factory(name, dsrl)
    # What the name fixes is no option; a variant is a default.
    fixed = {'parent', 'name', *getattr(factory, 'keywords', ())} - {'variant'}
    known = dict.fromkeys(sorted(set(inspect.signature(factory).parameters) - fixed))
    if dropout is not None:
        options['dropout'] = dropout
    if 'style' in known:
        options['style'] = style
    elif folded or bn_group or dtype != 'float32':
        raise errors.UserError(
            'model.net',
            f'dtype {dtype}, folded {folded}, bn_group {bn_group} with {name}: it takes no style',
            'float32, unfolded norms and bn_group 0 for such a network',
            'give its factory a field `style`, or use float32 and the exact export.',
        )
    free = {option: None for option in known if option not in ('num_classes', 'style')}
    for option in options:
        if option not in known:
            errors.lookup(free, option, f'option of {name}')
    if 'num_classes' not in known:
        expected = 'a factory with a field `num_classes`'
        raise errors.UserError('model.net', f'{name!r} without it', expected, 'add the field.')
    network = factory(num_classes=num_classes, **options)
    if dsrl is None:
        return network
    return wrap(
        network,
        num_classes=num_classes,
        mode=dsrl,
        scale=scale,
        sssr=sssr,
        sisr=sisr,
        transform=transform,
        features=tap,
        style=style,
    )


def _factory(name, dsrl):
    if ':' in name:
        return _import(name)
    if dsrl is not None and name in CLASSIFIERS:
        raise errors.UserError(
            'model.net',
            f'{name!r}, a classifier',
            errors.one_of(NETWORKS),
            'name it nowhere: its weights start an encoder by model.init_from.',
        )
    return errors.lookup(NETWORKS | (CLASSIFIERS if dsrl is None else {}), name, 'model.net')


def _import(name):
    path, _, attribute = name.partition(':')
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does; a console script does not
    try:
        return getattr(importlib.import_module(path), attribute)
    except Exception as problem:  # a mistake in somebody's Python may raise anything
        raise errors.UserError(
            'model.net',
            f'{name!r} ({type(problem).__name__}: {problem})',
            'an importable module:factory',
            'correct the module, its spelling or PYTHONPATH.',
        ) from problem
