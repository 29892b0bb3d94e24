"""Checkpoints of a run and exported parameters: the one module that knows orbax.

A run keeps `WORKDIR/checkpoints/STEP/{state,config}`; `config` also holds a CRC-32 of each array,
since zstd blocks carry none. Every restore goes into an explicit abstract tree, so a checkpoint
written on any number of devices loads on any other.
"""

import json
import math
import operator
import pathlib
import sys
import tempfile
import time
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dsrl_jax import broken_files
from dsrl_jax.errors import UserError

FOLDER = 'checkpoints'
_BEST = 'best'
_DISK_ERRORS = OSError, ValueError, jax.errors.JaxRuntimeError  # tensorstore raises the others


def open(workdir, *, keep: int = 3, every: int = 1000, best: str | None = None) -> 'Checkpoints':
    """The checkpoints of the run in `workdir`, for writing and resuming.

    Keeps the newest `keep`; with `best` also the one saved with the highest metric of that name.
    What a killed run left half-written is named on stderr and removed. UserError if the folder
    cannot be written.
    """
    return Checkpoints(workdir, keep, every, best)


class Checkpoints:
    """Saves and restores the state of one run; made by `open`, every process calls every method."""

    def __init__(self, workdir, keep, every, best):
        self.folder = _shared(workdir)
        self._best = best
        broken_files.hush()
        for path in sorted(self.folder.glob('*.orbax-checkpoint-tmp*')):
            _warn(f'{path}: half-written checkpoint of a stopped run, removed')
        for path in self.folder.glob('*/metrics/metrics') if jax.process_index() == 0 else ():
            if broken_files.attempt(lambda p=path: json.loads(p.read_text())[_BEST])[1]:
                told = f'cannot be read, removed; step {path.parts[-3]} counts as not scored'
                _warn(f'{path}: {told}')
                path.unlink()
        multihost_utils.sync_global_devices('dsrl_jax:open')
        policy = ocp.checkpoint_managers
        kept, rank = [policy.LatestN(n=keep)], operator.itemgetter(_BEST) if best else None
        if best:
            kept.append(
                policy.BestN(n=1, get_metric_fn=rank, keep_checkpoints_without_metrics=False)
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=rank,  # without it orbax would not write the metric down
                preservation_policy=policy.AnyPreservationPolicy(kept),
                save_decision_policy=policy.FixedIntervalPolicy(every),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest(self) -> int | None:
        """The newest step on disk, good or not; None in a fresh workdir."""
        return max(_steps(self.folder), default=None)

    def save(self, step: int, state, config, *, metrics: dict | None = None, force=False) -> bool:
        """Starts writing `state` and `config` (a dict) as number `step`; True if it did.

        Call it each step: it acts at multiples of `every`, and always with `force`; a step that is
        on disk is left alone. The arrays are copied before this returns, the files are written
        behind the training.
        """
        if step in self._manager.all_steps() or not (force or self._manager.should_save(step)):
            return False
        state = jax.tree.map(np.array, jax.device_get(state))  # these process 0 writes alone
        record = {'config': config, 'crc32': _checksums(state)}
        best = float(metrics[self._best]) if self._best and metrics else math.nan
        metrics = {_BEST: best} if math.isfinite(best) else None
        state, record = ocp.args.PyTreeSave(state), ocp.args.JsonSave(record)
        items = ocp.args.Composite(state=state, config=record)
        return self._guard(self._manager.save, step, args=items, metrics=metrics, force=True)

    def restore(self, abstract):
        """The newest good checkpoint as (state like `abstract`, step).

        `abstract` has a ShapeDtypeStruct with a sharding at each leaf. A checkpoint that cannot be
        read is passed over for the one before it, with a line on stderr, and set aside as
        `STEP.broken-TIME`. UserError if none is left, or if the readable one has other leaves.
        """
        state, step, broken = _newest(self.folder, abstract, partial=False)
        multihost_utils.assert_equal(step, 'hosts restored different checkpoints')
        for path in (self.folder / str(number) for number in broken):
            if jax.process_index() == 0:  # renamed, since its number must be free to save again
                path.rename(f'{path}.broken-{time.time():.0f}')
        if broken:
            multihost_utils.sync_global_devices('dsrl_jax:set_aside')
            self._manager.reload()
        return state, step

    def config(self) -> dict:
        """The config saved with the newest checkpoint whose config can be read."""
        for step in _steps(self.folder):
            record, _ = broken_files.attempt(lambda n=step: _record(self.folder / str(n)))
            if record:
                return record['config']
        raise UserError(self.folder, 'no checkpoint', 'one that can be read', 'train first.')

    def wait(self) -> None:
        """Returns when the files of the last save are complete."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save and ends orbax's threads."""
        self._guard(self._manager.close)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _guard(self, act, *args, **kwargs):
        """`act(...)`; a disk that fails becomes a UserError."""
        try:
            return act(*args, **kwargs)
        except _DISK_ERRORS as error:
            disk = isinstance(error, OSError) and not isinstance(error, TimeoutError)
            if jax.process_count() > 1 and not disk and 'os_error' not in str(error):  # lost
                raise jax.errors.JaxRuntimeError(str(error)) from error
            remedy = 'check free space and permissions, then resume.'
            found = broken_files.brief(error)
            raise UserError(self.folder, found, 'a checkpoint written', remedy) from error


def restore_weights(path, abstract):
    """The sub-trees of `abstract` (params, batch_stats, ema) of a run -> (weights, step).

    `path` is a workdir or its checkpoints folder; nothing there is changed. Leaves with a sharding
    become device arrays, others numpy. Takes the newest good checkpoint, as `restore` does.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise UserError(path, 'no folder', 'the --workdir of a run', 'check the path.')
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    weights, step, _ = _newest(folder, abstract, partial=True)
    return weights, step


def checksums(workdir) -> dict[str, int]:
    """{leaf: CRC-32 of its bytes} of the newest checkpoint of a run, as its record has them."""
    folder = pathlib.Path(workdir) / FOLDER
    step = max(_steps(folder) if folder.is_dir() else (), default=None)
    if step is None:
        raise UserError(folder, 'no checkpoint', 'one of a run', 'train first.')
    return _record(folder / str(step))['crc32']


def save_params(folder, variables) -> None:
    """Writes a tree of arrays as the new folder `folder`, e.g. `params/` of an exported model."""
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise UserError(folder, 'a folder that exists', 'a new one', 'remove it, or rename yours.')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(folder, args=ocp.args.PyTreeSave(variables))
    except _DISK_ERRORS as error:
        raise _unwritable(folder, error) from error


def load_params(folder, abstract=None):
    """The tree that `save_params` wrote: numpy arrays, or like `abstract` where that is given.

    UserError if the folder is none of ours, or its leaves are not those of `abstract`.
    """
    folder = pathlib.Path(folder).absolute()
    tree, trouble = _read(folder, abstract, False, folder)
    if trouble:
        raise UserError(folder, trouble, 'saved parameters', 'export again, or check the path.')
    return tree


def _newest(folder, abstract, *, partial):
    """The newest checkpoint that can be read -> (tree, its step, newer steps that cannot)."""
    broken = {}
    for number in _steps(folder):
        path = folder / str(number)
        tree, trouble = _read(path / 'state', abstract, partial, path)
        trouble = trouble or _damage(path, tree)
        if trouble:
            broken[number] = trouble
            continue
        for bad, reason in broken.items():
            _warn(f'{folder / str(bad)}: cannot be read ({reason}); using step {number}')
        return tree, number, list(broken)
    found = '; '.join(f'step {n}: {reason}' for n, reason in broken.items()) or 'no checkpoint'
    raise UserError(folder, found, 'one that can be read', 'train again, or check the path.')


def _read(path, abstract, partial, where):
    """Restores one tree like `abstract` (None: as saved, numpy) -> (tree, None) or (None, reason).

    UserError if what was saved reads well but has other leaves.
    """
    handler = ocp.PyTreeCheckpointHandler()
    saved, trouble = broken_files.attempt(lambda: handler.metadata(path).tree)
    if trouble:
        return None, trouble
    if abstract is None:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    _check(where, saved, abstract, partial)

    def argument(x):
        if getattr(x, 'sharding', None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype)
        return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

    wanted = ocp.args.PyTreeRestore(
        item=abstract, restore_args=jax.tree.map(argument, abstract), partial_restore=partial
    )
    with ocp.Checkpointer(handler) as reader:
        return broken_files.attempt(lambda: reader.restore(path, args=wanted))


def _check(where, saved, abstract, partial):
    """UserError naming the first leaves of `abstract` that the checkpoint has otherwise."""
    have, want = _leaves(saved), _leaves(abstract)
    names = list(want) if partial else sorted(have.keys() | want.keys())
    different = [n for n in names if have.get(n) != want.get(n)]
    if different:
        shown, more = different[:3], f' of {len(different)}' if len(different) > 3 else ''
        found = ', '.join(f'{n} {have.get(n, "missing")}' for n in shown) + more
        expected = ', '.join(f'{n} {want.get(n, "absent")}' for n in shown) + more
        raise UserError(where, found, expected, 'use the config it was trained with.')


def _damage(path, tree):
    """Why the arrays are not those that were saved, None if they are."""
    record, trouble = broken_files.attempt(lambda: _record(path))
    for name, number in _checksums(tree).items() if record else ():
        if number != record['crc32'].get(name):
            return f'{name} has other bytes than were saved'
    return trouble


def _checksums(tree):
    """{'params.stem.kernel': CRC-32 of the bytes, ...}."""
    return {k: zlib.crc32(x.reshape(-1).view(np.uint8)) for k, x in _named(jax.device_get(tree))}


def _leaves(tree):
    """{'params.stem.kernel': 'float32[3, 3, 3, 16]', ...}."""
    return {k: f'{np.dtype(x.dtype).name}{list(x.shape)}' for k, x in _named(tree)}


def _named(tree):
    """Pairs of dotted path and leaf."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator='.'), leaf


def _steps(folder):
    """Complete checkpoints, newest first; orbax gives a step its plain number once it is whole."""
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), reverse=True)


def _shared(workdir):
    """WORKDIR/checkpoints, which the first process makes and proves to be writable; all see it."""
    folder = pathlib.Path(workdir).absolute() / FOLDER
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise _unwritable(folder, error) from None
    multihost_utils.sync_global_devices('dsrl_jax:workdir')
    if not folder.is_dir():
        found = f'no such folder on process {jax.process_index()}'
        raise UserError(folder, found, 'one that all processes share', 'choose --workdir.')
    return folder


def _record(path):
    """What `save` put beside the state of a step: {'config': dict, 'crc32': {leaf: number}}."""
    record = json.loads((path / 'config' / 'metadata').read_text())
    return {'config': record['config'], 'crc32': record['crc32']}


def _warn(line):
    """One line on stderr, from one process."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def _unwritable(folder, error):
    found = broken_files.brief(error)
    return UserError(folder, found, 'a folder to write', 'choose another folder.')
