"""The world where everything is known: each closed form against brute force in dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

SIGMA = torch.tensor([0.05, 0.7, 4.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def world() -> AutoregressiveFields:
    """Two channels of unlike variance and slope, on a box that is not square."""
    spectrum = torch.cat(
        [power_law_spectrum(3, 4, 2.0, variance=1.0), power_law_spectrum(3, 4, 3.0, variance=0.3)]
    )
    return AutoregressiveFields(spectrum, coefficient=0.7)


@pytest.fixture(scope="module")
def frames(world: AutoregressiveFields) -> Tensor:
    """Three windows: ``(3, 4, 2, 3, 4)``."""
    return world.simulate(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def joint_law(world: AutoregressiveFields, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances of ``x_sigma``, of ``(x_sigma, h)`` together, and of h, as dense matrices."""
    c = world.covariance()
    noisy = c + sigma**2 * torch.eye(len(c), dtype=c.dtype)
    cross = world.coefficient * c
    return noisy, torch.cat([torch.cat([noisy, cross], 1), torch.cat([cross, c], 1)]), c


def test_the_covariance_is_the_circulant_of_the_spectrum(world: AutoregressiveFields) -> None:
    """``C[p, q] = 1/(HW) sum_k c(k) exp(2 pi i k.(p - q))``, and none between channels."""
    covariance = world.covariance().view(2, 3, 4, 2, 3, 4)
    for channel, y, x in [(0, 0, 0), (0, 2, 1), (1, 1, 3)]:
        expected = sum(
            world.spectrum[channel, ky, kx].item()
            * math.cos(2 * math.pi * (ky * (y - 1) / 3 + kx * (x - 2) / 4))
            for ky in range(3)
            for kx in range(4)
        )
        assert covariance[channel, y, x, channel, 1, 2] == pytest.approx(expected / 12)
        assert covariance[channel, y, x, 1 - channel, 1, 2] == 0


def test_the_variance_at_a_point_is_what_was_asked_for(world: AutoregressiveFields) -> None:
    assert world.variance().tolist() == pytest.approx([1.0, 0.3])
    diagonal = world.covariance().diagonal().view(2, 12)
    torch.testing.assert_close(diagonal, world.variance()[:, None].expand(2, 12))


def test_trajectories_have_the_stationary_law(world: AutoregressiveFields) -> None:
    """Whitened with the dense covariance of two successive frames they are standard normal."""
    series = world.simulate(4000, 2, generator=torch.Generator().manual_seed(1)).double()
    c = world.covariance()
    a = world.coefficient
    both = torch.cat([torch.cat([c, a * c], 1), torch.cat([a * c, c], 1)])
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(both), series.flatten(1).T, upper=False)
    d, n = z.shape
    second = z @ z.T / n
    excess = (second - torch.eye(d)).square()
    off = torch.ones(d, d).triu(1).bool()
    chi2 = n * (excess.diagonal().sum() / 2 + excess[off].sum())
    assert stats.chi2.sf(chi2.item(), d * (d + 1) / 2) > 0.0027
    assert stats.chi2.sf((n * z.mean(1).square().sum()).item(), d) > 0.0027


def test_a_step_is_the_recursion(world: AutoregressiveFields, frames: Tensor) -> None:
    stepped = world.step(frames[:, 0], frames[:, 1])
    torch.testing.assert_close(stepped, 0.7 * frames[:, 0] + math.sqrt(1 - 0.49) * frames[:, 1])


def test_simulation_is_reproducible_and_of_the_type_asked_for(world: AutoregressiveFields) -> None:
    first, second = (
        world.simulate(2, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.shape == (2, 3, 2, 3, 4)
    assert first.dtype == torch.float32


def test_the_denoiser_is_gaussian_regression(world: AutoregressiveFields, frames: Tensor) -> None:
    x = frames[:, 0]
    for sigma in SIGMA:
        noisy, _, c = joint_law(world, sigma)
        expected = (c @ torch.linalg.solve(noisy, x.flatten(1).T)).T.view_as(x)
        torch.testing.assert_close(world.denoise(x, sigma), expected)
    by_sample = world.denoise(x, SIGMA)
    torch.testing.assert_close(by_sample[1], world.denoise(x, SIGMA[1])[1])


def test_the_logit_is_the_log_ratio_of_densities(
    world: AutoregressiveFields, frames: Tensor
) -> None:
    """``log p(x_sigma, h) - log p(x_sigma) - log p(h)`` from dense Gaussian densities."""
    history, x = frames[:, :2], frames[:, 2]
    last = history[:, -1].flatten(1)
    for sigma in SIGMA:
        noisy, both, c = joint_law(world, sigma)
        laws = [MultivariateNormal(torch.zeros(len(m)).double(), m) for m in (both, noisy, c)]
        expected = (
            laws[0].log_prob(torch.cat([x.flatten(1), last], 1))
            - laws[1].log_prob(x.flatten(1))
            - laws[2].log_prob(last)
        )
        torch.testing.assert_close(world.logit(x, sigma, history), expected)


def test_the_gradient_of_the_logit_is_autograds(
    world: AutoregressiveFields, frames: Tensor
) -> None:
    history = frames[:, :2]
    x = frames[:, 2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(world.logit(x, SIGMA, history).sum(), x)
    torch.testing.assert_close(world.logit_gradient(x.detach(), SIGMA, history), gradient)


def test_the_conditional_denoiser_is_gaussian_regression_on_both(
    world: AutoregressiveFields, frames: Tensor
) -> None:
    history, x = frames[:, :2], frames[:, 2]
    observed = torch.cat([x.flatten(1), history[:, -1].flatten(1)], 1)
    for sigma in SIGMA:
        _, both, c = joint_law(world, sigma)
        cross = torch.cat([c, world.coefficient * c], 1)
        expected = (cross @ torch.linalg.solve(both, observed.T)).T.view_as(x)
        torch.testing.assert_close(world.denoise_given(x, sigma, history), expected)


def test_guidance_with_the_exact_logit_is_the_conditional_denoiser(
    world: AutoregressiveFields, frames: Tensor
) -> None:
    history, x = frames[:, :2], frames[:, 2]
    gradient = world.logit_gradient(x, SIGMA, history)
    guided = world.denoise(x, SIGMA) + SIGMA.view(-1, 1, 1, 1) ** 2 * gradient
    torch.testing.assert_close(guided, world.denoise_given(x, SIGMA, history))


@pytest.mark.parametrize("lead", [1, 3])
def test_the_law_of_later_frames_is_the_regression_on_the_last(
    world: AutoregressiveFields, frames: Tensor, lead: int
) -> None:
    a, c = world.coefficient**lead, world.covariance()
    torch.testing.assert_close(world.conditional_mean(frames, lead), a * frames[:, -1])
    # Schur complement of the joint covariance of two frames lead apart
    expected = c - (a * c) @ torch.linalg.solve(c, a * c)
    torch.testing.assert_close(world.conditional_covariance(lead), expected)


def test_scores_of_known_forecasts(world: AutoregressiveFields) -> None:
    """Against Monte Carlo from the process itself, within three standard errors."""
    lead, n = 2, 3000
    generator = torch.Generator().manual_seed(3)
    series = world.simulate(n, lead + 1, generator=generator, dtype=torch.float64)
    truth, start = series[:, lead], series[:, 0]
    other = world.simulate(n, 1, generator=generator, dtype=torch.float64)[:, 0]
    forcing = world.simulate(n, 1, generator=generator, dtype=torch.float64)[:, 0]
    a = world.coefficient**lead
    forecast = a * start + math.sqrt(1 - a**2) * forcing
    # Half the mean difference of two draws is the expected score of the perfect forecast.
    for measured, expected in [
        ((truth - forecast).abs() / 2, world.expected_crps(lead)),
        ((truth - other).abs() / 2, world.climatology_crps()),
        ((truth - start).abs(), world.persistence_error(lead)),
    ]:
        by_trajectory = measured.mean((-2, -1))
        error = by_trajectory.std(0) / math.sqrt(n)
        assert bool(((by_trajectory.mean(0) - expected).abs() < 3 * error).all())
    correlation = (truth * start).mean((0, -2, -1)) / world.variance()
    assert correlation.tolist() == pytest.approx([world.autocorrelation(lead)] * 2, abs=0.02)
    assert world.autocorrelation(-3) == pytest.approx(0.343)


def test_the_spectrum_falls_as_its_slope_says() -> None:
    spectrum = power_law_spectrum(8, 8, slope=3.0, variance=2.0, channels=3)
    assert spectrum.shape == (3, 8, 8)
    assert spectrum.mean((-2, -1)).tolist() == pytest.approx([2.0] * 3)
    # from k = (0, 1) to k = (2, -3): 1 + |k|^2 rises from 2 to 14
    assert spectrum[0, 2, 5] / spectrum[0, 0, 1] == pytest.approx((14 / 2) ** -1.5)


@pytest.mark.parametrize(
    ("spectrum", "coefficient", "sentence"),
    [
        (torch.ones(1, 2, 2), 1.0, "coefficient is 1.0; it must lie between -1 and 1"),
        (torch.ones(2, 2), 0.5, r"spectrum must be \(C, H, W\) and positive"),
        (torch.zeros(1, 2, 2), 0.5, r"spectrum must be \(C, H, W\) and positive"),
        (torch.arange(1.0, 10).view(1, 3, 3), 0.5, "the same value at k and -k"),
    ],
)
def test_no_such_process(spectrum: Tensor, coefficient: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoregressiveFields(spectrum, coefficient)
