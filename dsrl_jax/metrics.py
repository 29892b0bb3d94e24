"""Scores of a whole split: confusion matrix -> IoU and accuracies; PSNR and SSIM of images.

Sums are merged, never means of batches: a mean IoU of batches is another number.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from dsrl_jax.errors import UserError

_WINDOW, _SIGMA = 11, 1.5  # of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 with L = 1


@flax.struct.dataclass
class Confusion(clu_metrics.Metric):
    """Pixel counts [K+1, K+1]: rows the truth, columns the prediction.

    Row K holds pixels whose truth is void (label `ignore`), column K predictions that are none of
    the K classes (a background output): such a pixel is a miss of its true class and a false
    positive of none. Pixels that are not `valid` are in no cell.

    One batch is counted on the device in int32 (up to 2^31 pixels). Totals are numpy int64 on the
    host, because 2,975 images of 2048x1024 hold 6.2e9 pixels: `merge` outside of jit fetches both
    sides and adds them there. Keep totals out of jit: it would cast them back to int32.

    `stray` counts labels that are neither a class nor `ignore`; `compute` refuses them.
    """

    counts: jax.Array | np.ndarray
    stray: jax.Array | np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> 'Confusion':
        """A host total of nothing."""
        side = num_classes + 1
        return cls(counts=np.zeros((side, side), np.int64), stray=np.zeros((), np.int64))

    @classmethod
    def from_model_output(
        cls, *, prediction, label, num_classes: int, ignore: int = 255, valid=None, **_
    ) -> 'Confusion':
        """Counts of one batch: integer prediction and label [B,H,W], valid [B,H,W] or [B] bool."""
        classes = num_classes
        prediction, label = prediction.astype(jnp.int32), label.astype(jnp.int32)
        if prediction.shape != label.shape:
            raise ValueError(f'prediction {prediction.shape} and label {label.shape} differ')
        void = label == ignore
        known = (label >= 0) & (label < classes) & ~void
        counted = known | void
        stray = ~counted
        if valid is not None:
            inside = _per_pixel(valid, label)
            counted, stray = counted & inside, stray & inside
        row = jnp.where(known, label, classes)
        column = jnp.where((prediction >= 0) & (prediction < classes), prediction, classes)
        # Uncounted pixels go to cell 0 with weight 0: shapes stay fixed under jit. The weights are
        # integers, since float32 sums stop being exact at 2^24.
        cell = jnp.where(counted, row * (classes + 1) + column, 0)
        counts = jnp.bincount(
            cell.ravel(), weights=counted.ravel().astype(jnp.int32), length=(classes + 1) ** 2
        )
        return cls(
            counts=counts.reshape(classes + 1, classes + 1), stray=stray.sum(dtype=jnp.int32)
        )

    def merge(self, other: 'Confusion') -> 'Confusion':
        """The sum of both: int64 on the host, int32 while tracing."""
        return jax.tree.map(_add, self, other)

    def compute(self, void: str = 'ignore') -> dict[str, np.ndarray]:
        """Float64 scores of all pixels: iou [K], miou, pixel_accuracy, class_accuracy.

        IoU = TP / (TP + FN + FP), NaN for a class with no pixel in truth or prediction; miou is the
        mean of the others. `void='ignore'` drops void pixels (Cityscapes, SegNet's CamVid);
        `void='count'` makes each a false positive of the class predicted there (ESPNet's CamVid
        numbers). The accuracies are over labelled pixels in both: hits by all, and the mean over
        classes of hits by the pixels of the class.

        UserError if a label was neither a class nor void.
        """
        if void not in ('ignore', 'count'):
            raise ValueError(f"void must be 'ignore' or 'count', not {void!r}")
        if (stray := int(self.stray)) > 0:
            raise UserError(
                'labels',
                f'{stray} pixels that are neither a class nor void',
                f'ids 0..{len(self.counts) - 2} or the ignore value',
                'map the labels first, or mend num_classes.',
            )
        counts = np.asarray(jax.device_get(self.counts)).astype(np.float64)
        classes = len(counts) - 1
        labelled = counts[:classes]
        hit, truth = np.diag(counts)[:classes], labelled.sum(1)
        predicted = (labelled if void == 'ignore' else counts).sum(0)[:classes]
        iou = _ratio(hit, truth + predicted - hit)
        return {
            'iou': iou,
            'miou': _mean(iou),
            'pixel_accuracy': _ratio(hit.sum(), truth.sum()),
            'class_accuracy': _mean(_ratio(hit, truth)),
        }


def mean_iou(counts, classes=None) -> np.ndarray:
    """Mean IoU, void ignored, of confusion counts [..., K, C] on the host -> float64 [...].

    Rows are the truth; columns from K on are predictions of no class. `classes`: indices of those
    to average. NaN where none of them is in truth or prediction.
    """
    hit, _, union = hits_truths_unions(counts)
    iou = _ratio(hit, union)
    iou = iou if classes is None else iou[..., list(classes)]
    there = ~np.isnan(iou)
    return _ratio(np.where(there, iou, 0).sum(-1), there.sum(-1))


def hits_truths_unions(counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class right, true, and true or predicted: [..., K, C] -> [..., K] x3 int64."""
    counts = np.asarray(counts, np.int64)
    hit, truth = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)
    return hit, truth, truth + counts[..., : counts.shape[-2]].sum(-2) - hit


@flax.struct.dataclass
class ImageQuality(clu_metrics.Metric):
    """Sums over images of PSNR in dB and SSIM, and the number of images."""

    psnr: jax.Array | np.ndarray
    ssim: jax.Array | np.ndarray
    count: jax.Array | np.ndarray

    @classmethod
    def empty(cls) -> 'ImageQuality':
        """A host total of nothing."""
        return cls(psnr=np.zeros(()), ssim=np.zeros(()), count=np.zeros((), np.int64))

    @classmethod
    def from_model_output(cls, *, image, target, mask=None, valid=None, **_) -> 'ImageQuality':
        """Sums of one batch: image and target [B,H,W,3] in 0..1, mask [B,H,W] and valid [B] bool.

        Rows with valid False, or without a pixel in the mask, are left out.
        """
        use = jnp.ones(image.shape[0], bool) if valid is None else valid
        if mask is not None:
            use = use & mask.any((1, 2))
        scores = psnr(image, target, mask), ssim(image, target, mask)
        sums = [jnp.where(use, score, 0).sum() for score in scores]
        return cls(psnr=sums[0], ssim=sums[1], count=use.sum(dtype=jnp.int32))

    def merge(self, other: 'ImageQuality') -> 'ImageQuality':
        """The sum of both: float64 and int64 on the host, 32 bits while tracing."""
        return jax.tree.map(_add, self, other)

    def compute(self) -> dict[str, np.ndarray]:
        """Means over images: psnr (dB; inf once an image equals its target), ssim; NaN if none."""
        psnr, ssim, count = jax.device_get((self.psnr, self.ssim, self.count))
        return {'psnr': _ratio(psnr, count), 'ssim': _ratio(ssim, count)}


@jax.jit
def psnr(a: jax.Array, b: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Peak signal-to-noise ratio in dB, [B,H,W,C] x2 in 0..1 (mask [B,H,W] bool) -> [B] float32.

    10 log10(1 / MSE), MSE over channels and the pixels of the mask. inf for equal images, NaN for
    an empty mask.
    """
    square = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean(-1)
    return -10 * jnp.log10(_masked_mean(square, mask))


@jax.jit
def ssim(a: jax.Array, b: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Structural similarity, [B,H,W,C] x2 in 0..1 (mask [B,H,W] bool) -> [B] float32.

    Wang et al. 2004: Gaussian window 11x11 of sigma 1.5, K1 = .01, K2 = .03, mean over channels and
    windows. Only windows wholly inside image and mask count, which is scikit-image's crop of 5
    pixels a side with gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.
    NaN where no window fits.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if min(a.shape[1:3]) < _WINDOW:
        return jnp.full(a.shape[:1], jnp.nan, jnp.float32)
    mean_a, mean_b, aa, bb, ab = _blur(jnp.stack([a, b, a * a, b * b, a * b]))
    var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    score = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    score = score / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))
    inside = None
    if mask is not None:
        inside = jax.lax.reduce_window(
            mask, True, jnp.logical_and, (1, _WINDOW, _WINDOW), (1, 1, 1), 'VALID'
        )
    return _masked_mean(score.mean(-1), inside)


def bicubic(image: jax.Array, factor: int) -> jax.Array:
    """Bicubic enlargement, [B,H,W,C] -> float32 [B,fH,fW,C]: Keys a = -0.5, half-pixel, unclipped.

    The baseline to print beside a super-resolution result; at the border the weights inside the
    image are renormalised, as Pillow does.
    """
    b, h, w, c = image.shape
    return jax.image.resize(image.astype(jnp.float32), (b, h * factor, w * factor, c), 'cubic')


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian means of all 11x11 windows inside, [...,H,W,C] -> [...,H-10,W-10,C]."""
    offset = np.arange(_WINDOW) - _WINDOW // 2
    weight = np.exp(-0.5 * (offset / _SIGMA) ** 2)
    weight = (weight / weight.sum()).astype(np.float32)
    # Shifted adds and no convolution: TF32 would ruin the difference E[x^2] - E[x]^2.
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis] - _WINDOW + 1
        x = sum(
            float(weight[i]) * jax.lax.slice_in_dim(x, i, i + size, axis=axis)
            for i in range(_WINDOW)
        )
    return x


def _masked_mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean of [B,H,W] over the pixels of the mask -> [B]."""
    if mask is None:
        return x.mean((1, 2))
    return jnp.where(mask, x, 0).sum((1, 2)) / mask.sum((1, 2))


def _per_pixel(valid, label):
    """A mask [B] or [B,H,W] as [B,H,W] bool."""
    valid = jnp.asarray(valid, bool)
    if valid.shape not in (label.shape, label.shape[:1]):
        raise ValueError(f'valid {valid.shape} fits neither {label.shape} nor {label.shape[:1]}')
    return jnp.broadcast_to(valid.reshape(valid.shape + (1,) * (3 - valid.ndim)), label.shape)


def _add(a, b):
    """a + b: as they are while tracing, in 64 bits on the host otherwise."""
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return a + b
    wide = np.int64 if np.issubdtype(a.dtype, np.integer) else np.float64
    return np.add(*jax.device_get((a, b)), dtype=wide)


def _ratio(a, b):
    """a / b in float64, NaN where b is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(b > 0, a / np.where(b > 0, b, 1), np.nan)


def _mean(x):
    """Mean of the entries that are numbers, NaN if there is none."""
    return x[~np.isnan(x)].mean() if not np.isnan(x).all() else np.float64('nan')
