"""Parts of CamVid's lists by drive: sizes, disjointness, order; the real lists where they are."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dsrl_jax import cli, data
from dsrl_jax.data import camvid
from dsrl_jax.errors import UserError

# Small, and in the order of the published lists.
FRAMES = {
    'train': [
        *('0001TP_006690', '0001TP_006720', '0006R0_f00930', '0006R0_f00960', '0006R0_f00990'),
        *('0016E5_00390', '0016E5_02400', '0016E5_04349', '0016E5_04350', '0016E5_08640'),
    ],
    'val': ['0016E5_07959'],
    'test': ['0001TP_008550', 'Seq05VD_f00000', 'Seq05VD_f00030'],
}
REAL = {
    **{'fold1_train': 266, 'fold1_val': 101, 'fold2_train': 305, 'fold2_val': 62},
    **{'fold3_train': 231, 'fold3_val': 136, 'test_Seq05VD': 171, 'test_0001TP': 62},
}


def config(root, **changes):
    return ConfigDict({'name': 'camvid', 'root': str(root), 'cache': False, **changes})


def names(root, split):
    source = data.build(config(root), split)
    return [source.files(i)['image'].stem for i in range(len(source))]


@pytest.fixture
def generated(tmp_path):
    """A CamVid folder of ten training, one validation and three test frames."""
    rng = np.random.default_rng(0)
    for split, frames in FRAMES.items():
        for folder in (split, f'{split}annot'):
            (tmp_path / folder).mkdir()
        for name in frames:
            image = rng.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / split / f'{name}.png')
            label = rng.integers(0, 12, (6, 8)).astype(np.uint8)
            Image.fromarray(label).save(tmp_path / f'{split}annot' / f'{name}.png')
        lines = [f'{split}/{name}.png {split}annot/{name}.png' for name in frames]
        (tmp_path / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return tmp_path


def assert_divided(root):
    for whole, parts in (
        *(('train', (f'fold{n}_train', f'fold{n}_val')) for n in (1, 2, 3)),
        ('test', ('test_Seq05VD', 'test_0001TP')),
    ):
        first, second = (names(root, part) for part in parts)
        listed = names(root, whole)
        assert first and second and not set(first) & set(second)
        assert sorted(first + second) == sorted(listed)
        for part in (first, second):
            assert part == [name for name in listed if name in part]  # the list's order
    held = [name for n in (1, 2, 3) for name in names(root, f'fold{n}_val')]
    assert len(held) == len(set(held))  # no frame selects twice


def test_parts_of_a_generated_list(generated):
    assert_divided(generated)
    train = FRAMES['train']
    assert names(generated, 'fold1_val') == train[2:5]
    assert names(generated, 'fold2_val') == train[:2]
    assert names(generated, 'fold3_val') == train[8:]  # from 4350 on
    assert names(generated, 'test_Seq05VD') == FRAMES['test'][1:]


def test_parts_are_read_like_any_split(generated):
    source = data.build(config(generated, cache=True), 'fold3_val')
    assert source.split == 'fold3_val' and source.classes == tuple(camvid.CLASSES)
    assert source[0]['name'] == '0016E5_04350' and source[0]['label'].shape == (6, 8)
    joined = data.build(config(generated), 'fold1_val+test_0001TP')
    expected = [*names(generated, 'fold1_val'), '0001TP_008550']
    assert [joined[i]['name'] for i in range(len(joined))] == expected


def test_without_a_list_the_folder_is_divided(generated):
    expected = names(generated, 'fold3_train')
    (generated / 'train.txt').unlink()
    assert sorted(names(generated, 'fold3_train')) == sorted(expected)


def test_a_check_reads_the_lists_and_parts_only_when_asked(generated, capsys):
    command = ['data', 'check', '--dataset=camvid', f'--root={generated}']
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert '14 images, 0 problems' in shown and 'fold' not in shown and 'test_' not in shown
    assert cli.main([*command, '--split=fold1_val']) == 0
    assert '3 images, 0 problems' in capsys.readouterr().out


def test_a_list_that_does_not_divide_is_refused(generated):
    listing = generated / 'train.txt'
    lines = listing.read_text().splitlines()
    for kept in (lines[:2] + lines[5:], lines[2:5]):
        listing.write_text('\n'.join(kept) + '\n')
        for split in ('fold1_train', 'fold1_val'):
            with pytest.raises(UserError, match=r'of the drive 0006R0.*published lists'):
                data.build(config(generated), split)


def test_mistakes_in_the_list_are_told_by_its_parts(generated):
    listing = generated / 'train.txt'
    listing.write_text(listing.read_text() + 'train/0001TP_9.png trainannot/0001TP_9.png\n')
    with pytest.raises(UserError, match=r'train\.txt:11'):
        data.build(config(generated), 'fold1_val')


def test_thin_classes_are_classes():
    assert [list(camvid.CLASSES).index(name) for name in camvid.THIN] == [2, 6, 9, 10]


def test_real_lists(real_data):
    root = real_data / 'camvid'
    assert {part: len(names(root, part)) for part in camvid.PARTS} == REAL
    assert_divided(root)
    # Neighbours in the film lie on one side of fold 3: its last training frame is far behind.
    frames = [int(n.split('_')[1]) for n in names(root, 'fold3_train') if n.startswith('0016E5')]
    assert max(frames) == 2400
