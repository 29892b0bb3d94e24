"""Pose: people cut out of images, heatmaps of their joints, AP and AR of COCO.

A source of people has `keypoints` and `ground_truth()` (data/persons.py); its batches are those of
data/person_batches.py. Heatmaps are drawn from the joints on the device.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import (
    data,
    inference,
    losses,
    metrics,
    parallel,
    person_gallery,
    pose_inference,
    pose_scores,
)
from dsrl_jax import keypoints as joints_of
from dsrl_jax.data import person_batches, person_boxes
from dsrl_jax.data.frequencies import spaced
from dsrl_jax.errors import UserError
from dsrl_jax.ops import heatmaps, resize
from dsrl_jax.step import image_quality

SCORE = 'AP'  # the key of what a run is judged by

# Fields that only class maps have a use for: they must be as they stand in config.base().
_CLASS_MAPS = (
    *('data.labelled', 'data.unlabelled', 'ce.weights', 'ce.labels', 'ce.ohem'),
    *('eval.classes', 'eval.scales', 'eval.window'),
)
# What is kept of every person, by the names of batch and step; `truth` are the batch's joints.
_PEOPLE = (
    *('index', 'image_id', 'center', 'scale', 'score', 'joints', 'confidence'),
    *('truth', 'visible'),
)


def check_source(source) -> None:
    """UserError for joints that do not fit together, or the first bad one of a few elements."""
    joints_of.check(source.keypoints, f'split {source.split}')
    for index in spaced(len(source), 4):
        source[index]


def trained(config, source):
    """What is trained on: the source itself."""
    return source


def scored(config, source):
    """What is scored: the source, with the boxes of config.pose.boxes where that names some."""
    return person_boxes.with_boxes(source, config.pose.boxes)


def check(config, source) -> None:
    """UserError where the configuration asks for what joints have no use for."""
    plain = configs.base()
    for field in _CLASS_MAPS:
        found, expected = configs.get(config, field), configs.get(plain, field)
        if found != expected:
            expected = f'{expected!r}: the data set is of joints, not of class maps'
            raise UserError(f'config.{field}', repr(found), expected, 'leave it out.')
    if config.eval.flip:
        remedy = 'set config.pose.flip_test.'
        raise UserError('config.eval.flip', 'True', 'False for a data set of joints', remedy)
    if config.kd.teacher and config.kd.pixel:
        expected = '0 for heatmaps, which are no class distributions'
        raise UserError('config.kd.pixel', f'{config.kd.pixel}', expected, 'set it to 0.')


def make_loss(config, network, source=None) -> Callable:
    """The objective, heatmaps of the joints in the place of class maps."""
    main = losses.heatmap_term(config, network.result_size)
    return losses.make_loss(config, aux_weight=network.aux_weight, main=main)


def hold(source, config, mesh) -> None:
    """None: people are cut out of their images by the host."""
    if config.data.resident == 'always':
        expected = 'auto or never for a data set of joints'
        raise UserError('config.data.resident', "'always'", expected, 'set it to auto.')


def train_batches(source, config, **position) -> Iterator[dict]:
    """The endless batches of data.person_batches.train_batches."""
    return person_batches.train_batches(source, config, **position)


def batch_shapes(config, outputs: int) -> dict:
    """Shapes and types of a training batch of a network of that many heatmaps."""
    rows = config.data.batch_size
    view = (rows, *config.data.size)
    return {
        'target': jax.ShapeDtypeStruct((*view, 3), np.uint8),
        'mask': jax.ShapeDtypeStruct(view, bool),
        'joints': jax.ShapeDtypeStruct((rows, outputs, 2), np.float32),
        'visible': jax.ShapeDtypeStruct((rows, outputs), np.float32),
    }


def random_batch(config, outputs: int) -> dict:
    """Such a batch, random, every joint visible and in the image."""
    rng, shapes = np.random.default_rng(0), batch_shapes(config, outputs)
    height, width = inference.input_size(config, config.data.size)
    place = rng.random(shapes['joints'].shape) * (width - 1, height - 1)
    return {
        'target': rng.integers(0, 256, shapes['target'].shape, np.uint8),
        'mask': np.ones(shapes['mask'].shape, bool),
        'joints': place.astype(np.float32),
        'visible': np.ones(shapes['visible'].shape, np.float32),
    }


def result(outputs: dict, view) -> jax.Array:
    """What a prediction ends at: the heatmaps [B,h,w,J]."""
    return outputs['scores']


def labelled(source) -> bool:
    """Whether there is something to score against: always."""
    return True


def jit_eval_step(network, config, source, *, sr: bool) -> Callable:
    """The compiled `step(variables, batch)`: joints [B,J,2] in heatmap pixels, confidence [B,J].

    Those come with the rest of `_PEOPLE`, `valid`, and with `sr` the sums of PSNR and SSIM; all of
    them whole on every process. The joints are those of pose_inference.joint_function.
    """
    return _jit_step(network, config, source, (config.pose.decode,), sr=sr)


def _jit_step(network, config, source, decodes, *, sr: bool) -> Callable:
    """The step of one decoding; of several from one pass, [B,several,J,..] of each."""
    find = pose_inference.joint_function(network, config, source.keypoints, decodes)

    def eval_step(variables: dict, batch: dict) -> dict:
        image = resize.small_input(batch['target'], config.scale, config.data)
        joints, confidence, outputs = find(variables, image, sr)
        people = {name: batch[name] for name in (*_PEOPLE, 'valid') if name in batch}
        people |= {'truth': batch['joints'], 'joints': joints, 'confidence': confidence}
        quality = image_quality(outputs, batch, config)[0] if sr else {}
        return people | quality

    return jax.jit(eval_step, out_shardings=parallel.replicated(parallel.make_mesh()))


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
    """Scores of the people of a split: those of pose_scores.score, as Table 5 prints them.

    Returns plain numbers: people, images, AP, AP50, ..., the `boxes` and the `protocol` in words,
    and with `sr` psnr and ssim of the SR image beside bicubic enlargement's. `pictures`: folder for
    results.json, what was scored, and the pictures of person_gallery. `watch`: functions called
    with every entry of the results.
    """
    step = step_fn or jit_eval_step(network, config, source, sr=sr)
    people, quality = _collect(step, variables, config, source, sr)
    people = _placed(people, network, config)
    kept = pose_inference.kept(people, source.keypoints, config.pose)
    for look in watch:
        for entry in kept:
            look(entry)
    if pictures and jax.process_index() == 0:
        _write(pathlib.Path(pictures) / 'results.json', kept)
        person_gallery.save(pictures, source, people, config.eval.pictures)
    scores = _summary(people, network, config, config.pose.decode)
    scores |= pose_scores.score(kept, source.ground_truth(), source.keypoints)
    if sr:
        for name, value in quality.items():
            prefix = name.removesuffix('quality')
            scores |= {f'{prefix}{k}': float(v) for k, v in value.compute().items()}
    return scores


def final_scores(network, variables, config, split: str, folder) -> dict:
    """{split: scores} of final weights: as `evaluate`, and the same heatmaps read in every way.

    Those stand in `decoded`, {quarter | dark | udp: {AP, AP50, ...}}; what was scored is left in
    results_SPLIT_DECODE.json of the folder.
    """
    source = scored(config, data.build(config.data, split))
    decodes = tuple(heatmaps.DECODERS)
    step = _jit_step(network, config, source, decodes, sr=False)
    people, _ = _collect(step, variables, config, source, False)
    truth, decoded = source.ground_truth(), {}
    for place, decode in enumerate(decodes):
        read = {name: people[name][:, place] for name in ('joints', 'confidence')}
        read = _placed(people | read, network, config)
        kept = pose_inference.kept(read, source.keypoints, config.pose)
        decoded[decode] = pose_scores.score(kept, truth, source.keypoints)
        if jax.process_index() == 0:
            _write(pathlib.Path(folder) / f'results_{split}_{decode}.json', kept)
    summary = _summary(people, network, config, ' | '.join(decodes))
    return {split: {**summary, **decoded[config.pose.decode], 'decoded': decoded}}


def show(scores: dict, source) -> None:
    """The line of Table 5, the boxes it came from, and how it was scored."""
    count = f'{scores["people"]} boxes in {scores["images"]} images of {scores["split"]}'
    print(f'{count}: {pose_scores.line(scores, scores["boxes"])}')
    print(f'scored with: {scores["protocol"]}')
    if 'psnr' in scores:
        print(
            f'SR branch: PSNR {scores["psnr"]:.2f} dB, SSIM {scores["ssim"]:.4f}; bicubic: '
            f'{scores["bicubic_psnr"]:.2f} dB, {scores["bicubic_ssim"]:.4f}'
        )


def _collect(step, variables, config, source, sr):
    """({name of _PEOPLE: [N,...]} of a split, {name: sums of the SR image's quality})."""
    quality = {f'{name}quality': metrics.ImageQuality.empty() for name in ('', 'bicubic_')}
    people = {name: [] for name in _PEOPLE}
    for found in _results(step, variables, config, source):
        for name in quality if sr else ():
            quality[name] = quality[name].merge(found[name])
        for name, rows in people.items():
            rows.append(found[name][found['valid']])
    return {name: np.concatenate(rows) for name, rows in people.items()}, quality


def _placed(people, network, config):
    """The people, their joints and the truth in pixels of their images."""
    small, maps = _sizes(network, config)
    where, encode = (people['center'], people['scale']), config.pose.encode
    return people | {
        'joints': heatmaps.to_image(people['joints'], *where, maps, encode),
        'truth': heatmaps.to_image(people['truth'], *where, small, encode),
    }


def _summary(people, network, config, decoded):
    return {
        'people': len(people['score']),
        'images': len(np.unique(people['image_id'])),
        'boxes': config.pose.boxes,
        'protocol': _protocol(network, config, decoded),
    }


def _sizes(network, config):
    """(height, width) of the input and of the heatmaps in evaluation."""
    small = inference.input_size(config, configs.eval_size(config))
    return small, network.result_size(small)


def _protocol(network, config, decoded) -> str:
    """What a score depends on, in words: sizes, encoding, decoding, what is kept of each image."""
    pose, sizes = config.pose, ('x'.join(map(str, s)) for s in _sizes(network, config))
    words = ['input {}, heatmaps {}'.format(*sizes), f'sigma {pose.sigma:g}']
    words += [f'encoded {pose.encode}, decoded {decoded}']
    words += ['mean with the mirror image' if pose.flip_test else 'not mirrored']
    words += [f'rescored above {pose.rescore:g}']
    return ', '.join([*words, f'{"soft" if pose.soft_nms else "hard"} OKS-NMS {pose.nms:g}'])


def _results(step, variables, config, source) -> Iterator[dict]:
    """What the step makes of every batch, on the host, of all processes."""
    parallel.check_divisible(config.data.eval_batch_size, 'data.eval_batch_size')
    mesh = parallel.make_mesh()
    batches = person_batches.eval_batches(
        source,
        config,
        batch_size=config.data.eval_batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield jax.device_get(step(variables, parallel.to_global(batch, mesh)))


def _write(path: pathlib.Path, kept: list[dict]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pose_scores.write(path, kept)
    except OSError as error:
        raise UserError(path.parent, str(error), 'a folder to write', 'choose --output.') from None
