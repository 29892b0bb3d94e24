"""`dsrl eval`: score a training run or an exported model on a split, at full label size."""

import contextlib
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import data, inference, metrics, parallel
from dsrl_jax.data import pipeline
from dsrl_jax.errors import UserError
from dsrl_jax.report.overlay import colorize, error_map, grid, overlay, save_png
from dsrl_jax.step import make_eval_step


def flags(parser) -> None:
    """Flags of `dsrl eval`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--workdir', help='a training run: its newest checkpoint is scored')
    which.add_argument('--model', help='a directory written by `dsrl export`')
    parser.add_argument('--config', help='take data and eval sections from this configuration')
    parser.add_argument('--split', help='split to score; default: config.data.eval_split')
    parser.add_argument('--output', help='folder of scores and pictures; default: below the model')


def main(args) -> int:
    """Run `dsrl eval`; the last line of stdout is one JSON object."""
    home = pathlib.Path(args.workdir or args.model)
    if args.workdir:
        model, variables, step = inference.from_workdir(home)
    else:
        model = inference.load(home)
        variables, step = model.variables, None
    config = _config(model.config, args)
    split = args.split or config.data.eval_split
    output = pathlib.Path(args.output) if args.output else home / f'eval_{split.replace("+", "_")}'
    source = data.build(config.data, split)
    check_classes(source, model)
    inference.check_outputs(config, len(source.classes))
    network = model.network
    has_sr = bool(args.workdir) and config.model.dsrl in ('sssr+sisr', 'full')
    scores = evaluate(network, variables, config, source, sr=has_sr, pictures=output)
    scores |= {'split': split, 'step': step, 'dsrl': config.model.dsrl, 'net': config.model.net}
    print_scores(scores, source.classes)
    write_scores(scores, output)
    print(json.dumps(scores))
    return 0


def evaluate(network, variables, config, source, *, sr: bool, pictures=None, step_fn=None) -> dict:
    """Scores of the split `source`: one pooled confusion matrix at full label resolution.

    Returns plain numbers: images, miou, pixel_accuracy, class_accuracy, iou (list), the same with
    void pixels counted (`miou_void_counted`), and with `sr` psnr and ssim of the SR image beside
    bicubic enlargement's. `pictures`: folder for overlays of the first and the worst images.
    """
    classes = len(source.classes)
    step = step_fn or jit_eval_step(network, config, classes, sr=sr)
    total = metrics.Confusion.empty(classes)
    quality = {name: metrics.ImageQuality.empty() for name in ('', 'bicubic_')}
    gallery = _Gallery(config.eval.pictures if pictures else 0)
    for batch, result in _results(step, variables, config, source):
        total = total.merge(jax.device_get(result['confusion']))
        if sr:
            for name in quality:
                quality[name] = quality[name].merge(jax.device_get(result[f'{name}quality']))
        if gallery.wanted:
            gallery.add(batch, result)
    scores = summary(total, source)
    if sr:
        for name, value in quality.items():
            scores |= {f'{name}{k}': float(v) for k, v in value.compute().items()}
    if gallery.wanted:
        gallery.save(pathlib.Path(pictures), source.colors)
    return scores


def predictions(network, variables, config, source, *, step_fn=None) -> Iterator[tuple]:
    """(index, class map, label) of every image of `source` in order, uint8 [H,W] at its own size.

    The prediction is 255 where a background output won. What `detailed.count` reads.
    """
    step = step_fn or jit_eval_step(network, config, len(source.classes), sr=False)
    for batch, result in _results(step, variables, config, source):
        for row, found, truth in _images(batch, result):
            yield int(batch['index'][row]), found, truth


def jit_eval_step(network, config, classes: int, *, sr: bool):
    """The compiled evaluation step; make it once where several evaluations share it."""
    return jax.jit(make_eval_step(network, config, classes, sr=sr))


def summary(total: metrics.Confusion, source) -> dict:
    """The pooled matrix as plain numbers, void ignored and void counted."""
    ignored, counted = total.compute(void='ignore'), total.compute(void='count')
    return {
        'images': len(source),
        'miou': float(ignored['miou']),
        'pixel_accuracy': float(ignored['pixel_accuracy']),
        'class_accuracy': float(ignored['class_accuracy']),
        'miou_void_counted': float(counted['miou']),
        'iou': [None if np.isnan(v) else float(v) for v in ignored['iou']],
    }


def check_classes(source, model) -> None:
    """Raise UserError unless the split has the classes the model was trained on."""
    if list(source.classes) != model.classes:
        raise UserError(
            'the data set',
            f'the classes {", ".join(source.classes)}',
            f"the model's: {', '.join(model.classes)}",
            'score it on the data set it was trained for.',
        )


def print_scores(scores: dict, classes: list[str]) -> None:
    """Per-class IoU and the totals as a small table."""
    width = max(map(len, classes))
    for name, value in zip(classes, scores['iou'], strict=True):
        print(f'  {name:<{width}}  {"absent" if value is None else f"{100 * value:6.2f}"}')
    print(
        f'{scores["images"]} images of {scores["split"]}: mIoU {100 * scores["miou"]:.2f} '
        f'(void counted as error: {100 * scores["miou_void_counted"]:.2f}), '
        f'pixel accuracy {100 * scores["pixel_accuracy"]:.2f}'
    )
    if 'psnr' in scores:
        print(
            f'SR branch: PSNR {scores["psnr"]:.2f} dB, SSIM {scores["ssim"]:.4f}; bicubic: '
            f'{scores["bicubic_psnr"]:.2f} dB, {scores["bicubic_ssim"]:.4f}'
        )


def write_scores(scores: dict, folder: pathlib.Path) -> None:
    """scores.json in the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'scores.json').write_text(json.dumps(scores, indent=2) + '\n')
    except OSError as error:
        raise UserError(folder, str(error), 'a folder to write', 'choose --output.') from None


def _results(step, variables, config, source) -> Iterator[tuple[dict, dict]]:
    """(batch on the host, what the step makes of it) of a whole split."""
    parallel.check_divisible(config.data.eval_batch_size, 'data.eval_batch_size')
    mesh = parallel.make_mesh()
    batches = pipeline.eval_batches(
        source,
        config.data,
        batch_size=config.data.eval_batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch, step(variables, parallel.to_global(batch, mesh))


def _images(batch: dict, result: dict) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, prediction, label) of the real images of a batch, [H,W] at their own sizes."""
    prediction = np.asarray(jax.device_get(result['prediction']))
    for row in np.flatnonzero(batch['valid']):
        height, width = batch['size'][row]
        yield row, prediction[row, :height, :width], batch['label'][row, :height, :width]


def _config(saved, args):
    """The model's configuration, its data and eval sections replaced by --config and overrides.

    What the network wants its pixels to be stays the model's own.
    """
    config = saved.copy_and_resolve_references()
    if args.config:
        other = configs.load(args.config)
        with config.unlocked():
            config.data, config.eval = other.data, other.eval
            config.data.update({name: saved.data[name] for name in ('mean', 'std', 'order')})
    config.lock()
    for dotted, text in args.overrides:
        if dotted.split('.')[0] not in ('data', 'eval'):
            expected = 'a field of data or eval'
            raise UserError(f'--config.{dotted}', 'a field of training', expected, 'leave it out.')
        configs.override(config, dotted, text)
    configs.check_choices(config)
    return config


class _Gallery:
    """The first images of a split and those with the lowest pixel accuracy, as pictures."""

    def __init__(self, count: int):
        self.wanted, self.first, self.worst = count, [], []

    def add(self, batch: dict, result: dict) -> None:
        """Look at one batch; keep what belongs in the pictures."""
        sr = np.asarray(result['sr']) if 'sr' in result else None
        for row, found, truth in _images(batch, result):
            known = truth != 255
            accuracy = float((truth == found)[known].mean()) if known.any() else 1.0
            keep_first = len(self.first) < self.wanted
            if keep_first or len(self.worst) < self.wanted or accuracy < self.worst[-1][0]:
                top, left, h, w = batch['region'][row]
                image = batch['target'][row, top : top + h, left : left + w]
                view = None if sr is None else sr[row, top : top + h, left : left + w]
                item = (accuracy, int(batch['index'][row]), image, truth, found, view)
                if keep_first:
                    self.first.append(item)
                self.worst = sorted([*self.worst, item], key=lambda i: i[0])[: self.wanted]

    def save(self, folder: pathlib.Path, colors) -> None:
        """Write one PNG an image under first/ and worst/."""
        for name, items in (('first', self.first), ('worst', self.worst)):
            for rank, (accuracy, index, image, truth, found, view) in enumerate(items):
                pictures, captions = [image], ['image']
                if view is not None:
                    pictures.append(np.uint8(np.round(255 * view)))
                    captions.append('SR branch')
                pictures += [
                    overlay(_like(image, truth), truth, colors),
                    colorize(found, colors),
                    error_map(found, truth),
                ]
                captions += ['truth', f'prediction, {100 * accuracy:.1f} % right', 'errors']
                save_png(grid([pictures], [captions]), folder / name / f'{rank}_{index:05d}.png')


def _like(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The image at the label's size, by nearest pixels."""
    rows = np.arange(label.shape[0]) * image.shape[0] // label.shape[0]
    columns = np.arange(label.shape[1]) * image.shape[1] // label.shape[1]
    return image[rows][:, columns]
