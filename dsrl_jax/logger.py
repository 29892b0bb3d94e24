"""Scalars of a run: metrics.jsonl, metrics.csv, TensorBoard, the progress line and goodput clocks.

Keys carry a prefix: `train/`, `eval/<name>/`, `diag/`, `time/`. metrics.jsonl is the record; the
CSV is made from it, so columns may appear late.
"""

import contextlib
import csv
import json
import math
import os
import pathlib
import sys
import time

import jax
import numpy as np
from rich import progress
from rich.console import Console

from dsrl_jax.errors import UserError

try:
    import tensorboardX
except ImportError:
    tensorboardX = None

CLOCKS = ('start', 'data_wait', 'compile', 'eval', 'checkpoint')
_SUMS = ('total', 'lost', 'starts')  # the other times that a later start counts on from


class Logger:
    """Writes the scalars of one run below `workdir`; only process 0 writes or prints.

    `start` is the first step this run will log: what the files hold from that step on (a run killed
    after its last checkpoint) is dropped, so that no step stands there twice. A loop that counts a
    step once it is done passes the restored step + 1.

    Times are those of the whole run, over all its starts: `time/lost` is what was spent on steps
    that had to be done again, as far as the dropped records tell. `began` (time.perf_counter())
    is when this start began, which the clock `start` counts from.

    Every `every`-th step is recorded, and the last one. Where stdout is a terminal a bar moves;
    elsewhere a line is printed at most every `seconds`.
    """

    def __init__(
        self,
        workdir,
        *,
        steps: int,
        batch_size: int,
        start: int = 1,
        began: float | None = None,
        every: int = 50,
        seconds: float = 10.0,
        process_index: int = 0,
        tensorboard: bool = True,
        stream=None,
    ):
        self.steps, self.batch_size, self.every, self.seconds = steps, batch_size, every, seconds
        self.clocks = dict.fromkeys(CLOCKS, 0.0)
        self._writes, self._past = process_index == 0, dict.fromkeys((*CLOCKS, *_SUMS), 0.0)
        self._pending = None
        now = time.perf_counter()
        self._began = now if began is None else began
        self.clocks['start'] = now - self._began
        self._mark = (start - 1, now, self.clocks['start'])
        self._printed = -math.inf
        self._board = self._bar = None
        self._stream = sys.stdout if stream is None else stream
        if not self._writes:
            return
        self._path = pathlib.Path(workdir) / 'metrics.jsonl'
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._columns, self._past = _cut(self._path, start, self._say)
            self._jsonl = self._path.open('a', encoding='utf-8')
            self._csv = self._path.with_suffix('.csv').open('a', encoding='utf-8', newline='')
        except OSError as error:
            raise UserError(
                workdir, str(error), 'a folder that can be written', 'choose another --workdir.'
            ) from None
        self._go_on(start - 1, now)
        if tensorboard and tensorboardX is not None:
            self._board = tensorboardX.SummaryWriter(
                str(self._path.parent / 'tensorboard'), purge_step=start
            )
        if self._stream.isatty():
            self._bar = progress.Progress(
                progress.TextColumn('step'),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn('{task.fields[note]}'),
                console=Console(file=self._stream),
                redirect_stderr=False,
            )
            self._task = self._bar.add_task('', total=steps, completed=start - 1, note='')
            self._bar.start()

    def _go_on(self, step, now):
        """Count on from the times of earlier starts."""
        for name in self.clocks:
            self.clocks[name] += self._past[name]
        self._began -= self._past['total']
        self._mark = step, now, sum(self.clocks.values()) - self.clocks['data_wait']

    def train(self, step: int, scalars: dict) -> None:
        """Hands over the device scalars of step number `step` ({'ce': ..., ...}); call each step.

        Arrays [k] are the scalars of the k steps up to it. They are fetched by the next call, when
        the device is done with them: the host never waits for the steps it has just sent.
        UserError (on every process) if one is not finite.
        """
        self.flush()
        for value in scalars.values():
            if hasattr(value, 'copy_to_host_async'):
                value.copy_to_host_async()
        self._pending = step, scalars
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def flush(self) -> None:
        """Fetches and records what `train` still holds; call it before a checkpoint."""
        if self._pending is None:
            return
        (last, scalars), self._pending = self._pending, None
        values = {f'train/{k}': np.ravel(v).tolist() for k, v in jax.device_get(scalars).items()}
        rows = [dict(zip(values, row)) for row in zip(*values.values(), strict=True)]
        recorded = {}
        for step, row in enumerate(rows, last - len(rows) + 1):
            bad = {k: v for k, v in row.items() if not math.isfinite(v)}
            if step % self.every == 0 or step == self.steps or bad:
                recorded[step] = row
            if bad:
                break
        for step, row in recorded.items():
            if step == max(recorded):  # the clocks know when the last of them was done
                row.update(self._times(last))
            self._record(step, row)
        if bad:
            raise UserError(
                f'step {step}',
                'non-finite ' + ', '.join(f'{k}={v}' for k, v in bad.items()),
                'finite loss terms',
                'lower the learning rate, or check labels and weights of these terms.',
            )
        if recorded:
            self._show(step, row)

    def eval(self, name: str, step: int, scores: dict) -> None:
        """Records host scores of the split `name`; arrays (IoU per class) go to the JSONL only."""
        self.flush()
        values = {f'eval/{name}/{k}': np.asarray(v, np.float64).tolist() for k, v in scores.items()}
        self._record(step, values)
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        self._say(f'step {step}  ' + _phrase(numbers))

    def diagnose(self, step: int, scalars: dict) -> None:
        """Records device scalars that were measured at step number `step`, under `diag/`."""
        self.flush()
        self._record(step, {f'diag/{k}': float(v) for k, v in jax.device_get(scalars).items()})

    @contextlib.contextmanager
    def clock(self, name: str):
        """Adds the seconds spent inside to `time/<name>`, one of CLOCKS."""
        if name not in CLOCKS:
            raise ValueError(f'clock {name!r}, expected one of {CLOCKS}')
        began = time.perf_counter()
        try:
            yield
        finally:
            self.clocks[name] += time.perf_counter() - began

    def close(self) -> None:
        """Flushes, records where the time went, prints it and closes the files."""
        try:
            self.flush()
            total = time.perf_counter() - self._began
            spent = {**self.clocks, 'lost to restarts': self._past['lost']}
            goodput = 1 - sum(spent.values()) / total
            spent = ', '.join(f'{k} {v:.1f} s' for k, v in spent.items())
            starts = f' in {n} starts' if (n := round(self._past['starts']) + 1) > 1 else ''
            self._say(f'time {total:.1f} s{starts}: {spent}; goodput {goodput:.1%}')
        finally:
            self._close_files()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:  # the error is the news: nothing more is fetched
            self._close_files()

    def _close_files(self):
        if not self._writes:
            return
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        self._jsonl.close()
        self._csv.close()

    def _times(self, step):
        """The `time/` entries: clocks, seconds in all, images a second without the other clocks."""
        now, idle = time.perf_counter(), sum(self.clocks.values()) - self.clocks['data_wait']
        last_step, last_time, last_idle = self._mark
        busy = max(now - last_time - (idle - last_idle), 1e-9)
        self._mark = step, now, idle
        rate = (step - last_step) * self.batch_size / busy
        times = {**self.clocks, 'total': now - self._began, 'images_per_second': rate}
        times |= {'lost': self._past['lost'], 'starts': self._past['starts'] + 1}
        return {f'time/{k}': v for k, v in times.items()}

    def _record(self, step, values):
        """One line in each file."""
        if not self._writes:
            return
        self._jsonl.write(json.dumps({'step': step, **_encode(values)}) + '\n')
        self._jsonl.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        if numbers.keys() <= set(self._columns):
            csv.writer(self._csv).writerow([step, *(numbers.get(k, '') for k in self._columns[1:])])
            self._csv.flush()
        else:  # a new column: the whole table again, from the record
            self._csv.close()
            self._columns = _write_csv(self._path)
            self._csv = self._path.with_suffix('.csv').open('a', encoding='utf-8', newline='')
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, step)

    def _show(self, step, values):
        """The progress line, or the note on the bar."""
        terms = {k: v for k, v in values.items() if k.startswith('train/')}
        rate = values['time/images_per_second']
        if self._bar is not None:
            self._bar.update(self._task, note=f'{_phrase(terms)}  {rate:.1f} img/s')
            return
        now = time.perf_counter()
        if now - self._printed < self.seconds and step != self.steps:
            return
        self._printed = now
        left = (self.steps - step) * self.batch_size / max(rate, 1e-9)
        self._say(
            f'step {step}/{self.steps}  {_phrase(terms)}  {rate:.1f} img/s  eta {_clock(left)}'
        )

    def _say(self, line):
        """One line on stdout, above the bar where there is one."""
        if not self._writes:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def read_metrics(path) -> list[dict]:
    """The records of a metrics.jsonl (or of the folder that holds one), in the order written.

    Values are floats or lists of floats, NaN where none was finite. A broken last line (the run was
    killed while it wrote) is left out; one before it raises UserError.
    """
    path = pathlib.Path(path)
    path = path / 'metrics.jsonl' if path.is_dir() else path
    if not path.is_file():
        raise UserError(path, 'no file', 'the metrics.jsonl of a run', 'check the folder.')
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            int(record['step'])
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f'{path}:{number}', 'no record', 'a JSON object with "step"', 'delete that line.'
            ) from None
        records.append(_decode(record))
    return records


def _cut(path, start, say):
    """Drops records of step >= start, remakes the CSV; returns its columns and the times so far."""
    records = read_metrics(path) if path.exists() else []
    kept = [r for r in records if r['step'] < start]
    if len(kept) < len(records):
        say(f'{path}: dropped {len(records) - len(kept)} records of steps >= {start}')
    _replace(path, ''.join(json.dumps(_encode(r)) + '\n' for r in kept))
    return _write_csv(path), _past_times(records, kept)


def _past_times(records, kept):
    """The times of earlier starts; what dropped records add to the total of the kept is lost."""
    before, last = (
        next((r for r in reversed(rows) if 'time/total' in r), {}) for rows in (kept, records)
    )
    past = {name: before.get(f'time/{name}', 0.0) for name in (*CLOCKS, *_SUMS)}
    total = last.get('time/total', 0.0)
    past['lost'] += total - past['total']
    return past | {'total': total, 'starts': last.get('time/starts', 1.0 if records else 0.0)}


def _write_csv(path):
    """metrics.csv from metrics.jsonl; returns its columns."""
    records = read_metrics(path)
    columns = {'step': None}
    for record in records:
        columns.update(dict.fromkeys(k for k, v in record.items() if not isinstance(v, list)))
    target = path.with_suffix('.csv')
    temporary = target.with_suffix('.csv.tmp')
    with temporary.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[r.get(k, '') for k in columns] for r in records])
    os.replace(temporary, target)
    return list(columns)


def _replace(path, text):
    """Writes a text file in one step, so that a kill leaves the old one or the new one."""
    temporary = path.with_suffix(path.suffix + '.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def _encode(values):
    """Values for JSON, which knows no NaN and no infinity: null."""
    if isinstance(values, dict):
        return {k: _encode(v) for k, v in values.items()}
    if isinstance(values, list):
        return [_encode(v) for v in values]
    return values if not isinstance(values, float) or math.isfinite(values) else None


def _decode(values):
    """The inverse of _encode, null as NaN."""
    if isinstance(values, dict):
        return {k: _decode(v) for k, v in values.items()}
    if isinstance(values, list):
        return [_decode(v) for v in values]
    return math.nan if values is None else values


def _phrase(values):
    """'ce 0.512  total 0.7' for {'train/ce': ...}."""
    return '  '.join(f'{k.removeprefix("train/")} {v:.4g}' for k, v in values.items())


def _clock(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
