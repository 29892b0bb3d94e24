"""Weight names of sacmehta/ESPNetv2 (MIT), the first release."""

from dsrl_jax.foreign.espnetv2 import ENCODER
from dsrl_jax.foreign.table import Table

TABLES = {
    '': Table(
        renames=(
            *ENCODER,
            (r'^encoder\.', 'net.'),
            (r'^psp_eesp\.', 'pspMod.0.'),
            (r'^psp\.', 'pspMod.1.'),
            (r'\.stages_(\d)$', r'.stages.\1.conv'),
            (r'^(project_l[13])$', r'\1.1.conv'),
            (r'\.norm$', '.bn'),
        ),
        classes='project_l1.1.conv.weight',
        backbone='espnetv2_classifier',
        preprocessing=('espnet_cityscapes',),
    )
}
