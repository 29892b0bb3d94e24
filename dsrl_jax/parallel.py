"""The one place that knows processes and devices: start, mesh, shardings, host rows onto it."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dsrl_jax.errors import UserError

# What a launcher sets for every process, beside the flags that mean the same.
_ENVIRONMENT = {
    'coordinator': 'JAX_COORDINATOR_ADDRESS',
    'num_processes': 'JAX_NUM_PROCESSES',
    'process_id': 'JAX_PROCESS_ID',
}
_LAUNCHERS = {
    'Slurm': {'num_processes': 'SLURM_STEP_NUM_TASKS', 'process_id': 'SLURM_PROCID'},
    'Open MPI': {'num_processes': 'OMPI_COMM_WORLD_SIZE', 'process_id': 'OMPI_COMM_WORLD_RANK'},
}
LOST = 75  # exit code where another process is missing: trying again may help (EX_TEMPFAIL)


def flags(parser) -> None:
    """Flags of the verbs that can run as several processes."""
    add = parser.add_argument
    where = 'by hand; Slurm, Open MPI and TPU slices of GKE are recognised'
    add('--coordinator', help=f'HOST:PORT of process 0, {where}; default: $JAX_COORDINATOR_ADDRESS')
    add('--num_processes', help='how many there are; default: $JAX_NUM_PROCESSES')
    add('--process_id', help='which of them this is, from 0; default: $JAX_PROCESS_ID')
    add('--start_timeout', type=int, default=300, help='seconds to wait for the others; 300')
    silence = 'seconds of silence after which a process is given up; 100'
    add('--heartbeat_timeout', type=int, default=100, help=silence)


def make_deterministic() -> None:
    """From here on XLA uses only GPU kernels that give the same bits every time; before any device.

    CPUs and TPUs do so anyway.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_exclude_nondeterministic_ops=true'.strip()


@contextlib.contextmanager
def joined(args):
    """Inside, this process is one of those of the run, where there are several; before any device.

    Told by the flags, by $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or found
    in what Slurm, Open MPI or GKE for a TPU slice give. Only process 0 prints to stdout. Ends with
    a line and LOST where they do not find each other in time, with UserError of that code where one
    is lost later; an error of this one ends it at once, so that the others see it.
    """
    _join(args)
    if jax.process_count() == 1:
        yield
        return
    if jax.process_index():
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    try:
        yield
    except UserError as error:
        _leave_early(error.code)
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and 'Gloo' not in str(error):
            _leave_early(1)
            raise
        _leave_early(LOST)
        raise UserError(
            f'process {jax.process_index()}',
            f'{" ".join(str(error).split())[:200]}',
            f'all {jax.process_count()} processes alive',
            'see what the others say; started again, the run goes on from its newest checkpoint.',
            code=LOST,
        ) from error
    except BaseException:
        _leave_early(1)
        raise


def launcher() -> str | None:
    """Who started this as one of several processes: 'Slurm', 'Open MPI', 'a TPU pod', or nobody."""
    for name, variables in _LAUNCHERS.items():
        if int(os.environ.get(variables['num_processes'], 1)) > 1:
            return name
    hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
    return 'a TPU pod' if ',' in hosts or os.environ.get('MEGASCALE_COORDINATOR_ADDRESS') else None


def _join(args) -> None:
    given = {
        name: getattr(args, name) or os.environ.get(variable)
        for name, variable in _ENVIRONMENT.items()
    }
    found_by = launcher()
    if given['coordinator']:  # Slurm and Open MPI tell the rest
        for name, variable in _LAUNCHERS.get(found_by, {}).items():
            given[name] = given[name] or os.environ.get(variable)
    if any(given.values()):
        known = _by_hand(given)
        who = f'the {known["num_processes"]} processes'
    elif found_by:
        known, who = {}, f'the processes of {found_by}'
    else:
        return
    error = UserError(
        f'process {known["process_id"]}' if known else 'this process',
        'some of the others missing',
        f'{who} at {given["coordinator"] or "its first host"} within {args.start_timeout} s',
        'look at the output of each, or give more --start_timeout.',
    )
    # JAX would end a process that waits too long by a core dump; this is before it.
    watch = threading.Timer(args.start_timeout, _give_up, [error])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=args.start_timeout + 60,
            heartbeat_timeout_seconds=args.heartbeat_timeout,
        )
    except (RuntimeError, ValueError, OSError) as error:
        found, expected = ' '.join(str(error).split())[:200], f'{who}, joined'
        remedy = 'give --coordinator=HOST:PORT of process 0.'
        raise UserError('several processes', found, expected, remedy) from error
    finally:
        watch.cancel()


def _give_up(error: UserError) -> None:
    print(f'error: {error}', file=sys.stderr, flush=True)
    os._exit(LOST)


def _leave_early(code: int) -> None:
    """At the exit of Python, leave at once: JAX would wait for the others, which wait for us."""

    def leave():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    atexit.register(leave)


def _by_hand(given: dict) -> dict:
    """What jax.distributed.initialize takes, from texts that must all be there and fit."""
    names = {name: f'--{name} or ${variable}' for name, variable in _ENVIRONMENT.items()}
    for name, text in given.items():
        if not text:
            having = ', '.join(names[other] for other, value in given.items() if value)
            remedy = 'give all three, or none.'
            raise UserError('several processes', f'no {names[name]}', f'it beside {having}', remedy)
    host, colon, port = given['coordinator'].rpartition(':')
    if not (host and colon and port.isdecimal()):
        found = repr(given['coordinator'])
        raise UserError(names['coordinator'], found, 'HOST:PORT', 'name the host of process 0.')
    for name in ('num_processes', 'process_id'):
        if not given[name].isdecimal():
            raise UserError(names[name], repr(given[name]), 'a whole number', 'correct it.')
    count, own = int(given['num_processes']), int(given['process_id'])
    if not own < count:
        expected = f'below the {count} of {names["num_processes"]}'
        raise UserError(names['process_id'], str(own), expected, 'they are counted from 0.')
    return {
        'coordinator_address': given['coordinator'],
        'num_processes': count,
        'process_id': own,
        'cluster_detection_method': 'deactivate',  # these alone say what is what
    }


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, 'data'.

    The axis type is Auto: the compiler then places the collectives, and batch statistics are
    those of the global batch without a word in the model.
    """
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Rows of the first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def of_results(names: Iterable[str], per_image: Iterable[str]) -> dict[str, NamedSharding]:
    """Shardings of a step's results: `per_image` as the batch, the others whole everywhere."""
    mesh = make_mesh()
    return {name: by_batch(mesh) if name in per_image else replicated(mesh) for name in names}


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Rows of this process, [b, ...] each -> global arrays [B, ...] split along the batch."""
    sharding = by_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for key, value in batch.items()
    }


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of this process of an array [B, ...] split along the batch: what it gave itself."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(part.data) for part in parts])


def sum_processes(*arrays: np.ndarray) -> list[np.ndarray]:
    """The sums over all processes of arrays that each has counted for itself."""
    if jax.process_count() == 1:
        return list(arrays)
    # As bytes: jax would make 32 bits of 64.
    gathered = (
        multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
        for array in arrays
    )
    return [
        np.ascontiguousarray(rows).view(array.dtype).reshape(-1, *array.shape).sum(0)
        for rows, array in zip(gathered, arrays)
    ]


class Termination:
    """`stopped(step, steps)`: has SIGTERM come, `steps` more steps having led to number `step`?

    Of several processes all hear it after the same step. They agree on it by its number, as the
    checkpoints do: none may be left out. A process that is alone ends at once on a second SIGTERM.
    """

    def __init__(self):
        self._event, self._before = threading.Event(), None

    def __call__(self, step: int, steps: int) -> bool:
        if jax.process_count() == 1:
            return self._event.is_set()
        reached = multihost_utils.reached_preemption_sync_point  # JAX listens for the signal
        return any(reached(number) for number in range(step - steps + 1, step + 1))

    def __enter__(self):
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._catch)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _catch(self, *_):
        self._event.set()
        signal.signal(signal.SIGTERM, self._before)


def check_divisible(batch_size: int, field: str) -> None:
    """Raise UserError unless every device gets the same number of rows."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        lower = max(devices, batch_size // devices * devices)
        raise UserError(
            f'config.{field}',
            f'{batch_size} rows for {devices} devices',
            f'a multiple of {devices}',
            f'use {lower} or {lower + devices}.',
        )
