"""Packed splits: the same elements and batches as before, and every damage named."""

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
from data_settings import config
from PIL import Image
from refusals import TINY, refused

from dsrl_jax import cli, data
from dsrl_jax.data import geometry, pack, pipeline
from dsrl_jax.data.sources import image_size
from dsrl_jax.errors import UserError

SIZES = [(16, 24), (18, 24), (16, 30), (20, 22), (16, 24)]
CLASSES = 'road 128 64 128\nsky 70 130 180\ncar 0 0 142\n'


@pytest.fixture
def root(tmp_path):
    """A folder of three classes, images of several sizes; split `bare` has no labels."""
    root = tmp_path / 'set'
    for split in ('train', 'val', 'bare'):
        for number, size in enumerate(SIZES):
            rng = np.random.default_rng([number, len(split)])
            kinds = {'images': rng.integers(0, 256, (*size, 3), np.uint8)}
            if split != 'bare':
                kinds['labels'] = rng.choice(np.array([0, 1, 2, 255], np.uint8), size)
            for kind, array in kinds.items():
                path = root / kind / split / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / 'classes.txt').write_text(CLASSES)
    return root


@pytest.fixture
def packed(root, tmp_path, monkeypatch):
    """That folder, packed in shards of two images."""
    monkeypatch.setattr(pack, 'SHARD_BYTES', 2 * 4 * 16 * 24)
    output = tmp_path / 'packed'
    sources = {split: data.build(config(root), split) for split in ('train', 'val', 'bare')}
    pack.write(sources, output, name='folder', say=lambda line: None)
    return output


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_elements_are_the_same(root, packed):
    assert len(list(packed.glob('train-*-of-00003.array_record'))) == 3
    for split in ('train', 'val', 'bare', 'train+val'):
        old = data.build(config(root), split)
        new = data.build(config(packed, 'packed'), split)
        assert len(new) == len(old) and new.num_classes == 3 and new.ignore == 255
        assert new.classes == old.classes and new.colors == old.colors
        assert all(same(old[i], new[i]) for i in range(len(old)))
        assert [image_size(new, i) for i in range(len(new))] == [
            SIZES[i % 5] for i in range(len(new))
        ]
        with pytest.raises(IndexError):
            new[len(new)]


def test_batches_are_the_same(root, packed):
    """Of training and of evaluation, pickled as for a worker process after a first read."""
    taken = []
    for where, name in ((root, 'folder'), (packed, 'packed')):
        settings = config(where, name)
        source = data.build(settings, 'train')
        assert source[0]['image'].shape == (16, 24, 3)
        source = pickle.loads(pickle.dumps(source))
        batches = pipeline.train_batches(source, settings, seed=3, start=2, batch_size=4)
        evaluated = data.build(settings, 'val')
        taken.append(
            [
                *itertools.islice(batches, 4),
                *pipeline.eval_batches(evaluated, settings, batch_size=4),
            ]
        )
        batches.close()
    assert len(taken[0]) == 6
    assert all(same(old, new) for old, new in zip(*taken, strict=True))


def test_packing_at_a_size(root, tmp_path):
    """The filter of the training views; half of one image, all of the others refused."""
    source = data.build(config(root), 'train')
    element = source[0]
    output = tmp_path / 'half'
    only = dataclasses.replace(source, pairs=source.pairs[:1])
    pack.write({'train': only}, output, name='folder', size=(8, 12), say=lambda line: None)
    (found,) = data.build(config(output, 'packed'), 'train')
    image, label = geometry.scaled_crop(element['image'], element['label'], (8, 12), (0, 0, 8, 12))
    assert np.array_equal(found['image'], image) and np.array_equal(found['label'], label)
    assert set(np.unique(found['label'])) <= set(np.unique(element['label']))
    wide = tmp_path / 'wide'
    with pytest.raises(UserError, match='--size: found 8x12 for 1 of 18x24'):
        pack.write({'train': source}, wide, name='folder', size=(8, 12), say=lambda line: None)
    assert not list(tmp_path.glob('wide*'))


def test_what_is_there_is_kept(root, packed, tmp_path, capsys):
    before = {path: path.read_bytes() for path in packed.iterdir()}
    argv = ('data', 'pack', '--dataset=folder', f'--root={root}')
    refused(capsys, [*argv, f'--output={packed}'], str(packed), 'exists', 'remove it')
    assert before == {path: path.read_bytes() for path in packed.iterdir()}
    (tmp_path / 'new.partial').mkdir()
    refused(capsys, [*argv, f'--output={tmp_path / "new"}'], 'new.partial', 'exists')
    refused(capsys, [*argv, f'--output={tmp_path / "n"}', '--size=8'], '--size', 'HEIGHTxWIDTH')
    refused(capsys, argv, '--output', 'say where to write')
    image = root / 'images/train/3.png'
    image.write_bytes(image.read_bytes()[:200])
    refused(capsys, [*argv, f'--output={tmp_path / "n"}'], '3.png', 'damaged')
    assert not list(tmp_path.glob('n[.]*')) and not (tmp_path / 'n').exists()


def shard(packed, number):
    return packed / f'train-{number:05d}-of-00003.array_record'


def read_all(packed):
    source = data.build(config(packed, 'packed'), 'train')
    return [source[i] for i in range(len(source))]


def flip_byte(path):
    """In the middle of the pixels of the shard's first record."""
    content = bytearray(path.read_bytes())
    record = content.index(b'(\xb5/\xfd')  # where a zstd frame begins
    content[record + 300] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('spoil', 'named'),
    [
        (lambda p: shard(p, 1).unlink(), 'train-00001.*no such file.*a shard of train'),
        (lambda p: shard(p, 1).write_bytes(b''), 'train-00001.*0 records for 2'),
        (lambda p: shard(p, 1).write_bytes(b'text' * 999), 'train-00001.*0 records for 2'),
        (lambda p: shard(p, 1).write_bytes(shard(p, 0).read_bytes()), 'other pixels.* of 2;'),
        (lambda p: flip_byte(shard(p, 1)), 'train-00001.*found a damaged shard'),
        (lambda p: (p / 'train.json').write_text('{'), 'train.json.*no JSON'),
        (lambda p: (p / 'train.json').write_text('[]'), 'train.json.*cannot be used'),
        (lambda p: (p / 'train.json').unlink(), r'train.json.*\(there are: bare, val\)'),
    ],
    ids=['gone', 'empty', 'text', 'swapped', 'damaged', 'cut index', 'other index', 'no index'],
)
def test_damage_is_named(packed, spoil, named):
    assert len(read_all(packed)) == 5
    pack._reader.cache_clear()  # as in a new process
    spoil(packed)
    with pytest.raises(UserError, match=named):
        read_all(packed)


def test_an_index_of_another_version_is_refused(packed):
    path = packed / 'train.json'
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {'format': 'dsrl_jax packed split, version 9'}))
    with pytest.raises(UserError, match=r'version 9.*version 1'):
        read_all(packed)


def test_from_the_command_line_to_a_trained_network(tmp_path, capsys):
    output = tmp_path / 'packed'
    argv = ['data', 'pack', f'--config={TINY}', '--split=train+val', f'--output={output}']
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert 'train: 8 images' in said and '--config.data.name=packed' in said
    given = [f'--config={TINY}', f'--config.data.root={output}', '--config.data.name=packed']
    assert cli.main(['data', 'check', *given]) == 0
    assert '16 images, 0 problems' in capsys.readouterr().out
    assert cli.main(['train', *given, f'--workdir={tmp_path / "w"}']) == 0
    assert '8 images of val' in capsys.readouterr().out
