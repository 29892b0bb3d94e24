"""Object keypoint similarity (OKS) of poses, and what HRNet's protocol does with it before scoring.

    OKS = mean over joints of exp(-d^2 / (2 k^2 area)),  k = 2 sigma of the joint

d the distance of two places of a joint in pixels, area that of the person in pixels^2.
"""

import numpy as np

SOFT_MOST = 20  # poses an image the soft form keeps, as COCO scores at most so many


def similarity(one, others, area, sigmas, counted=None):
    """OKS of a pose [J,2] with others [N,J,2] -> [N] in 0..1; area a number or [N].

    `counted` bool [J]: the joints in the mean, by default all; 0 where none is.
    """
    others = np.asarray(others, np.float64)
    area = np.broadcast_to(np.asarray(area, np.float64), len(others))
    # As COCO's: a person of no area divides by almost nothing, not by nothing.
    spread = 2 * (2 * np.asarray(sigmas, np.float64)) ** 2 * (area[:, None] + np.spacing(1))
    near = np.exp(-np.sum((others - np.asarray(one)) ** 2, -1) / spread)
    counted = np.ones(near.shape[1], bool) if counted is None else np.asarray(counted, bool)
    return near[:, counted].sum(1) / max(counted.sum(), 1)


def rescore(scores, confidence, threshold=0.2):
    """Scores of boxes [N] times the mean of the joints' confidences [N,J] above the threshold.

    0 where no joint is above it.
    """
    confidence = np.asarray(confidence, np.float64)
    sure = confidence > threshold
    return np.asarray(scores) * (confidence * sure).sum(1) / np.maximum(sure.sum(1), 1)


def suppress(joints, scores, areas, sigmas, threshold=0.9, *, soft=False):
    """Indices of the poses of one image that stay, best first: joints [N,J,2], scores, areas [N].

    Hard: the best stays and drops all whose OKS with it is above the threshold, then the best of
    the rest. Soft: it multiplies the scores of the rest by exp(-OKS^2 / threshold), until 20 stay.
    That fixes the order and who stays; the scores reported are the old ones. Two poses share the
    mean of their areas. Of equal scores the first goes first.
    """
    joints, areas = np.asarray(joints), np.asarray(areas, np.float64)
    scores = np.array(scores, np.float64)
    left, kept = np.arange(len(scores)), []
    while len(left) and not (soft and len(kept) == SOFT_MOST):
        first = np.argmax(scores[left])
        best, left = left[first], np.delete(left, first)
        kept.append(int(best))
        area = (areas[best] + areas[left]) / 2
        near = similarity(joints[best], joints[left], area, sigmas)
        if soft:
            scores[left] *= np.exp(-(near**2) / threshold)
        else:
            left = left[near <= threshold]
    return kept
