"""Every network equals the stored outputs of the original: eval, train, and running statistics."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden_weights
from golden_sets import EVAL_BOUND, GOLDEN, TRAIN_BOUND, TRAIN_BOUNDS

from dsrl_jax import models, pretrained
from dsrl_jax.models import heads

FOLDER = pathlib.Path(os.environ.get('DSRL_REFERENCE', pathlib.Path(__file__).with_name('golden')))


@pytest.mark.parametrize('stem', GOLDEN)
def test_eval(stem):
    outputs, _ = forward(stem, train=False)
    check(stem, 'eval', outputs, EVAL_BOUND)


@pytest.mark.parametrize('stem', GOLDEN)
def test_train(stem):
    outputs, _ = forward(stem, train=True)
    check(stem, 'train', outputs, TRAIN_BOUNDS.get(stem, TRAIN_BOUND))


@pytest.mark.parametrize('stem', GOLDEN)
def test_running_statistics_after_one_step(stem):
    """Pins the momentum and the unbiased variance at the first, a middle and the last norm."""
    name, options, _ = GOLDEN[stem]
    _, stats = forward(stem, train=True)
    after = {k.removeprefix('after/'): v for k, v in stored(stem).items() if 'after/' in k}
    expected = pretrained.from_torch(name, weights(stem) | after, **options)['batch_stats']
    before = pretrained.from_torch(name, weights(stem), **options)['batch_stats']
    checked = 0
    for old, want, got in zip(*map(jax.tree.leaves, (before, expected, stats)), strict=True):
        if not np.array_equal(old, want):
            checked += 1
            np.testing.assert_allclose(got, want, atol=2e-4 * np.std(want))
    assert checked == len(after)


def check(stem, mode, outputs, bound):
    """Each stored output of `mode` agrees with ours within `bound` standard deviations."""
    golden = stored(stem)
    for theirs, ours in GOLDEN[stem][2].items():
        want = golden[f'{mode}/{theirs}']
        got = functools.reduce(lambda node, part: node[part], ours.split('.'), outputs)
        got = np.asarray(got, np.float32)
        if got.ndim == 4:
            got = got.transpose(0, 3, 1, 2)
            sy, sx = golden.get(f'stride/{mode}/{theirs}', (1, 1))
            got = got[:, :, ::sy, ::sx]
        assert got.shape == want.shape
        error = np.abs(got - want).max() / want.std()
        assert error < bound, f'{stem} {mode}/{theirs}: {error:.1e} of a standard deviation'


@functools.cache
def forward(stem, train):
    """(outputs, new batch statistics) of the golden input, `logits` added where there are none."""
    name, options, _ = GOLDEN[stem]
    module = models.create(name, **options)
    variables = pretrained.from_torch(name, weights(stem), **options)
    keys = FOLDER / f'{stem}.keys.json'
    image = jnp.asarray(golden_weights.inputs(keys).transpose(0, 2, 3, 1))

    @jax.jit
    def run(variables, image):
        outputs, new = module.apply(variables, image, train=train, mutable=['batch_stats'])
        if 'logits' not in outputs:
            outputs = {**outputs, 'logits': heads.logits(outputs, image.shape[1:3])}
        return outputs, new['batch_stats']

    return jax.device_get(run(variables, image))


@functools.cache
def weights(stem):
    return golden_weights.state_dict(FOLDER / f'{stem}.keys.json')


@functools.cache
def stored(stem):
    with np.load(FOLDER / f'{stem}.golden.npz') as file:
        return dict(file)
