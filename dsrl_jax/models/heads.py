"""What DSRL adds to a network: the SSSR heads, the SISR branch, the feature transform.

Sizes come from the maps themselves, so the same modules serve every network and every scale s.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import UserError, lookup
from dsrl_jax.models.layers import Conv, Convention, ConvNorm, ConvTranspose, Style, he_normal
from dsrl_jax.ops import resize
from dsrl_jax.ops.pixels import depth_to_space

SR_FEATURES = 32  # width of both maps the affinity loss compares: equal rank, comparable matrices
_DECODER_FLOOR = 16  # width in which the SISR decoder reaches the input size
_SKIP_WIDTH = 8  # channels `low` is projected to: it brings edges, not meaning
_lecun_normal = nn.initializers.lecun_normal()  # keeps the variance through tanh and linear layers


def logits(outputs, size):
    """Full-size class scores, outputs of a network -> float32 [B, H, W, K] at `size` = (H, W).

    What the original networks return; for tests, small inputs and export.  The losses use
    `ops.scores`, which never builds this map.
    """
    scores = outputs['scores'].astype(jnp.float32)
    return resize.bilinear(scores, size, convention=outputs['resize'])


class OfficialDeconv(nn.Module):
    """Class scores [B, h, w, K] -> [B, sH, sW, K]: x2 blocks of transposed conv, BN, PReLU.

    The head of the authors' release: k3 s2 without bias, K -> K, and the last PReLU output is the
    score map.  A map off the ladder of x2 steps is resized onto it first (`_ladder`).
    """

    num_classes: int
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x, steps = _ladder(outputs, 'scores', size, 'sssr.head')
        for step in range(steps):
            x = ConvNorm(
                self.num_classes,
                stride=2,
                transposed=True,
                activation='prelu',
                style=self.style,
                name=f'up{step}',
            )(x, train)
        return x[:, : size[0], : size[1]], Convention('half_pixel')


class Bilinear(nn.Module):
    """Class scores [B, h, w, K], unchanged: the network's own resize goes on to (sH, sW).

    No parameters.  The enlargement happens inside the fused loss and arg-max.
    """

    num_classes: int
    style: Style = Style()

    def __call__(self, outputs, size, train: bool = False):
        return outputs['scores'], outputs['resize']


class DepthwiseDeconv(nn.Module):
    """Class scores [B, h, w, K] -> [B, sH, sW, K]: x2 transposed convs, one 3x3 filter a class.

    Starts as bilinear enlargement; linear, so scores keep their sign.  Costs 1/K of
    `official_deconv`.
    """

    num_classes: int
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x, steps = _ladder(outputs, 'scores', size, 'sssr.head')
        for step in range(steps):
            x = ConvTranspose(
                self.num_classes,
                groups=self.num_classes,
                kernel_init=_bilinear_kernel,
                style=self.style,
                name=f'up{step}',
            )(x)
        return x[:, : size[0], : size[1]], Convention('half_pixel')


class DeconvFeatures(nn.Module):
    """Decoder features [B, h, w, C] -> class scores [B, sH, sW, K], the paper's wording (3.2).

    x2 blocks of transposed conv to `width`, BN, ReLU, then a 1x1 classifier with bias; the
    network's own classifier is not used.
    """

    num_classes: int
    width: int = 16
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x, steps = _ladder(outputs, 'features', size, 'sssr.head')
        for step in range(steps):
            x = ConvNorm(
                self.width,
                stride=2,
                transposed=True,
                activation='relu',
                style=self.style,
                name=f'up{step}',
            )(x, train)
        x = x[:, : size[0], : size[1]]
        scores = Conv(self.num_classes, 1, use_bias=True, style=self.style, name='classifier')(x)
        return scores, Convention('half_pixel')


class PixelShuffle(nn.Module):
    """Decoder features [B, h, w, C] -> class scores at twice their size, by one sub-pixel step.

    A 1x1 classifier with bias for each of the four pixels, alike at the start; nothing follows the
    scores, which the fused loss and arg-max enlarge bilinearly the rest of the way to (sH, sW).
    The network's own classifier is not used.  Features that are at (sH, sW) get one classifier.
    """

    num_classes: int
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x, steps = _ladder(outputs, 'features', size, 'sssr.head')
        factor = 2 if steps else 1
        classify = Conv(
            factor**2 * self.num_classes,
            1,
            use_bias=True,
            kernel_init=_alike(nn.initializers.he_normal(), factor),
            style=self.style,
            name='classifier',
        )
        scores = depth_to_space(classify(x), factor)
        height, width = _foot(size, max(0, steps - 1))
        return scores[:, :height, :width], Convention('half_pixel')


HEADS = {
    'official_deconv': OfficialDeconv,
    'bilinear': Bilinear,
    'depthwise_deconv': DepthwiseDeconv,
    'deconv_features': DeconvFeatures,
    'pixel_shuffle': PixelShuffle,
}


def sssr(head: str = 'official_deconv', *, num_classes: int, style: Style, width=None):
    """The SSSR head module named `head`; `width` (None: its default) is for deconv_features."""
    module = lookup(HEADS, head, 'sssr.head')
    options = {} if width is None else {'width': width}
    if options and 'width' not in module.__dataclass_fields__:
        raise UserError(
            'sssr.width',
            f'{width} with head {head!r}',
            'a width with head deconv_features only',
            'set sssr.width=None.',
        )
    return module(num_classes=num_classes, style=style, **options)


class SISR(nn.Module):
    """Encoder maps -> super-resolved image: high [B, h, w, C], low -> (sr, sr_feature).

    sr [B, sH, sW, 3] is the normalised RGB large view (last layer linear), sr_feature
    [B, H, W, 32] the map before it.  A narrow decoder climbs from `high` to the input size (H, W)
    by sub-pixel steps that halve the width down to 16, joined by a thin projection of `low` at
    its own size when `skip` and there is a `low`; then the three layers of ESPCN (5x5-64, 3x3-32,
    3x3-3ss).  `high` and `low` are resized bilinearly where their size is not on a step.  Pixels
    of a sub-pixel step are alike at the start (arXiv:1707.02937): no checkerboard to unlearn.
    """

    scale: int = 2
    activation: str = 'tanh'
    skip: bool = True
    trunk: int = 64
    norm: bool = True  # batch norms in the decoder; else biases
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        steps = _steps(outputs, 'high', size, 'the SISR branch')
        # Thinned before it is resized: a deep map has up to 2048 channels.
        x = self._block(self.trunk, 1, 'reduce')(outputs['high'], train)
        x = _fit(x, _foot(size, steps), outputs)
        x = self._block(self.trunk, 3, 'trunk')(x, train)
        low, joining = outputs.get('low') if self.skip else None, None
        if low is not None:
            # A `low` no finer than the start joins there.
            joining = max(0, steps - _steps(outputs, 'low', size, 'sisr.skip'))
            low = self._block(_SKIP_WIDTH, 1, 'skip')(low, train)
        for step in range(steps + 1):
            if step == joining:
                thin = _fit(low, x.shape[1:3], outputs)
                x = jnp.concatenate([x, thin], axis=-1)
            if step < steps:
                width = max(_DECODER_FLOOR, self.trunk >> (step + 1))
                x = self._block(4 * width, 3, f'up{step}', _alike(he_normal, 2))(x, train)
                x = depth_to_space(x, 2)
        x = x[:, : size[0], : size[1]]
        return self._espcn(x)

    def _espcn(self, x):
        activate = lookup(_ACTIVATIONS, self.activation, 'sisr.activation')
        x = activate(self._conv(64, 5, 'espcn1')(x))
        feature = activate(self._conv(SR_FEATURES, 3, 'espcn2')(x))
        last = self._conv(3 * self.scale**2, 3, 'espcn3', _alike(_lecun_normal, self.scale))
        return depth_to_space(last(feature), self.scale), feature

    def _block(self, features, kernel_size, name, kernel_init=he_normal):
        style = self.style if self.norm else dataclasses.replace(self.style, folded=True)
        return ConvNorm(
            features,
            kernel_size,
            activation='relu',
            style=style,
            kernel_init=kernel_init,
            name=name,
        )

    def _conv(self, features, kernel_size, name, kernel_init=_lecun_normal):
        return Conv(
            features,
            kernel_size,
            use_bias=True,
            kernel_init=kernel_init,
            style=self.style,
            name=name,
        )


class FeatureTransform(nn.Module):
    """Segmentation features [B, h, w, C] -> [B, h, w, 32]: 1x1 conv, BN, ReLU (paper 3.2)."""

    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False):
        return ConvNorm(SR_FEATURES, 1, activation='relu', style=self.style, name='project')(
            x, train
        )


_ACTIVATIONS = {'tanh': jnp.tanh, 'relu': jax.nn.relu}


def _ladder(outputs, name, size, where):
    """The map `name` of outputs, [B, h, w, C], and how many x2 steps lead from it to `size`.

    The steps are the nearest power of two, so the same for every size a network takes.  A map that
    is not exactly that much smaller, rounded up (a pyramid may round its own way), is resized
    bilinearly first, by the network's own convention; the steps then end at `size` or up to a
    step's width beyond, which the caller cuts off.
    """
    steps = _steps(outputs, name, size, where)
    return _fit(outputs[name], _foot(size, steps), outputs), steps


def _steps(outputs, name, size, where):
    """How many x2 steps lie between a map and `size`, to the nearest; the same along both axes."""
    shape = outputs[name].shape[1:3]
    steps = {round(math.log2(n / m)) for n, m in zip(size, shape)}
    found = steps.pop()
    if steps or found < 0:
        raise UserError(
            where,
            f'a map `{name}` of {shape[0]}x{shape[1]} to bring to {size[0]}x{size[1]}',
            'about the same power of two along both axes',
            'choose another network, or sssr.head=bilinear and sisr.skip=False.',
        )
    return found


def _foot(size, steps):
    """Where a ladder of x2 steps to `size` begins: size / 2^steps, rounded up."""
    return tuple(-(-n // 2**steps) for n in size)


def _fit(x, size, outputs):
    if x.shape[1:3] == size:
        return x
    return resize.bilinear(x, size, convention=outputs['resize'])


def _alike(init, factor):
    """Initialiser of kernels [kh, kw, C, r*r*D]: the same D outputs for each of the r*r pixels."""

    def draw(key, shape, dtype=jnp.float32):
        kernel = init(key, shape, dtype)  # of the variance that the whole kernel has
        return jnp.tile(kernel[..., : shape[-1] // factor**2], (1, 1, 1, factor**2))

    return draw


def _bilinear_kernel(key, shape, dtype=jnp.float32):
    """[3, 3, K, 1]: the taps .5 1 .5 along each axis, the same for every class."""
    taps = jnp.array([0.5, 1.0, 0.5], dtype)
    return jnp.broadcast_to(jnp.outer(taps, taps)[:, :, None, None], shape)
