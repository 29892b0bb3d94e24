"""The ladder: every rung over seeds, tuned on held-out drives, read on the test split once.

    WORKDIR/select/RUNG/lr0.01_decay0.0005/fold1/seed0/     selection, on parts of the training list
    WORKDIR/select/runs.jsonl                               all of these, a line each
    WORKDIR/selected.json                                   the grid point of each rung: frozen
    WORKDIR/final/RUNG/seed0/                               on the whole list, scored on test
    WORKDIR/test_reads.jsonl                                every time the test split was read
    WORKDIR/scale4_labelled0.25/...                         the same at another scale or share

Every run is an `experiment`: a ladder that was interrupted goes on where it stopped. All seeds of a
rung share one compiled program through JAX's compilation cache in WORKDIR/cache.
"""

import datetime
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import data, diagnostics, experiment, export, inference, rungs
from dsrl_jax.circumstances import commit
from dsrl_jax.errors import UserError
from dsrl_jax.records import replace
from dsrl_jax.resident import DISPATCH
from dsrl_jax.rungs import ARMS, FOLDS, GRID, RUNGS, SCOUTS

# Where it is asked why an arm is better or worse: affinities, and gradients of FA and CE.
_DIAGNOSED = ('recommended', *SCOUTS)


class Ladder(NamedTuple):
    """What is run, and where."""

    workdir: pathlib.Path
    dataset: str = 'camvid'
    root: str = ''
    net: str = 'espnetv2'
    names: tuple[str, ...] = tuple(RUNGS)
    seeds: int = 10
    scouts: int = 3  # seeds of the selection
    epochs: float | None = None  # None: the configuration's own length
    init_from: str = ''  # weights of the encoder; '': from scratch
    dtype: str = 'float32'
    tiny: bool = False  # two steps on generated scenes, one fold: proves the path
    labelled: float = 1.0  # share of the training images whose labels are used
    scale: int = 2  # size of the view over that of the input
    width: float | None = None  # of the network; None: the data set's own choice
    view: tuple[int, int] | None = None  # None: the data set's own
    grid: tuple[dict[str, float], ...] = GRID  # learning rates and decays that are tried

    @property
    def home(self) -> pathlib.Path:
        """The folder of its runs; ladders of other shares and scales lie beside them, apart."""
        return self.workdir / place(self.scale, self.labelled)


class Run(NamedTuple):
    """One run of the plan, with its folder below the ladder's and the splits it is scored on."""

    rung: str
    seed: int
    folder: str
    lr: float
    decay: float
    fold: int | None  # None: the final run on all training images
    splits: tuple[str, ...]


def place(scale: int, labelled: float) -> str:
    """The folder, below the ladder's, of runs at another scale or share: 'scale4_labelled0.25'."""
    parts = [f'scale{scale}'] if scale != 2 else []
    parts += [f'labelled{labelled}'] if labelled != 1 else []
    return '_'.join(parts)


def freeze(ladder: Ladder) -> dict:
    """Write selected.json: the grid point of each rung whose selection is complete, and why.

    Best is the highest mean over folds and seeds of the folds' mean IoU; of equals the first. Every
    finished run of the selection is a line of select/runs.jsonl.
    """
    path = ladder.home / 'selected.json'
    chosen = _read(path) or {}
    for name in ladder.names:
        points = {}
        for run in plan_select(ladder._replace(names=(name,))):
            result = experiment.read(ladder.home / run.folder)
            miou = result and 100 * result['scores'][run.splits[0]]['miou']
            points.setdefault((run.lr, run.decay), []).append(miou)
        if any(None in values for values in points.values()):
            continue
        table = [
            {'lr': lr, 'decay': decay, 'mean': float(np.mean(values)), 'runs': values}
            for (lr, decay), values in points.items()
        ]
        best = max(table, key=lambda row: row['mean'])
        frozen = {'lr': best['lr'], 'decay': best['decay'], 'seeds': ladder.scouts}
        chosen[name] = {**frozen, 'table': table}
    replace(path, json.dumps(chosen, indent=1) + '\n')
    home = ladder.home / 'select'
    done = [file.parent.relative_to(home) for file in sorted(home.rglob(experiment.RESULT))]
    write_runs(home / 'runs.jsonl', ((run.parts[0], experiment.read(home / run)) for run in done))
    return chosen


def plan_select(ladder: Ladder) -> Iterator[Run]:
    """The runs of the selection, needs before what needs them, all seeds of a program together."""
    for name in _in_order(ladder.names):
        for point in _grid(ladder):
            tag = f'lr{point["lr"]:g}_decay{point["decay"]:g}'
            for fold in _folds(ladder):
                split = f'fold{fold}_val' if ladder.dataset == 'camvid' else 'val'
                for seed in range(ladder.scouts):
                    folder = f'select/{name}/{tag}/fold{fold}/seed{seed}'
                    yield Run(name, seed, folder, **point, fold=fold, splits=(split,))


def plan_final(ladder: Ladder) -> Iterator[Run]:
    """The final runs; see `plan_select`."""
    chosen = _read(ladder.home / 'selected.json') or {}
    for name in _in_order(ladder.names):
        if name in SCOUTS:
            expected = 'rungs of the ladder: scouting arms are judged on the folds'
            raise UserError(
                f'--rungs={name}', 'a scouting arm with --final', expected, 'leave it out.'
            )
        if name not in chosen:
            raise UserError(
                ladder.home / 'selected.json',
                f'no selection of {name}',
                'learning rate and decay chosen on the folds',
                'run the ladder without --final first.',
            )
        point = {key: chosen[name][key] for key in ('lr', 'decay')}
        for seed in range(ladder.seeds):
            yield Run(name, seed, f'final/{name}/seed{seed}', **point, fold=None, splits=('test',))


def run_all(ladder: Ladder, plan: Iterable[Run], share=(0, 1)) -> bool:
    """Do what is missing of a plan, printing runs an hour; False where SIGTERM stopped it.

    `share` = (i, n): each n-th rung from the i-th, of fewer than n rungs each n-th seed of them.
    UserError where the test score of a run was read for another configuration, or where the folder
    is that of another ladder.
    """
    _share_programs(ladder.workdir)
    _check_settings(ladder)
    runs = list(plan)
    # Programs are compiled once a rung: a share takes whole rungs where there are enough.
    few = len({run.rung for run in runs}) < share[1]
    parts = list(dict.fromkeys((run.rung, run.seed if few else None) for run in runs))
    mine = set(parts[share[0] :: share[1]])
    runs = [run for run in runs if (run.rung, run.seed if few else None) in mine]
    began, done = time.monotonic(), 0
    for number, run in enumerate(runs, 1):
        folder = ladder.home / run.folder
        if experiment.read(folder):
            continue
        print(f'\n[{number}/{len(runs)}] {run.folder}', flush=True)
        config = configuration(ladder, run)
        announce = _test_reading(ladder, run, config) if run.fold is None else lambda: None
        result = experiment.run(config, folder, run.splits, announce)
        if result is None:
            return False
        done += 1
        hours, left = (time.monotonic() - began) / 3600, len(runs) - number
        scores = result['scores'].items()
        scored = ', '.join(f'{split} {100 * found["miou"]:.2f}' for split, found in scores)
        rest = f'{left} left: {left * hours / done:.1f} h'
        print(f'mIoU {scored}; {done / hours:.1f} runs an hour, {rest}', flush=True)
    return True


def protocol(ladder: Ladder, rung: str):
    """The configuration of a rung of this ladder before folds, seeds and tuned values are set."""
    names = ('tiny', 'scale', 'width', 'view')
    options = {name: getattr(ladder, name) for name in names}
    return rungs.protocol(ladder.dataset, rung, ladder.net, **options)


def configuration(ladder: Ladder, run: Run):
    """The locked configuration of a run."""
    config = protocol(ladder, run.rung)
    config.data.labelled = ladder.labelled
    config.data.root, config.seed = ladder.root, run.seed
    config.model.dtype, config.model.init_from = ladder.dtype, ladder.init_from
    config.optimizer.lr, config.optimizer.weight_decay = run.lr, run.decay
    if run.fold is None:
        config.data.eval_split = 'val'  # for the curve; it selects nothing
    else:
        config.data.eval_split = run.splits[0]
        if ladder.dataset == 'camvid':
            config.data.train_split = f'fold{run.fold}_train'
    if ladder.epochs and not ladder.tiny:
        config.epochs, config.steps = ladder.epochs, 0
    _apply_needs(ladder, run, config)
    images = len(data.build(config.data, config.data.train_split))
    steps = configs.total_steps(config, images)
    # Whole dispatches between the points of the curve: no second program for what is left over.
    unit = 1 if ladder.tiny else DISPATCH
    config.epochs, config.steps = 0.0, max(unit, round(steps / unit) * unit)
    config.fa.ramp = round(ARMS[run.rung].ramp * config.steps)
    every = max(1, round(config.steps / (10 * unit))) * unit
    config.eval.every = config.checkpoint.every = every
    if run.fold is not None and run.rung in _DIAGNOSED and diagnostics.measurable(config):
        config.log.affinity = every
    config.lock()
    return config


def results(ladder: Ladder) -> dict[str, dict[int, dict]]:
    """{rung: {seed: result}} of the final runs that are there."""
    found = {}
    for name in ladder.names:
        for folder in sorted((ladder.home / 'final' / name).glob('seed*')):
            result = experiment.read(folder)
            if result:
                found.setdefault(name, {})[int(folder.name.removeprefix('seed'))] = result
    return found


def write_runs(path: pathlib.Path, runs: Iterable[tuple[str, dict]]) -> None:
    """One line of JSON for each (rung, result); of this machine's paths the last name alone."""
    lines = (json.dumps({'rung': rung, **_without_folders(result)}) + '\n' for rung, result in runs)
    replace(path, ''.join(lines))


def _without_folders(values):
    if isinstance(values, dict):
        return {key: _without_folders(value) for key, value in values.items()}
    is_path = isinstance(values, str) and os.path.isabs(values)
    return os.path.basename(values) if is_path else values


def _apply_needs(ladder, run, config):
    """What a rung takes from the runs that had to come first, of the same seed."""
    if not ARMS[run.rung].needs:
        return
    found = {}
    for name in ARMS[run.rung].needs:
        folder = ladder.home / run.folder.replace(f'/{run.rung}/', f'/{name}/')
        found[name] = experiment.read(folder)
        if found[name] is None:
            remedy = f'add {name} to --rungs.'
            raise UserError(folder, 'no result', f'the run that {run.rung} needs', remedy)
    if run.rung == 'equal_time':
        longer = found['full']['minutes'] / found['reference']['minutes']
        config.steps, config.epochs = round(found['reference']['steps'] * longer), 0.0
    if 'ceiling' in found:
        folder = ladder.home / run.folder.replace(f'/{run.rung}/', '/ceiling/')
        config.kd.teacher = str(_export(folder))


def _export(folder) -> pathlib.Path:
    """The exported model of a finished run, made once."""
    target = folder / 'model'
    if not target.is_dir():
        model, variables, step = inference.from_workdir(folder)
        about = {'step': step, 'source': f'{folder}, step {step}'}
        own = folder / f'model.{os.getpid()}'
        export.export(model, variables, own, formats=('params',), **about)
        try:
            own.rename(target)
        except OSError:  # a process beside this one was first
            shutil.rmtree(own)
    return target


def _test_reading(ladder, run, config):
    """What writes down that the test split is read; UserError for a second configuration."""
    path = ladder.home / 'test_reads.jsonl'
    settings = configs.to_dict(config)
    frozen = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    before = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for line in before:
        if (line['rung'], line['seed']) == (run.rung, run.seed) and line['config'] != frozen:
            raise UserError(
                path,
                f'{run.rung}, seed {run.seed}, was read for configuration {line["config"]}',
                f'this one, {frozen}: the test split is read once for a frozen configuration',
                'report that result; a new question needs a new folder and says so.',
            )

    def write():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        line = {'date': now, 'rung': run.rung, 'seed': run.seed, 'config': frozen}
        with path.open('a') as file:
            file.write(json.dumps({**line, 'commit': commit()}) + '\n')

    return write


def _check_settings(ladder):
    """What finished runs of this folder have in common must be what is asked for now."""
    names = ('dataset', 'net', 'epochs', 'init_from', 'dtype', 'tiny', 'width', 'view', 'grid')
    # As a file gives it back: tuples are lists there.
    settings, defaults = (
        json.loads(json.dumps({name: getattr(of, name) for name in names}))
        for of in (ladder, Ladder(ladder.workdir))
    )
    path = ladder.home / 'ladder.json'
    before = _read(path)
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(settings, indent=1) + '\n')
        return
    for name in names:  # a file from before there was such a setting has its default
        found = before.get(name, defaults[name])
        if found != settings[name]:
            expected = f'{settings[name]!r}, as asked for'
            remedy = 'give the same flags, or another --workdir.'
            raise UserError(path, f'{name} {found!r}', expected, remedy)


def _share_programs(workdir):
    """One compilation of a program for all seeds and restarts."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 1)


def _in_order(names):
    """The names with what they need before them, each once."""
    found = []
    for name in names:
        found += [need for need in ARMS[name].needs if need in names]
        found.append(name)
    return list(dict.fromkeys(found))


def _grid(ladder):
    return ladder.grid[:1] if ladder.tiny else ladder.grid


def _folds(ladder):
    return FOLDS[:1] if ladder.tiny else FOLDS


def _read(path):
    return json.loads(path.read_text()) if path.is_file() else None
