"""Counts of single images against the pooled evaluation; subsets, perfect and missing images."""

import json

import jax
import numpy as np
import pytest

from dsrl_jax import boundary, data, detailed, inference, metrics, state
from dsrl_jax import config as configs
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.tasks import segmentation

THIN = ('pole', 'sign', 'person', 'rider')


def scored(predictions, source, thin):
    """The pooled numbers of a split, with the names and counts of its images beside them."""
    arrays = detailed.count(predictions, source)
    kept = {name: arrays[name] for name in ('names', 'confusion')}
    return detailed.pooled(arrays, source.classes, thin=thin) | kept


@pytest.fixture(scope='module')
def source():
    return SyntheticSource('val', size=(48, 64), length=5)


@pytest.fixture(scope='module')
def answers(source):
    """(index, prediction, label) of every image: right but for some pixels, 255 among them."""
    rng, found = np.random.default_rng(0), []
    for index in range(len(source)):
        label = source[index]['label']
        noise = rng.choice([*range(11), 255], label.shape).astype(np.uint8)
        found.append((index, np.where(rng.random(label.shape) < 0.2, noise, label), label))
    return found


def confusion(answers):
    return metrics.Confusion.from_model_output(
        prediction=np.stack([p for _, p, _ in answers]),
        label=np.stack([label for _, _, label in answers]),
        num_classes=11,
    )


def test_scores_are_those_of_the_pooled_matrix(source, answers):
    scores = scored(answers, source, thin=THIN)
    expected = confusion(answers).compute()
    thin = [source.classes.index(name) for name in THIN]
    assert scores['miou'] == pytest.approx(float(expected['miou']))
    assert scores['pixel_accuracy'] == pytest.approx(float(expected['pixel_accuracy']))
    assert scores['iou'] == pytest.approx(expected['iou'].tolist(), nan_ok=True)
    assert scores['thin_miou'] == pytest.approx(np.nanmean(expected['iou'][thin]))
    matrices = scores.pop('confusion')
    assert matrices.shape == (5, 11, 12) and matrices.dtype == np.int32
    np.testing.assert_array_equal(matrices.sum(0), np.asarray(confusion(answers).counts)[:11])
    assert scores.pop('names').tolist() == [source[i]['name'] for i in range(5)]
    json.dumps(scores, allow_nan=False)


def test_scores_of_some_images_are_those_of_them_alone(source, answers, tmp_path):
    """Also through a file, which numpy writes and reads without pickles."""
    np.savez(tmp_path / 'counts.npz', **detailed.count(reversed(answers), source))
    arrays = dict(np.load(tmp_path / 'counts.npz'))
    some = [answers[1], answers[3]]
    for rows in ([1, 3], np.isin(np.arange(5), [1, 3])):
        scores = detailed.pooled(arrays, source.classes, rows=rows, thin=THIN)
        assert scores['images'] == 2
        assert scores['miou'] == pytest.approx(float(confusion(some).compute()['miou']))
        contours = sum(boundary.contour_counts(p, label, (2,), 11) for _, p, label in some)
        assert scores['boundary_iou'][1] == pytest.approx(np.nanmean(boundary.iou(contours)[0]))
        trimaps = sum(boundary.counts(p, label, (3,), 11) for _, p, label in some)
        assert scores['trimap_miou'][2] == pytest.approx(metrics.mean_iou(trimaps)[0])


def test_truth_itself_is_perfect(source, answers):
    scores = scored(((i, t, t) for i, _, t in answers), source, thin=THIN)
    assert scores['miou'] == scores['thin_miou'] == scores['pixel_accuracy'] == 1
    for name in ('trimap_miou', 'boundary_iou', 'thin_boundary_iou'):
        assert scores[name] == [1, 1, 1, 1]


def test_a_set_without_thin_classes_says_none(source, answers):
    scores = scored(answers, source, thin=())
    assert scores['thin_miou'] is None and scores['thin_boundary_iou'] == [None] * 4
    assert scores['miou'] is not None


def test_every_image_once(source, answers):
    for some in (answers[:-1], [*answers, answers[0]]):
        with pytest.raises(ValueError, match='of 5 images missing'):
            detailed.count(some, source)


def test_mean_iou_equals_the_metric_and_keeps_leading_axes(answers):
    counts = np.asarray(confusion(answers).counts)[:11]
    full = metrics.mean_iou(counts)
    assert full == pytest.approx(float(confusion(answers).compute()['miou']))
    both = metrics.mean_iou(np.stack([counts, 0 * counts]))
    assert both[0] == full and np.isnan(both[1])


def test_predictions_are_what_evaluation_scores():
    """One compiled step for both; images of the split in order, at their own size."""
    config = configs.load('synthetic:tiny,net=toy_network:Toy')
    config.data.length, config.data.eval_batch_size = 6, 4  # the last batch is filled up
    source = data.build(config.data, 'val')
    network = inference.build_network(config, len(source.classes))
    variables = state.init_variables(network, (32, 64), jax.random.key(1))
    step = segmentation.jit_eval_step(network, config, source, sr=False)
    whole = segmentation.evaluate(network, variables, config, source, sr=False, step_fn=step)
    found = list(segmentation.predictions(network, variables, config, source, step_fn=step))
    assert [index for index, _, _ in found] == list(range(6))
    for index, prediction, label in found:
        assert prediction.shape == label.shape
        np.testing.assert_array_equal(label, source[index]['label'])
    scores = scored(found, source, thin=THIN)
    for name in ('images', 'miou', 'pixel_accuracy', 'iou'):
        assert scores[name] == pytest.approx(whole[name])
    assert 0 < scores['miou'] < 1
