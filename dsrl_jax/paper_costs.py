"""The GFLOPs printed in the paper (Tables 2 to 5) beside our own counts, row by row.

The tables mix conventions, and several rows seem quoted from the paper's reference [20], Liu et
al., Structured Knowledge Distillation, CVPR 2019.  Each row here names the convention, the size
and the definition of the network whose count comes nearest.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsrl_jax import costs, models
from dsrl_jax.errors import UserError, nearest, one_of


class Convention(NamedTuple):
    """How a figure comes out of `costs.Operations`, in words and as a function to units of 1e9.

    `sound` False: no one counts like this, so that even an equal figure reproduces nothing.
    """

    words: str
    giga: Callable[[costs.Operations], float]
    sound: bool = True


CONVENTIONS = {
    '2 MAC + bias': Convention(
        '2 per Conv2d MAC, 1 per output with a bias', lambda n: (2 * n.conv2d + n.biases) / 1e9
    ),
    '2 MAC': Convention('2 per Conv2d MAC', lambda n: 2 * n.conv2d / 1e9),
    '2 MAC, transposed too': Convention(
        '2 per MAC of Conv2d and transposed convolutions', lambda n: 2 * n.macs / 1e9
    ),
    'MAC': Convention('1 per Conv2d MAC', lambda n: n.conv2d / 1e9),
    'MAC + bias': Convention(
        '1 per Conv2d MAC and per output with a bias', lambda n: (n.conv2d + n.biases) / 1e9
    ),
    'MAC + norm': Convention(
        '1 per Conv2d MAC and per element of a batch norm', lambda n: (n.conv2d + n.norms) / 1e9
    ),
    'MAC / 2^30': Convention('1 per Conv2d MAC, giga = 2^30', lambda n: n.conv2d / 2**30),
    'MAC / 2': Convention(
        'half of the Conv2d MACs, which nobody counts', lambda n: n.conv2d / 2e9, sound=False
    ),
}


class Count(NamedTuple):
    """How a figure was counted: `times` the `convention` of the network `net` at `size`.

    `size` None is the size in the table.  `every_output`: with the auxiliary classifiers, as the
    original always runs them.
    """

    net: str
    convention: str
    classes: int = 19
    options: Mapping[str, object] = {}
    size: tuple[int, int] | None = None
    times: float = 1
    every_output: bool = False


class Scales(NamedTuple):
    """How a multi-scale figure was got: the printed single-scale one times the scales' areas."""

    net: str
    single: str
    scales: tuple[float, ...]

    @property
    def times(self) -> float:
        """The sum of the squared scales."""
        return sum(scale**2 for scale in self.scales)


class Row(NamedTuple):
    """One figure of the paper, its digits as they stand, at the input size of the table.

    `head`: the same figure is printed for the network with DSRL, whose head is counted apart here.
    """

    table: int
    network: str
    input: tuple[int, int]
    printed: str
    source: Count | Scales
    note: str = ''
    head: bool = False


VERDICTS = ('exact', 'within 0.2 %', 'not reproduced')

_HALF, _FULL, _CAMVID = (512, 1024), (1024, 2048), (368, 480)
_ESPNETV2 = Count('espnetv2', '2 MAC + bias', 20)
_DEEPLAB = Count(
    'deeplabv3plus_resnet101', '2 MAC', options={'variant': 'vainf', 'output_stride': 8}
)
_BISENET = Count('bisenet_resnet18', '2 MAC')
_PSPNET = Count('pspnet_resnet101', 'MAC / 2', options={'variant': 'skd'}, every_output=True)
_PSPNET18 = Count('pspnet_resnet18', 'MAC', size=_HALF, times=4, every_output=True)
_HRNET = Count('hrnet_w32', 'MAC / 2^30', 17)

ROWS = (
    Row(2, 'ESPNetv2', (256, 512), '1.35', _ESPNETV2),
    Row(2, 'ESPNetv2', (320, 640), '2.11', _ESPNETV2),
    Row(2, 'ESPNetv2', (384, 768), '3.04', _ESPNETV2),
    Row(2, 'ESPNetv2', (448, 896), '4.13', _ESPNETV2),
    Row(2, 'ESPNetv2', _HALF, '5.40', _ESPNETV2),
    Row(2, 'DeepLabv3+', (256, 512), '243.57', _DEEPLAB),
    Row(2, 'DeepLabv3+', (320, 640), '380.58', _DEEPLAB),
    Row(
        2,
        'DeepLabv3+',
        (384, 768),
        '548.06',
        _DEEPLAB,
        'misprint: the other four are proportional to the area, which gives 548.04',
    ),
    Row(2, 'DeepLabv3+', (448, 896), '745.94', _DEEPLAB),
    Row(2, 'DeepLabv3+', _HALF, '974.30', _DEEPLAB),
    Row(3, 'ENet', _HALF, '7.24', Count('enet', '2 MAC')),
    Row(3, 'ESPNet', _HALF, '8.86', Count('espnet', '2 MAC')),
    Row(3, 'ERFNet', _HALF, '25.60', Count('erfnet', 'MAC + norm')),
    Row(
        3, 'FCN', _FULL, '1335.60', Count('fcn8s', 'MAC', size=_HALF, times=4), '4 x 333.9 of [20]'
    ),
    Row(
        3,
        'RefineNet',
        _FULL,
        '2102.80',
        Count('refinenet_resnet101', 'MAC + bias', size=_HALF, times=4),
        '4 x 525.7 of [20]',
    ),
    Row(
        3,
        'PSPNet (ResNet18, 0.5)',
        _FULL,
        '133.40',
        _PSPNET18._replace(options={'width': 0.5}),
        '4 x 33.35 of [20]; no code of this width is public',
    ),
    Row(3, 'PSPNet (ResNet18, 1.0)', _FULL, '512.80', _PSPNET18, '4 x 128.2 of [20]'),
    Row(
        3,
        'PSPNet (ResNet101)',
        _HALF,
        '287.48',
        _PSPNET,
        'nearest at 2 per MAC: output stride 16, by formula 284.74',
    ),
    Row(
        3,
        'PSPNet (ResNet101), 6 scales',
        _HALF,
        '3575.54',
        Scales(_PSPNET.net, '287.48', (0.75, 1, 1.25, 1.5, 1.75, 2)),
        'single scale not reproduced',
    ),
    Row(3, 'DeepLabv3+', _HALF, '974.30', _DEEPLAB),
    Row(
        3,
        'DeepLabv3+, 6 scales',
        _HALF,
        '8464.23',
        Scales(_DEEPLAB.net, '974.30', (0.5, 0.75, 1, 1.25, 1.5, 1.75)),
        'single scale not reproduced',
    ),
    Row(3, 'BiSeNet', _HALF, '49.20', _BISENET, 'no public definition comes nearer than 3 %'),
    Row(3, 'DABNet', _HALF, '20.44', Count('dabnet', '2 MAC')),
    Row(3, 'ESPNetv2', _HALF, '5.40', _ESPNETV2),
    Row(4, 'ENet', _CAMVID, '3.61', Count('enet', 'MAC', size=_HALF), 'a figure of Cityscapes'),
    Row(
        4,
        'ESPNet',
        _CAMVID,
        '3.09',
        Count('espnet', '2 MAC, transposed too', size=(360, 480)),
        'the size its authors used',
    ),
    Row(
        4,
        'ESPNet-C',
        _CAMVID,
        '3.09',
        Count('espnet_c', '2 MAC', 20),
        'the paper gives it the figure of ESPNet, which holds more layers',
    ),
    Row(
        4,
        'BiSeNet',
        _CAMVID,
        '4.14',
        _BISENET._replace(size=(184, 240)),
        'its 49.20 scaled by the area of half this size',
    ),
    Row(4, 'DeepLabv3+', _CAMVID, '326.13', _DEEPLAB),
    Row(4, 'ESPNetv2', _CAMVID, '1.82', _ESPNETV2),
    Row(5, 'HRNet-W32', (256, 192), '7.12', _HRNET, head=True),
    Row(5, 'HRNet-W32', (160, 128), '2.97', _HRNET, head=True),
    Row(5, 'HRNet-W32', (128, 96), '1.78', _HRNET, head=True),
)


def compare(net: str | None = None) -> list[dict]:
    """Every row of the paper, or those of the network `net`, with our figure and the verdict.

    `verdict` is one of VERDICTS, exact meaning the printed digits; `ratio` the printed figure over
    ours; `head` what the authors' head adds to ours, None where it is not counted.  Raises
    UserError for a network of which the paper prints no GFLOPs.
    """
    known = dict.fromkeys(row.source.net for row in ROWS)
    if net is not None and net not in known:
        raise UserError('--net', repr(net), one_of(known), nearest(net, known))
    return [check(row) for row in ROWS if net in (None, row.source.net)]


def check(row: Row) -> dict:
    """One row with our figure: a dict that JSON can hold."""
    source, paper, head = row.source, float(row.printed), None
    if isinstance(source, Scales):
        once, sound = float(source.single), True
        words = f'the single-scale {source.single} x {source.times:g}: scales '
        words += ', '.join(f'{scale:g}' for scale in source.scales) + ', no flip'
    else:
        convention = CONVENTIONS[source.convention]
        found, sound, words = (
            _operations(source, row.input, row.head),
            convention.sound,
            _words(source),
        )
        once = convention.giga(found['network'])
        if row.head:  # its transposed convolutions are counted as the others
            head = convention.giga(costs.Operations(conv2d=found['sssr'].macs))
    return {
        'table': row.table,
        'network': row.network,
        'net': source.net,
        'input': list(row.input),
        'paper': paper,
        'ours': once * source.times,
        'ratio': paper / (once * source.times),
        'verdict': _verdict(row, once) if sound else VERDICTS[-1],
        'head': head,
        'convention': words,
        'note': row.note,
    }


def _verdict(row, once):
    # A product was printed from a rounded factor: its digits are checked in the factor's place.
    printed, digits = float(row.printed) / row.source.times, len(row.printed.partition('.')[2])
    if round(printed, digits) == round(once, digits):
        return VERDICTS[0]
    return VERDICTS[1 if round(100 * abs(printed / once - 1), 1) <= 0.2 else 2]


def _words(source):
    words = [
        CONVENTIONS[source.convention].words,
        f'{source.classes} outputs',
        *(f'{name} {value}' for name, value in source.options.items()),
        *(['with its auxiliary head'] if source.every_output else []),
    ]
    if source.size:
        times = f' x {source.times}' if source.times > 1 else ''
        words.append('at {}x{}'.format(*source.size) + times)
    return ', '.join(words)


def _operations(source, size, head):
    options = tuple(source.options.items())
    every, size = source.every_output, source.size or size
    return _count(source.net, source.classes, options, size, every, head)


@functools.cache
def _count(net, classes, options, size, every_output, head):
    """Operations by branch; tables share networks and sizes: each is traced once."""
    model, variables = _network(net, classes, options, head)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return costs.operations_by_branch(costs.forward(model, every_output), variables, image)


@functools.cache
def _network(net, classes, options, head):
    """The plain network; with the authors' head, which reads its scores, around it."""
    built = {'dsrl': 'sssr', 'sssr': {'head': 'official_deconv'}, 'scale': 2} if head else {}
    model = models.create(net, num_classes=classes, conv_impl='lax', **built, **dict(options))
    return model, costs.variable_shapes(model, (256, 256))  # they do not depend on the size
