"""A user's own data set as plain folders, with no code to write.

    ROOT/classes.txt               one class per line: `name red green blue`; index = line order
    ROOT/images/SPLIT/NAME.jpg     or .jpeg, .png
    ROOT/labels/SPLIT/NAME.png     class indices 0..K-1, 255 = ignore; 8-bit grey or palette

A split without a labels folder is unlabelled. Lines of classes.txt that start with # are comments.
"""

import pathlib

from dsrl_jax.data.sources import IMAGE_SUFFIXES, Pair, PairSource, index_reader
from dsrl_jax.errors import UserError


def build(config, split: str) -> PairSource:
    """The split of the folder `config.root`; mistakes in the listing are in `problems`."""
    root = pathlib.Path(config.root).expanduser()
    classes, colors = read_classes(root / 'classes.txt')
    images, labels = root / 'images' / split, root / 'labels' / split
    if not images.is_dir():
        splits = sorted(p.name for p in (root / 'images').glob('*') if p.is_dir())
        raise UserError(
            images,
            'no such folder',
            f'one folder per split (there are: {", ".join(splits) or "none"})',
            'check the root and the name of the split.',
        )
    pairs, problems = pair_by_stem(images, labels if labels.is_dir() else None)
    reader = index_reader(len(classes))
    return PairSource(tuple(pairs), split, classes, colors, reader, tuple(problems))


def read_classes(path: pathlib.Path) -> tuple[tuple, tuple]:
    """(names, colours) of a classes.txt; the first bad line raises UserError."""
    if not path.parent.is_dir():
        raise UserError(
            path.parent, 'no such folder', 'the root of the data set', 'check data.root.'
        )
    if not path.is_file():
        raise UserError(
            path,
            'no such file',
            'one class per line, `name red green blue`',
            'write the list of classes.',
        )
    names, colors = [], []
    for number, line in enumerate(path.read_text(encoding='utf-8-sig').splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith('#'):
            continue
        color = tuple(int(f) for f in fields[-3:] if f.isdecimal() and int(f) < 256)
        if len(fields) < 4 or len(color) != 3:
            raise UserError(
                f'{path}:{number}',
                repr(line.strip()),
                '`name red green blue` with colours 0..255',
                'correct the line.',
            )
        name = ' '.join(fields[:-3])
        if name in names:
            raise UserError(f'{path}:{number}', f'{name!r} twice', 'each class once', 'rename one.')
        names.append(name)
        colors.append(color)
    if not 1 <= len(names) <= 255:
        raise UserError(path, f'{len(names)} classes', '1 to 255 classes', 'correct the list.')
    return tuple(names), tuple(colors)


def pair_by_stem(images: pathlib.Path, labels: pathlib.Path | None, label_endings=('.png',)):
    """(pairs, problems): every image of a folder with the label NAME + ending that exists first.

    labels=None leaves the images unlabelled. Problems: no image, two images of one stem, an image
    without a label, a label without an image.
    """
    files = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    pairs, problems, seen = [], [], {}
    for path in files:
        if path.stem in seen:
            problems.append(
                UserError(
                    path,
                    f'a second image of the name {path.stem} (beside {seen[path.stem].name})',
                    'one image per name',
                    'remove or rename one of them.',
                )
            )
            continue
        seen[path.stem] = path
        label = None
        if labels is not None:
            candidates = [labels / (path.stem + ending) for ending in label_endings]
            label = next((c for c in candidates if c.is_file()), None)
            if label is None:
                problems.append(_no_label(path, candidates[0]))
                continue
        pairs.append(Pair(path.stem, path, label))
    if not files:
        problems.append(
            UserError(
                images,
                'no image',
                'files ending in ' + ', '.join(IMAGE_SUFFIXES),
                'put the images there or correct data.root.',
            )
        )
    if labels is not None:
        known = {stem + ending for stem in seen for ending in label_endings}
        problems += [
            UserError(
                path,
                'a label without an image',
                f'an image {path.stem} in {images}',
                'add the image or remove the label.',
            )
            for path in sorted(labels.glob('*.png'))
            if path.name not in known
        ]
    return pairs, problems


def _no_label(image: pathlib.Path, label: pathlib.Path) -> UserError:
    lossy = [s for s in ('.jpg', '.jpeg') if label.with_suffix(s).is_file()]
    if lossy:
        return UserError(
            label.with_suffix(lossy[0]),
            'a JPEG label',
            f'the PNG {label.name}',
            'write the label as PNG again from its source: JPEG changes class indices.',
        )
    return UserError(
        image, 'an image without a label', f'the file {label}', 'add the label or remove the image.'
    )
