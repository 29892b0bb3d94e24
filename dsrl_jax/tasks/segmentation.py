"""Segmentation: views of labelled images, cross entropy, the pooled confusion matrix."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from dsrl_jax import (
    cityscapes_scores,
    data,
    detailed,
    gallery,
    inference,
    losses,
    metrics,
    multi_scale,
    parallel,
    resident,
)
from dsrl_jax import config as configs
from dsrl_jax.data import camvid, pipeline
from dsrl_jax.data.check import check_sample
from dsrl_jax.data.frequencies import class_frequencies
from dsrl_jax.ops.scores import arg_max
from dsrl_jax.step import PER_IMAGE, make_eval_step

SCORE = 'miou'  # the key of what a run is judged by


def check_source(source) -> None:
    """UserError for the first bad one of a few elements."""
    check_sample(source)


def trained(config, source):
    """What is trained on: the source with the labels that are used, and what joins it without."""
    source = data.keep_labels(source, config.data.labelled)
    source = data.join_unlabelled(source, data.unlabelled(config.data))
    pipeline.check_views(config.data)
    return source


def scored(config, source):
    """What is scored: the source itself."""
    return source


def check(config, source) -> None:
    """UserError where the configuration asks for what the classes of the source do not allow."""
    inference.check_outputs(config, len(source.classes))


def make_loss(config, network, source=None) -> Callable:
    """The objective, with class weights counted from the source where asked for."""
    spec, aux_weight = config.ce.weights, network.aux_weight
    if spec == 'none':
        return losses.make_loss(config, aux_weight=aux_weight)
    pixels = present = np.ones(len(source.classes))
    if spec in losses.COUNTED:
        counts = class_frequencies(source)
        pixels, present = counts['pixels'], counts['present_pixels']
    weights = losses.class_weights(spec, pixels, present)
    print('class weights:', ', '.join(f'{n} {w:.3g}' for n, w in zip(source.classes, weights)))
    return losses.make_loss(config, weights, aux_weight)


def hold(source, config, mesh) -> dict | None:
    """The images on the devices (resident.hold), or None where the host is to read them."""
    return resident.hold(source, config.data.resident, mesh)


def train_batches(source, config, **position) -> Iterator[dict]:
    """The endless batches of data.pipeline.train_batches."""
    return pipeline.train_batches(source, config.data, **position)


def batch_shapes(config, outputs: int) -> dict:
    """Shapes and types of a training batch of a network of that many outputs."""
    shape = (config.data.batch_size, *config.data.size)
    return {
        'target': jax.ShapeDtypeStruct((*shape, 3), np.uint8),
        'label': jax.ShapeDtypeStruct(shape, np.uint8 if outputs <= 255 else np.uint16),
        'mask': jax.ShapeDtypeStruct(shape, bool),
    }


def random_batch(config, outputs: int) -> dict:
    """Such a batch, random, every pixel real."""
    rng, shapes = np.random.default_rng(0), batch_shapes(config, outputs)
    below = {'target': 256, 'label': outputs}
    batch = {
        name: rng.integers(0, n, shapes[name].shape, shapes[name].dtype)
        for name, n in below.items()
    }
    return {**batch, 'mask': np.ones(shapes['mask'].shape, bool)}


def result(outputs: dict, view) -> jax.Array:
    """What a prediction ends at: class map [B,sH,sW] of the large view, by the fused arg-max."""
    return arg_max(outputs['scores'], view, convention=outputs['resize'])


def labelled(source) -> bool:
    """Whether its images have labels to be scored against."""
    return 'label' in source[0]


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
    `pictures`: folder for what `gallery` draws. `watch`: functions called with (index, class map,
    label) of every image, on the process that read it.
    """
    classes = len(source.classes)
    sr = sr and not multi_scale.wanted(config)
    step = step_fn or jit_eval_step(network, config, source, sr=sr)
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
    scores = summary(total, source) | {'protocol': _protocol(config, classes)}
    if sr:
        for name, value in quality.items():
            scores |= {f'{name}{k}': float(v) for k, v in value.compute().items()}
    if shown.wanted and jax.process_index() == 0:
        shown.save(pathlib.Path(pictures), source, total.counts, scores['iou'])
    return scores


def final_scores(network, variables, config, split: str, folder) -> dict:
    """{split: detailed.pooled} of final weights; CamVid's test split also by drive.

    The counts of every image are left in counts_SPLIT.npz of the folder (detailed.count).
    """
    source = data.build(config.data, split)
    arrays = detailed.count(predictions(network, variables, config, source), source)
    np.savez_compressed(pathlib.Path(folder) / f'counts_{split}.npz', **arrays)
    scores = {split: detailed.pooled(arrays, source.classes)}
    if config.data.name == 'camvid' and split == 'test':
        for drive in camvid.TEST_DRIVES:
            rows = np.char.startswith(arrays['names'], f'{drive}_')
            scores[f'test_{drive}'] = detailed.pooled(arrays, source.classes, rows=rows)
    return scores


def predictions(network, variables, config, source, *, step_fn=None) -> Iterator[tuple]:
    """(index, class map, label) of every image of `source` in order, uint8 [H,W] at its own size.

    The prediction is 255 where a background output won. What `detailed.count` reads.
    """
    step = step_fn or jit_eval_step(network, config, source, sr=False)
    for batch, result in _results(step, network, variables, config, source):
        for row, found, truth in gallery.images(batch, result):
            yield int(batch['index'][row]), found, truth


def jit_eval_step(network, config, source, *, sr: bool):
    """The compiled evaluation step; make it once where several evaluations share it."""
    classes = len(source.classes)
    if multi_scale.wanted(config):
        return multi_scale.make_step(network, config, classes)
    names = ['prediction', 'confusion']
    names += ['quality', 'bicubic_quality', 'sr', 'bicubic_sr'] if sr else []
    return jax.jit(
        make_eval_step(network, config, classes, sr=sr),
        out_shardings=parallel.of_results(names, PER_IMAGE),
    )


def show(scores: dict, source) -> None:
    """Per-class IoU and the totals as a small table."""
    classes = source.classes
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


def _protocol(config, classes: int) -> str:
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
