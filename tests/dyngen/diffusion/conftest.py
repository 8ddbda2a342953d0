"""A world where everything is known, and the statistic that holds samples against it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dyngen.diffusion.denoiser import Denoiser, Parameterisation, preconditioning
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

THREE_SIGMA = 2 * stats.norm.sf(3)  # 0.0027


@pytest.fixture(scope="session")
def world() -> AutoregressiveFields:
    return AutoregressiveFields(power_law_spectrum(2, 4, slope=2.0), coefficient=0.8)


@pytest.fixture(scope="session")
def agreement() -> Callable[..., float]:
    """The smallest of four p-values, corrected for there being four: 0.0027 is three sigma."""

    def p_value(
        world: AutoregressiveFields, samples: Tensor, history: Tensor, lead: int = 1
    ) -> float:
        """Are the samples ``(N, C, H, W)`` draws of the next frames of histories ``(N, ...)``?

        With exact samples the whitened residuals z are independent standard normal, and independent
        of the whitened histories g. For n samples in d dimensions four sums are then chi-square:
        ``n |mean z|^2`` with d degrees of freedom, the squared standard errors of the regression
        of z on g with d^2, those of the covariance of z with d(d+1)/2, and ``sum z^2`` with n d,
        the sharpest for a spread that is wrong everywhere.
        """
        covariance = world.conditional_covariance(lead)
        residual = (samples - world.conditional_mean(history, lead)).flatten(1)
        z = whiten(residual, covariance)
        g = whiten(history[:, -1].flatten(1), world.covariance())
        n, d = z.shape
        second = z.T @ z / n
        excess = (second - torch.eye(d)).square()
        upper = torch.ones(d, d).triu(1).bool()
        mean = n * z.mean(0).square().sum()
        regression = (z.T @ g).square().sum() / n
        spread = n * (excess.diagonal().sum() / 2 + excess[upper].sum())
        total = stats.chi2.cdf(z.square().sum().item(), n * d)
        p_values = [
            stats.chi2.sf(mean.item(), d),
            stats.chi2.sf(regression.item(), d * d),
            stats.chi2.sf(spread.item(), d * (d + 1) / 2),
            2 * min(total, 1 - total),
        ]
        return 4 * min(p_values)

    return p_value


def whiten(rows: Tensor, covariance: Tensor) -> Tensor:
    """Rows ``(N, d)`` of that covariance, made uncorrelated and of unit variance."""
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T


@pytest.fixture(scope="session")
def three_sigma() -> float:
    return float(THREE_SIGMA)


@pytest.fixture(scope="session")
def exact_denoiser() -> Callable[..., Denoiser]:
    """A Denoiser around the network that a perfectly trained one would be."""

    def build(
        world: AutoregressiveFields, parameterisation: Parameterisation, sigma_data: float = 1.0
    ) -> Denoiser:
        network = ExactNetwork(world, parameterisation, sigma_data)
        return Denoiser(network, parameterisation, sigma_data)

    return build


class ExactNetwork(nn.Module):
    """The exact denoiser, turned into what the parameterisation asks the network for."""

    def __init__(
        self, world: AutoregressiveFields, parameterisation: Parameterisation, sigma_data: float
    ) -> None:
        super().__init__()
        self.world = world
        self.parameterisation = parameterisation
        self.sigma_data = sigma_data

    def forward(self, scaled: Tensor, label: Tensor) -> Tensor:
        sigma = (4 * label).exp()
        c_in, c_skip, c_out = (
            c.view(-1, 1, 1, 1)
            for c in preconditioning(self.parameterisation, sigma, self.sigma_data)
        )
        x = scaled / c_in
        return (self.world.denoise(x, sigma) - c_skip * x) / c_out


@pytest.fixture
def standard_normal() -> Callable[[int], Callable[[Tensor], Tensor]]:
    """seed -> a source of noise like a tensor, from one generator."""

    def source(seed: int) -> Callable[[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

        return noise

    return source
