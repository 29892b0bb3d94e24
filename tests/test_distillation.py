"""Distillation: both terms against numpy, a teacher that stays as it is, runs, and refusals."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import TINY, refused

from dsrl_jax import cli, distillation, inference, losses
from dsrl_jax import config as configs
from dsrl_jax import state as states
from dsrl_jax.errors import UserError
from dsrl_jax.models.dsrl import inference_variables
from dsrl_jax.models.layers import Convention
from dsrl_jax.ops import resize
from dsrl_jax.records import read_metrics

STUDENT = ('train', f'--config={TINY},dsrl=sssr', '--config.seed=1', '--config.log.every=1')


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def ones(*shape):
    return jnp.ones(shape, bool)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('convention', ['half_pixel', 'align_corners'])
@pytest.mark.parametrize('block_bytes', [2**24, 500])
def test_divergence_by_formula(convention, block_bytes, monkeypatch):
    """Whole and by blocks that do not divide the rows; values and gradients."""
    monkeypatch.setattr(distillation, '_BLOCK_BYTES', block_bytes)
    monkeypatch.setattr(distillation, '_MOST_BLOCKS', 10)
    scores, teacher = draw(2, 21, 12, 5), draw(2, 4, 6, 5, seed=1)
    weight = draw(2, 21, 12, seed=2)

    def weighted(scores):
        found = distillation.divergence(scores, teacher, convention=convention)
        return jnp.sum(weight * found), found

    gradient, found = jax.jit(jax.grad(weighted, has_aux=True))(scores)
    large = np.asarray(resize.bilinear(teacher, (21, 12), convention=convention), np.float64)
    p, q = softmax(large), softmax(np.asarray(scores, np.float64))
    np.testing.assert_allclose(found, np.sum(p * np.log(p / q), -1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, np.asarray(weight)[..., None] * (q - p), atol=2e-6)


def test_pixel_term_is_the_mean_over_real_pixels():
    scores, teacher = draw(2, 8, 8, 5), draw(2, 8, 8, 5, seed=1)
    mask = ones(2, 16, 16).at[0, 10:].set(False)
    term = jax.jit(functools.partial(distillation.pixel_wise, convention='half_pixel'))
    found = term(scores, teacher, mask)
    p, q = softmax(np.asarray(teacher)), softmax(np.asarray(scores))
    each = np.sum(p * np.log(p / q), -1)
    expected = (each[0, :5].sum() + each[1].sum()) / (5 * 8 + 64)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(term(scores.at[0, 5:].set(99), teacher, mask), found, rtol=1e-6)


def similarities(x, nodes):
    """Cosine similarities [B,N,N] of the maxima over nodes x nodes equal cells."""
    b, h, w, c = x.shape
    x = np.asarray(x, np.float64).reshape(b, nodes, h // nodes, nodes, w // nodes, c).max((2, 4))
    x = x.reshape(b, nodes**2, c)
    x = x / np.sqrt(np.sum(x * x, -1, keepdims=True) + 1e-4)
    return np.einsum('bic,bjc->bij', x, x)


@pytest.mark.parametrize(('share', 'nodes'), [(0.5, 2), (0.25, 4)])
def test_pair_term_by_formula_on_maps_of_any_width_and_stride(share, nodes):
    """2x2 nodes take the dense form, 4x4 nodes (more than channels) the Gram form."""
    features, teacher = draw(2, 16, 24, 5), draw(2, 8, 8, 7, seed=1)
    term = jax.jit(functools.partial(distillation.pair_wise, share=share))
    found = term(features, teacher, ones(2, 32, 48))
    expected = np.mean((similarities(features, nodes) - similarities(teacher, nodes)) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_padding_does_not_reach_the_pair_term():
    features, teacher = draw(1, 16, 16, 5), draw(1, 8, 8, 7, seed=1)
    mask = ones(1, 32, 32).at[:, 20:].set(False)

    @jax.jit
    @jax.value_and_grad
    def term(features, mask):
        return distillation.pair_wise(features, teacher, mask, share=0.25)

    value, gradient = term(features, mask)
    np.testing.assert_allclose(term(features.at[:, 10:].set(99), mask)[0], value, rtol=1e-6)
    assert jnp.all(gradient[:, 10:] == 0) and jnp.any(gradient[:, :10] != 0)
    value, gradient = term(features, jnp.zeros_like(mask))
    assert value == 0 and jnp.all(gradient == 0)


def test_odd_and_small_maps_have_cells_that_cover_them():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    np.testing.assert_array_equal(distillation._cells(x, 1, 2)[0, :, 0, 0], [2, 4])
    term = jax.jit(functools.partial(distillation.pair_wise, share=0.1))
    assert 0 < term(draw(1, 3, 9, 4), draw(1, 33, 33, 4), ones(1, 9, 9)) < 4


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient():
    outputs = {'scores': draw(2, 8, 8, 5), 'features': draw(2, 8, 8, 6)}
    mask = ones(2, 16, 16)
    terms = {
        'scores': lambda x: distillation.pixel_wise(
            x, outputs['scores'], mask, convention='align_corners'
        ),
        'features': lambda x: distillation.pair_wise(x, outputs['features'], mask, share=0.5),
    }
    for name, term in terms.items():
        value, gradient = jax.jit(jax.value_and_grad(term))(outputs[name])
        assert abs(value) < 1e-6 and jnp.max(jnp.abs(gradient)) < 1e-6


def test_total_is_the_weighted_sum_and_a_weight_of_zero_drops_its_term():
    outputs = {'scores': draw(2, 8, 8, 5), 'features': draw(2, 8, 8, 6)}
    outputs['resize'] = Convention('half_pixel')
    teacher = {'scores': draw(2, 4, 4, 5, seed=1), 'features': draw(2, 4, 4, 9, seed=2)}
    batch = {
        'label': jnp.zeros((2, 16, 16), jnp.uint8),
        'mask': ones(2, 16, 16),
        'view': draw(2, 16, 16, 3),
        'teacher': {**teacher, 'resize': Convention('align_corners')},
    }
    config = configs.base()
    for pixel, pair in ((3.0, 0.7), (3.0, 0.0), (0.0, 0.7)):
        config.kd.pixel, config.kd.pair = pixel, pair
        loss = jax.jit(distillation.add_terms(losses.make_loss(config), config))
        terms = loss(outputs, batch, step=jnp.asarray(0), key=jax.random.key(0))
        wanted = {'ce', 'total'} | {n for n in ('pixel', 'pair') if config.kd[n]}
        assert {name.removeprefix('kd_') for name in terms} == wanted
        expected = terms['ce'] + sum(
            config.kd[n] * terms[f'kd_{n}'] for n in wanted & {'pixel', 'pair'}
        )
        np.testing.assert_allclose(terms['total'], expected, rtol=1e-6)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """The exported model of a short run of the toy network without DSRL."""
    folder = tmp_path_factory.mktemp('teacher')
    config = f'--config={TINY},dsrl=none'
    train = ('train', config, '--config.steps=6', f'--workdir={folder / "run"}')
    export = ('export', f'--workdir={folder / "run"}', f'--output={folder / "model"}')
    assert cli.main(list(train)) == 0
    assert cli.main([*export, '--format=params']) == 0
    return folder / 'model'


def with_teacher(teacher, **kd):
    config = configs.load(TINY)
    config.kd.update(teacher=str(teacher), **kd)
    return config


@pytest.mark.parametrize('seen', ['small', 'view'])
def test_the_teacher_sees_its_own_normalisation_of_the_stated_input(teacher, seen):
    config = with_teacher(teacher, input=seen)
    config.model.dtype = 'bfloat16'  # the student's: the teacher takes it over
    model = distillation.load_teacher(config, inference.load(teacher).classes)
    model.config.data.mean, model.config.data.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    target = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 3)).astype(np.uint8)
    found = distillation.make_guide(model, config)(model.variables, target)
    factor = config.scale if seen == 'small' else 1
    image = resize.small_input(target, factor, resize.Color((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    expected = model.network.apply(model.variables, image, train=False)
    for name in ('scores', 'features'):
        assert found[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(found[name], expected[name])
    assert found['features'].shape[1:3] == (16 // factor // 2, 32 // factor // 2)


def test_only_the_student_gets_a_gradient(teacher):
    config = with_teacher(teacher)
    model = distillation.load_teacher(config, inference.load(teacher).classes)
    guide = distillation.make_guide(model, config)
    target = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 3)).astype(np.uint8)
    mask = ones(1, 16, 32)

    def total(outputs, variables):
        seen = guide(variables, target)
        pixel = distillation.pixel_wise(
            outputs['scores'], seen['scores'], mask, convention=seen['resize']
        )
        pair = distillation.pair_wise(outputs['features'], seen['features'], mask, share=0.5)
        return pixel + pair

    outputs = {'scores': draw(1, 8, 16, 11), 'features': draw(1, 4, 8, 6)}
    mine, theirs = jax.jit(jax.grad(total, argnums=(0, 1)))(outputs, model.variables)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(mine))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))


def kd_terms(workdir):
    records = [r for r in read_metrics(workdir) if 'train/kd_pixel' in r]
    return [np.array([r[f'train/kd_{name}'] for r in records]) for name in ('pixel', 'pair')]


def test_a_run_follows_its_teacher_and_resumes_with_no_other(teacher, tmp_path, capsys):
    here = shutil.copytree(teacher, tmp_path / 'here')
    flags = ('--config.steps=30', '--config.optimizer.lr=0.01', f'--workdir={tmp_path / "run"}')
    given = (*STUDENT, *flags, '--config.checkpoint.every=15', '--config.kd.pair=1000.0')
    assert cli.main([*given, f'--config.kd.teacher={here}']) == 0
    pixel, pair = kd_terms(tmp_path / 'run')
    assert len(pixel) == 30
    for term in (pixel, pair):
        assert term[-5:].mean() < 0.8 * term[:5].mean()

    # The directory may move; another network may not take its place.
    there = here.rename(tmp_path / 'there')
    shutil.rmtree(tmp_path / 'run/checkpoints/30')
    assert cli.main([*given, f'--config.kd.teacher={there}']) == 0
    assert 'resumed at step 15' in capsys.readouterr().out
    for again, straight in zip(kd_terms(tmp_path / 'run'), (pixel, pair)):
        np.testing.assert_array_equal(again, straight)
    model = inference.load(teacher)
    model.variables['params']['network']['head']['bias'] += 1
    assert distillation.identity(model) != distillation.identity(inference.load(teacher))
    refused(capsys, given, 'config kd.teacher', 'toy_network:Toy', 'as in the checkpoint')


def test_a_teacher_guides_the_affinity_alone_without_a_sisr_branch(teacher, tmp_path):
    workdir = tmp_path / 'run'
    flags = ('--config.steps=30', '--config.optimizer.lr=0.01', f'--workdir={workdir}')
    kd = ('--config.kd.pixel=0', '--config.kd.pair=0', '--config.kd.input=view')
    guide = (f'--config.kd.teacher={teacher}', '--config.fa.guide=teacher')
    assert cli.main([*STUDENT, *flags, *kd, *guide, '--config.fa.weight=20.0']) == 0
    records = [r for r in read_metrics(workdir) if 'train/total' in r]
    names = {n for n in records[0] if n.startswith(('train/fa', 'train/kd', 'train/mse'))}
    assert names == {'train/fa_teacher'}
    gap = np.array([r['train/fa_teacher'] for r in records])
    assert gap[-5:].mean() < 0.8 * gap[:5].mean()

    model, variables, _ = inference.from_workdir(workdir)
    assert set(variables['params']) == {'network', 'sssr', 'transform'}
    config = configs.load_json(workdir / 'config.json')
    network = inference.build_network(config, len(model.classes))
    small = inference.input_size(config, config.data.size)
    start = jax.jit(lambda k: states.init_variables(network, small, k))(
        jax.random.key(config.seed, impl='rbg')
    )
    for before, after in zip(
        *(jax.tree.leaves(v['params']['transform']) for v in (start, variables))
    ):
        assert np.any(before != after)
    # What is exported is what it would be without a guide.
    assert (
        cli.main(
            ['export', f'--workdir={workdir}', f'--output={tmp_path / "model"}', '--format=params']
        )
        == 0
    )
    config.fa.guide, config.kd.teacher = 'sisr', ''
    plain = inference.build_network(config, len(model.classes))
    wanted = inference_variables(inference.abstract_variables(plain, config))
    found = inference.load(tmp_path / 'model').variables
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)


def test_a_guide_that_is_not_there_is_refused(teacher, tmp_path, capsys):
    argv = (*STUDENT, '--config.steps=2', f'--workdir={tmp_path / "run"}')
    wanted = ('config.fa.guide', "'teacher' without a teacher", 'config.kd.teacher')
    refused(capsys, (*argv, '--config.fa.guide=teacher'), *wanted)
    given = (*argv, '--config.fa.guide=both', f'--config.kd.teacher={teacher}')
    refused(capsys, given, "'both' with model.dsrl=sssr", 'fa.guide=teacher')
    refused(capsys, (*argv, '--config.fa.guide=siser'), "did you mean 'sisr'")
    assert not (tmp_path / 'run').exists()


def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path, capsys):
    argv = (*STUDENT, '--config.steps=2', f'--workdir={tmp_path / "run"}')
    gone = tmp_path / 'gone'
    refused(capsys, (*argv, f'--config.kd.teacher={gone}'), str(gone), 'no model', 'dsrl export')
    given = (*argv, f'--config.kd.teacher={teacher}')
    wanted = ('kd.pair_pool', '0.75', 'at most 0.5')
    refused(capsys, (*given, '--config.kd.pair_pool=0.75'), *wanted)
    refused(capsys, (*given, '--config.kd.input=large'), "'large'", 'small, view')

    other = shutil.copytree(teacher, tmp_path / 'other')
    saved = json.loads((other / 'config.json').read_text())
    saved['classes'][0] = 'cloud'
    (other / 'config.json').write_text(json.dumps(saved))
    refused(
        capsys,
        (*argv, f'--config.kd.teacher={other}'),
        'found cloud',
        'expected sky',
        'same classes',
    )
    assert not (tmp_path / 'run').exists()


def test_a_teacher_that_cannot_take_the_input_is_refused(teacher):
    config = with_teacher(teacher)
    config.data.size = (64, 24 * 4)
    assert distillation.load_teacher(config, inference.load(teacher).classes)
    config.data.size = (64, 24)
    with pytest.raises(UserError, match=r'32x12.*multiples of 8 for toy_network:Toy'):
        distillation.load_teacher(config, inference.load(teacher).classes)


def test_no_teacher_no_terms():
    assert distillation.load_teacher(configs.load(TINY), ['sky']) is None
