"""Weight names of DrSleep/refinenet-pytorch (for non-commercial use)."""

from dsrl_jax.foreign.resnet import TORCHVISION
from dsrl_jax.foreign.table import Table

TABLES = {
    '': Table(
        renames=(
            (r'^encoder\.', ''),
            *TORCHVISION,
            (r'^refine(\d)\.reduce$', r'p_ims1d2_outl\1_dimred'),
            (r'^refine(\d)\.adapt(\d)', r'adapt_stage\1_b.0.\2'),
            (r'^refine(\d)\.fuse$', r'adapt_stage\1_b2_joint_varout_dimred'),
            # There the convolution of the coarser map belongs to the block that made the map.
            (r'^refine2\.fuse_coarser$', 'mflow_conv_g1_b3_joint_varout_dimred'),
            (r'^refine3\.fuse_coarser$', 'mflow_conv_g2_b3_joint_varout_dimred'),
            (r'^refine4\.fuse_coarser$', 'mflow_conv_g3_b3_joint_varout_dimred'),
            (r'^refine(\d)\.link(\d)$', r'mflow_conv_g\1_pool.0.\2_outvar_dimred'),
            (r'^refine(\d)\.output(\d)', r'mflow_conv_g\1_b.0.\2'),
            (r'_b\.0\.(\d)\.conv1$', r'_b.0.\1_conv'),
            (r'_b\.0\.(\d)\.conv2$', r'_b.0.\1_conv_relu_varout_dimred'),
            (r'^classifier$', 'clf_conv'),
        ),
        classes='clf_conv.weight',
        backbone='resnet101',
    )
}
