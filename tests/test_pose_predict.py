"""Poses of pictures: as evaluation finds them, from boxes of a file, in COCO's form and drawn."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from refusals import TINY as TOY
from refusals import assert_one_line, refused
from test_pose_training import COUNT, JOINTS, Blobs, trained

from dsrl_jax import cli, data, inference, model_directory, paper_figures, tasks
from dsrl_jax import config as configs
from dsrl_jax.data import picture_boxes
from dsrl_jax.errors import UserError


@pytest.fixture(scope='module', autouse=True)
def blobs():
    data.SOURCES['blobs'] = lambda config, split: Blobs(split)
    yield
    del data.SOURCES['blobs']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The workdir of the run of test_pose_training, whose programs are compiled once."""
    return trained(tmp_path_factory.mktemp('predict') / 'run')


@pytest.fixture(scope='module')
def model(run):
    """The run's network with other weights, whose heatmaps have peaks all over."""
    model = inference.from_workdir(run)[0]
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), model.variables['params'])
    noisy = jax.tree.map(np.float32, noisy)
    model.variables = {**model.variables, 'params': noisy}
    return model


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported') / 'model'
    about = {'report': {}, 'kind': 'exact', 'step': 12, 'source': 'blobs'}
    model_directory.write(folder, model, formats=('params',), **about)
    return folder


def numbers(entries):
    return np.array([[*entry['keypoints'], entry['score']] for entry in entries])


def test_prediction_is_evaluation(model, tmp_path):
    """The true boxes of a split give the results that its score is taken of."""
    source, found, places = Blobs('val'), [], []
    about = {'sr': False, 'pictures': tmp_path}
    scores = tasks.pose.evaluate(model.network, model.variables, model.config, source, **about)
    scored = json.loads((tmp_path / 'results.json').read_text())
    for element in (source[index] for index in range(len(source))):
        result = model.predict(element['image'], [element['box']])
        assert result.joints.shape == (1, COUNT, 2) and result.confidence.shape == (1, COUNT)
        places.append(result.joints - element['box'][:2])
        found += result.to_coco(int(element['image_id']))
    assert scores['people'] == len(found) == len(scored)
    assert np.ptp(np.concatenate(places), axis=0).min() > 5  # not one place for all
    for key in ('image_id', 'category_id'):
        assert [entry[key] for entry in found] == [entry[key] for entry in scored]
    np.testing.assert_allclose(numbers(found), numbers(scored), rtol=1e-3, atol=1e-2)


def test_people_in_batches_are_people_alone(model):
    """More boxes than one batch holds, and a part of them in any order."""
    image = Blobs('val')[1]['image']
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(-5, 30, (11, 2)), rng.uniform(40, 90, (11, 2))], 1)
    many = model.predict(image, boxes)
    assert many.joints.shape == (11, COUNT, 2) and np.array_equal(many.boxes, boxes)
    for row in (0, 7, 10):
        alone = model.predict(image, boxes[row : row + 1])
        np.testing.assert_allclose(alone.joints[0], many.joints[row], atol=1e-2)
        np.testing.assert_allclose(alone.scores[0], many.scores[row], rtol=1e-3)
    assert len(model.predict(image, []).to_coco(1)) == 0
    twice = model.predict(image, [boxes[0], boxes[0]])
    assert len(twice.joints) == 2 and len(twice.to_coco(5)) == 1  # one person
    whole = model.predict(image)
    assert whole.boxes.tolist() == [[0, 0, 96, 128]]
    assert np.array_equal(whole.joints, model.predict(image, [[0, 0, 96, 128]]).joints)
    assert np.array_equal(whole.overlay(threshold=np.inf), image)
    assert not np.array_equal(whole.overlay(threshold=-1.0), image)


@pytest.mark.parametrize(
    ('boxes', 'named'),
    [
        ([[96, 0, 10, 10]], ['box 0', 'outside the image', '96x128']),
        ([[0, 0, 9, 9], [5, 5, 0, 10]], ['box 1', '0x10', 'above 0']),
        ([[1, 2, 3]], ['box 0', '[1.0, 2.0, 3.0]', 'four numbers']),
        ([1, 2, 3, 4], ['box 0', 'four numbers']),
        ([[0, 0, float('nan'), 4]], ['box 0', 'nan', 'four numbers']),
        (7, ['boxes', '7', 'a list of']),
    ],
)
def test_bad_boxes_are_named(model, boxes, named):
    with pytest.raises(UserError) as caught:
        model.predict(np.zeros((128, 96, 3), np.uint8), boxes)
    assert_one_line(f'error: {caught.value}', named)


def test_boxes_are_for_poses_and_padding_for_class_maps(model):
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(UserError, match='resize=False'):
        model.predict(image, resize=False)
    toy = inference.Model(configs.load(TOY), {}, ['a', 'b'], [(0, 0, 0), (9, 9, 9)])
    with pytest.raises(UserError, match='boxes: found a network for segmentation'):
        toy.predict(image, [[0, 0, 9, 9]])


def test_a_model_knows_its_joints(run, model, exported, tmp_path, capsys):
    assert model.keypoints == inference.load(exported).keypoints == JOINTS
    for home, name, verb in ((run, 'dataset.json', 'eval'), (exported, 'config.json', 'predict')):
        saved = json.loads((home / name).read_text())
        short = {k: v for k, v in saved['keypoints'].items() if k != 'sigmas'}
        wrong = saved['keypoints'] | {'flip_pairs': [[1, 3]]}
        others = saved['keypoints'] | {'names': ['a', 'b', 'c']}
        for number, (change, named) in enumerate(
            (
                ({}, ['keypoints: found none', 'again']),
                ({'keypoints': short}, ['not all of its lists', 'sigmas']),
                ({'keypoints': wrong}, ['flip_pairs', '0 to 2']),
                ({'keypoints': others}, ['names', 'head']),
            )
        ):
            copy = tmp_path / f'{verb}{number}'
            shutil.copytree(home, copy)
            kept = {k: v for k, v in saved.items() if k != 'keypoints'}
            (copy / name).write_text(json.dumps(kept | change))
            argv = {
                'eval': ['eval', f'--workdir={copy}'],
                'predict': ['predict', f'--model={copy}', '--output=o', copy / name],
            }
            refused(capsys, argv[verb], name, *named)


@pytest.fixture
def photos(tmp_path):
    """Two pictures of people, numbered as COCO's."""
    paths = []
    for index in (0, 1):
        path = tmp_path / f'{index + 785:012d}.png'
        Image.fromarray(Blobs('val')[index]['image']).save(path)
        paths.append(path)
    return paths


def test_the_command_writes_skeletons_and_results(exported, photos, tmp_path, capsys):
    model, box = inference.load(exported), [16, 5, 64, 118]
    entries = [
        {'image_id': 785, 'category_id': 1, 'bbox': box, 'score': 0.5},
        {'file_name': f'val/{photos[1].name}', 'bbox': box},
        {'image_id': 785, 'category_id': 3, 'bbox': 'of a car'},
    ]
    (tmp_path / 'boxes.json').write_text(json.dumps(entries))
    argv = ['predict', f'--model={exported}', f'--output={tmp_path / "out"}']
    assert cli.main([*argv, f'--boxes={tmp_path / "boxes.json"}', *map(str, photos)]) == 0
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert [e['image_id'] for e in written] == [785, 786]
    assert [e['file_name'] for e in written] == [path.name for path in photos]
    for path, entry, score in zip(photos, written, (0.5, 1)):
        result = model.predict(path, [box])
        expected = numbers(result.to_coco(0)) * np.array([1] * 3 * COUNT + [score])
        np.testing.assert_allclose(numbers([entry]), expected, rtol=1e-3, atol=1e-2)
        overlay = np.asarray(Image.open(tmp_path / 'out' / f'{path.stem}_overlay.png'))
        assert overlay.shape == result.image.shape
    assert cli.main([*argv, str(photos[0])]) == 0
    assert 'the whole picture' in capsys.readouterr().out
    refused(capsys, [*argv, '--no-resize', photos[0]], '--no-resize', 'a network for pose')


BOX = {'file_name': '000000000785.png', 'bbox': [1, 1, 20, 20]}
OTHER = BOX | {'file_name': '000000000786.png'}


@pytest.mark.parametrize(
    ('entries', 'named'),
    [
        ([BOX], ['000000000786.png', 'no person', 'leave the picture out']),
        ([BOX, OTHER, BOX | {'file_name': 'a.png'}], ['box 2', "'a.png'", 'pictures given']),
        ([{'image_id': 787, 'bbox': [1, 1, 2, 2]}], ['box 0', 'image_id 787', 'pictures given']),
        ([BOX | {'bbox': [200, 1, 2, 2]}], ['box 0', 'outside', '96x128']),
        ([BOX | {'bbox': [1, 1, 2, 0]}], ['box 0', '2x0', 'above 0']),
        ([BOX | {'score': 'high'}], ['box 0', "'high'", 'a number']),
        ([{'bbox': [1, 1, 2, 2]}], ['box 0', 'file_name or image_id']),
        ([BOX | {'image_id': 1}, BOX | {'image_id': 2}], ['box 1', 'image_id 2', '1, as of']),
        ([BOX | {'image_id': 1}, OTHER | {'image_id': 1}], ['image_id 1', 'one a picture']),
        ({'boxes': []}, ['a dict', 'a list of boxes']),
    ],
)
def test_a_file_of_boxes_that_does_not_fit_is_refused(photos, tmp_path, entries, named):
    (tmp_path / 'boxes.json').write_text(json.dumps(entries))
    with pytest.raises(UserError) as caught:
        picture_boxes.read(tmp_path / 'boxes.json', photos)
    assert_one_line(f'error: {caught.value}', ['boxes.json', *named])


def test_pictures_without_numbers_are_counted(photos, tmp_path):
    named = tmp_path / 'street.png'
    shutil.copy(photos[0], named)
    assert [p.image_id for p in picture_boxes.whole(photos)] == [785, 786]
    assert [p.image_id for p in picture_boxes.whole([*photos, named])] == [1, 2, 3]
    entry = {'file_name': 'street.png', 'image_id': 12, 'bbox': [1, 1, 2, 2]}
    (tmp_path / 'b.json').write_text(json.dumps([entry]))
    assert picture_boxes.read(tmp_path / 'b.json', [named]) == [(12, [[1, 1, 2, 2]], [1.0])]


def test_an_evaluation_shows_the_first_and_the_worst(run):
    names = {kind: sorted((run / 'eval_val' / kind).iterdir()) for kind in ('first', 'worst')}
    assert [path.name for path in names['first']] == [f'{k}_{k:05d}.png' for k in range(4)]
    assert len(names['worst']) == 4
    sheet = np.asarray(Image.open(names['first'][0]))
    assert sheet.shape[1] == 3 * 328 + 8  # image, truth, prediction
    image, truth = sheet[30:-8, 8:328], sheet[30:-8, 336:656]
    assert (image != truth).any(-1).sum() > 200


def test_figure_9_is_drawn_from_runs_for_poses_alone(run, tmp_path):
    config = configs.load_json(run / 'config.json')
    runs = {'plain network': run, 'DSRL': run}
    path = paper_figures.figure('figure9', runs, config, tmp_path)
    picture = np.asarray(Image.open(path))
    assert path.name == 'figure9.png' and picture.shape[1] == 4 * 328 + 8
    cells = [picture[:, 8 + 328 * k : 328 + 328 * k].astype(int) for k in range(4)]
    assert (cells[0] != cells[1])[40:].any(-1).sum() > 500
    assert np.array_equal(cells[2][40:300], cells[3][40:300])  # the same run
    with pytest.raises(UserError, match='figure6, the data set blobs: found one for pose'):
        paper_figures.figure('figure6', runs, config, tmp_path)
    with pytest.raises(UserError, match="run 'DSRL': found one for pose; expected one for segm"):
        paper_figures.figure('figure6', {'DSRL': run}, configs.load(TOY), tmp_path)
    with pytest.raises(UserError, match='figure9, the data set synthetic: found one for segm'):
        paper_figures.figure('figure9', runs, configs.load(TOY), tmp_path)
