"""`dsrl reproduce table5`: its rows as configurations, a run by command, its page, refusals."""

import json

import numpy as np
import pytest
from flax import linen as nn
from refusals import refused

from dsrl_jax import cli, data, experiment, inference, paper_runs, tasks
from dsrl_jax import config as configs
from dsrl_jax.models.layers import Conv, Convention, ConvNorm, Style
from dsrl_jax.paper_tables import TABLES
from dsrl_jax.pose_scores import STATISTICS
from dsrl_jax.report import pose_table

TABLE = TABLES['table5']
DECODES = ('quarter', 'dark', 'udp')
TINY = ['reproduce', 'table5', '--tiny', '--net=test_table5:Toy']


class Toy(nn.Module):
    """Image [B, H, W, 3] -> heatmaps, features and low at 1/4, high at 1/8: compiles in a blink."""

    num_classes: int
    style: Style = Style()
    task = 'pose'
    score_stride = feature_stride = result_stride = 4
    multiple = 8

    @nn.compact
    def __call__(self, image, train=False):
        def block(x, name):
            return ConvNorm(4, stride=2, activation='relu', style=self.style, name=name)(x, train)

        low = block(block(image, 'stem'), 'low')
        scores = Conv(self.num_classes, 1, use_bias=True, style=self.style, name='head')(low)
        maps = {'features': low, 'low': low, 'high': block(low, 'deep')}
        return {'scores': scores, **maps, 'resize': Convention('half_pixel')}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """The folder of a finished table of two steps a row."""
    folder = tmp_path_factory.mktemp('table5')
    assert cli.main([*TINY, f'--workdir={folder}']) == 0
    return folder


@pytest.fixture(scope='module')
def record(workdir):
    return json.loads((workdir / 'table5.json').read_text())


def test_base_head_alone_and_dsrl_stand_at_each_of_the_three_sizes():
    found = [(row.input, row.dsrl, row.ours_alone) for row in TABLE.rows]
    modes = (('none', False), ('sssr', True), ('full', False))
    sizes = ((256, 192), (160, 128), (128, 96))
    assert found == [(size, *mode) for size in sizes for mode in modes]
    assert TABLE.net == 'hrnet_w32' and TABLES['table1'].net is None


@pytest.mark.parametrize('mode', ['none', 'full'])
def test_every_row_is_what_the_shipped_configuration_of_its_size_says(mode):
    """Whatever mode and sigma the rows are planned from."""
    config = configs.load(f'coco:dsrl={mode}')
    for row in TABLE.rows:
        planned = paper_runs.plan(row, TABLE, config)
        size = '{}x{}'.format(*row.input)
        shipped = configs.load(f'coco:size={size},dsrl={row.dsrl}')
        assert planned.data.size == shipped.data.size
        planned_dict, shipped_dict = configs.to_dict(planned), configs.to_dict(shipped)
        for section in ('model', 'sssr', 'pose', 'ce', 'fa', 'optimizer', 'scale', 'epochs'):
            assert planned_dict[section] == shipped_dict[section], (size, section)
        assert '{}x{}'.format(*inference.input_size(planned, configs.eval_size(planned))) == size
        inference.check_size(inference.build_network(planned, 17), planned)


def test_a_sigma_of_ones_own_keeps_its_ratio():
    config = configs.load('coco:size=128x96,dsrl=none', [('pose.sigma', '1.5')])
    base, head, full = TABLE.rows[-3:]
    own = TABLE._replace(unit=(128, 96))  # the sizes of the rows are those of this configuration
    found = [paper_runs.plan(row, own, config).pose.sigma for row in (base, head, full)]
    assert found == [1.5, 1.5 * 2, 1.5 * 2]


def test_sigmas_are_those_in_use():
    sigmas = {24: 1, 32: 1, 40: 1.25, 64: 2, 80: 2.5, 96: 3, 128: 3}
    assert {rows: configs.heatmap_sigma(rows) for rows in sigmas} == sigmas


def test_the_three_rows_of_one_size_are_trained_once_and_read_in_three_ways(record):
    assert [bool(row['ours'].get('scores')) for row in record['rows']] == [True] * 3 + [False] * 6
    for row in record['rows'][:3]:
        found = row['ours']['scores']['val']
        assert tuple(found['decoded']) == DECODES
        assert all(tuple(scores) == tuple(STATISTICS) for scores in found['decoded'].values())
        assert found['people'] == 8 and found['boxes'] == ''
        assert 'decoded quarter | dark | udp' in found['protocol']
    heatmaps = [
        row['ours']['scores']['val']['protocol'].split(', ')[1] for row in record['rows'][:3]
    ]
    assert heatmaps == ['heatmaps 16x8', 'heatmaps 32x16', 'heatmaps 32x16']


@pytest.mark.parametrize('decode', DECODES)
def test_a_reading_is_that_of_an_evaluation(workdir, decode):
    """The results of one pass, and those of an evaluation that decodes by this alone."""
    (folder,) = workdir.glob('runs/*-full-*')
    model, variables, _ = inference.from_workdir(folder)
    config = model.config.copy_and_resolve_references()
    config.pose.decode = decode
    source = data.build(config.data, 'val')
    scores = tasks.pose.evaluate(
        model.network, variables, config, source, sr=False, pictures=folder / decode
    )
    results = [folder / decode / 'results.json', folder / f'results_val_{decode}.json']
    alone, kept = (json.loads(path.read_text()) for path in results)
    assert len(alone) == len(kept) > 0
    for a, b in zip(alone, kept):
        np.testing.assert_allclose(a['keypoints'], b['keypoints'], atol=1e-2)
    result = experiment.read(folder)['scores']['val']
    assert {name: result['decoded'][decode][name] for name in STATISTICS} == pytest.approx(
        {name: scores[name] for name in STATISTICS}, abs=1e-3
    )


def test_the_readings_differ_and_their_confidence_does_not(workdir):
    (folder,) = workdir.glob('runs/*-full-*')
    texts = [(folder / f'results_val_{decode}.json').read_text() for decode in DECODES]
    assert len(set(texts)) == 3
    found = [[e['keypoints'][2::3] for e in json.loads(text)] for text in texts]
    assert found[0] == found[1] == found[2]


def test_the_kept_result_has_the_curve_of_the_task(workdir):
    for folder in workdir.glob('runs/*'):
        result = experiment.read(folder)
        assert [set(point) for point in result['curve']] == [{'step', 'AP', 'minutes'}]
        scores = result['scores']['val']
        assert scores['AP'] == scores['decoded']['quarter']['AP'] == result['curve'][-1]['AP']


def test_what_is_there_is_not_run_again(workdir, record, capsys):
    before = {path: path.stat().st_mtime_ns for path in workdir.glob('runs/*/result.json')}
    assert len(before) == 3
    assert cli.main([*TINY, f'--workdir={workdir}']) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {'written': str(workdir / 'table5.md')}
    assert not any(line.startswith('step ') for line in lines)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((workdir / 'table5.json').read_text()) == record


def test_the_page_of_a_run_says_what_was_scored_and_that_it_proves_nothing(workdir):
    text = (workdir / 'table5.md').read_text()
    rows = [line for line in text.splitlines() if line.startswith('| HRNet-W32 + DSRL | ours, ')]
    assert len(rows) == 3 and all('| ground-truth boxes |' in row for row in rows)
    assert 'Ours: test_table5:Toy in the place of hrnet_w32, data stick_figures' in text
    assert 'proof of the path alone' in text and 'OKS-NMS 0.9' in text


def test_true_costs_are_the_printed_ones_and_the_head_apart(record):
    """A transposed 3x3 convolution, 17 heatmaps to 17, from each of their pixels."""
    assert len(record['rows']) == 9
    for row in record['rows']:
        if row['paper'] is None:
            continue
        macs, head = (row['paper'][name] for name in ('macs', 'head_macs'))
        assert f'{(macs - head) / 2**30:.2f}' == row['paper']['gflops']
        height, width = row['input']
        expected = 0 if row['dsrl'] == 'none' else 9 * 17 * 17 * (height // 4) * (width // 4)
        assert head == expected


def line(dsrl, paper, ours, decoded=DECODES):
    """A row at 128x96 whose AP by decoding is `ours`."""
    one = dict.fromkeys(STATISTICS, 0.5)
    scores = {name: {**one, 'AP': ap, 'AP_L': None} for name, ap in zip(decoded, ours or ())}
    about = {'people': 9, 'images': 4, 'boxes': 'found.json', 'protocol': 'the protocol'}
    cost = {'macs': 3 * 2**30, 'head_macs': 2**29}
    return {
        'title': f'HRNet {dsrl}',
        'dsrl': dsrl,
        'input': [128, 96],
        'paper': paper and {'input': [128, 96], 'scores': paper, 'gflops': '1.78', **cost},
        'ours': {'input': [64, 48], **cost}
        | ({'scores': {'val': about | {'decoded': scores}}} if ours else {}),
        'why': '',
    }


def test_the_page_sets_ours_beside_the_papers_and_says_what_is_left_of_the_gain():
    lines = [
        line('none', {'AP': 64.6}, (0.60, 0.66, 0.65)),
        line('sssr', None, (0.63, 0.67, 0.66)),
        line('full', {'AP': 66.0}, (0.64, 0.665, None)),
        line('full', None, None) | {'input': [64, 64], 'why': 'no time'},
    ]
    page = {'title': 'Table 5', 'measures': list(STATISTICS), 'splits': ['val'], 'data': 'coco'}
    text = pose_table.markdown({**page, 'rows': lines, 'notes': ['one note']})
    rows = [[cell.strip() for cell in row.split('|')[1:-1]] for row in text.splitlines()]
    assert ['HRNet none', 'paper', '128x96', '-', '64.6', *['-'] * 7, ''] in rows
    own = ['60.0', '50.0', '50.0', '50.0', '-', '50.0', '50.0', '50.0', 'boxes of found.json']
    assert ['HRNet none', 'ours, coco val', '64x48', 'quarter', *own] in rows
    gains = [row[2:] for row in rows if row[:2] == ['64x48', 'ours, coco val']]
    assert gains == [
        ['quarter', '60.0', '63.0', '64.0', '+4.0', '+1.0'],
        ['dark', '66.0', '67.0', '66.5', '+0.5', '-0.5'],
        ['udp', '65.0', '66.0', '-', '-', '-'],
    ]
    assert ['128x96', 'paper', '-', '64.6', '-', '66.0', '+1.4', '-'] in rows
    cost = ['2.500', '0.5000', '3.000']
    assert ['HRNet full', '128x96', '1.78', *cost, '64x48', *cost] in rows
    assert ['HRNet sssr', '128x96', *['-'] * 4, '64x48', *cost] in rows
    assert ['HRNet full', 'ours', '64x48', '-', *['-'] * 8, 'not run: no time'] in rows
    assert '* one note' in text and '9 boxes in 4 images, boxes of found.json' in text


STICKS = ['--config=coco:tiny,net=test_table5:Toy', '--config.data.name=stick_figures']


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['table5', '--config=synthetic:tiny'], ['synthetic', 'not for pose', 'table5']),
        (['figure9', '--config=synthetic:tiny'], ['synthetic', 'not for pose', 'figure9']),
        (['table1', *STICKS], ['stick_figures', 'not for segmentation', 'table1']),
        (['figure1', *STICKS], ['stick_figures', 'not for segmentation', 'table2']),
        (['figure6', *STICKS], ['stick_figures', 'not for segmentation', 'figure6']),
        (['table5', '--dataset=camvid'], ['--dataset', "'camvid'", 'coco']),
        (['table2', '--tiny', '--net=enet'], ['--net', "'enet' with table2", 'every row']),
        (['table1', '--dataset=coco'], ['--dataset', "'coco'", 'camvid, synthetic']),
        (['table5', '--tiny', '--net=espnetv2'], ['espnetv2, for segmentation', 'for pose']),
    ],
)
def test_a_table_of_another_task_is_refused_before_anything_is_written(
    words, named, capsys, tmp_path
):
    refused(capsys, ['reproduce', *words, f'--workdir={tmp_path / "w"}'], *named)
    assert not (tmp_path / 'w').exists()


def test_both_runs_of_figure_9_have_the_sigma_of_their_heatmaps(tmp_path, monkeypatch):
    seen = {}

    def keep(config, folder, splits):
        seen[config.model.dsrl] = config.pose.sigma
        return {}

    monkeypatch.setattr(experiment, 'run', keep)
    paper_runs.pair(configs.load('coco:size=128x96,dsrl=full'), tmp_path)
    assert seen == {'none': 1.0, 'full': 2.0}
