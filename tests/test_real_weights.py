"""Published checkpoints give what their authors' own code gives, on noise and on real streets."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from dsrl_jax import cli, models, pretrained
from dsrl_jax.models import heads

# name of the file -> network, its options and, for Cityscapes, the width and height of the view
CHECKPOINTS = {
    'espnet_p_2_q_8_camvid12': ('espnet', {}, None),
    'espnet_p_2_q_8_city': ('espnet', {'variant': 'test'}, (1024, 512)),
    'espnet_c_p_2_q_8_city': ('espnet_c', {}, (1024, 512)),
    'espnetv2_s_0.5_city_512x256': ('espnetv2', {'width': 0.5}, (512, 256)),
    'espnetv2_s_0.5_city_1024x512': ('espnetv2', {'width': 0.5}, (1024, 512)),
    'espnetv2_s_1.0_city_1024x512': ('espnetv2', {'width': 1.0}, (1024, 512)),
    'espnetv2_s_2.0_city_1024x512': ('espnetv2', {'width': 2.0}, (1024, 512)),
}
FRAMES = ('000294', '000576')
# stored output of the noise -> key of our dict; features of ESPNetv2 only
NOISE = {
    'logits_random': 'logits',
    'feat_random_level1': 'low',
    'feat_random_level4': 'high',
    'feat_random_bu_dec_l4': 'scores',
}


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_outputs_for_noise(real_data, name):
    run, reference = load(real_data, name)
    with np.load(real_data / 'checkpoints' / 'reference_input_64x128.npz') as file:
        outputs = run(file['x'].transpose(0, 2, 3, 1))
    if name.startswith('espnet_c'):
        outputs['logits'] = outputs['scores']  # its reference is the map at 1/8
    compared = [key for key in NOISE if key in reference]
    assert 'logits_random' in compared
    for key in compared:
        got, want = np.asarray(outputs[NOISE[key]])[0].transpose(2, 0, 1), reference[key]
        assert got.shape == want.shape
        assert np.abs(got - want).max() < 1e-4 * want.std(), key


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name, entry in CHECKPOINTS.items() if entry[2]])
def test_labels_of_real_streets(real_data, name):
    run, reference = load(real_data, name)
    network, _, size = CHECKPOINTS[name]
    prepare = espnetv2_input if network == 'espnetv2' else espnet_input
    for frame in FRAMES:
        path = next((real_data / 'cityscapes_samples').rglob(f'*{frame}*leftImg8bit.png'))
        with Image.open(path) as image:
            view = np.asarray(image.resize(size, Image.BILINEAR), np.float32)
        logits = np.asarray(run(prepare(view)[None])['logits'])[0]
        labels = logits[..., :19].argmax(-1)  # output 19 is the background
        assert (labels == reference[f'argmax19_{frame}']).mean() > 0.999


def espnetv2_input(view):
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    std = np.array((0.229, 0.224, 0.225), np.float32)
    return (view / 255 - mean) / std


def espnet_input(view):
    """Blue, green, red; the division by 255 comes last."""
    mean = np.array((72.3923111, 82.90893555, 73.15840149), np.float32)
    std = np.array((45.3192215, 46.15289307, 44.91483307), np.float32)
    return (view[..., ::-1] - mean) / std / 255


@functools.cache
def load(folder, name):
    """The jitted network of a checkpoint, image -> its dict and `logits`, and what is stored."""
    network, options, _ = CHECKPOINTS[name]
    weights = pretrained.read_weights(folder / 'checkpoints' / f'{name}.npz')
    num_classes = pretrained.num_outputs(network, weights)
    module = models.create(network, num_classes=num_classes, **options)
    variables = pretrained.from_torch(network, weights, **options)

    @jax.jit
    def run(variables, image):
        outputs = module.apply(variables, image)
        return {**outputs, 'logits': heads.logits(outputs, image.shape[1:3])}

    with np.load(folder / 'checkpoints' / f'{name}.reference.npz') as file:
        return functools.partial(run, variables), dict(file)


@pytest.mark.slow
def test_espnet_reaches_its_published_camvid_scores_by_command(real_data, tmp_path, capsys):
    """0.5564 is printed by the authors; JPEG images move it to 0.5567 (the data's own README)."""
    weights = real_data / 'checkpoints' / 'espnet_p_2_q_8_camvid12.npz'
    convert = [
        *('convert', '--net=espnet', f'--weights={weights}', '--classes=camvid'),
        *('--size=360x480', '--preprocessing=espnet_camvid', f'--output={tmp_path / "m"}'),
    ]
    assert cli.main(convert) == 0
    evaluate = [
        *('eval', f'--model={tmp_path / "m"}', '--split=test', '--config.data.name=camvid'),
        *(f'--config.data.root={real_data / "camvid"}', '--config.data.workers=0'),
    ]

    def scores(*more):
        assert cli.main([*evaluate, *more]) == 0
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    ignored, counted = scores(), scores('--config.eval.classes=12')
    assert abs(ignored['miou'] - 0.5723) < 5e-4
    assert abs(counted['miou_void_counted'] - 0.5567) < 5e-4
