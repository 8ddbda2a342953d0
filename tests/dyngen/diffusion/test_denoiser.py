"""Parameterisations: all reduce to the same denoiser, and weigh their losses as they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from dyngen.diffusion.denoiser import Denoiser, Parameterisation, preconditioning
from dyngen.simulate.autoregressive import AutoregressiveFields

PARAMETERISATIONS = get_args(Parameterisation)


class Recording(nn.Module):
    """A network that answers with a fixed tensor and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, label: Tensor, **conditioning: Tensor) -> Tensor:
        self.x, self.label, self.conditioning = x, label, conditioning
        return self.answer


def noisy(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, len(sigma), 1, 3, 3, dtype=torch.float64, generator=generator)
    return clean, eps, clean + sigma.view(-1, 1, 1, 1) * eps


@pytest.mark.parametrize("parameterisation", ["eps", "v", "x0"])
def test_the_target_of_the_papers_gives_back_the_clean_frame(
    parameterisation: Parameterisation,
) -> None:
    """Fed with eps, v or x_0 as DDPM and Salimans and Ho define them, D is the clean frame."""
    sigma = torch.tensor([0.003, 0.5, 1.0, 20.0], dtype=torch.float64)
    clean, eps, x = noisy(sigma)
    alpha_bar = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    target = {
        "eps": eps,
        "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * clean,
        "x0": clean,
    }[parameterisation]
    network = Recording(target)
    denoised = Denoiser(network, parameterisation)(x, sigma)
    torch.testing.assert_close(denoised, clean, rtol=1e-10, atol=1e-10)
    x_t = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * eps
    torch.testing.assert_close(network.x, x_t)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_keeps_inputs_and_targets_at_unit_variance(sigma_data: float) -> None:
    """The three conditions from which Karras et al. (appendix B.6) derive the coefficients."""
    sigma = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)
    c_in, c_skip, c_out = preconditioning("edm", sigma, sigma_data)
    data, noise = sigma_data**2, sigma**2
    torch.testing.assert_close(c_in**2 * (data + noise), torch.ones_like(sigma))
    target_variance = ((1 - c_skip) ** 2 * data + c_skip**2 * noise) / c_out**2
    torch.testing.assert_close(target_variance, torch.ones_like(sigma))
    # c_skip makes c_out as small as it can be: the derivative of its square vanishes.
    torch.testing.assert_close(-(1 - c_skip) * data + c_skip * noise, torch.zeros_like(sigma))


def test_edm_is_v_with_the_sign_turned_for_unit_variance() -> None:
    sigma = torch.logspace(-3, 2, 11, dtype=torch.float64)
    edm, v = preconditioning("edm", sigma, 1.0), preconditioning("v", sigma)
    torch.testing.assert_close(edm.c_in, v.c_in)
    torch.testing.assert_close(edm.c_skip, v.c_skip)
    torch.testing.assert_close(edm.c_out, -v.c_out)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_exact_networks_of_every_kind_are_the_same_denoiser(
    parameterisation: Parameterisation,
    world: AutoregressiveFields,
    exact_denoiser: Callable[..., Denoiser],
) -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-2.7, 1.9, 16, dtype=torch.float64)
    x = torch.randn(16, 1, 2, 4, dtype=torch.float64, generator=generator)
    x = x * (1 + sigma.view(-1, 1, 1, 1))
    denoiser = exact_denoiser(world, parameterisation, sigma_data=0.7)
    torch.testing.assert_close(denoiser(x, sigma), world.denoise(x, sigma), rtol=1e-10, atol=1e-10)
    one = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, one), world.denoise(x, one), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_weighted_loss_is_the_mean_square_of_the_networks_own_error(
    parameterisation: Parameterisation,
) -> None:
    sigma = torch.tensor([0.01, 0.7, 5.0, 60.0], dtype=torch.float64)
    clean, _, x = noisy(sigma)
    _, c_skip, c_out = preconditioning(parameterisation, sigma, 0.5)
    target = (clean - c_skip.view(-1, 1, 1, 1) * x) / c_out.view(-1, 1, 1, 1)
    error = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    denoiser = Denoiser(Recording(target + error), parameterisation, sigma_data=0.5)
    squared = (denoiser(x, sigma) - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(
        denoiser.loss_weight(sigma) * squared, error.square().mean((1, 2, 3)), rtol=1e-6, atol=0
    )
    if parameterisation == "edm":  # the published form of the weight
        published = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        torch.testing.assert_close(denoiser.loss_weight(sigma), published)


def test_the_label_and_the_conditioning_reach_the_network() -> None:
    network = Recording(torch.zeros(2, 1, 3, 3))
    image = torch.ones(2, 1)
    Denoiser(network)(torch.zeros(2, 1, 3, 3), torch.tensor(3.0), image=image)
    torch.testing.assert_close(network.label, torch.full((2,), 3.0).log() / 4)
    assert network.conditioning == {"image": image}
    Denoiser(network, noise_label=lambda sigma: 10 * sigma)(network.answer, torch.tensor(3.0))
    torch.testing.assert_close(network.label, torch.tensor([30.0, 30.0]))


def test_single_precision_is_kept_whatever_the_precision_of_sigma() -> None:
    sigma = torch.tensor(0.37, dtype=torch.float64)
    network = Recording(torch.ones(2, 1, 3, 3))
    x = torch.ones(2, 1, 3, 3)
    denoised = Denoiser(network)(x, sigma)
    assert denoised.dtype == network.label.dtype == torch.float32
    half = Denoiser(Recording(network.answer.bfloat16()))(x.bfloat16(), sigma)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), denoised, rtol=1e-2, atol=1e-2)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"Unknown parameterisation 'epsilon'; choose one of edm"):
        Denoiser(nn.Identity(), "epsilon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma_data is 0"):
        Denoiser(nn.Identity(), sigma_data=0)
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\); for a batch of 2"):
        Denoiser(Recording(torch.zeros(2, 1, 3, 3)))(torch.zeros(2, 1, 3, 3), torch.ones(3))
