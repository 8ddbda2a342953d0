"""Guidance: corrections of the denoised estimate, which add up.

A term is a callable ``(x, sigma, denoised) -> correction`` like x; :func:`guide` adds any number
of terms to a denoiser and gives a denoiser back. Since the score is ``(D - x) / sigma^2``, a term
``sigma^2 grad log q(x)`` multiplies the density at that noise level by q (Dhariwal and Nichol
2021, arXiv 2105.05233, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dyngen.diffusion.denoiser import DenoiserFunction, align, per_sample

Term = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, sigma, denoised) -> correction
Logit = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> (B,)


def guide(denoiser: DenoiserFunction, terms: Iterable[Term]) -> DenoiserFunction:
    """The denoiser ``D(x, sigma) + sum of term(x, sigma, D)``.

    Every term sees the unguided estimate, so that the order of terms does not matter.
    """
    terms = tuple(terms)

    def guided(x: Tensor, sigma: Tensor, **conditioning: Any) -> Tensor:
        denoised = denoiser(x, sigma, **conditioning)
        corrected = denoised
        for term in terms:
            corrected = corrected + term(x, sigma, denoised)
        return corrected

    return guided


def discriminator_guidance(
    logit: Logit, scale: float = 1.0, interval: tuple[float, float] = (0.0, math.inf)
) -> Term:
    """``scale * sigma^2 * grad_x logit(x, sigma)`` where ``interval[0] <= sigma <= interval[1]``.

    With the optimal logit ``log p(h | x_sigma) - log p(h)`` and ``scale = 1`` the guided denoiser
    is ``E[x_0 | x_sigma, h]`` (Hess et al. 2025, arXiv 2505.09089).

    Args:
        logit: ``(x (B, ...), sigma) -> (B,)``, each value depending on its own sample alone. One
            with a method ``gradient(x, sigma, denoised)`` is asked for that instead, given the
            unguided estimate; see :func:`value_and_gradient` for other closed forms.
        scale: w; 1 is the principled value.
        interval: noise levels at which the term acts (Kynkäänniemi et al. 2024, arXiv 2404.07724);
            outside it the logit is not evaluated.
    """

    def term(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        inside = within(sigma, interval)
        if scale == 0 or not bool(inside.any()):
            return torch.zeros_like(x)
        closed_form = getattr(logit, "gradient", None)
        if closed_form is not None:
            gradient = closed_form(x, sigma, denoised)
        else:
            _, gradient = value_and_gradient(logit, x, sigma)
        return discriminator_correction(gradient, x, sigma, scale, interval)

    return term


def discriminator_correction(
    gradient: Tensor, x: Tensor, sigma: Tensor, scale: float, interval: tuple[float, float]
) -> Tensor:
    """``scale sigma^2 gradient`` inside the interval of noise levels and 0 outside, like x."""
    sigma = per_sample(sigma, x)
    factor = torch.where(within(sigma, interval), scale * sigma**2, 0.0)
    return (align(factor, x) * gradient).to(x.dtype)


def classifier_free_guidance(
    denoiser: DenoiserFunction,
    scale: float,
    conditional: Mapping[str, Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
) -> Term:
    """``scale * (D(x, sigma, **conditional) - D(x, sigma, **unconditional))``.

    Added to the conditional denoiser it is ``(1 + w) D(x | c) - w D(x)`` (Ho and Salimans 2022,
    arXiv 2207.12598, eq. 6); added to the unconditional one, ``scale = 1`` is the conditional.

    Args:
        conditional: conditioning of the first estimate; None takes the estimate being guided, at
            no further cost.
        unconditional: conditioning of the second; None takes the estimate being guided.

    Raises: ValueError if both are None, for then the term is 0.
    """
    if conditional is None and unconditional is None:
        raise ValueError("Give conditional, unconditional or both; without them nothing is guided.")

    def term(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        if scale == 0:
            return torch.zeros_like(denoised)
        with_condition = denoised if conditional is None else denoiser(x, sigma, **conditional)
        without = denoised if unconditional is None else denoiser(x, sigma, **unconditional)
        return scale * (with_condition - without)

    return term


def log_density_ratio(
    denoiser: DenoiserFunction,
    x: Tensor,
    sigma: Tensor,
    reference: Tensor,
    denoised: Tensor | None = None,
    **conditioning: Any,
) -> Tensor:
    """log p_sigma(x) - log p_sigma(reference), (B,), of the density that a denoiser stands for.

    The trapezoid rule along the straight line between them,
    ``<s(x) + s(reference), x - reference> / 2`` with the score ``s = (D - .) / sigma^2``: exact
    where the score is linear, else of third order in their distance.

    Args:
        x: (B, ...).
        sigma: noise level, a scalar or (B,).
        reference: like x.
        denoised: the denoiser's estimate at x, if it is known already.
    """
    level = per_sample(sigma, x)
    if denoised is None:
        denoised = denoiser(x, level, **conditioning)
    there = denoiser(reference, level, **conditioning)
    scores = ((denoised - x) + (there - reference)) / align(level**2, x)
    return (scores * (x - reference)).flatten(1).sum(1) / 2


def value_and_gradient(logit: Logit, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The logit ``(B,)`` and its gradient with respect to x, like x, both detached.

    A logit that has a method ``value_and_gradient(x, sigma)`` (a closed form, say) is asked;
    otherwise autograd is used, whatever the caller's grad mode. Under ``torch.inference_mode`` x
    and sigma are copied; other tensors the logit closes over must not be inference tensors.
    """
    closed_form = getattr(logit, "value_and_gradient", None)
    if closed_form is not None:
        value, gradient = closed_form(x, sigma)
        return value.detach(), gradient.detach()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = logit(leaf, torch.as_tensor(sigma).detach().clone())
        if value.shape != (len(x),):
            raise ValueError(
                f"The logit has shape {tuple(value.shape)}; for a batch of {len(x)} it must be "
                f"({len(x)},)."
            )
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def within(sigma: Tensor, interval: tuple[float, float]) -> Tensor:
    """Which noise levels lie in the closed interval: boolean, like sigma."""
    return (sigma >= interval[0]) & (sigma <= interval[1])
