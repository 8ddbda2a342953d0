"""Noise levels against the papers' formulas, diffusers' tables and their own inverses."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from dyngen.diffusion.noise import (
    LogNormalNoise,
    LogUniformNoise,
    Timestep,
    alpha_bar_from_sigma,
    cosine_betas,
    ddpm_sigmas,
    edm_sigmas,
    linear_betas,
    sigma_from_alpha_bar,
    training_sigmas,
)


def test_edm_grid_is_karras_equation_5() -> None:
    sigmas = edm_sigmas(18)
    by_hand = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    assert sigmas.dtype == torch.float64
    assert sigmas.tolist() == pytest.approx([*by_hand, 0.0], rel=1e-12)
    assert sigmas[-1] == 0


def test_a_grid_of_one_step_starts_at_the_top() -> None:
    assert edm_sigmas(1).tolist() == pytest.approx([80.0, 0.0])
    assert len(ddpm_sigmas(linear_betas(), 1)) == 2
    assert ddpm_sigmas(linear_betas(), 1)[0] == training_sigmas(linear_betas())[-1]


def test_betas_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="compares schedules with diffusers")
    linear = diffusers.DDPMScheduler(beta_schedule="linear").betas.double()
    cosine = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas.double()
    torch.testing.assert_close(linear_betas(), linear, rtol=2e-6, atol=0)
    torch.testing.assert_close(cosine_betas(), cosine, rtol=2e-6, atol=0)


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas()], ids=["linear", "cosine"])
def test_levels_are_those_of_the_cumulative_product(betas: torch.Tensor) -> None:
    alpha_bar = (1 - betas).cumprod(0)
    torch.testing.assert_close(
        training_sigmas(betas), sigma_from_alpha_bar(alpha_bar), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(alpha_bar_from_sigma(training_sigmas(betas)), alpha_bar)


def test_a_subset_of_levels_keeps_both_ends() -> None:
    levels = training_sigmas(linear_betas(1000))
    subset = ddpm_sigmas(linear_betas(1000), 4)
    assert subset.tolist() == [*levels[[999, 666, 333, 0]].tolist(), 0.0]
    assert len(ddpm_sigmas(linear_betas(1000))) == 1001
    assert (ddpm_sigmas(cosine_betas(50), 20).diff() < 0).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: edm_sigmas(0), "steps is 0"),
        (lambda: edm_sigmas(5, sigma_min=2.0, sigma_max=1.0), "0 < min <= max"),
        (lambda: ddpm_sigmas(linear_betas(10), 11), "steps is 11"),
        (lambda: ddpm_sigmas(torch.tensor([0.1, 1.0])), "zero terminal"),
        (lambda: LogUniformNoise(0.0, 1.0), "sigma_min=0.0"),
    ],
)
def test_impossible_grids_are_refused(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]


def test_timestep_inverts_the_schedule() -> None:
    betas = cosine_betas(100)
    levels = training_sigmas(betas)
    steps = torch.arange(100, dtype=torch.float64)
    timestep = Timestep(betas)
    torch.testing.assert_close(timestep(levels), steps, rtol=0, atol=1e-9)
    torch.testing.assert_close(timestep(levels.float()), steps.float(), rtol=0, atol=2e-3)
    torch.testing.assert_close(Timestep(betas, rounded=True)(levels.float()), steps.float())
    between = (levels[40] * levels[41]).sqrt()
    assert timestep(between[None]).item() == pytest.approx(40.5)
    outside = torch.tensor([1e-9, 1e9])
    assert timestep(outside).tolist() == [0, 99]


def test_training_noise_has_the_distribution_it_names() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = LogNormalNoise(-1.2, 1.2).sample(5000, "cpu", generator).log().numpy()
    uniform = LogUniformNoise(0.01, 50).sample(5000, "cpu", generator).log().numpy()
    low, width = math.log(0.01), math.log(50 / 0.01)
    assert stats.kstest(normal, stats.norm(-1.2, 1.2).cdf).pvalue > 0.0027
    assert stats.kstest(uniform, stats.uniform(low, width).cdf).pvalue > 0.0027
    assert stats.kstest(normal, stats.norm(-1.2, 1.4).cdf).pvalue < 0.0027


def test_training_noise_is_reproducible() -> None:
    for noise in (LogNormalNoise(), LogUniformNoise()):
        first, second = (noise.sample(4, "cpu", torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (4,)
