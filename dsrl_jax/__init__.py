"""Dual Super-Resolution Learning in JAX.

Shape legend used in docstrings: B batch, H W pixels of the small input, s the super-resolution
factor, sH sW pixels of the large view, C channels, K classes, N pixels of the affinity grid.
All maps are NHWC.
"""

import importlib

__version__ = '0.1.0'
__all__ = ['convert', 'load', 'train', 'wrap']


def load(directory):
    """The model that `dsrl export` wrote: `load(DIR).predict(image)` gives labels or joints."""
    from dsrl_jax import inference

    return inference.load(directory)


def __getattr__(name):
    if name in ('train', 'convert'):  # modules; the first can be called too: see there
        return importlib.import_module(f'dsrl_jax.{name}')
    if name == 'wrap':
        return importlib.import_module('dsrl_jax.models.dsrl').wrap
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
