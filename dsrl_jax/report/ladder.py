"""A ladder's summary as Markdown and as Figure 1 done at true cost."""

import pathlib

_SCORES = {
    'miou': 'mIoU',
    'thin': 'thin classes',
    'boundary_1': 'boundary IoU, 1 px',
    'boundary_4': '4 px',
}


def markdown(summary: dict, title: str) -> str:
    """Tables: every rung with scores and costs, the contrasts, every seed's score."""
    splits = list(next(iter(summary['rungs'].values()))['scores']) if summary['rungs'] else []
    parts = [f'## {title}', _rungs(summary, splits[:1])]
    if len(splits) > 1:
        parts += ['mIoU by part of the split:', _parts(summary, splits)]
    parts += [_contrasts(summary), _seeds(summary, splits[:1])]
    return '\n\n'.join(part for part in parts if part) + '\n'


def figure(summary: dict, path) -> pathlib.Path:
    """mIoU (mean, every seed a dot) against giga multiply-adds of a prediction, head included."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 4.5), layout='constrained')
    ax = picture.subplots()
    plain = []
    for name, row in summary['rungs'].items():
        cost = row['costs'].get('macs')
        if cost is None:
            continue
        values = next(iter(row['scores'].values()))['miou']
        x, mean = cost / 1e9, sum(values) / len(values)
        color = '#2563eb' if row['costs'].get('dsrl', 'none') == 'none' else '#dc2626'
        ax.scatter([x] * len(values), values, s=10, alpha=0.4, color=color)
        ax.scatter([x], [mean], s=45, color=color)
        ax.annotate(name, (x, mean), xytext=(6, 3), textcoords='offset points', fontsize=8)
        if name in ('reference', 'matched_low', 'matched_high', 'ceiling'):
            plain.append((x, mean))
    if plain:
        ax.plot(*zip(*sorted(plain)), '-', color='#2563eb', alpha=0.5, linewidth=1)
    ax.set_xlabel('G multiply-adds of a prediction, head included')
    ax.set_ylabel('mIoU, %')
    ax.set_title('plain network blue (line: over input sizes), DSRL red', loc='left', fontsize=10)
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.3)
    path = pathlib.Path(path)
    picture.savefig(path, dpi=130)
    return path


def _rungs(summary, splits):
    measured = [row['costs'].get('latency', {}) for row in summary['rungs'].values()]
    devices = sorted(set().union(*measured))
    head = [
        *('rung', 'seeds', *_SCORES.values()),
        *('M multiply-adds', 'of which head', 'with 20 classes', 'parameters'),
        *(f'ms, {device}' for device in devices),
        *('images/s', f'minutes to mIoU {100 * summary["reach"]:g}'),
    ]
    lines = [_line(head), _line(['---'] * len(head))]
    for row in summary['rungs'].values():
        costs = row['costs']
        reached = [m for m in row['minutes_to'] if m is not None]
        cells = [row['title'], str(len(row['seeds']))]
        cells += [_spread(row['scores'][splits[0]][score]) for score in _SCORES]
        cells += [_millions(costs.get(key)) for key in ('macs', 'head_macs', 'macs_20')]
        cells.append(f'{costs["params"]:,}' if 'params' in costs else '')
        cells += [_number(costs.get('latency', {}).get(device), '.2f') for device in devices]
        cells.append(_number(row['images_per_second'], '.0f'))
        short = f'{len(reached)} of {len(row["seeds"])} seeds'
        cells.append(f'{sum(reached) / len(reached):.1f} ({short})' if reached else 'not reached')
        lines.append(_line(cells))
    return '\n'.join(lines)


def _parts(summary, splits):
    lines = [_line(['rung', *splits]), _line(['---'] * (1 + len(splits)))]
    for row in summary['rungs'].values():
        lines.append(_line([row['title'], *(_spread(row['scores'][s]['miou']) for s in splits)]))
    return '\n'.join(lines)


def _contrasts(summary):
    if not summary['contrasts']:
        return 'No contrast has both of its arms yet.'
    head = ['contrast, points of mIoU', 'seeds', 'mean', '95 %', 'p', 'p, Holm', 'verdict']
    head += ['95 % over stretches of film', 'thin classes', 'boundary IoU, 1 px']
    lines = [_line(head), _line(['---'] * len(head))]
    for name, row in summary['contrasts'].items():
        if 'failed' in row:
            lines.append(_line([name, str(row['seeds']), row['failed'], *[''] * 7]))
            continue
        film = row['bootstrap']
        cells = [name, str(row['seeds']), f'{row["mean"]:+.2f}', _interval(row)]
        cells += [f'{row["p"]:.3f}', _number(row.get('p_holm'), '.3f'), row['verdict']]
        cells.append(f'{_interval(film)} ({film["blocks"]} blocks)' if film else '')
        for score in ('thin', 'boundary_1'):
            found = row['secondary'].get(score)
            cells.append(f'{found["mean"]:+.2f} {_interval(found)}' if found else '')
        lines.append(_line(cells))
    return '\n'.join(lines)


def _seeds(summary, splits):
    lines = ['Every seed, mIoU:', '']
    for name, row in summary['rungs'].items():
        values = row['scores'][splits[0]]['miou']
        shown = ', '.join(f'{s}: {v:.2f}' for s, v in zip(row['seeds'], values, strict=True))
        lines.append(f'* {name}: {shown}')
    return '\n'.join(lines)


def _spread(values):
    """Mean and standard deviation over seeds."""
    values = [v for v in values if v is not None]
    if not values:
        return 'absent'
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f'{mean:.2f}'
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f'{mean:.2f} ± {spread:.2f}'


def _interval(row):
    return 'one seed' if row['low'] is None else f'{row["low"]:+.2f} to {row["high"]:+.2f}'


def _millions(value):
    return '' if value is None else f'{value / 1e6:.1f}'


def _number(value, form):
    return '' if value is None else f'{value:{form}}'


def _line(cells):
    return '| ' + ' | '.join(cells) + ' |'
