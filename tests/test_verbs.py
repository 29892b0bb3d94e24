"""The way of a stranger: own folder to prediction, runs side by side, foreign weights."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from golden import golden_weights
from PIL import Image

import dsrl_jax
from dsrl_jax import cli
from dsrl_jax.data.synthetic import SyntheticSource

GOLDEN = pathlib.Path(__file__).with_name('golden')


@pytest.fixture
def folder(tmp_path):
    """Eight training and four validation images of sizes that differ, three classes."""
    root = tmp_path / 'set'
    for split, count in (('train', 8), ('val', 4)):
        source = SyntheticSource(split, size=(72, 120), length=count)
        for index in range(count):
            element = source[index]
            cut = slice(0, 72 - 8 * (index % 2))
            label = np.where(element['label'] < 3, element['label'], 255)[cut]
            for kind, array, name in (
                ('images', element['image'][cut], f'{index}.jpg'),
                ('labels', label.astype(np.uint8), f'{index}.png'),
            ):
                path = root / kind / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / 'classes.txt').write_text('sky 70 130 180\nbuilding 70 70 70\npole 153 153 153\n')
    return root


def test_own_folder_from_check_to_prediction(folder, tmp_path, capsys):
    """The README's commands, on a network that compiles at once."""
    workdir, model, output = tmp_path / 'w', tmp_path / 'm', tmp_path / 'out'
    assert cli.main(['data', 'check', '--dataset=folder', f'--root={folder}']) == 0
    assert '12 images, 0 problems' in capsys.readouterr().out
    show = ['data', 'show', '--dataset=folder', f'--root={folder}', f'--output={tmp_path / "look"}']
    assert cli.main([*show, '--images=2']) == 0
    assert (tmp_path / 'look' / 'contact_sheet.png').is_file()
    arguments = ['--config=folder:tiny', '--config.model.net=toy_network:Toy']
    train = ['train', *arguments, f'--config.data.root={folder}', f'--workdir={workdir}']
    assert cli.main(train) == 0
    assert cli.main(['export', f'--workdir={workdir}', f'--output={model}']) == 0
    assert cli.main(['eval', f'--model={model}', '--split=val']) == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scores['images'] == 4 and len(scores['iou']) == 3
    pictures = str(folder / 'images' / 'val')
    assert cli.main(['predict', f'--model={model}', f'--output={output}', pictures]) == 0
    for index in range(4):
        size = Image.open(folder / 'images' / 'val' / f'{index}.jpg').size
        ids = Image.open(output / f'{index}_ids.png')
        assert ids.size == size and np.asarray(ids).max() < 3


def test_compare_writes_one_page(tiny_run, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(tiny_run, other)
    for workdir in (tiny_run, other):
        assert cli.main(['eval', f'--workdir={workdir}', '--split=test']) == 0
    page = tmp_path / 'report'
    assert cli.main(['compare', f'--output={page}', f'base={tiny_run}', f'dsrl={other}']) == 0
    assert 'are level' in capsys.readouterr().out  # equal runs
    text = (page / 'index.html').read_text()
    for word in ('base', 'dsrl', 'SR branch', 'bicubic', 'MACs'):
        assert word in text


def test_converted_weights_predict(tmp_path, capsys):
    state = golden_weights.state_dict(GOLDEN / 'ESPNetv2_s2.0_20.keys.json')
    np.savez(tmp_path / 'w.npz', **state)
    command = [
        *('convert', '--net=espnetv2', f'--weights={tmp_path / "w.npz"}', '--size=64x128'),
        *('--classes=cityscapes', f'--output={tmp_path / "m"}'),
    ]
    assert cli.main(command) == 0
    assert '20 outputs of which 19 are classes' in capsys.readouterr().out
    model = dsrl_jax.load(tmp_path / 'm')
    assert model.classes[0] == 'road' and set(model.variables['params']) == {'network'}
    labels = model.predict(np.zeros((50, 90, 3), np.uint8)).labels
    assert labels.shape == (50, 90) and labels.max() < 19


def test_the_network_of_the_readme_trains_and_predicts_from_its_own_folder(
    tmp_path, monkeypatch, capsys
):
    """A file beside the user, no attribute or layer of ours."""
    page = pathlib.Path(__file__).parent.parent.joinpath('README.md').read_text(encoding='utf-8')
    code = next(b for b in re.findall(r'```python\n(.*?)```', page, re.S) if '# my_net.py' in b)
    (tmp_path / 'my_net.py').write_text(code)
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(['train', '--config=synthetic:net=my_net:Net,dsrl=full,tiny', '--workdir=w']) == 0
    )
    assert cli.main(['export', '--workdir=w', '--output=m']) == 0
    assert set(dsrl_jax.load('m').variables['params']) == {'network', 'sssr'}
    assert cli.main(['flops', '--net=my_net:Net', '--size=32x64', '--dsrl=full']) == 0
    counted = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert counted['params']['network'] == 9 * 3 * 32 + 32 + 9 * 32 * 64 + 64 + 64 * 20 + 20
    refused = ['export', '--workdir=w', '--output=d', '--kind=deploy']
    assert cli.main(refused) == 2 and 'takes no style' in capsys.readouterr().err
