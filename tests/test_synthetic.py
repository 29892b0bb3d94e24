import hashlib
import multiprocessing
import pickle
import time

import numpy as np
import pytest

from dsrl_jax.data.synthetic import LENGTHS, SyntheticSource
from dsrl_jax.errors import UserError

SIZE = (128, 256)


@pytest.fixture(scope='module')
def scenes():
    source = SyntheticSource('train', SIZE)
    return [source[i] for i in range(32)]


def digest(source, index=5):
    item = source[index]
    return hashlib.sha256(item['image'].tobytes() + item['label'].tobytes()).hexdigest()


def test_a_scene_depends_on_seed_split_index_alone():
    source = SyntheticSource('val', (64, 96), seed=3)
    expected = digest(source)
    source[0]  # an earlier read changes nothing
    assert digest(source) == expected
    assert digest(pickle.loads(pickle.dumps(source))) == expected
    assert digest(SyntheticSource('val', (64, 96), seed=3, length=9)) == expected
    others = [digest(source, 6), digest(SyntheticSource('test', (64, 96), seed=3))]
    others += [digest(SyntheticSource('val', (64, 96), seed=4))]
    assert len({expected, *others}) == 4


def test_another_process_draws_the_same_bytes():
    source = SyntheticSource('train', (48, 64))
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        assert pool.apply(digest, (source,)) == digest(source)


@pytest.mark.parametrize('size', [(32, 32), (61, 97), (96, 64)])
def test_shapes_types_and_values(size):
    source = SyntheticSource('test', size)
    item = source[1]
    assert item['image'].shape == (*size, 3) and item['image'].dtype == np.uint8
    assert item['label'].shape == size and item['label'].dtype == np.uint8
    assert set(np.unique(item['label'])) <= {*range(source.num_classes), source.ignore}
    assert len(source.classes) == len(source.colors) == len(set(source.colors))
    assert source.files(1) == {}
    assert item['name'] == 'test_00001'


def test_splits_have_their_lengths_and_end():
    for split, length in LENGTHS.items():
        source = SyntheticSource(split, (32, 64))
        assert len(source) == length
        with pytest.raises(IndexError):
            source[length]
    assert len(list(SyntheticSource('val', (32, 32), length=3))) == 3


def test_every_class_is_common_and_thin_ones_are_thin(scenes):
    classes = SyntheticSource.classes
    labels = np.stack([s['label'] for s in scenes])
    presence = {c: np.mean([(x == k).any() for x in labels]) for k, c in enumerate(classes)}
    share = {c: np.mean(labels == k) for k, c in enumerate(classes)}
    assert min(presence.values()) > 0.6, presence
    assert 0.001 < np.mean(labels == SyntheticSource.ignore) < 0.1
    for name in ('pole', 'sign', 'lane_mark', 'person', 'rider'):
        assert 0.0015 < share[name] < 0.04, (name, share[name])


def test_the_double_resolution_knows_more(scenes):
    """Halving a label and enlarging it again loses many pixels of thin classes, few of large."""
    labels = np.stack([s['label'] for s in scenes])
    back = labels[:, ::2, ::2].repeat(2, 1).repeat(2, 2)

    def kept(name):
        k = SyntheticSource.classes.index(name)
        return np.sum((labels == k) & (back == k)) / np.sum((labels == k) | (back == k))

    assert kept('road') > 0.95
    for thin in ('pole', 'lane_mark', 'person'):
        assert kept(thin) < 0.8, (thin, kept(thin))


def test_color_alone_does_not_tell_the_class(scenes):
    """The best table from coarse colours to classes, fitted on these very pixels, stays poor."""
    pixels = np.concatenate([s['image'].reshape(-1, 3) for s in scenes]).astype(int) // 32
    label = np.concatenate([s['label'].ravel() for s in scenes]).astype(int)
    cell = (pixels[:, 0] * 8 + pixels[:, 1]) * 8 + pixels[:, 2]
    counts = np.zeros((512, 11), int)
    np.add.at(counts, (cell[label < 11], label[label < 11]), 1)
    guess = counts.argmax(1)[cell]
    iou = []
    for k in range(11):
        hit = np.sum((guess == k) & (label == k))
        iou.append(hit / np.sum(((guess == k) | (label == k)) & (label < 11)))
    assert np.mean(iou) < 0.3, iou


def test_image_and_label_share_their_edges(scenes):
    """The picture changes more across label edges than inside areas: nothing is shifted."""
    ratios = []
    for scene in scenes:
        step = np.abs(np.diff(scene['image'].astype(float).mean(-1), axis=1))
        edge = np.diff(scene['label'].astype(int), axis=1) != 0
        ratios.append([step[:, 4:-4][np.roll(edge, d, 1)[:, 4:-4]].mean() for d in (-2, 0, 2)])
    before, at, after = np.mean(ratios, 0)
    assert at > 1.4 * before and at > 1.4 * after


def test_fast_enough_to_draw_while_training():
    source = SyntheticSource('train', SIZE)
    source[0]
    start = time.process_time()
    for i in range(10):
        source[i]
    assert (time.process_time() - start) / 10 < 0.08


def test_user_mistakes_name_the_field():
    with pytest.raises(UserError, match=r'train.*did you mean'):
        SyntheticSource('trian')
    with pytest.raises(UserError, match=r'data\.size'):
        SyntheticSource(size=(8, 16))
