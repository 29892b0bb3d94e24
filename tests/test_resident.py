"""Images in device memory: the loader's views and epochs, and many steps equal to single ones."""

import io
import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from refusals import TINY

import dsrl_jax
from dsrl_jax import config as configs
from dsrl_jax import inference, parallel, resident
from dsrl_jax.data import geometry, pipeline
from dsrl_jax.errors import UserError
from dsrl_jax.logger import Logger
from dsrl_jax.ops import views
from dsrl_jax.records import read_metrics

FILL = (9, 8, 7)
SIZES = [(37, 53), (40, 64), (40, 61)]


class Few:
    """Images of three sizes; the label of a pixel says which image it is of."""

    classes, colors, num_classes, ignore, split = ['a'], [(0, 0, 0)], 1, 255, 'x'

    def __init__(self, length=11):
        self.length = length

    def __len__(self):
        return self.length

    def files(self, index):
        return {}

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        size = SIZES[index % 3]
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        return {'image': image, 'label': np.full(size, index, np.uint8), 'name': f'image{index}'}


def config(**changes):
    fields = {
        'size': (24, 40),
        'scale_range': (0.5, 2.0),
        'flip': True,
        'color': 0.3,
        'fill': FILL,
        'batch_size': 4,
        'workers': 0,
    }
    return ConfigDict({'seed': 3, 'data': fields | changes})


def smooth(size, seed):
    """A picture whose neighbouring pixels differ, but not as noise does."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / 5.0
    waves = [np.sin(a * y + b * x) for a, b in rng.uniform(-1, 1, (3, 2))]
    return np.clip(128 + 90 * np.stack(waves, -1) + rng.normal(0, 12, (*size, 3)), 0, 255).astype(
        np.uint8
    )


def host_view(image, label, where, wanted):
    """What the loader makes of the numbers of a draw, by its own functions; no colour."""
    scaled, shift = where.scaled.tolist(), where.shift.tolist()
    start = [max(s, 0) for s in shift]
    length = [min(n, w) for n, w in zip(scaled, wanted)]
    image, label = geometry.scaled_crop(image, label, tuple(scaled), (*start, *length))
    if where.flip:
        image, label = image[:, ::-1], label[:, ::-1]
    return geometry.place(image, label, wanted, [max(-s, 0) for s in shift], FILL)


def between(where, size, wanted):
    """Pixels [sH, sW] of a view whose centre lies on the border of two source pixels."""
    lines = []
    for axis in (0, 1):
        at, shift, scaled = np.arange(wanted[axis]), where.shift[axis], where.scaled[axis]
        if axis == 1 and where.flip:
            at = max(-shift, 0) + min(scaled - shift, wanted[1]) - 1 - at
        lines.append((2 * (at + shift) + 1) * size[axis] % (2 * scaled) == 0)
    return lines[0][:, None] | lines[1][None]


@pytest.mark.parametrize('scale_range', [(0.4, 1.0), (0.75, 1.5), (1.0, 2.3), (1.0, 1.0)])
def test_views_are_the_loaders(scale_range):
    """Equal for every draw, but where a value lies between two: a label then is one of them, a
    colour one grey level off (two, of a thousand pixels, where that happens in both passes)."""
    wanted, count = (36, 48), 24
    sizes = np.array([SIZES[i % 3] for i in range(count)])
    image, label = np.zeros((count, 40, 64, 3), np.uint8), np.zeros((count, 40, 64), np.uint8)
    for i, (h, w) in enumerate(sizes):
        image[i, :h, :w] = smooth((h, w), i)
        label[i, :h, :w] = np.random.default_rng(i).integers(0, 9, (h, w))
    taps = views.taps(sizes.tolist(), scale_range)

    @jax.jit
    def device_views(key):
        where = views.draw(key, jnp.array(sizes), wanted, scale_range=scale_range, flip=True)
        return where, views.cut(image, label, where, wanted, taps=taps, fill=FILL, color=False)

    where, ours = jax.tree.map(np.asarray, device_views(jax.random.key(1)))
    assert where.flip.any() and not where.flip.all()
    other = []
    for i, (h, w) in enumerate(sizes):
        one = jax.tree.map(lambda x, i=i: x[i], where)
        theirs = host_view(image[i, :h, :w], label[i, :h, :w], one, wanted)
        assert np.array_equal(ours['mask'][i], theirs['mask'])
        gap = np.abs(ours['target'][i].astype(int) - theirs['target'])
        assert gap.max() <= 2
        other.append([(gap > 0).mean(), (gap > 1).mean()])
        differs = ours['label'][i] != theirs['label']
        assert not differs[~between(one, (h, w), wanted)].any() and differs.mean() < 0.05
    assert (np.mean(other, 0) < (0.02, 1e-4)).all()


def test_colours_are_the_loaders():
    """Given the same factors: over the real pixels alone, at most one grey level apart."""
    count, strength = 6, 0.4
    image = np.stack([smooth((30, 44), i) for i in range(count)])
    mask = np.zeros((count, 30, 44), bool)
    mask[:, 4:25, 7:40] = True
    factors = np.random.default_rng(0).uniform(0.6, 1.4, (count, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(views.adjust_color)(image, mask, factors))
    for i in range(count):
        given = types.SimpleNamespace(uniform=lambda *_, i=i: (factors[i] - 1.0) / strength)
        theirs = geometry.jitter_color(image[i, 4:25, 7:40], strength, given)
        gap = np.abs(ours[i, 4:25, 7:40].astype(int) - theirs)
        assert gap.max() <= 1 and (gap > 0).mean() < 0.01


def distance(a, b):
    """Kolmogorov and Smirnov's: the largest gap between two distributions."""
    at = np.union1d(a, b)
    shares = [np.searchsorted(np.sort(x), at, side='right') / len(x) for x in (a, b)]
    return np.abs(shares[0] - shares[1]).max()


@pytest.mark.parametrize('wanted', [(44, 50), (14, 18)], ids=['placed', 'cropped'])
def test_views_are_distributed_as_the_loaders(wanted):
    """Read off 600 views of each: extent and place of the image, the source pixel, the flip."""
    count, size, scales = 600, (20, 24), (0.8, 2.0)
    image = np.zeros((*size, 3), np.uint8)
    label = np.add.outer(np.zeros(20, np.uint8), np.arange(24, dtype=np.uint8))
    rng = np.random.default_rng(0)
    hosts = [
        geometry.random_view(image, label, wanted, rng, scale_range=scales, flip=True, fill=FILL)
        for _ in range(count)
    ]
    sizes = np.broadcast_to(np.array(size), (count, 2))
    many = [np.broadcast_to(x, (count, *x.shape)) for x in (image, label)]
    taps = views.taps([size], scales)

    @jax.jit
    def device_views(key):
        where = views.draw(key, jnp.array(sizes), wanted, scale_range=scales, flip=True)
        return views.cut(*many, where, wanted, taps=taps, fill=FILL, color=False)

    ours = jax.tree.map(np.asarray, device_views(jax.random.key(0)))
    ours = [{k: v[i] for k, v in ours.items()} for i in range(count)]
    limit = 1.63 * math.sqrt(2 / count)  # passed by 99 % of equal distributions
    for feature in (
        lambda v: v['mask'].any(1).sum(),
        lambda v: v['mask'].any(0).sum(),
        lambda v: v['mask'].any(1).argmax(),
        lambda v: v['mask'].any(0).argmax(),
        lambda v: v['label'][v['mask']].reshape(-1)[0],
        lambda v: v['label'][v['mask']].min(),
        lambda v: int(v['label'][v['mask']][0]) > int(v['label'][v['mask']][-1]),
    ):
        assert distance([feature(v) for v in hosts], [feature(v) for v in ours]) < limit


def test_draws_of_colour_and_scale():
    sizes, even = np.full((4000, 2), 500), np.linspace(0, 1, 4000)

    def drawn(**options):
        draw = jax.jit(lambda key: views.draw(key, jnp.array(sizes), (64, 64), **options))
        return jax.tree.map(np.asarray, draw(jax.random.key(2)))

    where = drawn(scale_range=(0.5, 2.0), flip=True, color=0.2)
    scale = np.log2(where.scaled[:, 0] / 500)
    assert distance(scale, 2 * even - 1) < 0.03
    for factor in where.color.T:
        assert distance(factor, 0.8 + 0.4 * even) < 0.03
    together = np.corrcoef(np.column_stack([scale, where.color, where.flip]).T)
    assert np.abs(together - np.eye(5)).max() < 0.06
    still = drawn()
    assert (still.scaled == 500).all() and not still.flip.any() and (still.color == 1).all()


@pytest.mark.parametrize(('batch_size', 'images'), [(4, 11), (1, 3), (22, 4), (5, 5)])
def test_epochs_are_complete_and_shuffled_anew(batch_size, images):
    key, epochs = jax.random.key(0), 4 * batch_size
    pick = jax.jit(lambda step: resident.sample(key, step, batch_size, images))
    taken = np.concatenate([pick(step) for step in range(4 * images)])
    seen = taken.reshape(epochs, images)
    assert (np.sort(seen, 1) == np.arange(images)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) > min(3, math.factorial(images) - 1)


def test_sharded_images_give_the_same_batches():
    """And no device ever gathers all of them; images of three sizes, eleven on four devices."""
    mesh, settings = parallel.make_mesh(), config()
    batches, texts = [], []
    for sharded in (False, True):
        held = resident.place(Few(), mesh, sharded)
        assert held['image'].shape == ((12 if sharded else 11), 40, 64, 3)
        assert held['image'].sharding.is_fully_replicated != sharded
        step = jax.jit(resident.make_batch(held, settings, mesh))
        program = step.lower(held, jnp.int32(0), jnp.uint32(0)).compile()
        texts.append(program.as_text())
        batches.append(
            [jax.tree.map(np.asarray, program(held, jnp.int32(i), jnp.uint32(0))) for i in range(6)]
        )
    jax.tree.map(np.testing.assert_array_equal, *batches)
    assert 'u8[12,40,64' not in texts[1] and 'u8[3,40,64' in texts[1]
    shapes = {k: (v.shape, str(v.dtype)) for k, v in batches[0][0].items()}
    host = pipeline.train_batches(Few(), settings.data, seed=0, start=0, batch_size=4)
    assert shapes == {k: (v.shape, str(v.dtype)) for k, v in next(host).items()}
    host.close()
    shown = [set(np.unique(row)) - {255} for b in batches[0] for row in b['label']]
    assert all(len(row) == 1 for row in shown)  # of one image each, and only of its own pixels
    assert sorted(i for row in shown[:11] for i in row) == list(range(11))
    for batch in batches[0]:
        outside = ~batch['mask']
        assert (batch['target'][outside] == FILL).all() and (batch['label'][outside] == 255).all()
        assert (batch['label'][batch['mask']] < 11).all()


def test_dispatches_stop_where_something_is_due():
    for start in range(0, 40, 7):
        steps = list(np.cumsum([start, *resident.lengths(start, 97, 10, 25, 0, 31)]))
        assert steps[-1] == 97 and {25, 31, 50, 62, 75, 93} - set(range(start)) <= set(steps)
        assert set(np.diff(steps)) == {1, 10}
    straight = list(resident.lengths(0, 97, 10, 25))
    done = 0
    for number, length in enumerate(straight):
        assert list(resident.lengths(done, 97, 10, 25)) == straight[number:]
        done += length
    with pytest.raises(UserError, match='steps_per_dispatch'):
        next(resident.lengths(0, 9, -1))
    assert list(resident.lengths(0, 3, 0)) == [1, 1, 1]  # on a CPU


def test_where_images_are_kept():
    assert resident.choose_layout(4, 10, 1) == 'replicated'
    assert resident.choose_layout(6, 10, 1) is None
    assert resident.choose_layout(1, 10, 8) == 'replicated'
    assert resident.choose_layout(4, 10, 8) == 'sharded'
    assert resident.choose_layout(40, 10, 8) == 'sharded'
    assert resident.choose_layout(41, 10, 8) is None

    class Vast(Few):
        def image_size(self, index):
            return 100_000, 100_000

    mesh = parallel.make_mesh()
    with pytest.raises(UserError, match=r'data\.resident: found 11 training images, 440\.00 GB'):
        resident.hold(Vast(), 'always', mesh)
    assert resident.hold(Vast(), 'auto', mesh) is None  # on a CPU


def test_the_log_holds_every_step_of_a_dispatch(tmp_path):
    out = io.StringIO()
    with Logger(tmp_path, steps=7, batch_size=2, every=2, stream=out) as log:
        log.train(3, {'total': jnp.array([1.0, 2.0, 3.0]), 'lr': jnp.array([0.1, 0.2, 0.3])})
        log.train(6, {'total': jnp.array([4.0, 5.0, 6.0]), 'lr': jnp.array([0.4, 0.5, 0.6])})
        log.train(7, {'total': jnp.array([7.0]), 'lr': jnp.array([0.7])})
    records = read_metrics(tmp_path)
    assert [(r['step'], r['train/total']) for r in records] == [
        (2, 2.0),
        (4, 4.0),
        (6, 6.0),
        (7, 7.0),
    ]
    assert ['time/total' in r for r in records] == [True, False, True, True]
    log = Logger(tmp_path, steps=20, batch_size=2, start=8, every=2, stream=out)
    with log, pytest.raises(UserError, match='step 10: found non-finite train/total=nan'):
        log.train(12, {'total': jnp.array([8.0, 9.0, math.nan, math.nan, math.nan])})
        log.flush()
    assert read_metrics(tmp_path)[-1]['step'] == 10


def run(workdir, length, steps=7):
    settings = configs.load(f'{TINY},dsrl=none')
    settings.data.resident, settings.steps_per_dispatch = 'always', length
    settings.steps, settings.checkpoint.every, settings.checkpoint.keep = steps, 4, 5
    settings.data.color, settings.optimizer.name = 0.2, 'sgd'
    return settings, dsrl_jax.train(settings, workdir)


def weights_of(workdir):
    _, variables, step = inference.from_workdir(workdir)
    return jax.tree.map(np.asarray, variables), step


def terms(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    named = [{k: v for k, v in r.items() if k == 'step' or k.startswith('train/')} for r in records]
    return [r for r in named if len(r) > 1]


@pytest.mark.slow
def test_many_steps_in_a_dispatch_are_the_single_steps(tmp_path, capsys):
    """Weights and every logged term, up to the last bits that another program rounds otherwise;
    a resumed run bit for bit; one that reads otherwise is refused."""
    single, many = tmp_path / 'single', tmp_path / 'many'
    run(single, 1)
    settings, scores = run(many, 3)
    assert scores['step'] == 7 and 'in device memory, replicated' in capsys.readouterr().out
    assert [r['step'] for r in terms(many)] == list(range(1, 8))
    for ours, theirs in zip(terms(many), terms(single), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    (one, _), (several, _) = weights_of(single), weights_of(many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), one, several)
    before = terms(many)
    shutil.rmtree(many / 'checkpoints/7')
    run(many, 3)
    assert terms(many) == before
    again, step = weights_of(many)
    assert step == 7 and 'resumed at step 4' in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, several, again)
    settings.data.resident = 'auto'
    with pytest.raises(UserError, match=r'data\.resident: found "never"; expected "always"'):
        dsrl_jax.train(settings, many)
