"""`dsrl eval`: score a training run or an exported model on a split, at full label size."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from dsrl_jax import (
    cityscapes_scores,
    data,
    gallery,
    inference,
    metrics,
    multi_scale,
    parallel,
    submission,
)
from dsrl_jax import config as configs
from dsrl_jax.data import pipeline
from dsrl_jax.data.cityscapes import to_label_ids
from dsrl_jax.errors import UserError
from dsrl_jax.step import make_eval_step


def flags(parser) -> None:
    """Flags of `dsrl eval`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--workdir', help='a training run: its newest checkpoint is scored')
    which.add_argument('--model', help='a directory written by `dsrl export`')
    parser.add_argument('--config', help='take data and eval sections from this configuration')
    parser.add_argument('--split', help='split to score; default: config.data.eval_split')
    parser.add_argument('--output', help='folder of scores and pictures; default: below the model')
    sets = ' or '.join(multi_scale.SCALE_SETS)
    parser.add_argument('--scales', help=f'factors on the view, like 0.5,1.0; or {sets}')
    parser.add_argument('--flip', action='store_true', help='every view mirrored too')
    parser.add_argument('--submission', help='new folder for files for the Cityscapes server')
    parser.add_argument(
        '--partial', action='store_true', help='submission of a part of a split; no archive'
    )


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
    labelled = 'label' in source[0]
    if args.partial and not args.submission:
        remedy = 'leave it out, or name a folder.'
        raise UserError('--partial', 'no --submission', '--submission=DIR', remedy)
    if not labelled and not args.submission:
        remedy = 'score another split, or write its class maps with --submission=DIR.'
        raise UserError(f'split {split}', 'images without labels', 'labels', remedy)
    network = model.network
    has_sr = bool(args.workdir) and config.model.dsrl in ('sssr+sisr', 'full')
    score = functools.partial(
        evaluate, network, variables, config, source, sr=has_sr, pictures=output
    )
    about = {'split': split, 'step': step, 'dsrl': config.model.dsrl, 'net': config.model.net}
    scores = _submit(score, source, args) if args.submission else _official(score, source)
    if not labelled:
        scores = {name: scores[name] for name in ('images', 'protocol', 'submission')}
        print(f'{scores["images"]} images of {split}, without labels: {scores["protocol"]}')
    scores |= about
    if labelled:
        print_scores(scores, source.classes)
    write_scores(scores, output)
    print(json.dumps(scores))
    return 0


def evaluate(
    network,
    variables,
    config,
    source,
    *,
    sr: bool,
    pictures=None,
    step_fn=None,
    watch: Sequence[Callable] = (),
) -> dict:
    """Scores of the split `source`: one pooled confusion matrix at full label resolution.

    Returns plain numbers: images, miou, pixel_accuracy, class_accuracy, iou (list), the same with
    void pixels counted (`miou_void_counted`), the `protocol` in words, and with `sr` psnr and ssim
    of the SR image beside bicubic enlargement's, unless several scales or windows are summed.
    `pictures`: folder for what `gallery` draws. `watch`: functions called
    with (index, class map, label) of every image.
    """
    classes = len(source.classes)
    sr = sr and not multi_scale.wanted(config)
    step = step_fn or jit_eval_step(network, config, classes, sr=sr)
    total = metrics.Confusion.empty(classes)
    quality = {name: metrics.ImageQuality.empty() for name in ('', 'bicubic_')}
    shown = gallery.Gallery(config.eval.pictures if pictures else 0)
    for batch, result in _results(step, network, variables, config, source):
        total = total.merge(jax.device_get(result['confusion']))
        if sr:
            for name in quality:
                quality[name] = quality[name].merge(jax.device_get(result[f'{name}quality']))
        if shown.wanted:
            shown.add(batch, result)
        for row, found, truth in gallery.images(batch, result) if watch else ():
            for look in watch:
                look(int(batch['index'][row]), found, truth)
    scores = summary(total, source) | {'protocol': protocol(config, classes)}
    if sr:
        for name, value in quality.items():
            scores |= {f'{name}{k}': float(v) for k, v in value.compute().items()}
    if shown.wanted:
        shown.save(pathlib.Path(pictures), source, total.counts, scores['iou'])
    return scores


def predictions(network, variables, config, source, *, step_fn=None) -> Iterator[tuple]:
    """(index, class map, label) of every image of `source` in order, uint8 [H,W] at its own size.

    The prediction is 255 where a background output won. What `detailed.count` reads.
    """
    step = step_fn or jit_eval_step(network, config, len(source.classes), sr=False)
    for batch, result in _results(step, network, variables, config, source):
        for row, found, truth in gallery.images(batch, result):
            yield int(batch['index'][row]), found, truth


def jit_eval_step(network, config, classes: int, *, sr: bool):
    """The compiled evaluation step; make it once where several evaluations share it."""
    if multi_scale.wanted(config):
        return multi_scale.make_step(network, config, classes)
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


def protocol(config, classes: int) -> str:
    """What a score depends on, in words: sizes, scales, how the map reaches the label's size."""
    section, view = config.eval, configs.eval_size(config)
    sizes = {'view': view, 'input': inference.input_size(config, view), 'window': section.window}
    view, small, window = ('x'.join(map(str, size or ())) for size in sizes.values())
    words = [f'view {view} ({config.data.eval_fit})', f'input {small}']
    if window:
        words.append(f'windows of {window}, {section.stride:.3g} of it apart')
    if tuple(section.scales) != (1.0,):
        words.append(f'scales {" ".join(f"{scale:g}" for scale in section.scales)}')
    if section.flip:
        words.append('mirrored too')
    how = {'labels': 'label map by nearest', 'logits': 'logits by bilinear'}[section.resize]
    outputs = config.model.num_classes or classes
    words += [f'{how} to the label', f'arg-max over {section.classes or classes} of {outputs}']
    return ', '.join(words)


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
    if 'protocol' in scores:
        print(f'scored with: {scores["protocol"]}')
    if 'cityscapes' in scores:
        cityscapes_scores.show(scores['cityscapes'])
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


def _official(score, source, watch=()) -> dict:
    """The scores, those of the Cityscapes server among them where the classes are its own."""
    if not cityscapes_scores.is_cityscapes(source) or 'label' not in source[0]:
        return score(watch=watch)
    instances = cityscapes_scores.has_instances(source)
    total = cityscapes_scores.empty()

    def look(index, found, truth):
        nonlocal total
        total += cityscapes_scores.count_element(
            source, index, to_label_ids(found), truth, instances=instances
        )

    scores = score(watch=[look, *watch])
    return scores | {'cityscapes': cityscapes_scores.scores(total, instances=instances)}


def _submit(score, source, args) -> dict:
    """The scores, and the files for the server; scores of the files where there are labels."""
    folder = submission.start(args.submission, source, partial=args.partial)
    try:
        scores = _official(
            score, source, [lambda i, found, _: submission.write(folder, source, i, found)]
        )
        written = submission.finish(folder, source, partial=args.partial)
    finally:
        submission.discard(folder)
    print(f'{written["files"]} files written to {folder}')
    print(f'archive: {written.get("archive", "none, as --partial was given")}')
    if 'scores' in written:
        print(f'mIoU of the written files: {100 * written["scores"]["miou"]:.2f}')
    return scores | {'submission': written}


def _results(step, network, variables, config, source) -> Iterator[tuple[dict, dict]]:
    """(batch on the host, what the step makes of it) of a whole split."""
    if multi_scale.wanted(config):
        for batch in multi_scale.batches(source, config, network):
            yield batch, step(variables, batch)
        return
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


def _config(saved, args):
    """The model's configuration, its data and eval sections replaced by --config and overrides.

    What the network wants its pixels to be stays the model's own.
    """
    config = configs.base()  # which knows the types of fields that are None
    configs.fill(config, configs.to_dict(saved), 'the model')
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
    if args.scales:
        config.eval.scales = multi_scale.parse_scales(args.scales)
    config.eval.flip = config.eval.flip or args.flip
    configs.check_choices(config)
    return config
