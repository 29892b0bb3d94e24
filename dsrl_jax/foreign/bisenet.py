"""Weight names of BiSeNet in ycszen/TorchSeg, CoinCheung/BiSeNet (MIT) and ooooverflow/BiSeNet.

The last one's own files list the ResNet a second time, under context_path.features; its attention
modules hold a norm that it never calls.
"""

from dsrl_jax.foreign.resnet import TORCHVISION
from dsrl_jax.foreign.table import Table

_TORCHSEG = (
    (r'^encoder\.', 'context_path.'),
    *TORCHVISION,
    (r'^decoder\.', ''),
    (r'\.step0\.', '.conv_7x7.'),
    (r'\.step([12])\.', r'.conv_3x3_\1.'),
    (r'\.step3\.', '.conv_1x1.'),
    (r'^global_context\.', 'global_context.1.'),
    (r'^arm32\.', 'arms.0.'),
    (r'^arm16\.', 'arms.1.'),
    (r'\.gate\.', '.channel_attention.1.'),
    (r'^refine32\.', 'refines.0.'),
    (r'^refine16\.', 'refines.1.'),
    (r'\.fuse\.', '.conv_1x1.'),
    (r'\.squeeze$', '.channel_attention.1.conv'),
    (r'\.excite$', '.channel_attention.2.conv'),
    (r'^aux16\.', 'heads.0.'),
    (r'^aux8\.', 'heads.1.'),
    (r'^head\.', 'heads.2.'),
    (r'\.mix\.', '.conv_3x3.'),
    (r'\.classifier$', '.conv_1x1'),
    (r'\.norm$', '.bn'),
)
_COINCHEUNG = (
    (r'^encoder\.', 'cp.resnet.'),
    *TORCHVISION,
    (r'^decoder\.(arm)', r'cp.\1'),
    (r'^decoder\.refine', 'cp.conv_head'),
    (r'^decoder\.global_context', 'cp.conv_avg'),
    (r'^decoder\.(head|aux)', 'conv_out'),
    (r'^decoder\.', ''),
    (r'^spatial_path\.step3\.', 'sp.conv_out.'),
    (r'^spatial_path\.step0\.', 'sp.conv1.'),
    (r'^spatial_path\.step1\.', 'sp.conv2.'),
    (r'^spatial_path\.step2\.', 'sp.conv3.'),
    (r'^ffm\.gate\.conv$', 'ffm.conv'),
    (r'^ffm\.gate\.norm$', 'ffm.bn'),
    (r'\.fuse\.', '.convblk.'),
    (r'\.gate\.conv$', '.conv_atten'),
    (r'\.gate\.norm$', '.bn_atten'),
    (r'\.mix\.', '.conv.'),
    (r'\.classifier$', '.conv_out'),
    (r'\.norm$', '.bn'),
)
_OOOOVERFLOW = (
    (r'^encoder\.', 'context_path.'),
    *TORCHVISION,
    (r'^decoder\.', ''),
    (r'^arm16\.', 'attention_refinement_module1.'),
    (r'^arm32\.', 'attention_refinement_module2.'),
    (r'\.gate$', '.conv'),
    (r'\.unused$', '.bn'),
    (r'^sup([12])$', r'supervision\1'),
    (r'^ffm\.', 'feature_fusion_module.'),
    (r'\.squeeze$', '.conv1'),
    (r'\.excite$', '.conv2'),
    (r'^classifier$', 'conv'),
    (r'^spatial_path\.step0\.', 'saptial_path.convblock1.'),
    (r'^spatial_path\.step1\.', 'saptial_path.convblock2.'),
    (r'^spatial_path\.step2\.', 'saptial_path.convblock3.'),
    (r'\.fuse\.', '.convblock.'),
    (r'\.(convblock\d?)\.conv$', r'.\1.conv1'),
    (r'\.norm$', '.bn'),
)
TABLES = {
    'torchseg': Table(_TORCHSEG, classes='heads.2.conv_1x1.weight', backbone='resnet18'),
    'coincheung': Table(
        _COINCHEUNG,
        classes='conv_out.conv_out.weight',
        backbone='resnet18',
        preprocessing=('bisenet_coincheung',),
    ),
    'ooooverflow': Table(
        _OOOOVERFLOW,
        classes='conv.weight',
        backbone='resnet18',
        ignored=(r'^context_path\.features\.',),
    ),
}
