"""Data: sources of labelled images, chosen by name, and what turns them into batches.

Nothing below this folder imports jax or a model: worker processes must not open a device.
"""

import pathlib

from dsrl_jax.data import camvid, cityscapes, coco, folder, pack, tfds
from dsrl_jax.data.labelled import join_unlabelled, keep_labels
from dsrl_jax.data.sources import Cached, Joined
from dsrl_jax.data.stick_figures import StickFigureSource
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError, lookup

__all__ = [
    'EXPECTED_SPLITS',
    'SOURCES',
    'build',
    'join_unlabelled',
    'keep_labels',
    'list_split',
    'unlabelled',
]


def build(config, split: str):
    """The source of a split, or of several joined by '+', of the data set `config.name`.

    With `config.cache` every element stays in memory once decoded (each worker keeps its own
    copy): meant for splits of a few hundred megabytes, such as CamVid. Raises UserError for the
    first mistake found while the files are listed.
    """
    parts = [_one(config, part) for part in split.split('+')]
    source = parts[0] if len(parts) == 1 else Joined(parts, split)
    return Cached(source) if config.cache else source


def list_split(config, split: str):
    """The source of one split as it was listed, its `problems` not raised yet."""
    return lookup(SOURCES, config.name, 'data.name')(config, split)


def unlabelled(config) -> list:
    """The sources that `config.unlabelled` names, joined by '+', for training beside the others.

    A name with a / is a folder of images, any other a split of the data set. UserError for the
    first mistake, and for a split that is trained on already.
    """
    named = config.get('unlabelled', '')
    if named and pathlib.Path(named).expanduser().is_dir() and '/' in named:
        return [folder.list_images(named)]  # a path may hold a + of its own
    sources = []
    for part in named.split('+') if named else ():
        if part in config.train_split.split('+'):
            expected = 'a split beside those of data.train_split'
            raise UserError('data.unlabelled', repr(part), expected, 'name another.')
        sources.append(folder.list_images(part) if '/' in part else _one(config, part))
    return sources


def _synthetic(config, split):
    return SyntheticSource(
        split, size=tuple(config.size), seed=config.seed, length=config.length or None
    )


def _stick_figures(config, split):
    return StickFigureSource(
        split, size=tuple(config.size), seed=config.seed, length=config.length or None
    )


SOURCES = {
    'camvid': camvid.build,
    'cityscapes': cityscapes.build,
    'coco': coco.build,
    'folder': folder.build,
    'packed': pack.build,
    'stick_figures': _stick_figures,
    'synthetic': _synthetic,
    'tfds': tfds.build,
}

# Splits that every copy of a public set has; a check names those that are not there.
EXPECTED_SPLITS = {'cityscapes': cityscapes.SPLITS}


def _one(config, split):
    source = list_split(config, split)
    problems = getattr(source, 'problems', ())
    if problems:
        raise problems[0]
    if not len(source):
        raise UserError(f'split {split}', 'no image', 'at least one', 'choose another split.')
    if note := getattr(source, 'note', ''):
        print(f'{config.name} {split}: {note}')
    return source
