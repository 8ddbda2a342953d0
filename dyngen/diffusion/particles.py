"""Guidance by resampling: the logit weighs samples instead of, or as well as, steering them.

Twisted sequential Monte Carlo (Wu et al. 2023, arXiv 2306.17775) over the denoising trajectory
``x_N, ..., x_0`` at noise levels ``sigma_N > ... > sigma_0``. The unguided sampler is a Markov
chain with Gaussian kernels ``p(x_i | x_{i+1})``; the wanted chain is the same one tilted at each
level by ``exp(l(x_i, sigma_i))``, where ``l = log p(h | x_sigma) - log p(h)``. Particles drawn from
a proposal ``q`` carry the weights

    w_N = exp(l_N),    w_i = w_{i+1} * exp(l_i - l_{i+1}) * p(x_i | x_{i+1}) / q(x_i | x_{i+1}),

and are resampled when too few of them matter. With ``q = p`` no gradient is needed; with the
gradient-guided ``q`` the last factor corrects the proposal, so that both have the same target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dyngen.diffusion.denoiser import DenoiserFunction
from dyngen.diffusion.guidance import Logit, discriminator_correction, value_and_gradient, within
from dyngen.diffusion.samplers import Noise, ancestral_split, check_sigmas, level

Uniform = Callable[[int], Tensor]


@torch.no_grad()
def sample_with_particles(
    denoiser: DenoiserFunction,
    logit: Logit,
    x: Tensor,
    sigmas: Tensor,
    *,
    particles: int,
    threshold: float = 0.5,
    eta: float = 1.0,
    scale: float = 0.0,
    interval: tuple[float, float] = (0.0, math.inf),
    noise: Noise | None = None,
    uniform: Uniform | None = None,
) -> tuple[Tensor, Tensor]:
    """One sample per member, from P weighted particles each.

    The kernel from sigma to sigma' is DDIM's (see :func:`~dyngen.diffusion.samplers.ddim`),
    ``N(D + sigma_down / sigma (x - D), sigma_up^2)``, and the proposal has the same with
    ``D + scale sigma^2 grad l`` in place of D. The step to level 0 is not random: it returns the
    proposal's denoised estimate, and one particle per member is drawn by weight. A member's result
    depends on its own particles and random numbers alone.

    Args:
        denoiser: the unguided denoiser, called with all ``B * P`` particles.
        logit: ``(x (B * P, ...), sigma) -> (B * P,)``.
        x: ``(B * P, ...)`` at level ``sigmas[0]``, the P particles of a member next to each other.
        sigmas: ``(steps + 1,)`` descending, ending in 0.
        particles: P.
        threshold: a member is resampled when its effective sample size is below
            ``threshold * P``; 0 is never, 1 is at every step.
        eta: above 0 and at most 1; the kernels must be random for weights to exist.
        scale: of the gradient guidance in the proposal; 0 evaluates no gradient.
        interval: noise levels at which the gradient acts; the weights act at all of them.
        noise: a tensor -> standard normal numbers like it.
        uniform: n -> ``(n,)`` numbers in [0, 1); called once a step with n = B.

    Returns:
        the samples ``(B, ...)``, and the effective sample size ``(steps, B)`` at each level of
        ``sigmas[:-1]``, between 1 and P, before any resampling there.
    Raises: ValueError if the batch is no multiple of P, or eta is not in (0, 1].
    """
    if particles < 1 or len(x) % particles:
        raise ValueError(f"A batch of {len(x)} cannot be shared out to {particles} particles each.")
    if not 0 < eta <= 1:
        raise ValueError(f"eta is {eta}; particles need a random sampler, 0 < eta <= 1.")
    noise = noise or torch.randn_like
    uniform = uniform or (lambda n: torch.rand(n, device=x.device))
    levels = check_sigmas(sigmas)
    members = len(x) // particles

    def evaluate(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The logit as (B, P), and the correction it makes to the proposal, like x."""
        here = level(sigma, x)
        if scale == 0 or not bool(within(here, interval)):
            return logit(x, here).view(members, particles), torch.zeros_like(x)
        value, gradient = value_and_gradient(logit, x, here)
        correction = discriminator_correction(gradient, x, here, scale, interval)
        return value.view(members, particles), correction

    value, correction = evaluate(x, levels[0])
    log_weights = value
    sizes = []
    for sigma, following in pairwise(levels):
        size = effective_sample_size(log_weights)
        sizes.append(size)
        if following == 0:
            break
        chosen = systematic_resampling(log_weights, uniform(members).to(x.device))
        crowded = size < threshold * particles  # (B,)
        stay = torch.arange(particles, device=x.device)
        chosen = torch.where(crowded[:, None], chosen, stay)
        log_weights = torch.where(crowded[:, None], 0.0, log_weights)
        value = value.gather(1, chosen)
        flat = (chosen + particles * torch.arange(members, device=x.device)[:, None]).flatten()
        x, correction = x[flat], correction[flat]

        down, up = ancestral_split(sigma, following, eta)
        fresh = noise(x)
        shift = (1 - down / sigma) * correction  # mean of the proposal minus mean of the kernel
        denoised = denoiser(x, level(sigma, x))
        x = denoised + (down / sigma) * (x - denoised) + shift + up * fresh
        # log N(x; m, up^2) - log N(x; m + shift, up^2), where x = m + shift + up * fresh.
        ratio = -(shift / up * (fresh + shift / (2 * up))).flatten(1).sum(1)
        previous = value
        value, correction = evaluate(x, following)
        log_weights = log_weights + value - previous + ratio.view(members, particles)

    estimate = denoiser(x, level(sigma, x)) + correction
    drawn = draw(log_weights, uniform(members).to(x.device))
    return estimate.view(members, particles, *x.shape[1:])[
        torch.arange(members, device=x.device), drawn
    ], torch.stack(sizes)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2`` over the last axis: ``(..., P) -> (...)``, between 1 and P."""
    return 1 / log_weights.softmax(-1).square().sum(-1)


def systematic_resampling(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Which particles to go on with, in proportion to their weights.

    One uniform number per member places P equally spaced points in the cumulative weights, so
    that a particle of weight w is taken ``floor(P w)`` or ``ceil(P w)`` times (Carpenter et al.
    1999; Douc and Cappé 2005).

    Args:
        log_weights: ``(B, P)``, up to a constant per member.
        uniform: ``(B,)`` in [0, 1).

    Returns: indices ``(B, P)``, ascending.
    """
    count = log_weights.shape[-1]
    places = torch.arange(count, device=log_weights.device)
    points = (uniform.to(log_weights.dtype)[:, None] + places) / count
    return _invert(log_weights, points)


def draw(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per member by weight: ``(B, P)`` and ``(B,)`` in [0, 1) -> ``(B,)``."""
    return _invert(log_weights, uniform.to(log_weights.dtype)[:, None])[:, 0]


def _invert(log_weights: Tensor, points: Tensor) -> Tensor:
    cumulative = log_weights.softmax(-1).cumsum(-1)
    # Divided by its last value, which rounding leaves a little off 1, with every point short of
    # it, so that the search ends at a particle that has a weight.
    cumulative = cumulative / cumulative[:, -1:]
    points = points.clamp(max=1 - torch.finfo(points.dtype).eps)
    return torch.searchsorted(cumulative, points.contiguous(), right=True)
