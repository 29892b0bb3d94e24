"""`dsrl train`: one jitted, donated, sharded step in a loop that stops and resumes bit-exactly."""

import contextlib
import functools
import itertools
import json
import pathlib
import sys
import time
import types

import jax
import numpy as np
from clu import parameter_overview

from dsrl_jax import (
    accumulation,
    checkpoint,
    data,
    diagnostics,
    distillation,
    evaluate,
    inference,
    optimizer,
    parallel,
    resident,
    tasks,
)
from dsrl_jax import config as configs
from dsrl_jax.errors import UserError
from dsrl_jax.initial import initial_state
from dsrl_jax.logger import Logger
from dsrl_jax.models import freezing
from dsrl_jax.records import read_metrics, read_scores, replace
from dsrl_jax.step import make_train_step
from dsrl_jax.workdir import alone, keep_compiled

TERMINATED = 143  # 128 + SIGTERM: what a scheduler expects of a job it stopped
VERIFIED_STEPS = 10  # of each twin of --verify


def flags(parser) -> None:
    """Flags of `dsrl train`."""
    parser.add_argument('--config', required=True, help='file.py:arguments, or a shipped name')
    parser.add_argument('--workdir', required=True, help='folder of the run; resumed if it exists')
    add = parser.add_argument
    add('--verify', action='store_true', help='train two short twins instead, and compare them')
    add('--deterministic', action='store_true', help='on a GPU: only kernels that repeat, slower')
    parallel.flags(parser)


def main(args) -> int:
    """Run `dsrl train`."""
    if args.deterministic:
        parallel.make_deterministic()
    with parallel.joined(args):
        config = configs.load(args.config, args.overrides)
        keep_compiled(args.workdir)
        if args.verify:
            return 0 if verify(config, args.workdir) else 1
        return TERMINATED if train(config, args.workdir) is None else 0


def verify(config, workdir) -> bool:
    """Train the first steps twice, in WORKDIR/verify, and say whether they are equal bit for bit.

    Losses of every step and all arrays of the state are compared. UserError where the folder is
    there already.
    """
    folder = pathlib.Path(workdir) / 'verify'
    if folder.exists() and jax.process_index() == 0:  # which makes it, the others being later
        raise UserError(folder, 'a folder that exists', 'none yet', 'remove it.')
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.steps, config.epochs = min(config.steps or VERIFIED_STEPS, VERIFIED_STEPS), 0.0
        config.checkpoint.every, config.eval.every, config.log.every = config.steps, 0, 1
    twins = [folder / name for name in ('first', 'second')]
    for twin in twins:
        if train(config, twin, score=False) is None:
            return False
    terms, arrays = [], [checkpoint.checksums(twin) for twin in twins]
    for twin in twins:
        records = read_metrics(twin) if jax.process_index() == 0 else []
        terms.append({(r['step'], k): v for r in records for k, v in r.items() if 'train/' in k})
    apart = [key for key in terms[0] if terms[0][key] != terms[1][key]]
    other = [name for name in arrays[0] if arrays[0][name] != arrays[1][name]]
    if apart:
        (step, term), (a, b) = apart[0], (t[apart[0]] for t in terms)
        print(f'first difference: {term} of step {step}, {a!r} and {b!r}')
    where = f'{config.steps} steps on {jax.device_count()} x {jax.devices()[0].device_kind}'
    found = 'differ' if apart or other else 'equal, bit for bit'
    print(f'two runs of {where}: {found}; {len(other)} of {len(arrays[0])} arrays differ')
    return not (apart or other)


def train(config, workdir, *, score: bool = True) -> dict | None:
    """Train as configured in `workdir`, resuming what is there; the final scores.

    `config` is a ConfigDict, or what --config takes ('camvid:net=espnetv2'). Returns None when
    SIGTERM stopped the run: its state is saved and the same call goes on; {} without `score`.
    Raises UserError for bad data, a bad configuration, or a checkpoint of another one.
    """
    began = time.perf_counter()
    config = configs.load(config) if isinstance(config, str) else config
    configs.check_choices(config)
    parallel.check_divisible(config.data.batch_size, 'data.batch_size')
    parallel.check_divisible(config.data.eval_batch_size, 'data.eval_batch_size')
    accumulation.check(config)
    workdir = pathlib.Path(workdir)
    source = data.build(config.data, config.data.train_split)
    scored = data.build(config.data, config.data.eval_split)
    task = tasks.of(source)
    task.check_source(source)
    task.check_source(scored)
    source, scored = task.trained(config, source), task.scored(config, scored)
    steps = configs.total_steps(config, len(source))
    classes = len(source.classes)
    network = inference.build_network(config, classes)
    inference.check_size(network, config)
    tasks.check_network(network, source, config)
    task.check(config, source)
    shapes = inference.abstract_variables(network, config)  # what misfits shows here, unwritten
    freezing.check(config.model.freeze_bn, shapes['batch_stats'])
    teacher = distillation.load_teacher(config, source.classes)
    diagnostics.check(config)
    loss = task.make_loss(config, network, source)
    every = _every(config, steps)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(workdir))
        saved = checkpoint.open(workdir, keep=config.checkpoint.keep, every=every)
        stack.enter_context(saved)
        stopped = stack.enter_context(parallel.Termination())
        settings = configs.to_dict(config)
        mesh = parallel.make_mesh()
        held = task.hold(source, config, mesh)
        settings['data']['resident'] = 'always' if held else 'never'
        guide = guiding = None
        if teacher:
            settings['kd']['teacher'] = distillation.identity(teacher)
            loss = distillation.add_terms(loss, config)
            guide = distillation.make_guide(teacher, config)
            guiding = jax.device_put(teacher.variables, parallel.replicated(mesh))
        tx, schedule = optimizer.make_optimizer(config.optimizer, shapes['params'], steps)
        state = initial_state(config, network, tx, mesh, saved, settings)
        start = int(state.step)
        if jax.process_index() == 0:
            _write_settings(workdir, config, source)
            _overview(state, workdir)
        train_step = make_train_step(network, tx, loss, config, schedule, guide)
        batch = resident.make_batch(held, config, mesh) if held else None
        program = _programs(train_step, batch, mesh)
        eval_fn = task.jit_eval_step(network, config, scored, sr=_has_sr(config))
        writes = jax.process_index() == 0
        recorded = read_scores(workdir, config.data.eval_split, start) if writes else {}
        logger = Logger(
            workdir,
            steps=steps,
            batch_size=config.data.batch_size,
            start=start + 1,
            began=began,
            every=config.log.every,
            process_index=jax.process_index(),
        )
        measure = diagnostics.make_measure(network, loss, config, guide)
        diagnose = diagnostics.make_record(measure, batch, config, mesh, logger)
        folder = workdir / _eval_folder(config)
        evaluated = functools.partial(
            _score, config, network, scored, eval_fn, logger, recorded, folder
        )
        dispatches = _dispatches(source, held, config, mesh, start, steps, every)
        with logger, contextlib.closing(dispatches):
            step = start
            if _owed(config, recorded, step, steps):
                evaluated(state)
            while step < steps:
                with logger.clock('data_wait'):
                    length, pixels = next(dispatches)
                diagnose(step, length, state, pixels, guiding)
                with logger.clock('compile'):
                    run = program(length, state, pixels, guiding)
                state, scalars = run(state, pixels, guiding)
                step += length
                logger.train(step, scalars)
                stop = stopped(step, length)
                last = step == steps or stop
                if last or step % every == 0:
                    logger.flush()  # a state that is not finite must not be saved
                    with logger.clock('checkpoint'):
                        saved.save(step, state, settings, force=last)
                if stop:
                    saved.wait()
                    print(f'stopped by SIGTERM after step {step}; saved, run again to go on')
                    return None
                if config.eval.every and step % config.eval.every == 0 and step != steps:
                    evaluated(state)
            return evaluated(state, final=True) if score else {}


def _dispatches(source, held, config, mesh, start, steps, every):
    """Until the run is done: (how many steps, what they train on): a batch, or the held images."""
    if held:
        stops = every, config.eval.every
        for length in resident.lengths(start, steps, config.steps_per_dispatch, *stops):
            yield length, held
        return
    batches = tasks.of(source).train_batches(
        source,
        config,
        seed=config.seed,
        start=start,
        batch_size=config.data.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
        for batch in itertools.islice(batches, steps - start):
            yield 1, parallel.to_global(batch, mesh)


def _programs(train_step, batch, mesh):
    """`program(length, *arguments)`: the compiled step, made once; `batch` (resident.make_batch)
    where it runs so many on held images."""
    everywhere, made = parallel.replicated(mesh), {}

    def program(length, *arguments):
        if length not in made:
            run = resident.repeat(train_step, batch, length) if batch else train_step
            jitted = jax.jit(run, donate_argnums=0, out_shardings=(everywhere, everywhere))
            made[length] = jitted.lower(*arguments).compile()
        return made[length]

    return program


def _owed(config, recorded, step: int, steps: int) -> bool:
    """Whether an earlier start saved this step and ended before it had scored it."""
    if not config.eval.every or step % config.eval.every or not 0 < step < steps:
        return False
    (found,) = parallel.sum_processes(np.array([step in recorded], np.int32))
    return not found.any()  # all processes say the same


def _score(
    config, network, source, eval_fn, logger, recorded, folder, state, *, final=False
) -> dict:
    """Evaluate the state; the final scores are also written and printed."""
    with logger.clock('eval'):
        scores = tasks.of(source).evaluate(
            network,
            state.eval_variables(),
            config,
            source,
            sr=_has_sr(config),
            pictures=folder if final else None,
            step_fn=eval_fn,
        )
    step = int(state.step)
    numbers = {k: v for k, v in scores.items() if isinstance(v, float)}
    if recorded.get(step) != numbers:
        logger.eval(config.data.eval_split, step, numbers)
    scores |= {
        'split': config.data.eval_split,
        'step': step,
        'dsrl': config.model.dsrl,
        'net': config.model.net,
    }
    if final and jax.process_index() == 0:
        tasks.of(source).show(scores, source)
        evaluate.write_scores(scores, folder)
    return scores


def _write_settings(workdir: pathlib.Path, config, source) -> None:
    try:
        replace(workdir / 'config.json', json.dumps(configs.to_dict(config), indent=2) + '\n')
        names = json.dumps(inference.names_of(source), indent=2)
        replace(workdir / 'dataset.json', names + '\n')
    except OSError as error:
        raise UserError(workdir, str(error), 'a folder to write', 'choose --workdir.') from None


def _overview(state, workdir: pathlib.Path) -> None:
    """Print the parameters by branch; the whole table goes to parameters.txt."""
    table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    (workdir / 'parameters.txt').write_text(table + '\n')
    print(f'parameters (every leaf: {workdir / "parameters.txt"})')
    for branch, tree in state.params.items():
        leaves = jax.tree.leaves(tree)
        print(f'  {branch:<10} {sum(x.size for x in leaves):>10,} in {len(leaves):,} arrays')
    print(f'  {"total":<10} {sum(x.size for x in jax.tree.leaves(state.params)):>10,}')


def _every(config, steps: int) -> int:
    return config.checkpoint.every or max(1, int(np.ceil(steps / 10)))


def _has_sr(config) -> bool:
    return config.model.dsrl in ('sssr+sisr', 'full')


def _eval_folder(config) -> str:
    return f'eval_{config.data.eval_split.replace("+", "_")}'


class _Callable(types.ModuleType):
    """`dsrl_jax.train` is this module, and also the function that users call."""

    def __call__(self, config, workdir) -> dict | None:
        return train(config, workdir)


sys.modules[__name__].__class__ = _Callable
