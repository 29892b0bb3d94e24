"""The people on one image by a trained network: the joints in given boxes, as evaluation has them.

Also what evaluation and prediction share: from the network's input to joints.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import losses, oks, pose_scores
from dsrl_jax.data import person_batches, person_crop
from dsrl_jax.data.person_boxes import box_problem
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import Keypoints, check, from_lists, mirrored
from dsrl_jax.ops import heatmaps, resize
from dsrl_jax.report import skeleton

ROWS = 8  # boxes a batch where an image has several


@dataclasses.dataclass(frozen=True)
class PoseResult:
    """What `Model.predict` found in P boxes (x, y, width, height) of an `image` [H,W,3] uint8.

    `joints` [P,J,2] are (x, y) in pixels of the image, `confidence` [P,J] the heights of their
    heatmaps, `scores` [P] the boxes' times the mean confidence, as in evaluation.
    """

    joints: np.ndarray
    confidence: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    image: np.ndarray
    keypoints: Keypoints
    colors: list[tuple[int, int, int]]
    kept: list[dict]  # COCO results of image 0

    def overlay(self, threshold: float = skeleton.CONFIDENT) -> np.ndarray:
        """The skeletons over the image, uint8 [H,W,3]; joints and people above the threshold."""
        shown = np.where(self.scores[:, None] > threshold, self.confidence, -np.inf)
        style = self.keypoints, self.colors
        return skeleton.draw(self.image, self.joints, shown, *style, threshold=threshold)

    def to_coco(self, image_id: int) -> list[dict]:
        """COCO results, best first: [{image_id, category_id, keypoints (x, y, confidence), score}].

        Of boxes that show the same person one is left, as in evaluation (OKS-NMS).
        """
        return [{**entry, 'image_id': image_id} for entry in self.kept]


def predict(model, image: np.ndarray, boxes=None, scores=None) -> PoseResult:
    """The joints in boxes [P,4] (x, y, width, height) of an image [H,W,3] uint8.

    None is one box, the whole image; `scores` [P] of the boxes are 1 where not given. Views, mirror
    image, decoding and scores are those that the model's configuration names for evaluation.
    UserError for the first bad box.
    """
    config, keypoints = model.config, model.keypoints
    boxes = _checked(boxes, image.shape[:2])
    scores = np.ones(len(boxes)) if scores is None else np.asarray(scores, float)
    view = configs.eval_size(config)
    small, count = person_batches.input_size(config, view), len(keypoints.names)
    joints, confidence = np.zeros((len(boxes), count, 2)), np.zeros((len(boxes), count))
    windows = np.zeros((2, len(boxes), 2), np.float32)
    rows = 1 if len(boxes) == 1 else ROWS  # so that no number of people compiles anew
    for start in range(0, len(boxes), rows):
        target, mine = np.zeros((rows, *view, 3), np.uint8), slice(start, start + rows)
        for row, box in enumerate(boxes[mine]):
            element = {'image': image, 'box': box}
            element |= {'joints': np.zeros((count, 2)), 'visible': np.zeros(count)}
            cut = person_crop.whole_view(element, size=small, factor=config.scale, pose=config.pose)
            target[row], windows[:, start + row] = cut['target'], (cut['center'], cut['scale'])
        found = jax.device_get(model.find_joints(model.variables, target))
        joints[mine], confidence[mine] = (part[: len(boxes) - start] for part in found)
    size, encode = model.network.result_size(small), config.pose.encode
    people = {'image_id': np.zeros(len(boxes), int), 'score': scores, 'scale': windows[1]}
    people |= {'joints': heatmaps.to_image(joints, *windows, size, encode)}
    people |= {'confidence': confidence}
    return PoseResult(
        people['joints'],
        confidence,
        boxes,
        oks.rescore(scores, confidence, config.pose.rescore),
        image,
        keypoints,
        model.colors,
        kept(people, keypoints, config.pose),
    )


def kept(people: dict, keypoints: Keypoints, pose) -> list[dict]:
    """pose_scores.results by the section `pose` of a configuration."""
    return pose_scores.results(
        people, keypoints, nms=pose.nms, soft_nms=pose.soft_nms, rescore=pose.rescore
    )


def view_function(network, config, keypoints: Keypoints) -> Callable:
    """`find(variables, target)`: uint8 large view [B,sH,sW,3] -> joints and confidence.

    Those are of `joint_function`: [B,J,2] and [B,J].
    """
    find = joint_function(network, config, keypoints)

    def from_view(variables, target):
        return find(variables, resize.small_input(target, config.scale, config.data))[:2]

    return from_view


def joint_function(network, config, keypoints: Keypoints, decodes: Sequence[str] = ()) -> Callable:
    """`find(variables, image, sr=False)` of normalised inputs [B,H,W,3], to be compiled.

    It gives joints [B,J,2] in heatmap pixels, confidence [B,J] and the network's outputs, which
    have the SR image with `sr`. With pose.flip_test the heatmaps are the mean over the mirror.
    `decodes`: ways to read them, [B,ways,J,..] of several; default: pose.decode.
    """
    pose, order = config.pose, mirrored(keypoints)
    decodes = decodes or (config.pose.decode,)

    def maps(variables, image, sr):
        outputs = network.apply(variables, image, train=False, sr=sr)
        return losses.heatmap_scores(outputs, network.result_size(image.shape[1:3])), outputs

    def find(variables, image, sr=False):
        found, outputs = maps(variables, image, sr)
        if pose.flip_test:
            flipped, _ = maps(variables, image[:, :, ::-1], False)
            found = heatmaps.merge_flipped(found, flipped, order, pose.encode)
        read = [heatmaps.decode(found, kind, pose.sigma) for kind in decodes]
        joints, confidence = read[0] if len(read) == 1 else (jnp.stack(x, 1) for x in zip(*read))
        return joints, confidence, outputs

    return find


def read_joints(saved: dict, path) -> Keypoints:
    """The joints in what `dsrl train` or `dsrl export` saved; UserError where none or unsound."""
    where, parts = f'{path}: keypoints', saved.get('keypoints')
    fields = Keypoints._fields
    if not isinstance(parts, dict) or not all(isinstance(parts.get(f), list) for f in fields):
        found = 'none' if parts is None else 'not all of its lists'
        expected = 'the joints of the model: ' + ', '.join(fields)
        raise UserError(where, found, expected, 'train it again, or export the run again.')
    keypoints = from_lists(parts)
    check(keypoints, where)
    if list(keypoints.names) != list(saved['classes']):
        found = ', '.join(map(str, keypoints.names))
        expected = 'the classes of the same file, ' + ', '.join(map(str, saved['classes']))
        raise UserError(f'{where}: names', found, expected, 'restore the file.')
    return keypoints


def _checked(boxes, size) -> np.ndarray:
    """float [P,4]; UserError for the first that is no box on an image of `size` (H, W)."""
    if boxes is None:
        boxes = [[0, 0, size[1], size[0]]]
    try:
        boxes = [_plain(box) for box in boxes]
    except TypeError:
        expected = 'a list of [x, y, width, height]'
        raise UserError('boxes', repr(boxes), expected, 'give one for each person.') from None
    for number, box in enumerate(boxes):
        if problem := box_problem(f'box {number}', box, size):
            raise problem
    return np.array(boxes, float).reshape(-1, 4)


def _plain(box):
    """A box with Python's numbers in the place of numpy's; what is none as it is."""
    try:
        return np.asarray(box, float).tolist()
    except (TypeError, ValueError):
        return box
