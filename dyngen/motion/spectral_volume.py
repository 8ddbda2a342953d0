"""Motion as a spectral volume: a few Fourier coefficients of every pixel's displacement.

The convention, here and everywhere. ``F_t(p)``, t = 1..T, is the displacement of pixel p in pixels
from a start frame to the t-th frame after it (Li et al. 2024, arXiv 2309.07906, section 4). Then

    F_t = Re sum_{k < K} S_k exp(2 pi i k t / T),

    S_0 = 1/T sum_t F_t,        S_k = 2/T sum_t F_t exp(-2 pi i k t / T).

So S_k is an amplitude in pixels, whatever T; the mean is kept as the term k = 0, whose imaginary
part is 0; the start frame, where the displacement is 0 by definition, is not among the T frames,
but time is counted from it. With ``2 K <= T + 1`` the transform there undoes the transform back for
every volume, and the other way round for every motion of K terms.

A displacement is ``(B, T, 2, H, W)``, x before y; a volume is ``(B, K, 4, H, W)`` with real x,
imaginary x, real y, imaginary y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FRAMES = 149
TERMS = 16


def spectral_volume(displacement: Tensor, terms: int = TERMS) -> Tensor:
    """The lowest terms of a motion; :func:`energy_lost` says what the others held.

    Args:
        displacement: ``(B, T, 2, H, W)`` in pixels, of any floating dtype.
        terms: K, the mean and ``K - 1`` frequencies.

    Returns: ``(B, K, 4, H, W)``, in float32 unless the displacement is in float64.
    Raises: ValueError if the shape is not as above or if there are too few frames for K terms.
    """
    displacement = _checked_displacement(displacement)
    batch, frames, _, height, width = displacement.shape
    check_terms(terms, frames)
    phase = _phase(terms, _numbers(frames, displacement), frames)
    weight = torch.full((terms, 1), 2 / frames, dtype=torch.float64, device=phase.device)
    weight[0] = 1 / frames
    basis = torch.stack([weight * phase.cos(), -weight * phase.sin()], 1)  # (K, re im, T)
    basis = basis.flatten(0, 1).to(displacement.dtype)
    volume = basis @ displacement.flatten(2)  # (B, K re im, 2 H W)
    volume = volume.view(batch, terms, 2, 2, height, width).transpose(2, 3)
    return volume.reshape(batch, terms, 4, height, width)


def displacement_frames(volume: Tensor, frames: int = FRAMES) -> Tensor:
    """The motion of a volume at the frames 1..T: ``(B, K, 4, H, W)`` to ``(B, T, 2, H, W)``.

    Raises: ValueError if the shape is not as above or if there are too few frames for K terms.
    """
    check_terms(_checked_volume(volume).shape[1], frames)
    return displacement_at(volume, _numbers(frames, volume), frames)


def displacement_at(volume: Tensor, times: Tensor, period: int = FRAMES) -> Tensor:
    """The motion at any times: between the frames, for slow motion, or beyond the period.

    Args:
        volume: ``(B, K, 4, H, W)``.
        times: ``(N,)``, in frames after the start frame; :func:`frame_times` makes them.
        period: T, the frames the volume was made of, after which it repeats itself.

    Returns: ``(B, N, 2, H, W)`` in pixels, in the dtype of the volume.
    """
    phase = _phase(_checked_volume(volume).shape[1], times, period)
    return _synthesise(volume, torch.stack([phase.cos(), -phase.sin()], 1))


def velocity_at(volume: Tensor, times: Tensor, period: int = FRAMES) -> Tensor:
    """The time derivative of :func:`displacement_at`, in pixels per frame: ``(B, N, 2, H, W)``."""
    terms = _checked_volume(volume).shape[1]
    phase = _phase(terms, times, period)
    rate = (
        2 * math.pi / period * torch.arange(terms, dtype=phase.dtype, device=phase.device)[:, None]
    )
    return _synthesise(volume, torch.stack([-rate * phase.sin(), -rate * phase.cos()], 1))


def frame_times(frames: int = FRAMES, slow: float = 1.0) -> Tensor:
    """Times ``(round(frames * slow),)`` of one period from frame 1 on, ``slow`` times as many.

    Raises: ValueError if slow is not positive.
    """
    if not slow > 0:
        raise ValueError(f"slow must be positive, not {slow}; 2 is half the speed.")
    count = round(frames * slow)
    return 1 + torch.arange(count, dtype=torch.float64) * (frames / max(count, 1))


def magnify(volume: Tensor, factor: float | Tensor) -> Tensor:
    """The volume of a motion ``factor`` times as large; a tensor ``(K,)`` has one per term."""
    if isinstance(factor, Tensor) and factor.ndim == 1:
        if len(factor) != _checked_volume(volume).shape[1]:
            raise ValueError(
                f"factor has {len(factor)} elements; a volume of {volume.shape[1]} terms needs as "
                "many, or one number."
            )
        factor = factor[:, None, None, None]
    return volume * factor


def temporal_power(displacement: Tensor) -> Tensor:
    """Mean square displacement by frequency, ``(B, T // 2 + 1)`` in square pixels.

    The sum over frequencies is the mean over frames and pixels of ``|F|^2`` (Parseval).
    """
    displacement = _checked_displacement(displacement)
    frames = displacement.shape[1]
    spectrum = torch.fft.rfft(displacement, dim=1, norm="forward")
    twice = torch.full((spectrum.shape[1],), 2.0, device=displacement.device)
    twice[0] = 1
    if frames % 2 == 0:
        twice[-1] = 1
    return spectrum.abs().square().sum(2).mean((2, 3)) * twice


def energy_lost(displacement: Tensor, terms: int = TERMS) -> Tensor:
    """The part of the mean square displacement that K terms leave out: ``(B,)`` in 0..1.

    It is the relative square error of the motion made of the volume; 0 where nothing moves.
    """
    check_terms(terms, displacement.shape[1])
    power = temporal_power(displacement)
    total = power.sum(1)
    return power[:, terms:].sum(1) / torch.where(total > 0, total, 1.0)


def frequencies(terms: int, period: int = FRAMES, frames_per_second: float = 30.0) -> Tensor:
    """The frequency of each term in hertz: ``(K,)`` in float64, from 0 on."""
    return torch.arange(terms, dtype=torch.float64) * (frames_per_second / period)


def as_complex(volume: Tensor) -> Tensor:
    """``(B, K, 4, H, W)`` real to ``(B, K, 2, H, W)`` complex, x before y."""
    parts = _checked_volume(volume).unflatten(2, (2, 2))
    return torch.complex(parts[:, :, :, 0].contiguous(), parts[:, :, :, 1].contiguous())


def as_real(coefficients: Tensor) -> Tensor:
    """``(B, K, 2, H, W)`` complex to the volume ``(B, K, 4, H, W)``."""
    return torch.stack([coefficients.real, coefficients.imag], 3).flatten(2, 3)


class FrequencyAdaptive(nn.Module):
    """Frequency-adaptive normalisation: ``sign(S) sqrt(|S| / s_k)``, element by element.

    Amplitudes fall steeply with frequency; this brings every term to the same range, and the root
    opens up the many small values (Li et al. 2024, arXiv 2309.07906, section 4.2). The scales are
    part of the state.

    Args:
        scales: ``(K,)`` in pixels, as from :class:`StreamingQuantiles`; or K, for scales of 1 that
            are to be loaded.

    Raises: ValueError if a scale is not positive and finite.
    """

    scales: Tensor

    def __init__(self, scales: Tensor | int) -> None:
        super().__init__()
        scales = torch.ones(scales) if isinstance(scales, int) else scales.float().clone()
        bad = (~((scales > 0) & torch.isfinite(scales))).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"scales[{bad[0]}] is {scales[bad[0]].item()}; every scale must be positive: leave "
                "out the terms without motion."
            )
        self.register_buffer("scales", scales)

    def normalise(self, volume: Tensor, term: Tensor | None = None) -> Tensor:
        """``(B, K, 4, H, W)`` in pixels to the same shape without units.

        Args:
            term: ``(B, n)``, where the volume is of these terms alone: ``(B, n, 4, H, W)``.
        """
        if term is None:
            scales = self._scales(volume)
        else:
            scales = self.scales.to(volume.dtype)[term][..., None, None, None]
        return volume.sign() * (volume.abs() / scales).sqrt()

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return normalised * normalised.abs() * self._scales(normalised)

    def _scales(self, volume: Tensor) -> Tensor:
        if _checked_volume(volume).shape[1] != len(self.scales):
            raise ValueError(
                f"The volume has {volume.shape[1]} terms and the normalisation "
                f"{len(self.scales)} scales; use one K for both."
            )
        return self.scales.to(volume.dtype)[:, None, None, None]


class ImageSize(nn.Module):
    """Scaling by image size, the ablation: ``S / W`` for x and ``S / H`` for y."""

    def normalise(self, volume: Tensor, term: Tensor | None = None) -> Tensor:
        """``(B, K, 4, H, W)`` in pixels to the same shape as a part of the image, for any terms."""
        return volume / self._sizes(volume)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return normalised * self._sizes(normalised)

    def _sizes(self, volume: Tensor) -> Tensor:
        height, width = _checked_volume(volume).shape[-2:]
        return volume.new_tensor([width, width, height, height])[:, None, None]


class StreamingQuantiles(nn.Module):
    """Quantiles of ``|S_k|`` over a training set that is seen once, batch by batch.

    The values are counted in bins of equal width in their logarithm, so that the result is within
    0.2 percent, independent of the order, and the counts of several processes add up. Zeros are
    left out: nothing moves there, and the mean has no imaginary part.

    Args:
        terms: K.
    """

    LOWEST, HIGHEST, BINS = -30.0, 16.0, 8192  # in powers of two of a pixel

    counts: Tensor  # (K, BINS)

    def __init__(self, terms: int = TERMS) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(terms, self.BINS, dtype=torch.int64))

    def update(self, volume: Tensor) -> None:
        """Count the elements of a volume ``(B, K, 4, H, W)``.

        Raises: ValueError if it has another K or values that are not finite.
        """
        terms = len(self.counts)
        if _checked_volume(volume).shape[1] != terms:
            raise ValueError(f"The volume has {volume.shape[1]} terms, not {terms}.")
        if not bool(torch.isfinite(volume).all()):
            raise ValueError("The volume has values that are not finite; leave out its clip.")
        size = volume.detach().abs().transpose(0, 1).reshape(terms, -1)
        step = (self.HIGHEST - self.LOWEST) / self.BINS
        place = ((size.log2() - self.LOWEST) / step).floor().clamp(0, self.BINS - 1).long()
        self.counts.scatter_add_(1, place, (size > 0).long())

    def merge(self, other: StreamingQuantiles) -> None:
        """Add the counts of another process."""
        self.counts += other.counts

    def quantile(self, q: float = 0.95) -> Tensor:
        """The q-quantile of each term, ``(K,)`` float32 in pixels.

        Raises: ValueError if q is not in 0..1 or if a term has no value other than zero.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must lie between 0 and 1, not at {q}.")
        cumulative = self.counts.double().cumsum(1)
        total = cumulative[:, -1:]
        if bool((total == 0).any()):
            term = int((total[:, 0] == 0).nonzero()[0])
            raise ValueError(f"Term {term} has no motion in any clip; use fewer terms.")
        wanted = (q * total).clamp(min=1e-9)
        place = torch.searchsorted(cumulative, wanted).clamp(max=self.BINS - 1)
        inside = self.counts.gather(1, place).clamp(min=1)
        part = 1 - (cumulative.gather(1, place) - wanted) / inside  # of the bin, from below
        step = (self.HIGHEST - self.LOWEST) / self.BINS
        return torch.exp2(self.LOWEST + (place + part) * step)[:, 0].float()


def check_terms(terms: int, frames: int) -> None:
    """Refuse more terms than so many frames determine: ValueError."""
    if terms < 1 or 2 * terms > frames + 1:
        raise ValueError(
            f"{terms} terms cannot be told from {frames} frames; use between 1 and "
            f"{(frames + 1) // 2} terms, or more frames."
        )


def _synthesise(volume: Tensor, basis: Tensor) -> Tensor:
    """Sum of a volume ``(B, K, 4, H, W)`` times a basis ``(K, re im, N)``: ``(B, N, 2, H, W)``."""
    batch, terms, _, height, width = volume.shape
    parts = volume.unflatten(2, (2, 2)).transpose(2, 3)  # (B, K, re im, x y, H, W)
    parts = parts.reshape(batch, 2 * terms, 2 * height * width)
    weights = basis.flatten(0, 1).t().to(volume.dtype)
    return (weights @ parts).view(batch, len(weights), 2, height, width)


def _phase(terms: int, times: Tensor, period: int) -> Tensor:
    """``2 pi k t / T`` as ``(K, N)`` in float64."""
    k = torch.arange(terms, dtype=torch.float64, device=times.device)
    return 2 * math.pi / period * k[:, None] * times.double()[None, :]


def _numbers(frames: int, like: Tensor) -> Tensor:
    return torch.arange(1, frames + 1, dtype=torch.float64, device=like.device)


def _checked_displacement(displacement: Tensor) -> Tensor:
    """In float32 or float64."""
    if displacement.ndim != 5 or displacement.shape[2] != 2:
        raise ValueError(
            f"A displacement must be (B, T, 2, H, W), not of shape {tuple(displacement.shape)}."
        )
    return displacement if displacement.dtype == torch.float64 else displacement.float()


def _checked_volume(volume: Tensor) -> Tensor:
    if volume.ndim != 5 or volume.shape[2] != 4:
        raise ValueError(
            f"A spectral volume must be (B, K, 4, H, W), not of shape {tuple(volume.shape)}."
        )
    return volume
