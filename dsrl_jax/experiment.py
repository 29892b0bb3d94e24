"""One training run and what its last weights score, kept as JSON: what ladders are made of."""

import json
import pathlib
from collections.abc import Callable

import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import inference, tasks, train
from dsrl_jax.circumstances import circumstances
from dsrl_jax.errors import UserError
from dsrl_jax.records import read_metrics, replace

RESULT = 'result.json'


def run(config, folder, splits=('test',), announce: Callable = lambda: None) -> dict | None:
    """Train in `folder`, going on where it stopped, and score the final weights on `splits`.

    The result stands in result.json there, beside it what the task keeps of every image; a finished
    run is read from there. Keys: config, seed, those of `circumstances`, steps, images_per_second,
    minutes (of training alone), curve (the task's SCORE of data.eval_split while training), sr
    (PSNR and SSIM of the SR branch there, beside bicubic), affinity (curve of what `diagnostics`
    measures, where log.affinity asks for it), scores: the task's final_scores. None
    where SIGTERM stopped the training. `announce()` is called before a split is read. UserError
    where the folder holds the result of another configuration.
    """
    folder, settings = pathlib.Path(folder), configs.to_dict(config)
    result = read(folder)
    if result and result['config'] != settings:
        found = f'the result of another configuration ({_first_difference(result, settings)})'
        raise UserError(folder / RESULT, found, 'this one', 'choose another folder.')
    if result is None:
        if train.train(config, folder) is None:
            return None
        result = {'config': settings, 'seed': config.seed, **circumstances(), **_training(folder)}
        result['scores'] = {}
    missing = [split for split in splits if split not in result['scores']]
    if missing:
        announce()
        model, variables, _ = inference.from_workdir(folder)
        for split in missing:
            score = tasks.of(model.network).final_scores
            result['scores'] |= score(model.network, variables, config, split, folder)
        replace(folder / RESULT, json.dumps(result, indent=1) + '\n')
    return result


def read(folder) -> dict | None:
    """The kept result of a folder, if there is one."""
    path = pathlib.Path(folder) / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def counts(folder, split: str) -> dict[str, np.ndarray]:
    """The arrays of detailed.count of a split that `run` scored."""
    with np.load(pathlib.Path(folder) / f'counts_{split}.npz') as arrays:
        return dict(arrays)


def minutes_to(result: dict, miou: float) -> float | None:
    """Minutes of training until the curve first reaches a mean IoU; None where it does not."""
    return next((p['minutes'] for p in result['curve'] if p['miou'] >= miou), None)


def _training(folder):
    """Speed and curve out of the run's own record."""
    records = read_metrics(folder)
    rates = [r['time/images_per_second'] for r in records if 'time/images_per_second' in r]
    config = configs.load_json(folder / 'config.json')
    rate = float(np.median(rates)) if rates else None
    each = config.data.batch_size / rate / 60 if rate else None
    score = tasks.of(inference.build_network(config, 2)).SCORE
    name = f'eval/{config.data.eval_split}/{score}'
    curve = [
        {'step': r['step'], score: r[name], 'minutes': each and r['step'] * each}
        for r in records
        if name in r
    ]
    steps = max(r['step'] for r in records)
    last = next((r for r in reversed(records) if name in r), {})
    quality = ('psnr', 'ssim', 'bicubic_psnr', 'bicubic_ssim')
    measured = {q: last.get(f'eval/{config.data.eval_split}/{q}') for q in quality}
    return {
        'steps': steps,
        'images_per_second': rate,
        'minutes': each and steps * each,
        'curve': curve,
        'affinity': [
            {'step': r['step'], **{k.removeprefix('diag/'): r[k] for k in r if k[:5] == 'diag/'}}
            for r in records
            if any(k[:5] == 'diag/' for k in r)
        ],
        'sr': measured if measured['psnr'] is not None else None,
    }


def _first_difference(result, settings, path='') -> str:
    """The first field in which two settings differ, dotted."""
    before = result['config'] if not path else result
    for name in {**before, **settings}:
        a, b = before.get(name), settings.get(name)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return _first_difference(a, b, f'{path}{name}.')
        if a != b:
            return f'{path}{name}: {a!r} there, {b!r} asked for'
    return 'nothing'
