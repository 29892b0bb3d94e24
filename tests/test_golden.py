"""Every network equals the stored outputs of the original: eval, train, and running statistics."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden_weights
from golden_sets import DEEP, DEEP_BOUND, EVAL_BOUND, GOLDEN, TRAIN_BOUND

from dsrl_jax import models, pretrained
from dsrl_jax.models import heads
from dsrl_jax.ops import resize

FOLDER = pathlib.Path(os.environ.get('DSRL_REFERENCE', pathlib.Path(__file__).with_name('golden')))


@pytest.fixture(scope='module', params=GOLDEN)
def stem(request):
    """One set after the other: the arrays of all at once would fill several GiB."""
    yield request.param
    for cached in (forward, variables, weights, stored):
        cached.cache_clear()
    jax.clear_caches()


def test_eval(stem):
    outputs, _ = forward(stem, train=False)
    check(stem, 'eval', outputs, EVAL_BOUND)


def test_train(stem):
    outputs, _ = forward(stem, train=True)
    check(stem, 'train', outputs, DEEP_BOUND if stem in DEEP else TRAIN_BOUND)


def test_running_statistics_after_one_step(stem):
    """Pins the momentum and the unbiased variance at the first, a middle and the last norm."""
    name, options, _ = GOLDEN[stem]
    _, stats = forward(stem, train=True)
    after = {k.removeprefix('after/'): v for k, v in stored(stem).items() if 'after/' in k}
    expected = pretrained.from_torch(name, weights(stem) | after, **options)['batch_stats']
    before = variables(stem)['batch_stats']
    checked = 0
    for old, want, got in zip(*map(jax.tree.leaves, (before, expected, stats)), strict=True):
        if not np.array_equal(old, want):
            checked += 1
            np.testing.assert_allclose(got, want, atol=2e-4 * np.std(want))
    assert checked == len(after)


def test_to_torch_is_the_exact_inverse(stem):
    name, options, _ = GOLDEN[stem]
    given = weights(stem)
    there = pretrained.to_torch(name, variables(stem), **options)
    assert sorted(there) == sorted(given)
    for key, array in given.items():
        assert there[key].dtype == array.dtype, key
        np.testing.assert_array_equal(there[key], array, err_msg=key)


def check(stem, mode, outputs, bound):
    """Each stored output of `mode` agrees with ours within `bound` standard deviations."""
    golden, checked = stored(stem), 0
    for theirs, ours in GOLDEN[stem][2].items():
        if f'{mode}/{theirs}' not in golden:  # an auxiliary output of training
            continue
        checked += 1
        want = golden[f'{mode}/{theirs}']
        got = functools.reduce(lambda node, part: node[part], ours.split('.'), outputs)
        if got.ndim == 4:
            size = tuple(golden[f'shape/{mode}/{theirs}'][2:])
            if got.shape[1:3] != size:
                got = resize.bilinear(jnp.asarray(got), size, convention=outputs['resize'])
            every = -(-got.shape[3] // want.shape[1])  # some sets hold every n-th channel
            sy, sx = golden.get(f'stride/{mode}/{theirs}', (1, 1))
            got = np.asarray(got).transpose(0, 3, 1, 2)[:, ::every, ::sy, ::sx]
        assert got.shape == want.shape
        error = np.abs(got - want).max() / want.std()
        assert error < bound, f'{stem} {mode}/{theirs}: {error:.1e} of a standard deviation'
    assert checked == sum(key.startswith(f'{mode}/') for key in golden)


@functools.cache
def forward(stem, train):
    """(outputs, new batch statistics) of the golden input, `logits` added where there are none."""
    name, options, _ = GOLDEN[stem]
    deep = train and stem in DEEP
    # Float64 convolutions are slow loops on a CPU; as matrix products they are not.
    numerics = {'dtype': 'float64', 'conv_impl': 'shift'} if deep else {}
    image = golden_weights.inputs(FOLDER / f'{stem}.keys.json').transpose(0, 2, 3, 1)
    with jax.enable_x64(deep):
        module = models.create(name, dropout=0.0, **options, **numerics)

        @jax.jit
        def run(variables, image):
            outputs, new = module.apply(variables, image, train=train, mutable=['batch_stats'])
            if 'logits' not in outputs and 'logits' in GOLDEN[stem][2].values():
                outputs = {**outputs, 'logits': heads.logits(outputs, image.shape[1:3])}
            return outputs, new.get('batch_stats', {})

        return jax.device_get(run(variables(stem), image.astype('float64' if deep else 'float32')))


@functools.cache
def variables(stem):
    name, options, _ = GOLDEN[stem]
    return pretrained.from_torch(name, weights(stem), **options)


@functools.cache
def weights(stem):
    return golden_weights.state_dict(FOLDER / f'{stem}.keys.json')


@functools.cache
def stored(stem):
    with np.load(FOLDER / f'{stem}.golden.npz') as file:
        return dict(file)
