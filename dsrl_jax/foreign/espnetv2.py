"""Weight names of sacmehta/EdgeNets (MIT): its segmentation network and its classifier."""

RENAMES = (
    # The segmentation network keeps the encoder under base_net, the classifier at the top.
    (r'^(base_net\.)?(level[1-4])', r'encoder.\2'),
    (r'(level[345])\.(\d)', r'\1_block\2'),
    (r'\.inp_reinf\.(\d)', r'.inp_reinf_\1'),
    (r'\.spp_dw\.(\d)\.conv$', r'.spp_dw_\1'),
    (r'\.bn$', '.norm'),
    # decoder
    (r'\.stages\.(\d)', r'.stages_\1'),
    (r'\.projection_layer\b', '.projection'),
    (r'\.merge_layer\.0\b', '.merge_br'),
    (r'\.merge_layer\.2\b', '.merge'),
    (r'\.merge_layer\.3$', '.expand'),
    (r'\.wt_layer\.1$', '.gate'),
    (r'\.expansion_layer\b', '.expand'),
    (r'\.cbr\.0$', '.conv'),
    (r'\.cbr\.1$', '.norm'),
    (r'\.cbr\.2$', '.act'),
    (r'(\.br|merge_br|\bbu_br_l\d)(\.br)?\.0$', r'\1.norm'),
    (r'(\.br|merge_br|\bbu_br_l\d)(\.br)?\.1$', r'\1.act'),
)
CLASSES = {
    'espnetv2': 'bu_dec_l4.merge_layer.3.weight',
    'espnetv2_classifier': 'classifier.weight',
}
ENCODER = 'encoder'
