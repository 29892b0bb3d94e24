"""Sources: listing, reading, the label conventions, and the real data where it is there."""

import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dsrl_jax import data
from dsrl_jax.data import camvid, folder, sources
from dsrl_jax.data.frequencies import class_frequencies
from dsrl_jax.data.images import read_image, read_pixels
from dsrl_jax.errors import UserError

TRAIN_PIXELS = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595]
TRAIN_PIXELS += [3719877, 405385, 184967]


def config(name, root, **changes):
    return ConfigDict({'name': name, 'root': str(root), 'cache': False, **changes})


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


@pytest.fixture
def camvid_root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (('train', 3), ('val', 2)):
        lines = []
        for i in range(count):
            save(tmp_path / split / f'{split}{i}.png', rng.integers(0, 256, (6, 8, 3)))
            save(tmp_path / f'{split}annot' / f'{split}{i}.png', rng.integers(0, 12, (6, 8)))
            lines.append(
                f'/SegNet/CamVid/{split}/{split}{i}.png /SegNet/CamVid/{split}annot/{split}{i}.png'
            )
        (tmp_path / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return tmp_path


def test_camvid_lists_with_published_prefixes_and_without_list(camvid_root):
    listed = data.build(config('camvid', camvid_root), 'train')
    (camvid_root / 'train.txt').unlink()
    paired = data.build(config('camvid', camvid_root), 'train')
    assert len(listed) == len(paired) == 3
    for i in range(3):
        assert listed.files(i) == paired.files(i)
        assert listed[i]['name'] == f'train{i}'
    assert listed.num_classes == len(listed.colors) == 11


def test_camvid_list_in_another_order_and_format(camvid_root):
    """The order is the list's; a listed .png that exists as .jpg is found."""
    image = camvid_root / 'train' / 'train0.png'
    Image.open(image).save(image.with_suffix('.jpg'))
    image.unlink()
    lines = ['train/train2.png trainannot/train2.png', '', 'train/train0.png trainannot/train0.png']
    (camvid_root / 'train.txt').write_text('\r\n'.join(lines))
    source = data.build(config('camvid', camvid_root), 'train')
    assert [pair.name for pair in source.pairs] == ['train2', 'train0']
    assert source.files(1)['image'].suffix == '.jpg'


def test_void_of_camvid_is_ignored(camvid_root):
    path = camvid_root / 'trainannot' / 'train0.png'
    raw = np.array(Image.open(path))
    label = data.build(config('camvid', camvid_root), 'train')[0]['label']
    assert np.array_equal(label, np.where(raw == 11, 255, raw)) and (raw == 11).any()


def test_original_colors_are_grouped(tmp_path):
    """Wall is building, road shoulder road, bicycle of a motorcyclist; bridge and noise void."""
    colors = [(64, 192, 0), (128, 128, 192), (192, 0, 192), (0, 128, 64), (1, 2, 3), (0, 0, 0)]
    expected = [1, 3, 10, 255, 255, 255]
    save(tmp_path / 'train' / 'a.png', np.zeros((1, 6, 3)))
    save(tmp_path / 'trainannot' / 'a_L.png', [colors])
    label = data.build(config('camvid', tmp_path), 'train')[0]['label']
    assert label.tolist() == [expected] and label.dtype == np.uint8
    for index, name in enumerate(camvid.CLASSES):
        group = np.array([camvid.ORIGINAL_COLORS[name]], np.uint8)
        assert (camvid.group_colors(group) == index).all()


def test_joined_and_cached(camvid_root):
    joined = data.build(config('camvid', camvid_root, cache=True), 'train+val')
    parts = [data.build(config('camvid', camvid_root), s) for s in ('train', 'val')]
    assert len(joined) == 5 and joined.num_classes == 11 and joined.split == 'train+val'
    expected = [part[i] for part in parts for i in range(len(part))]
    for i, element in enumerate(expected):
        assert joined[i]['name'] == element['name']
        assert np.array_equal(joined[i]['image'], element['image'])
        assert joined.files(i)['image'].stem == element['name']
    with pytest.raises(IndexError):
        joined[5]
    assert joined[0]['image'] is joined[0]['image'] is not parts[0][0]['image']
    with pytest.raises(ValueError):
        joined[0]['image'][0, 0] = 0
    copy = pickle.loads(pickle.dumps(joined))
    assert np.array_equal(copy[4]['label'], joined[4]['label'])
    assert len(pickle.dumps(joined)) < 5000  # paths, no pixels


def test_folder(tmp_path):
    (tmp_path / 'classes.txt').write_text('# mine\nroad 1 2 3\n\ntraffic light 4 5 6\n')
    save(tmp_path / 'images/train/b.jpg', np.zeros((4, 5, 3)))
    save(tmp_path / 'images/train/a.png', np.zeros((4, 5, 3)))
    for name in 'ab':
        save(tmp_path / f'labels/train/{name}.png', np.full((4, 5), [[0], [1], [255], [0]]))
    save(tmp_path / 'images/test/c.jpeg', np.zeros((4, 5, 3)))
    source = data.build(config('folder', tmp_path), 'train')
    assert source.classes == ('road', 'traffic light') and source.colors[1] == (4, 5, 6)
    assert [source[i]['name'] for i in range(2)] == ['a', 'b']
    assert source[0]['label'][:, 0].tolist() == [0, 1, 255, 0]
    assert 'label' not in data.build(config('folder', tmp_path), 'test')[0]
    assert len(pickle.dumps(source)) < 5000


@pytest.mark.parametrize('line', ['road', 'road 1 2', 'road 1 2 256', '1 2 3', 'sky 1 2 3'])
def test_bad_class_line_is_named(tmp_path, line):
    path = tmp_path / 'classes.txt'
    path.write_text(f'sky 0 0 0\n{line}\n')
    with pytest.raises(UserError, match=r'classes\.txt:2'):
        folder.read_classes(path)


def test_images_of_every_kind_become_rgb(tmp_path):
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    rgb = np.stack([grey, grey + 50, grey + 100], -1)
    alpha = np.concatenate([rgb, np.full((4, 5, 1), 7, np.uint8)], -1)
    for name, array, expected in (
        ('grey', grey, np.stack([grey] * 3, -1)),
        ('rgb', rgb, rgb),
        ('alpha', alpha, rgb),
    ):
        save(tmp_path / f'{name}.png', array)
        assert np.array_equal(read_image(tmp_path / f'{name}.png'), expected)
    Image.fromarray(rgb).convert('P').save(tmp_path / 'palette.png')
    assert read_image(tmp_path / 'palette.png').shape == (4, 5, 3)


def test_exif_orientation_turns_the_pixels(tmp_path):
    """Orientation 6: the stored left column is the top row, read from the bottom up."""
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / 'images/train/a.png', image, exif=exif)
    (tmp_path / 'classes.txt').write_text('one 0 0 0\n')
    assert np.array_equal(read_image(tmp_path / 'images/train/a.png'), np.rot90(image, -1))
    source = data.build(config('folder', tmp_path), 'train')
    assert sources.image_size(source, 0) == source[0]['image'].shape[:2] == (5, 4)


def test_palette_bilevel_and_sixteen_bit_labels(tmp_path):
    values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    palette = Image.fromarray(values).convert('P')
    palette.putdata(values.ravel().tolist())
    palette.putpalette([200, 0, 0, 0, 200, 0])
    images = {
        'palette': palette,
        'bilevel': Image.fromarray(values * 255).convert('1'),
        'sixteen': Image.fromarray(values.astype(np.uint16)),
    }
    for name, image in images.items():
        path = tmp_path / f'{name}.png'
        image.save(path)
        label = sources.as_indices(read_pixels(path), path, num_classes=2)
        assert np.array_equal(label, values) and label.dtype == np.uint8


def test_real_camvid(real_data):
    for split, length in (('train', 367), ('val', 101), ('test', 233)):
        source = data.build(config('camvid', real_data / 'camvid'), split)
        assert len(source) == length
        assert sources.image_size(source, length - 1) == source[0]['image'].shape[:2] == (360, 480)
    full = config('camvid', real_data / 'camvid_fullres')
    assert [len(data.build(full, s)) for s in ('train', 'val', 'test')] == [50, 20, 34]
    assert data.build(full, 'test')[3]['label'].shape == (720, 960)


@pytest.mark.slow
def test_real_camvid_pixel_counts(real_data):
    counts = class_frequencies(data.build(config('camvid', real_data / 'camvid'), 'train'))
    assert counts['pixels'].tolist() == TRAIN_PIXELS
    assert counts['ignored'] == 2503995 and counts['images'] == 367
    share = counts['pixels'] / counts['present_pixels']
    weights = np.median(share) / share
    assert abs(weights[[0, 2, 10]] - [0.2793, 4.7865, 8.8587]).max() < 5e-5
