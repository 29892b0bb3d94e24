"""Persons on images as a random-access source: what top-down pose estimation trains on.

Such a source gives {'image' uint8 [H,W,3], 'joints' float32 [J,2] (x, y in the image), 'visible'
float32 [J] (0 or 1), 'box' float32 [4] (x, y, width, height), 'score', 'image_id', 'name'}, and
has `keypoints` (see keypoints.py) and `ground_truth()`, the annotations in COCO's form.
"""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from dsrl_jax.data.images import read_image
from dsrl_jax.data.listings import read_json
from dsrl_jax.data.sources import IGNORE
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import Keypoints

# Of the joints, where they are drawn: left, right, and those of the middle.
_LEFT, _RIGHT, _MIDDLE = (255, 128, 0), (0, 160, 255), (60, 220, 60)


class ImageFile(NamedTuple):
    """One image as the annotations list it."""

    id: int
    path: pathlib.Path
    height: int
    width: int


class Persons(NamedTuple):
    """N persons as arrays, which travel to worker processes faster than N objects."""

    image: np.ndarray  # int [N], position among the source's images
    number: np.ndarray  # int [N], annotation id, or place in the list of detections
    box: np.ndarray  # float32 [N,4]
    score: np.ndarray  # float32 [N], of the box
    joints: np.ndarray  # float32 [N,J,2]
    visible: np.ndarray  # float32 [N,J]


@dataclasses.dataclass(frozen=True)
class PersonSource:
    """The persons of a split; `problems`, `differences` and `note` as in sources.PairSource."""

    images: tuple[ImageFile, ...]
    persons: Persons
    split: str
    annotations: pathlib.Path
    keypoints: Keypoints
    problems: tuple[UserError, ...] = ()
    differences: tuple[UserError, ...] = ()
    note: str = ''
    ignore: int = IGNORE

    @property
    def classes(self) -> tuple[str, ...]:
        return self.keypoints.names

    @property
    def num_classes(self) -> int:
        return len(self.keypoints.names)

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        return colors(self.keypoints)

    def __len__(self) -> int:
        return len(self.persons.image)

    def files(self, index: int) -> dict[str, pathlib.Path]:
        return {'image': self._image(index).path}

    def image_size(self, index: int) -> tuple[int, int]:
        """As the annotations say."""
        image = self._image(index)
        return image.height, image.width

    def element_name(self, index: int) -> str:
        return f'{self._image(index).path.stem}_{self.persons.number[index]}'

    def __getitem__(self, index: int) -> dict:
        file, persons = self._image(index), self.persons
        # Joints are annotated on the pixels as stored, whatever the EXIF orientation.
        image = read_image(file.path, upright=False)
        if image.shape[:2] != (file.height, file.width):
            raise UserError(
                file.path,
                f'an image of {image.shape[0]}x{image.shape[1]} (HxW)',
                f'{file.height}x{file.width}, as {self.annotations} says',
                'restore the file.',
            )
        return {
            'image': image,
            'joints': persons.joints[index],
            'visible': persons.visible[index],
            'box': persons.box[index],
            'score': persons.score[index],
            'image_id': np.int32(file.id),
            'name': self.element_name(index),
        }

    def labelled_joints(self) -> np.ndarray:
        """bool [N,J]: which joints of the persons are labelled, no image being read."""
        return self.persons.visible > 0

    def ground_truth(self) -> dict:
        """The whole annotation file, for the score."""
        return read_json(self.annotations, 'COCO annotations')

    def _image(self, index: int) -> ImageFile:
        return self.images[self.persons.image[index]]


def colors(keypoints: Keypoints) -> tuple[tuple[int, int, int], ...]:
    """One RGB colour a joint: the first of each pair is left, the second right."""
    left, right = (
        (set(side) for side in zip(*keypoints.flip_pairs)) if keypoints.flip_pairs else ((), ())
    )
    count = range(len(keypoints.names))
    return tuple(_LEFT if j in left else _RIGHT if j in right else _MIDDLE for j in count)
