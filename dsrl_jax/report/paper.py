"""The paper's tables and Figure 1 with our results beside them, and feature maps as pictures."""

import json
import os
import pathlib

import numpy as np

from dsrl_jax.errors import UserError
from dsrl_jax.report import pose_table
from dsrl_jax.report.overlay import save_png

NOT_RUN, NOT_AT_HAND = 'not run', 'not at hand'

_BASE, _REFERENCE, _DSRL, _PRINTED = '#475569', '#2563eb', '#dc2626', '#f59e0b'
_GREY = 128  # where a map has no variance to show


def write(record: dict, folder) -> pathlib.Path:
    """NAME.json and NAME.md of a table in the folder -> the path of the Markdown file.

    record: name, title, task, measures, splits, data, notes and rows, each with `title`, `dsrl`,
    `input` (of the table), `paper` (input, scores, gflops, macs, head_macs; None for a row of ours
    alone), `ours` (input, macs, head_macs, and of a finished run scores {split: mIoU share}; poses:
    see pose_table) and `why` where there is no run.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(folder, str(error), 'a folder to write', 'choose --output.') from None
    _replace(folder / f'{record["name"]}.json', json.dumps(record, indent=1) + '\n')
    return _replace(folder / f'{record["name"]}.md', _MARKDOWN[record['task']](record))


def markdown(record: dict) -> str:
    """The table as Markdown; scores in percent, costs in 10^9 multiply-adds, head included."""
    measures, splits = record['measures'], record['splits']
    header = [
        'row',
        'paper: input',
        *(f'paper: {name}' for name in measures),
        'paper: GFLOPs as printed',
        'true G multiply-adds (of which head)',
        'ours: input',
        *(f'ours: mIoU {split}' for split in splits),
        'ours: G multiply-adds (of which head)',
        'remark',
    ]
    lines = [header, ['---'] * len(header)]
    lines += [_cells(row, measures, splits) for row in record['rows']]
    notes = ''.join(f'\n* {note}' for note in record['notes'])
    return f'# {record["title"]}\n\n{_lines(lines)}\n{notes}\n'


_MARKDOWN = {'segmentation': markdown, 'pose': pose_table.markdown}


def photograph_table(rows: list[dict]) -> str:
    """Rows of photographs.photographs as Markdown: the SR branch beside bicubic enlargement."""
    lines = [
        ['set', 'images', 'SR: PSNR dB', 'bicubic: PSNR dB', 'SR: SSIM', 'bicubic: SSIM'],
        ['---'] * 6,
    ]
    for row in rows:
        line = [row['set'], str(row['images'])]
        line += [f'{row[key]:.2f}' for key in ('psnr', 'bicubic_psnr')]
        lines.append(line + [f'{row[key]:.4f}' for key in ('ssim', 'bicubic_ssim')])
    return _lines(lines) + '\n'


def cost_series(record: dict) -> dict[str, list]:
    """Figure 1's points of Table 2: {panel: [(series, color, [(G multiply-adds, mIoU %)])]}.

    The paper's points stand at their true cost, head included; those of DSRL a second time at half
    of the printed GFLOPs, which leave the head out (2 a multiply-add).
    """
    paper, ours = _Series(), _Series()
    for row in record['rows']:
        kind = _kind(row)
        found = row['paper']
        if found and 'val' in found['scores']:
            score = found['scores']['val']
            paper.add(f'{row["network"]} {kind}', _color(kind), found['macs'] / 1e9, score)
            if kind == 'DSRL' and found['gflops']:
                printed = float(found['gflops']) / 2
                paper.add(f'{row["network"]} DSRL, as printed', _PRINTED, printed, score)
        if row['ours'].get('scores'):
            score = 100 * next(iter(row['ours']['scores'].values()))
            cost = row['ours']['macs'] / 1e9
            ours.add(f'{row["network"]} {kind}', _color(kind), cost, score)
    panels = {'paper: Cityscapes val, mIoU %': paper.rows(), _ours_title(record): ours.rows()}
    return {title: rows for title, rows in panels.items() if rows}


def plot_cost(record: dict, output_png) -> pathlib.Path:
    """Figure 1: mIoU over true multiply-adds, base and DSRL -> path of the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = cost_series(record)
    figure = Figure(figsize=(6.2 * len(panels), 4.2), layout='constrained', dpi=130)
    for ax, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for label, color, points in rows:
            x, y = zip(*sorted(points))
            style = ('--', 'none') if color == _PRINTED else ('-', color)
            ax.plot(x, y, style[0], color=color, marker='o', markerfacecolor=style[1], label=label)
        ax.set_xscale('log')
        for set_format in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
            set_format('{x:g}')
        ax.set_xlabel('true G multiply-adds an image, head included', fontsize=9)
        ax.set_title(title, fontsize=11, loc='left')
        ax.grid(True, which='both', color='#e5e7eb', linewidth=0.7)
        ax.legend(fontsize=8, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return save_png(np.asarray(canvas.buffer_rgba())[..., :3], output_png)


def rgb(features) -> np.ndarray:
    """Three principal components of a map's channels as colours: [H,W,C] float -> uint8 [H,W,3].

    Each component is stretched from its 1st to its 99th percentile. Its sign is the one that makes
    the pixel farthest from the mean bright, so the order of the channels changes nothing. A
    component without variance is grey.
    """
    height, width, channels = features.shape
    x = np.asarray(features, np.float64).reshape(-1, channels)
    x = x - x.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    picture = np.full((len(x), 3), _GREY, np.uint8)
    floor = 1e-6 * max(s[0], np.sqrt(len(x)) * 1e-6)
    for k in range(min(3, len(s))):
        if s[k] <= floor:
            continue
        score = u[:, k] * np.sign(_farthest(u[:, k]))
        low, high = np.percentile(score, (1, 99))
        if high <= low:  # a few pixels apart from all the others
            low, high = score.min(), score.max()
        picture[:, k] = np.round(255 * np.clip((score - low) / (high - low), 0, 1))
    return picture.reshape(height, width, 3)


def _farthest(score):
    # Of pixels that are equally far the first, whatever rounding makes of them.
    far = np.abs(score)
    return score[np.argmax(far >= far.max() * (1 - 1e-9))]


def _lines(lines):
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cells(row, measures, splits):
    paper, ours = row['paper'], row['ours']
    if paper:
        printed = [_size(paper['input'])]
        printed += [_score(paper['scores'].get(name)) for name in measures]
        printed += [paper['gflops'] or NOT_AT_HAND, _cost(paper)]
    else:
        printed = ['-'] * (3 + len(measures))
    scores = ours.get('scores') or {}
    own = [f'{100 * scores[split]:.1f}' if split in scores else NOT_RUN for split in splits]
    size = _size(ours['input']) if 'input' in ours else NOT_RUN
    cost = _cost(ours) if 'macs' in ours else NOT_RUN
    remark = '' if scores else f'{NOT_RUN}: {row["why"]}' if row['why'] else NOT_RUN
    return [row['title'], *printed, size, *own, cost, remark]


def _size(size):
    return '{}x{}'.format(*size)


def _score(value):
    return NOT_AT_HAND if value is None else f'{value:.1f}'


def _cost(found):
    return f'{found["macs"] / 1e9:.4g} ({found["head_macs"] / 1e9:.4g})'


def _kind(row):
    if row['dsrl'] == 'none':
        return 'base' if row['paper'] else 'plain, labels of full size'
    return 'DSRL'


def _color(kind):
    return {'base': _BASE, 'DSRL': _DSRL}.get(kind, _REFERENCE)


def _ours_title(record):
    return f'ours: {record["data"]} {record["splits"][0]}, mIoU %'


class _Series:
    """Points by label, in the order in which the labels came."""

    def __init__(self):
        self.found = {}

    def add(self, label, color, x, y):
        self.found.setdefault((label, color), []).append((x, y))

    def rows(self):
        return [(label, color, points) for (label, color), points in self.found.items()]


def _replace(path, text):
    """Whole or not at all."""
    part = path.with_name(path.name + '.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)
    return path
