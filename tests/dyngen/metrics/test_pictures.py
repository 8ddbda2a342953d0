"""Scores of pictures against torchmetrics and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from dyngen.metrics.pictures import psnr, ssim


def test_psnr_of_a_known_error() -> None:
    truth = torch.zeros(2, 3, 4, 5)
    off = torch.stack([truth[0] + 0.2, truth[1]])
    assert psnr(off, truth).tolist() == pytest.approx([20.0, math.inf])
    assert psnr(off, truth, data_range=0.2)[0].item() == pytest.approx(0.0, abs=1e-5)


def test_ssim_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 20, 30, generator=generator) * 2 - 1
    pictures = truth + 0.3 * torch.randn(3, 3, 20, 30, generator=generator)
    _, everywhere = structural_similarity_index_measure(
        pictures.double(), truth.double(), data_range=2.0, return_full_image=True
    )
    # torchmetrics averages also where the window hangs over the edge; the paper does not.
    expected = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))
    ours = ssim(pictures, truth)
    torch.testing.assert_close(ours.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(ssim(truth, truth), torch.ones(3))


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="10 x 12 are smaller than 11 x 11"):
        ssim(torch.zeros(1, 1, 10, 12), torch.zeros(1, 1, 10, 12))
