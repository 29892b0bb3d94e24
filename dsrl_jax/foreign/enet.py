"""Weight names of davidtvs/PyTorch-ENet (MIT)."""

from dsrl_jax.foreign.table import Table

TABLES = {
    '': Table(
        renames=(
            (r'^encoder\.', ''),
            (r'^initial_conv$', 'initial_block.main_branch'),
            (r'^initial_br\.norm$', 'initial_block.batch_norm'),
            (r'^initial_br\.act$', 'initial_block.out_activation'),
            (r'\.ext_tconv1\.conv$', '.ext_tconv1'),
            (r'\.ext_tconv1\.norm$', '.ext_tconv1_bnorm'),
            # Both halves of an asymmetric convolution lie in one sequence.
            (r'\.ext_conv2_across\.conv$', '.ext_conv2.3'),
            (r'\.ext_conv2_across\.norm$', '.ext_conv2.4'),
            (r'\.ext_conv2_across\.act$', '.ext_conv2.5'),
            (r'\.conv$', '.0'),
            (r'\.norm$', '.1'),
            (r'\.act$', '.2'),
        ),
        classes='transposed_conv.weight',
        axis=1,
        preprocessing=('unit',),
    )
}
