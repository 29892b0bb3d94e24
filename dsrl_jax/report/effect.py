"""The size of the effect as a Markdown table and one picture a user can choose from."""

import pathlib

_HEAD = (
    *('ladder', 'network', 'data', 'input / view', 'labels used', 'seeds', 'reference, mIoU'),
    *('recommended, mIoU', 'gain, 95 %', 'verdict', 'thin classes', 'boundary IoU, 1 px'),
    *('M multiply-adds, reference', 'recommended'),
)
_COLORS = ('#2563eb', '#dc2626', '#059669', '#d97706', '#7c3aed')


def markdown(rows) -> str:
    """Rows of effect.measure -> a table; a point that was not run says so."""
    lines = ['## recommended minus reference, points of mIoU on the test split', '']
    lines += [_line(_HEAD), _line(['---'] * len(_HEAD))]
    for row in rows:
        cells = [row['ladder'], row['net'], row['dataset'], _part(row['scale'])]
        cells += [f'{row["labelled"]:g}', str(row['seeds'])]
        if not row['seeds']:
            lines.append(_line([*cells, 'not run', *[''] * (len(_HEAD) - len(cells) - 1)]))
            continue
        gains = row['gains']
        cells += [f'{row["reference"]:.2f}', f'{row["recommended"]:.2f}', _gain(gains.get('miou'))]
        cells += [row['verdict'], _gain(gains.get('thin')), _gain(gains.get('boundary_1'))]
        cells += [f'{row["macs"][arm] / 1e6:.1f}' for arm in ('reference', 'recommended')]
        lines.append(_line(cells))
    return '\n'.join(lines) + '\n'


def figure(rows, path) -> pathlib.Path:
    """Gain with its 95 % interval: left over the cost of a prediction, right over the labels used.

    Left all labels, one point an input size; right the usual input size. A hollow point is a
    single seed, without an interval.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 4), layout='constrained')
    left, right = picture.subplots(1, 2, sharey=True)
    done = [row for row in rows if row['seeds']]
    for number, name in enumerate(dict.fromkeys(row['ladder'] for row in done)):
        color = _COLORS[number % len(_COLORS)]
        mine = [row for row in done if row['ladder'] == name]
        sizes = [row for row in mine if row['labelled'] == 1]
        costs = [row['macs']['recommended'] / 1e6 for row in sizes]
        _points(left, costs, sizes, color, name, [_part(row['scale']) for row in sizes])
        shares = [row for row in mine if row['scale'] == 2]
        _points(right, [row['labelled'] for row in shares], shares, color, name, [])
    left.set_xlabel('M multiply-adds of a prediction, head included')
    left.set_ylabel('recommended minus reference, points of mIoU')
    left.set_title('over input sizes (part of the view), all labels', loc='left', fontsize=10)
    right.set_xlabel('share of the training images with labels')
    right.set_title('over labels, input 1/2 of the view', loc='left', fontsize=10)
    measured = {row['macs']['recommended'] / 1e6 for row in done if row['labelled'] == 1}
    shares = {row['labelled'] for row in done if row['scale'] == 2}
    for ax, places, form in ((left, measured, '.0f'), (right, shares, '.3g')):
        ax.set_xscale('log')
        ticks = sorted(places)
        ax.set_xticks(ticks, [f'{place:{form}}' for place in ticks])
        ax.set_xticks([], minor=True)
        ax.margins(x=0.12)
        ax.axhline(0, color='#64748b', linewidth=1)
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    path = pathlib.Path(path)
    picture.savefig(path, dpi=130)
    return path


def _points(ax, places, rows, color, name, notes):
    for number, (x, row) in enumerate(zip(places, rows, strict=True)):
        gain = row['gains']['miou']
        single = gain['low'] is None
        bars = None if single else [[gain['mean'] - gain['low']], [gain['high'] - gain['mean']]]
        style = {'fmt': 'o', 'color': color, 'capsize': 3, 'mfc': 'none' if single else color}
        ax.errorbar([x], [gain['mean']], bars, label=None if number else name, **style)
    for x, row, note in zip(places, rows, notes):
        where = x, row['gains']['miou']['mean']
        ax.annotate(note, where, xytext=(6, 4), textcoords='offset points', fontsize=8)


def _gain(gain):
    if gain is None:
        return ''
    ends = 'one seed' if gain['low'] is None else f'{gain["low"]:+.2f} to {gain["high"]:+.2f}'
    return f'{gain["mean"]:+.2f} ({ends})'


def _part(scale):
    return '1' if scale == 1 else f'1/{scale}'


def _line(cells):
    return '| ' + ' | '.join(cells) + ' |'
