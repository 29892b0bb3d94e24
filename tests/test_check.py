"""The check names every bad file of a set, each kind tested on a set that holds it."""

import io

import numpy as np
import pytest
from data_settings import config as settings
from PIL import Image

from dsrl_jax import data
from dsrl_jax.data import images, show
from dsrl_jax.data.check import check, check_sample, report_problems
from dsrl_jax.data.frequencies import class_frequencies
from dsrl_jax.errors import UserError

SIZE = (16, 20)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def label(seed=0):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), SIZE)


def config(root, name='folder', **changes):
    return settings(root, name, **{'size': SIZE, 'eval_size': None} | changes)


@pytest.fixture
def root(tmp_path):
    """A sound set of three classes: four training images, two for validation."""
    (tmp_path / 'classes.txt').write_text('road 128 64 128\nsky 70 130 180\ncar 0 0 142\n')
    for split, names in (('train', 'abcd'), ('val', 'ef')):
        for seed, name in enumerate(names):
            save(tmp_path / f'images/{split}/{name}.png', image(seed))
            save(tmp_path / f'labels/{split}/{name}.png', label(seed))
    return tmp_path


def problems(root, **changes):
    return [str(problem) for problem in check(config(root, **changes)).problems]


def test_a_sound_set_has_no_problem_and_a_table(root):
    report = check(config(root))
    assert report.problems == [] and report.images == 6
    counts = class_frequencies(data.build(config(root), 'train'))
    stacked = np.stack([label(seed) for seed in range(4)])
    assert counts['pixels'].tolist() == [(stacked == k).sum() for k in range(3)]
    assert counts['presence'].tolist() == [4, 4, 4]
    assert counts['present_pixels'].tolist() == [stacked.size] * 3
    assert all(np.array_equal(report.splits['train'][key], counts[key]) for key in counts)
    lines = []
    assert report_problems(report, lines.append) == 0
    assert lines[-1] == '6 images, 0 problems'
    assert [line.split()[0] for line in lines[1:-1]] == ['road', 'sky', 'car', '(ignored)']
    assert sum(float(line.split()[1]) for line in lines[1:-1]) == pytest.approx(100, abs=0.03)


def wrong_value(root):
    save(root / 'labels/train/b.png', np.where(label() == 2, 7, label()).astype(np.uint8))
    return 'b.png', 'label value 7', 'class indices 0..2'


def rgb_label(root):
    save(root / 'labels/train/b.png', image())
    return 'b.png', 'RGB', 'class indices', 'replace every colour'


def other_size(root):
    save(root / 'labels/train/b.png', label()[:-1])
    return 'b.png', '15x20', '16x20', 'same size'


def turned_image(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / 'images/train/b.png', image(), exif=exif)
    return 'b.png', '16x20', '20x16', 'EXIF orientation 6'


def truncated_png(root):
    path = root / 'images/train/b.png'
    path.write_bytes(path.read_bytes()[:500])
    return 'b.png', 'damaged', 'complete'


def truncated_jpeg(root):
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, 'JPEG')
    (root / 'images/train/b.png').unlink()
    (root / 'images/train/b.jpg').write_bytes(buffer.getvalue()[:-200])
    return 'b.jpg', 'damaged', 'truncated'


def truncated_label(root):
    path = root / 'labels/train/b.png'
    path.write_bytes(path.read_bytes()[:90])
    return 'b.png', 'damaged'


def empty_file(root):
    (root / 'images/train/b.png').write_bytes(b'')
    return 'b.png', 'empty file', 'PNG or JPEG'


def no_image(root):
    (root / 'images/train/b.png').write_text('<html>404 not found</html>')
    return 'b.png', 'no image', 'PNG or JPEG'


def missing_label(root):
    (root / 'labels/train/b.png').unlink()
    return 'images/train/b.png', 'without a label', 'labels/train/b.png'


def jpeg_label(root):
    (root / 'labels/train/b.png').unlink()
    save(root / 'labels/train/b.jpg', label())
    return 'b.jpg', 'JPEG label', 'PNG'


def label_alone(root):
    (root / 'images/train/b.png').unlink()
    return 'labels/train/b.png', 'without an image'


def two_of_a_name(root):
    save(root / 'images/train/b.jpg', image())
    return 'b.png', 'second image', 'b.jpg'


def sixteen_bit_image(root):
    save(root / 'images/train/b.png', np.full(SIZE, 3000, np.uint16))
    return 'b.png', 'more than 8 bits', '8-bit RGB'


def sixteen_bit_label(root):
    save(root / 'labels/train/b.png', np.full(SIZE, 1001, np.uint16))
    return 'b.png', '1001', '0..2'


def mode_of_label(root):
    save(root / 'labels/train/b.png', np.stack([label(), label()], -1))
    return 'b.png', 'mode LA', 'one channel'


@pytest.mark.parametrize(
    'damage',
    [
        wrong_value,
        rgb_label,
        other_size,
        turned_image,
        truncated_png,
        truncated_jpeg,
        truncated_label,
        empty_file,
        no_image,
        missing_label,
        jpeg_label,
        label_alone,
        two_of_a_name,
        sixteen_bit_image,
        sixteen_bit_label,
        mode_of_label,
    ],
)
def test_one_bad_file_is_named(root, damage):
    """One line with the file, what is wrong and what to do; the loader refuses it as well."""
    words = damage(root)
    (line,) = problems(root)
    assert all(word in line for word in words), line
    assert line.startswith(str(root)) and '; expected ' in line and '\n' not in line
    with pytest.raises(UserError):
        source = data.build(config(root), 'train')
        check_sample(source, len(source))


def test_all_bad_files_are_named_at_once(root):
    wrong_value(root)
    (root / 'images/train/b.png').write_bytes(b'')
    (root / 'labels/val/e.png').unlink()
    save(root / 'labels/train/d.png', image())
    lines = problems(root)
    assert len(lines) == 4
    for name in ('images/train/b.png', 'labels/train/b.png', 'labels/train/d.png', 'val/e.png'):
        assert sum(f'{name}: found' in line for line in lines) == 1
    printed = []
    assert report_problems(check(config(root)), printed.append) == 4
    assert printed[-1].endswith('4 problems')


def test_black_and_white_masks_are_recognised(root):
    for path in root.glob('labels/*/*.png'):
        save(path, np.where(label() == 1, 255, 0).astype(np.uint8))
    lines = problems(root)
    assert len(lines) == 6 and all('divide the mask by 255' in line for line in lines)
    with pytest.raises(UserError, match='divide the mask by 255'):
        check_sample(data.build(config(root), 'train'))
    save(root / 'labels/train/a.png', label())  # one real label: the others may be plain road
    assert len(problems(root)) == 2
    check_sample(data.build(config(root), 'train'))


def test_missing_and_empty_places(root, tmp_path):
    assert 'no such folder' in problems(tmp_path / 'nowhere')[0]
    (line,) = problems(root, eval_split='vol')
    assert 'images/vol' in line and 'there are: train, val' in line
    for path in root.glob('images/val/*'):
        path.unlink()
    lines = problems(root)
    assert any('images/val: found no image' in line for line in lines)
    (root / 'classes.txt').unlink()
    assert all('classes.txt: found no such file' in line for line in problems(root))


def test_a_training_split_needs_labels(root):
    for path in root.glob('labels/train/*'):
        path.unlink()
    (root / 'labels/train').rmdir()
    (line,) = problems(root)
    assert 'without labels' in line
    with pytest.raises(UserError, match='without labels'):
        check_sample(data.build(config(root), 'train'))


def test_images_too_large_for_evaluation(root):
    (line,) = problems(root, eval_size=(16, 16))
    assert line.startswith('data.eval_size') and '16x20' in line
    assert problems(root, eval_size=(16, 16), eval_fit='resize') == []


def test_too_many_pixels(root, monkeypatch):
    monkeypatch.setattr(images, 'MAX_PIXELS', 200)
    lines = problems(root)
    assert any('images/train/a.png: found an image with too many pixels' in x for x in lines)


def test_bad_lines_of_a_list(tmp_path):
    for name in 'abc':
        save(tmp_path / f'train/{name}.png', image())
        save(tmp_path / f'trainannot/{name}.png', np.full(SIZE, 11, np.uint8))
    lines = {
        2: ('train/b.png', '`image label`'),
        3: ('../../etc/passwd trainannot/b.png', 'inside'),
        4: ('/etc/passwd trainannot/b.png', 'inside'),
        5: ('/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png', 'first in line 1'),
        6: ('train/gone.png trainannot/b.png', 'no file'),
        7: ('C:/data/b.png trainannot/b.png', 'inside'),
        8: ('/SegNet/../etc/passwd trainannot/b.png', 'inside'),
    }
    good = 'train/a.png trainannot/a.png'
    text = [good, *(line for line, _ in lines.values()), '', 'train/c.png trainannot/c.png']
    (tmp_path / 'train.txt').write_text('\n'.join(text))
    report = check(config(tmp_path, 'camvid'), ['train'])
    assert len(report.problems) == len(lines) and report.images == 2
    for problem, (number, (_, words)) in zip(report.problems, lines.items()):
        assert problem.where == f'{tmp_path / "train.txt"}:{number}' and words in str(problem)
    (tmp_path / 'train.txt').write_text('')
    (problem,) = check(config(tmp_path, 'camvid'), ['train']).problems
    assert 'empty list' in str(problem)
    with pytest.raises(UserError, match='empty list'):
        data.build(config(tmp_path, 'camvid'), 'train')
    (problem,) = check(config(tmp_path, 'camvid'), ['night']).problems
    assert "no split 'night'" in str(problem)


def test_contact_sheet(root):
    """The sheet shows the class colours of its labels and white masks in their columns."""
    path = show.contact_sheet(config(root), root / 'out' / 'sheet.png', rows=3, panel=100)
    sheet = np.array(Image.open(path))
    assert sheet.shape[1] == 5 * 106 + 6 and sheet.shape[0] > 3 * 80
    column = sheet[18:98, 6 + 2 * 106 : 106 + 2 * 106].reshape(-1, 3)
    allowed = {(128, 64, 128), (70, 130, 180), (0, 0, 142), (0, 0, 0)}
    assert {tuple(c) for c in column.tolist()} <= allowed
    assert set(np.unique(sheet[18:98, 6 + 4 * 106 : 106 + 4 * 106])) <= {0, 255}


def test_real_camvid_sample(real_data):
    source = data.build(config(real_data / 'camvid', 'camvid'), 'train')
    check_sample(source)


@pytest.mark.slow
def test_real_camvid_fullres_has_no_problem(real_data):
    sound = config(real_data / 'camvid_fullres', 'camvid', eval_size=(736, 960))
    report = check(sound, ['val', 'test'])
    assert report.problems == [] and report.images == 54
    assert report.splits['test']['presence'][3] == 34
