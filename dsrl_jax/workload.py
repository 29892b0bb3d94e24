"""What `dsrl bench` times: one training step or one prediction of a network, as a program.

Training is the real step of `dsrl train` (small input made on the device, every loss term, SGD,
donated state) on one random batch that stays on the device.  A prediction starts at the float32
small input on the device and ends at the class map at scale x input by the fused arg-max, as
`dsrl predict` decides; pose networks end at their heatmaps.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental.compilation_cache import compilation_cache

from dsrl_jax import config as configs
from dsrl_jax import graphs, inference, optimizer, tasks
from dsrl_jax import state as states
from dsrl_jax.errors import UserError
from dsrl_jax.models.dsrl import inference_variables
from dsrl_jax.models.folding import fold, norms
from dsrl_jax.step import make_train_step

_SCHEDULED_STEPS = 10_000  # the learning rate's way down; a benchmark sees its beginning


class Workload(NamedTuple):
    """A network and what is done with it; JSON holds all of it, for other processes."""

    net: str
    size: tuple[int, int]  # of the input; the large view is scale times that
    batch: int
    num_classes: int
    train: bool
    dsrl: str
    head: str | None
    scale: int
    dtype: str
    kind: str  # exact, or deploy: batch norms folded
    options: Mapping[str, Any]  # of the network

    @property
    def view(self) -> tuple[int, int]:
        """Height and width of the large view."""
        return self.size[0] * self.scale, self.size[1] * self.scale


class Program(NamedTuple):
    """A jitted function, the shapes of its arguments, and a function that makes these."""

    run: Callable
    shapes: tuple
    arguments: Callable[[], tuple]


class Compiled(NamedTuple):
    """An executable and its arguments' maker, XLA's FLOPs before it optimises, and the seconds."""

    run: Callable
    program: Program
    xla_flops: float | None
    seconds: dict[str, float]
    form: str = 'plain'  # graph: see graphs.compile_graph


def configuration(work: Workload) -> ml_collections.ConfigDict:
    """The configuration of a training run that does this work."""
    config = configs.base()
    config.scale = work.scale
    config.data.size = work.view
    config.data.batch_size = work.batch
    config.model.update(net=work.net, dsrl=work.dsrl, dtype=work.dtype, **work.options)
    config.model.num_classes = work.num_classes
    if work.head is not None:
        config.sssr.head = work.head
    return config


def check(work: Workload) -> None:
    """Raise UserError where the network, its options or the size cannot be; nothing runs."""
    network = _network(work)
    unit = network.multiple
    if any(n < unit or n % unit for n in work.size):
        legal = 'x'.join(str(max(unit, round(n / unit) * unit)) for n in work.size)
        raise UserError(
            '--size',
            'x'.join(map(str, work.size)),
            f'height and width multiples of {unit} for {work.net}',
            f'use {legal}, for instance.',
        )
    inference.abstract_variables(network, configuration(work))


def program(work: Workload) -> Program:
    """The jitted training step or prediction of a workload."""
    return _training(work) if work.train else _prediction(work)


def compile_program(work: Workload) -> Compiled:
    """Trace and compile, with the seconds of both."""
    jax.devices()  # opening the device is not compiling
    start = time.perf_counter()
    made = program(work)
    lowered = made.run.lower(*made.shapes)
    middle = time.perf_counter()
    run = lowered.compile()
    end = time.perf_counter()
    cost = lowered.cost_analysis() or {}
    seconds = {'trace': middle - start, 'compile': end - middle}
    return Compiled(run, made, cost.get('flops'), seconds)


def compile_cold_and_warm(work: Workload) -> tuple[Compiled, dict | None]:
    """The compiled program, made without any cache, and the seconds of a second process.

    That process finds the first one's result in the compilation cache; None if it did not.
    """
    with _fresh_compilation_cache() as folder:
        compiled = compile_program(work)
        name = f'jit_{compiled.program.run.__name__}-*-cache'
        written = {path.name for path in pathlib.Path(folder).rglob(name)}
        environment = {
            **os.environ,
            'JAX_COMPILATION_CACHE_DIR': folder,
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'JAX_ENABLE_COMPILATION_CACHE': 'true',
            'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
        }
        code = 'import sys; from dsrl_jax import workload; workload.print_seconds(sys.argv[1])'
        command = [sys.executable, '-c', code, json.dumps(work._asdict())]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'the second process failed:\n{done.stderr}')
        found = written and {path.name for path in pathlib.Path(folder).rglob(name)} == written
    return compiled, json.loads(done.stdout.splitlines()[-1]) if found else None


def print_seconds(text: str) -> None:
    """Compile the workload that the JSON text describes; one JSON line of the seconds."""
    print(json.dumps(compile_program(Workload(**json.loads(text))).seconds))


def as_graph(work: Workload, compiled: Compiled) -> Compiled:
    """A prediction compiled for latency, where that differs; else as it is."""
    if work.train or jax.default_backend() != 'gpu':
        return compiled
    made = compiled.program
    run, form = graphs.compile_graph(made.run.lower(*made.shapes), made.arguments())
    return compiled._replace(run=run, form=form)


def caller(work: Workload, compiled: Compiled) -> Callable[[], Any]:
    """`call()` queues one step of the program and returns what to wait for."""
    arguments = compiled.program.arguments()
    if not work.train:
        return lambda: compiled.run(*arguments)
    state, batch = arguments

    def call():
        nonlocal state  # the old one was given away
        state, scalars = compiled.run(state, batch)
        return scalars

    return call


def _network(work, *, folded=False):
    return inference.build_network(configuration(work), work.num_classes, folded=folded)


def _training(work):
    config, network = configuration(work), _network(work)
    shapes = inference.abstract_variables(network, config)
    tx, schedule = optimizer.make_optimizer(config.optimizer, shapes['params'], _SCHEDULED_STEPS)
    task = tasks.of(network)
    loss = task.make_loss(config, network)
    run = jax.jit(make_train_step(network, tx, loss, config, schedule), donate_argnums=0)

    def create(key):
        return states.create(_variables(network, work, key), tx, ema=False)

    def arguments():
        with jax.default_device(jax.local_devices(backend='cpu')[0]):
            state = jax.jit(create)(_key())  # not timed, and one program less for a GPU
        batch = task.random_batch(config, work.num_classes)
        return jax.device_put((state, batch), jax.local_devices()[0])

    shapes = jax.eval_shape(create, _key()), task.batch_shapes(config, work.num_classes)
    return Program(run, shapes, arguments)


def _prediction(work):
    whole, network = _network(work), _network(work, folded=work.kind == 'deploy')
    image = jax.ShapeDtypeStruct((work.batch, *work.size, 3), jnp.float32)

    def create(key):
        variables = inference_variables(_variables(whole, work, key))
        return fold(variables, norms(whole, image)) if work.kind == 'deploy' else variables

    def predict(variables, image):
        outputs = network.apply(variables, image, train=False)
        return tasks.of(network).result(outputs, work.view)

    def arguments():
        return jax.jit(create)(_key()), jax.random.normal(_key(), image.shape)

    return Program(jax.jit(predict), (jax.eval_shape(create, _key()), image), arguments)


def _key():
    return jax.random.key(0, impl='rbg')  # compiles in half the time of the default


def _variables(network, work, key):
    return states.init_variables(network, work.size, key)


@contextmanager
def _fresh_compilation_cache():
    """An empty folder that JAX keeps every compiled program in; the old settings afterwards."""
    settings = {
        'jax_compilation_cache_dir': None,
        'jax_persistent_cache_min_compile_time_secs': 0,
        'jax_enable_compilation_cache': True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with tempfile.TemporaryDirectory(prefix='dsrl_bench_') as folder:
        _configure({**settings, 'jax_compilation_cache_dir': folder})
        try:
            yield folder
        finally:
            _configure(before)


def _configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it had read them once
