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
    pretrained,
    resident,
    tasks,
)
from dsrl_jax import config as configs
from dsrl_jax import state as states
from dsrl_jax.errors import UserError
from dsrl_jax.foreign.preprocessing import PREPROCESSING
from dsrl_jax.logger import Logger
from dsrl_jax.models import freezing
from dsrl_jax.step import make_train_step
from dsrl_jax.workdir import alone, keep_compiled, replace

TERMINATED = 143  # 128 + SIGTERM: what a scheduler expects of a job it stopped

# A resumed run must agree with its checkpoint in everything that decides the numbers.
RESUME_KEYS = (
    *('seed', 'scale', 'model', 'sssr', 'sisr', 'ce', 'mse', 'fa', 'kd', 'optimizer', 'ema'),
    *('steps', 'epochs', 'data.name', 'data.train_split', 'data.batch_size', 'data.size'),
    *('accumulate', 'data.labelled', 'data.unlabelled'),
    *('data.scale_range', 'data.flip', 'data.color', 'data.mean', 'data.std', 'data.order'),
    *('pose.encode', 'pose.sigma', 'pose.half_body', 'pose.scale_factor', 'pose.rotation'),
    'data.resident',  # resolved: drawn on the device, the views are others
)


def flags(parser) -> None:
    """Flags of `dsrl train`."""
    parser.add_argument('--config', required=True, help='file.py:arguments, or a shipped name')
    parser.add_argument('--workdir', required=True, help='folder of the run; resumed if it exists')
    parallel.flags(parser)


def main(args) -> int:
    """Run `dsrl train`."""
    with parallel.joined(args):
        config = configs.load(args.config, args.overrides)
        keep_compiled(args.workdir)
        return TERMINATED if train(config, args.workdir) is None else 0


def train(config, workdir) -> dict | None:
    """Train as configured in `workdir`, resuming what is there; the final scores.

    `config` is a ConfigDict, or what --config takes ('camvid:net=espnetv2'). Returns None when
    SIGTERM stopped the run: its state is saved and the same call goes on. Raises UserError for
    bad data, a bad configuration, or a checkpoint of another one.
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
        state = _initial_state(config, network, tx, mesh, saved, settings)
        start = int(state.step)
        if jax.process_index() == 0:
            _write_settings(workdir, config, source)
            _overview(state, workdir)
        train_step = make_train_step(network, tx, loss, config, schedule, guide)
        batch = resident.make_batch(held, config, mesh) if held else None
        program = _programs(train_step, batch, mesh)
        eval_fn = task.jit_eval_step(network, config, scored, sr=_has_sr(config))
        recorded = evaluate.recorded_scores(workdir, config.data.eval_split, start)
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
        score = functools.partial(
            _score, config, network, scored, eval_fn, logger, recorded, folder
        )
        dispatches = _dispatches(source, held, config, mesh, start, steps, every)
        with logger, contextlib.closing(dispatches):
            step = start
            if _owed(config, recorded, step, steps):
                score(state)
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
                    score(state)
            return score(state, final=True)


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


def _initial_state(config, network, tx, mesh, saved, settings):
    """The state of the newest checkpoint, or a fresh one, replicated over the mesh."""
    everywhere = parallel.replicated(mesh)
    ema = config.ema > 0
    small = inference.input_size(config, config.data.size)

    def fresh(key):
        return states.init_variables(network, small, key)

    def create(variables, seed):
        return states.create(variables, tx, ema=ema, seed=seed)

    # Philox (rbg) compiles in half the time of the default generator for hundreds of small leaves.
    key = jax.random.key(config.seed, impl='rbg')
    if saved.latest is not None:
        defaults = configs.to_dict(configs.base())
        configs.compare(saved.config(), settings, RESUME_KEYS, defaults)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(lambda key: create(fresh(key), config.seed), key),
        )
        state, step = saved.restore(abstract)
        print(f'resumed at step {step}')
        return state
    start = config.model.init_from
    weights = pretrained.read_weights(start) if start else None  # first: a wrong file ends here
    variables = jax.jit(fresh, out_shardings=everywhere)(key)
    if weights:
        variables = _from_encoder(config, variables, weights, everywhere)
    return jax.jit(create, out_shardings=everywhere)(variables, np.uint32(config.seed))


def _from_encoder(config, variables, weights, sharding):
    """The variables with the encoder of the weights; every other leaf as it was."""
    net, variant = config.model.net, config.model.variant
    start = config.model.init_from
    variables, taken, table = pretrained.init_encoder(
        net, variables, weights, source=start, variant=variant
    )
    print(f'{start}: {taken} tensors of the encoder taken')
    known = {name: PREPROCESSING[name] for name in table.preprocessing}
    if not any(all(color[n] == config.data[n] for n in color) for color in known.values()):
        for name, color in known.items():
            fields = ' '.join(f"'--config.data.{n}={value}'" for n, value in color.items())
            print(f'note: such weights saw images prepared as {name}: {fields}')
    return jax.device_put(variables, sharding)


def _write_settings(workdir: pathlib.Path, config, source) -> None:
    try:
        replace(workdir / 'config.json', json.dumps(configs.to_dict(config), indent=2) + '\n')
        names = {'classes': list(source.classes), 'colors': [list(c) for c in source.colors]}
        replace(workdir / 'dataset.json', json.dumps(names, indent=2) + '\n')
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
