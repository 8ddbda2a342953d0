"""Loops: the energy by hand, the term against METHOD's formula, and motions that do close."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.guidance import guide
from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.samplers import self_recurrent_ddim
from dyngen.motion.loops import loop_closure, loop_guidance
from dyngen.motion.spectral_volume import displacement_frames, spectral_volume

FRAMES, TERMS = 15, 5


def noise_source(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def volumes(batch: int = 3, seed: int = 0) -> Tensor:
    return noise_source(seed)(torch.empty(batch, TERMS, 4, 2, 3, dtype=torch.float64))


def identity(estimate: Tensor) -> Tensor:
    return estimate


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """Exact for volumes that are standard normal."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype)
    return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)


def test_the_energy_is_that_of_the_ends() -> None:
    """One pixel, ``F_t = 3 cos(2 pi t / T)`` along x: its own formulas, and another term's rate."""
    volume = torch.zeros(1, TERMS, 4, 1, 1, dtype=torch.float64)
    volume[0, 1, 0] = 3.0
    step = 2 * math.pi / FRAMES
    expected = 3 * abs(1 - math.cos(step)) + 3 * step * abs(0 + math.sin(step))
    assert loop_closure(volume, FRAMES).item() == pytest.approx(expected)


def test_the_energy_is_of_the_frames_and_each_sample_has_its_own() -> None:
    volume = volumes()
    motion = displacement_frames(volume, FRAMES)
    position = (motion[:, -1] - motion[:, 0]).abs().sum(1).mean((1, 2))
    energy = loop_closure(volume, FRAMES)
    assert energy.shape == (3,)
    assert (energy > position).all()
    torch.testing.assert_close(energy[1:2], loop_closure(volume[1:2], FRAMES))
    still = spectral_volume(torch.ones(1, FRAMES, 2, 2, 3), TERMS)
    torch.testing.assert_close(loop_closure(still, FRAMES), torch.zeros(1), atol=1e-6, rtol=0)


def test_the_term_is_the_formula_in_epsilon() -> None:
    """``eps^ = eps + u s grad_z L_g`` of a variance-preserving model, z = x / sqrt(1 + sigma^2)."""
    x, u = volumes() * 2, 0.7
    sigma = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    column = sigma.view(-1, 1, 1, 1, 1)
    alpha, s = 1 / (1 + column**2).sqrt(), column / (1 + column**2).sqrt()

    z = (alpha * x).requires_grad_()
    energy = loop_closure(gaussian_denoiser(z / alpha, sigma), FRAMES)
    (gradient,) = torch.autograd.grad(energy.sum(), z)
    denoised = gaussian_denoiser(x, sigma)
    eps = (alpha * x - alpha * denoised) / s
    guided_eps = eps + u * s * gradient
    expected = (alpha * x - s * guided_eps) / alpha

    term = loop_guidance(identity, gaussian_denoiser, scale=u, frames=FRAMES)
    torch.testing.assert_close(guide(gaussian_denoiser, [term])(x, sigma), expected)
    # Without the denoiser the derivative is that of standard normal data, here the true one.
    cheap = loop_guidance(identity, scale=u, frames=FRAMES)
    torch.testing.assert_close(guide(gaussian_denoiser, [cheap])(x, sigma), expected)


def test_it_acts_within_its_interval_alone() -> None:
    x, sigma = volumes(), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    everywhere = loop_guidance(identity, frames=FRAMES)(x, sigma, x)
    within = loop_guidance(identity, frames=FRAMES, interval=(0.5, 2.0))(x, sigma, x)
    assert torch.equal(within[1], everywhere[1])
    assert within[[0, 2]].abs().max() == 0
    assert loop_guidance(identity, scale=0.0)(x, sigma, x).abs().max() == 0

    def unreachable(estimate: Tensor) -> Tensor:
        raise AssertionError("decoded outside the interval")

    outside = loop_guidance(unreachable, interval=(9.0, 10.0))(x, sigma, x)
    assert outside.abs().max() == 0


def test_it_works_where_no_gradient_is_kept() -> None:
    x, sigma = volumes(), torch.tensor(0.8, dtype=torch.float64)
    term = loop_guidance(identity, gaussian_denoiser, frames=FRAMES)
    expected = term(x, sigma, x)
    with torch.no_grad():
        assert torch.equal(term(x, sigma, x), expected)
    with torch.inference_mode():
        inside = term(x * 1, sigma * 1, x)
    torch.testing.assert_close(inside.clone(), expected)


@pytest.mark.parametrize("recurrences", [1, 2])
def test_guided_motions_close(recurrences: int) -> None:
    sigmas = edm_sigmas(24, sigma_max=20.0)
    start = sigmas[0] * volumes(batch=16, seed=5)
    # The mean is over 6 pixels alone, so that a small u is a strong one.
    term = loop_guidance(identity, gaussian_denoiser, scale=2.0, frames=FRAMES)
    free, guided = (
        self_recurrent_ddim(denoiser, start, sigmas, noise=noise_source(6), recurrences=recurrences)
        for denoiser in (gaussian_denoiser, guide(gaussian_denoiser, [term]))
    )
    energies = [loop_closure(sample, FRAMES).mean().item() for sample in (guided, free)]
    assert energies[0] < 0.6 * energies[1]
    # What is asked for is a loop, not stillness.
    sway = displacement_frames(guided, FRAMES).std(1).mean()
    assert sway > 0.6 * displacement_frames(free, FRAMES).std(1).mean()
