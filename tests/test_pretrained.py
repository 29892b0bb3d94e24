"""Weights of other projects: every tensor once, errors that name them, files."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from golden import golden_weights
from safetensors.numpy import save_file

from dsrl_jax import convert, models, pretrained
from dsrl_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).with_name('golden')
GAMMA = 'base_net.level1.bn.weight'
CLASSES = 'bu_dec_l4.merge_layer.3'


@functools.cache
def segmentation():
    return golden_weights.state_dict(GOLDEN / 'ESPNetv2_s2.0_20.keys.json')


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_every_tensor_arrives_once_and_classes_are_inferred():
    state = segmentation()
    variables = pretrained.from_torch('espnetv2', state)
    values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(variables)])
    given = np.concatenate([v.ravel() for k, v in state.items() if 'num_batches' not in k])
    np.testing.assert_array_equal(np.sort(values), np.sort(given))
    kernel = variables['params']['bu_dec_l4']['expand']['kernel']
    np.testing.assert_array_equal(kernel[0, 0], state[f'{CLASSES}.weight'][:, :, 0, 0].T)


def test_a_data_parallel_prefix_is_accepted():
    state = {f'module.{key}': value for key, value in segmentation().items()}
    assert_equal(
        pretrained.from_torch('espnetv2', state), pretrained.from_torch('espnetv2', segmentation())
    )


@pytest.mark.parametrize(
    'change, named',
    [
        ({GAMMA: None}, ['1 missing', 'encoder/level1/norm/scale']),
        ({'surplus.weight': np.ones(3)}, ['1 unknown', 'surplus.weight']),
        ({GAMMA: np.ones(16)}, ['1 misshapen', GAMMA, '[16]', '[32]']),
        ({f'x{i}.bias': np.ones(1) for i in range(9)}, ['9 unknown', 'x0.bias', '...']),
        ({f'module.{GAMMA}': np.ones(32)}, ['1 unknown', f'module.{GAMMA}']),
    ],
)
def test_what_misfits_is_named(change, named):
    state = {k: v for k, v in (segmentation() | change).items() if v is not None}
    with pytest.raises(UserError) as error:
        pretrained.from_torch('espnetv2', state, num_classes=20)
    assert all(part in str(error.value) for part in named), error.value


def test_another_width_is_refused():
    with pytest.raises(UserError, match='misshapen'):
        pretrained.from_torch('espnetv2', segmentation(), width=1.0)


def test_to_torch_takes_the_network_out_of_a_dsrl_model():
    state = segmentation()
    plain = pretrained.from_torch('espnetv2', state)
    wrapped = {kind: {'network': tree, 'sssr': {}} for kind, tree in plain.items()}
    there = convert.to_torch('espnetv2', wrapped)
    assert sorted(there) == sorted(state)
    for key in (GAMMA, f'{CLASSES}.weight'):
        np.testing.assert_array_equal(there[key], state[key])


def test_to_torch_refuses_variables_of_another_network():
    variables = pretrained.from_torch('espnetv2', segmentation())
    with pytest.raises(UserError, match=r'leaves that differ.*level2_0/eesp'):
        pretrained.to_torch('espnetv2', variables, width=1.0)
    with pytest.raises(UserError, match=r"one of .*did you mean 'espnetv2'"):
        pretrained.to_torch('espnetv3', variables)


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('source', ['ESPNetv2_s2.0_20', 'ESPNetv2_s2.0_imagenet'])
def test_init_encoder_takes_the_encoder_and_leaves_the_rest(source, wrapped):
    state = golden_weights.state_dict(GOLDEN / f'{source}.keys.json')
    module = models.create('espnetv2', num_classes=11, dsrl='full' if wrapped else None)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    kwargs = {'sr': True} if wrapped else {}
    shapes = jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.key(0), image)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, -7, leaf.dtype), shapes)
    started, taken, _ = pretrained.init_encoder('espnetv2', fresh, state)
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    loaded = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(started)}
    changed = {path for path, leaf in loaded.items() if not (leaf == -7).all()}
    assert changed == {path for path in loaded if "['encoder']" in path}
    assert taken == len(changed)


def test_init_encoder_refuses_another_width_and_another_network():
    module = models.create('espnetv2', num_classes=4, width=1.0)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    with pytest.raises(UserError, match='misshapen'):
        pretrained.init_encoder('espnetv2', variables, segmentation())
    with pytest.raises(UserError, match='missing'):
        pretrained.init_encoder('espnetv2', variables, {'conv1.weight': np.ones((3, 3))})


def test_files_of_weights(tmp_path):
    weights = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'a.bias': np.ones(2, 'f')}
    np.savez(tmp_path / 'w.npz', **weights)
    save_file(weights, tmp_path / 'w.safetensors')
    for name in ('w.npz', 'w.safetensors'):
        read = pretrained.read_weights(tmp_path / name)
        assert sorted(read) == sorted(weights)
        np.testing.assert_array_equal(read['a.weight'], weights['a.weight'])


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_a_truncated_file_is_named(tmp_path, suffix):
    whole, path = tmp_path / f'whole{suffix}', tmp_path / f'cut{suffix}'
    weights = {'a': np.arange(5000, dtype=np.float32)}
    np.savez(whole, **weights) if suffix == '.npz' else save_file(weights, whole)
    path.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(UserError, match=rf'cut{suffix}: found an unreadable file'):
        pretrained.read_weights(path)


def test_pickled_arrays_and_strange_names_are_refused(tmp_path):
    np.savez(tmp_path / 'pickled.npz', a=np.array([{}], dtype=object))
    for name, message in (
        ('pickled.npz', 'unreadable'),
        ('w.bin', 'file type'),
        ('no.npz', 'no such'),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.read_weights(tmp_path / name)


def test_a_torch_file(tmp_path):
    torch = pytest.importorskip('torch')
    weights = {'a.weight': torch.arange(6.0).reshape(2, 3).bfloat16(), 'n': torch.tensor(3)}
    torch.save({'state_dict': weights, 'epoch': 3}, tmp_path / 'w.pth')
    read = pretrained.read_weights(tmp_path / 'w.pth')
    np.testing.assert_array_equal(read['a.weight'], np.arange(6.0).reshape(2, 3))
    assert sorted(read) == ['a.weight', 'n']


def test_a_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'torch', None)
    (tmp_path / 'w.pth').write_bytes(b'')
    with pytest.raises(UserError, match=r'dsrl-jax\[torch\]'):
        pretrained.read_weights(tmp_path / 'w.pth')
