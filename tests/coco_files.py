"""A small set in COCO's form for tests, and its damage."""

import json

import numpy as np
from PIL import Image

from dsrl_jax import config as configs
from dsrl_jax.data import coco


def make(root):
    """Three images of 64x80 (HxW) a split, five persons on the first two."""
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        images = []
        for number in (1, 2, 3):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 80, 3), np.uint8)
            name = f'{number:012d}.png'
            Image.fromarray(pixels).save(root / split / name)
            images.append({'id': number, 'file_name': name, 'height': 64, 'width': 80})
        persons = [annotation(7 + k, image=1 + k % 2, bbox=[4 + k, 10, 30, 45]) for k in range(5)]
        write(root, split, {'images': images, 'annotations': persons})
    return root


def annotation(number, image=1, **changes):
    marks = [[10 + j, 20 + j, 2] for j in range(17)]
    plain = {
        'id': number,
        'image_id': image,
        'category_id': 1,
        'iscrowd': 0,
        'area': 500.0,
        'bbox': [8, 16, 30, 40],
        'keypoints': np.ravel(marks).tolist(),
        'num_keypoints': 17,
    }
    return plain | changes


def detection(**changes):
    return {'image_id': 1, 'category_id': 1, 'bbox': [4, 5, 20, 30], 'score': 0.9} | changes


def write(root, split, content):
    path = root / 'annotations' / f'person_keypoints_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def edit(root, split='val2017', **lists):
    """The annotations with some lists replaced by what functions make of them."""
    path = root / 'annotations' / f'person_keypoints_{split}.json'
    content = json.loads(path.read_text())
    return write(root, split, content | {key: make(content[key]) for key, make in lists.items()})


def settings(root, **changes):
    config = configs.base()
    fields = {'name': 'coco', 'root': str(root), 'size': (64, 48), 'workers': 0, 'cache': False}
    config.data.update(fields | changes)
    return config


def build(root, split='val'):
    return coco.build(settings(root).data, split)
