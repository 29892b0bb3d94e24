"""Published Cityscapes weights, by command, on a real frame: the scores their own code gives."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from dsrl_jax import cli
from dsrl_jax.data import cityscapes

# Weights -> words of `convert`, and pixel accuracy and mIoU over the classes in the frame, as
# printed beside the data.
CHECKPOINTS = {
    'espnetv2_s_0.5_city_512x256': ('espnetv2', '--width=0.5', 0.831, 0.477),
    'espnetv2_s_0.5_city_1024x512': ('espnetv2', '--width=0.5', 0.863, 0.582),
    'espnetv2_s_1.0_city_1024x512': ('espnetv2', '--width=1.0', 0.924, 0.642),
    'espnetv2_s_2.0_city_1024x512': ('espnetv2', '--width=2.0', 0.952, 0.720),
    'espnet_c_p_2_q_8_city': ('espnet_c', '', 0.873, 0.588),
    'espnet_p_2_q_8_city': ('espnet', '--variant=test', 0.862, 0.606),
}


@pytest.fixture(scope='module')
def frame(real_data, tmp_path_factory):
    """The full-size frame with its published label of 128x256, each pixel where it was taken.

    That label is every eighth row and column of the full-size one; the others are void here.
    """
    root = tmp_path_factory.mktemp('frame')
    (image,) = (real_data / 'cityscapes_samples').rglob('*000294_leftImg8bit.png')
    (small,) = (real_data / 'cityscapes_mini').rglob('*000294_gtFine_labelIds.png')
    with Image.open(small) as label:
        small_label = np.array(label)
    full = np.zeros(cityscapes.SIZE, np.uint8)
    full[4::8, 4::8] = small_label
    for folder in ('leftImg8bit', 'gtFine'):
        (root / folder / 'val/frankfurt').mkdir(parents=True)
    (root / 'leftImg8bit/val/frankfurt' / image.name).symlink_to(image)
    Image.fromarray(full).save(root / 'gtFine/val/frankfurt' / small.name)
    return root


@pytest.fixture(scope='module')
def models(real_data, tmp_path_factory):
    """Name of a checkpoint -> its model directory; converting costs most of the time here."""
    folder = tmp_path_factory.mktemp('models')
    return functools.cache(lambda name: convert(real_data, name, folder / name))


def convert(real_data, name, folder):
    net, option, *_ = CHECKPOINTS[name]
    size = '256x512' if name.endswith('512x256') else '512x1024'
    words = ['convert', f'--net={net}', f'--weights={real_data / "checkpoints" / f"{name}.npz"}']
    words += [*filter(None, [option]), '--classes=cityscapes', f'--size={size}']
    if net != 'espnetv2':
        words.append('--preprocessing=espnet_cityscapes')
    assert cli.main([*words, f'--output={folder}']) == 0
    return folder


def evaluate(capsys, model, root, *more):
    words = ['eval', f'--model={model}', '--split=val', '--config.data.name=cityscapes']
    words += [f'--config.data.root={root}', '--config.data.workers=0', '--config.eval.pictures=1']
    words += ['--config.data.eval_batch_size=4']
    capsys.readouterr()
    assert cli.main([*words, *more]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def mean_of_classes_there(scores, root):
    (path,) = root.rglob('*_labelIds.png')
    classes = np.unique(cityscapes.read_label(path))
    return np.mean([scores['iou'][k] for k in classes if k != 255])


@pytest.mark.slow
@pytest.mark.parametrize('name', CHECKPOINTS)
def test_published_weights_on_the_real_frame(models, frame, name, capsys):
    scores = evaluate(capsys, models(name), frame)
    *_, accuracy, miou = CHECKPOINTS[name]
    assert abs(scores['pixel_accuracy'] - accuracy) < 0.002
    assert abs(mean_of_classes_there(scores, frame) - miou) < 0.002
    assert 'arg-max over 19 of 20' in scores['protocol']
    assert scores['cityscapes']['miou'] == pytest.approx(scores['miou'])


@pytest.mark.slow
def test_a_background_output_can_only_cost(models, frame, capsys):
    """Arg-max over 20 outputs: where the background wins, the pixel is a miss."""
    model = models('espnetv2_s_0.5_city_512x256')
    first = evaluate(capsys, model, frame)
    second = evaluate(capsys, model, frame, '--config.eval.classes=20')
    assert 'arg-max over 20 of 20' in second['protocol']
    assert second['pixel_accuracy'] <= first['pixel_accuracy']
    whole = evaluate(capsys, model, frame, '--scales=0.75,1.0', '--flip')
    assert whole['pixel_accuracy'] > first['pixel_accuracy'] - 0.02
