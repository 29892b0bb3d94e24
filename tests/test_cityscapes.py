"""Cityscapes: files in the published layout become images and train ids; what is wrong is named."""

import os
import pickle
import shutil

import numpy as np
import pytest
from city_scenes import SIZE, TRAIN_ID, config, generate, read, truths
from PIL import Image

from dsrl_jax import cli, data
from dsrl_jax import config as configs
from dsrl_jax.data import cityscapes, palettes, sources
from dsrl_jax.data.check import check
from dsrl_jax.errors import UserError


@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    return generate(tmp_path_factory.mktemp('generated') / 'city')


@pytest.fixture
def root(generated, tmp_path):
    """A copy to damage."""
    return shutil.copytree(generated, tmp_path / 'city')


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def first(root, ending, split='val'):
    return truths(root, split, ending)[0]


def test_both_kinds_of_labels_are_the_same_elements(root):
    by_ids = data.build(config(root), 'train')
    assert by_ids.note == '8 images of 4 cities, labels of gtFine: 8 labelIds'
    for path in truths(root, 'train', 'labelIds')[:3]:
        path.unlink()
    mixed = data.build(config(root), 'train')
    assert mixed.note.endswith('labels of gtFine: 5 labelIds, 3 labelTrainIds')
    assert pickle.loads(pickle.dumps(mixed)).pairs == mixed.pairs  # as worker processes get it
    for index, path in enumerate(truths(root, 'train', 'labelTrainIds')):
        assert mixed.files(index)['image'].name.startswith(mixed[index]['name'])
        for source in (by_ids, mixed) if index >= 3 else (mixed,):
            assert np.array_equal(source[index]['label'], read(path))
    assert list(mixed.classes) == list(palettes.CITYSCAPES) and mixed.num_classes == 19


def test_labels_of_test_are_not_read(root):
    source = data.build(config(root), 'test')
    assert 'label' not in source[0] and source.note.endswith('no labels')
    shutil.rmtree(root / 'gtFine/test')
    assert len(data.build(config(root), 'test')) == len(source) == 3


def test_more_images_come_with_coarse_labels_or_none(root):
    shutil.copytree(root / 'leftImg8bit/val', root / 'leftImg8bit/train_extra')
    joined = data.build(config(root), 'train+train_extra')
    assert len(joined) == 9 and 'label' not in joined[8] and 'label' in joined[7]
    fine = first(root, 'labelIds')
    name = fine.name.replace('gtFine', 'gtCoarse')
    save(root / 'gtCoarse/train_extra' / fine.parent.name / name, read(fine))
    coarse = data.build(config(root), 'train_extra')
    assert coarse.note.endswith('labels of gtCoarse: 1 labelIds')
    assert np.array_equal(coarse[0]['label'], data.build(config(root), 'val')[0]['label'])


def test_to_label_ids_undoes_the_reading(generated):
    ids = np.arange(34, dtype=np.uint8)[None]
    trained = np.array([[TRAIN_ID.get(i, 255) for i in range(34)]], np.uint8)
    assert np.array_equal(
        cityscapes.to_label_ids(trained), np.where(trained < 255, ids, 0).astype(np.uint8)
    )
    assert cityscapes.to_label_ids(np.array([19, 255])).tolist() == [0, 0]  # background, void


def swapped_train_ids(root):
    first(root, 'labelTrainIds').rename(first(root, 'labelIds'))
    return '_labelIds.png', 'the value 255: these are labelTrainIds', 'expected labelIds'


def swapped_label_ids(root):
    first(root, 'labelIds').rename(first(root, 'labelTrainIds'))
    return '_labelTrainIds.png', 'these are labelIds', 'expected labelTrainIds'


def colored_label(root):
    save(first(root, 'labelIds'), read(first(root, 'color')))
    return '_labelIds.png', 'a colour (RGB) label', 'one channel'


def value_outside(root):
    save(first(root, 'labelIds'), np.full(SIZE, 40, np.uint8))
    return '_labelIds.png', 'label value 40', 'class indices 0..33'


def value_outside_train_ids(root):
    """Read where the labelIds are not there."""
    first(root, 'labelIds').unlink()
    save(first(root, 'labelTrainIds'), np.full(SIZE, 40, np.uint8))
    return '_labelTrainIds.png', 'label value 40', 'class indices 0..18', 'correct the label'


def label_of_another_size(root):
    save(first(root, 'labelIds'), read(first(root, 'labelIds'))[:-2])
    return '_labelIds.png', '62x128', '64x128'


def truncated_image(root):
    path = next(root.glob('leftImg8bit/val/*/*.png'))
    path.write_bytes(path.read_bytes()[:900])
    return path.name, 'a damaged file'


def truncated_label(root):
    path = first(root, 'labelIds')
    path.write_bytes(path.read_bytes()[:200])
    return path.name, 'a damaged file', 'restore the file'


def empty_image(root):
    path = next(root.glob('leftImg8bit/val/*/*.png'))
    path.write_bytes(b'')
    return path.name, 'an empty file', 'restore or remove'


def missing_label(root):
    shutil.copy(first(root, 'labelIds'), first(root, 'labelIds').with_name('x.png'))
    for ending in ('labelIds', 'labelTrainIds'):
        first(root, ending).unlink()
    return '_leftImg8bit.png', 'an image without a label', '_gtFine_labelIds.png or'


def polygons_alone(root):
    words = missing_label(root)
    color = first(root, 'color')
    color.with_name(color.name.replace('color.png', 'polygons.json')).write_text('{}')
    return words[0], 'polygons alone', 'csCreateTrainIdLabelImgs'


def city_without_labels(root):
    shutil.rmtree(first(root, 'color').parent)
    return 'gtFine/val/elmquist', 'no such folder', 'the labels of the 1 images'


def label_alone(root):
    next(root.glob('leftImg8bit/val/*/*.png')).unlink()
    return '_labelIds.png', 'a label without an image', 'add the image'


def labels_of_a_city_alone(root):
    shutil.copytree(first(root, 'color').parent, root / 'gtFine/val/nirgends')
    return 'gtFine/val/nirgends', 'labels of a city without images'


def foreign_image(root):
    path = next(root.glob('leftImg8bit/val/*/*.png'))
    shutil.copy(path, path.with_name('galdern_000000_000019_leftImg8bit.png'))
    return 'elmquist/galdern_', 'a foreign file', 'elmquist_000000_000019'


def loose_image(root):
    path = next(root.glob('leftImg8bit/val/*/*.png'))
    shutil.copy(path, root / 'leftImg8bit/val' / path.name)
    return 'val/elmquist_', '1 image outside the folder of a city'


def no_labels_at_all(root):
    shutil.rmtree(root / 'gtFine/val')
    return 'gtFine/val', 'no such folder', 'put them there'


@pytest.mark.parametrize(
    'damage',
    [
        *(swapped_train_ids, swapped_label_ids, colored_label, value_outside),
        *(label_of_another_size, truncated_image, missing_label, polygons_alone),
        *(city_without_labels, label_alone, labels_of_a_city_alone, foreign_image),
        *(loose_image, no_labels_at_all, value_outside_train_ids, truncated_label, empty_image),
    ],
)
def test_one_bad_file_is_named(root, damage):
    """By the check in one line, and by whoever reads the split."""
    sound = {str(problem) for problem in check(config(root), ['val']).problems}
    words = damage(root)
    lines = [str(p) for p in check(config(root), ['val']).problems]
    new = [line for line in lines if line not in sound and all(word in line for word in words)]
    assert len(new) == 1, lines
    assert new[0].startswith(str(root)) and '\n' not in new[0]
    with pytest.raises(UserError):
        source = data.build(config(root), 'val')
        [source[index] for index in range(len(source))]


def test_the_size_of_an_image_is_read_without_its_pixels(root):
    truncated_image(root)
    assert sources.image_size(data.build(config(root), 'val'), 0) == SIZE


def test_check_names_what_a_part_of_the_set_lacks(root, capsys):
    shutil.rmtree(root / 'leftImg8bit/test')
    assert cli.main(['data', 'check', '--dataset=cityscapes', f'--root={root}']) == 2
    lines = capsys.readouterr().out.splitlines()
    expected = [
        ('leftImg8bit/train', 'found 8 images (arvenholm 2, ', 'the 2975 of the public set'),
        ('_leftImg8bit.png', '64x128 (HxW), as 7 more of train', '1024x2048'),
        ('leftImg8bit/val', 'found 1 images (elmquist 1)', 'the 500 of the public set'),
        ('_leftImg8bit.png', 'found an image of 64x128 (HxW);', '1024x2048'),
        ('leftImg8bit/test', 'no such folder', 'test of 1525 images (there are: train, val)'),
    ]
    for line, words in zip(lines, expected):
        assert all(word in line for word in words), line
    assert lines[5].startswith('train: 8 images of 4 cities, labels of gtFine: 8 labelIds')
    assert lines[-1] == '9 images, 5 problems'
    assert (
        cli.main(['data', 'check', '--dataset=cityscapes', f'--root={root / "leftImg8bit"}']) == 2
    )
    assert 'data.root name the folder that holds leftImg8bit' in capsys.readouterr().out


def test_a_set_of_the_published_number_lacks_nothing(generated, tmp_path):
    image, label = next(generated.glob('leftImg8bit/val/*/*.png')), first(generated, 'labelIds')
    for folder in ('leftImg8bit', 'gtFine'):
        (tmp_path / folder / 'val/bad').mkdir(parents=True)
    for number in range(500):
        name = f'bad_{number:06d}_000019'
        os.link(image, tmp_path / f'leftImg8bit/val/bad/{name}_leftImg8bit.png')
        os.link(label, tmp_path / f'gtFine/val/bad/{name}_gtFine_labelIds.png')
    source = data.list_split(config(tmp_path), 'val')
    assert len(source) == 500 and source.problems == source.differences == ()
    (tmp_path / f'leftImg8bit/val/bad/{name}_leftImg8bit.png').unlink()
    source = data.list_split(config(tmp_path), 'val')
    assert 'found 499 images' in str(source.differences[0]) and len(source.problems) == 1


@pytest.mark.parametrize(
    ('size', 'view', 'scales'),
    [
        ('256x512', (512, 1024), (0.35, 1.0)),  # the release's two
        ('512x1024', (1024, 2048), (1.0, 2.0)),
        ('320x640', (640, 1280), (0.4907, 1.25)),
        ('384x768', (768, 1536), (0.6467, 1.5)),
        ('448x896', (896, 1792), (0.8168, 1.75)),
    ],
)
def test_crops_and_scales(size, view, scales):
    config = configs.load(f'cityscapes:size={size}')
    assert config.data.size == view
    assert config.data.scale_range == pytest.approx(scales, abs=1e-3)


def test_another_size_is_refused():
    with pytest.raises(UserError, match="did you mean '256x512'"):
        configs.load('cityscapes:size=256x51')


def test_a_network_trains_and_is_scored_on_the_generated_set(generated, tmp_path, capsys):
    words = ['--config=cityscapes:tiny,net=toy_network:Toy', f'--config.data.root={generated}']
    assert cli.main(['train', *words, '--config.steps=1', f'--workdir={tmp_path / "run"}']) == 0
    out = capsys.readouterr().out
    assert 'cityscapes train: 8 images of 4 cities, labels of gtFine: 8 labelIds' in out
    assert '1 images of val' in out


def test_real_frame(real_data):
    """The label ids of a public frame become the train ids that lie beside them.

    Up to edges: this copy was shrunk, and its two label files do not agree on 77 pixels there.
    """
    root = real_data / 'cityscapes_mini'
    source = data.build(config(root), 'val')
    element = source[0]
    assert element['name'] == 'frankfurt_000000_000294'
    assert element['image'].shape == (128, 256, 3)
    label, stored = element['label'], read(first(root, 'labelTrainIds'))
    assert (label != stored).sum() == 77
    for value in np.unique(label):
        assert np.bincount(stored[label == value]).argmax() == value
    ids = read(first(root, 'labelIds'))
    assert np.array_equal(label, np.vectorize(lambda i: TRAIN_ID.get(i, 255))(ids))
    assert source.note.endswith('1 labelIds')
    problems = [str(problem) for problem in check(config(root)).problems]
    assert len(problems) == 3
    assert 'leftImg8bit/train: found no such folder' in problems[0]
    assert 'found 1 images (frankfurt 1); expected the 500' in problems[1]
    assert 'found an image of 128x256' in problems[2]
