"""Weight names of sacmehta/EdgeNets (MIT): its segmentation network and its classifier."""

from dsrl_jax.foreign.table import Table

# The encoder's layers, the same in both networks once its own prefix is off.
ENCODER = (
    (r'_block(\d)', r'.\1'),
    (r'\.inp_reinf_(\d)', r'.inp_reinf.\1'),
    (r'\.spp_dw_(\d)$', r'.spp_dw.\1.conv'),
    (r'^(.*\blevel\d.*)\.norm$', r'\1.bn'),
)
_DECODER = (
    (r'\.br\.(norm|act)$', r'.br.br.\1'),
    (r'\.stages_(\d)$', r'.stages.\1'),
    (r'\.projection\.', '.projection_layer.cbr.'),
    (r'\.merge_br\.', '.merge_layer.0.br.'),
    (r'\.merge\.', '.merge_layer.2.cbr.'),
    (r'\.expand$', '.merge_layer.3'),
    (r'\.gate$', '.wt_layer.1'),
    (r'\.expand\.', '.expansion_layer.cbr.'),
    (r'^(bu_.*|merge_.*)\.conv$', r'\1.0'),
    (r'^(bu_.*\bcbr|merge_.*)\.norm$', r'\1.1'),
    (r'^(bu_.*\bcbr|merge_.*)\.act$', r'\1.2'),
    (r'^(bu_.*)\.norm$', r'\1.0'),
    (r'^(bu_.*)\.act$', r'\1.1'),
)
TABLES = {
    '': Table(
        renames=((r'^encoder\.', 'base_net.'), *ENCODER, *_DECODER),
        classes='bu_dec_l4.merge_layer.3.weight',
        backbone='espnetv2_classifier',
    )
}
CLASSIFIER = {
    '': Table(renames=((r'^encoder\.', ''), *ENCODER), classes='classifier.weight'),
}
