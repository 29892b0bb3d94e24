"""Pictures of an evaluation of poses: the first people and those whose joints are furthest off."""

import pathlib

import numpy as np

from dsrl_jax.report.overlay import grid, save_png
from dsrl_jax.report.skeleton import closeup, draw


def save(folder, source, people: dict, count: int) -> None:
    """Write one PNG a person under first/ and worst/, prediction beside truth, `count` of each.

    `people`: index [N] in the source, joints and truth [N,J,2] in pixels of the image, confidence
    and visible [N,J], center and scale [N,2] of the views (in units of 200 pixels). Boxes without
    a truth are drawn without one, and none of them is among the worst.
    """
    off = distances(people)
    known = np.flatnonzero(np.isfinite(off))
    order = np.argsort(people['index'], kind='stable')
    worst = known[np.argsort(-off[known], kind='stable')]
    for name, chosen in (('first', order[:count]), ('worst', worst[:count])):
        for rank, row in enumerate(chosen.tolist()):
            index = int(people['index'][row])
            person = {key: value[row] for key, value in people.items()}
            picture = _picture(source[index]['image'], person, off[row], source)
            save_png(picture, pathlib.Path(folder) / name / f'{rank}_{index:05d}.png')


def distances(people: dict) -> np.ndarray:
    """Mean distance of the visible joints from the truth, as a share of the view's height: [N].

    NaN where none is visible.
    """
    apart = np.linalg.norm(people['joints'] - people['truth'], axis=-1)
    visible = np.asarray(people['visible']) > 0
    count = np.where(visible.any(1), visible.sum(1), np.nan)
    return (apart * visible).sum(1) / count / (200 * people['scale'][:, 1])


def _picture(image, person, off, source):
    size = 200 * person['scale']
    view, place = closeup(image, (*(person['center'] - size / 2), *size))
    style = source.keypoints, source.colors
    pictures, captions = [view], ['image']
    if np.isfinite(off):
        pictures.append(draw(view, place(person['truth'])[None], person['visible'][None], *style))
        captions.append('truth')
    # What is measured, however sure the network is; without a truth what it is sure of.
    shown, known = person['confidence'], ''
    if np.isfinite(off):
        shown, known = person['visible'], f', {100 * off:.0f} % of the height off'
    pictures.append(draw(view, place(person['joints'])[None], shown[None], *style))
    return grid([pictures], [[*captions, f'prediction{known}']], cell_width=320)
