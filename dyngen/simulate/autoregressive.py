"""Autoregressive fields: a world in which everything dyngen estimates is known exactly.

    x_{t+1} = a x_t + sqrt(1 - a^2) n_t,    n_t ~ N(0, C) independent,

on a periodic box, with a spatial covariance C that is the same everywhere, so that the Fourier
modes are independent. The process is stationary with ``x_t ~ N(0, C)``, and Gaussian at every
noise level: the denoiser, the discriminator's logit and the law of the next frame have closed
forms. Channels are independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def power_law_spectrum(
    height: int, width: int, slope: float = 3.0, variance: float = 1.0, channels: int = 1
) -> Tensor:
    """Eigenvalues of a covariance that falls off as ``(1 + |k|^2)^(-slope / 2)``.

    k is the integer wavenumber vector; the mean of the eigenvalues, which is the variance of the
    field at a point, is ``variance``.

    Returns: ``(channels, height, width)`` float64, in the order of ``torch.fft.fft2``.
    """
    ky = torch.fft.fftfreq(height, d=1 / height, dtype=torch.float64)
    kx = torch.fft.fftfreq(width, d=1 / width, dtype=torch.float64)
    density = (1 + ky[:, None] ** 2 + kx**2) ** (-slope / 2)
    return (variance * density / density.mean()).expand(channels, height, width).clone()


@dataclass(frozen=True, eq=False)
class AutoregressiveFields:
    """The process, and what is known of it.

    Args:
        spectrum: ``(C, H, W)`` eigenvalues of the covariance of each channel, in the order of
            ``torch.fft.fft2``; their mean is the variance at a point. Positive, and equal at k
            and -k, as the covariance of a real field must be.
        coefficient: a, the correlation from one frame to the next, strictly between -1 and 1.

    Raises: ValueError for a spectrum or a coefficient that belongs to no such process.
    """

    spectrum: Tensor
    coefficient: float

    def __post_init__(self) -> None:
        if not -1 < self.coefficient < 1:
            raise ValueError(f"coefficient is {self.coefficient}; it must lie between -1 and 1.")
        if self.spectrum.ndim != 3 or not bool((self.spectrum > 0).all()):
            raise ValueError("spectrum must be (C, H, W) and positive everywhere.")
        mirrored = self.spectrum.flip(-2, -1).roll((1, 1), (-2, -1))
        if not torch.allclose(self.spectrum, mirrored):
            raise ValueError("spectrum must have the same value at k and -k.")

    # The process

    def simulate(
        self,
        trajectories: int,
        frames: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Independent stationary trajectories: ``(trajectories, frames, C, H, W)``."""
        shape = (trajectories, *self.spectrum.shape)
        frame = self._noise(shape, generator, dtype)
        series = [frame]
        for _ in range(frames - 1):
            frame = self.step(frame, self._noise(shape, generator, dtype))
            series.append(frame)
        return torch.stack(series, dim=1)

    def step(self, frame: Tensor, forcing: Tensor) -> Tensor:
        """The next frame, given ``forcing ~ N(0, C)``; both ``(B, C, H, W)``."""
        return self.coefficient * frame + math.sqrt(1 - self.coefficient**2) * forcing

    def _noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None, dtype: torch.dtype
    ) -> Tensor:
        device = self.spectrum.device
        white = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return self._filter(white, self.spectrum.sqrt())

    # The law of later frames

    def conditional_mean(self, history: Tensor, lead: int = 1) -> Tensor:
        """``E[x_{t+lead} | history] = a^lead x_t``: ``(B, k, C, H, W) -> (B, C, H, W)``.

        The process is Markov: only the last frame of the history counts.
        """
        return self.coefficient**lead * history[:, -1]

    def conditional_covariance(self, lead: int = 1) -> Tensor:
        """``(1 - a^(2 lead)) C`` over flattened frames: ``(C*H*W, C*H*W)``."""
        return (1 - self.coefficient ** (2 * lead)) * self.covariance()

    def covariance(self) -> Tensor:
        """C over flattened frames: ``(C*H*W, C*H*W)`` like the spectrum."""
        size = self.spectrum.numel()
        basis = torch.eye(size, dtype=self.spectrum.dtype, device=self.spectrum.device)
        return self._filter(basis.view(size, *self.spectrum.shape), self.spectrum).flatten(1)

    # Exact parts of a guided diffusion model

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact denoiser ``E[x_0 | x_sigma]``, per mode ``c / (c + sigma^2) x_sigma``.

        Args: x ``(B, C, H, W)``; sigma 0-d or ``(B,)``. Returns: like x.
        """
        return self._filter(x, self._shrinkage(sigma))

    def denoise_given(self, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        """The exact conditional denoiser ``E[x_0 | x_sigma, history]``, what guidance aims at.

        Per mode, with m the conditional mean and ``q = (1 - a^2) c`` the conditional variance,
        ``m + q / (q + sigma^2) (x_sigma - m)``. Shapes as in :meth:`denoise` and :meth:`logit`.
        """
        mean = self.conditional_mean(history)
        variance = (1 - self.coefficient**2) * self.spectrum
        return mean + self._filter(x - mean, variance / (variance + _columns(sigma) ** 2))

    def logit(self, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        """The optimal discriminator's logit ``log p(h | x_sigma) - log p(h)``, in closed form.

        Per mode, with c the eigenvalue and ``g = c / (c + sigma^2)``, the last frame of the
        history is ``N(0, c)`` and, given ``x_sigma``, ``N(a g x_sigma, c (1 - a^2 g))``, for the
        stationary process is the same backwards in time. Differentiable in x.

        Args:
            x: ``(B, C, H, W)`` at level sigma.
            sigma: 0-d or ``(B,)``.
            history: ``(B, k, C, H, W)``, clean; its last frame counts.

        Returns: ``(B,)``.
        """
        last, residual, remaining = self._backward_law(x, sigma, history)
        log_ratio = -0.5 * remaining.log().flatten(1).sum(1)
        prior = 0.5 * (last * self._filter(last, 1 / self.spectrum)).flatten(1).sum(1)
        weighted = self._filter(residual, 1 / (remaining * self.spectrum))
        return log_ratio.to(x.dtype) + prior - 0.5 * (residual * weighted).flatten(1).sum(1)

    def logit_gradient(self, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        """``grad_x logit``, per mode ``a g (h - a g x_sigma) / (c (1 - a^2 g))``, like x."""
        _, residual, remaining = self._backward_law(x, sigma, history)
        gain = self.coefficient * self._shrinkage(sigma) / (remaining * self.spectrum)
        return self._filter(residual, gain)

    def _backward_law(
        self, x: Tensor, sigma: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last frame h, ``h - E[h | x_sigma]``, and the share of its variance that remains."""
        last = history[:, -1]
        shrinkage = self._shrinkage(sigma)
        residual = last - self.coefficient * self._filter(x, shrinkage)
        return last, residual, 1 - self.coefficient**2 * shrinkage

    def _shrinkage(self, sigma: Tensor) -> Tensor:
        return self.spectrum / (self.spectrum + _columns(sigma) ** 2)  # (1 or B, C, H, W)

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        """Multiplies each Fourier mode of x ``(B, C, H, W)`` by a gain, real and even in k."""
        half = gain[..., : x.shape[-1] // 2 + 1].to(x.dtype)
        return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=x.shape[-2:])

    # Closed forms of scores

    def variance(self) -> Tensor:
        """The variance at a point, per channel: ``(C,)``."""
        return self.spectrum.mean((-2, -1))

    def autocorrelation(self, lag: int) -> float:
        """``a^|lag|``, at every point and for every mode."""
        return self.coefficient ** abs(lag)

    def expected_crps(self, lead: int) -> Tensor:
        """Expected CRPS of the perfect forecast, per channel ``(C,)``: ``s / sqrt(pi)``.

        s is the conditional standard deviation at a point; the CRPS of N(0, s^2) against its own
        draws is half the mean difference of two of them (Gneiting and Raftery 2007, eq. 21).
        """
        spread = (1 - self.coefficient ** (2 * lead)) * self.variance()
        return (spread / math.pi).sqrt()

    def climatology_crps(self) -> Tensor:
        """Expected CRPS of the stationary law as a forecast, per channel ``(C,)``."""
        return (self.variance() / math.pi).sqrt()

    def persistence_error(self, lead: int) -> Tensor:
        """``E|x_{t+lead} - x_t|`` at a point, which is the CRPS of persistence: ``(C,)``."""
        return (2 * (1 - self.coefficient**lead) * self.variance() * 2 / math.pi).sqrt()


def _columns(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1, 1, 1)
