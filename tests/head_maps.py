"""Maps of a network for the tests of heads, and variables without compiling."""

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax.models.layers import Convention


def maps(classes=5, score=(4, 6), feature=(4, 6), features=7, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'scores': jnp.asarray(rng.normal(size=(2, *score, classes)), jnp.float32),
        'features': jnp.asarray(rng.normal(size=(2, *feature, features)), jnp.float32),
        'resize': Convention('align_corners'),
    }


def encoder_maps(high=(3, 4), low=(12, 16), channels=(9, 5), seed=0):
    rng = np.random.default_rng(seed)
    return {
        'high': jnp.asarray(rng.normal(size=(2, *high, channels[0])), jnp.float32),
        'low': jnp.asarray(rng.normal(size=(2, *low, channels[1])), jnp.float32),
    }


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables['params']))


def abstract(module, *inputs, **kwargs):
    """Shapes of (result, variables) of a first call, computing nothing."""
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *inputs, **kwargs))


def filled(module, *inputs, seed=0, **kwargs):
    """Variables of the module without compiling its initialisation: kernels of unit gain."""
    _, variables = abstract(module, *inputs, **kwargs)
    rng = np.random.default_rng(seed)

    def value(x):
        spread = np.sqrt(1 / np.prod(x.shape[:-1])) if len(x.shape) == 4 else 0.1
        offset = 0.0 if len(x.shape) == 4 else 0.5
        return jnp.asarray(rng.normal(offset, spread, x.shape), x.dtype)

    return jax.tree.map(value, variables)
