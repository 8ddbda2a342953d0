"""The autoencoder of images: sizes, what reaches what, and mistakes."""

from __future__ import annotations

import pytest
import torch

from dyngen.networks.autoencoder import ImageAutoencoder


@pytest.mark.parametrize(("widths", "patch", "factor"), [((8,), 1, 1), ((8, 12), 2, 4)])
@pytest.mark.parametrize("boundary", [("zero", "zero"), ("reflect", "periodic")])
def test_latents_are_smaller_by_the_factor(
    widths: tuple[int, ...], patch: int, factor: int, boundary: tuple[str, str]
) -> None:
    network = ImageAutoencoder(4, 3, widths, 2, boundary, patch)
    assert network.factor == factor
    x = torch.randn(2, 4, 8, 16)
    mean, log_variance = network.encode(x)
    assert mean.shape == log_variance.shape == (2, 3, 8 // factor, 16 // factor)
    decoded = network.decode(mean)
    assert decoded.shape == x.shape
    assert decoded.abs().max() == 0  # what is not trained says nothing


def test_every_weight_has_a_part_in_it_and_images_none_in_each_other() -> None:
    torch.manual_seed(0)
    network = ImageAutoencoder(4, 3, (8, 12), 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 4, 8, 8)
    mean, log_variance = network.encode(x)
    (network.decode(mean).square().sum() + log_variance.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    alone, _ = network.encode(x[:1])
    torch.testing.assert_close(alone, mean[:1])


def test_variances_stay_finite_whatever_the_input() -> None:
    torch.manual_seed(0)
    _, log_variance = ImageAutoencoder().encode(1e6 * torch.randn(1, 4, 8, 8))
    assert torch.isfinite(log_variance.exp()).all()


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="10 x 16 pixels are no multiple of 4"):
        ImageAutoencoder(patch=2, widths=(8, 8)).encode(torch.zeros(1, 4, 10, 16))
    with pytest.raises(ValueError, match="at least one width"):
        ImageAutoencoder(widths=())
    with pytest.raises(ValueError, match="boundary is"):
        ImageAutoencoder(boundary=("open", "zero"))
