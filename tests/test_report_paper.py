"""Tables and figures of the paper drawn from results: text, colours, pictures."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from dsrl_jax import config as configs
from dsrl_jax import inference, metrics, paper_figures, paper_runs
from dsrl_jax.errors import UserError
from dsrl_jax.ops import resize
from dsrl_jax.photographs import photographs
from dsrl_jax.report import paper

TOY = 'synthetic:tiny,net=toy_network:Toy'


def line(title, dsrl, *, val=None, ours=None, gflops='1.35', macs=2.0e9, paper_row=True, why=''):
    scores = {} if val is None else {'val': val}
    printed = {'input': [256, 512], 'scores': scores, 'gflops': gflops}
    printed |= {'macs': macs, 'head_macs': macs / 4 if dsrl != 'none' else 0}
    own = {'input': [64, 128], 'macs': 5e8, 'head_macs': 1e8}
    own |= {'scores': {'test': ours}} if ours is not None else {}
    return {
        'title': title,
        'network': 'ESPNetv2',
        'dsrl': dsrl,
        'paper': printed if paper_row else None,
        'ours': own,
        'why': why,
    }


RECORD = {
    'name': 'table2',
    'title': 'Table 2',
    'task': 'segmentation',
    'measures': ['val'],
    'splits': ['test'],
    'data': 'camvid',
    'notes': ['one note'],
    'rows': [
        line('ESPNetv2', 'none', val=54.5, ours=0.4321),
        line('ESPNetv2, labels of full size', 'none', ours=0.45, paper_row=False),
        line('ESPNetv2 + DSRL', 'full', val=59.5, ours=0.4444, macs=4.0e9),
        line('ESPNetv2 + DSRL', 'full', gflops=None, why='built and counted only'),
    ],
}


def test_a_table_says_what_is_printed_what_is_ours_and_what_is_missing(tmp_path):
    path = paper.write(RECORD, tmp_path / 'out')
    rows = [
        [cell.strip() for cell in text.split('|')[1:-1]]
        for text in path.read_text().splitlines()
        if text.startswith('|')
    ]
    assert len({len(row) for row in rows}) == 1
    base, reference, full, missing = rows[2:]
    costs = ['2 (0)', '64x128', '43.2', '0.5 (0.1)', '']
    assert base == ['ESPNetv2', '256x512', '54.5', '1.35', *costs]
    assert reference[1:5] == ['-'] * 4 and reference[6] == '45.0'
    assert full[2] == '59.5' and full[4] == '4 (1)' and full[6] == '44.4'
    assert missing[2:4] == ['not at hand'] * 2 and missing[6] == 'not run'
    assert missing[8] == 'not run: built and counted only'
    assert '* one note' in path.read_text()
    assert json.loads((tmp_path / 'out' / 'table2.json').read_text()) == RECORD
    assert sorted(p.name for p in path.parent.iterdir()) == ['table2.json', 'table2.md']


def test_figure_1_puts_points_at_their_true_cost(tmp_path):
    panels = paper.cost_series(RECORD)
    printed, ours = ({label: at for label, _, at in rows} for rows in panels.values())
    assert printed == {
        'ESPNetv2 base': [(2.0, 54.5)],
        'ESPNetv2 DSRL': [(4.0, 59.5)],
        'ESPNetv2 DSRL, as printed': [(0.675, 59.5)],
    }
    assert {label: pts[0][1] for label, pts in ours.items()} == pytest.approx(
        {'ESPNetv2 base': 43.21, 'ESPNetv2 plain, labels of full size': 45, 'ESPNetv2 DSRL': 44.44}
    )
    picture = np.asarray(Image.open(paper.plot_cost(RECORD, tmp_path / 'figure1.png'))).astype(int)
    for color in ((71, 85, 105), (37, 99, 235), (220, 38, 38)):
        assert (np.abs(picture - color).max(-1) < 8).sum() > 20


def test_components_become_colours_whatever_the_order_of_channels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 9, 5)) * (9, 5, 3, 0.5, 0.1) @ rng.normal(size=(5, 5))
    picture = paper.rgb(x)
    assert picture.dtype == np.uint8 and picture.shape == (6, 9, 3)
    assert picture.min() == 0 and picture.max() == 255
    assert np.array_equal(paper.rgb(x[..., [3, 0, 4, 2, 1]]), picture)
    assert np.array_equal(paper.rgb(-7 * x + 3), picture), 'sign, scale and offset do not matter'
    first = picture[..., 0].astype(float) - 128
    direction = np.linalg.eigh(np.cov(x.reshape(-1, 5).T))[1][:, -1]
    score = ((x - x.mean((0, 1))) @ direction).ravel()
    assert abs(np.corrcoef(first.ravel(), score)[0, 1]) > 0.99


def test_maps_without_variance_are_grey_and_few_channels_suffice():
    assert set(np.unique(paper.rgb(np.full((4, 5, 8), 3.7)))) == {128}
    one = paper.rgb(np.arange(12.0).reshape(3, 4, 1))
    assert np.ptp(one[..., 0]) == 255 and set(np.unique(one[..., 1:])) == {128}
    lone = np.zeros((20, 20, 2))
    lone[3, 4, 0] = 1  # one pixel in four hundred
    assert paper.rgb(lone)[3, 4, 0] == 255 and paper.rgb(lone)[0, 0, 0] == 0
    assert paper.rgb(np.zeros((1, 1, 4), np.float16)).shape == (1, 1, 3)


@pytest.fixture(scope='module')
def config():
    return configs.load(TOY)


@pytest.fixture(scope='module')
def runs(config, tmp_path_factory):
    return paper_runs.pair(config, tmp_path_factory.mktemp('paper'))


def test_both_runs_of_the_figures_learn_full_size_labels(runs):
    loaded = [configs.load_json(folder / 'config.json') for folder in runs.values()]
    assert [(c.model.dsrl, c.ce.labels) for c in loaded] == [('none', 'target'), ('full', 'target')]


@pytest.mark.parametrize('name', [n for n in paper_figures.FIGURES if n != 'figure9'])
def test_every_figure_is_written_and_none_is_blank(name, runs, config, tmp_path):
    path = paper_figures.figure(name, runs, config, tmp_path)
    picture = np.asarray(Image.open(path)).astype(int)
    assert path.name == f'{name}.png' and picture.shape[2] == 3
    width = 320 + 8
    for column in range(picture.shape[1] // width):
        cell = picture[:, 8 + column * width : column * width + width]
        assert cell.std() > 5, f'column {column}'


def test_figures_need_the_branch_they_show_and_poses_are_refused(runs, config, tmp_path):
    plain = {'plain': runs['plain network']}
    with pytest.raises(UserError, match="found dsrl 'none'; expected full"):
        paper_figures.figure('figure3', plain, config, tmp_path)
    with pytest.raises(UserError, match='sssr'):
        paper_figures.figure('figure8', plain, config, tmp_path)
    with pytest.raises(UserError, match='figure9, the data set synthetic: found one for segm'):
        paper_figures.figure('figure9', runs, config, tmp_path)
    with pytest.raises(UserError, match='figure4'):
        paper_figures.figure('figure4', runs, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_photographs_are_scored_beside_bicubic_as_by_hand(runs, tmp_path):
    model, variables, _ = inference.from_workdir(runs['DSRL'])
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (2, 6, 8, 3), np.uint8)
    pictures = [np.asarray(Image.fromarray(x).resize((61, 50), 3)) for x in coarse]
    for place, found in (('a', pictures[:1]), ('b', pictures)):
        (tmp_path / place).mkdir()
        for n, picture in enumerate(found):
            Image.fromarray(picture).save(tmp_path / place / f'{n}.png')
    (tmp_path / 'empty').mkdir()
    first, both = photographs(model, variables, tmp_path)
    assert (first['set'], first['images'], both['set'], both['images']) == ('a', 1, 'b', 2)

    views = np.stack(pictures)[:, :48, :48] / 255.0  # multiples of 16
    small = resize.shrink(views.astype(np.float32), 2)
    large = np.clip(np.asarray(metrics.bicubic(small, 2)), 0, 1)
    decibels = -10 * np.log10(((large - views) ** 2).mean((1, 2, 3)))
    assert first['bicubic_psnr'] == pytest.approx(decibels[0], abs=1e-3)
    assert both['bicubic_psnr'] == pytest.approx(decibels.mean(), abs=1e-3)
    ssim = np.asarray(metrics.ssim(large, views.astype(np.float32)))
    assert both['bicubic_ssim'] == pytest.approx(ssim.mean(), abs=1e-4)

    image = resize.normalise(255 * small, model.config.data)
    sr = jax.jit(lambda v, x: model.network.apply(v, x, sr=True)['sr'])(variables, image[:1])
    sr = np.asarray(resize.denormalise(sr, resize.SR_COLOR))[0]
    assert first['psnr'] == pytest.approx(-10 * np.log10(((sr - views[0]) ** 2).mean()), abs=1e-3)

    text = paper.photograph_table([first, both]).splitlines()
    assert len(text) == 4 and f'{both["bicubic_psnr"]:.2f}' in text[3]


def test_photographs_refuse_what_they_cannot_score(runs, tmp_path):
    model, variables, _ = inference.from_workdir(runs['DSRL'])
    with pytest.raises(UserError, match='no such folder'):
        photographs(model, variables, tmp_path / 'missing')
    with pytest.raises(UserError, match='no picture'):
        photographs(model, variables, tmp_path)
    Image.new('RGB', (40, 12)).save(tmp_path / 'flat.png')
    with pytest.raises(UserError, match=r'flat\.png: found a picture of 12x40'):
        photographs(model, variables, tmp_path)
    with pytest.raises(UserError, match='without SR branch'):
        photographs(model, {'params': {}}, tmp_path)
