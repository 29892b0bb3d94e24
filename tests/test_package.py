"""The wheel holds what a user needs and works in an empty folder without the checkout."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built from the checkout by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp('wheel')
    code = f'import hatchling.build as b; print(b.build_wheel({str(folder)!r}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope='module')
def dsrl(wheel, tmp_path_factory):
    """dsrl(*words) runs the installed command in an empty folder -> its completed process."""
    folder, home = tmp_path_factory.mktemp('installed'), tmp_path_factory.mktemp('empty')
    pip = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--quiet']
    done = subprocess.run([*pip, f'--target={folder}', wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / 'bin' / 'dsrl').is_file(), 'no console script'
    env = {**os.environ, 'PYTHONPATH': str(folder), 'JAX_PLATFORMS': 'cpu'}

    def run(*words):
        return subprocess.run(words, cwd=home, env=env, capture_output=True, text=True)

    where = run(sys.executable, '-c', 'import dsrl_jax; print(dsrl_jax.__file__)').stdout.strip()
    assert pathlib.Path(where).is_relative_to(folder), f'{where} is not the installed package'
    return functools.partial(run, sys.executable, folder / 'bin' / 'dsrl')


def test_the_wheel_holds_package_and_configs_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f'dsrl_jax/configs/{path.name}' for path in ROOT.glob('configs/*.py')} <= names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / 'dsrl_jax').rglob('*.py')}
    assert modules <= names, f'left out: {modules - names}'
    tops = {name.split('/')[0] for name in names}
    assert tops == {'dsrl_jax', next(top for top in tops if top.endswith('.dist-info'))}
    assert any(name.endswith('licenses/LICENSE') for name in names)
    assert not [name for name in names if name.endswith(('.pyc', '.png', '.npz'))]


def test_it_names_its_version_and_its_verbs(dsrl, wheel):
    assert dsrl('--version').stdout.strip() == wheel.name.split('-')[1]
    assert 'dsrl train' in dsrl('--help').stdout


def test_shipped_configurations_load_in_an_empty_folder(dsrl):
    for name in ('camvid:net=espnetv2,dsrl=full', 'configs/camvid.py:tiny'):
        done = dsrl('data', 'check', f'--config={name}', '--config.data.root=nowhere')
        assert done.returncode == 2 and 'nowhere' in done.stdout, done.stdout + done.stderr
    done = dsrl('data', 'check', '--config=kamvid')
    assert done.returncode == 2 and "did you mean 'camvid'?" in done.stderr


def test_it_checks_the_synthetic_set_and_counts_a_network(dsrl):
    done = dsrl('data', 'check', '--config=synthetic:tiny')
    assert done.returncode == 0 and '16 images, 0 problems' in done.stdout, done.stderr
    done = dsrl('flops', '--net=espnetv2', '--size=64x128')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])['params']['network'] > 0
