"""Several scales, mirrored views and windows: sums of probabilities, one program a shape."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from refusals import TINY, refused

from dsrl_jax import cli, multi_scale
from dsrl_jax import config as configs
from dsrl_jax.data import geometry
from dsrl_jax.data.synthetic import SyntheticSource
from dsrl_jax.errors import UserError
from dsrl_jax.ops import resize
from dsrl_jax.tasks import segmentation

SIZE, VIEW, CLASSES = (72, 104), (64, 96), 11
TRACED = []  # shapes of the inputs that a network was compiled for


class Strided(nn.Module):
    """Scores at 1/2 of the input, from a 3x3 window."""

    convention: str = 'half_pixel'
    stride: int = 2
    kernel: int = 3
    multiple = 8
    offsets = (0,)

    @nn.compact
    def __call__(self, image, train=False, sr=False):
        if not self.is_initializing():
            TRACED.append(image.shape)
        edge = (self.kernel, self.kernel)
        scores = nn.Conv(CLASSES + 1, edge, strides=self.stride)(image)
        return {'scores': 4 * scores, 'resize': self.convention}


@functools.cache
def source():
    return SyntheticSource('val', SIZE, length=5, seed=0)  # one row more than there are devices


def config_of(**changes):
    config = configs.load('synthetic:tiny')
    config.data.update(eval_size=VIEW, eval_fit='resize', workers=0)
    config.eval.update(changes)
    return config


def network_of(config, **options):
    network = Strided(**options)
    small = (1, *(n // config.scale for n in VIEW), 3)
    return network, network.init(jax.random.key(0), jnp.zeros(small))


def maps(config, **options):
    network, variables = network_of(config, **options)
    return np.stack(
        [found for _, found, _ in segmentation.predictions(network, variables, config, source())]
    )


def by_hand(image, scales, network, variables, config):
    """Summed probabilities [sH,sW,K] of an image, a view at a time, in numpy."""
    total = 0
    for scale in scales:
        unit = network.multiple * config.scale
        size = tuple(-(-round(n * scale) // unit) * unit for n in VIEW)
        view = geometry.fit(image, size, 'resize', 0)['target'][None]
        for step in (1, -1):
            small = resize.small_input(view[:, :, ::step], config.scale, config.data)
            scores = network.apply(variables, small)['scores'][:, :, ::step, :CLASSES]
            large = resize.bilinear(scores, VIEW, convention='half_pixel')
            power = np.exp(np.asarray(large[0], np.float64))
            total = total + power / power.sum(-1, keepdims=True)
    return total


@pytest.mark.parametrize('how', ['labels', 'logits'])
@pytest.mark.parametrize(
    ('fit', 'convention'), [('resize', 'half_pixel'), ('pad', 'align_corners')]
)
def test_one_window_over_the_whole_view_is_the_plain_evaluation(how, fit, convention):
    """Through all of this module's arithmetic, and with scores of either convention."""

    def found(window):
        config = config_of(resize=how, window=window)
        config.data.update(eval_fit=fit, eval_size=VIEW if fit == 'resize' else (80, 112))
        return maps(config, convention=convention)

    plain, summed = found(()), found((80, 112))
    assert plain.shape == (5, *SIZE) and len(np.unique(plain)) > 3
    assert (plain == summed).mean() > 0.9995  # equal but for ties within rounding


def test_scales_and_mirrors_are_summed_probabilities():
    scales = (0.5, 1.0, 1.3)
    config = config_of(scales=scales, flip=True)
    network, variables = network_of(config)
    found = maps(config)
    rows, columns = ((np.arange(n) * 2 + 1) * v // (2 * n) for n, v in zip(SIZE, VIEW))
    agreement = []
    for index in range(5):
        total = by_hand(source()[index]['image'], scales, network, variables, config)
        expected = total.argmax(-1)[rows][:, columns]
        agreement.append((expected == found[index]).mean())
    assert min(agreement) > 0.995
    assert (maps(config_of()) != found).mean() > 0.01  # it is another map


def test_a_scale_reads_the_image_and_not_its_view():
    """Twice a view of half the image's size is the image itself."""
    config = config_of(scales=(2.0,))
    config.data.eval_size = tuple(n // 2 for n in VIEW)
    loaded = next(multi_scale.batches(source(), config, Strided()))
    image = geometry.fit(source()[0]['image'], VIEW, 'resize', 0)['target']
    assert np.array_equal(loaded['views'][0]['target'][0], image)
    config = config_of(scales=(0.5,))
    config.data.update(eval_fit='pad', eval_size=(80, 112))
    (view,) = next(multi_scale.batches(source(), config, Strided()))['views']
    assert view['target'].shape[1:3] == (48, 64)  # 40x56, up to the next multiple of 16
    assert view['region'][0].tolist() == [6, 6, 36, 52]


def test_a_mirrored_image_gives_the_mirrored_map():
    config = config_of(flip=True, scales=(0.75, 1.0))
    found = maps(config)

    class Mirrored(SyntheticSource):
        def __getitem__(self, index):
            element = super().__getitem__(index)
            return {k: v[:, ::-1] if isinstance(v, np.ndarray) else v for k, v in element.items()}

    network, variables = network_of(config)
    other = Mirrored('val', SIZE, length=5, seed=0)
    mirrored = [m for _, m, _ in segmentation.predictions(network, variables, config, other)]
    assert (np.stack(mirrored)[:, :, ::-1] == found).mean() > 0.99


def test_windows_of_a_network_that_sees_single_pixels_change_nothing():
    config = config_of(window=(32, 48), stride=0.6)
    config.scale = 1
    whole = config_of()
    whole.scale = 1
    found = maps(config, kernel=1, stride=1)
    assert (found == maps(whole, kernel=1, stride=1)).mean() > 0.9995


def test_one_program_for_all_windows():
    config = config_of(window=(32, 48), scales=(0.75, 1.0, 1.5), flip=True)
    network, variables = network_of(config)
    TRACED.clear()
    step = segmentation.jit_eval_step(network, config, source(), sr=False)
    scores = segmentation.evaluate(network, variables, config, source(), sr=False, step_fn=step)
    assert TRACED == [(4, 16, 24, 3)] and scores['images'] == 5
    assert scores['protocol'] == (
        'view 64x96 (resize), input 32x48, windows of 32x48, 0.667 of it apart, scales 0.75 1 1.5, '
        'mirrored too, label map by nearest to the label, arg-max over 11 of 11'
    )


def test_a_background_that_wins_is_no_class():
    config = config_of(flip=True, classes=CLASSES + 1)
    config.model.num_classes = CLASSES + 1
    found = maps(config)
    assert (found == 255).any() and found[found != 255].max() < CLASSES


@pytest.mark.parametrize('length', [31, 32, 33, 64, 100, 129])
@pytest.mark.parametrize('stride', [0.3, 2 / 3, 1.0])
def test_windows_cover_every_pixel(length, stride):
    starts = multi_scale.windows(length, 32, stride)
    covered = np.zeros(max(length, 32), int)
    for start in starts:
        covered[start : start + 32] += 1
    assert covered.min() >= 1 and starts == sorted(set(starts))
    assert starts[-1] == max(length - 32, 0)
    assert np.diff(starts, prepend=0).max() <= max(1, round(32 * stride))


def test_sizes_that_a_network_takes():
    config, network = config_of(), SimpleNamespace(multiple=8, offsets=(0,))
    assert multi_scale.legal_size(network, config, (512, 1024), 0.75) == (384, 768)
    assert multi_scale.legal_size(network, config, (512, 1024), 1.3) == (672, 1344)
    assert multi_scale.legal_size(network, config, (64, 96), 0.01) == (16, 16)
    network.offsets = (0, 1)  # 8 n + 1, twice as much in the large view
    assert multi_scale.legal_size(network, config, (513, 1024)) == (514, 1024)


def test_named_sets():
    assert multi_scale.parse_scales('0.5..1.75') == (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    assert multi_scale.parse_scales('0.75..2') == (0.75, 1, 1.25, 1.5, 1.75, 2)
    assert multi_scale.parse_scales('0.5,1') == (0.5, 1.0)


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('toy') / 'run'
    assert cli.main(['train', f'--config={TINY}', '--config.steps=1', f'--workdir={workdir}']) == 0
    return workdir


def test_by_command(toy, tmp_path, capsys):
    words = ['eval', f'--workdir={toy}', '--scales=0.5,1.0', '--flip']
    words += [f'--output={tmp_path}', '--config.data.eval_size=(80,128)']
    capsys.readouterr()
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    scores = json.loads(out.splitlines()[-1])
    assert 'input 40x64, scales 0.5 1, mirrored too' in scores['protocol']
    assert 'psnr' not in scores  # of the SR branch: one view's alone
    assert f'scored with: {scores["protocol"]}' in out and 0 < scores['miou'] < 1


@pytest.mark.parametrize(
    ('flag', 'named'),
    [
        ('--scales=half', ['--scales', "'half'", '0.75..2']),
        ('--scales=0.5,0', ['--scales', 'factors above 0']),
        ('--config.eval.scales=()', ['config.eval.scales', '()']),
        ('--config.eval.scales=(0.5,-1)', ['config.eval.scales', '(0.5, -1)']),
        ('--config.eval.window=(32,)', ['config.eval.window', 'height and width']),
        ('--config.eval.window=(30,48)', ['config.eval.window', '30x48', 'use 32x48']),
        ('--config.eval.stride=0', ['config.eval.stride', 'at least 0.1 and at most 1']),
    ],
)
def test_what_makes_no_sense_is_refused(toy, capsys, flag, named):
    refused(capsys, ['eval', f'--workdir={toy}', flag], *named)


def test_a_window_is_refused_before_anything_is_compiled():
    with pytest.raises(UserError, match='use 32x48'):
        segmentation.jit_eval_step(Strided(), config_of(window=(30, 40)), source(), sr=False)
