"""Weight names of DeepLabv3+ in jfzhang95/pytorch-deeplab-xception and VainF/DeepLabV3Plus-Pytorch.

Both are MIT.  The network on EfficientNet-Lite0 has no public weights: its decoder keeps our names.
"""

from dsrl_jax.foreign import efficientnet_lite
from dsrl_jax.foreign.resnet import TORCHVISION
from dsrl_jax.foreign.table import Table

_JFZHANG95 = (
    *((rf'^decoder\.aspp\.branch{i}\.', f'aspp.aspp{i + 1}.') for i in range(4)),
    (r'^(aspp\.aspp\d)\.conv$', r'\1.atrous_conv'),
    (r'^(aspp\.aspp\d)\.norm$', r'\1.bn'),
    (r'^decoder\.aspp\.image\.conv$', 'aspp.global_avg_pool.1'),
    (r'^decoder\.aspp\.image\.norm$', 'aspp.global_avg_pool.2'),
    (r'^decoder\.aspp\.project\.conv$', 'aspp.conv1'),
    (r'^decoder\.aspp\.project\.norm$', 'aspp.bn1'),
    (r'^decoder\.low\.conv$', 'decoder.conv1'),
    (r'^decoder\.low\.norm$', 'decoder.bn1'),
    (r'^decoder\.fuse0\.conv$', 'decoder.last_conv.0'),
    (r'^decoder\.fuse0\.norm$', 'decoder.last_conv.1'),
    (r'^decoder\.fuse1\.conv$', 'decoder.last_conv.4'),
    (r'^decoder\.fuse1\.norm$', 'decoder.last_conv.5'),
    (r'^decoder\.classifier$', 'decoder.last_conv.8'),
)
_VAINF = (
    (r'^decoder\.classifier$', 'classifier.classifier.3'),
    (r'^decoder\.aspp\.image\.conv$', 'classifier.aspp.convs.4.1'),
    (r'^decoder\.aspp\.image\.norm$', 'classifier.aspp.convs.4.2'),
    (r'^decoder\.aspp\.branch(\d)\.', r'classifier.aspp.convs.\1.'),
    (r'^decoder\.aspp\.project\.', 'classifier.aspp.project.'),
    (r'^decoder\.low\.', 'classifier.project.'),
    (r'^decoder\.fuse0\.', 'classifier.classifier.'),
    (r'^(classifier\..*)\.conv$', r'\1.0'),
    (r'^(classifier\..*)\.norm$', r'\1.1'),
)
RESNET101 = {
    'jfzhang95': Table(
        renames=((r'^encoder\.', 'backbone.'), *TORCHVISION, *_JFZHANG95),
        classes='decoder.last_conv.8.weight',
        backbone='resnet101',
    ),
    'vainf': Table(
        renames=((r'^encoder\.', 'backbone.'), *TORCHVISION, *_VAINF),
        classes='classifier.classifier.3.weight',
        backbone='resnet101',
    ),
}
EFFICIENTNET_LITE0 = {
    '': Table(
        renames=((r'^encoder\.', 'backbone.'), *efficientnet_lite.ENCODER),
        classes='decoder.classifier.weight',
        backbone='efficientnet_lite0',
        preprocessing=('tensorflow_lite',),
    )
}
