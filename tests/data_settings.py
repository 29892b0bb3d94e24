"""Data settings for tests of sources: small views of images of several sizes."""

from ml_collections import ConfigDict


def config(root, name='folder', **changes):
    fields = {
        'name': name,
        'root': str(root),
        'train_split': 'train',
        'eval_split': 'val',
        'size': (12, 16),
        'eval_size': (24, 32),
        'eval_fit': 'pad',
        'scale_range': (0.6, 1.5),
        'flip': True,
        'color': 0.2,
        'fill': (124, 116, 104),
        'workers': 0,
        'cache': False,
    }
    return ConfigDict(fields | changes)
