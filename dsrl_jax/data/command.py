"""`dsrl data check | pack | show | make-cityscapes`: look at a data set, pack it, or write one."""

import pathlib

from PIL import Image

from dsrl_jax import config as configs
from dsrl_jax import data
from dsrl_jax.data import check, cityscapes, make_cityscapes, pack, show
from dsrl_jax.errors import UserError


def flags(parser) -> None:
    """Flags of `dsrl data`."""
    parser.add_argument('action', choices=(*ACTIONS, 'make-cityscapes'))
    parser.add_argument('--dataset', help='camvid, cityscapes, folder or synthetic')
    parser.add_argument('--root', default='', help='folder of the data set')
    parser.add_argument('--config', help='take everything from this configuration instead')
    parser.add_argument('--split', help='one split, or several joined by +; default: all')
    parser.add_argument('--images', type=int, default=6, help='show, make-cityscapes: how many')
    parser.add_argument(
        '--size',
        help='HEIGHTxWIDTH; default: each its own (pack), 1024x2048 (make-cityscapes)',
    )
    parser.add_argument('--seed', type=int, default=0, help='make-cityscapes: which world is drawn')
    parser.add_argument(
        '--output', help='show: folder for contact_sheet.png and the images; pack: the new folder'
    )


def main(args) -> int:
    """Run the action; 2 where the data set has problems."""
    if args.action == 'make-cityscapes':
        return _make_cityscapes(args)
    if args.action != 'check' and not args.output:
        raise UserError('--output', 'nothing', 'a folder', 'say where to write.')
    return ACTIONS[args.action](args, _data_config(args))


def _check(args, config) -> int:
    splits = _splits(args, config)
    if config.name == 'cityscapes' and not args.split:  # a split that is not there is named too
        splits = list(dict.fromkeys([*splits, 'train', 'val', 'test']))
    problems = check.report_problems(check.check(config, splits))
    return 2 if problems else 0


def _pack(args, config) -> int:
    config.cache = False  # each element is read once
    size = configs.parse_size(args.size) if args.size else None
    sources = {split: data.build(config, split) for split in _splits(args, config)}
    pack.write(sources, args.output, name=config.name, size=size)
    if size:
        print(f'labels are {args.size} now: scores on this copy are taken at that size')
    print(f'read it with --config.data.name=packed --config.data.root={args.output}')
    return 0


def _show(args, config) -> int:
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


def _make_cityscapes(args) -> int:
    other = {'--dataset': args.dataset, '--config': args.config, '--output': args.output}
    given = [name for name, value in other.items() if value]
    given += [f'--config.{field}' for field, _ in args.overrides]
    if given or not args.root:
        raise UserError(
            'make-cityscapes',
            given[0] if given else 'no --root',
            '--root=DIR, and --images, --split, --size, --seed where wanted',
            'leave it out.' if given else 'say where to write.',
        )
    splits = args.split.split('+') if args.split else tuple(make_cityscapes.CITIES)
    size = configs.parse_size(args.size) if args.size else cityscapes.SIZE
    make_cityscapes.make(args.root, args.images, splits=splits, size=size, seed=args.seed)
    print(f'read it with --config=cityscapes --config.data.root={args.root}')
    return 0


ACTIONS = {'check': _check, 'pack': _pack, 'show': _show}


def _splits(args, config) -> list[str]:
    """The splits asked for, or every one of the data set that is there."""
    if args.split:
        return args.split.split('+')
    named = [*config.train_split.split('+'), *config.eval_split.split('+')]
    root = pathlib.Path(config.root)
    places = ('{}', 'images/{}', '{}.json', 'leftImg8bit/{}')
    others = [
        s
        for s in ('val', 'test', 'train_extra')
        if any((root / p.format(s)).exists() for p in places)
    ]
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
