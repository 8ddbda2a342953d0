"""Samplers: each a plain function that walks a noisy x down a grid of noise levels.

``sampler(denoiser, x, sigmas, *, noise=None) -> x``, where ``x`` is already at ``sigmas[0]`` (for
a start from pure noise, ``sigmas[0] * eps``), ``sigmas`` descends and ends in 0, and the denoiser
is called as ``denoiser(x, sigma)`` with a 0-d sigma. Guidance wraps the denoiser, so that no
sampler knows of it. Randomness enters through ``noise`` alone: it is given a tensor and returns
standard normal numbers like it.

All work in sigma space, where the probability-flow ODE is ``dx/dsigma = (x - D(x, sigma)) / sigma``
(Karras et al. 2022, arXiv 2206.00364, eq. 1), and the step to level 0 returns the denoised
estimate itself. Coefficients are computed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dyngen.diffusion.denoiser import DenoiserFunction

Noise = Callable[[Tensor], Tensor]


@torch.no_grad()
def heun(
    denoiser: DenoiserFunction,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """EDM's second-order sampler (Karras 2022, algorithm 2; algorithm 1 without churn).

    Each step first raises the noise to ``sigma_hat = sigma (1 + gamma)``, with
    ``gamma = min(churn / steps, sqrt(2) - 1)`` where ``s_min <= sigma <= s_max``, and then takes
    Heun's step down. It costs two evaluations a step, one in the last.

    Args:
        x: ``(B, ...)`` at level ``sigmas[0]``.
        sigmas: ``(steps + 1,)`` descending, ending in 0.
        churn: S_churn, the amount of fresh noise over the whole run; 0 is deterministic.
        s_min, s_max: levels between which noise is added.
        s_noise: standard deviation of that noise.

    Returns: like x, at level 0.
    """
    noise = noise or torch.randn_like
    levels = check_sigmas(sigmas)
    gamma_max = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    for sigma, following in pairwise(levels):
        if gamma_max > 0 and s_min <= sigma <= s_max:
            raised = sigma * (1 + gamma_max)
            x = x + math.sqrt(raised**2 - sigma**2) * s_noise * noise(x)
            sigma = raised
        denoised = denoiser(x, level(sigma, x))
        if following == 0:
            return denoised
        slope = (x - denoised) / sigma
        euler = x + (following - sigma) * slope
        slope_there = (euler - denoiser(euler, level(following, x))) / following
        x = x + (following - sigma) / 2 * (slope + slope_there)
    return x


@torch.no_grad()
def ddim(
    denoiser: DenoiserFunction,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eqs. 12 and 16) in sigma space.

    ``x' = D + sigma_down / sigma (x - D) + sigma_up eps`` with :func:`ancestral_split`. Scaling
    out ``sqrt(alpha_bar)`` makes the variance-preserving formula of the paper this one exactly.
    ``eta = 0`` is Euler's method for the probability-flow ODE, ``eta = 1`` is ancestral DDPM.

    Args:
        x: ``(B, ...)`` at level ``sigmas[0]``.
        sigmas: ``(steps + 1,)`` descending, ending in 0.
        eta: 0 to 1, how much of the posterior's standard deviation is drawn afresh.

    Returns: like x, at level 0.
    """
    noise = noise or torch.randn_like
    for sigma, following in pairwise(check_sigmas(sigmas)):
        denoised = denoiser(x, level(sigma, x))
        if following == 0:
            return denoised
        down, up = ancestral_split(sigma, following, eta)
        x = denoised + (down / sigma) * (x - denoised)
        if up > 0:
            x = x + up * noise(x)
    return x


@torch.no_grad()
def ddpm(
    denoiser: DenoiserFunction,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    variance: Literal["posterior", "beta"] = "posterior",
) -> Tensor:
    """Ancestral sampling of DDPM (Ho et al. 2020, algorithm 2) in sigma space.

    The mean is that of ``q(x_{t-1} | x_t, x_0 = D)`` (eq. 7),
    ``D + (sigma'^2 / sigma^2) (x - D)``. Its variance is one of the two choices of section 3.2:
    ``posterior`` is beta-tilde, ``sigma'^2 (sigma^2 - sigma'^2) / sigma^2``; ``beta`` is beta,
    ``(sigma^2 - sigma'^2) (1 + sigma'^2) / (1 + sigma^2)``. They are the lower and the upper bound
    on the true reverse variance, for data of no and of unit variance.

    Args:
        x: ``(B, ...)`` at level ``sigmas[0]``.
        sigmas: ``(steps + 1,)`` descending, ending in 0.

    Returns: like x, at level 0.
    """
    if variance not in {"posterior", "beta"}:
        raise ValueError(f"Unknown variance {variance!r}; choose posterior or beta.")
    noise = noise or torch.randn_like
    for sigma, following in pairwise(check_sigmas(sigmas)):
        denoised = denoiser(x, level(sigma, x))
        if following == 0:
            return denoised
        removed = sigma**2 - following**2
        if variance == "posterior":
            spread = following * math.sqrt(removed) / sigma
        else:
            spread = math.sqrt(removed * (1 + following**2) / (1 + sigma**2))
        x = denoised + (following / sigma) ** 2 * (x - denoised) + spread * noise(x)
    return x


@torch.no_grad()
def dpm_solver_pp_2m(
    denoiser: DenoiserFunction, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): two steps of memory.

    In ``lambda = -log sigma`` with ``h = lambda' - lambda`` and ``r = h_previous / h``,
    ``x' = (sigma'/sigma) x + (1 - e^-h) ((1 + 1/2r) D - 1/2r D_previous)``: second order for one
    evaluation a step. The first step and the last are of first order. Deterministic; ``noise`` is
    accepted so that every sampler is called alike.

    Args:
        x: ``(B, ...)`` at level ``sigmas[0]``.
        sigmas: ``(steps + 1,)`` descending, ending in 0.

    Returns: like x, at level 0.
    """
    previous: Tensor | None = None
    h_previous = 0.0
    for sigma, following in pairwise(check_sigmas(sigmas)):
        denoised = denoiser(x, level(sigma, x))
        if following == 0:
            return denoised
        h = math.log(sigma / following)
        if previous is None:
            slanted = denoised
        else:
            slanted = denoised + (denoised - previous) * (h / (2 * h_previous))
        x = (following / sigma) * x - math.expm1(-h) * slanted
        previous, h_previous = denoised, h
    return x


@torch.no_grad()
def self_recurrent_ddim(
    denoiser: DenoiserFunction,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    recurrences: int = 2,
) -> Tensor:
    """DDIM that takes each step several times, going back up in between.

    Noise added after a step brings x back to the level it came from, and the step is repeated: what
    guidance has pushed off the manifold of the data has time to return (Bansal et al. 2023, arXiv
    2302.07121, algorithm 1).

    Args:
        x: ``(B, ...)`` at level ``sigmas[0]``.
        sigmas: ``(steps + 1,)`` descending, ending in 0.
        recurrences: k, how often each step is taken; 1 is :func:`ddim` with ``eta = 0``.

    Returns: like x, at level 0.
    Raises: ValueError if recurrences is not positive.
    """
    if recurrences < 1:
        raise ValueError(f"recurrences must be 1 or more, not {recurrences}; 1 takes a step once.")
    noise = noise or torch.randn_like
    for sigma, following in pairwise(check_sigmas(sigmas)):
        up = math.sqrt(sigma**2 - following**2)
        for again in range(recurrences):
            if again:
                x = x + up * noise(x)
            denoised = denoiser(x, level(sigma, x))
            x = denoised + following / sigma * (x - denoised)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "heun": heun,
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "self_recurrent_ddim": self_recurrent_ddim,
}


def ancestral_split(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """What remains of the noise and what is drawn afresh on the way from sigma to a lower level.

    ``sigma_up = eta sigma' sqrt(sigma^2 - sigma'^2) / sigma`` and
    ``sigma_down^2 = sigma'^2 - sigma_up^2``, so that the two together have the new level.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must lie between 0 and 1.")
    up = eta * following * math.sqrt(sigma**2 - following**2) / sigma
    return math.sqrt(following**2 - up**2), up


def check_sigmas(sigmas: Tensor) -> list[float]:
    """The grid as numbers in double precision.

    Raises: ValueError unless it is 1-D, strictly descending, and ends in 0.
    """
    levels = torch.as_tensor(sigmas).double().flatten().tolist()
    if sigmas.ndim != 1 or len(levels) < 2 or levels[-1] != 0:
        raise ValueError(
            f"sigmas has shape {tuple(sigmas.shape)}; it must be a grid of at least two levels "
            "that ends in exactly 0."
        )
    if not all(high > low for high, low in pairwise(levels)) or math.isinf(levels[0]):
        raise ValueError("sigmas must be finite and strictly descending.")
    return levels


def level(sigma: float, x: Tensor) -> Tensor:
    """Sigma as the 0-d tensor a denoiser takes, in at least single precision."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.tensor(sigma, dtype=dtype, device=x.device)
