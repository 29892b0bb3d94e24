"""PSNR and SSIM of the SR branch on folders of photographs, beside bicubic enlargement."""

import pathlib

import jax
import numpy as np

from dsrl_jax import metrics
from dsrl_jax.data import images, sources
from dsrl_jax.errors import UserError
from dsrl_jax.step import make_eval_step


def photographs(model, variables: dict, folder) -> list[dict]:
    """Scores of the pictures of a folder and of the folders in it, one row a folder with pictures.

    Each photograph is a large view, cropped at the bottom and right to a size the network takes;
    its small input is made by the shared filter. Rows: set, images, psnr, ssim, bicubic_psnr,
    bicubic_ssim; RGB, no border cut off. The network is compiled once a size. UserError where there
    is no SR branch or no picture, or for a picture that is too small.
    """
    if 'sisr' not in variables['params']:
        expected = 'a run with dsrl sssr+sisr or full'
        raise UserError('photographs', 'a model without SR branch', expected, 'train one.')
    score = _scorer(model)
    rows = []
    for name, files in _sets(pathlib.Path(folder)):
        total = {key: metrics.ImageQuality.empty() for key in ('', 'bicubic_')}
        for file in files:
            view = crop(images.read_image(file), model.network.multiple * model.config.scale, file)
            found = score(variables, _batch(view))
            total = {key: total[key].merge(jax.device_get(found[key])) for key in total}
        row = {'set': name, 'images': len(files)}
        for key, value in total.items():
            row |= {f'{key}{k}': float(v) for k, v in value.compute().items()}
        rows.append(row)
    return rows


def crop(image: np.ndarray, multiple: int, where) -> np.ndarray:
    """The largest part [H',W',3] of a picture from its top left whose sides are multiples."""
    height, width = (n // multiple * multiple for n in image.shape[:2])
    if not height or not width:
        found = 'a picture of {}x{} (HxW)'.format(*image.shape[:2])
        raise UserError(where, found, f'at least {multiple} pixels a side', 'leave it out.')
    return image[:height, :width]


def _scorer(model):
    """(variables, batch) -> sums of quality, by the evaluation step that splits use."""
    step = make_eval_step(model.network, model.config, len(model.classes), sr=True)

    @jax.jit
    def score(variables, batch):
        result = step(variables, batch)
        return {key: result[f'{key}quality'] for key in ('', 'bicubic_')}

    return score


def _batch(view):
    """An evaluation batch of one picture [H,W,3], whose classes nobody knows.

    All of it goes into the compiled step as an argument: windows over a constant mask would be
    computed by the compiler, which takes minutes.
    """
    height, width = view.shape[:2]
    return {
        'target': view[None],
        'label': np.full((1, height, width), 255, np.uint8),
        'mask': np.ones((1, height, width), bool),
        'valid': np.ones(1, bool),
        'region': np.array([[0, 0, height, width]], np.int32),
        'size': np.array([[height, width]], np.int32),
    }


def _sets(folder):
    """[(name, files)] of the folder itself or of the folders in it."""
    if not folder.is_dir():
        raise UserError(folder, 'no such folder', 'a folder of photographs', 'correct the path.')
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [(place.name, _pictures(place)) for place in places]
    found = [(name, files) for name, files in found if files]
    if not found:
        expected = 'pictures (' + ', '.join(sources.IMAGE_SUFFIXES) + ') in it or in its folders'
        raise UserError(folder, 'no picture', expected, 'choose another folder.')
    return found


def _pictures(folder):
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in sources.IMAGE_SUFFIXES)
