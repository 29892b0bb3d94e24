"""Weight names of Reagan1311/DABNet (MIT)."""

from dsrl_jax.foreign.table import Table

_RENAMES = (
    (r'^init_conv(\d)\.', r'init_conv.\1.'),
    (r'^downsample(\d)\.', r'downsample_\1.'),
    (r'^joined(\d)\.', r'bn_prelu_\1.'),
    (r'^block(\d)_module(\d)\.', r'DAB_Block_\1.DAB_Module_\1_\2.'),
    (r'\.bn_relu(\d)\.', r'.bn_relu_\1.'),
    # A norm after a convolution sits one level deeper than a lone one.
    (r'(init_conv\.\d|Block.*conv\dx\d)\.(norm|act)$', r'\1.bn_prelu.\2'),
    (r'\.norm$', '.bn'),
    (r'\.act$', '.acti'),
    (r'\.(conv3x3|conv1x1)$', r'.\1.conv'),
    (r'^classifier$', 'classifier.0.conv'),
)
TABLES = {
    '': Table(
        _RENAMES,
        classes='classifier.0.conv.weight',
        preprocessing=('dabnet_cityscapes', 'dabnet_camvid'),
    )
}
