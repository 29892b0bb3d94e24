"""Weight names of Eromera/erfnet_pytorch (CC BY-NC 4.0: its weights are not for commercial use)."""

from dsrl_jax.foreign.table import Table

TABLES = {
    '': Table(
        renames=(
            (r'^encoder\.initial\b', 'encoder.initial_block'),
            (r'^encoder\.layer(\d+)', r'encoder.layers.\1'),
            (r'^decoder(\d)', r'decoder.layers.\1'),
            (r'^encoder_classifier$', 'encoder.output_conv'),
            (r'^classifier$', 'decoder.output_conv'),
            (r'conv1x3_(\d)\.conv$', r'conv1x3_\1'),
            (r'conv1x3_(\d)\.norm$', r'bn\1'),
            (r'(\.merge)?\.norm$', '.bn'),
        ),
        preprocessing=('unit',),
        classes='decoder.output_conv.weight',
    )
}
