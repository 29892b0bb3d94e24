"""`dsrl data check | show`: look at a data set before training on it."""

import pathlib

from PIL import Image

from dsrl_jax import config as configs
from dsrl_jax import data
from dsrl_jax.data import check, show
from dsrl_jax.errors import UserError


def flags(parser) -> None:
    """Flags of `dsrl data`."""
    parser.add_argument('action', choices=('check', 'show'))
    parser.add_argument('--dataset', help='camvid, folder or synthetic')
    parser.add_argument('--root', default='', help='folder of the data set')
    parser.add_argument('--config', help='take everything from this configuration instead')
    parser.add_argument('--split', help='one split, or several joined by +; default: all')
    parser.add_argument('--images', type=int, default=6, help='show: how many')
    parser.add_argument('--output', help='show: folder for contact_sheet.png and the images')


def main(args) -> int:
    """Run the action; 2 where the data set has problems."""
    config = _data_config(args)
    if args.action == 'check':
        splits = args.split.split('+') if args.split else _splits(config)
        problems = check.report_problems(check.check(config, splits))
        return 2 if problems else 0
    if not args.output:
        raise UserError('--output', 'nothing', 'a folder', 'say where to write.')
    output = pathlib.Path(args.output)
    if args.split:
        config.train_split = args.split
    sheet = show.contact_sheet(config, output / 'contact_sheet.png', rows=args.images)
    source = data.build(config, config.train_split)
    for index in range(min(args.images, len(source))):
        element = source[index]
        path = output / 'images' / f'{index:03d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(element['image']).save(path)
    print(f'{sheet}: {args.images} augmented views; images/ holds the first ones as they are')
    return 0


def _splits(config) -> list[str]:
    """Every split of the data set that is there."""
    named = [*config.train_split.split('+'), *config.eval_split.split('+')]
    root = pathlib.Path(config.root)
    others = [s for s in ('val', 'test') if any((root / f).exists() for f in (s, f'images/{s}'))]
    return list(dict.fromkeys([*named, *(others if config.root else [])]))


def _data_config(args):
    if bool(args.config) == bool(args.dataset):
        raise UserError(
            'command line', 'both or neither', '--dataset or --config', 'give one of them.'
        )
    if args.config:
        config = configs.load(args.config, args.overrides).data
    else:
        config = configs.load(args.dataset).data
    if args.root:
        config.root = args.root
    return config
