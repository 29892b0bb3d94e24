"""The model directory that `dsrl export` and `dsrl convert` write and `dsrl_jax.load` reads."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from dsrl_jax import __version__, checkpoint, costs, inference
from dsrl_jax import config as configs
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError

FORMATS = ('params', 'stablehlo')
PLATFORMS = ('cpu', 'cuda', 'tpu')


def check_new(output) -> pathlib.Path:
    """The path of a model directory to be written; UserError where something is there."""
    output = pathlib.Path(output)
    if output.exists():
        raise UserError(output, 'a path that exists', 'a new one', 'remove it or rename.')
    return output


def write(output, model: inference.Model, *, formats=FORMATS, report: dict, **about) -> dict:
    """Write `params/`, `config.json`, `card.md` and `model.jaxexport` of a model.

    `report` says how far the network is from the one it came from, for the card; the agreement of
    `model.jaxexport` with the network is added. `about`: kind, step, source.
    """
    output, config = check_new(output), model.config
    checkpoint.save_params(output / 'params', model.variables)
    saved = {
        'dsrl_jax': __version__,
        **about,
        'folded': model.folded,
        **inference.names_of(model),
        'config': configs.to_dict(config),
    }
    (output / 'config.json').write_text(json.dumps(saved, indent=2) + '\n')
    if 'stablehlo' in formats:
        target = pictures(configs.eval_size(config))
        blob = stablehlo(model)
        (output / 'model.jaxexport').write_bytes(blob)
        ours = np.asarray(model.label_map(model.variables, target))
        weights = jax.tree.map(np.asarray, model.variables)
        theirs = np.asarray(jax_export.deserialize(blob).call(weights, target))
        report = {**report, 'stablehlo_agreement': float((ours == theirs).mean())}
    plain = inference.build_network(config, len(model.classes), conv_impl='lax')
    spent = costs.measure(plain, inference.input_size(config, configs.eval_size(config)))
    (output / 'card.md').write_text(card(saved, spent, report, gives(model)))
    return report


def stablehlo(model: inference.Model) -> bytes:
    """The serialised function (variables, uint8 [b,sH,sW,3]) -> classes [b,sH,sW], any b.

    One file for CPU, CUDA and TPU; the weights stay outside, in `params/`.
    """
    (batch,) = jax_export.symbolic_shape('b')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.variables)
    target = jax.ShapeDtypeStruct((batch, *configs.eval_size(model.config), 3), jnp.uint8)
    return jax_export.export(model.label_map, platforms=PLATFORMS)(shapes, target).serialize()


def gives(model: inference.Model) -> str:
    """What the exported function gives, in words."""
    target = jax.ShapeDtypeStruct((1, *configs.eval_size(model.config), 3), jnp.uint8)
    height, width = jax.eval_shape(model.label_map, model.variables, target).shape[1:3]
    if model.network.task == 'pose':
        return f'heatmaps [b, {height}, {width}, {len(model.classes)}]'
    return f'class index [b, {height}, {width}]'


def card(saved: dict, spent: dict, report: dict, gives: str) -> str:
    """The model card: what the model is, takes and gives, and its true costs."""
    config = saved['config']
    height, width = config['data']['eval_size'] or config['data']['size']
    scale = config['scale']
    params, macs = spent['params'], spent['macs']
    head = macs.get('sssr', 0)
    rows = [
        ('from', saved['source']),
        ('kind', saved['kind']),
        (
            'takes',
            f'uint8 RGB [b, {height}, {width}, 3], the large view; shrunk inside to '
            f'{height // scale}x{width // scale}',
        ),
        (
            'normalisation',
            f'{config["data"]["order"].upper()} in 0..1, mean {config["data"]["mean"]}, '
            f'std {config["data"]["std"]}',
        ),
        ('gives', gives),
        ('classes', ', '.join(saved['classes'])),
        ('parameters', f'{params["inference"]:,} (head {params.get("sssr", 0):,})'),
        (
            'multiply-adds, one image',
            f'{macs["inference"] / 1e6:.2f} M with the head, '
            f'{(macs["inference"] - head) / 1e6:.2f} M without',
        ),
        ('FLOPs, 2 x multiply-adds', f'{spent["flops"] / 1e9:.3f} G'),
        *((name.replace('_', ' '), f'{value:g}') for name, value in report.items()),
    ]
    table = '\n'.join(f'| {name} | {value} |' for name, value in rows)
    return f"""# {config['model']['net']}, DSRL mode `{config['model']['dsrl']}`

Written by dsrl_jax {saved['dsrl_jax']}.

| | |
|---|---|
{table}

    import dsrl_jax
    result = dsrl_jax.load('this folder').predict(image)

`model.jaxexport`, where present, is the function (params, images) -> {gives} for
{', '.join(PLATFORMS)}, read by `jax.export.deserialize`.
"""


def pictures(size) -> np.ndarray:
    """Two drawn scenes of that size, uint8 [2,sH,sW,3]: inputs that no data set is needed for."""
    source = SyntheticSource('test', size=tuple(size), length=2)
    return np.stack([source[i]['image'] for i in range(2)])
