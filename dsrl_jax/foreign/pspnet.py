"""Weight names of hszhao/semseg (MIT) and irfanICMLL/structure_knowledge_distillation (BSD-2)."""

from dsrl_jax.foreign.resnet import TORCHVISION
from dsrl_jax.foreign.table import Table

_SEMSEG = Table(
    renames=(
        (r'^encoder\.', ''),
        (r'^stem0\.conv$', 'layer0.0'),
        (r'^stem0\.norm$', 'layer0.1'),
        (r'^stem1\.conv$', 'layer0.3'),
        (r'^stem1\.norm$', 'layer0.4'),
        (r'^stem2\.conv$', 'layer0.6'),
        (r'^stem2\.norm$', 'layer0.7'),
        *TORCHVISION,
        (r'^pyramid\.bin(\d)\.conv$', r'ppm.features.\1.1'),
        (r'^pyramid\.bin(\d)\.norm$', r'ppm.features.\1.2'),
        (r'^head\.', 'cls.'),
        (r'\.bottleneck\.conv$', '.0'),
        (r'\.bottleneck\.norm$', '.1'),
        (r'\.classifier$', '.4'),
    ),
    classes='cls.4.weight',
    backbone='resnet101',
)
_SKD = Table(
    renames=(
        (r'^encoder\.', ''),
        *TORCHVISION,
        (r'^pyramid\.bin(\d)\.conv$', r'pspmodule.stages.\1.1'),
        (r'^pyramid\.bin(\d)\.norm$', r'pspmodule.stages.\1.2'),
        (r'^head\.bottleneck\.conv$', 'pspmodule.bottleneck.0'),
        (r'^head\.bottleneck\.norm$', 'pspmodule.bottleneck.1'),
        (r'^head\.classifier$', 'head'),
        (r'^aux\.bottleneck\.conv$', 'dsn.0'),
        (r'^aux\.bottleneck\.norm$', 'dsn.1'),
        (r'^aux\.classifier$', 'dsn.3'),
    ),
    classes='head.weight',
    backbone='resnet101',
    counters=False,
    preprocessing=('caffe',),
)
RESNET101 = {'semseg': _SEMSEG, 'skd': _SKD}
RESNET18 = {
    'skd': _SKD._replace(backbone='resnet18'),
    'semseg': _SEMSEG._replace(backbone='resnet18'),
}
