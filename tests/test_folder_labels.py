"""A user's own folder: lists of classes in both forms, colour labels, labels of another kind."""

import itertools
import json
import pickle

import numpy as np
import pytest
from data_settings import config
from PIL import Image
from refusals import refused

from dsrl_jax import cli, data
from dsrl_jax.data import folder
from dsrl_jax.data.check import check
from dsrl_jax.errors import UserError

SIZE = (64, 96)
COLORS = {'road': (128, 64, 128), 'sky': (70, 130, 180), 'traffic light': (250, 170, 30)}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def label(seed):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), SIZE)


def painted(label):
    """In the colours of the classes, black where there is none."""
    table = np.zeros((256, 3), np.uint8)
    table[:3] = list(COLORS.values())
    return table[label]


def text(colors):
    return ''.join(f'{name} {" ".join(map(str, color))}\n' for name, color in colors.items())


@pytest.fixture
def root(tmp_path):
    root = tmp_path / 'set'
    for split, names in (('train', 'abcd'), ('val', 'e')):
        for seed, name in enumerate(names):
            rng = np.random.default_rng(seed)
            save(root / f'images/{split}/{name}.png', rng.integers(0, 256, (*SIZE, 3)))
            save(root / f'labels/{split}/{name}.png', label(seed))
    (root / 'classes.txt').write_text(text(COLORS))
    return root


def labels(root):
    source = data.build(config(root), 'train')
    return [source[index]['label'] for index in range(len(source))]


def test_both_lists_of_classes_say_the_same(root):
    by_text = folder.read_classes(root / 'classes.txt')
    (root / 'classes.json').write_text(json.dumps(COLORS))
    with pytest.raises(UserError, match=r'classes\.json: found a second list'):
        data.build(config(root), 'train')
    (root / 'classes.txt').unlink()
    assert folder.read_classes(root / 'classes.json') == by_text
    source = data.build(config(root), 'train')
    assert source.classes == tuple(COLORS) and source.colors == tuple(COLORS.values())
    assert pickle.loads(pickle.dumps(source))[0]['label'].shape == SIZE


@pytest.mark.parametrize(
    'written',
    [
        *('{', '[]', '{}', '7', '{"a": 3}', '{"a": [1, 2]}', '{"a": [1, 2, 256]}'),
        *('{"a": [1, 2, true]}', '{"a": [1, 2, 3], "a": [1, 2, 4]}', '{"a": {"b": [1, 2, 3]}}'),
    ],
)
def test_a_bad_json_list_is_named(tmp_path, written):
    path = tmp_path / 'classes.json'
    path.write_text(written)
    with pytest.raises(UserError, match=r'classes\.json: found') as error:
        folder.read_classes(path)
    assert '\n' not in str(error.value)


def test_colour_labels_are_the_indices_that_their_colours_mean(root):
    expected = labels(root)
    for seed, name in enumerate('abcd'):
        save(root / f'labels/train/{name}.png', painted(label(seed)))
    found = labels(root)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found))
    assert check(config(root, size=SIZE, eval_size=SIZE)).problems == []


def test_black_is_a_class_where_the_list_says_so(tmp_path):
    path = tmp_path / 'mask.png'
    mask = np.random.default_rng(0).integers(0, 2, SIZE)
    save(path, np.repeat(mask[..., None] * 255, 3, -1))
    black_and_white = [(0, 0, 0), (255, 255, 255)]
    assert np.array_equal(folder.read_label(path, colors=black_and_white), mask)
    assert np.array_equal(folder.read_label(path, colors=black_and_white[::-1]), 1 - mask)


def unknown_color(root):
    pixels = painted(label(0))
    pixels[5, 7], pixels[5, 8] = (1, 2, 3), (3, 2, 1)
    save(root / 'labels/train/a.png', pixels)
    return 'a colour (RGB) label with 2 colours of no class, such as (1, 2, 3)', 'replace every'


def one_color_twice(root):
    (root / 'classes.txt').write_text(text(COLORS | {'sky': COLORS['road']}))
    save(root / 'labels/train/a.png', painted(label(0)))
    return 'two classes have one colour', 'replace every colour'


def black_and_white_masks(root):
    for path in (root / 'labels/train').iterdir():
        save(path, np.where(label(0) == 1, 255, 0))
    return 'only the values 0 and 255', 'divide the mask by 255'


def label_ids(root):
    (root / 'classes.txt').write_text(''.join(f'class{k} {k} 0 0\n' for k in range(19)))
    save(root / 'labels/train/a.png', np.where(label(0) == 1, 26, 7))
    return 'label values up to 26: these are labelIds', '0..18', 'data.name=cityscapes'


def value_outside(root):
    save(root / 'labels/train/a.png', np.full(SIZE, 3))
    return 'label value 3', 'class indices 0..2', 'correct the label'


@pytest.mark.parametrize(
    'spoil', [unknown_color, one_color_twice, black_and_white_masks, label_ids, value_outside]
)
def test_a_label_of_another_kind_is_recognised(root, spoil, tmp_path, capsys):
    """In one line by the check, and by a training run before it starts."""
    words = ('labels/train/a.png', *spoil(root))
    lines = [str(p) for p in check(config(root, size=SIZE, eval_size=SIZE)).problems]
    assert sum(all(word in line for word in words) for line in lines) == 1, lines
    command = ['train', '--config=folder:tiny,net=toy_network:Toy', f'--workdir={tmp_path / "w"}']
    refused(capsys, [*command, f'--config.data.root={root}'], *words)


def test_any_other_value_is_refused_but_no_index(tmp_path):
    """Every number of classes against every value: indices stay, 255 stays, all else is named."""
    path = tmp_path / 'label.png'
    for classes, value in itertools.product((1, 2, 18, 19, 20, 255), (0, 1, 18, 19, 33, 34, 254)):
        save(path, [[value, 255]])
        colors = [(k, 0, 0) for k in range(classes)]
        if value < classes:
            assert folder.read_label(path, colors=colors).tolist() == [[value, 255]]
        else:
            with pytest.raises(UserError, match=str(value)):
                folder.read_label(path, colors=colors)


def test_colour_labels_train(root, tmp_path, capsys):
    (root / 'classes.txt').unlink()
    (root / 'classes.json').write_text(json.dumps(COLORS))
    for path in root.glob('labels/*/*.png'):
        save(path, painted(label(1)))
    command = ['train', '--config=folder:tiny,net=toy_network:Toy,dsrl=none', '--config.steps=1']
    command += [f'--config.data.root={root}', f'--workdir={tmp_path / "w"}']
    assert cli.main(command) == 0
    assert '1 images of val' in capsys.readouterr().out
