"""The confusion matrix as a picture."""

import pathlib

import numpy as np

from dsrl_jax.report.curves import save


def plot_confusion(counts, classes, output_png) -> pathlib.Path:
    """Shares of each true class by prediction: [K, K or K+1] counts, K names -> path of the PNG.

    Rows are the truth and sum to 1; a last column, where it counts any, holds predictions that are
    no class. Shares of half a per cent and more are printed, rows of absent classes stay empty.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(counts, float)
    if counts.shape not in ((len(classes),) * 2, (len(classes), len(classes) + 1)):
        raise ValueError(f'counts {counts.shape} of {len(classes)} classes')
    if not counts[:, len(classes) :].any():
        counts = counts[:, : len(classes)]
    columns = [*classes, 'none'][: counts.shape[1]]
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    side = max(4.5, 0.42 * len(columns) + 2.2)
    figure = Figure(figsize=(side, side), layout='constrained')
    ax = figure.add_subplot()
    ax.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        ink = 'white' if share > 0.6 else '#1c2026'
        text = f'{100 * share:.0f}'
        ax.text(column, row, text, ha='center', va='center', fontsize=7, color=ink)
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha='right', fontsize=8)
    ax.set_yticks(range(len(classes)), classes, fontsize=8)
    ax.set_xlabel('prediction', fontsize=9)
    ax.set_ylabel('truth', fontsize=9)
    ax.set_title('% of the pixels of each true class', fontsize=9, loc='left')
    ax.spines[:].set_visible(False)
    return save(figure, output_png)
