"""TFDS without TensorFlow: one set as files, packed shards and TFDS gives the same batches."""

import itertools
import pickle

import numpy as np
import pytest
from city_scenes import SIZE, config, generate
from refusals import refused

from dsrl_jax import cli, data
from dsrl_jax.data import pipeline, tfds
from dsrl_jax.data.sources import image_size
from dsrl_jax.errors import UserError


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    """{data.name: root} of one generated set in its three forms, copied by the commands."""
    folder = tmp_path_factory.mktemp('forms')
    files = generate(folder / 'city')
    for action in ('pack', 'tfds'):
        words = ['--dataset=cityscapes', f'--root={files}', f'--output={folder / action}']
        assert cli.main(['data', action, *words]) == 0
    return {'cityscapes': files, 'packed': folder / 'pack', 'tfds': folder / 'tfds'}


def source(roots, name, split):
    return data.build(config(roots[name], name=name), split)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def batches(roots, name):
    """Four of training, from a pickled source as in a worker, and those of evaluation."""
    settings = config(roots[name], name=name, size=(32, 64), scale_range=(0.6, 1.5), color=0.2)
    read = pickle.loads(pickle.dumps(data.build(settings, 'train+test')))
    train = pipeline.train_batches(read, settings, seed=3, start=2, batch_size=4)
    evaluated = pipeline.eval_batches(data.build(settings, 'val'), settings, batch_size=4)
    found = [*itertools.islice(train, 4), *evaluated]
    train.close()
    return found


def test_files_shards_and_tfds_give_the_same_batches(roots):
    files, *others = (batches(roots, name) for name in roots)
    assert len(files) == 5
    for other in others:
        assert all(same(a, b) for a, b in zip(files, other, strict=True))
    void = [(row == 255).all() for batch in files[:4] for row in batch['label']]
    assert 0 < sum(void) < len(void)  # test images have no label in any form


def test_elements_are_the_same(roots):
    for split, length in (('train', 8), ('val', 1), ('test', 3)):
        files, copy = (source(roots, name, split) for name in ('cityscapes', 'tfds'))
        assert len(copy) == len(files) == length
        assert (copy.classes, copy.colors) == (files.classes, files.colors)
        assert all(same(files[i], copy[i]) for i in range(length))
        assert ('label' in copy[0]) == (split != 'test')
        assert all(image_size(copy, i) == SIZE for i in range(length))
        with pytest.raises(IndexError):
            copy[length]


def test_tfds_reads_it_by_name(roots):
    """Without a line of this package, as the docstring promises."""
    import tensorflow_datasets

    read = tensorflow_datasets.data_source(
        tfds.NAME, data_dir=roots['tfds'], split='train', download=False
    )
    mine = source(roots, 'cityscapes', 'train')
    assert len(read) == 8
    for index in (0, 7):
        element = read[index]
        assert element['name'].decode() == mine[index]['name'] and element['labelled']
        assert np.array_equal(element['image'], mine[index]['image'])
        assert np.array_equal(element['label'][..., 0], mine[index]['label'])


def test_check_reads_every_split(roots, capsys):
    words = ['--config=cityscapes', '--config.data.name=tfds']
    assert cli.main(['data', 'check', *words, f'--root={roots["tfds"]}']) == 0
    assert '12 images, 0 problems' in capsys.readouterr().out


@pytest.fixture
def copy(roots, tmp_path):
    """A copy of train alone, to damage."""
    out = tmp_path / 'copy'
    tfds.write({'train': source(roots, 'tfds', 'train')}, out, source_name='x', say=lambda _: None)
    return out


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'IDAT') + 400] ^= 0x55
    path.write_bytes(content)


def shard(root):
    return next((root / tfds.NAME / tfds.VERSION).glob('*.array_record*'))


def described(root, name):
    return root / tfds.NAME / tfds.VERSION / name


@pytest.mark.parametrize(
    ('spoil', 'named'),
    [
        (lambda r: shard(r).unlink(), 'array_record.*no such file.*a shard of train'),
        (lambda r: shard(r).write_bytes(b''), 'a record of arvenholm_000000_000019 that cannot'),
        (lambda r: flip_byte(shard(r)), 'a record of .* that cannot be read'),
        (lambda r: described(r, 'dataset_info.json').unlink(), 'no such file.*dsrl data tfds'),
        (lambda r: described(r, 'dataset_info.json').write_text('{'), 'cannot be used'),
        (lambda r: described(r, 'metadata.json').write_text('{}'), 'cannot be used'),
    ],
    ids=['gone', 'empty', 'damaged', 'no info', 'cut info', 'other metadata'],
)
def test_damage_is_named(copy, spoil, named):
    spoil(copy)
    tfds._opened.cache_clear()  # as in a new process
    with pytest.raises(UserError, match=named) as error:
        read = data.build(config(copy, name='tfds'), 'train')
        [read[index] for index in range(len(read))]
    assert '\n' not in str(error.value)


def test_what_is_refused(roots, copy, capsys):
    words = ('data', 'tfds', '--dataset=cityscapes', f'--root={roots["cityscapes"]}')
    refused(capsys, [*words, f'--output={copy}'], 'something that exists', 'remove it')
    refused(capsys, words, '--output', 'say where to write')
    assert cli.main(['data', 'check', '--config=cityscapes', f'--root={copy}']) == 2
    with pytest.raises(UserError, match="no split 'val'; expected one of train"):
        data.build(config(copy, name='tfds'), 'val')


def test_a_bad_image_is_named_and_nothing_is_left(tmp_path, capsys):
    root, out = generate(tmp_path / 'city'), tmp_path / 'out'
    path = next(root.glob('leftImg8bit/val/*/*.png'))
    path.write_bytes(path.read_bytes()[:900])
    words = ['data', 'tfds', '--dataset=cityscapes', f'--root={root}', f'--output={out}']
    refused(capsys, words, path.name, 'a damaged file', 'restore the file')
    assert not list(tmp_path.glob('out*'))


@pytest.mark.parametrize(
    ('action', 'flag'),
    [
        *(('check', flag) for flag in ('--seed=1', '--images=3', '--size=8x8', '--output=o')),
        *(('pack', flag) for flag in ('--seed=0', '--images=6')),
        *(('tfds', flag) for flag in ('--seed=1', '--size=8x8')),
        *(('show', flag) for flag in ('--seed=1', '--size=8x8')),
        *(('make-cityscapes', flag) for flag in ('--output=o', '--config=camvid')),
        ('make-cityscapes', '--config.seed=1'),
    ],
)
def test_a_flag_that_an_action_does_not_read_is_refused(action, flag, capsys):
    words = ['data', action, '--root=r', flag]
    words += [] if action == 'make-cityscapes' else ['--dataset=synthetic']
    refused(capsys, words, f'data {action}', flag.split('=')[0], 'leave it out')
