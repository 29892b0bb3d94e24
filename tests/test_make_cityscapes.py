"""The generated set has the files, values and numbers of the public one, and follows its seed."""

import itertools

import numpy as np
import pytest
from city_scenes import SIZE, TRAIN_ID, generate, read, truths
from refusals import refused

from dsrl_jax import cli
from dsrl_jax.data import make_cityscapes, palettes
from dsrl_jax.errors import UserError


@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    return generate(tmp_path_factory.mktemp('generated') / 'city')


def test_every_image_has_the_official_files(generated):
    images = sorted(generated.glob('leftImg8bit/*/*/*_leftImg8bit.png'))
    assert len(images) == 12
    kinds = {'labelIds', 'labelTrainIds', 'instanceIds', 'color'}
    for path in images:
        split, city = path.parts[-3:-1]
        name = path.name.removesuffix('_leftImg8bit.png')
        there = {p.name for p in (generated / 'gtFine' / split / city).glob(f'{name}_*')}
        assert there == {f'{name}_gtFine_{kind}.png' for kind in kinds}
        assert read(path).shape == (*SIZE, 3)
    folders = [p for p in generated.rglob('*') if p.is_file()]
    assert len(folders) == 5 * 12 + 1  # and a README that says what it is
    cities = {
        s: {p.name for p in (generated / 'leftImg8bit' / s).iterdir()} for s in ('train', 'val')
    }
    assert not cities['train'] & cities['val']


def test_the_files_of_a_label_agree(generated):
    colors = [*palettes.CITYSCAPES.values()]
    seen = set()
    for path in truths(generated, 'train', 'labelIds'):
        ids = read(path)
        train, instance, color = (
            read(path.with_name(path.name.replace('labelIds', kind)))
            for kind in ('labelTrainIds', 'instanceIds', 'color')
        )
        assert ids.dtype == train.dtype == np.uint8 and instance.dtype == np.uint16
        for value in np.unique(ids).tolist():
            seen.add(value)
            inside = ids == value
            want = TRAIN_ID.get(value, 255)
            assert (train[inside] == want).all()
            assert (color[inside] == (colors[want] if want < 19 else (0, 0, 0))).all()
            thing = value in range(24, 34)
            found = np.unique(instance[inside])
            assert (found // 1000 == value).all() if thing else found.tolist() == [value]
    assert seen >= {0, 7, 8, 11, 17, 20, 21, 23, 24, 25, 26}
    for ending, void in (('labelIds', 0), ('labelTrainIds', 255), ('instanceIds', 0), ('color', 0)):
        assert all((read(p) == void).all() for p in truths(generated, 'test', ending))


def test_instances_are_patches():
    """Numbered from 0 in every class; corners that touch join, other classes part."""
    ids = np.array([[26, 26, 7, 26], [7, 7, 26, 7], [26, 7, 7, 7], [23, 24, 24, 26]], np.uint8)
    assert make_cityscapes.instance_ids(ids).tolist() == [
        [26000, 26000, 7, 26000],
        [7, 7, 26000, 7],
        [26001, 7, 7, 7],
        [23, 24000, 24000, 26002],
    ]


def test_numbers_of_the_splits():
    assert make_cityscapes.divide(5000, ('train', 'val', 'test')) == {
        'train': 2975,
        'val': 500,
        'test': 1525,
    }
    for order in itertools.permutations(('train', 'val', 'test')):
        for images in range(3, 60):
            numbers = make_cityscapes.divide(images, order)
            assert sum(numbers.values()) == images and min(numbers.values()) >= 1
    assert make_cityscapes.divide(20, ['val']) == {'val': 20}
    with pytest.raises(UserError, match='--images: found 2; expected at least 3'):
        make_cityscapes.divide(2, ('train', 'val', 'test'))


def test_the_command_writes_the_world_of_its_seed(generated, tmp_path, capsys):
    make = ['data', 'make-cityscapes', '--images=12', '--size=64x128']
    for seed in (3, 4):
        assert cli.main([*make, f'--seed={seed}', f'--root={tmp_path / str(seed)}']) == 0
    files = [p.relative_to(generated) for p in generated.rglob('*.png')]
    assert all((tmp_path / '3' / f).read_bytes() == (generated / f).read_bytes() for f in files)
    images = [f for f in files if f.parts[0] == 'leftImg8bit']
    assert all((tmp_path / '4' / f).read_bytes() != (generated / f).read_bytes() for f in images)
    refused(capsys, [*make, f'--root={tmp_path / "3"}'], 'something that exists')
    refused(capsys, make, 'no --root')
    more = ['--dataset=camvid', f'--root={tmp_path / "5"}']
    refused(capsys, [*make, *more], 'found --dataset', 'leave it out')
    refused(capsys, [*make[:2], f'--root={tmp_path / "5"}', '--split=vall'], "did you mean 'val'")
    refused(capsys, [*make[:2], f'--root={tmp_path / "5"}', '--seed=-1'], '--seed: found -1')
    assert not (tmp_path / '5').exists()
