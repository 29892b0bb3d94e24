"""The paper's figures drawn from trained runs: feature maps, class maps, errors, SR, poses."""

import itertools
import pathlib

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import data, inference, metrics, tasks
from dsrl_jax.data import geometry, person_crop
from dsrl_jax.errors import UserError, lookup
from dsrl_jax.ops import resize
from dsrl_jax.report import paper
from dsrl_jax.report.overlay import colorize, error_map, grid, overlay, save_png
from dsrl_jax.report.skeleton import closeup, draw

SAMPLES = 3  # images or people of a figure, evenly spaced over the split


def figure(name: str, runs: dict, config, output, split: str = 'val') -> pathlib.Path:
    """Draw figure3 or figure5 ... figure9 from {title: workdir}, DSRL last -> path of the PNG.

    Images are of a split of `config`'s data. UserError where these or a run are of another task
    than the figure, or where the last run lacks the branches that it shows.
    """
    drawn, task = lookup(FIGURES, name, 'dsrl reproduce'), TASKS.get(name, 'segmentation')
    source = data.build(config.data, split)
    _need_task(name, task, f'the data set {config.data.name}', source)
    trained = {title: inference.from_workdir(folder)[:2] for title, folder in runs.items()}
    for title, (model, _) in trained.items():
        _need_task(name, task, f'the run {title!r}', model.network)
    rows, captions = drawn(trained, SAMPLED[task](source))
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


def _poses(trained, elements):
    """Figure 9: a person, the labelled joints, and where every run has them in the same box."""
    rows, captions = [], []
    for element in elements:
        model = next(iter(trained.values()))[0]
        height, width = inference.input_size(model.config, configs.eval_size(model.config))
        center, scale = person_crop.window(element['box'], width / height)
        size = person_crop.UNIT * scale
        view, place = closeup(element['image'], (*(center - size / 2), *size))
        truth, visible = element['joints'], element['visible'] > 0
        style, words = (model.keypoints, model.colors), []
        row = [view, draw(view, place(truth)[None], visible[None], *style)]
        for title, (model, _) in trained.items():
            found = model.predict(element['image'], [element['box']])
            row.append(draw(view, place(found.joints), visible[None], *style))
            apart = np.linalg.norm(found.joints[0] - truth, axis=-1)[visible].mean()
            words.append(f'{title}: {100 * apart / size[1]:.0f} % of the height off')
        rows.append(row)
        captions.append(('image', 'truth', *words))
    return rows, captions


# Figure 3 is the paper's comparison. Its captions of Figures 5 to 9 are not at hand: what these
# show here is our choice, said in each function.
FIGURES = {
    'figure3': _branches,
    'figure5': _features,
    'figure6': _segmentations,
    'figure7': _errors,
    'figure8': _super_resolution,
    'figure9': _poses,
}
TASKS = {'figure9': 'pose'}  # of the others: segmentation


def _samples(source):
    indices = np.linspace(0, len(source) - 1, min(SAMPLES, len(source))).astype(int)
    return [source[int(index)] for index in indices]


def _people(source):
    """The first person of each part of the split with most joints labelled, if there is one."""
    ends = np.linspace(0, len(source), min(SAMPLES, len(source)) + 1).astype(int)
    chosen = []
    for start, stop in itertools.pairwise(ends.tolist()):
        whole = (e for i in range(start, stop) if (e := source[i])['visible'].mean() > 0.5)
        chosen.append(next(whole, None) or source[start])
    return chosen


SAMPLED = {'segmentation': _samples, 'pose': _people}


def _need_task(name, task, where, thing):
    if tasks.of(thing) is not tasks.TASKS[task]:
        found = 'one for ' + next(t for t in tasks.TASKS if tasks.TASKS[t] is tasks.of(thing))
        raise UserError(f'{name}, {where}', found, f'one for {task}', 'choose another figure.')


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
