"""How other projects prepare the images that their networks were trained on."""


def _of_255(mean, std=(1.0, 1.0, 1.0), order='bgr'):
    """Numbers that a source gives for pixels of 0..255."""
    scaled = (tuple(v / 255 for v in values) for values in (mean, std))
    return dict(zip(('mean', 'std'), scaled), order=order)


def _espnet(mean, std):
    """ESPNet divides by 255 once more, after the standard deviation of 0..255."""
    return {**_of_255(mean), 'std': std, 'order': 'bgr'}


# How a source prepares an image: pixels in 0..1, in the order of channels, minus mean, over std.
PREPROCESSING = {
    'imagenet': {
        'mean': (0.485, 0.456, 0.406),
        'std': (0.229, 0.224, 0.225),
        'order': 'rgb',
    },
    'unit': {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0), 'order': 'rgb'},
    'caffe': _of_255((104.00699, 116.66877, 122.67892)),
    'tensorflow_lite': _of_255((127, 127, 127), (128, 128, 128), 'rgb'),
    'bisenet_coincheung': {
        'mean': (0.3257, 0.3690, 0.3223),
        'std': (0.2112, 0.2148, 0.2115),
        'order': 'rgb',
    },
    'dabnet_cityscapes': _of_255((73.1583, 82.9090, 72.3924), order='rgb'),
    'dabnet_camvid': _of_255((99.6254, 103.3298, 105.6578), order='rgb'),
    'espnet_cityscapes': _espnet(
        (72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307)
    ),
    'espnet_camvid': _espnet(
        (110.33102643, 108.40886315, 105.03319369), (72.12571015, 72.69074534, 69.90434816)
    ),
}
