"""Scores of the Cityscapes server: those of the official script, on files and as stored numbers."""

import math

import numpy as np
import pytest
from PIL import Image

from dsrl_jax import cityscapes_scores as city
from dsrl_jax import config as configs
from dsrl_jax import data, metrics
from dsrl_jax.data import cityscapes, make_cityscapes
from dsrl_jax.errors import UserError

MAPS = 22
# What evalPixelLevelSemanticLabeling of cityscapesscripts 2.3.0 gives for the maps below.
OFFICIAL = {
    'miou': 0.31192392208168834,
    'category_miou': 0.3486837891293429,
    'miiou': 0.4097299764031993,
    'category_miiou': 0.47867708652253227,
    'iou/road': 0.33933933933933935,
    'iou/sidewalk': 0.30650060753341435,
    'iou/building': 0.3773879142300195,
    'iou/wall': 0.2619047619047619,
    'iou/fence': 0.2715644473597901,
    'iou/pole': 0.2535641547861507,
    'iou/traffic light': 0.27586206896551724,
    'iou/traffic sign': 0.271418779986292,
    'iou/vegetation': 0.2600129198966408,
    'iou/terrain': 0.36129458388375163,
    'iou/sky': 0.3469648562300319,
    'iou/person': 0.3528989409441752,
    'iou/rider': 0.305014647596071,
    'iou/car': 0.3080422659230995,
    'iou/truck': 0.36166096145259713,
    'iou/bus': 0.30727806788511747,
    'iou/train': 0.3260600433302383,
    'iou/motorcycle': 0.31725477500809324,
    'iou/bicycle': 0.32253038329697725,
    'category_iou/flat': 0.34558823529411764,
    'category_iou/construction': 0.32780349794238683,
    'category_iou/object': 0.31164807930607186,
    'category_iou/nature': 0.3221819380355966,
    'category_iou/sky': 0.3469648562300319,
    'category_iou/human': 0.35273052820053713,
    'category_iou/vehicle': 0.4338693888966578,
    'iiou/person': 0.4198132100723444,
    'iiou/rider': 0.35657424047686886,
    'iiou/car': 0.3841886866367489,
    'iiou/truck': 0.47398184920630637,
    'iiou/bus': 0.4135057542931871,
    'iiou/train': 0.43516021121063186,
    'iiou/motorcycle': 0.4084076044430302,
    'iiou/bicycle': 0.3862082548864768,
    'category_iiou/human': 0.41245260166880215,
    'category_iiou/vehicle': 0.5449015713762624,
}


def drawn(number):
    """(prediction, truth, instances): label ids of all kinds, a third of the cells wrong."""
    rng = np.random.default_rng(number)
    cells = rng.integers(0, 34, (6, 12))
    things = rng.random((6, 12)) < 0.3
    cells[things] = rng.integers(24, 34, things.sum())
    instances = cells.copy()
    alone = (cells >= 24) & (rng.random((6, 12)) < 0.8)  # the others are groups: no instance
    instances[alone] = cells[alone] * 1000 + rng.integers(0, 4, alone.sum())
    found = np.where(rng.random((6, 12)) < 0.35, rng.integers(0, 34, (6, 12)), cells)
    found = np.where(rng.random((6, 12)) < 0.1, 0, found)
    truth, instances = (np.kron(a, np.ones((8, 8), int)) for a in (cells, instances))
    found = np.roll(np.kron(found, np.ones((8, 8), int)), (number % 5, -(number % 3)), (0, 1))
    return found.astype(np.uint8), truth.astype(np.uint8), instances.astype(np.uint16)


@pytest.fixture(scope='module')
def ours():
    total = city.empty()
    for number in range(MAPS):
        total += city.count(*drawn(number))
    return city.scores(total)


def flat(result):
    """{'miou': ..., 'iou/road': ...} of our scores."""
    means = {name: value for name, value in result.items() if not isinstance(value, dict)}
    parts = {
        f'{name}/{key}': value
        for name, part in result.items()
        if isinstance(part, dict)
        for key, value in part.items()
    }
    return means | parts


def official(predictions, truths):
    """The same from the official script, run on files; skips where it is not installed."""
    script = pytest.importorskip(
        'cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling',
        reason='the extra cityscapes is not installed',
    )
    with pytest.MonkeyPatch.context() as patch:
        # The script still calls by this name what newer numpy has as isin alone.
        patch.setattr(np, 'in1d', np.isin, raising=False)
        patch.setattr(script.args, 'quiet', True)
        patch.setattr(script.args, 'JSONOutput', False)
        found = script.evaluateImgLists([*map(str, predictions)], [*map(str, truths)], script.args)
    names = {
        **{'averageScoreClasses': 'miou', 'averageScoreCategories': 'category_miou'},
        **{'averageScoreInstClasses': 'miiou', 'averageScoreInstCategories': 'category_miiou'},
    }
    parts = {'classScores': 'iou', 'categoryScores': 'category_iou'}
    parts |= {'classInstScores': 'iiou', 'categoryInstScores': 'category_iiou'}
    numbers = {ours: found[theirs] for theirs, ours in names.items()}
    for theirs, ours in parts.items():
        numbers |= {f'{ours}/{k}': v for k, v in found[theirs].items() if not math.isnan(v)}
    return numbers


def test_equal_to_stored_numbers_of_the_official_script(ours):
    numbers = flat(ours)
    assert set(numbers) == set(OFFICIAL)
    for name, value in OFFICIAL.items():
        assert numbers[name] == pytest.approx(value, abs=1e-12), name


def test_equal_to_the_official_script_on_files(ours, tmp_path):
    predictions, truths = [], []
    for number in range(MAPS):
        name = f'bad_{number:06d}_000019'
        kinds = ('pred_labelIds', 'gtFine_labelIds', 'gtFine_instanceIds')
        paths = [tmp_path / f'{name}_{kind}.png' for kind in kinds]
        for path, pixels in zip(paths, drawn(number)):
            Image.fromarray(pixels).save(path)
        predictions.append(paths[0])
        truths.append(paths[1])
    theirs, numbers = official(predictions, truths), flat(ours)
    assert set(numbers) == set(theirs)
    for name, value in theirs.items():
        assert numbers[name] == pytest.approx(value, abs=1e-12), name


def test_the_drawn_maps_hold_every_case():
    truth = np.stack([drawn(n)[1] for n in range(MAPS)])
    found = np.stack([drawn(n)[0] for n in range(MAPS)])
    instances = np.stack([drawn(n)[2] for n in range(MAPS)])
    assert set(np.unique(truth)) == set(np.unique(found)) == set(range(34))
    ignored = ~np.isin(found, cityscapes.LABEL_IDS)
    assert (ignored & np.isin(truth, cityscapes.LABEL_IDS)).any()
    groups = np.isin(truth, cityscapes.THINGS) & (instances < 1000)
    assert groups.any() and (instances // 1000 == 29).any()


def test_class_iou_is_that_of_the_pooled_matrix_of_train_ids():
    total, pooled = city.empty(), metrics.Confusion.empty(19)
    for number in range(4):
        prediction, truth, _ = drawn(number)
        total += city.count(prediction, truth)
        train = [trained(ids) for ids in (prediction, truth)]
        pooled = pooled.merge(
            metrics.Confusion.from_model_output(
                prediction=train[0][None], label=train[1][None], num_classes=19
            )
        )
    result, expected = city.scores(total, instances=False), pooled.compute()
    assert result['miou'] == pytest.approx(float(expected['miou']), abs=1e-12)
    assert 'iiou' not in result
    np.testing.assert_allclose(list(result['iou'].values()), expected['iou'], atol=1e-12)


def trained(ids):
    table = np.full(34, 255, np.uint8)
    table[list(cityscapes.LABEL_IDS)] = np.arange(19)
    return table[ids]


def test_an_instance_weighs_the_same_whatever_its_size():
    """Two cars, the small one missed: half of iTP, whatever share of the pixels it is."""
    truth = np.full((8, 100), 26, np.uint8)
    instances = np.full((8, 100), 26000, np.uint16)
    truth[:, :4], instances[:, :4] = 26, 26001
    prediction = np.where(instances == 26001, 0, 26).astype(np.uint8)
    result = city.scores(city.count(prediction, truth, instances))
    assert result['iiou']['car'] == pytest.approx(0.5)
    assert result['iou']['car'] == pytest.approx(0.96)
    assert result['category_iiou']['vehicle'] == pytest.approx(0.5)
    assert result['iou']['road'] is None and result['miou'] == pytest.approx(0.96)


def test_what_cannot_be_counted_is_refused():
    one = np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match='sizes differ'):
        city.count(one, one[:2])
    with pytest.raises(ValueError, match='end at 33'):
        city.count(one + 255, one)


def test_instances_are_found_beside_the_labels(tmp_path):
    make_cityscapes.make(tmp_path / 'city', 3, size=(64, 128), say=lambda line: None)
    config = configs.load('cityscapes:tiny').data
    config.root = str(tmp_path / 'city')
    source = data.build(config, 'val')
    assert city.is_cityscapes(source) and city.has_instances(source)
    label = source[0]['label']
    perfect = cityscapes.to_label_ids(label)
    counts = city.count_element(source, 0, perfect, label, instances=True)
    result = city.scores(counts)
    assert result['miou'] == result['category_miou'] == 1
    assert {value for value in result['iiou'].values() if value is not None} == {1.0}
    path = city.instance_file(source, 0)
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(path)
    with pytest.raises(UserError, match='64x128, as its label'):
        city.count_element(source, 0, perfect, label, instances=True)
    path.unlink()
    assert not city.has_instances(source)
    assert 'label' not in data.build(config, 'test').files(0)
    assert city.instance_file(data.build(config, 'test'), 0) is None
