"""`dsrl data check | pack | tfds | show | make-cityscapes`: look at a data set, copy it, or write
one."""

import pathlib

from PIL import Image

from dsrl_jax import config as configs
from dsrl_jax import data
from dsrl_jax.data import check, cityscapes, make_cityscapes, pack, person_show, show, tfds
from dsrl_jax.errors import UserError


def flags(parser) -> None:
    """Flags of `dsrl data`."""
    parser.add_argument('action', choices=tuple(ACTIONS))
    parser.add_argument('--dataset', help='camvid, cityscapes, coco, folder or synthetic')
    parser.add_argument('--root', default='', help='folder of the data set')
    parser.add_argument('--config', help='take everything from this configuration instead')
    parser.add_argument('--split', help='one split, or several joined by +; default: all')
    parser.add_argument('--images', type=int, help='show, make-cityscapes: how many (6)')
    parser.add_argument(
        '--size',
        help='HEIGHTxWIDTH; default: each its own (pack), 1024x2048 (make-cityscapes)',
    )
    parser.add_argument('--seed', type=int, help='make-cityscapes: which world is drawn (0)')
    parser.add_argument(
        '--output', help='show: folder for contact_sheet.png and the images; pack, tfds: a new one'
    )


def main(args) -> int:
    """Run the action; 2 where the data set has problems."""
    action, reads = ACTIONS[args.action]
    given = [f'--{name}' for name in FLAGS if getattr(args, name) not in (None, '')]
    if 'config' not in reads:
        given += [f'--config.{field}' for field, _ in args.overrides]
    unread = [flag for flag in given if flag.removeprefix('--') not in reads]
    if unread:
        expected = ', '.join(f'--{name}' for name in reads)
        raise UserError(f'data {args.action}', unread[0], f'of {expected}', 'leave it out.')
    if 'output' in reads and not args.output:
        raise UserError('--output', 'nothing', 'a folder', 'say where to write.')
    return action(args)


def _check(args) -> int:
    whole = _config(args)
    config = whole.data
    splits = _splits(args, config)
    if args.split:
        config.unlabelled = ''  # these splits and nothing else
    else:  # a split that every copy has is named too where it is not there
        splits = list(dict.fromkeys([*splits, *data.EXPECTED_SPLITS.get(config.name, ())]))
    problems = check.report_problems(check.check(config, splits, whole.pose.boxes))
    return 2 if problems else 0


def _pack(args) -> int:
    config = _data_config(args)
    size = configs.parse_size(args.size) if args.size else None
    pack.write(_sources(args, config), args.output, name=config.name, size=size)
    if size:
        print(f'labels are {args.size} now: scores on this copy are taken at that size')
    print(f'read it with --config.data.name=packed --config.data.root={args.output}')
    return 0


def _tfds(args) -> int:
    config = _data_config(args)
    tfds.write(_sources(args, config), args.output, source_name=config.name)
    print(f'read it with --config.data.name=tfds --config.data.root={args.output}')
    return 0


def _show(args) -> int:
    whole, output = _config(args), pathlib.Path(args.output)
    config = whole.data
    rows = IMAGES if args.images is None else args.images
    if args.split:
        config.train_split = args.split
    source, path = data.build(config, config.train_split), output / 'contact_sheet.png'
    if hasattr(source, 'keypoints'):
        sheet = person_show.contact_sheet(whole, source, path, rows=rows)
    else:
        sheet = show.contact_sheet(config, path, rows=rows)
    for index in range(min(rows, len(source))):
        element = source[index]
        path = output / 'images' / f'{index:03d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(element['image']).save(path)
    print(f'{sheet}: {rows} rows of augmented views; images/ holds the first ones as they are')
    return 0


def _make_cityscapes(args) -> int:
    if not args.root:
        expected = '--root=DIR, and --images, --split, --size, --seed where wanted'
        raise UserError('make-cityscapes', 'no --root', expected, 'say where to write.')
    splits = args.split.split('+') if args.split else tuple(make_cityscapes.CITIES)
    size = configs.parse_size(args.size) if args.size else cityscapes.SIZE
    images = IMAGES if args.images is None else args.images
    make_cityscapes.make(args.root, images, splits=splits, size=size, seed=args.seed or 0)
    print(f'read it with --config=cityscapes --config.data.root={args.root}')
    return 0


IMAGES = 6  # where the command does not say
FLAGS = ('dataset', 'root', 'config', 'split', 'images', 'size', 'seed', 'output')
_SET = ('dataset', 'root', 'config', 'split')  # what names a data set

# Action -> (function, the flags it reads).
ACTIONS = {
    'check': (_check, _SET),
    'pack': (_pack, (*_SET, 'size', 'output')),
    'tfds': (_tfds, (*_SET, 'output')),
    'show': (_show, (*_SET, 'images', 'output')),
    'make-cityscapes': (_make_cityscapes, ('root', 'images', 'split', 'size', 'seed')),
}


def _sources(args, config) -> dict:
    """{split: source} of what is to be copied."""
    config.cache = False  # each element is read once
    sources = {split: data.build(config, split) for split in _splits(args, config)}
    if any(hasattr(source, 'keypoints') for source in sources.values()):
        expected = 'images with label maps'
        raise UserError(config.name, 'persons with joints', expected, 'read it as it is.')
    return sources


def _splits(args, config) -> list[str]:
    """The splits asked for, or every one of the data set that is there."""
    if args.split:
        return args.split.split('+')
    named = [*config.train_split.split('+'), *config.eval_split.split('+')]
    root = pathlib.Path(config.root)
    places = ('{}', 'images/{}', '{}.json', 'leftImg8bit/{}', tfds.SHARD)
    others = [
        s
        for s in ('val', 'test', 'train_extra')
        if any(any(root.glob(p.format(s))) for p in places)
    ]
    return list(dict.fromkeys([*named, *(others if config.root else [])]))


def _data_config(args):
    return _config(args).data


def _config(args):
    if bool(args.config) == bool(args.dataset):
        raise UserError(
            'command line', 'both or neither', '--dataset or --config', 'give one of them.'
        )
    if args.config:
        config = configs.load(args.config, args.overrides)
    else:
        config = configs.load(args.dataset, args.overrides)
    if args.root:
        config.data.root = args.root
    return config
