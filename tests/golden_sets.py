"""The golden sets: {stem of the files: (name and options for models.create, {their output: ours})}.

A key of ours may be dotted (aux.aux16); 'logits' of a segmentation network is heads.logits at the
input size, and any other map is brought to the stored size by the network's own resize.  Files:
golden/STEM.golden.npz and golden/STEM.keys.json, or those of $DSRL_REFERENCE.
"""

GOLDEN = {
    'BiSeNet_R18_coincheung': (
        'bisenet_resnet18',
        {'num_classes': 19, 'variant': 'coincheung'},
        {'logits': 'logits', 'aux16': 'aux.aux16', 'aux32': 'aux.aux32'},
    ),
    'BiSeNet_R18_ooooverflow': (
        'bisenet_resnet18',
        {'num_classes': 19, 'variant': 'ooooverflow'},
        {'logits': 'logits', 'sup1': 'aux.sup1', 'sup2': 'aux.sup2'},
    ),
    'BiSeNet_R18_torchseg': (
        'bisenet_resnet18',
        {'num_classes': 19},
        {'logits': 'logits', 'aux16': 'aux.aux16', 'aux8': 'aux.aux8'},
    ),
    'DABNet': ('dabnet', {'num_classes': 19}, {'logits': 'logits'}),
    **{
        f'DeepLabv3plus_resnet101_os{stride}': (
            'deeplabv3plus_resnet101',
            {'num_classes': 19, 'output_stride': stride},
            {'logits': 'logits', 'decoder': 'scores', 'aspp': 'aspp'},
        )
        for stride in (8, 16)
    },
    **{
        f'DeepLabv3plus_resnet101_vainf_os{stride}': (
            'deeplabv3plus_resnet101',
            {'num_classes': 19, 'output_stride': stride, 'variant': 'vainf'},
            {'logits': 'logits', 'decoder': 'scores'},
        )
        for stride in (8, 16)
    },
    'ENet': ('enet', {'num_classes': 19}, {'logits': 'scores'}),
    'ERFNet': ('erfnet', {'num_classes': 20}, {'logits': 'logits', 'encoder': 'encoder'}),
    'ESPNet': ('espnet', {'num_classes': 20}, {'logits': 'scores'}),
    'ESPNet_C': ('espnet_c', {'num_classes': 20}, {'logits': 'scores'}),
    'ESPNetv2_old_s2.0': (
        'espnetv2_old',
        {'num_classes': 20},
        {'logits': 'logits', 'aux': 'aux.l3'},
    ),
    'ESPNetv2_s2.0_20': ('espnetv2', {'num_classes': 20, 'width': 2.0}, {'logits': 'logits'}),
    'ESPNetv2_s2.0_imagenet': (
        'espnetv2_classifier',
        {'num_classes': 1000, 'width': 2.0},
        {'logits': 'logits'},
    ),
    'FCN8s_VGG16': ('fcn8s', {'num_classes': 19}, {'logits': 'scores'}),
    'HRNet_w32_pose': ('hrnet_w32', {'num_classes': 17}, {'heatmaps': 'scores'}),
    'PSPNet_resnet101': (
        'pspnet_resnet101',
        {'num_classes': 19},
        {'logits': 'logits', 'aux_logits': 'aux.aux'},
    ),
    'PSPNet_resnet101_skd': (
        'pspnet_resnet101',
        {'num_classes': 19, 'variant': 'skd'},
        {'logits': 'scores', 'dsn': 'aux.aux', 'psp': 'features'},
    ),
    'PSPNet_resnet18_skd': (
        'pspnet_resnet18',
        {'num_classes': 19},
        {'logits': 'scores', 'dsn': 'aux.aux', 'psp': 'features'},
    ),
    'RefineNet_resnet101': ('refinenet_resnet101', {'num_classes': 19}, {'logits': 'scores'}),
    **{
        name: (
            name,
            {'num_classes': 1000},
            {'logits': 'logits', 'c2': 'c2', 'c3': 'c3', 'c4': 'c4', 'c5': 'c5'},
        )
        for name in ('resnet18', 'resnet50', 'resnet101')
    },
}
# max |difference| / std of the stored array that float32 may reach
EVAL_BOUND = 1e-4
TRAIN_BOUND = 1e-3
# Batch statistics over few values through many layers: float32 cannot say much in train mode, so
# these run in float64, where only the rounding of the stored float32 is left.
DEEP = {s for s in GOLDEN if s == 'ERFNet' or 'resnet50' in s or 'resnet101' in s}
DEEP |= {'BiSeNet_R18_torchseg', 'BiSeNet_R18_coincheung'}  # norms over two values: global means
DEEP_BOUND = 1e-5
