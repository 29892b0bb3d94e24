"""`dsrl export`: the inference-only network of a training run, equal to it or folded."""

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import inference, model_directory
from dsrl_jax.errors import UserError, lookup, nearest, one_of
from dsrl_jax.model_directory import FORMATS
from dsrl_jax.models.folding import fold, norms
from dsrl_jax.ops import resize

KINDS = {
    'exact': 'equal to the training network bit for bit',
    'deploy': 'batch norms folded into the convolutions',
}


def flags(parser) -> None:
    """Flags of `dsrl export`."""
    parser.add_argument('--workdir', required=True, help='a training run')
    parser.add_argument('--output', required=True, help='new folder for the model')
    parser.add_argument('--kind', default='exact', help=one_of(KINDS))
    parser.add_argument('--format', default=','.join(FORMATS), help='among ' + ', '.join(FORMATS))


def main(args) -> int:
    """Run `dsrl export`."""
    lookup(KINDS, args.kind, '--kind')
    formats = [name for name in args.format.split(',') if name]
    for name in formats:
        if name not in FORMATS:
            raise UserError('--format', repr(name), one_of(FORMATS), nearest(name, FORMATS))
    model_directory.check_new(args.output)
    model, variables, step = inference.from_workdir(args.workdir)
    source = f'{args.workdir}, step {step}'
    report = export(
        model, variables, args.output, kind=args.kind, formats=formats, step=step, source=source
    )
    print(f'training step {step}, {KINDS[args.kind]}')
    print(
        f'largest difference of class scores from the training network: {report["difference"]:g} '
        f'(scores span {report["span"]:.3g}); arg-max equal at {report["agreement"]:.4%} of pixels'
    )
    if 'stablehlo_agreement' in report:
        print(f'model.jaxexport: arg-max equal at {report["stablehlo_agreement"]:.4%} of pixels')
    print(f'written to {args.output}')
    return 0


def export(model, variables, output, *, kind='exact', formats=FORMATS, **about) -> dict:
    """Write the model directory of a training network; how well the two agree.

    `variables` are those of the training network, all branches. Raises UserError where `output`
    exists. 'exact' keeps every number; 'deploy' folds the batch norms.
    """
    exported = folded(model) if kind == 'deploy' else model
    target = model_directory.pictures(configs.eval_size(model.config))
    report = compare(model.network, variables, exported.network, exported.variables, model, target)
    if kind == 'exact' and report['difference']:
        raise RuntimeError(f'the exact export differs by {report["difference"]}')
    return model_directory.write(
        output, exported, formats=formats, report=report, kind=kind, **about
    )


def folded(model: inference.Model) -> inference.Model:
    """The model with its batch norms folded into the convolutions."""
    size = inference.input_size(model.config, configs.eval_size(model.config))
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = fold(model.variables, norms(model.network, image))
    names = {'classes': model.classes, 'colors': model.colors, 'keypoints': model.keypoints}
    return inference.Model(model.config, variables, **names, folded=True)


def compare(network, variables, other, other_variables, model, target) -> dict:
    """Class scores of two networks on the same large views [B,sH,sW,3], in evaluation mode.

    difference: the largest; span: of the first's scores; agreement: share of equal arg-max.
    """
    config = model.config

    def scores(module):
        def run(variables, target):
            image = resize.small_input(target, config.scale, config.data)
            outputs = module.apply(variables, image, train=False)
            return outputs['scores'].astype(jnp.float32)

        return jax.jit(run)

    before = np.asarray(scores(network)(variables, target))
    after = np.asarray(scores(other)(other_variables, target))
    return {
        'difference': float(np.abs(before - after).max()),
        'span': float(before.max() - before.min()),
        'agreement': float((before.argmax(-1) == after.argmax(-1)).mean()),
    }
