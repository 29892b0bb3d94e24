"""Curves over training steps and bars of per-class IoU, as PNG files (matplotlib, no display)."""

import numpy as np

from dsrl_jax.errors import UserError

_PANELS = ('train/total', 'train/ce', 'train/mse', 'train/fa', 'train/lr', 'eval')
_COLORS = ('#2563eb', '#dc2626', '#059669', '#d97706', '#7c3aed', '#0891b2', '#475569', '#be185d')


def plot_curves(records, output_png):
    """Losses, learning rate and eval mIoU over steps, all runs in one colour each.

    {run name: its records, as records.read_metrics gives them} -> path of the PNG. Panels without
    any data are left out.
    """
    runs = {name: _series(lines) for name, lines in records.items()}
    panels = []
    for panel in _PANELS:
        keys = {name: _keys(series, panel) for name, series in runs.items()}
        if any(keys.values()):
            panels.append((panel, keys))
    if not panels:
        remedy = 'log at least one step.'
        raise UserError(
            ', '.join(records),
            'no curves',
            'train/... or eval/... values',
            remedy,
        )
    figure, axes = _figure(panels)
    for ax, (panel, keys) in zip(axes, panels):
        for i, (name, series) in enumerate(runs.items()):
            for j, key in enumerate(keys[name]):
                steps, values = series[key]
                color, style = _COLORS[i % len(_COLORS)], ('-', '--', ':')[j % 3]
                label = name if len(keys[name]) == 1 else f'{name} {key}'
                noisy = panel.startswith('train/') and panel != 'train/lr' and len(steps) > 40
                if noisy:  # the raw line stays visible behind the smooth one
                    ax.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
                    steps, values = _smooth(steps, values)
                mark = 'o' if len(steps) <= 30 else None
                ax.plot(steps, values, style, color=color, label=label, marker=mark, markersize=3)
        ax.set_title('eval mIoU' if panel == 'eval' else panel, fontsize=11, loc='left')
        ax.set_xlabel('step', fontsize=9)
        _plain(ax)
    axes[0].legend(fontsize=9, frameon=False)
    if panels[-1][0] == 'eval' and any(len(k) > 1 for k in panels[-1][1].values()):
        axes[-1].legend(fontsize=8, frameon=False)
    return save(figure, output_png)


def plot_class_iou(class_iou, classes, output_png):
    """Bars of per-class IoU: {run: [K] shares, nan where absent}, K names -> path of the PNG."""
    from matplotlib.figure import Figure

    for name, values in class_iou.items():
        if len(values) != len(classes):
            raise ValueError(f'{name}: {len(values)} values for {len(classes)} classes')
    figure = Figure(figsize=(max(7, 0.85 * len(classes) + 1.5), 4), layout='constrained')
    ax = figure.add_subplot()
    wide = 0.8 / max(len(class_iou), 1)
    for i, (name, values) in enumerate(class_iou.items()):
        left = np.arange(len(classes)) - 0.4 + wide * (i + 0.5)
        percent = 100 * np.nan_to_num(np.asarray(values, float))
        bars = ax.bar(left, percent, wide * 0.92, label=name, color=_COLORS[i % len(_COLORS)])
        if len(class_iou) <= 3:
            ax.bar_label(bars, fmt='%.0f', fontsize=7, padding=1)
    ax.set_xticks(np.arange(len(classes)), classes, rotation=30, ha='right', fontsize=9)
    ax.set_ylabel('IoU in %', fontsize=9)
    ax.set_ylim(0, 108)
    ax.legend(fontsize=9, frameon=False, ncols=4, loc='lower left', bbox_to_anchor=(0, 1))
    _plain(ax)
    return save(figure, output_png)


def _series(records):
    """{key: (steps [T] int, values [T] float)}, steps rising.

    Of a step written twice (a resumed run) the last record counts; lists are left out.
    """
    series = {}
    for record in records:
        for key, value in record.items():
            if key != 'step' and isinstance(value, int | float):
                series.setdefault(key, {})[record['step']] = float(value)
    return {
        key: (np.array(sorted(points)), np.array([points[s] for s in sorted(points)]))
        for key, points in series.items()
    }


def _keys(series, panel):
    if panel != 'eval':
        return [panel] if panel in series else []
    return [k for k in sorted(series) if k.startswith('eval') and k.lower().endswith('miou')]


def _figure(panels):
    from matplotlib.figure import Figure  # slow to import, and no state of pyplot is needed

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure, axes[: len(panels)]


def _smooth(steps, values):
    """Moving mean over a fortieth of the run, at least five points; only whole windows."""
    window = max(len(values) // 40, 5)
    total = np.cumsum(np.concatenate([[0.0], values]))
    return steps[window - 1 :], (total[window:] - total[:-window]) / window


def _plain(ax):
    ax.grid(True, color='#e5e7eb', linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, color='#9ca3af')
    for name, spine in ax.spines.items():
        spine.set_visible(name in ('left', 'bottom'))
        spine.set_color('#9ca3af')


def save(figure, path):
    """Draw a matplotlib figure to a PNG; its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from dsrl_jax.report.overlay import save_png

    figure.set_dpi(130)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return save_png(np.asarray(canvas.buffer_rgba())[..., :3], path)
