"""Batches: position is step, epochs are complete, hosts share them, evaluation counts each once."""

import ast
import itertools
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

import dsrl_jax.data
from dsrl_jax.data import pipeline
from dsrl_jax.errors import UserError


class Numbered:
    """Eleven images; image i is i everywhere, so a batch shows which images it holds."""

    classes, colors, num_classes, ignore, split = ['a', 'b'], [(0, 0, 0), (9, 9, 9)], 2, 255, 'x'

    def __init__(self, length=11, broken=None):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def files(self, index):
        return {}

    def __getitem__(self, index):
        if index == self.broken:
            raise UserError('seven.png', 'a damaged file', 'an image', 'restore it.')
        size = (10 + index % 2, 12 + index % 3)
        label = (np.arange(size[1]) % 2 * np.ones(size)).astype(np.uint8)
        image = np.full((*size, 3), index, np.uint8)
        return {'image': image, 'label': label, 'name': f'image{index}'}


def config(**changes):
    fields = {
        'size': (8, 10),
        'eval_size': None,
        'eval_fit': 'resize',
        'scale_range': (0.7, 1.5),
        'flip': True,
        'color': 0.0,
        'fill': (200, 200, 200),
        'workers': 0,
    }
    return ConfigDict(fields | changes)


def train(count, *, start=0, seed=3, batch_size=4, source=None, process=(0, 1), **changes):
    batches = pipeline.train_batches(
        source or Numbered(),
        config(**changes),
        seed=seed,
        start=start,
        batch_size=batch_size,
        process_index=process[0],
        process_count=process[1],
    )
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def identities(batches):
    """Which images a list of batches holds, row by row: the least value is never the fill."""
    return [int(row.min()) for batch in batches for row in batch['target']]


def equal(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b)
    )


def test_keys_shapes_and_types():
    (batch,) = train(1)
    found = {k: (v.shape, str(v.dtype)) for k, v in batch.items()}
    assert found == {
        'target': ((4, 8, 10, 3), 'uint8'),
        'label': ((4, 8, 10), 'uint8'),
        'mask': ((4, 8, 10), 'bool'),
    }


def test_start_continues_a_straight_run():
    straight = train(9)
    for start in (1, 4, 8):
        assert equal(train(9 - start, start=start), straight[start:])
    assert equal(train(9), straight)
    assert not equal(train(9, seed=4), straight)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    straight = train(7)
    assert equal(train(7, workers=2), straight)
    assert equal(train(4, workers=2, start=3), straight[3:])


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_a_bad_file_stops_the_run_with_its_own_line(workers):
    with pytest.raises(UserError, match=r'seven\.png: found a damaged file') as caught:
        train(4, source=Numbered(broken=7), workers=workers)
    assert caught.value.remedy == 'restore it.'


def test_every_epoch_is_complete_and_shuffled_anew():
    """Four epochs of eleven images in eleven batches of four: none lost where an epoch ends."""
    seen = np.reshape(identities(train(11)), (4, 11))
    assert (np.sort(seen, 1) == np.arange(11)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 4


def test_views_change_from_epoch_to_epoch():
    views = {}
    for batch in train(11, scale_range=(0.5, 1.0)):
        for row, mask in zip(batch['target'], batch['mask']):
            views.setdefault(int(row.min()), set()).add(mask.tobytes())
    assert all(len(masks) > 1 for masks in views.values())


@pytest.mark.parametrize('count', [2, 4])
def test_hosts_share_every_step(count):
    """Each has its own part of every step: one after the other they are the rows of one alone."""
    alone = train(6)
    hosts = [train(6, process=(index, count)) for index in range(count)]
    for step in range(6):
        for key, value in alone[step].items():
            parts = [host[step][key] for host in hosts]
            assert all(len(part) == 4 // count for part in parts)
            np.testing.assert_array_equal(np.concatenate(parts), value)


def test_batch_larger_than_the_set_and_of_one():
    assert sorted(identities(train(1, batch_size=22))) == sorted([*range(11)] * 2)
    assert len(identities(train(3, batch_size=1))) == 3


def test_unlabelled_images_are_ignored_everywhere():
    class Bare(Numbered):
        def __getitem__(self, index):
            element = super().__getitem__(index)
            return {'image': element['image'], 'name': element['name']}

    (batch,) = train(1, source=Bare())
    assert (batch['label'] == 255).all() and batch['mask'].any()


@pytest.mark.parametrize(
    ('changes', 'field'),
    [
        ({'scale_range': (2.0, 0.5)}, 'scale_range'),
        ({'scale_range': (0.0, 1.0)}, 'scale_range'),
        ({'color': 1.0}, 'color'),
        ({'process': (0, 3)}, 'batch_size'),
    ],
)
def test_impossible_settings_are_named(changes, field):
    with pytest.raises(UserError, match=f'data.{field}'):
        train(1, **changes)


def evaluate(process=(0, 1), source=None, **changes):
    batches = pipeline.eval_batches(
        source or Numbered(),
        config(**changes),
        batch_size=4,
        process_index=process[0],
        process_count=process[1],
    )
    return list(batches)


@pytest.mark.parametrize('count', [1, 2, 4])
def test_evaluation_sees_every_image_once(count):
    hosts = [evaluate((index, count)) for index in range(count)]
    assert {len(host) for host in hosts} == {3}
    batches = [batch for host in hosts for batch in host]
    assert all(len(batch['valid']) == 4 // count for batch in batches)
    seen = [int(i) for b in batches for i in b['index'][b['valid']]]
    assert sorted(seen) == list(range(11))
    assert sum((~b['valid']).sum() for b in batches) == 1
    for batch in batches:
        for row in np.flatnonzero(~batch['valid']):
            assert batch['index'][row] == -1 and not batch['mask'][row].any()
            assert (batch['label'][row] == 255).all()


@pytest.mark.slow
def test_worker_processes_evaluate_the_same_batches():
    assert equal(evaluate((1, 2), workers=2), evaluate((1, 2)))


def test_labels_of_evaluation_are_at_full_size():
    """Images of 10..11 x 12..14: the label is untouched at the top left, 255 beyond it."""
    source = Numbered()
    for how, size in (('resize', (8, 10)), ('pad', (12, 16))):
        for batch in evaluate(eval_fit=how, eval_size=size):
            assert batch['label'].shape[1:] == (11, 14) and batch['target'].shape[1:] == (*size, 3)
            for row in np.flatnonzero(batch['valid']):
                element = source[int(batch['index'][row])]
                height, width = batch['size'][row]
                label = batch['label'][row]
                assert np.array_equal(label[:height, :width], element['label'])
                assert (label == 255).sum() == 11 * 14 - height * width
                top, left, tall, wide = batch['region'][row]
                inside = batch['target'][row][top : top + tall, left : left + wide]
                assert (inside == element['image'][0, 0]).all()
                assert batch['mask'][row].sum() == tall * wide


def test_too_large_an_image_is_refused_before_the_first_batch():
    with pytest.raises(UserError, match='image 1: found an image of 11x13'):
        pipeline.eval_batches(Numbered(), config(eval_fit='pad', eval_size=(10, 14)), batch_size=4)


def test_data_never_imports_jax_or_models():
    """Worker processes import this package: it must not open a device."""
    for path in pathlib.Path(dsrl_jax.data.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f'{node.module}.{alias.name}' for alias in node.names]
            for name in names:
                assert name.split('.')[0] not in ('jax', 'flax', 'tensorflow'), path
                assert not name.startswith(('dsrl_jax.models', 'dsrl_jax.ops')), path
