"""`dsrl predict`: class maps, or the skeletons of people, on pictures of any size."""

import pathlib

from dsrl_jax import inference, pose_inference, pose_scores
from dsrl_jax.data import images, picture_boxes
from dsrl_jax.errors import UserError
from dsrl_jax.report.overlay import save_png
from dsrl_jax.report.skeleton import CONFIDENT

PICTURES = ('.png', '.jpg', '.jpeg')


def flags(parser) -> None:
    """Flags of `dsrl predict`."""
    parser.add_argument('--model', required=True, help='a directory written by `dsrl export`')
    parser.add_argument('--output', required=True, help='folder for the results')
    parser.add_argument(
        '--no-resize',
        action='store_true',
        help="segmentation: keep every picture's own size, padded",
    )
    parser.add_argument(
        '--boxes',
        metavar='FILE',
        help='poses: the people of every picture, a JSON list of {"file_name": "street.jpg", '
        '"bbox": [x, y, width, height]}, with "score" and "category_id" where a detector gives '
        'them (others than 1 are passed over); "image_id": 785 in the place of the name is '
        '000000000785.jpg. Default: one person, the whole picture',
    )
    parser.add_argument('images', nargs='+', help='pictures, or folders of them')


def main(args) -> int:
    """Write what the network of the model finds on every picture: see PREDICT."""
    model = inference.load(args.model)
    PREDICT[model.network.task](args, model, pictures(args.images), pathlib.Path(args.output))
    print(f'written to {args.output}')
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


def _classes(args, model, paths, output) -> None:
    """NAME_ids.png, NAME_colors.png and NAME_overlay.png."""
    if args.boxes:
        found, expected = 'a network for segmentation', 'one for pose'
        raise UserError('--boxes', found, expected, 'leave it out.')
    for path in paths:
        result = model.predict(images.read_image(path), resize=not args.no_resize)
        save_png(result.labels, output / f'{path.stem}_ids.png')
        save_png(result.colors(), output / f'{path.stem}_colors.png')
        save_png(result.overlay(), output / f'{path.stem}_overlay.png')
        top = ', '.join(f'{k} {v:.0%}' for k, v in list(result.shares().items())[:4])
        print(f'{path}: {top}')


def _poses(args, model, paths, output) -> None:
    """NAME_overlay.png, and results.json of all pictures: COCO results with their file_name."""
    if args.no_resize:
        found, expected = 'a network for pose', 'one for segmentation'
        raise UserError('--no-resize', found, expected, 'leave it out.')
    people = picture_boxes.read(args.boxes, paths) if args.boxes else picture_boxes.whole(paths)
    entries = []
    for path, (image_id, boxes, scores) in zip(paths, people):
        result = pose_inference.predict(model, images.read_image(path), boxes, scores)
        save_png(result.overlay(), output / f'{path.stem}_overlay.png')
        found = [{**entry, 'file_name': path.name} for entry in result.to_coco(image_id)]
        entries += found
        count = f'{len(found)} people in {len(boxes)} boxes' if boxes else 'the whole picture'
        joints = int((result.confidence > CONFIDENT).sum())
        print(f'{path}: {count}, {joints} joints above {CONFIDENT:g}')
    pose_scores.write(output / 'results.json', entries)


# What is written, by the task of the model's network.
PREDICT = {'segmentation': _classes, 'pose': _poses}
