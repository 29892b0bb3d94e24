"""Images without labels that join the training: which, in what order, and what they lack."""

import itertools
import pickle

import numpy as np
import pytest
from city_scenes import SIZE, config, generate
from PIL import Image

from dsrl_jax import cli, data
from dsrl_jax.data import pipeline
from dsrl_jax.data.check import check
from dsrl_jax.data.frequencies import class_frequencies
from dsrl_jax.errors import UserError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp('generated') / 'city')


@pytest.fixture
def photos(tmp_path):
    """Three images, two of them in a folder of their own."""
    folder = tmp_path / 'my+photos'
    for seed, name in enumerate(('b.png', 'trip/a.png', 'trip/c.jpg')):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50 + seed, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def joined(root, named, **changes):
    settings = config(root, unlabelled=str(named), **changes)
    source = data.build(settings, settings.train_split)
    return source, data.join_unlabelled(source, data.unlabelled(settings))


def names(source):
    return [source[index]['name'] for index in range(len(source))]


def test_nothing_joins_unless_named(root):
    source, result = joined(root, '')
    assert result is source


def test_a_folder_of_images_joins(root, photos, capsys):
    source, result = joined(root, photos)
    assert names(result)[8:] == ['b', 'trip/a', 'trip/c'] and names(result)[:8] == names(source)
    assert [('label' in result[i], 'label' in result.files(i)) for i in (7, 8)] == [
        (True, True),
        (False, False),
    ]
    assert result[10]['image'].shape == (40, 52, 3)
    assert result.classes == source.classes and result.split == 'train'
    assert f'the 8 training images: 3 of {photos}' in capsys.readouterr().out


def test_splits_join_without_their_labels(root, photos, tmp_path):
    (photos / 'trip').rename(tmp_path / 'trip')  # beside others, a path must have no + of its own
    _, result = joined(root, f'test+val+{tmp_path / "trip"}')
    assert len(result) == 8 + 3 + 1 + 2
    assert ['label' in result[i] for i in range(14)] == [True] * 8 + [False] * 6


def test_the_share_of_labels_counts_labelled_images_alone(root):
    """As training does it: the share first, then those that join."""
    source, _ = joined(root, 'test')
    quarter = data.keep_labels(source, 0.25)
    result = data.join_unlabelled(quarter, data.unlabelled(config(root, unlabelled='test')))
    assert ['label' in result[i] for i in range(11)] == [i in (0, 4) for i in range(11)]


def test_cached_and_pickled(root, photos):
    _, plain = joined(root, photos)
    _, cached = joined(root, photos, cache=True)
    copy = pickle.loads(pickle.dumps(cached))
    assert cached[9]['image'] is cached[9]['image'] and len(pickle.dumps(cached)) < 8000
    for index in range(len(plain)):
        for other in (cached, copy):
            assert plain[index].keys() == other[index].keys()
            assert np.array_equal(plain[index]['image'], other[index]['image'])


def test_an_epoch_shows_each_once_and_void_where_there_is_no_label(root, photos):
    settings = config(root, size=SIZE, scale_range=(1.0, 1.0), flip=False, unlabelled=str(photos))
    _, result = joined(root, photos)
    batches = pipeline.train_batches(result, settings, seed=0, start=0, batch_size=1)
    epoch = list(itertools.islice(batches, len(result)))
    batches.close()
    void = [(batch['label'] == 255).all() for batch in epoch]
    assert sum(void) == 3 and all(batch['mask'].any() for batch in epoch)


def test_class_frequencies_are_those_of_the_labels(root, photos):
    source, result = joined(root, photos)
    (photos / 'b.png').write_bytes(b'')  # it is not even read
    counts, expected = class_frequencies(result), class_frequencies(source)
    assert all(np.array_equal(counts[key], expected[key]) for key in expected)
    assert counts['images'] == 8


@pytest.mark.parametrize(
    ('named', 'words'),
    [
        ('train', r"data\.unlabelled: found 'train'.*beside those of data\.train_split"),
        ('nights', 'leftImg8bit/nights: found no such folder'),
        ('gone/', 'gone: found no such folder; expected a folder of images'),
        ('{root}/gtFine/none/', 'found no image; expected files ending in'),
    ],
)
def test_what_cannot_join_is_named(root, named, words):
    (root / 'gtFine/none').mkdir(exist_ok=True)
    named = named.format(root=root)
    with pytest.raises(UserError, match=words):
        joined(root, named)


def test_a_bad_image_is_named_before_the_run_and_by_the_check(root, photos, capsys):
    (photos / 'trip/a.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'trip/a\.png: found an empty file'):
        joined(root, photos)
    report = check(config(root, unlabelled=str(photos)))
    lines = [str(problem) for problem in report.problems if 'public' not in str(problem)]
    assert len(lines) == 1 and 'trip/a.png: found an empty file' in lines[0]
    assert report.images == 8 + 1 + 3 and f'{photos}: 3 images join' in report.notes[-1]
    words = ['data', 'check', '--dataset=cityscapes', f'--root={root}']
    assert cli.main([*words, f'--config.data.unlabelled={photos}']) == 2
    out = capsys.readouterr().out
    assert 'trip/a.png: found an empty file' in out and '15 images, 7 problems' in out
    report = check(config(root, unlabelled='test'), ['train', 'test'])
    assert report.images == 8 + 3  # each once
    report = check(config(root, unlabelled='nights'))
    assert 'leftImg8bit/nights' in str(report.problems[-1])


@pytest.mark.slow
def test_a_run_takes_them(root, tmp_path, capsys):
    words = ['--config=cityscapes:tiny,net=toy_network:Toy', f'--config.data.root={root}']
    words += ['--config.data.unlabelled=test', f'--workdir={tmp_path / "w"}']
    assert cli.main(['train', *words]) == 0
    assert 'join the 8 training images: 3 of test' in capsys.readouterr().out
