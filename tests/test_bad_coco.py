"""Every mistake in annotations and detections ends in one line that names it."""

import json

import pytest
from coco_files import annotation, build, detection, edit, make, settings
from PIL import Image
from refusals import assert_one_line

from dsrl_jax import cli, data
from dsrl_jax.data import check, person_boxes
from dsrl_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    return make(tmp_path)


def no_image(root):
    (root / 'val2017' / '000000000001.png').unlink()
    return '000000000001.png', 'no such file'


def other_size(root):
    Image.new('RGB', (80, 60)).save(root / 'val2017' / '000000000002.png')
    return '000000000002.png', '60x80', '64x80'


def short_keypoints(root):
    edit(root, annotations=lambda a: [a[0] | {'keypoints': a[0]['keypoints'][:-3]}, *a[1:]])
    return 'annotation 7', '48 keypoint values', '51'


def no_keypoints(root):
    keep = [k for k in annotation(0) if k != 'keypoints']
    edit(root, annotations=lambda a: [{k: a[0][k] for k in keep}, *a[1:]])
    return 'annotation 7', 'no keypoints', '51'


def words_in_keypoints(root):
    edit(root, annotations=lambda a: [a[0] | {'keypoints': ['a'] * 51}, *a[1:]])
    return 'annotation 7', "'a'", 'numbers'


def bad_visibility(root):
    edit(root, annotations=lambda a: [a[0] | {'keypoints': [1, 2, 3] * 17}, *a[1:]])
    return 'annotation 7', 'visibility 3', '0 (not labelled)'


def flat_box(root):
    edit(root, annotations=lambda a: [a[0] | {'bbox': [3, 4, 0, 20]}, *a[1:]])
    return 'annotation 7', '0x20', 'above 0'


def box_outside(root):
    edit(root, annotations=lambda a: [a[0] | {'bbox': [80, 4, 10, 20]}, *a[1:]])
    return 'annotation 7', 'outside the image', '80x64'


def three_numbers(root):
    edit(root, annotations=lambda a: [a[0] | {'bbox': [80, 4, 10]}, *a[1:]])
    return 'annotation 7', '[80, 4, 10]', 'four numbers'


def stranger(root):
    edit(root, annotations=lambda a: [a[0] | {'image_id': 99}, *a[1:]])
    return 'annotation 7', 'image id 99', 'lists'


def image_twice(root):
    edit(root, images=lambda images: [*images, images[0]])
    return 'image 3', 'the id 1 again'


@pytest.mark.parametrize(
    'damage',
    [
        *(no_image, other_size, short_keypoints, no_keypoints, words_in_keypoints),
        *(bad_visibility, flat_box, box_outside, three_numbers, stranger, image_twice),
    ],
)
def test_one_bad_entry_is_named(root, damage):
    named = damage(root)
    report = check.check(settings(root).data)
    (problem,) = report.problems
    assert_one_line(f'error: {problem}', named)
    if damage is not other_size:  # seen when the image is read
        with pytest.raises(UserError) as caught:
            data.build(settings(root).data, 'val')
        assert str(caught.value) == str(problem)


def test_all_bad_entries_are_named_by_the_command(root, capsys):
    named = [*short_keypoints(root), *no_image(root)]
    edit(root, annotations=lambda a: [*a, annotation(50, bbox=[0, 90, 5, 5])])
    found = root / 'boxes.json'
    found.write_text(json.dumps([detection(image_id=4)]))
    words = [
        '--config.data.name=coco',
        f'--config.data.root={root}',
        f'--config.pose.boxes={found}',
    ]
    assert cli.main(['data', 'check', '--config=synthetic', *words]) == 2
    stdout = capsys.readouterr().out
    for text in (*named, 'annotation 50', 'image id 4', '4 images, 4 problems'):
        assert text in stdout, stdout


def test_whole_files_that_are_wrong(root):
    path = root / 'annotations' / 'person_keypoints_val2017.json'
    joints = {'id': 1, 'name': 'person', 'keypoints': ['head', 'tail']}
    for content, named in (
        ('{', 'restore'),
        ('[]', 'no list of images'),
        (json.dumps({'images': []}), 'no list of annotations'),
        (
            json.dumps({'images': [], 'annotations': [], 'categories': [joints]}),
            'keypoints.json',
        ),
    ):
        path.write_text(content)
        with pytest.raises(UserError) as caught:
            build(root)
        assert_one_line(f'error: {caught.value}', (str(path), named))
    path.unlink()
    with pytest.raises(UserError, match=r'there are: train2017'):
        build(root)
    (root / 'train2017').rename(root / 'elsewhere')
    with pytest.raises(UserError, match=r'train2017: found no such folder.*images/train2017'):
        build(root, 'train')


@pytest.mark.parametrize(
    ('entry', 'named'),
    [
        (detection(image_id=12), ('image id 12 in 2 detections', 'annotations')),
        (detection(image_id='1'), ('image id 1 in 2 detections',)),
        (detection(bbox=[4, 5, 20, 0]), ('detection 1', '20x0', 'above 0')),
        (detection(bbox=[-30, 5, 20, 10]), ('detection 1', 'outside the image')),
        (detection(bbox=[1, 2, 3]), ('detection 1', 'four numbers')),
        (detection(bbox=[1, 2, 3, float('nan')]), ('detection 1', 'four numbers')),
        (detection(score=None), ('detection 1', 'score None')),
        ({'image_id': 1}, ('detection 1', 'bbox')),
    ],
)
def test_a_bad_detection_is_named(root, entry, named):
    path = root / 'boxes.json'
    path.write_text(json.dumps([detection(), entry, entry, detection(category_id=3)]))
    with pytest.raises(UserError) as caught:
        person_boxes.with_boxes(build(root), path)
    assert_one_line(f'error: {caught.value}', (str(path), *named))


def test_files_that_hold_no_detections(root, tmp_path):
    path = tmp_path / 'boxes.json'
    for content, named in (('{}', 'a dict'), ('x', 'JSON list'), ('[]', 'no detection')):
        path.write_text(content)
        with pytest.raises(UserError, match=named):
            person_boxes.with_boxes(build(root), path)
    generated = data.build(settings('', name='stick_figures').data, 'val')
    with pytest.raises(UserError, match=r'pose\.boxes.*ground-truth boxes'):
        person_boxes.with_boxes(generated, path)
    with pytest.raises(UserError, match='No such file'):
        person_boxes.with_boxes(build(root), tmp_path / 'none.json')
