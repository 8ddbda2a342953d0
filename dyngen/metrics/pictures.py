"""How near a rendered picture is to the true one, pixel by pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, SIGMA = 11, 1.5  # of the window of the structural similarity
K1, K2 = 0.01, 0.03


def psnr(pictures: Tensor, truth: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in decibels, of each picture; infinite if it is the truth.

    Args:
        pictures, truth: ``(B, C, H, W)``.
        data_range: largest less smallest value that there can be.

    Returns: ``(B,)``.
    """
    error = (pictures.double() - truth.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(data_range**2 / error)).to(pictures.dtype)


def ssim(pictures: Tensor, truth: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity of each picture to the truth, 1 if they are the same.

    With a Gaussian window of 11 pixels and a standard deviation of 1.5, averaged over all channels
    and all places where the window lies in the picture (Wang et al. 2004).

    Args:
        pictures, truth: ``(B, C, H, W)``.
        data_range: largest less smallest value that there can be.

    Returns: ``(B,)``.
    Raises: ValueError if a picture is smaller than the window.
    """
    batch, channels, height, width = pictures.shape
    if min(height, width) < SIDE:
        raise ValueError(f"Pictures of {height} x {width} are smaller than {SIDE} x {SIDE} pixels.")
    axis = torch.arange(SIDE, dtype=torch.float64, device=pictures.device) - SIDE // 2
    window = torch.exp(-axis.square() / (2 * SIGMA**2))
    window = window / window.sum()

    def mean(x: Tensor) -> Tensor:
        x = F.conv2d(x.reshape(batch * channels, 1, height, width), window.view(1, 1, -1, 1))
        return F.conv2d(x, window.view(1, 1, 1, -1))

    a, b = pictures.double(), truth.double()
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.reshape(batch, -1).mean(1).to(pictures.dtype)
