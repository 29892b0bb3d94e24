"""Predictions as the Cityscapes server takes them: regular ids, official names, one archive.

    DIR/CITY_000000_000019_pred_labelIds.png     uint8 [1024, 2048], 0 where no class was found
    DIR/submission.zip                           all of them; of a whole public split alone

The folder appears when all of it is written and read again.
"""

import pathlib
import shutil
import zipfile

import numpy as np

from dsrl_jax import cityscapes_scores
from dsrl_jax.data import cityscapes
from dsrl_jax.data.images import read_pixels
from dsrl_jax.data.sources import element_name, image_size
from dsrl_jax.errors import UserError
from dsrl_jax.report.overlay import save_png

ARCHIVE = 'submission.zip'
_ENDING = '_pred_labelIds.png'


def start(folder, source, *, partial: bool) -> pathlib.Path:
    """An empty folder to write into until `finish`; UserError where the server would refuse.

    That is any number of images but the public one, and any size but 1024x2048. With `partial`
    the files of what is there are written, at the images' own sizes, and no archive.
    """
    folder = pathlib.Path(folder).expanduser()
    if not cityscapes_scores.is_cityscapes(source):
        found, expected = f'{len(source.classes)} other classes', 'the 19 of Cityscapes'
        raise UserError('--submission', found, expected, 'leave it out.')
    if not partial:
        _check_count(source)
        _check_sizes(source)
    growing = _growing(folder)
    for path in (folder, growing):
        if path.exists():
            remedy = 'remove it or choose another --submission.'
            raise UserError(path, 'something that exists', 'a new folder', remedy)
    try:
        growing.mkdir(parents=True)
    except OSError as error:
        remedy = 'choose another --submission.'
        raise UserError(folder, str(error), 'a folder to write', remedy) from None
    return folder


def write(folder: pathlib.Path, source, index: int, found) -> None:
    """One class map, train ids [H,W] (255: none), as regular ids."""
    pixels = cityscapes.to_label_ids(np.asarray(found))
    save_png(pixels, _growing(folder) / file_name(source, index))


def finish(folder: pathlib.Path, source, *, partial: bool) -> dict:
    """Read every file again, pack them unless `partial`, give the folder its name.

    Returns its path and, where there are labels, the `scores` of the files. UserError where a file
    is missing, foreign, or not as the server wants it.
    """
    growing = _growing(folder)
    names = {file_name(source, index) for index in range(len(source))}
    there = {path.name for path in growing.iterdir()}
    if there != names:
        found = f'{len(there - names)} foreign files and {len(names - there)} missing'
        raise UserError(growing, found, f'one file for each of {len(names)} images', 'run again.')
    result = {'folder': str(folder), 'files': len(names)}
    if (scores := _score(growing, source)) is not None:
        result['scores'] = scores
    if not partial:
        with zipfile.ZipFile(growing / ARCHIVE, 'w') as archive:  # PNG is compressed already
            for name in sorted(names):
                archive.write(growing / name, name)
        result['archive'] = str(folder / ARCHIVE)
    growing.rename(folder)
    return result


def discard(folder: pathlib.Path) -> None:
    """Remove what was written so far of a submission that will not be finished."""
    shutil.rmtree(_growing(folder), ignore_errors=True)


def file_name(source, index: int) -> str:
    """CITY_SEQUENCE_FRAME and an ending: how the official script finds the file of an image."""
    return element_name(source, index) + _ENDING


def _growing(folder):
    return folder.with_name(folder.name + '.partial')


def _check_count(source):
    public = cityscapes.IMAGES.get(source.split)
    # The source knows how it differs from the public set; one that does not is counted here.
    lacking = getattr(source, 'differences', public is None or len(source) != public)
    if public is None or lacking:
        known = ', '.join(f'{name} {number}' for name, number in cityscapes.IMAGES.items())
        expected = f'a whole public split ({known})' if public is None else f'{public} images'
        raise UserError(
            '--submission',
            f'{len(source)} images of {source.split}',
            expected,
            'restore the others, or add --partial for files without an archive.',
        )


def _check_sizes(source):
    public = getattr(source, 'public_size', None) or cityscapes.SIZE
    for index in range(len(source)):
        if (size := tuple(image_size(source, index))) != tuple(public):
            raise UserError(
                source.files(index).get('image', element_name(source, index)),
                f'an image of {size[0]}x{size[1]} (HxW)',
                f'{public[0]}x{public[1]}, as of all images of the public set',
                'restore it, or add --partial for files without an archive.',
            )


def _score(folder, source):
    """Scores of the written files against the labels; None where there are none."""
    total, instances = cityscapes_scores.empty(), cityscapes_scores.has_instances(source)
    labelled = False
    for index in range(len(source)):
        path = folder / file_name(source, index)
        pixels, size = read_pixels(path), tuple(image_size(source, index))
        if pixels.shape != size or not set(np.unique(pixels)) <= {0, *cityscapes.LABEL_IDS}:
            found = f'{pixels.dtype} {pixels.shape} up to {pixels.max()}'
            raise UserError(path, found, f'regular ids, {size[0]}x{size[1]}', 'run again.')
        files = source.files(index)  # none of its own where the set is packed
        if files and 'label' not in files:
            continue  # the image need not be decoded
        if (label := source[index].get('label')) is not None:
            labelled = True
            total += cityscapes_scores.count_element(
                source, index, pixels, label, instances=instances
            )
    return cityscapes_scores.scores(total, instances=instances) if labelled else None
