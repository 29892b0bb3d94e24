"""metrics.jsonl, the record of a run, and metrics.csv, the same as a table."""

import csv
import json
import math
import os
import pathlib

from dsrl_jax.errors import UserError

SUMS = ('total', 'lost', 'starts')  # times beside the clocks that a later start counts on from


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


def read_scores(workdir: pathlib.Path, split: str, last: int) -> dict[int, dict]:
    """{step: scores} of the split that a run has recorded up to the step `last`."""
    name, found = f'eval/{split}/', {}
    for record in read_metrics(workdir) if (workdir / 'metrics.jsonl').exists() else ():
        scores = {k.removeprefix(name): v for k, v in record.items() if k.startswith(name)}
        if scores and record['step'] <= last:
            found[record['step']] = scores
    return found


def cut(path, start, clocks, say):
    """Drops records of step >= start, remakes the CSV; returns its columns and the times so far."""
    records = read_metrics(path) if path.exists() else []
    kept = [r for r in records if r['step'] < start]
    if len(kept) < len(records):
        say(f'{path}: dropped {len(records) - len(kept)} records of steps >= {start}')
    replace(path, ''.join(json.dumps(encode(r)) + '\n' for r in kept))
    return write_csv(path), _past_times(records, kept, clocks)


def _past_times(records, kept, clocks):
    """The times of earlier starts; what dropped records add to the total of the kept is lost."""
    before, last = (
        next((r for r in reversed(rows) if 'time/total' in r), {}) for rows in (kept, records)
    )
    past = {name: before.get(f'time/{name}', 0.0) for name in (*clocks, *SUMS)}
    total = last.get('time/total', 0.0)
    past['lost'] += total - past['total']
    return past | {'total': total, 'starts': last.get('time/starts', 1.0 if records else 0.0)}


def write_csv(path):
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


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one step, so that a kill or a full disk leaves the old one.

    Processes may do so at once: readers find the file of one of them, whole.
    """
    temporary = path.with_suffix(f'{path.suffix}.{os.getpid()}.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def encode(values):
    """Values for JSON, which knows no NaN and no infinity: null."""
    if isinstance(values, dict):
        return {k: encode(v) for k, v in values.items()}
    if isinstance(values, list):
        return [encode(v) for v in values]
    return values if not isinstance(values, float) or math.isfinite(values) else None


def _decode(values):
    """The inverse of _encode, null as NaN."""
    if isinstance(values, dict):
        return {k: _decode(v) for k, v in values.items()}
    if isinstance(values, list):
        return [_decode(v) for v in values]
    return math.nan if values is None else values
