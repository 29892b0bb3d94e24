"""`dsrl compare`: one report of several training runs, side by side."""

import pathlib

import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import costs, data, inference
from dsrl_jax.data import geometry
from dsrl_jax.errors import UserError
from dsrl_jax.ops import resize
from dsrl_jax.records import read_metrics
from dsrl_jax.report import curves, html
from dsrl_jax.report.overlay import colorize, error_map, grid, legend, overlay, save_png

SAMPLES = 4


def flags(parser) -> None:
    """Flags of `dsrl compare`."""
    parser.add_argument('--output', required=True, help='folder for index.html and its pictures')
    parser.add_argument('--split', default='test', help='split that `dsrl eval` has scored')
    parser.add_argument('runs', nargs='+', metavar='NAME=WORKDIR', help='the first is the base')


def main(args) -> int:
    """Write the report; its conclusion is also printed."""
    runs = dict(_parse(item) for item in args.runs)
    output = pathlib.Path(args.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(output, str(error), 'a folder to write', 'choose --output.') from None
    models = {name: inference.from_workdir(workdir) for name, workdir in runs.items()}
    scores = {name: _scores(workdir, args.split) for name, workdir in runs.items()}
    classes = next(iter(models.values()))[0].classes
    for name, (model, _, _) in models.items():
        if model.classes != classes:
            raise UserError(
                runs[name],
                'other classes than the first run',
                'one data set',
                'compare alike runs.',
            )
    rows = [
        _row(name, models[name][0], scores[name], runs[name] / 'metrics.jsonl') for name in runs
    ]
    samples = _samples(models, args.split)
    # The first sample as one picture, to show elsewhere.
    captions, pictures = zip(*samples[0]['pictures'][:-1])
    save_png(
        grid([pictures[:4], pictures[4:]], [captions[:4], captions[4:]]), output / 'sample.png'
    )
    page = html.write_report(
        output / 'index.html',
        title=f'DSRL: {" and ".join(runs)} on {args.split}',
        summary_rows=rows,
        tables=[_class_table(scores, classes)],
        figures=_figures(runs, scores, classes, output),
        samples=samples,
        notes=_notes(scores, args.split),
    )
    print(html.conclude(rows))
    print(f'report: {page}')
    return 0


def _parse(item: str) -> tuple[str, pathlib.Path]:
    name, equals, workdir = item.partition('=')
    if not (equals and name and workdir):
        raise UserError('command line', repr(item), 'NAME=WORKDIR', 'name every run.')
    return name, pathlib.Path(workdir)


def _scores(workdir: pathlib.Path, split: str) -> dict:
    path = workdir / f'eval_{split.replace("+", "_")}' / 'scores.json'
    if not path.is_file():
        remedy = f'run `dsrl eval --workdir={workdir} --split={split}` first.'
        raise UserError(path, 'no such file', 'the scores of this run', remedy)
    return inference.read_json(path)


def _row(name: str, model, scores: dict, metrics: pathlib.Path) -> dict:
    """One line of the comparison: scores, true costs, training speed."""
    plain = inference.build_network(model.config, len(model.classes), conv_impl='lax')
    size = inference.input_size(model.config, configs.eval_size(model.config))
    spent = costs.measure(plain, size)
    speed = [
        line['time/images_per_second']
        for line in read_metrics(metrics)
        if 'time/images_per_second' in line
    ]
    row = {
        'run': name,
        'miou': scores['miou'],
        'pixel_accuracy': scores['pixel_accuracy'],
        'params': spent['params']['inference'],
        'macs': spent['macs']['inference'],
        'macs_without_head': spent['macs']['network'],
    }
    if speed:
        row['images_per_second'] = float(np.median(speed))
    return row


def _class_table(scores: dict, classes: list[str]):
    def cell(value):
        return 'absent' if value is None else f'{100 * value:.1f}'

    rows = [
        [name, *(cell(found['iou'][k]) for found in scores.values())]
        for k, name in enumerate(classes)
    ]
    return 'IoU by class, %', ['class', *scores], rows


def _figures(runs: dict, scores: dict, classes: list[str], output: pathlib.Path):
    records = {name: read_metrics(workdir) for name, workdir in runs.items()}
    bars = {
        name: [np.nan if v is None else v for v in found['iou']] for name, found in scores.items()
    }
    return [
        ('Training', curves.plot_curves(records, output / 'curves.png')),
        ('IoU by class', curves.plot_class_iou(bars, classes, output / 'class_iou.png')),
    ]


def _samples(models: dict, split: str) -> list[dict]:
    """Pictures of the first images of the split: input, truth, every run, SR beside bicubic."""
    first, _, _ = next(iter(models.values()))
    config = first.config
    source = data.build(config.data, split)
    samples = []
    for index in range(min(SAMPLES, len(source))):
        element = source[index]
        image, label = element['image'], element['label']
        pictures = [
            ('input, what the network sees', _small(image, config)),
            ('truth', overlay(image, label, first.colors)),
        ]
        for name, (model, variables, _) in models.items():
            found = model.predict(image).labels
            known = label != 255
            right = f'{100 * (found == label)[known].mean():.1f} % of pixels right'
            pictures.append((f'{name}: {right}', colorize(found, model.colors)))
            pictures.append((f'{name}: errors', error_map(found, label)))
            if 'sisr' in variables['params']:
                sr, bicubic = inference.super_resolve(model, variables, image)
                pictures += [(f'{name}: SR branch', sr), ('bicubic', bicubic)]
        samples.append({'name': element['name'], 'pictures': pictures})
    samples[0]['pictures'].append(('classes', legend(first.classes, first.colors)))
    return samples


def _small(image: np.ndarray, config) -> np.ndarray:
    """The large view after the shared shrink, uint8 [H,W,3]."""
    size = configs.eval_size(config)
    view = geometry.fit(image, size, config.data.eval_fit, config.data.fill)['target']
    small = resize.shrink(view[None].astype(np.float32), config.scale)[0]
    return np.asarray(np.clip(np.round(small), 0, 255), np.uint8)


def _notes(scores: dict, split: str) -> list[str]:
    notes = [f'Scores are of the {split} split at full label size, one pooled confusion matrix.']
    for name, found in scores.items():
        if 'psnr' in found:
            notes.append(
                f'{name}: the SR branch reaches PSNR {found["psnr"]:.2f} dB and SSIM '
                f'{found["ssim"]:.3f}; bicubic enlargement of the same input '
                f'{found["bicubic_psnr"]:.2f} dB and {found["bicubic_ssim"]:.3f}.'
            )
    notes.append('Multiply-adds are for one image of the input size, the head included or apart.')
    return notes
