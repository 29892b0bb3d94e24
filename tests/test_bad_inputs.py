"""Every mistake of a user ends in one line that names it, exit code 2 and no traceback.

All runs go through `cli.main`, as the console script does. Files are judged before anything is
compiled, and the network is a toy one wherever it does not matter, so a row costs little.
"""

import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from refusals import TINY, assert_one_line, refused

from dsrl_jax import cli

SIZE = (64, 96)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def label(seed=0):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), SIZE)


@pytest.fixture
def folder(tmp_path):
    """A sound data set of the user's own: three classes, four and two images."""
    root = tmp_path / 'set'
    for split, names in (('train', 'abcd'), ('val', 'ef')):
        for seed, name in enumerate(names):
            save(root / f'images/{split}/{name}.png', image(seed))
            save(root / f'labels/{split}/{name}.png', label(seed))
    (root / 'classes.txt').write_text('road 128 64 128\nsky 70 130 180\ncar 0 0 142\n')
    return root


@pytest.fixture
def camvid(tmp_path):
    """A sound CamVid with lists, two images a split."""
    root = tmp_path / 'camvid'
    for split in ('train', 'val'):
        for name in 'ab':
            save(root / split / f'{name}.png', image())
            save(root / f'{split}annot' / f'{name}.png', label() % 12)
        line = f'/SegNet/CamVid/{split}/{{0}}.png /SegNet/CamVid/{split}annot/{{0}}.png\n'
        (root / f'{split}.txt').write_text(line.format('a') + line.format('b'))
    return root


def training(folder, tmp_path, name='folder'):
    return (
        *('train', f'--config={name}:tiny,net=toy_network:Toy', f'--config.data.root={folder}'),
        f'--workdir={tmp_path / "run"}',
    )


def wrong_value(root):
    save(root / 'labels/train/a.png', np.where(label() == 2, 7, label()))
    return 'labels/train/a.png', 'label value 7', '0..2', 'correct the label'


def black_and_white(root):
    for path in (root / 'labels/train').iterdir():
        save(path, np.where(label() == 1, 255, 0))
    return 'labels/train/a.png', '0 and 255', 'class indices 0..2', 'divide the mask by 255'


def rgb_label(root):
    save(root / 'labels/train/a.png', image())
    return 'labels/train/a.png', 'RGB', 'class indices 0..2', 'replace every colour'


def other_size(root):
    save(root / 'labels/train/a.png', label()[:-1])
    return 'labels/train/a.png', '63x96', '64x96', 'same size'


def truncated_png(root):
    path = root / 'images/train/a.png'
    path.write_bytes(path.read_bytes()[:500])
    return 'images/train/a.png', 'damaged', 'complete PNG', 'restore'


def truncated_jpeg(root):
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, 'JPEG')
    (root / 'images/train/a.png').unlink()
    (root / 'images/train/a.jpg').write_bytes(buffer.getvalue()[:-300])
    return 'images/train/a.jpg', 'damaged', 'truncated', 'restore'


def empty_file(root):
    (root / 'images/train/a.png').write_bytes(b'')
    return 'images/train/a.png', 'an empty file', 'PNG or JPEG', 'restore'


def missing_label(root):
    (root / 'labels/train/b.png').unlink()
    return 'images/train/b.png', 'without a label', 'labels/train/b.png', 'add the label'


def unlabelled_split(root):
    shutil.rmtree(root / 'labels/train')
    return 'without labels', 'a label for every image', 'add the labels'


def empty_split(root):
    for path in (root / 'images/train').iterdir():
        path.unlink()
    shutil.rmtree(root / 'labels/train')
    return 'images/train', 'no image', 'put the images there'


def no_split(root):
    shutil.rmtree(root / 'images/train')
    return 'images/train', 'no such folder', 'there are: val', 'check the root'


def no_classes(root):
    (root / 'classes.txt').unlink()
    return 'classes.txt', 'no such file', 'name red green blue', 'write the list'


def no_root(root):
    shutil.rmtree(root)
    return str(root), 'no such folder', 'check data.root'


SPOILED = (
    *(wrong_value, black_and_white, rgb_label, other_size, truncated_png, truncated_jpeg),
    *(empty_file, missing_label, unlabelled_split, empty_split, no_split, no_classes, no_root),
)


@pytest.mark.parametrize('spoil', SPOILED, ids=lambda spoil: spoil.__name__)
def test_training_refuses_a_bad_file_before_it_starts(spoil, folder, tmp_path, capsys):
    named = spoil(folder)
    refused(capsys, training(folder, tmp_path), *named)
    assert not (tmp_path / 'run').exists(), 'a run was begun'


@pytest.mark.parametrize(
    ('line', 'named'),
    [
        ('train/../../secret.png trainannot/a.png', ['path', 'inside', 'relative to the root']),
        ('/etc/x/y.png trainannot/a.png', ['/etc/x/y.png', 'inside', 'relative to the root']),
        ('train/gone.png trainannot/a.png', ['no file', 'train/gone.png', 'add it']),
        ('train/a.png', ["'train/a.png'", '`image label`', 'correct the line']),
    ],
)
def test_a_list_is_refused_by_its_line(line, named, camvid, tmp_path, capsys):
    with (camvid / 'train.txt').open('a') as file:
        file.write(line + '\n')
    refused(capsys, training(camvid, tmp_path, 'camvid'), f'{camvid / "train.txt"}:3', *named)


def test_an_empty_list_and_an_unknown_split(camvid, tmp_path, capsys):
    command = training(camvid, tmp_path, 'camvid')
    refused(capsys, (*command, '--config.data.train_split=trian'), "'trian'", 'trian.txt')
    (camvid / 'train.txt').write_text('')
    refused(capsys, command, 'train.txt', 'an empty list', 'restore the list')


def test_data_check_passes_a_good_set_and_names_every_bad_file_of_another(folder, capsys):
    command = ['data', 'check', '--dataset=folder', f'--root={folder}']
    assert cli.main(command) == 0
    assert '6 images, 0 problems' in capsys.readouterr().out
    (folder / 'images/train/a.png').write_bytes(b'')
    save(folder / 'labels/train/b.png', image())
    save(folder / 'labels/train/c.png', np.full(SIZE, 9))
    (folder / 'labels/val/f.png').unlink()
    assert cli.main(command) == 2
    streams = capsys.readouterr()
    for name in ('train/a.png', 'train/b.png', 'train/c.png', 'val/f.png'):
        lines = [line for line in streams.out.splitlines() if name in line.split(': found ')[0]]
        assert len(lines) == 1 and '; expected ' in lines[0], streams.out
    assert '4 problems' in streams.out and 'Traceback' not in streams.out + streams.err


def test_exit_code_and_one_line_of_a_real_process(folder, tmp_path):
    named = wrong_value(folder)
    source = 'import sys; from dsrl_jax.cli import run; run()'
    done = subprocess.run(
        [sys.executable, '-c', source, *training(folder, tmp_path)],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stdout
    assert_one_line(done.stderr, named)


@pytest.mark.parametrize(
    ('argv', 'named'),
    [
        (['trian'], ['command line', "verb 'trian'", "did you mean 'train'?"]),
        (['train', '--workdri=W'], ["'--workdri=W'", "did you mean '--workdir'?"]),
        (['train', '--config=synthetic'], ['--workdir', 'train --help']),
        (['train', '--config.seed'], ['--config.FIELD=VALUE']),
        (['flops', '--config.seed=1'], ["'--config.seed=1'"]),
        (['flops', '--net=espnetv2', '--had=x'], ["'--had=x'", "did you mean '--head'?"]),
        (['flops', '--net=espnetv2', '--size=64'], ["'64'", 'HEIGHTxWIDTH', '512x1024']),
        (['flops', '--net=espnetv3', '--size=64x64'], ["'espnetv3'", "'espnetv2'"]),
        (['flops', '--net=espnetv2', '--size=50x64'], ['50x64', '16']),
        (['eval'], ['--workdir', '--model']),
        (['data', 'chek', '--dataset=synthetic'], ["'chek'", 'check']),
        (['data', 'check', '--dataset=synthetik'], ["did you mean 'synthetic'?"]),
        (['data', 'check'], ['--dataset', '--config']),
        (['predict', '--model=M'], ['--output']),
    ],
    ids=lambda value: ' '.join(value) if value and value[0] in cli.VERBS else None,
)
def test_unknown_words_on_the_command_line(argv, named, capsys):
    refused(capsys, argv, *named)


@pytest.mark.parametrize(
    ('spec', 'overrides', 'named'),
    [
        ('sinthetic', [], ['sinthetic', "did you mean 'synthetic'?"]),
        ('gone.json', [], ['gone.json', 'no such file']),
        ('synthetic:tini', [], ["'tini'", "did you mean 'tiny'?"]),
        ('synthetic:tiny,net=espnetv3', [], ["'espnetv3'", "did you mean 'espnetv2'?"]),
        ('synthetic:tiny,net=toy_network:Tay', [], ["'toy_network:Tay'", 'module:factory']),
        ('synthetic:tiny,head=deconv_feature', [], ["did you mean 'deconv_features'?"]),
        ('synthetic:tiny,dsrl=ful', [], ['config.model.dsrl', "did you mean 'full'?"]),
        ('synthetic:tiny,width=wide', [], ["'wide'", 'float']),
        (TINY, ['optimiser.lr=1'], ["'optimiser'", "did you mean 'optimizer'?"]),
        (TINY, ['optimizer.rl=1'], ["'rl'", "did you mean 'lr'?"]),
        (TINY, ['optimizer.lr=fast'], ['config.optimizer.lr', "'fast'", 'type float']),
        (TINY, ['optimizer=sgd'], ['a section', 'FIELD=VALUE']),
        (TINY, ['fa.sampling=pool9'], ["'pool9'", "did you mean 'pool8'?"]),
        (TINY, ['scale=3'], ['config.scale', '3', '1, 2, 4']),
        (TINY, ['model.dtype=float31'], ["did you mean 'float32'?"]),
        (TINY, ['model.tap=feature'], ["did you mean 'features'?"]),
        (TINY, ['data.name=synthetik'], ["did you mean 'synthetic'?"]),
        (TINY, ['data.eval_split=vall'], ["'vall'", "did you mean 'val'?"]),
        (TINY, ['data.batch_size=6'], ['6 rows for 4 devices', 'use 4 or 8']),
        (TINY, ['data.eval_batch_size=0'], ['config.data.eval_batch_size', '4']),
        ('synthetic:tiny', ['data.size=(72,128)'], ['72x128', 'multiples of 32', '16', '64x128']),
        (TINY, ['data.size=(8,8)'], ['data.size', '8']),
        (TINY, ['data.scale_range=(2.0,1.0)'], ['data.scale_range', 'low <= high']),
        (TINY, ['ce.weights=1,2,3'], ['config.ce.weights', '3 class weights', '11']),
        (TINY, ['ce.weights=median'], ['config.ce.weights', "'median'"]),
        (TINY, ['optimizer.lr_groups=(("enc0der",0.1),)'], ["'enc0der'", 'network']),
        (TINY, ['epochs=1.0'], ['steps=2, epochs=1.0', 'exactly one']),
        ('synthetic:tiny', ['model.init_from=gone.npz'], ['gone.npz', 'no such file']),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else None,
)
def test_a_bad_configuration_is_named(spec, overrides, named, tmp_path, capsys):
    flags = [f'--config.{item}' for item in overrides]
    refused(capsys, ['train', f'--config={spec}', f'--workdir={tmp_path / "w"}', *flags], *named)


def test_a_broken_json_configuration(tmp_path, capsys):
    path, command = tmp_path / 'c.json', ('train', f'--workdir={tmp_path / "w"}')
    path.write_text('{"seed": 1,')
    refused(capsys, (*command, f'--config={path}'), 'c.json', 'a saved configuration')
    path.write_text('{"model": {"nett": "espnetv2"}}')
    refused(capsys, (*command, f'--config={path}'), 'c.json', "'nett'", "did you mean 'net'?")
    path.write_text('{"steps": "many"}')
    refused(capsys, (*command, f'--config={path}'), 'c.json', "steps='many'", 'type int')
    path.write_text('[]')
    refused(capsys, (*command, f'--config={path}'), 'c.json', '[]', 'a JSON object')


def test_a_python_configuration_with_a_mistake(tmp_path, capsys):
    path, command = tmp_path / 'mine.py', ('train', f'--workdir={tmp_path / "w"}')
    path.write_text('def get_config(arg=""):\n    return nothing\n')
    refused(capsys, (*command, f'--config={path}'), 'mine.py', 'NameError', 'correct')
    path.write_text('import dsrl_jax.config as c\nconfig = c.base()\n')
    refused(capsys, (*command, f'--config={path}'), 'mine.py', 'get_config')
