"""The state a run starts from: that of its newest checkpoint, or a fresh one."""

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import inference, parallel, pretrained
from dsrl_jax import state as states
from dsrl_jax.foreign.preprocessing import PREPROCESSING

# A resumed run must agree with its checkpoint in everything that decides the numbers.
RESUME_KEYS = (
    *('seed', 'scale', 'model', 'sssr', 'sisr', 'ce', 'mse', 'fa', 'kd', 'optimizer', 'ema'),
    *('steps', 'epochs', 'data.name', 'data.train_split', 'data.batch_size', 'data.size'),
    *('accumulate', 'data.labelled', 'data.unlabelled'),
    *('data.scale_range', 'data.flip', 'data.color', 'data.mean', 'data.std', 'data.order'),
    *('pose.encode', 'pose.sigma', 'pose.half_body', 'pose.scale_factor', 'pose.rotation'),
    'data.resident',  # resolved: drawn on the device, the views are others
)


def initial_state(config, network, tx, mesh, saved, settings):
    """The state of the newest checkpoint, or a fresh one, replicated over the mesh."""
    everywhere = parallel.replicated(mesh)
    ema = config.ema > 0
    small = inference.input_size(config, config.data.size)

    def fresh(key):
        return states.init_variables(network, small, key)

    def create(variables, seed):
        return states.create(variables, tx, ema=ema, seed=seed)

    # Philox (rbg) compiles in half the time of the default generator for hundreds of small leaves.
    key = jax.random.key(config.seed, impl='rbg')
    if saved.latest is not None:
        defaults = configs.to_dict(configs.base())
        configs.compare(saved.config(), settings, RESUME_KEYS, defaults)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(lambda key: create(fresh(key), config.seed), key),
        )
        state, step = saved.restore(abstract)
        print(f'resumed at step {step}')
        return state
    start = config.model.init_from
    weights = pretrained.read_weights(start) if start else None  # first: a wrong file ends here
    variables = jax.jit(fresh, out_shardings=everywhere)(key)
    if weights:
        variables = _from_encoder(config, variables, weights, everywhere)
    return jax.jit(create, out_shardings=everywhere)(variables, np.uint32(config.seed))


def _from_encoder(config, variables, weights, sharding):
    """The variables with the encoder of the weights; every other leaf as it was."""
    net, variant = config.model.net, config.model.variant
    start = config.model.init_from
    variables, taken, table = pretrained.init_encoder(
        net, variables, weights, source=start, variant=variant
    )
    print(f'{start}: {taken} tensors of the encoder taken')
    known = {name: PREPROCESSING[name] for name in table.preprocessing}
    if not any(all(color[n] == config.data[n] for n in color) for color in known.values()):
        for name, color in known.items():
            fields = ' '.join(f"'--config.data.{n}={value}'" for n, value in color.items())
            print(f'note: such weights saw images prepared as {name}: {fields}')
    return jax.device_put(variables, sharding)
