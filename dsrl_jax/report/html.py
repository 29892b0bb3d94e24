"""One HTML page that compares runs: tables, figures and a gallery, readable without a network.

Pictures are files in a folder beside the page, not base64 inside it: they stay sharp to zoom
and to reuse in a paper, the page stays small enough to diff, and both move as one folder.
"""

import html
import math
import os
import pathlib
import shutil

import numpy as np

from dsrl_jax.report.overlay import save_png


def write_report(path, *, title, summary_rows, tables=(), figures=(), samples=(), notes=()):
    """Writes the page `path` (.html) and its pictures in `path`'s stem + '_files'; returns path.

    summary_rows: dicts of one run each, keys are the columns: `run`, `miou` and `pixel_accuracy`
    (shares 0..1), `params`, `macs`, `macs_without_head` (numbers), `images_per_second`; a missing
    key leaves the cell empty, other keys become columns as they are. The first row is the base.
    tables: (caption, header, rows of cells). figures and samples[i]['pictures']: (caption,
    uint8 array or image file). samples: {'name': ..., 'pictures': [...]}. notes: sentences.
    All text is escaped.
    """
    path = pathlib.Path(path)
    folder = path.parent / f'{path.stem}_files'
    store = _Store(folder)
    body = [
        f'<header><h1>{_text(title)}</h1>',
        f'<p class="lead">{_text(conclude(summary_rows))}</p></header>',
    ]
    body.append(_section('Comparison', _summary(summary_rows)))
    for caption, header, rows in tables:
        body.append(_section(caption, _table(header, rows)))
    for caption, picture in figures:
        body.append(_section(caption, store.image(picture, caption, 'figure')))
    gallery = [_sample(store, sample) for sample in samples]
    if gallery:
        body.append(_section('Pictures', ''.join(gallery)))
    if notes:
        items = ''.join(f'<li>{_text(n)}</li>' for n in notes)
        body.append(_section('Notes', f'<ul>{items}</ul>'))
    part = path.with_suffix('.part')
    part.write_text(_PAGE.format(title=_text(title), body='\n'.join(body)), encoding='utf-8')
    os.replace(part, path)
    return path


def conclude(rows):
    """One sentence on who is ahead: rows with `run`, `miou` (share), base first.

    Optional `miou_spread` (standard deviation over seeds) decides whether a lead is called one;
    without it the sentence says that the difference is that of single runs.
    """
    rows = [r for r in rows if _number(r.get('miou'))]
    if not rows:
        return 'No run has a measured mIoU yet.'
    base = rows[0]
    if len(rows) == 1:
        return f'{base["run"]} reaches {_percent(base["miou"])} mIoU; there is nothing to compare.'
    best = max(rows[1:], key=lambda r: r['miou'])
    gain = 100 * (best['miou'] - base['miou'])
    against = f'{_percent(best["miou"])} against {_percent(base["miou"])} mIoU'
    spreads = [r.get('miou_spread') for r in (base, best)]
    known = all(_number(s) for s in spreads)
    noise = 100 * math.hypot(*spreads) if known else 0.0
    if abs(gain) < 0.05 or abs(gain) <= noise:
        why = f' (within the spread of {noise:.1f} points over seeds)' if known else ''
        return f'{best["run"]} and {base["run"]} are level: {against}{why}.'
    proof = (
        f'the spread over seeds is {noise:.1f} points'
        if known
        else 'one run each, so seeds may account for part of it'
    )
    if gain > 0:
        return f'{best["run"]} is ahead of {base["run"]} by {gain:.1f} points: {against}; {proof}.'
    whom = best['run'] if len(rows) == 2 else f'the next best, {best["run"]},'
    return f'{base["run"]} is ahead of {whom} by {-gain:.1f} points: {against}; {proof}.'


class _Store:
    """Puts pictures into the page's folder under short, ordered names.

    Its numbered pictures of an earlier page go first; no other file is touched.
    """

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob('[0-9][0-9][0-9].*'):
            old.unlink()

    def image(self, picture, caption, kind):
        self.count += 1
        if isinstance(picture, str | os.PathLike):
            target = self.folder / f'{self.count:03d}{pathlib.Path(picture).suffix.lower()}'
            shutil.copyfile(picture, target)
        else:
            target = save_png(np.asarray(picture), self.folder / f'{self.count:03d}.png')
        source = _text(f'{self.folder.name}/{target.name}')
        image = f'<a href="{source}"><img loading="lazy" src="{source}" alt="{_text(caption)}"></a>'
        words = '' if kind == 'figure' else f'<figcaption>{_text(caption)}</figcaption>'
        return f'<figure class="{kind}">{image}{words}</figure>'


def _sample(store, sample):
    cells = ''.join(store.image(p, caption, 'sample') for caption, p in sample['pictures'])
    return f'<h3>{_text(sample["name"])}</h3><div class="gallery">{cells}</div>'


_COLUMNS = {
    'run': ('Run', str),
    'miou': ('mIoU', lambda v: _percent(v)),
    'pixel_accuracy': ('Pixel accuracy', lambda v: _percent(v)),
    'params': ('Parameters', lambda v: _scaled(v)),
    'macs': ('MACs with head', lambda v: _scaled(v)),
    'macs_without_head': ('MACs without head', lambda v: _scaled(v)),
    'images_per_second': ('Images/s', lambda v: f'{v:.1f}'),
}


def _summary(rows):
    names = [k for k in _COLUMNS if any(k in r for r in rows)]
    names += [k for r in rows for k in r if k not in _COLUMNS and k != 'miou_spread']
    names = list(dict.fromkeys(names))
    best = max((r['miou'] for r in rows if _number(r.get('miou'))), default=None)
    cells = []
    for row in rows:
        line = []
        for name in names:
            value = row.get(name)
            show = _COLUMNS.get(name, ('', _cell))[1]
            text = (
                show(value)
                if value is not None and (name == 'run' or _number(value))
                else _cell(value)
            )
            if name == 'miou' and _number(row.get('miou_spread')):
                text += f' ± {100 * row["miou_spread"]:.1f}'
            line.append((text, name == 'miou' and value is not None and value == best))
        cells.append(line)
    return _rows([_COLUMNS.get(n, (n.replace('_', ' '),))[0] for n in names], cells)


def _table(header, rows):
    """Rows of cells; in each row of at least two numbers the largest is printed bold."""
    lines = []
    for row in rows:
        values = [v for v in row if _number(v)]
        top = max(values) if len(values) > 1 else None
        lines.append([(_cell(v), top is not None and _number(v) and v == top) for v in row])
    return _rows(header, lines)


def _rows(header, lines):
    head = ''.join(f'<th>{_text(h)}</th>' for h in header)
    body = ''.join(
        '<tr>' + ''.join(f'<td{_bold(b)}>{_text(t)}</td>' for t, b in line) + '</tr>'
        for line in lines
    )
    table = f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _bold(best):
    return ' class="best"' if best else ''


def _section(caption, content):
    return f'<section><h2>{_text(caption)}</h2>{content}</section>'


def _cell(value):
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return '-'
    return f'{value:.4g}' if isinstance(value, float | np.floating) else str(value)


def _number(value):
    plain = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def _percent(value):
    return f'{100 * value:.1f} %'


def _scaled(value):
    for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if value >= size:
            return f'{value / size:.3g} {unit}'
    return f'{value:.0f}'


def _text(value):
    return html.escape(str(value), quote=True)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: #1c2026; --soft: #5b6470; --line: #e3e7ec; --paper: #fff; --back: #f5f6f8;
  --best: #0b6b43; color-scheme: light; }}
body {{ margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 0 0 8px; }}
h2 {{ font-size: 19px; margin: 0 0 12px; }}
h3 {{ font-size: 15px; margin: 18px 0 8px; color: var(--soft); font-weight: 600; }}
.lead {{ font-size: 18px; max-width: 75ch; margin: 0 0 8px; }}
section {{ background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px; margin-top: 20px; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 8px 12px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ font-size: 13px; color: var(--soft); font-weight: 600; }}
tbody tr:last-child td {{ border-bottom: 0; }}
.best {{ font-weight: 700; color: var(--best); }}
figure {{ margin: 0; }}
img {{ max-width: 100%; height: auto; display: block; }}
.gallery {{ display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }}
.sample img {{ width: 100%; image-rendering: pixelated; border-radius: 4px; }}
figcaption {{ font-size: 13px; color: var(--soft); margin-top: 4px; }}
li {{ margin: 4px 0; max-width: 85ch; }}
</style></head>
<body><main>
{body}
</main></body></html>
"""
