"""Dual Super-Resolution Learning in JAX.

Shape legend used in docstrings: B batch, H W pixels of the small input, s the super-resolution
factor, sH sW pixels of the large view, C channels, K classes, N pixels of the affinity grid.
All maps are NHWC.
"""

__version__ = '0.1.0'
__all__ = ['load', 'train']


def load(directory):
    """The model that `dsrl export` wrote: `load(DIR).predict(image)` gives labels of its size."""
    from dsrl_jax import inference

    return inference.load(directory)


def train(config, workdir):
    """Train in `workdir`; the scores. `config` is a ConfigDict, or 'camvid:net=espnetv2'.

    Returns None where SIGTERM stopped the run; the same call goes on with it.
    """
    # The submodule takes this function's name in the package once imported: put it back.
    import importlib

    from dsrl_jax import config as configs

    run = importlib.import_module('dsrl_jax.train').train
    globals()['train'] = train
    return run(configs.load(config) if isinstance(config, str) else config, workdir)
