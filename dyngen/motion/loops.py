"""Seamless loops by motion self-guidance (Li et al. 2024, arXiv 2309.07906, section 6).

The energy of a motion that does not close is

    L_g = || F_T - F_1 ||_1 + || dF_T - dF_1 ||_1,

F the displacement and dF its time derivative. Its gradient, taken through the motion decoded from
the clean estimate, steers the sampler towards motions whose end meets their beginning:
``eps^ = eps + u sigma grad_z L_g``. Since ``D = x - sigma eps``, and sigma and the gradient belong
to the same scaling of x whatever that is, the denoised estimate is corrected by
``-u sigma^2 grad_x L_g``: a term of guidance like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dyngen.motion.spectral_volume import FRAMES, displacement_at, velocity_at


def loop_closure(volume: Tensor, frames: int = FRAMES) -> Tensor:
    """L_g of spectral volumes ``(B, K, 4, H, W)``: ``(B,)``, in pixels and pixels per frame.

    The norms are means over the image of ``|x| + |y|``, so that the weight of the energy is the
    same for images of any size.
    """
    ends = torch.tensor([frames, 1], device=volume.device)
    with torch.autocast(volume.device.type, enabled=False):  # these are differences of sums
        place, velocity = (f(volume, ends, frames) for f in (displacement_at, velocity_at))
    jumps = (place[:, 0] - place[:, 1]).abs() + (velocity[:, 0] - velocity[:, 1]).abs()
    return jumps.sum(1).mean((1, 2))


def loop_guidance(
    decode: Callable[[Tensor], Tensor],
    denoiser: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    scale: float = 200.0,
    frames: int = FRAMES,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The term ``(x, sigma, denoised) -> -u sigma^2 grad_x L_g(decode(D(x, sigma)))``.

    It works whatever the caller's grad mode.

    Args:
        decode: from a clean estimate, like x, to spectral volumes in pixels ``(B, K, 4, H, W)``;
            differentiable, each sample on its own.
        denoiser: ``(x, sigma) -> estimate``, the one that is guided, its conditioning filled in.
            The gradient is taken through it, at the cost of another evaluation. None takes it with
            respect to the estimate at hand, and for the derivative of the estimate that of data
            that are standard normal, ``1 / (1 + sigma^2)``.
        scale: u.
        frames: T.
        interval: noise levels, both included, outside which nothing is done or computed.
    """

    def term(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, device=x.device)
        inside = (sigma >= interval[0]) & (sigma <= interval[1])
        if scale == 0 or not bool(inside.any()):
            return torch.zeros_like(denoised)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (denoised if denoiser is None else x).detach().clone().requires_grad_()
            estimate = leaf if denoiser is None else denoiser(leaf, sigma.detach().clone())
            energy = loop_closure(decode(estimate), frames)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        factor = -scale * sigma**2 / (1 + sigma**2 if denoiser is None else 1)
        factor = torch.where(inside, factor, 0.0).expand(len(x))
        return (factor.view(-1, *[1] * (x.ndim - 1)) * gradient).to(denoised.dtype)

    return term
