"""Training for pose by the one trainer: loss of heatmaps, both modes, resume, scores, export."""

import functools
import inspect
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from dsrl_jax import cli, costs, data, inference, losses, optimizer, tasks, workload
from dsrl_jax import config as configs
from dsrl_jax import export as exporting
from dsrl_jax.keypoints import Keypoints
from dsrl_jax.models.hrnet import HRNet
from dsrl_jax.ops import heatmaps, resize
from dsrl_jax.records import read_metrics

JOINTS = Keypoints(
    names=('head', 'left_hand', 'right_hand'),
    flip_pairs=((1, 2),),
    sigmas=(0.1, 0.1, 0.1),
    skeleton=((0, 1), (0, 2)),
    upper=(0, 1, 2),
)
COUNT = len(JOINTS.names)
Tiny = functools.partial(HRNet, width=4, modules=(1, 1, 1), blocks=1)
NET = 'test_pose_training:Tiny'
WORDS = f'coco:tiny,net={NET}'
TINY = {
    **{'data.name': 'blobs', 'data.train_split': 'train', 'data.eval_split': 'val'},
    'pose.flip_test': 'False',  # half as much to compile
    'sssr.head': 'official_deconv',  # starts far from an empty heatmap: twelve steps show a fall
}


class Blobs:
    """People of three coloured blobs on grey noise, one an image; as data/persons.py has them."""

    classes, keypoints, num_classes, ignore = JOINTS.names, JOINTS, COUNT, 255
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def __init__(self, split, count=8):
        self.split, self.count = split, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        index = int(index)
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((index, self.split == 'val'))
        joints = rng.uniform((30, 25), (66, 105), (COUNT, 2)).astype(np.float32)
        rows, columns = np.mgrid[:128, :96]
        image = rng.integers(90, 110, (128, 96, 3)).astype(np.float32)
        for color, (x, y) in zip(self.colors, joints):
            blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 40)[..., None]
            image += blob * (np.array(color, np.float32) - image)
        return {
            'image': image.astype(np.uint8),
            'joints': joints,
            'visible': np.ones(COUNT, np.float32),
            'box': np.array([16, 5, 64, 118], np.float32),
            'score': np.float32(1),
            'image_id': np.int32(index + 1),
            'name': f'{self.split}_{index}',
        }

    def files(self, index):
        return {}

    def ground_truth(self):
        people = []
        for index in range(self.count):
            joints = np.concatenate([self[index]['joints'], np.full((COUNT, 1), 2)], 1)
            entry = {'id': index + 1, 'image_id': index + 1, 'category_id': 1, 'iscrowd': 0}
            entry |= {'bbox': self[index]['box'].tolist(), 'area': 3000.0, 'num_keypoints': COUNT}
            people.append(entry | {'keypoints': joints.ravel().tolist()})
        images = [{'id': index + 1, 'height': 128, 'width': 96} for index in range(self.count)]
        return {'images': images, 'annotations': people, 'categories': [{'id': 1}]}


@pytest.fixture(scope='module', autouse=True)
def blobs():
    """The blobs as a data set that configurations can name."""
    data.SOURCES['blobs'] = lambda config, split: Blobs(split)
    yield
    del data.SOURCES['blobs']


def config_of(mode, **changes):
    config = configs.load(f'{WORDS},dsrl={mode}', TINY.items())
    for dotted, value in changes.items():
        configs.override(config, dotted.replace('__', '.'), str(value))
    return config


def flags(mode, *more):
    return [f'--config={WORDS},dsrl={mode}', *(f'--config.{k}={v}' for k, v in TINY.items()), *more]


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_tasks_offer_the_trainer_the_same():
    """Every function of one, with its parameters, is there in the other."""
    seams = []
    for task in tasks.TASKS.values():
        own = {name: f for name, f in vars(task).items() if inspect.isfunction(f)}
        own = {name: f for name, f in own.items() if f.__module__ == task.__name__}
        seams.append({n: list(inspect.signature(f).parameters) for n, f in own.items()})
    segmentation, pose = seams
    public = {name: found for name, found in pose.items() if not name.startswith('_')}
    assert len(public) > 10 and public.items() <= segmentation.items()


def test_the_loss_of_heatmaps_is_that_of_the_protocol():
    """Joint by joint: half of the mean squared error over images and pixels, weighted inside."""
    scores, target = draw(4, 6, 5, COUNT), draw(4, 6, 5, COUNT)[::-1]
    weight = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    expected = 0.0
    for joint in range(COUNT):
        error = [w * (s - t) for s, t, w in zip(scores, target, weight[:, joint])]
        error = np.stack(error)[..., joint]
        expected += 0.5 * np.mean(error**2) / COUNT
    np.testing.assert_allclose(losses.heatmap_mse(scores, target, weight), expected, rtol=1e-5)
    hidden = np.where(weight[:, None, None] > 0, scores, 1e6)
    np.testing.assert_allclose(losses.heatmap_mse(hidden, target, weight), expected, rtol=1e-5)
    twice = (np.concatenate([x, x]) for x in (scores, target, weight))
    np.testing.assert_allclose(losses.heatmap_mse(*twice), expected, rtol=1e-5)


@pytest.mark.parametrize(('mode', 'stride'), [('none', 4), ('full', 2)])
def test_heatmaps_of_the_joints_themselves_have_no_loss(mode, stride):
    """So scores and targets lie on one grid: a quarter of the input, with the x2 head a half."""
    config = config_of(mode)
    network = inference.build_network(config, COUNT)
    size = network.result_size((64, 32))
    assert size == (64 // stride, 32 // stride)
    batch = tasks.pose.random_batch(config, COUNT)
    target, _ = heatmaps.encode(
        batch['joints'], batch['visible'], size, stride, config.pose.sigma, 'standard'
    )
    _, supervise = losses.heatmap_term(config, network.result_size)
    assert supervise({'scores': target}, batch) == 0
    assert supervise({'scores': 0 * target}, batch) > 1e-4
    unseen = {**batch, 'visible': 0 * batch['visible']}
    assert supervise({'scores': target}, unseen) == 0
    if mode == 'full':  # a head may leave the last step to the loss
        half = draw(4, 16, 8, COUNT)
        whole = resize.bilinear(jnp.asarray(half), size, convention='half_pixel')
        found = supervise({'scores': half, 'resize': 'half_pixel'}, batch)
        np.testing.assert_allclose(found, supervise({'scores': whole}, batch), rtol=1e-6)


def test_terms_carry_the_name_of_the_task():
    config = config_of('full')
    main = losses.heatmap_term(config, lambda size: (16, 8))
    batch = tasks.pose.random_batch(config, COUNT)
    batch['view'] = draw(4, 128, 64, 3)
    outputs = {'scores': draw(4, 16, 8, COUNT), 'sr': draw(4, 128, 64, 3)}
    outputs |= {'seg_feature': draw(4, 16, 8, 4), 'sr_feature': draw(4, 64, 32, 4)}
    loss = losses.make_loss(config, main=main)
    found = loss(outputs, batch, step=jnp.asarray(0), key=jax.random.key(0))
    assert set(found) == {'heatmap', 'mse', 'fa', 'total'}
    shares = config.mse.weight * found['mse'] + config.fa.weight * found['fa']
    expected = found['heatmap'] + shares
    np.testing.assert_allclose(found['total'], expected, rtol=1e-6)
    part = {name: x[::2] for name, x in batch.items()} | {'part': 0, 'whole': batch}
    assert set(losses.part_shares(part, config, None, jax.random.key(0))) == {'mse', 'fa'}


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """The workdir of a finished run of twelve steps, a checkpoint after the eighth."""
    return trained(tmp_path_factory.mktemp('pose') / 'full')


def trained(folder):
    words = ['--config.steps=12', '--config.checkpoint.every=8', '--config.checkpoint.keep=3']
    assert cli.main(['train', *flags('full'), f'--workdir={folder}', *words]) == 0
    return folder


def terms_of(workdir):
    return {
        record['step']: {k: v for k, v in record.items() if k.startswith('train/')}
        for record in read_metrics(workdir)
        if 'train/total' in record
    }


def falls(values):
    return np.mean(values[-3:]) < 0.8 * values[0]


def test_the_loss_of_a_run_falls(full):
    terms = terms_of(full)
    assert {'train/heatmap', 'train/mse', 'train/fa'} <= set(terms[1])
    for name in ('train/heatmap', 'train/total'):
        assert falls([terms[step][name] for step in sorted(terms)]), name


def test_the_loss_of_the_plain_network_falls():
    """The step of a benchmark, on heatmaps of a quarter of its input."""
    work = workload.Workload(
        **{'net': NET, 'size': (64, 32), 'batch': 4, 'num_classes': COUNT, 'train': True},
        **{'dsrl': 'none', 'head': None, 'scale': 1, 'dtype': 'float32', 'kind': 'exact'},
        options={},
    )
    call = workload.caller(work, workload.compile_program(work))
    scalars = [jax.device_get(call()) for _ in range(12)]
    assert all(s['heatmap'] == s['total'] for s in scalars)
    assert scalars[-1]['total'] < scalars[0]['total']


def test_every_leaf_of_every_branch_moves(full, tmp_path):
    """Between the two checkpoints."""
    (_, after, last), (_, before, first) = (
        inference.from_workdir(folder) for folder in (full, cut(full, tmp_path / 'cut'))
    )
    assert (first, last) == (8, 12)
    assert set(after['params']) == {'network', 'sssr', 'sisr', 'transform'}
    still = [
        optimizer.path_name(path)
        for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after))
        if np.array_equal(a, b)
    ]
    assert not still


def cut(workdir, copy):
    """A copy of the run without its last checkpoint."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / 'checkpoints' / '12')
    return copy


def test_resuming_equals_going_on(full, tmp_path):
    workdir = cut(full, tmp_path / 'again')
    assert cli.main(['train', f'--config={workdir / "config.json"}', f'--workdir={workdir}']) == 0
    straight, resumed = (inference.from_workdir(folder)[1] for folder in (full, workdir))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert terms_of(workdir) == terms_of(full)


def test_a_run_is_scored_as_table_5_prints_it(full, capsys):
    written = json.loads((full / 'eval_val' / 'scores.json').read_text())
    assert written['people'] == written['images'] == 8 and 0 <= written['AP'] <= 1
    assert {'AP50', 'AP75', 'AP_M', 'AR', 'AR50', 'AR75', 'psnr', 'bicubic_ssim'} <= set(written)
    found = json.loads((full / 'eval_val' / 'results.json').read_text())
    assert len(found) == 8 and all(len(entry['keypoints']) == 3 * COUNT for entry in found)
    assert cli.main(['eval', f'--workdir={full}', f'--output={full / "again"}']) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    again = json.loads(last)
    assert {k: again[k] for k in ('AP', 'AR', 'psnr')} == {
        k: written[k] for k in ('AP', 'AR', 'psnr')
    }
    assert any('ground-truth boxes' in line for line in lines)
    assert 'heatmaps 32x16' in again['protocol'] and 'decoded quarter' in again['protocol']


class Painted:
    """In the place of a network: heatmaps painted where the red, green and blue blobs are."""

    scale, result_stride = 2, 4

    def result_size(self, size):
        return tuple(n // 2 for n in size)

    def apply(self, variables, image, train, sr):
        pixels = resize.denormalise(image, resize.SR_COLOR)
        others = jnp.sum(pixels, -1, keepdims=True) - pixels
        return {'scores': resize.avg_pool(jnp.maximum(pixels - others, 0), 2, 2)}


def test_joints_that_are_seen_are_found_and_scored():
    """From the view through heatmaps, mirror image and box to COCO's AP: all of it is one frame."""
    config = config_of('full', data__eval_batch_size=8)
    for decode in ('quarter', 'dark', 'udp'):
        config.pose.update(decode=decode, flip_test=True)
        scores = tasks.pose.evaluate(Painted(), {}, config, Blobs('val', 13), sr=False)
        assert scores['people'] == 13 and scores['AP50'] > 0.9, (decode, scores)


def test_export_is_exact(full, tmp_path):
    model, variables, step = inference.from_workdir(full)
    report = exporting.export(model, variables, tmp_path / 'model', step=step, source='blobs')
    assert report['difference'] == 0 and report['stablehlo_agreement'] > 0.99
    assert 'heatmaps [b, 32, 16, 3]' in (tmp_path / 'model' / 'card.md').read_text()
    loaded = inference.load(tmp_path / 'model')
    assert loaded.classes == list(JOINTS.names)
    assert set(loaded.variables['params']) == {'network', 'sssr'}


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['--config.model.net=espnetv2'], ['espnetv2, for segmentation', 'a network for pose']),
        (['--config.eval.scales=(0.5,1.0)'], ['config.eval.scales', '(1.0,)']),
        (['--config.eval.flip=True'], ['config.eval.flip', 'pose.flip_test']),
        (['--config.ce.ohem=0.7'], ['config.ce.ohem', '0.7']),
        (['--config.data.resident=always'], ['config.data.resident', 'joints']),
        (['--config.data.name=synthetic'], [f'{NET}, for pose', 'a network for segmentation']),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, tmp_path, words, named):
    given = {word.split('=')[0] for word in words}
    common = [flag for flag in flags('none') if flag.split('=')[0] not in given]
    refused(capsys, ['train', *common, *words, f'--workdir={tmp_path / "w"}'], *named)


def test_the_step_lowers_for_a_gpu():
    """Nothing of the size of a heatmap is sent: they are drawn there, at half of the input."""
    work = workload.Workload(
        **{'net': NET, 'size': (128, 96), 'batch': 8, 'num_classes': 17, 'train': True},
        **{'dsrl': 'full', 'head': None, 'scale': 2, 'dtype': 'bfloat16', 'kind': 'exact'},
        options={},
    )
    workload.check(work)
    made = workload.program(work)
    state, batch = made.shapes
    assert set(batch) == {'target', 'mask', 'joints', 'visible'}
    assert batch['joints'].shape == (8, 17, 2)
    text = made.run.trace(state, batch).lower(lowering_platforms=('cuda',)).as_text()
    assert re.search(r'tensor<8x64x48x17xf32>', text)


def test_true_costs_hold_the_head():
    """A transposed 3x3 convolution from 17 heatmaps of a quarter of the input to 17 of a half."""
    found = costs.report(NET, (128, 96), num_classes=17, dsrl='sssr')['macs']
    assert found['sssr'] == 9 * 17 * 17 * 32 * 24
    assert found['inference'] == found['network'] + found['sssr']


def test_all_six_rows_of_table_5_build():
    for size, heights in {'256x192': (64, 128), '160x128': (40, 80), '128x96': (32, 64)}.items():
        for mode, height in zip(('none', 'full'), heights):
            config = configs.load(f'coco:net=hrnet_w32,size={size},dsrl={mode}')
            network = inference.build_network(config, 17)
            inference.check_size(network, config)
            small = inference.input_size(config, config.data.size)
            assert '{}x{}'.format(*small) == size
            assert network.result_size(small)[0] == height and config.pose.sigma >= height / 48
