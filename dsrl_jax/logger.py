"""Scalars of a run: metrics.jsonl, metrics.csv, TensorBoard, the progress line and goodput clocks.

Keys carry a prefix: `train/`, `eval/<name>/`, `diag/`, `time/`. metrics.jsonl is the record; the
CSV is made from it, so columns may appear late.
"""

import contextlib
import csv
import json
import math
import pathlib
import sys
import time

import jax
import numpy as np
from rich import progress
from rich.console import Console

from dsrl_jax import records
from dsrl_jax.errors import UserError

try:
    import tensorboardX
except ImportError:
    tensorboardX = None

CLOCKS = ('start', 'data_wait', 'compile', 'eval', 'checkpoint')


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
        self._writes, self._past = process_index == 0, dict.fromkeys((*CLOCKS, *records.SUMS), 0.0)
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
            self._columns, self._past = records.cut(self._path, start, CLOCKS, self._say)
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
        self._jsonl.write(json.dumps({'step': step, **records.encode(values)}) + '\n')
        self._jsonl.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        if numbers.keys() <= set(self._columns):
            csv.writer(self._csv).writerow([step, *(numbers.get(k, '') for k in self._columns[1:])])
            self._csv.flush()
        else:  # a new column: the whole table again, from the record
            self._csv.close()
            self._columns = records.write_csv(self._path)
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


def _phrase(values):
    """'ce 0.512  total 0.7' for {'train/ce': ...}."""
    return '  '.join(f'{k.removeprefix("train/")} {v:.4g}' for k, v in values.items())


def _clock(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
