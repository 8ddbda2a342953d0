"""Every network as a denoiser: ``denoiser(x, sigma, **conditioning) ~ E[x_0 | x_sigma = x, ...]``.

A network ``F`` is wrapped with coefficients that depend on the noise level alone,

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, label(sigma)),

(Karras et al. 2022, arXiv 2206.00364, eq. 7), and what F predicts (its parameterisation) is
nothing but a choice of the three coefficients. The score is ``(D(x, sigma) - x) / sigma^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Parameterisation = Literal["edm", "eps", "v", "x0"]
DenoiserFunction = Callable[..., Tensor]  # (x, sigma, **conditioning) -> denoised, like x


class Preconditioning(NamedTuple):
    """Coefficients of the denoiser, each of the shape of sigma."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


def preconditioning(
    parameterisation: Parameterisation, sigma: Tensor, sigma_data: float = 1.0
) -> Preconditioning:
    """The coefficients of each parameterisation in sigma space.

    ====  =========================  ==================  =====================================
    name  what F predicts            c_skip              c_out
    ====  =========================  ==================  =====================================
    edm   the unit-variance residue  s_d^2/(s^2+s_d^2)   s s_d / sqrt(s^2 + s_d^2)
    eps   the noise, eps             1                   -s
    v     (eps - s x_0)/sqrt(1+s^2)  1/(1+s^2)           -s / sqrt(1 + s^2)
    x0    the clean x_0              0                   1
    ====  =========================  ==================  =====================================

    ``c_in`` is ``1 / sqrt(s^2 + s_d^2)`` for edm; eps, v and x0 are variance-preserving networks,
    which see ``x_t = x_sigma / sqrt(1 + s^2)`` whatever the variance of the data, so that
    ``sigma_data`` concerns edm alone. (At ``s_d = 1``, edm is -v.) Sources: Karras et al. 2022,
    table 1; Salimans and Ho 2022 (arXiv 2202.00512), section 4 and appendix D, for v.
    """
    scale = (1 + sigma**2).rsqrt()
    if parameterisation == "edm":
        total = (sigma**2 + sigma_data**2).rsqrt()
        return Preconditioning(total, (sigma_data * total) ** 2, sigma * sigma_data * total)
    if parameterisation == "eps":
        return Preconditioning(scale, torch.ones_like(sigma), -sigma)
    if parameterisation == "v":
        return Preconditioning(scale, scale**2, -sigma * scale)
    if parameterisation == "x0":
        return Preconditioning(scale, torch.zeros_like(sigma), torch.ones_like(sigma))
    raise ValueError(
        f"Unknown parameterisation {parameterisation!r}; choose one of "
        f"{', '.join(get_args(Parameterisation))}."
    )


def quarter_log(sigma: Tensor) -> Tensor:
    """The noise label of EDM: ``c_noise = log(sigma) / 4``."""
    return sigma.log() / 4


class Denoiser(nn.Module):
    """A network behind the one contract: ``denoiser(x, sigma, **conditioning) -> denoised``.

    Args:
        network: called as ``network(c_in * x, label, **conditioning)`` with label ``(B,)``;
            returns a tensor like x.
        parameterisation: what the network predicts; see :func:`preconditioning`.
        sigma_data: standard deviation of the data, used by ``edm``.
        noise_label: ``sigma (B,) -> label (B,)``, by default ``log(sigma) / 4``; a network trained
            on DDPM timesteps takes :class:`~dyngen.diffusion.noise.Timestep`.

    Raises: ValueError for an unknown parameterisation or a sigma_data that is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        parameterisation: Parameterisation = "edm",
        sigma_data: float = 1.0,
        noise_label: Callable[[Tensor], Tensor] = quarter_log,
    ) -> None:
        super().__init__()
        if sigma_data <= 0:
            raise ValueError(f"sigma_data is {sigma_data}; it must be positive.")
        preconditioning(parameterisation, torch.ones(()))  # an unknown name fails here, not later
        self.network = network
        self.parameterisation: Parameterisation = parameterisation
        self.sigma_data = sigma_data
        self.noise_label = noise_label

    def forward(self, x: Tensor, sigma: Tensor, **conditioning: Any) -> Tensor:
        """The estimate of the clean x.

        Args:
            x: ``(B, C, H, W)`` (or any shape that starts with B), noisy at level sigma.
            sigma: 0-d or ``(B,)``, positive.
            conditioning: handed to the network unchanged.

        Returns: like x.
        Raises: ValueError if sigma is neither 0-d nor ``(B,)``.
        """
        sigma = per_sample(sigma, x)
        c_in, c_skip, c_out = (
            align(coefficient, x)
            for coefficient in preconditioning(self.parameterisation, sigma, self.sigma_data)
        )
        output = self.network((c_in * x).to(x.dtype), self.noise_label(sigma), **conditioning)
        return (c_skip * x + c_out * output).to(x.dtype)

    def features(self, x: Tensor, sigma: Tensor, **conditioning: Any) -> Tensor:
        """The features of a network with a method of that name, like `UNet2d`, at noisy frames.

        The arguments are those of `forward`.
        """
        sigma = per_sample(sigma, x)
        c_in = align(preconditioning(self.parameterisation, sigma, self.sigma_data).c_in, x)
        network: Any = self.network
        found: Tensor = network.features(
            (c_in * x).to(x.dtype), self.noise_label(sigma), **conditioning
        )
        return found

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight of ``|D(x_sigma, sigma) - x_0|^2`` in training: ``1 / c_out^2``.

        With it the squared error of the network's own output counts equally at every noise level
        (Karras 2022, eq. 8), whatever the parameterisation: it is the simple loss of Ho et al.
        2020 for eps, the mean square of v for v, and of x_0 for x0.

        Returns: like sigma.
        """
        return preconditioning(self.parameterisation, sigma, self.sigma_data).c_out ** -2


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigma as ``(B,)`` on the device of ``x (B, ...)``, in at least single precision."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
    if sigma.shape not in {(), (1,), (len(x),)}:
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; for a batch of {len(x)} give one number or "
            f"({len(x)},)."
        )
    return sigma.expand(len(x))


def align(values: Tensor, x: Tensor) -> Tensor:
    """``values (B,)`` with trailing axes of length 1, so that it multiplies ``x (B, ...)``."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
