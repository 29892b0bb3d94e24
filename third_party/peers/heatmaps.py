"""The loss of heatmaps as dsrl_jax has it: targets drawn on the device; maps [B, J, H, W]."""

from collections.abc import Callable

import torch

from .layers import enlarge


def heatmap_term(size, stride: int, sigma: float = 2.0) -> tuple[str, Callable]:
    """The term of a pose network for `dsrl.losses`: truth is joints [B, J, 2] and visible [B, J].

    Joints are (x, y) in pixels of the input, which is `stride` times `size`, the (h, w) of the
    heatmaps.  0.5 x the mean of (weight x difference)^2 over images, joints and pixels.
    """

    def supervise(scores, truth, convention):
        target, weight = encode(*truth, size, stride, sigma)
        wide = torch.promote_types(scores.dtype, torch.float32)
        error = enlarge(scores.to(wide), size, convention) - target
        return 0.5 * (error * weight[..., None, None]).square().mean()

    return 'heatmap', supervise


def encode(joints, visible, size, stride: int, sigma: float):
    """joints [B, J, 2], visible [B, J] -> heatmaps [B, J, h, w], weights [B, J]: HRNet's encoding.

    A Gaussian of peak 1 about the pixel nearest to the joint, cut at 3 sigma (in pixels of the
    heatmap).  Weight 0 and an empty map where no part of that square reaches the map.
    """
    pixel = torch.trunc(joints / stride + 0.5)
    radius = 3 * sigma
    low, high = torch.trunc(pixel - radius), torch.trunc(pixel + radius + 1)
    height, width = size
    inside = (low[..., 0] < width) & (low[..., 1] < height) & (high >= 0).all(-1)
    weight = torch.where(inside, visible, 0.0)
    seen = (weight > 0.5).to(joints.dtype)[..., None, None]
    rows = _along(pixel[..., 1], height, sigma)[..., :, None]
    return rows * seen * _along(pixel[..., 0], width, sigma)[..., None, :], weight


def _along(pixel, count, sigma):
    """The Gaussian along one axis: pixel [B, J] -> [B, J, count]."""
    away = torch.arange(count, dtype=pixel.dtype, device=pixel.device) - pixel[..., None]
    return torch.exp(-away.square() / (2 * sigma**2)) * (away.abs() <= 3 * sigma)
