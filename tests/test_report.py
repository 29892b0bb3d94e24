import html.parser
import json
import os

import numpy as np
import pytest
from PIL import Image

from dsrl_jax.errors import UserError
from dsrl_jax.records import read_metrics
from dsrl_jax.report.confusion import plot_confusion
from dsrl_jax.report.curves import plot_class_iou, plot_curves
from dsrl_jax.report.html import conclude, write_report
from dsrl_jax.report.overlay import colorize, error_map, grid, legend, overlay, save_png

COLORS = [(10, 20, 30), (200, 0, 0), (0, 0, 0)]


def test_colorize_inverts_to_the_label():
    label = np.random.default_rng(0).integers(0, 3, (9, 7)).astype(np.uint8)
    picture = colorize(label, COLORS)
    assert picture.dtype == np.uint8 and picture.shape == (9, 7, 3)
    assert np.array_equal((picture[:, :, None] == np.array(COLORS)).all(-1).argmax(-1), label)


def test_ignored_pixels_are_hatched_and_unknown_classes_refused():
    picture = colorize(np.full((16, 16), 255, np.uint8), COLORS)
    assert set(np.unique(picture)) == {0, 90}
    with pytest.raises(ValueError, match=r'0\.\.2'):
        colorize(np.array([[3]]), COLORS)
    with pytest.raises(ValueError, match=r'0\.\.2'):
        colorize(np.array([[-1]]), COLORS)


def test_overlay_mixes_by_alpha_and_spares_ignored():
    image = np.full((2, 2, 3), 100, np.uint8)
    label = np.array([[0, 1], [2, 255]], np.uint8)
    assert np.array_equal(overlay(image, label, COLORS, 0.0), image)
    full = overlay(image, label, COLORS, 1.0)
    assert full[0, 1].tolist() == [200, 0, 0] and full[1, 1].tolist() == [100] * 3
    assert overlay(image, label, COLORS, 0.5)[0, 1].tolist() == [150, 50, 50]
    with pytest.raises(ValueError, match='differ'):
        overlay(image, label[:1], COLORS)


def test_error_map_marks_exactly_the_wrong_pixels():
    label = np.array([[0, 1, 255]], np.uint8)
    wrong, right, ignored = error_map(np.array([[1, 1, 1]], np.uint8), label)[0].tolist()
    assert len({tuple(wrong), tuple(right), tuple(ignored)}) == 3
    assert wrong[0] > wrong[1] and np.ptp(ignored) < 20
    label = np.array([[0, 0, 1, 1]], np.uint8)
    border = np.array([[False, True, True, False]])
    colors = error_map(np.array([[0, 0, 0, 0]], np.uint8), label, border)[0].tolist()
    assert len({tuple(color) for color in colors}) == 4
    assert colors[3] == wrong, 'away from borders a mistake looks as ever'


def test_a_confusion_matrix_is_drawn_with_shares_of_each_row(tmp_path):
    counts = np.array([[98, 2, 0], [5, 5, 10], [0, 0, 0]])[:2]
    path = plot_confusion(counts, ['road', 'pole'], tmp_path / 'confusion.png')
    picture = np.asarray(Image.open(path))
    assert picture.shape[2] == 3 and picture.std() > 10
    dark = (picture[..., 0] < 60) & (picture[..., 2] > 80)  # 98 %, in dark blue
    assert 0.005 < dark.mean() < 0.5
    with pytest.raises(ValueError, match='classes'):
        plot_confusion(counts, ['road'], path)


def test_grid_keeps_pictures_of_true_size_and_leaves_gaps_empty():
    noise = np.random.default_rng(1).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    sheet = grid([[noise, None], [noise, noise]], ['one', 'two'], cell_width=40, gap=4)
    assert np.array_equal(sheet[4 + 24 : 4 + 44, 4:44], noise)
    assert (sheet[28:48, 48:88] == 255).all()
    assert (sheet[4:24] < 120).any(), 'captions are drawn'
    assert grid([[noise]], cell_width=80).shape[1] == 96
    with pytest.raises(ValueError, match='at least one'):
        grid([])
    assert legend(['a', 'b', 'c'], COLORS).shape[2] == 3


def test_save_png_is_exact_and_leaves_nothing_beside_it(tmp_path):
    picture = np.random.default_rng(2).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    path = save_png(picture, tmp_path / 'deep' / 'er' / 'a.png')
    assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert os.listdir(path.parent) == ['a.png']
    with pytest.raises(ValueError, match='uint8'):
        save_png(picture.astype(float), path)
    assert os.listdir(path.parent) == ['a.png']


def write_metrics(path, steps=60, gain=0.0):
    rng = np.random.default_rng(3)
    with path.open('w') as file:
        for step in range(1, steps + 1):
            losses = {f'train/{k}': 2 / step**0.5 + 0.1 * rng.random() for k in ('total', 'ce')}
            line = {'step': step, 'train/lr': 0.01 * (1 - step / steps), **losses}
            file.write(json.dumps(line) + '\n')
            if step % 20 == 0:
                scores = {'eval/val/miou': 0.3 + gain + step / 300, 'eval/val/iou': [0.1, 0.2]}
                file.write(json.dumps({'step': step, **scores}) + '\n')
    return path


def test_a_resumed_step_counts_once_and_nothing_to_draw_is_refused(tmp_path):
    path = write_metrics(tmp_path / 'metrics.jsonl')
    plain = plot_curves({'run': read_metrics(path)}, tmp_path / 'plain.png').read_bytes()
    with path.open('a') as file:
        file.write('{"step": 30, "train/total": 77.0}\n{"step": 61, "train/to')
    records = read_metrics(path)
    twice = plot_curves({'run': records}, tmp_path / 'twice.png').read_bytes()
    first = next(n for n, record in enumerate(records) if record['step'] == 30)
    changed = {**records[first], 'train/total': 77.0}
    once = [changed if n == first else record for n, record in enumerate(records[:-1])]
    assert plot_curves({'run': once}, tmp_path / 'once.png').read_bytes() == twice != plain
    with pytest.raises(UserError, match='a: found no curves'):
        plot_curves({'a': [{'step': 1}]}, tmp_path / 'a.png')


def test_curves_hold_a_line_in_the_color_of_each_run(tmp_path):
    runs = {
        k: read_metrics(write_metrics(tmp_path / f'{k}.jsonl', gain=g))
        for k, g in (('base', 0), ('ours', 0.2))
    }
    both = np.asarray(Image.open(plot_curves(runs, tmp_path / 'both.png'))).astype(int)
    one = plot_curves({'base': runs['base']}, tmp_path / 'one.png')
    one = np.asarray(Image.open(one)).astype(int)
    blue, red = np.array((37, 99, 235)), np.array((220, 38, 38))

    def pixels(picture, color):
        return (np.abs(picture - color).max(-1) < 8).sum()

    assert pixels(both, blue) > 100 and pixels(both, red) > 100
    assert pixels(one, blue) > 100 and pixels(one, red) == 0


def test_class_bars_grow_with_the_iou(tmp_path):
    def blue(values):
        path = plot_class_iou({'base': values}, ['road', 'pole', 'sky'], tmp_path / 'bars.png')
        picture = np.asarray(Image.open(path)).astype(int)
        return (np.abs(picture - np.array((37, 99, 235))).max(-1) < 8).sum()

    assert blue([0.9, 0.9, 0.9]) > 1.5 * blue([0.4, 0.4, np.nan]) > 0
    with pytest.raises(ValueError, match='2 values'):
        plot_class_iou({'base': [1, 2]}, ['a', 'b', 'c'], tmp_path / 'bars.png')


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.open, self.sources = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ('src', 'href')]
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


ROWS = [
    {'run': 'base', 'miou': 0.52, 'pixel_accuracy': 0.8, 'params': 789242, 'macs': 3.1e9},
    {'run': 'DSRL <full>', 'miou': 0.561, 'pixel_accuracy': None, 'params': 812000, 'psnr': 24.5},
]


def test_report_is_well_formed_escaped_and_complete(tmp_path):
    picture = np.zeros((8, 16, 3), np.uint8)
    file = save_png(picture, tmp_path / 'curves.png')
    evil = '<script>alert("x & y")</script>'
    path = write_report(
        tmp_path / 'out' / 'report.html',
        title=evil,
        summary_rows=ROWS,
        tables=[
            ('IoU', ['class', 'base', 'ours'], [[evil, 0.5, 0.75], ['sky', float('nan'), 1.0]])
        ],
        figures=[('Curves', file)],
        samples=[{'name': evil, 'pictures': [('input', picture), (evil, picture)]}],
        notes=[evil],
    )
    text = path.read_text()
    page = Page(text)
    assert page.open == [] and 'script' not in page.tags
    assert ''.join(page.words).count(evil) == 6  # title twice, cell, sample, caption, note
    assert page.tags.count('img') == 3
    assert all((path.parent / s).is_file() for s in page.sources)
    assert not any(s.startswith(('http', '/')) for s in page.sources), 'works offline, anywhere'
    words = ' '.join(page.words)
    for expected in ('52.0 %', '56.1 %', '789 k', '3.1 G', '24.5', '0.75'):
        assert expected in words
    assert sorted(p.name for p in path.parent.iterdir()) == ['report.html', 'report_files']


def test_a_second_report_leaves_no_picture_of_the_first(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    for count in (3, 1):
        figures = [(f'figure {i}', picture) for i in range(count)]
        write_report(tmp_path / 'r.html', title='t', summary_rows=[], figures=figures)
    assert [p.name for p in (tmp_path / 'r_files').iterdir()] == ['001.png']


def test_conclusion_follows_the_numbers():
    def rows(a, b, **more):
        return [{'run': 'base', 'miou': a, **more}, {'run': 'ours', 'miou': b, **more}]

    assert 'ours is ahead of base by 4.1 points' in conclude(rows(0.52, 0.561))
    assert 'base is ahead of ours by 4.1 points' in conclude(rows(0.561, 0.52))
    assert 'seeds may account' in conclude(rows(0.52, 0.561))
    assert 'level' in conclude(rows(0.52, 0.5201))
    assert 'level' in conclude(rows(0.52, 0.561, miou_spread=0.05))
    assert 'by 4.1 points' in conclude(rows(0.52, 0.561, miou_spread=0.01))
    assert 'nothing to compare' in conclude(rows(0.5, None))
    assert 'No run' in conclude([])
