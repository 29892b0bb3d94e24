"""The golden sets: {stem of the files: (name and options for models.create, {their output: ours})}.

A key of ours may be dotted (aux.aux16); 'logits' of a segmentation network is heads.logits at the
input size.  Files: golden/STEM.golden.npz and golden/STEM.keys.json, or those of $DSRL_REFERENCE.
"""

GOLDEN = {
    'ESPNetv2_s2.0_20': ('espnetv2', {'num_classes': 20, 'width': 2.0}, {'logits': 'logits'}),
    'ESPNetv2_s2.0_imagenet': (
        'espnetv2_classifier',
        {'num_classes': 1000, 'width': 2.0},
        {'logits': 'logits'},
    ),
}
# max |difference| / std of the stored array that float32 may reach; {stem: bound} where a deep
# network is ill-conditioned in train mode
EVAL_BOUND = 1e-4
TRAIN_BOUND = 1e-3
TRAIN_BOUNDS = {}
