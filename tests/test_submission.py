"""Files for the Cityscapes server: regular ids, official names, refused where it would refuse."""

import contextlib
import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from refusals import refused
from test_cityscapes_scores import official

from dsrl_jax import cli, data, submission
from dsrl_jax import config as configs
from dsrl_jax.data import cityscapes, make_cityscapes
from dsrl_jax.errors import UserError

SIZE = (64, 128)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('generated') / 'city'
    make_cityscapes.make(root, 12, size=SIZE, seed=3, say=lambda line: None)
    return root


@pytest.fixture(scope='module')
def workdir(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run') / 'run'
    words = ['--config=cityscapes:tiny,net=toy_network:Toy,dsrl=none', '--config.steps=1']
    words += [f'--config.data.root={root}', f'--workdir={workdir}', '--config.eval.pictures=0']
    assert cli.main(['train', *words]) == 0
    return workdir


def listed(root, split):
    config = configs.load('cityscapes:tiny').data
    config.root = str(root)
    return data.build(config, split)


def whole(root, split):
    """The generated split as if it were the public one."""
    return dataclasses.replace(listed(root, split), differences=(), public_size=SIZE)


def written(folder):
    return sorted(folder.glob('*_pred_labelIds.png'))


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture(scope='module')
def dry_run(root, workdir, tmp_path_factory):
    """(the folder of a submission of val, the scores that the command gave, what it printed)."""
    folder = tmp_path_factory.mktemp('dry') / 'out'
    words = ['eval', f'--workdir={workdir}', f'--submission={folder}', '--partial']
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([*words, f'--output={folder.with_name("scores")}']) == 0
    return folder, json.loads(out.getvalue().splitlines()[-1]), out.getvalue()


def test_a_dry_run_gives_the_scores_of_the_run(dry_run):
    _, scores, out = dry_run
    files = scores['submission']['scores']
    assert files == scores['cityscapes'] and files['miou'] == pytest.approx(scores['miou'])
    assert f'mIoU of the written files: {100 * scores["miou"]:.2f}' in out
    for words in ('category IoU', 'iIoU', 'category iIoU'):
        assert f'\n{words} ' in out


def test_a_dry_run_gives_the_scores_of_the_official_script(root, dry_run):
    folder, scores, _ = dry_run
    files = scores['submission']['scores']
    truths = sorted(root.glob('gtFine/val/*/*_gtFine_labelIds.png'))
    assert len(truths) == len(written(folder)) == scores['images']
    theirs = official(written(folder), truths)
    for name in ('miou', 'category_miou', 'miiou', 'category_miiou'):
        assert files[name] == pytest.approx(theirs[name], abs=1e-12), name


def test_a_split_without_labels(root, workdir, tmp_path, capsys):
    folder = tmp_path / 'out'
    words = ['eval', f'--workdir={workdir}', '--split=test', f'--output={tmp_path / "scores"}']
    refused(capsys, words, 'split test', 'images without labels', '--submission=DIR')
    assert cli.main([*words, f'--submission={folder}', '--partial']) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores['images'] == 3 and 'miou' not in scores
    assert 'view 64x128 (resize)' in scores['protocol']
    names = {path.name for path in written(folder)}
    images = root.glob('leftImg8bit/test/*/*.png')
    assert names == {p.name.replace('leftImg8bit', 'pred_labelIds') for p in images}
    for path in written(folder):
        assert read(path).shape == SIZE and set(np.unique(read(path))) <= set(cityscapes.LABEL_IDS)
    assert not (folder / submission.ARCHIVE).exists()


def test_a_part_is_refused_before_anything_is_computed(root, workdir, tmp_path, capsys):
    words = ['eval', f'--workdir={workdir}', f'--submission={tmp_path / "out"}']
    refused(capsys, [*words, '--split=test'], '3 images of test', '1525', '--partial')
    refused(capsys, [*words, '--split=train+val'], 'train+val', 'a whole public split')
    refused(capsys, [*words[:2], '--partial'], '--partial', '--submission=DIR')
    (tmp_path / 'out').mkdir()
    refused(capsys, [*words, '--partial'], 'out', 'something that exists')
    assert not (tmp_path / 'out.partial').exists()


def test_a_whole_split_becomes_one_archive(root, tmp_path):
    source = whole(root, 'test')
    folder = submission.start(tmp_path / 'out', source, partial=False)
    trained = np.tile(np.array([*range(19), 19, 255], np.uint8), (64, 7))[:, :128]
    for index in range(3):
        submission.write(folder, source, index, trained)
    assert not folder.exists()
    result = submission.finish(folder, source, partial=False)
    assert 'scores' not in result and not (tmp_path / 'out.partial').exists()
    with zipfile.ZipFile(result['archive']) as archive:
        assert archive.namelist() == [path.name for path in written(folder)]
        assert archive.testzip() is None
        first = archive.read(archive.namelist()[0])
    path = written(folder)[0]
    assert first == path.read_bytes()
    with Image.open(path) as image:
        assert image.mode == 'L' and image.size == (128, 64)
    assert np.array_equal(read(path), cityscapes.to_label_ids(trained))
    assert set(np.unique(read(path))) == {0, *cityscapes.LABEL_IDS}


def test_the_files_are_checked_when_all_are_written(root, tmp_path):
    source = whole(root, 'test')
    folder = submission.start(tmp_path / 'out', source, partial=False)
    right = np.zeros(SIZE, np.uint8)
    for index in range(2):
        submission.write(folder, source, index, right)
    with pytest.raises(UserError, match='0 foreign files and 1 missing'):
        submission.finish(folder, source, partial=False)
    submission.write(folder, source, 2, right[:-2])
    with pytest.raises(UserError, match='regular ids, 64x128'):
        submission.finish(folder, source, partial=False)
    assert not folder.exists()
    submission.discard(folder)
    assert not list(tmp_path.iterdir())


def test_another_size_is_refused(root, tmp_path):
    source = dataclasses.replace(listed(root, 'val'), differences=())
    with pytest.raises(UserError, match='found an image of 64x128'):
        submission.start(tmp_path / 'out', source, partial=False)


def test_a_packed_split_is_counted(root, tmp_path):
    """It does not say how it differs from the public one."""
    words = ['--dataset=cityscapes', f'--root={root}', f'--output={tmp_path / "packed"}']
    assert cli.main(['data', 'pack', *words, '--split=val']) == 0
    config = configs.load('cityscapes:tiny').data
    config.update(name='packed', root=str(tmp_path / 'packed'))
    source = data.build(config, 'val')
    with pytest.raises(UserError, match='1 images of val; expected 500 images'):
        submission.start(tmp_path / 'out', source, partial=False)
    folder = submission.start(tmp_path / 'out', source, partial=True)
    submission.write(folder, source, 0, source[0]['label'])
    result = submission.finish(folder, source, partial=True)
    assert result['scores']['miou'] == 1 and 'miiou' not in result['scores']


def test_other_classes_are_refused(tmp_path):
    source = data.build(configs.load('synthetic:tiny').data, 'val')
    with pytest.raises(UserError, match='the 19 of Cityscapes'):
        submission.start(tmp_path / 'out', source, partial=True)
