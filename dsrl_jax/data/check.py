"""Reads a whole data set before a training run does, and names every file that would break it."""

import dataclasses

import numpy as np

from dsrl_jax import data
from dsrl_jax.data.frequencies import count, spaced, summarize
from dsrl_jax.data.person_boxes import list_boxes
from dsrl_jax.errors import UserError


@dataclasses.dataclass
class Report:
    """Result of `check`: all `problems`; `splits`: split -> counts as of `class_frequencies`.

    `notes` say what of each split is read, where a source has more than one form.
    """

    classes: tuple[str, ...] = ()
    problems: list[UserError] = dataclasses.field(default_factory=list)
    splits: dict[str, dict] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    images: int = 0
    counted: str = 'images'  # what the counts of `splits` are of


def check(config, splits=None, boxes: str = '') -> Report:
    """Reads every file of `splits` (None: those of train_split and eval_split) of a data config,
    and of the images that join the training unlabelled; of persons also the file of detected
    `boxes` of the split that is evaluated.

    Does not stop at a bad file: each becomes one UserError in the report's `problems`.
    """
    report = Report()
    train, evaluated = config.train_split.split('+'), config.eval_split.split('+')
    for split in splits or dict.fromkeys(train + evaluated):
        try:
            source = data.list_split(config, split)
        except UserError as problem:
            report.problems.append(problem)
            continue
        report.classes = tuple(source.classes)
        report.problems += [*getattr(source, 'problems', ()), *getattr(source, 'differences', ())]
        if note := getattr(source, 'note', ''):
            report.notes.append(f'{split}: {note}')
        if hasattr(source, 'keypoints'):
            _check_persons(report, source, split, boxes if split in evaluated else '')
            continue
        _check_split(report, source, split, config, split in train, split in evaluated)
    _check_unlabelled(report, config)
    return report


def check_sample(source, n: int = 4) -> None:
    """Reads `n` evenly spaced elements; raises UserError for the first that cannot be trained on.

    What a training run calls by itself before it starts; `check` reads everything.
    """
    seen = []
    for index in spaced(len(source), n):
        element = source[index]
        if 'joints' in element:
            continue
        where = source.files(index).get('label', element['name'])
        if 'label' not in element:
            raise _unlabelled(source.split, element['name'])
        seen.append((where, count(element['label'], source.num_classes)))
    problems = _masks(seen, source.num_classes)
    if problems:
        raise problems[0]


def report_problems(report: Report, write=print) -> int:
    """Prints the problems, a table of pixel shares, and the sum; gives the number of problems."""
    for line in [*report.problems, *report.notes]:
        write(str(line))
    columns = list(report.splits)
    if columns:
        width = max(12, *(len(name) + 2 for name in report.classes))
        head = ''.join(f'{split + " %":>12}{report.counted:>8}' for split in columns)
        persons = report.counted == 'persons'
        write(f'{"joint" if persons else "class":<{width}}{head}')
        last = '(unlabelled)' if persons else '(ignored)'
        for index, name in enumerate([*report.classes, last]):
            cells = (_cells(report.splits[split], index) for split in columns)
            write(f'{name:<{width}}' + ''.join(cells))
    number = len(report.problems)
    write(f'{report.images} images, {number} problem{"" if number == 1 else "s"}')
    return number


def _check_split(report, source, split, config, trained, evaluated):
    seen, largest, read, sizes = [], (0, 0), 0, {}
    for index in range(len(source)):
        element, problems = _read(source, index)
        report.problems += problems
        if element is None:
            continue
        read += 1
        size = element['image'].shape[:2]
        largest = tuple(np.maximum(largest, size).tolist())
        sizes.setdefault(size, []).append(index)
        if 'label' in element:
            where = source.files(index).get('label', element['name'])
            seen.append((where, count(element['label'], source.num_classes)))
    report.images += len(source)
    report.splits[split] = summarize([counts for _, counts in seen], source.num_classes)
    report.problems += [*_masks(seen, source.num_classes), *_sizes(source, sizes)]
    if trained and read and not seen:
        report.problems.append(_unlabelled(split, split))
    size = tuple(config.eval_size or config.size)
    if evaluated and config.eval_fit == 'pad' and (largest[0] > size[0] or largest[1] > size[1]):
        report.problems.append(
            UserError(
                'data.eval_size',
                f'{size[0]}x{size[1]} (HxW)',
                f'room for the images of {split}, up to {largest[0]}x{largest[1]}',
                'enlarge it or set data.eval_fit=resize.',
            )
        )


def _check_persons(report, source, split, boxes):
    """Every image once; of the joints how many are labelled, as of classes the pixels."""
    images = set()
    for index in range(len(source)):
        image = source.files(index).get('image')
        if image in images:
            continue
        try:
            element = source[index]
            images.add(image or int(element['image_id']))
        except UserError as problem:
            images.add(image)
            if problem.where not in {known.where for known in report.problems}:  # listed as missing
                report.problems.append(problem)
    report.images += len(images)
    labelled = source.labelled_joints()
    report.counted = 'persons'
    report.splits[split] = {
        'pixels': labelled.sum(0),
        'presence': labelled.sum(0),
        'ignored': int((~labelled).sum()),
        'images': int((~labelled).any(1).sum()),
    }
    if boxes:
        try:
            detected, problems = list_boxes(source, boxes)
        except UserError as problem:
            report.problems.append(problem)
            return
        report.problems += problems
        report.notes.append(f'{split}: {detected.note}')


def _check_unlabelled(report, config):
    """Problems of the images that join the training without labels."""
    try:
        sources = data.unlabelled(config)
    except UserError as problem:
        report.problems.append(problem)
        return
    for source in sources:
        if source.split in report.splits:
            continue  # read above
        report.images += len(source)
        report.notes.append(f'{source.split}: {len(source)} images join the training unlabelled')
        for index in range(len(source)):
            try:
                source[index]
            except UserError as problem:
                report.problems.append(problem)


def _read(source, index):
    """(element or None, problems): a broken image does not hide its broken label."""
    try:
        return source[index], []
    except UserError as problem:
        problems = [problem]
    label = source.files(index).get('label')
    if label is not None and problems[0].where != str(label):
        try:
            source.read_label(label)
        except UserError as problem:
            problems.append(problem)
    return None, problems


def _sizes(source, sizes):
    """Problems of images not of the public set's size, one for each other size."""
    public = getattr(source, 'public_size', None)
    for size, found in sizes.items():
        if public and size != public:
            more = f', as {len(found) - 1} more of {source.split}' if len(found) > 1 else ''
            yield UserError(
                source.files(found[0])['image'],
                f'an image of {size[0]}x{size[1]} (HxW){more}',
                f'{public[0]}x{public[1]}, the size of the public set',
                'restore the original; scores are taken at the size that is there.',
            )


def _masks(seen, num_classes):
    """Problems of labels that are black and white masks: 0 and 255 and never another class.

    One image with class 0 and ignored pixels only is legal; a whole set of them is a mask.
    """
    black_and_white = [where for where, counts in seen if counts[0] and counts[-1]]
    if num_classes < 2 or not black_and_white or any(c[1:-1].any() for _, c in seen):
        return []
    return [
        UserError(
            where,
            'only the values 0 and 255 (a black and white mask), as in every label of the split',
            f'class indices 0..{num_classes - 1}, where 255 means ignore',
            'divide the mask by 255 or write an index map.',
        )
        for where in black_and_white
    ]


def _unlabelled(split, where):
    return UserError(
        where,
        'images without labels',
        f'a label for every image of the training split {split}',
        'add the labels or choose another split.',
    )


def _cells(counts, index):
    total = max(int(counts['pixels'].sum()) + counts['ignored'], 1)
    if index == len(counts['pixels']):
        return f'{100 * counts["ignored"] / total:12.2f}{counts["images"]:8d}'
    return f'{100 * int(counts["pixels"][index]) / total:12.2f}{int(counts["presence"][index]):8d}'
