"""Every mistake of a user ends in one line that names it, exit code 2 and no traceback.

All runs go through `cli.main`, as the console script does. Files are judged before anything is
compiled, and the network is a toy one wherever it does not matter, so a row costs little.
"""

import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from golden import golden_weights
from PIL import Image

from dsrl_jax import cli, config

GOLDEN = pathlib.Path(__file__).with_name('golden')
SIZE = (64, 96)
TINY = 'synthetic:tiny,net=toy_network:Toy'
TOY = ('train', f'--config={TINY}', '--config.checkpoint.every=2')


def refused(capsys, argv, *named):
    """Run a command that must fail; its one line on stderr, which holds every text of `named`."""
    capsys.readouterr()
    code = cli.main([str(item) for item in argv])
    stderr = capsys.readouterr().err
    assert code == 2, f'exit code {code} of {argv}; stderr: {stderr}'
    assert_one_line(stderr, named)
    return stderr


def assert_one_line(stderr, named):
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    form = re.fullmatch(r'error: .+: found .+; expected .+; (?P<remedy>\S.+)', lines[0])
    assert form, lines[0]
    missing = [text for text in named if text not in lines[0]]
    assert not missing, f'{missing} not in: {lines[0]}'


# ---- data ---------------------------------------------------------------------------------------


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
    for split in ('train', 'test'):
        for name in 'ab':
            save(root / split / f'{name}.png', image())
            save(root / f'{split}annot' / f'{name}.png', label() % 12)
        lines = [
            f'/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png' for n in 'ab'
        ]
        (root / f'{split}.txt').write_text('\n'.join(lines) + '\n')
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


# ---- names, values and sizes --------------------------------------------------------------------


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
        (TINY, ['optimizer.lr=fast'], ['config.optimizer.lr', "'fast'", 'a float']),
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
    refused(capsys, (*command, f'--config={path}'), 'c.json', "steps='many'", 'an int')
    path.write_text('[]')
    refused(capsys, (*command, f'--config={path}'), 'c.json', '[]', 'a JSON object')


def test_a_python_configuration_with_a_mistake(tmp_path, capsys):
    path, command = tmp_path / 'mine.py', ('train', f'--workdir={tmp_path / "w"}')
    path.write_text('def get_config(arg=""):\n    return nothing\n')
    refused(capsys, (*command, f'--config={path}'), 'mine.py', 'NameError', 'correct')
    path.write_text('import dsrl_jax.config as c\nconfig = c.base()\n')
    refused(capsys, (*command, f'--config={path}'), 'mine.py', 'get_config')


# ---- runs, checkpoints and models ---------------------------------------------------------------


@pytest.fixture(scope='module')
def toy_run(tmp_path_factory):
    """The workdir of a finished run of the toy network, checkpoints after steps 2 and 4."""
    workdir = tmp_path_factory.mktemp('toy') / 'run'
    assert cli.main([*TOY, '--config.steps=4', f'--workdir={workdir}']) == 0
    return workdir


@pytest.fixture(scope='module')
def toy_model(toy_run, tmp_path_factory):
    """The toy run, exported."""
    output = tmp_path_factory.mktemp('toy_model') / 'model'
    argv = ['export', f'--workdir={toy_run}', f'--output={output}', '--format=params']
    assert cli.main(argv) == 0
    return output


@pytest.fixture
def run(toy_run, tmp_path):
    """A copy of the toy run that a test may spoil."""
    return shutil.copytree(toy_run, tmp_path / 'run')


def resuming(run, *changes):
    return (*TOY, '--config.steps=4', *changes, f'--workdir={run}')


@pytest.mark.parametrize(
    ('change', 'was'),
    [('optimizer.lr=0.01', '0.02'), ('sisr.trunk=32', '64'), ('data.batch_size=8', '4')],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, was, run, capsys):
    field, _, value = change.partition('=')
    named = (
        f'config {field}',
        f'found {value}',
        f'expected {was}, as in the checkpoint',
        'workdir',
    )
    refused(capsys, resuming(run, f'--config.{change}'), *named)
    assert config.get(config.load_json(run / 'config.json'), field) == float(was), 'overwritten'


def test_a_half_written_checkpoint_is_passed_over_and_said(run, capsys):
    largest = max((run / 'checkpoints/4').rglob('*'), key=lambda p: p.is_file() * p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert cli.main(list(resuming(run))) == 0
    streams = capsys.readouterr()
    warning = [line for line in streams.err.splitlines() if 'checkpoints/4' in line]
    assert len(warning) == 1 and 'using step 2' in warning[0], streams.err
    assert 'Traceback' not in streams.err and 'resumed at step 2' in streams.out
    steps = [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4] and (run / 'checkpoints/4').is_dir()


def test_no_checkpoint_can_be_read(run, capsys):
    for path in (run / 'checkpoints').glob('*/state/*'):
        shutil.rmtree(path) if path.is_dir() else path.write_bytes(b'')
    named = ('checkpoints', 'step 4', 'step 2', 'one that can be read', 'train again')
    refused(capsys, ('eval', f'--workdir={run}'), *named)


def test_a_run_that_diverges_names_step_and_terms_and_keeps_no_such_state(tmp_path, capsys):
    flags = ('--config.optimizer.lr=1e30', '--config.steps=6', f'--workdir={tmp_path / "w"}')
    line = refused(capsys, (*TOY, *flags), 'train/ce=', 'train/total=', 'lower the learning rate')
    step = int(re.match(r'error: step (\d+): found non-finite', line).group(1))
    saved = [int(p.name) for p in (tmp_path / 'w/checkpoints').iterdir()]
    assert all(number < step for number in saved)


def test_a_workdir_below_a_file(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    argv = (*TOY, '--config.steps=4', f'--workdir={tmp_path / "file/run"}')
    refused(capsys, argv, str(tmp_path / 'file/run'), 'a folder to write', 'choose')


@pytest.mark.parametrize('flag', ['--workdir', '--model'])
@pytest.mark.parametrize('there', [False, True])
def test_a_folder_that_is_no_run_and_no_model(flag, there, tmp_path, capsys):
    folder = tmp_path / 'folder'
    if there:
        folder.mkdir()
    refused(capsys, ['eval', f'{flag}={folder}'], str(folder), 'expected')


def test_a_run_whose_notes_are_damaged(run, capsys):
    (run / 'dataset.json').write_text('{')
    refused(capsys, ['eval', f'--workdir={run}'], 'dataset.json', 'check the directory')
    (run / 'config.json').write_text('{"seed": 0')
    refused(capsys, ['eval', f'--workdir={run}'], 'config.json', 'a saved configuration')


def test_scoring_on_other_classes_or_with_a_field_of_training(toy_run, folder, tmp_path, capsys):
    argv = ['eval', f'--workdir={toy_run}', f'--output={tmp_path / "o"}']
    refused(capsys, [*argv, '--split=tset'], "'tset'", "did you mean 'test'?")
    refused(capsys, [*argv, '--config.optimizer.lr=1.0'], 'config.optimizer.lr', 'leave it out')
    other = ['--config=folder:tiny', f'--config.data.root={folder}']
    refused(capsys, [*argv, *other], 'road, sky, car', 'sky, building', 'trained for')


def test_comparing_what_was_not_scored_or_has_no_name(toy_run, tmp_path, capsys):
    argv = ['compare', f'--output={tmp_path / "report"}']
    scores = f'{toy_run}/eval_test/scores.json'
    refused(capsys, [*argv, f'toy={toy_run}'], scores, 'no such file', 'dsrl eval', 'first')
    refused(capsys, [*argv, toy_run], str(toy_run), 'NAME=WORKDIR', 'name every run')
    refused(capsys, [*argv, f'toy={tmp_path}'], str(tmp_path), 'no config.json')


def test_export_over_what_is_there_and_of_an_unknown_kind(toy_run, tmp_path, capsys):
    argv = ['export', f'--workdir={toy_run}']
    refused(capsys, [*argv, f'--output={tmp_path}'], str(tmp_path), 'exists', 'remove it')
    free = [*argv, f'--output={tmp_path / "m"}']
    refused(capsys, [*free, '--kind=exakt'], "'exakt'", "did you mean 'exact'?")
    refused(capsys, [*free, '--format=stablehol'], "did you mean 'stablehlo'?")


def test_predicting_what_is_no_picture(toy_model, tmp_path, capsys):
    argv = ['predict', f'--model={toy_model}', f'--output={tmp_path / "o"}']
    (tmp_path / 'text.png').write_text('no picture')
    refused(capsys, [*argv, tmp_path / 'text.png'], 'text.png', 'no image', 'PNG or JPEG')
    refused(capsys, [*argv, tmp_path / 'gone.png'], 'gone.png', 'no such file')
    (tmp_path / 'empty').mkdir()
    refused(capsys, [*argv, tmp_path / 'empty'], 'empty', 'no pictures', '.jpg')
    save(tmp_path / 'same/x.png', image())
    save(tmp_path / 'again/x.png', image())
    twice = [tmp_path / 'same', tmp_path / 'again']
    refused(capsys, [*argv, *twice], 'again/x.png', 'same/x.png', 'different folders')


def test_results_that_cannot_be_written(toy_run, toy_model, tmp_path, capsys):
    save(tmp_path / 'x.png', image())
    (tmp_path / 'file').write_text('')
    argv = ['predict', f'--model={toy_model}', f'--output={tmp_path / "file"}', tmp_path / 'x.png']
    refused(capsys, argv, str(tmp_path / 'file'), 'a folder to write', 'choose')
    argv = ['export', f'--workdir={toy_run}', f'--output={tmp_path / "file/m"}', '--format=params']
    refused(capsys, argv, str(tmp_path / 'file/m'), 'a folder to write', 'choose')
    argv = ['data', 'show', '--dataset=synthetic', '--images=1', f'--output={tmp_path / "file"}']
    refused(capsys, argv, str(tmp_path / 'file'), 'a folder to write', 'choose')


def test_a_model_directory_that_is_damaged(toy_model, tmp_path, capsys):
    model = shutil.copytree(toy_model, tmp_path / 'm')
    argv = ['predict', f'--model={model}', f'--output={tmp_path / "o"}', 'x.png']
    shutil.rmtree(model / 'params')
    refused(capsys, argv, str(model / 'params'), 'saved parameters', 'export again')
    saved = json.loads((model / 'config.json').read_text())
    del saved['classes']
    (model / 'config.json').write_text(json.dumps(saved))
    refused(capsys, argv, 'config.json', 'no classes', 'dsrl export')


# ---- weights of other projects ------------------------------------------------------------------


def converting(path, tmp_path, *more):
    return ('convert', '--net=espnetv2', f'--weights={path}', f'--output={tmp_path / "m"}', *more)


GAMMA = 'base_net.level1.bn.weight'


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({GAMMA: None}, ['1 missing', 'level1/norm/scale']),
        ({'surplus.weight': np.ones(3)}, ['1 unknown', 'surplus.weight']),
        ({GAMMA: np.ones(16)}, ['1 misshapen', GAMMA, '[16]', '[32]']),
    ],
    ids=['missing', 'extra', 'misshapen'],
)
def test_weights_that_do_not_fit_the_network(change, named, tmp_path, capsys):
    weights = golden_weights.state_dict(GOLDEN / 'ESPNetv2_s2.0_20.keys.json') | change
    np.savez(tmp_path / 'w.npz', **{k: v for k, v in weights.items() if v is not None})
    refused(capsys, converting(tmp_path / 'w.npz', tmp_path), 'espnetv2', 'check --net', *named)


def test_files_that_are_no_weights(tmp_path, capsys):
    (tmp_path / 'text.npz').write_text('no archive')
    np.savez(tmp_path / 'pickled.npz', a=np.array([{}], dtype=object))
    (tmp_path / 'text.safetensors').write_text('no archive')
    (tmp_path / 'w.bin').write_text('')
    for name, found in (
        ('text.npz', 'an unreadable file'),
        ('pickled.npz', 'Object arrays cannot be loaded'),
        ('text.safetensors', 'an unreadable file'),
        ('gone.npz', 'no such file'),
        ('w.bin', 'file type'),
    ):
        refused(capsys, converting(tmp_path / name, tmp_path), name, found)
    path = tmp_path / 'text.npz'
    other = ('convert', '--net=espnet', f'--weights={path}', f'--output={tmp_path / "m"}')
    refused(capsys, (*other[:3], f'--output={tmp_path}'), str(tmp_path), 'exists', 'remove it')
    np.savez(path, a=np.ones(3))
    refused(capsys, other, "'espnet'", "did you mean 'espnetv2'?")
    assert not (tmp_path / 'm').exists()
