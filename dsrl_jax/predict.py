"""`dsrl predict`: class maps, colours and overlays of pictures of any size."""

import pathlib

from dsrl_jax import inference
from dsrl_jax.data import sources
from dsrl_jax.errors import UserError
from dsrl_jax.report.overlay import save_png

PICTURES = ('.png', '.jpg', '.jpeg')


def flags(parser) -> None:
    """Flags of `dsrl predict`."""
    parser.add_argument('--model', required=True, help='a directory written by `dsrl export`')
    parser.add_argument('--output', required=True, help='folder for the results')
    parser.add_argument(
        '--no-resize', action='store_true', help="keep every picture's own size, padded"
    )
    parser.add_argument('images', nargs='+', help='pictures, or folders of them')


def main(args) -> int:
    """Write NAME_ids.png, NAME_colors.png and NAME_overlay.png for every picture."""
    model = inference.load(args.model)
    output = pathlib.Path(args.output)
    for path in pictures(args.images):
        result = model.predict(sources.read_image(path), resize=not args.no_resize)
        save_png(result.labels, output / f'{path.stem}_ids.png')
        save_png(result.colors(), output / f'{path.stem}_colors.png')
        save_png(result.overlay(), output / f'{path.stem}_overlay.png')
        top = ', '.join(f'{k} {v:.0%}' for k, v in list(result.shares().items())[:4])
        print(f'{path}: {top}')
    print(f'written to {output}')
    return 0


def pictures(names: list[str]) -> list[pathlib.Path]:
    """The files named, folders opened; two of the same stem would overwrite each other."""
    paths = []
    for path in map(pathlib.Path, names):
        if path.is_dir():
            paths += sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(path, 'no such file', 'a picture', 'correct the path.')
    if not paths:
        raise UserError(names[0], 'no pictures', ' or '.join(PICTURES), 'name a picture.')
    seen = {}
    for path in paths:
        if path.stem in seen:
            remedy = 'predict them into different folders.'
            raise UserError(path, f'the name of {seen[path.stem]} again', 'distinct names', remedy)
        seen[path.stem] = path
    return paths
