"""What DSRL adds to a network: the SSSR heads, the SISR branch, the feature transform.

Sizes come from the maps themselves, so the same modules serve every network and every scale s.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dsrl_jax.errors import UserError, lookup
from dsrl_jax.models.layers import Conv, Convention, ConvNorm, ConvTranspose, Style
from dsrl_jax.ops import convolution, resize

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
    score map.  Raises UserError where (sH, sW) is not a power of two times (h, w).
    """

    num_classes: int
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x = outputs['scores']
        for step in range(_doublings(x, size, 'sssr.head')):
            x = ConvNorm(
                self.num_classes,
                stride=2,
                transposed=True,
                activation='prelu',
                style=self.style,
                name=f'up{step}',
            )(x, train)
        return x, Convention('half_pixel')


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
    `official_deconv`.  Raises UserError where (sH, sW) is not a power of two times (h, w).
    """

    num_classes: int
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x = outputs['scores']
        for step in range(_doublings(x, size, 'sssr.head')):
            x = ConvTranspose(
                self.num_classes,
                groups=self.num_classes,
                kernel_init=_bilinear_kernel,
                style=self.style,
                name=f'up{step}',
            )(x)
        return x, Convention('half_pixel')


class DeconvFeatures(nn.Module):
    """Decoder features [B, h, w, C] -> class scores [B, sH, sW, K], the paper's wording (3.2).

    x2 blocks of transposed conv to `width`, BN, ReLU, then a 1x1 classifier with bias; the
    network's own classifier is not used.  Raises UserError where (sH, sW) is not a power of two
    times (h, w).
    """

    num_classes: int
    width: int = 16
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x = outputs['features']
        for step in range(_doublings(x, size, 'sssr.head')):
            x = ConvNorm(
                self.width,
                stride=2,
                transposed=True,
                activation='relu',
                style=self.style,
                name=f'up{step}',
            )(x, train)
        scores = Conv(self.num_classes, 1, use_bias=True, style=self.style, name='classifier')(x)
        return scores, Convention('half_pixel')


HEADS = {
    'official_deconv': OfficialDeconv,
    'bilinear': Bilinear,
    'depthwise_deconv': DepthwiseDeconv,
    'deconv_features': DeconvFeatures,
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
    its own size when `skip`; then the three layers of ESPCN (5x5-64, 3x3-32, 3x3-3ss).
    Raises UserError where (H, W) is not a power of two times (h, w), or `low` is on no step.
    """

    scale: int = 2
    activation: str = 'tanh'
    skip: bool = True
    trunk: int = 64
    style: Style = Style()

    @nn.compact
    def __call__(self, outputs, size, train: bool = False):
        x, low = outputs['high'], outputs['low'] if self.skip else None
        steps = _doublings(x, size, 'the map `high` under the SISR branch')
        x = self._block(self.trunk, 1, 'reduce')(x, train)
        x = self._block(self.trunk, 3, 'trunk')(x, train)
        joined = not self.skip
        for step in range(steps + 1):
            if not joined and x.shape[1:3] == low.shape[1:3]:
                thin = self._block(_SKIP_WIDTH, 1, 'skip')(low, train)
                x, joined = jnp.concatenate([x, thin], axis=-1), True
            if step < steps:
                width = max(_DECODER_FLOOR, self.trunk >> (step + 1))
                x = self._block(4 * width, 3, f'up{step}')(x, train)
                x = convolution.depth_to_space(x, 2)
        if not joined:
            raise UserError(
                'sisr.skip',
                f'map `low` of size {low.shape[1:3]}',
                f'the size of `high` {outputs["high"].shape[1:3]} times 1, 2, 4, ...',
                'set sisr.skip=False.',
            )
        return self._espcn(x)

    def _espcn(self, x):
        activate = lookup(_ACTIVATIONS, self.activation, 'sisr.activation')
        x = activate(self._conv(64, 5, 'espcn1')(x))
        feature = activate(self._conv(SR_FEATURES, 3, 'espcn2')(x))
        x = self._conv(3 * self.scale**2, 3, 'espcn3')(feature)
        return convolution.depth_to_space(x, self.scale), feature

    def _block(self, features, kernel_size, name):
        return ConvNorm(features, kernel_size, activation='relu', style=self.style, name=name)

    def _conv(self, features, kernel_size, name):
        return Conv(
            features,
            kernel_size,
            use_bias=True,
            kernel_init=_lecun_normal,
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


def _doublings(x, size, where):
    """How many x2 steps lead from the map x [B, h, w, C] to `size` = (height, width)."""
    (h, w), (height, width) = x.shape[1:3], size
    factor = height // h
    if factor < 1 or factor & (factor - 1) or (h * factor, w * factor) != (height, width):
        raise UserError(
            where,
            f'a map of {h}x{w} to bring to {height}x{width}',
            'the same power of two along both axes',
            'choose another input size or network, or sssr.head=bilinear for the SSSR head.',
        )
    return factor.bit_length() - 1


def _bilinear_kernel(key, shape, dtype=jnp.float32):
    """[3, 3, K, 1]: the taps .5 1 .5 along each axis, the same for every class."""
    taps = jnp.array([0.5, 1.0, 0.5], dtype)
    return jnp.broadcast_to(jnp.outer(taps, taps)[:, :, None, None], shape)
