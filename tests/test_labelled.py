"""Shares of the labels: which images keep theirs, and what becomes of the others."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsrl_jax import cli, data, losses, parallel, resident
from dsrl_jax import config as configs
from dsrl_jax.data import pack, pipeline
from dsrl_jax.data.frequencies import class_frequencies
from dsrl_jax.data.labelled import chosen, keep_labels
from dsrl_jax.errors import UserError
from dsrl_jax.initial import RESUME_KEYS
from dsrl_jax.models.layers import Convention

LENGTH = 8


@pytest.fixture(scope='module')
def config():
    config = configs.load('synthetic:net=toy_network:Toy,tiny=true').copy_and_resolve_references()
    config.unlock()
    config.data.size, config.data.length, config.data.workers = (32, 64), LENGTH, 0
    config.data.batch_size = 4
    return config


@pytest.fixture(scope='module')
def whole(config):
    return data.build(config.data, 'train')


@pytest.fixture(scope='module')
def quarter(whole):
    return keep_labels(whole, 0.25)


@pytest.mark.parametrize('length', [1, 7, 16, 367])
def test_shares_are_nested_evenly_spaced_and_as_large_as_asked_for(length):
    names = [f'{i:04d}' for i in range(length)]
    before = set()
    for share in (0.05, 1 / 8, 1 / 4, 0.3, 1 / 2, 0.9, 1.0):
        kept = {i for i, keeps in enumerate(chosen(names, share)) if keeps}
        assert before <= kept and 0 in kept
        assert abs(len(kept) - share * length) < 1 + np.log2(length + 1)
        before = kept
    for every in (2, 4, 8):
        assert np.flatnonzero(chosen(names, 1 / every)).tolist() == list(range(0, length, every))


def test_the_choice_hangs_on_names_and_not_on_their_order():
    names = [f'{drive}_{i:05d}' for drive in ('0006R0', '0016E5') for i in range(30)]
    kept = {n for n, keeps in zip(names, chosen(names, 0.25)) if keeps}
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    assert kept == {n for n, keeps in zip(shuffled, chosen(shuffled, 0.25)) if keeps}


@pytest.mark.parametrize('share', [0.0, -0.5, 1.01, float('nan')])
def test_a_share_outside_is_refused(share, tmp_path, capsys):
    with pytest.raises(UserError, match=r'data\.labelled.*above 0 and at most 1'):
        chosen(['a', 'b'], share)
    if share == share:
        flags = ['--config=synthetic:net=toy_network:Toy,tiny=true', f'--workdir={tmp_path / "w"}']
        assert cli.main(['train', *flags, f'--config.data.labelled={share}']) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_images_stay_and_labels_go(whole, quarter):
    assert keep_labels(whole, 1.0) is whole
    assert len(quarter) == len(whole) and quarter.classes == whole.classes
    for i in range(LENGTH):
        np.testing.assert_array_equal(quarter[i]['image'], whole[i]['image'])
        assert ('label' in quarter[i]) == (i in (0, 4))
    np.testing.assert_array_equal(quarter[4]['label'], whole[4]['label'])


def test_class_frequencies_count_kept_labels_alone(whole, quarter):
    found = class_frequencies(quarter)
    labels = np.stack([whole[i]['label'] for i in (0, 4)])
    assert found['images'] == 2
    wanted = [(labels == k).sum() for k in range(whole.num_classes)]
    assert found['pixels'].tolist() == wanted


def test_every_kind_of_source_obeys(config, whole, quarter, tmp_path):
    """Packed, joined, uncached and pickled: the same images keep their labels."""

    def labelled(source):
        return {e['name'] for e in (source[i] for i in range(len(source))) if 'label' in e}

    wanted = {'train_00000', 'train_00004'}
    assert labelled(quarter) == labelled(pickle.loads(pickle.dumps(quarter))) == wanted
    pack.write({'train': whole}, tmp_path / 'packed', name='synthetic', say=lambda line: None)
    packed = copy.deepcopy(config.data)
    packed.name, packed.root, packed.cache = 'packed', str(tmp_path / 'packed'), False
    assert labelled(keep_labels(data.build(packed, 'train'), 0.25)) == wanted
    joined = keep_labels(data.build(config.data, 'val+train'), 0.125)  # sorted: train comes first
    assert labelled(joined) == {'train_00000', 'val_00000'}


def test_files_of_an_image_without_its_label(tmp_path):
    class Files:
        def __len__(self):
            return 2

        def element_name(self, index):
            return str(index)

        def files(self, index):
            return {'image': f'{index}.png', 'label': f'{index}_L.png'}

    half = keep_labels(Files(), 0.5)
    assert set(half.files(0)) == {'image', 'label'} and set(half.files(1)) == {'image'}


def test_loader_and_device_memory_give_void_where_a_label_went(config, quarter):
    batches = pipeline.train_batches(quarter, config.data, seed=0, start=0, batch_size=4)
    void = np.concatenate([(next(batches)['label'] == 255).all((1, 2)) for _ in range(2)])
    assert void.sum() == LENGTH - 2  # an epoch
    held = resident.hold(quarter, 'always', parallel.make_mesh())
    label = np.asarray(held['label'])[:LENGTH]
    assert (label == 255).all((1, 2)).nonzero()[0].tolist() == [1, 2, 3, 5, 6, 7]


def test_a_batch_without_a_label_has_no_cross_entropy_and_all_else(config):
    """CE is 0 with gradient 0; the squared error and the affinity are what they were."""
    keys = jax.random.split(jax.random.key(0), 5)
    outputs = {
        'scores': jax.random.normal(keys[0], (2, 16, 32, 11)),
        'resize': Convention('half_pixel'),
        'sr': jax.random.normal(keys[1], (2, 32, 64, 3)),
        'seg_feature': jax.random.normal(keys[2], (2, 16, 32, 4)),
        'sr_feature': jax.random.normal(keys[3], (2, 16, 32, 4)),
    }
    batch = {'view': jnp.zeros((2, 32, 64, 3)), 'mask': jnp.ones((2, 32, 64), bool)}
    loss = losses.make_loss(config, class_weights=np.ones(11, np.float32))
    fixed = {'resize': outputs.pop('resize')}

    @jax.jit
    def terms(outputs, label):
        def total(outputs):
            found = loss({**outputs, **fixed}, {**batch, 'label': label}, step=1, key=keys[4])
            return found['total'], found

        return jax.grad(total, has_aux=True)(outputs)

    void = terms(outputs, jnp.full((2, 32, 64), 255, jnp.uint8))
    seen = terms(outputs, jnp.zeros((2, 32, 64), jnp.uint8))
    assert float(void[1]['ce']) == 0 and float(seen[1]['ce']) > 0
    assert not np.asarray(void[0]['scores']).any() and np.asarray(seen[0]['scores']).any()
    for name in ('mse', 'fa'):
        assert float(void[1][name]) == float(seen[1][name]) > 0
    for name in ('sr', 'seg_feature', 'sr_feature'):
        np.testing.assert_array_equal(void[0][name], seen[0][name])
        assert np.isfinite(void[0][name]).all() and np.asarray(void[0][name]).any()


def test_a_run_goes_on_under_its_own_share_alone(tmp_path, capsys):
    assert 'data.labelled' in RESUME_KEYS
    command = ['train', '--config=synthetic:net=toy_network:Toy,tiny=true']
    command += ['--config.data.length=8', f'--workdir={tmp_path / "w"}']
    assert cli.main([*command, '--config.data.labelled=0.125']) == 0
    assert 'labels of 1 of 8 training images are used' in capsys.readouterr().out
    assert cli.main([*command, '--config.data.labelled=0.25']) == 2
    assert 'data.labelled' in capsys.readouterr().err
