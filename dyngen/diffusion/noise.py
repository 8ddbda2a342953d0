"""Noise levels: the grids a sampler walks down and the distributions a loss draws from.

Everything in dyngen lives in sigma space, ``x_sigma = x + sigma * eps``. A variance-preserving
(DDPM) model ``x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps`` is the same thing after
scaling: ``x_sigma = x_t / sqrt(alpha_bar_t)`` with ``sigma^2 = (1 - alpha_bar_t) / alpha_bar_t``.
Grids are float64, descending, and end in exactly 0; whoever uses one casts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def edm_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """The grid of Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    ``sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`` for
    i = 0..N-1, then 0.

    Returns: ``(steps + 1,)`` float64, from ``sigma_max`` down to ``sigma_min`` and 0.
    Raises: ValueError for fewer than one step or levels out of order.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; a noise grid needs at least 1.")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(
            f"sigma_min={sigma_min} and sigma_max={sigma_max} must satisfy 0 < min <= max."
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Variances of the forward steps of DDPM (Ho et al. 2020, section 4): ``(steps,)`` float64."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """The cosine schedule of Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17.

    ``alpha_bar(t) = cos^2((t/T + offset) / (1 + offset) * pi/2)``, and
    ``beta_t = min(1 - alpha_bar(t) / alpha_bar(t-1), largest)``: ``(steps,)`` float64.
    """
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """``sigma = sqrt((1 - alpha_bar) / alpha_bar)``, any shape."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """``alpha_bar = 1 / (1 + sigma^2)``, any shape; ``sqrt`` of it turns x_sigma into x_t."""
    return 1 / (1 + sigma**2)


def training_sigmas(betas: Tensor) -> Tensor:
    """The noise level of every DDPM timestep 0..T-1, ascending: ``(T,)`` float64.

    Raises: ValueError if a beta lies outside (0, 1), for then a level is 0 or infinite.
    """
    betas = betas.to(torch.float64)
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            "Every beta must lie strictly between 0 and 1; a schedule rescaled to zero terminal "
            "signal has no finite noise level there."
        )
    # Through log1p and expm1, as 1 - alpha_bar loses digits where alpha_bar is close to 1.
    return torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt()


def ddpm_sigmas(betas: Tensor, steps: int | None = None) -> Tensor:
    """The grid of a DDPM schedule, all of it or ``steps`` levels spaced evenly in timestep.

    A subset keeps the first and the last timestep (``linspace`` spacing, rounded to integers).

    Returns: ``(steps + 1,)`` float64, descending and ending in 0.
    Raises: ValueError if ``steps`` is less than 1 or more than there are betas.
    """
    levels = training_sigmas(betas)
    count = len(levels) if steps is None else steps
    if not 1 <= count <= len(levels):
        raise ValueError(f"steps is {count}; this schedule has 1 to {len(levels)} noise levels.")
    # From the top, so that a single step starts at the highest level.
    timesteps = torch.linspace(len(levels) - 1, 0, count, dtype=torch.float64).round().long()
    return torch.cat([levels[timesteps], levels.new_zeros(1)])


class Timestep:
    """The noise label of a network trained on DDPM timesteps: ``sigma (B,) -> timestep (B,)``.

    Between two training levels the timestep is interpolated linearly in log sigma, and outside
    their range it is the nearest end; ``rounded`` gives the nearest integer timestep, for networks
    that look it up in a table.
    """

    def __init__(self, betas: Tensor, rounded: bool = False) -> None:
        self.rounded = rounded
        # Not a buffer: a module cast to half precision would round the table with it.
        self.log_sigmas = training_sigmas(betas).log()

    def __call__(self, sigma: Tensor) -> Tensor:
        table = self.log_sigmas.to(sigma.device)
        level = sigma.to(table.dtype).log().clamp(table[0], table[-1])
        if len(table) == 1:
            return torch.zeros_like(sigma)
        above = torch.searchsorted(table, level).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        timestep = above - 1 + (level - low) / (high - low)
        return (timestep.round() if self.rounded else timestep).to(sigma.dtype)


@dataclass(frozen=True)
class LogNormalNoise:
    """``log sigma ~ N(mean, std^2)``, the training distribution of EDM (Karras 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def sample(
        self, batch: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        """``(batch,)`` float32 noise levels on ``device``."""
        source = device if generator is None else generator.device
        normal = torch.randn(batch, device=source, generator=generator)
        return (self.mean + self.std * normal).exp().to(device)


@dataclass(frozen=True)
class LogUniformNoise:
    """``log sigma`` uniform between two levels, so that each decade is seen equally often."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max} must satisfy "
                "0 < min <= max."
            )

    def sample(
        self, batch: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        """``(batch,)`` float32 noise levels on ``device``."""
        source = device if generator is None else generator.device
        uniform = torch.rand(batch, device=source, generator=generator)
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (low + (high - low) * uniform).exp().to(device)
