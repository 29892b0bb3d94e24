"""COCO keypoints: the filter, batches by position, detections, joints of one's own."""

import itertools
import json

import numpy as np
import pytest
from coco_files import annotation, build, edit, make, settings
from PIL import Image
from refusals import assert_one_line, refused

from dsrl_jax import cli
from dsrl_jax.data import person_batches, person_boxes
from dsrl_jax.data.persons import colors
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import COCO

DETECTIONS = 'person_detection_results/mmpose_test_coco_det_AP_H_56.json'


@pytest.fixture
def root(tmp_path):
    return make(tmp_path)


def test_the_filter_and_the_clipped_box(root):
    silent = [0] * 51
    edit(
        root,
        annotations=lambda _: [
            annotation(1, bbox=[8, 16, 30, 40]),
            annotation(2, bbox=[-5, -2, 30.5, 40]),
            annotation(3, bbox=[70, 60, 30, 40]),
            annotation(4, iscrowd=1, keypoints='anything'),
            annotation(5, keypoints=silent),
            annotation(6, keypoints=silent, bbox=[0, 0, 0, 0]),
            annotation(7, area=0),
            annotation(8, category_id=2),
            annotation(9, keypoints=[4, 5, 1, *silent[3:]]),
        ],
    )
    source = build(root)
    assert not source.problems and source.persons.number.tolist() == [1, 2, 3, 9]
    # From the first to the last pixel centre, inside the image of 80x64.
    expected = [[8, 16, 29, 39], [0, 0, 29.5, 39], [70, 60, 9, 3], [8, 16, 29, 39]]
    assert np.allclose(source.persons.box, expected)
    assert source[3]['visible'].sum() == 1 and source[3]['joints'][0].tolist() == [4, 5]
    for words in ('4 persons on 1 of 3', '1 crowds', '1 without area', '2 without a labelled'):
        assert words in source.note


def test_real_annotations_and_their_counts(real_data):
    for split, persons, joints in (('train', 103, 1010), ('val', 122, 1212)):
        source = build(real_data / 'coco_mini', split)
        assert not source.problems and not source.differences
        assert len(source) == persons and source.labelled_joints().sum() == joints
        for index in (0, len(source) - 1):
            element = source[index]
            assert element['image'].shape[:2] == source.image_size(index)
            labelled = element['joints'][element['visible'] > 0]
            assert (labelled >= 0).all() and (labelled < element['image'].shape[1::-1]).all()


def test_real_detections(real_data):
    source = build(real_data / 'coco_mini')
    detected = person_boxes.with_boxes(source, real_data / 'coco_mini' / DETECTIONS)
    assert len(detected) == 118 and '118 detected boxes' in detected.note
    element = detected[0]
    assert np.allclose(element['box'], [277.1183, 45.6998, 225.0913, 333.5603], atol=1e-3)
    assert element['image_id'] == 785 and not element['visible'].any()
    assert abs(element['score'] - 0.99997) < 1e-4
    config = settings(real_data / 'coco_mini')
    batches = list(person_batches.eval_batches(detected, config, batch_size=32))
    assert sum(batch['valid'].sum() for batch in batches) == 118
    assert person_boxes.with_boxes(source, '') is source


def train(root, count, *, start=0, seed=3, process=(0, 1), **changes):
    config = settings(root, **changes)
    batches = person_batches.train_batches(
        build(root),
        config,
        seed=seed,
        start=start,
        batch_size=4,
        process_index=process[0],
        process_count=process[1],
    )
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def equal(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b)
    )


def test_a_batch_depends_on_seed_and_step_alone(root):
    straight = train(root, 5)
    found = {k: (v.shape, str(v.dtype)) for k, v in straight[0].items()}
    assert found == {
        'target': ((4, 64, 48, 3), 'uint8'),
        'mask': ((4, 64, 48), 'bool'),
        'joints': ((4, 17, 2), 'float32'),
        'visible': ((4, 17), 'float32'),
    }
    assert all(batch['mask'].all() for batch in straight)
    assert equal(train(root, 3, start=2), straight[2:])
    assert not equal(train(root, 5, seed=4), straight)
    hosts = [train(root, 5, process=(index, 2)) for index in (0, 1)]
    for step in range(5):
        rows = sorted(row.tobytes() for host in hosts for row in host[step]['target'])
        assert rows == sorted(row.tobytes() for row in straight[step]['target'])


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(root):
    assert equal(train(root, 3, start=1, workers=2), train(root, 3, start=1))


def test_evaluation_sees_every_person_once(root):
    config, source = settings(root), build(root)
    seen = []
    for index in (0, 1):
        batches = person_batches.eval_batches(
            source, config, batch_size=4, process_index=index, process_count=2
        )
        for batch in batches:
            assert batch['target'].shape == (2, 64, 48, 3)
            for row in np.flatnonzero(batch['valid']):
                place = int(batch['index'][row])
                element = source[place]
                assert batch['image_id'][row] == element['image_id']
                x, y, width, height = element['box']
                assert np.allclose(batch['center'][row], (x + width / 2, y + height / 2))
                assert np.allclose(batch['scale'][row] * 200 * 0.8, (44 * 0.75, 44))
                seen.append(place)
            filling = ~batch['valid']
            assert (batch['index'][filling] == -1).all() and not batch['visible'][filling].any()
    assert sorted(seen) == list(range(5))


def test_joints_of_ones_own(root):
    mine = {
        'names': ['head', 'left', 'right'],
        'flip_pairs': [[1, 2]],
        'sigmas': [0.03, 0.1, 0.1],
        'skeleton': [[0, 1], [0, 2]],
        'upper': [0],
    }
    path = root / 'annotations' / 'keypoints.json'
    path.write_text(json.dumps(mine))
    marks = [5, 6, 2, 7, 8, 1, 0, 0, 0]
    edit(root, annotations=lambda _: [annotation(1, keypoints=marks)])
    source = build(root)
    assert source.keypoints.flip_pairs == ((1, 2),) and source.classes[0] == 'head'
    assert source[0]['joints'].tolist() == [[5, 6], [7, 8], [0, 0]]
    assert source[0]['visible'].tolist() == [1, 1, 0]
    for field, value, named in (
        ('flip_pairs', [[1, 3]], ('flip_pairs', '3', '0 to 2')),
        ('flip_pairs', [[1, 2], [2, 0]], ('flip_pairs', 'twice')),
        ('sigmas', [0.1, 0.1], ('sigmas', '2 values')),
        ('sigmas', 0.1, ('sigmas', '0.1')),
        ('sigma', [], ('did you mean', 'sigmas')),
    ):
        path.write_text(json.dumps(mine | {field: value}))
        with pytest.raises(UserError) as caught:
            build(root)
        assert_one_line(f'error: {caught.value}', (str(path), *named))


def test_persons_are_shown_and_not_packed(root, tmp_path, capsys):
    words = ['--config=synthetic', '--config.data.name=coco', f'--config.data.root={root}']
    words += ['--config.data.size=(64,48)']
    argv = ['data', 'show', *words, '--images=1', f'--output={tmp_path / "seen"}']
    assert cli.main(argv) == 0
    with Image.open(tmp_path / 'seen' / 'contact_sheet.png') as sheet:
        drawn = {color for _, color in sheet.getcolors(2**20)}
    assert {(255, 128, 0), (0, 160, 255)} & drawn  # limbs are drawn
    refused(capsys, ['data', 'pack', *words, f'--output={tmp_path / "p"}'], 'persons with joints')


def test_metadata_has_a_colour_for_each_joint():
    inks = colors(COCO)
    assert len(inks) == 17 and inks[5] != inks[6] != inks[0]
    assert {inks[a] for a, _ in COCO.flip_pairs} == {inks[5]}
