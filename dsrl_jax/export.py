"""`dsrl export`: the inference-only network as parameters, a StableHLO file and a model card."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from dsrl_jax import __version__, checkpoint, costs, inference
from dsrl_jax import config as configs
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError, lookup, nearest, one_of
from dsrl_jax.models.dsrl import inference_variables
from dsrl_jax.models.layers import epsilons, fold
from dsrl_jax.ops import resize

FORMATS = ('params', 'stablehlo')
PLATFORMS = ('cpu', 'cuda', 'tpu')
KINDS = {
    'exact': 'equal to the training network bit for bit',
    'deploy': 'batch norms folded into the convolutions',
}


def flags(parser) -> None:
    """Flags of `dsrl export`."""
    parser.add_argument('--workdir', required=True, help='a training run')
    parser.add_argument('--output', required=True, help='new folder for the model')
    parser.add_argument('--kind', default='exact', help=one_of(KINDS))
    parser.add_argument('--format', default='params,stablehlo', help='among ' + ', '.join(FORMATS))


def main(args) -> int:
    """Run `dsrl export`."""
    lookup(KINDS, args.kind, '--kind')
    formats = [name for name in args.format.split(',') if name]
    for name in formats:
        if name not in FORMATS:
            raise UserError('--format', repr(name), one_of(FORMATS), nearest(name, FORMATS))
    model, variables, step = inference.from_workdir(args.workdir)
    report = export(model, variables, args.output, kind=args.kind, formats=formats, step=step)
    print(f'training step {step}, {KINDS[args.kind]}')
    print(
        f'largest difference of class scores from the training network: {report["difference"]:g} '
        f'(scores span {report["span"]:.3g}); arg-max equal at {report["agreement"]:.4%} of pixels'
    )
    if 'stablehlo_agreement' in report:
        print(f'model.jaxexport: arg-max equal at {report["stablehlo_agreement"]:.4%} of pixels')
    print(f'written to {args.output}')
    return 0


def export(model, variables, output, *, kind='exact', formats=FORMATS, step=None) -> dict:
    """Write `params/`, `config.json`, `card.md` and `model.jaxexport`; how well they agree.

    `variables` are those of the training network, all branches. Raises UserError where `output`
    exists, or where an `exact` export would not be equal to the training network.
    """
    output = pathlib.Path(output)
    if output.exists():
        raise UserError(output, 'a path that exists', 'a new one', 'remove it or rename.')
    kept = inference_variables(variables)
    network, config = model.network, model.config
    if kind == 'deploy':
        image = jax.ShapeDtypeStruct((1, *_input(config), 3), jnp.float32)
        kept = fold(kept, epsilons(network, image))
        network = inference.build_network(config, len(model.classes), folded=True)
    target = _pictures(configs.eval_size(config))
    report = _compare(model.network, variables, network, kept, config, target)
    if kind == 'exact' and report['difference']:
        raise RuntimeError(f'the exact export differs by {report["difference"]}')
    checkpoint.save_params(output / 'params', kept)
    saved = {
        'dsrl_jax': __version__,
        'kind': kind,
        'folded': kind == 'deploy',
        'step': step,
        'classes': model.classes,
        'colors': [list(color) for color in model.colors],
        'config': configs.to_dict(config),
    }
    (output / 'config.json').write_text(json.dumps(saved, indent=2) + '\n')
    if 'stablehlo' in formats:
        labels = inference.label_function(network, config, len(model.classes))
        blob = stablehlo(labels, kept, configs.eval_size(config))
        (output / 'model.jaxexport').write_bytes(blob)
        ours = np.asarray(jax.jit(labels)(kept, target))
        theirs = np.asarray(jax_export.deserialize(blob).call(_host(kept), target))
        report['stablehlo_agreement'] = float((ours == theirs).mean())
    plain = inference.build_network(config, len(model.classes), conv_impl='lax')
    spent = costs.measure(plain, _input(config))
    (output / 'card.md').write_text(card(saved, spent, report))
    return report


def stablehlo(labels, variables, size) -> bytes:
    """The serialised function (variables, uint8 [b,sH,sW,3]) -> classes [b,sH,sW], any b.

    One file for CPU, CUDA and TPU; the weights stay outside, in `params/`.
    """
    (batch,) = jax_export.symbolic_shape('b')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    target = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    return jax_export.export(jax.jit(labels), platforms=PLATFORMS)(shapes, target).serialize()


def card(saved: dict, spent: dict, report: dict) -> str:
    """The model card: what the model is, takes and gives, and its true costs."""
    config = saved['config']
    height, width = config['data']['eval_size'] or config['data']['size']
    scale = config['scale']
    params, macs = spent['params'], spent['macs']
    head = macs.get('sssr', 0)
    return f"""# {config['model']['net']}, DSRL mode `{config['model']['dsrl']}`

Trained on `{config['data']['name']}` ({config['data']['train_split']}) to step {saved['step']}
with dsrl_jax {saved['dsrl_jax']}; exported as `{saved['kind']}`.

| | |
|---|---|
| takes | uint8 RGB [b, {height}, {width}, 3], the large view; shrunk inside to \
{height // scale}x{width // scale} |
| gives | class index [b, {height}, {width}] |
| classes | {', '.join(saved['classes'])} |
| parameters | {params['inference']:,} (head {params.get('sssr', 0):,}) |
| multiply-adds, one image | {macs['inference'] / 1e6:.2f} M with the head, \
{(macs['inference'] - head) / 1e6:.2f} M without |
| FLOPs (2 x multiply-adds) | {spent['flops'] / 1e9:.3f} G |
| largest score difference from the training network | {report['difference']:g} |
| arg-max equal to the training network's | {report['agreement']:.4%} of pixels |

    import dsrl_jax
    model = dsrl_jax.load('this folder')
    result = model.predict(image)

`model.jaxexport`, where present, is the function (params, images) -> classes for
{', '.join(PLATFORMS)}, read by `jax.export.deserialize`.
"""


def _compare(network, variables, exported, kept, config, target) -> dict:
    """Scores of two networks on the same large views [B,sH,sW,3], in evaluation mode."""

    def scores(module):
        def run(variables, target):
            data = config.data
            image = resize.small_input(target, config.scale, data.mean, data.std)
            outputs = module.apply(variables, image, train=False)
            return outputs['scores'].astype(jnp.float32)

        return jax.jit(run)

    before = np.asarray(scores(network)(variables, target))
    after = np.asarray(scores(exported)(kept, target))
    return {
        'difference': float(np.abs(before - after).max()),
        'span': float(before.max() - before.min()),
        'agreement': float((before.argmax(-1) == after.argmax(-1)).mean()),
    }


def _pictures(size) -> np.ndarray:
    """Two drawn scenes of that size, uint8 [2,sH,sW,3]: inputs that no data set is needed for."""
    source = SyntheticSource('test', size=tuple(size), length=2)
    return np.stack([source[i]['image'] for i in range(2)])


def _input(config) -> tuple[int, int]:
    return inference.input_size(config, configs.eval_size(config))


def _host(variables):
    return jax.tree.map(np.asarray, variables)
