"""`dsrl convert`: weights of another project become a model directory, ready to predict.

`from_torch` and `to_torch` are the same from Python, without a directory.
"""

import colorsys
import pathlib

import jax

from dsrl_jax import config as configs
from dsrl_jax import inference, model_directory, pretrained
from dsrl_jax.data.folder import read_classes
from dsrl_jax.data.palettes import PALETTES
from dsrl_jax.data.persons import colors
from dsrl_jax.errors import UserError, lookup, nearest, one_of
from dsrl_jax.foreign import TABLES
from dsrl_jax.foreign.preprocessing import PREPROCESSING
from dsrl_jax.keypoints import COCO
from dsrl_jax.pretrained import from_torch, to_torch

__all__ = ['flags', 'from_torch', 'main', 'to_torch']


def flags(parser) -> None:
    """Flags of `dsrl convert`."""
    parser.add_argument('--net', required=True, help='name of the network')
    parser.add_argument('--weights', required=True, help='.npz, .safetensors, .pth or .pt file')
    parser.add_argument('--output', required=True, help='new folder for the model')
    parser.add_argument('--size', default='512x1024', help='height and width of the input')
    parser.add_argument('--width', type=float, help='width of the network, where it has one')
    parser.add_argument('--variant', help='whose definition, where a network has several')
    parser.add_argument('--output_stride', type=int, help='of the encoder, where it has a choice')
    parser.add_argument('--num_classes', type=int, help='outputs; default: read off the weights')
    parser.add_argument(
        '--classes', help=f'{", ".join(PALETTES)}, or a file of lines `name red green blue`'
    )
    parser.add_argument(
        '--preprocessing', help=f"default: the source's own; {one_of(PREPROCESSING)}"
    )


def main(args) -> int:
    """Run `dsrl convert`; the model directory holds what `dsrl predict` and `dsrl eval` need."""
    model_directory.check_new(args.output)
    weights = pretrained.read_weights(args.weights)
    lookup(TABLES, args.net, '--net')
    options = {
        name: value
        for name in ('width', 'variant', 'output_stride')
        if (value := getattr(args, name)) is not None
    }
    table = pretrained.find_table(args.net, **options)
    if args.preprocessing is None and len(table.preprocessing) > 1:
        names = one_of(table.preprocessing)
        found = 'none: it depends on the data set the weights were trained on'
        raise UserError('--preprocessing', found, names, 'choose the one of the weights.')
    preparation = args.preprocessing or table.preprocessing[0]
    preprocessing = lookup(PREPROCESSING, preparation, '--preprocessing')
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError('--num_classes', f'{args.num_classes}', 'at least 1', 'leave it out.')
    outputs = args.num_classes or pretrained.num_outputs(args.net, weights, args.variant) or 1
    variables = from_torch(args.net, weights, source=args.weights, num_classes=outputs, **options)
    config = configs.base()
    config.scale = 1  # the network alone: its input is the view
    config.model.update(net=args.net, dsrl='none', **options)
    size = configs.parse_size(args.size)
    config.data.update(name='', size=size, eval_fit='resize', **preprocessing)
    config.model.num_classes = outputs
    config.lock()
    is_pose = inference.build_network(config, outputs).task == 'pose'
    keypoints = _joints(args.classes, outputs) if is_pose else None
    if keypoints:
        classes = dict(zip(keypoints.names, colors(keypoints)))
    else:
        classes = _classes(args.classes, outputs)
    wrapped = {kind: {'network': tree} for kind, tree in variables.items()}
    model = inference.Model(
        config, wrapped, list(classes), list(classes.values()), keypoints=keypoints
    )
    inference.check_size(model.network, config)
    report = model_directory.write(
        args.output, model, report={}, kind='converted', step=None, source=args.weights
    )
    tensors = len(jax.tree.leaves(variables))
    print(f'{tensors} tensors, {outputs} outputs of which {len(classes)} are classes')
    print(f'images prepared as {preparation}')
    print(f'model.jaxexport: arg-max equal at {report["stablehlo_agreement"]:.4%} of pixels')
    print(f'written to {args.output}')
    return 0


def _joints(name: str | None, outputs: int):
    """COCO's joints, of a network that has an output for each of them."""
    if name:
        expected = 'none for a network for pose, whose classes are joints'
        raise UserError('--classes', repr(name), expected, 'leave it out.')
    if outputs != len(COCO.names):
        found, expected = f'{outputs} outputs', f"{len(COCO.names)}: COCO's joints"
        raise UserError('--num_classes', found, expected, 'give weights trained on COCO.')
    return COCO


def _classes(name: str | None, outputs: int) -> dict[str, tuple[int, int, int]]:
    """Class names and colours; the outputs after them (a background) never win the arg-max."""
    if name in PALETTES:
        classes = PALETTES[name]
    elif name:
        if not pathlib.Path(name).is_file():
            expected = f'{one_of(PALETTES)}, or a file of lines `name red green blue`'
            raise UserError('--classes', repr(name), expected, nearest(name, PALETTES))
        classes = dict(zip(*read_classes(pathlib.Path(name)), strict=True))
    else:
        shades = (colorsys.hsv_to_rgb(0.618 * k % 1, 0.6, 0.9) for k in range(outputs))
        classes = {f'class {k}': tuple(int(255 * c) for c in rgb) for k, rgb in enumerate(shades)}
    if len(classes) > outputs:
        found = f'{len(classes)} classes'
        raise UserError('--classes', found, f'at most the {outputs} outputs', 'correct the list.')
    return classes
