"""The paper's figures drawn from trained runs: feature maps, segmentations, errors, SR pictures."""

import pathlib

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import data, inference, metrics
from dsrl_jax.data import geometry
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.ops import resize
from dsrl_jax.report import paper
from dsrl_jax.report.overlay import colorize, error_map, grid, overlay, save_png

SAMPLES = 3  # images of a figure, evenly spaced over the split


def figure(name: str, runs: dict, config, output, split: str = 'val') -> pathlib.Path:
    """Draw figure3 or figure5 ... figure8 from {title: workdir}, DSRL last -> path of the PNG.

    Images are of a split of `config`'s data. UserError for figure9 (poses), or where the
    last run lacks the branches that the figure shows.
    """
    if name == 'figure9':
        expected = 'a figure of segmentation: ' + ', '.join(FIGURES)
        found = 'a figure of poses, which are not drawn here yet'
        raise UserError(name, found, expected, 'choose one of these.')
    draw = lookup(FIGURES, name, 'dsrl reproduce')
    trained = {title: inference.from_workdir(folder)[:2] for title, folder in runs.items()}
    elements = _samples(data.build(config.data, split))
    rows, captions = draw(trained, elements)
    return save_png(grid(rows, captions, cell_width=320), pathlib.Path(output) / f'{name}.png')


def _branches(trained, elements):
    """Figure 3: the features of both branches, and below them what the affinity loss compares."""
    title, (model, variables) = list(trained.items())[-1]
    _need(model, 'full')
    rows, captions = [], []
    for element in elements:
        maps = _maps(model, variables, element['image'], ('features', 'seg_feature', 'sr_feature'))
        small = inference.input_size(model.config, configs.eval_size(model.config))
        size = tuple(max(1, n // model.config.fa.grid) for n in small)
        cells = {
            key: np.asarray(resize.pool_to(value[None], size))[0] for key, value in maps.items()
        }
        shown = maps['features'], maps['sr_feature'], cells['seg_feature'], cells['sr_feature']
        rows.append([element['image'], *(paper.rgb(x) for x in shown)])
        captions.append(
            (
                f'{title}: {element["name"]}',
                'SSSR: features',
                'SISR: features',
                'affinity: SSSR, transformed',
                'affinity: SISR',
            )
        )
    return rows, captions


def _features(trained, elements):
    """Figure 5: the last features of every run."""
    rows = []
    for element in elements:
        maps = (_maps(*run, element['image'], ('features',)) for run in trained.values())
        rows.append([element['image'], *(paper.rgb(found['features']) for found in maps)])
    return rows, ['image', *trained]


def _segmentations(trained, elements):
    """Figure 6: input, truth and the class map of every run."""
    rows, captions = [], []
    for element in elements:
        image, label, found, words, colors = _predicted(trained, element)
        rows.append([image, *(colorize(one, colors) for one in (label, *found))])
        captions.append(('image', 'truth', *words))
    return rows, captions


def _errors(trained, elements):
    """Figure 7: the truth over the image and where every run is wrong."""
    rows, captions = [], []
    for element in elements:
        image, label, found, words, colors = _predicted(trained, element)
        rows.append([overlay(image, label, colors), *(error_map(one, label) for one in found)])
        captions.append(('truth', *words))
    return rows, captions


def _predicted(trained, element):
    """image, label, every run's class map, a caption for each, and the colours of the classes."""
    image, label = element['image'], element['label']
    found = [model.predict(image).labels for model, _ in trained.values()]
    words = [f'{title}: {_right(one, label)}' for title, one in zip(trained, found)]
    return image, label, found, words, next(iter(trained.values()))[0].colors


def _super_resolution(trained, elements):
    """Figure 8: the large view, bicubic enlargement of the small one, and the SR branch."""
    title, (model, variables) = list(trained.items())[-1]
    _need(model, 'sssr+sisr', 'full')
    rows, captions = [], []
    for element in elements:
        target = _view(model, element['image'])
        sr, bicubic = inference.super_resolve(model, variables, element['image'])
        rows.append([target, bicubic, sr])
        decibels = [_psnr(x, target) for x in (bicubic, sr)]
        words = (f'{name}: {db:.1f} dB' for name, db in zip(('bicubic', f'{title}, SR'), decibels))
        captions.append(('large view', *words))
    return rows, captions


# Figure 3 is the paper's comparison. Its captions of Figures 5 to 8 are not at hand: what these
# show here is our choice, said in each function.
FIGURES = {
    'figure3': _branches,
    'figure5': _features,
    'figure6': _segmentations,
    'figure7': _errors,
    'figure8': _super_resolution,
}


def _samples(source):
    indices = np.linspace(0, len(source) - 1, min(SAMPLES, len(source))).astype(int)
    return [source[int(index)] for index in indices]


def _need(model, *modes):
    if model.config.model.dsrl not in modes:
        found = f'dsrl {model.config.model.dsrl!r}'
        raise UserError('the last run', found, ' or '.join(modes), 'name a run that has it last.')


def _maps(model, variables, image, names):
    """Maps of the network for one image, {name: float [h,w,C]}."""
    small = resize.small_input(_view(model, image)[None], model.config.scale, model.config.data)

    def apply(variables, x):
        outputs = model.network.apply(variables, x, train=False, sr=True)
        return {name: outputs[name][0] for name in names}

    return jax.device_get(jax.jit(apply)(variables, small))


def _view(model, image):
    """The large view of an image as evaluation makes it, uint8 [sH,sW,3]."""
    size, wanted = configs.eval_size(model.config), model.config.data
    return geometry.fit(image, size, wanted.eval_fit, wanted.fill)['target']


def _right(found, label):
    known = label != 255
    return f'{100 * (found == label)[known].mean():.1f} % of pixels right'


def _psnr(picture, target):
    return float(metrics.psnr(picture[None] / 255.0, target[None] / 255.0)[0])
