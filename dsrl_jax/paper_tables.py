"""What the paper prints in Tables 1 to 5 (Wang et al., CVPR 2020), as data.

Figures only: labels, input sizes, scores in percent, GFLOPs. None is a figure not at hand; a guess
is never put in its place. Some rows are ours alone, without which the paper's gain cannot be
judged: the plain network trained on full-size labels (`FULL_SIZE`), and for poses the head without
the other parts of DSRL.
"""

from collections.abc import Mapping
from typing import NamedTuple

from dsrl_jax import paper_costs
from dsrl_jax.paper_costs import Count

FULL_SIZE = 'labels of full size'


class Row(NamedTuple):
    """One line of a table; `scores` lacks what is not at hand.

    `dsrl` is the mode (config.DSRL_MODES), `labels` what the row is trained on (ce.labels: the
    paper's base learns labels of the input's size). `gflops` are the digits as they stand. `count`
    says which network it is here; `times`: its multiply-adds are that many times one pass at
    `input` (tests at several scales). `ours_alone`: the paper does not have this row.
    """

    network: str
    input: tuple[int, int]
    dsrl: str
    labels: str
    scores: Mapping[str, float]
    gflops: str | None
    count: Count
    times: float = 1
    ours_alone: bool = False

    @property
    def title(self) -> str:
        """The label of the row, in the words of the paper's tables."""
        parts = {'sssr': ' + SSSR', 'sssr+sisr': ' + SSSR + SISR', 'full': ' + DSRL'}
        own = f', {FULL_SIZE}' if self.ours_alone and self.dsrl == 'none' else ''
        return self.network + parts.get(self.dsrl, '') + own


class Table(NamedTuple):
    """A table: its title, the scores it prints, the input that our data's input stands for.

    `task` is what its data are for.
    """

    title: str
    measures: tuple[str, ...]
    unit: tuple[int, int]
    rows: tuple[Row, ...]
    task: str = 'segmentation'

    @property
    def net(self) -> str | None:
        """The network of all rows, or None where they have several."""
        nets = {row.count.net for row in self.rows}
        return nets.pop() if len(nets) == 1 else None


_SMALL, _HALF, _FULL, _CAMVID = (256, 512), (512, 1024), (1024, 2048), (368, 480)
_MODES = ('none', 'sssr', 'sssr+sisr', 'full')
_POSES = ('AP', 'AP50', 'AP75', 'AP_M', 'AP_L', 'AR', 'AR50', 'AR75')


def _rows(table, network, input, base=None, dsrl=None) -> list[Row]:
    """A network's lines at one size, GFLOPs and definition from paper_costs.

    `base` and `dsrl` are the scores of both; dsrl None: the table has no such row.
    """
    printed = next(
        row
        for row in paper_costs.ROWS
        if (row.table, row.network, row.input) == (table, network, input)
    )
    count, times = printed.source, 1.0
    if isinstance(count, paper_costs.Scales):
        single = network.partition(',')[0]
        (once,) = _rows(table, single, input)[:1]
        count, times = once.count, count.times
    plain = Row(network, input, 'none', 'input', base or {}, printed.printed, count, times)
    if dsrl is None:
        return [plain]
    full = plain._replace(dsrl='full', labels='target', scores=dsrl)
    own = {'scores': {}, 'gflops': None, 'ours_alone': True}
    if table == 5:  # there are no labels of two sizes
        return [plain._replace(labels='target'), full._replace(dsrl='sssr', **own), full]
    return [plain, plain._replace(labels='target', **own), full]


def _parts(network, scores) -> list[Row]:
    """Table 1: a network with more and more of DSRL; its GFLOPs are not at hand."""
    count = _rows(2, network, _SMALL)[0].count
    rows = []
    for mode in _MODES:
        found = {'val': scores[mode]} if mode in scores else {}
        labels = 'input' if mode == 'none' else 'target'
        rows.append(Row(network, _SMALL, mode, labels, found, None, count))
        if mode == 'none':
            rows.append(rows[0]._replace(labels='target', scores={}, ours_alone=True))
    return rows


TABLES = {
    'table1': Table(
        'Table 1: the parts of DSRL (paper: Cityscapes val)',
        ('val',),
        _SMALL,
        (
            *_parts('ESPNetv2', {'none': 54.5, 'full': 59.5}),  # the parts alone: not at hand
            *_parts('DeepLabv3+', {}),  # not at hand
        ),
    ),
    'table2': Table(
        'Table 2: input sizes (paper: Cityscapes val)',
        ('val',),
        _HALF,
        (
            *_rows(2, 'ESPNetv2', _SMALL, {'val': 54.5}, {'val': 59.5}),
            *_rows(2, 'ESPNetv2', (320, 640), {'val': 57.1}, {'val': 61.9}),
            *_rows(2, 'ESPNetv2', (384, 768), {'val': 61.4}, {}),  # with DSRL: not at hand
            *_rows(2, 'ESPNetv2', (448, 896), {}, {}),  # not at hand
            *_rows(2, 'ESPNetv2', _HALF, {'val': 64.5}, {'val': 66.9}),
            *_rows(2, 'DeepLabv3+', _SMALL, {}, {}),  # DeepLabv3+: not at hand
            *_rows(2, 'DeepLabv3+', (320, 640), {}, {}),
            *_rows(2, 'DeepLabv3+', (384, 768), {}, {}),
            *_rows(2, 'DeepLabv3+', (448, 896), {}, {}),
            *_rows(2, 'DeepLabv3+', _HALF, {}, {}),
        ),
    ),
    'table3': Table(
        'Table 3: other networks (paper: Cityscapes val and test)',
        ('val', 'test'),
        _HALF,
        (
            *_rows(3, 'ENet', _HALF, {'test': 58.3}),
            *_rows(3, 'ESPNet', _HALF),  # not at hand
            *_rows(3, 'ERFNet', _HALF),  # not at hand
            *_rows(3, 'FCN', _FULL, {'test': 65.3}),
            *_rows(3, 'RefineNet', _FULL, {'test': 73.6}),
            # Two figures are at hand, 54.1 and 60.5, without and with distillation: not which.
            *_rows(3, 'PSPNet (ResNet18, 0.5)', _FULL),
            *_rows(3, 'PSPNet (ResNet18, 1.0)', _FULL, {'val': 67.6, 'test': 71.4}),
            *_rows(3, 'PSPNet (ResNet101)', _HALF, {}, {}),  # not at hand
            *_rows(3, 'PSPNet (ResNet101), 6 scales', _HALF),  # not at hand
            *_rows(3, 'DeepLabv3+', _HALF, {}, {}),  # not at hand
            *_rows(3, 'DeepLabv3+, 6 scales', _HALF),  # not at hand
            *_rows(3, 'BiSeNet', _HALF, {}, {}),  # not at hand
            *_rows(3, 'DABNet', _HALF, {'val': 62.6, 'test': 65.0}, {}),  # with DSRL: not at hand
            *_rows(3, 'ESPNetv2', _HALF, {'val': 64.5}, {'val': 66.9}),  # test: not at hand
        ),
    ),
    'table4': Table(
        'Table 4: CamVid (paper: test, 11 classes)',
        ('test',),
        _CAMVID,
        (
            *_rows(4, 'ENet', _CAMVID, {'test': 51.3}),
            *_rows(4, 'ESPNet', _CAMVID),  # the others: not at hand
            *_rows(4, 'ESPNet-C', _CAMVID),
            *_rows(4, 'BiSeNet', _CAMVID, {}, {}),
            *_rows(4, 'DeepLabv3+', _CAMVID, {}, {}),
            *_rows(4, 'ESPNetv2', _CAMVID, {}, {}),
        ),
    ),
    'table5': Table(
        'Table 5: human poses (paper: COCO val2017)',
        _POSES,
        (256, 192),
        (
            *_rows(
                5,
                'HRNet-W32',
                (256, 192),
                dict(zip(_POSES, (74.4, 90.5, 81.9, 70.8, 81.0, 79.8, 94.2))),
                {'AP': 75.6, 'AP50': 92.2, 'AR50': 93.8},  # the others: not at hand
            ),
            *_rows(5, 'HRNet-W32', (160, 128), {}, {}),  # not at hand
            *_rows(5, 'HRNet-W32', (128, 96), {'AP': 64.6}, {}),
        ),
        'pose',
    ),
}
