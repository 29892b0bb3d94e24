"""`dsrl eval`: score a training run or an exported model on a split, at full label size."""

import functools
import json
import pathlib

import jax

from dsrl_jax import cityscapes_scores, data, inference, multi_scale, parallel, submission, tasks
from dsrl_jax import config as configs
from dsrl_jax.data.cityscapes import to_label_ids
from dsrl_jax.errors import UserError


def flags(parser) -> None:
    """Flags of `dsrl eval`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--workdir', help='a training run: its newest checkpoint is scored')
    which.add_argument('--model', help='a directory written by `dsrl export`')
    parser.add_argument('--config', help='take data, eval and pose from this configuration')
    parser.add_argument('--split', help='split to score; default: config.data.eval_split')
    parser.add_argument('--output', help='folder of scores and pictures; default: below the model')
    sets = ' or '.join(multi_scale.SCALE_SETS)
    parser.add_argument('--scales', help=f'factors on the view, like 0.5,1.0; or {sets}')
    parser.add_argument('--flip', action='store_true', help='every view mirrored too')
    parser.add_argument('--submission', help='new folder for files for the Cityscapes server')
    parser.add_argument(
        '--partial', action='store_true', help='submission of a part of a split; no archive'
    )
    parallel.flags(parser)


def main(args) -> int:
    """Run `dsrl eval`; the last line of stdout is one JSON object."""
    with parallel.joined(args):
        return _evaluate(args)


def _evaluate(args) -> int:
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
    task = tasks.of(source)
    source = task.scored(config, source)
    check_classes(source, model)
    tasks.check_network(model.network, source, config)
    task.check(config, source)
    labelled = task.labelled(source)
    if args.partial and not args.submission:
        remedy = 'leave it out, or name a folder.'
        raise UserError('--partial', 'no --submission', '--submission=DIR', remedy)
    if args.submission and jax.process_count() > 1:
        found = f'{jax.process_count()} processes'
        raise UserError('--submission', found, 'one, which writes all files', 'start one alone.')
    if not labelled and not args.submission:
        remedy = 'score another split, or write its class maps with --submission=DIR.'
        raise UserError(f'split {split}', 'images without labels', 'labels', remedy)
    network = model.network
    has_sr = bool(args.workdir) and config.model.dsrl in ('sssr+sisr', 'full')
    score = functools.partial(
        task.evaluate, network, variables, config, source, sr=has_sr, pictures=output
    )
    about = {'split': split, 'step': step, 'dsrl': config.model.dsrl, 'net': config.model.net}
    scores = _submit(score, source, args) if args.submission else _official(score, source)
    if not labelled:
        scores = {name: scores[name] for name in ('images', 'protocol', 'submission')}
        print(f'{scores["images"]} images of {split}, without labels: {scores["protocol"]}')
    scores |= about
    if labelled:
        task.show(scores, source)
    if jax.process_index() == 0:
        write_scores(scores, output)
    print(json.dumps(scores))
    return 0


def check_classes(source, model) -> None:
    """Raise UserError unless the split has the classes the model was trained on."""
    if list(source.classes) != model.classes:
        raise UserError(
            'the data set',
            f'the classes {", ".join(source.classes)}',
            f"the model's: {', '.join(model.classes)}",
            'score it on the data set it was trained for.',
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
    sums = parallel.sum_processes(total.confusion, total.weighted)
    total = cityscapes_scores.Counts(*sums)
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


def _config(saved, args):
    """The model's configuration, with data, eval and pose of --config and the overrides.

    What the network wants its pixels to be stays the model's own.
    """
    config = configs.base()  # which knows the types of fields that are None
    configs.fill(config, configs.to_dict(saved), 'the model')
    if args.config:
        other = configs.load(args.config)
        with config.unlocked():
            config.data, config.eval, config.pose = other.data, other.eval, other.pose
            config.data.update({name: saved.data[name] for name in ('mean', 'std', 'order')})
    config.lock()
    for dotted, text in args.overrides:
        if dotted.split('.')[0] not in ('data', 'eval', 'pose'):
            expected = 'a field of data, eval or pose'
            raise UserError(f'--config.{dotted}', 'a field of training', expected, 'leave it out.')
        configs.override(config, dotted, text)
    if args.scales:
        config.eval.scales = multi_scale.parse_scales(args.scales)
    config.eval.flip = config.eval.flip or args.flip
    configs.check_choices(config)
    return config
