"""Weight names of sacmehta/ESPNet (MIT): ESPNet in both variants, and ESPNet-C."""

from dsrl_jax.foreign.table import Table

# The encoder's layers, the same in both networks once its own prefix is off; last, for `norm` ends.
_LAYERS = (
    (r'_block(\d+)', r'.\1'),
    (r'\.(c1|d\d+)$', r'.\1.conv'),
    (r'(level\d_0)\.br\.', r'\1.'),  # a strided block holds its norm and slopes itself
    (r'\.br\.', '.bn.'),
    (r'\.norm$', '.bn'),
)
_ESPNET = Table(
    renames=(
        (r'^coarse\.conv$', 'encoder.classifier.conv'),
        (r'^coarse\.norm$', 'br'),
        (r'^up_l3$', 'up_l3.0'),
        (r'^level3_C$', 'level3_C.conv'),
        (r'^combine_br\.', 'combine_l2_l3.0.'),
        (r'^combine_esp\.', 'combine_l2_l3.1.'),
        (r'^up_l2\.conv$', 'up_l2.0'),
        (r'^up_l2\.(norm|act)$', r'up_l2.1.\1'),
        (r'^merge\.', 'conv.'),
        *_LAYERS,
    ),
    classes='encoder.classifier.conv.weight',
    preprocessing=('espnet_cityscapes', 'espnet_camvid'),
    backbone='espnet_c',
)
TABLES = {'train': _ESPNET, 'test': _ESPNET}
ESPNET_C = {
    '': Table(
        renames=((r'^encoder\.', ''), (r'^classifier$', 'classifier.conv'), *_LAYERS),
        classes='classifier.conv.weight',
        preprocessing=('espnet_cityscapes', 'espnet_camvid'),
    )
}
