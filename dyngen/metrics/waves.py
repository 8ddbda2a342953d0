"""Waves in space and time: how much variance moves at which wavenumber and frequency.

As in Wheeler & Kiladis (1999, doi 10.1175/1520-0469(1999)056<0374:CCEWAO>2.0.CO;2): a field along a
circle of latitude, or a periodic axis, is cut into overlapping segments of time, whose trend is
taken away and whose ends are tapered; the squared Fourier transform tells what moves east (positive
wavenumbers) from what moves west.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class WaveSpectrum(NamedTuple):
    """Power by frequency and wavenumber.

    ``power`` ``(..., F, X)`` in the square of the field's units: summed, the variance of the
    tapered field. ``frequency`` ``(F,)`` from zero to one half, in cycles per step; ``wavenumber``
    ``(X,)`` ascending, in waves per axis, positive for waves that move towards larger x.
    """

    power: Tensor
    frequency: Tensor
    wavenumber: Tensor


def wave_spectrum(
    fields: Tensor, *, segment: int, overlap: int | None = None, taper: float = 0.1
) -> WaveSpectrum:
    """Wavenumber-frequency spectrum of fields along a periodic axis.

    Segments with a missing value are left out; if none is whole the power is NaN.

    Args:
        fields: ``(..., T, X)``: steps and a periodic axis. Dimensions before are kept (latitudes,
            members: take the mean over them, weighted by area).
        segment: steps in a segment.
        overlap: steps that a segment shares with the next; None: half.
        taper: share of a segment, at each end, that fades in and out as a cosine; what is left is
            scaled so that white noise keeps its power.

    Raises:
        ValueError: when there is not one whole segment, or it overlaps itself.
    """
    shared = segment // 2 if overlap is None else overlap
    length, size = fields.shape[-2:]
    if segment < 2 or length < segment or not 0 <= shared < segment:
        raise ValueError(
            f"{length} steps cannot be cut into segments of {segment} that share {shared}."
        )
    if not 0 <= taper <= 0.5:
        raise ValueError(f"taper is {taper}; it must be between 0 and 0.5 of a segment.")
    window = _taper(segment, taper).to(fields.device)
    cut = fields.double().unfold(-2, segment, segment - shared)  # (..., S, X, segment)
    whole = ~cut.isnan().any(-1).any(-1)
    prepared = _detrended(torch.where(whole[..., None, None], cut, 0.0)) * window
    # Time forwards and space backwards: cos(k x - w t) comes out at +k and +w.
    modes = torch.fft.fft(torch.fft.rfft(prepared, dim=-1), dim=-2) / (segment * size)
    power = modes.abs().square().movedim(-1, -2)  # (..., S, F, X) with fft order in space
    twice = torch.full((power.shape[-2],), 2.0, dtype=torch.float64, device=power.device)
    twice[0] = 1.0
    if segment % 2 == 0:
        twice[-1] = 1.0
    total = (power * twice[:, None]).sum(-3)
    mean = total / whole.sum(-1)[..., None, None]
    # exp(i k x) exp(+i w t) moves to smaller x, so that the sign of k turns.
    order = torch.argsort(-torch.fft.fftfreq(size, d=1 / size, dtype=torch.float64), stable=True)
    frequency = torch.fft.rfftfreq(segment, dtype=torch.float64)
    return WaveSpectrum(mean[..., order], frequency, _wavenumbers(size))


def _wavenumbers(size: int) -> Tensor:
    """Waves along an axis of so many points, ascending, towards larger x positive."""
    return -torch.fft.fftfreq(size, d=1 / size, dtype=torch.float64).sort(descending=True).values


def background(power: Tensor, passes: int = 10) -> Tensor:
    """A spectrum smoothed with weights 1-2-1 in frequency and wavenumber, many times over.

    Power over its background shows the waves that stand out.

    Args:
        power: ``(..., F, X)``.
        passes: how many times.
    """
    smooth = power.double()
    for _ in range(passes):
        for dim in (-2, -1):
            size = smooth.shape[dim]
            before = smooth.narrow(dim, 0, 1)
            after = smooth.narrow(dim, size - 1, 1)
            padded = torch.cat([before, smooth, after], dim)
            smooth = (
                padded.narrow(dim, 0, size)
                + 2 * padded.narrow(dim, 1, size)
                + padded.narrow(dim, 2, size)
            ) / 4
    return smooth


def log_wave_distance(power: Tensor, reference: Tensor, *, floor: float = 1e-6) -> Tensor:
    """Root mean square, over wavenumbers and frequencies, of ``10 log10 (power / reference)``, dB.

    0 is equal, 3 a factor of two everywhere. What does not vary, in time or space, does not count
    (frequency zero holds what is left of the mean, wavenumber zero the box as a whole), nor what
    is less than ``floor`` of the reference's power: there is nothing there but rounding.

    Args:
        power: ``(..., F, X)``, as :func:`wave_spectrum` gives it: frequency zero first.
        reference: ``(F, X)`` or the shape of ``power``.
        floor: a share of all power.

    Returns: ``(...)`` float64.
    """
    ours, theirs = power.double()[..., 1:, :], reference.double()[..., 1:, :]
    counts = theirs > floor * theirs.sum((-2, -1), keepdim=True)
    counts = counts & (_wavenumbers(theirs.shape[-1]).to(counts.device) != 0)
    squares = torch.where(counts, 10 * (ours / theirs).log10(), 0.0).square()
    return (squares.sum((-2, -1)) / counts.expand(squares.shape).sum((-2, -1))).sqrt()


def symmetric_and_antisymmetric(fields: Tensor, *, latitude_dim: int) -> tuple[Tensor, Tensor]:
    """The parts of a field that are alike and opposite across the equator, of which it is the sum.

    Args:
        fields: any shape, with latitudes symmetric about the equator along ``latitude_dim``.
        latitude_dim: which dimension that is.
    """
    mirrored = fields.flip(latitude_dim)
    return (fields + mirrored) / 2, (fields - mirrored) / 2


def _detrended(series: Tensor) -> Tensor:
    """Less the straight line through each series, along the last dimension."""
    steps = torch.arange(series.shape[-1], dtype=torch.float64, device=series.device)
    steps = steps - steps.mean()
    slope = (series * steps).sum(-1, keepdim=True) / steps.square().sum()
    return series - series.mean(-1, keepdim=True) - slope * steps


def _taper(length: int, share: float) -> Tensor:
    """A split cosine bell with mean square 1."""
    ends = max(0, round(share * length))
    window = torch.ones(length, dtype=torch.float64)
    if ends:
        rise = 0.5 * (
            1 - torch.cos(math.pi * (torch.arange(ends, dtype=torch.float64) + 0.5) / ends)
        )
        window[:ends] = rise
        window[-ends:] = rise.flip(0)
    return window / window.square().mean().sqrt()
