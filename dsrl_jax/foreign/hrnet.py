"""Weight names of leoxiaobin/deep-high-resolution-net.pytorch (MIT)."""

from dsrl_jax.foreign.resnet import TORCHVISION
from dsrl_jax.foreign.table import Table

TABLES = {
    '': Table(
        renames=(
            (r'^encoder\.', ''),
            *TORCHVISION,
            (r'^stage(\d)_module(\d)', r'stage\1.\2'),
            (r'\.branch(\d)', r'.branches.\1'),
            (r'\.fuse_(\d)_(\d)', r'.fuse_layers.\1.\2'),
            (r'(fuse_layers\.\d\.\d)_(\d)', r'\1.\2'),
            # Only the very first transition keeps its resolution; the others sit in a list more.
            (r'^transition1_0\b', 'transition1.0'),
            (r'^transition(\d)_(\d)', r'transition\1.\2.0'),
            (r'^(transition.*|.*fuse_layers.*)\.conv$', r'\1.0'),
            (r'^(transition.*|.*fuse_layers.*)\.norm$', r'\1.1'),
        ),
        classes='final_layer.weight',
    )
}
