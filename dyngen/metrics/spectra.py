"""How much variance a field has at each scale: isotropic spectra and their distance in decibels.

Along an axis that is not periodic the field is multiplied by a Hann window, which is normalised so
that white noise keeps its power; the mean is taken away before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def isotropic_spectrum(
    fields: Tensor,
    *,
    periodic: tuple[bool, bool] = (True, True),
    spacing: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Power in shells of wavenumbers ``k - 1/2 <= |k| < k + 1/2``.

    Wavenumbers count waves per length of the longer side, so that k = 1 is the longest wave that
    fits. Shells go to the corner of wavenumber space, beyond the Nyquist wavenumber of
    :func:`shells`: on a periodic box their sum is the mean square of the field (Parseval). A field
    with a missing value has NaN everywhere.

    Args:
        fields: ``(..., H, W)``.
        periodic: whether rows and columns wrap around.
        spacing: distances between rows and between columns, in the same units.

    Returns: ``(..., K)`` float64 in the square of the field's units; k = 0 is the mean.
    """
    height, width = fields.shape[-2:]
    mean = fields.mean(dim=(-2, -1), keepdim=True, dtype=torch.float64)
    window = _window(height, periodic[0])[:, None] * _window(width, periodic[1])
    # float32 would blur spectra that fall by fourteen decades, as smooth fields do.
    modes = torch.fft.rfft2((fields.double() - mean) * window.to(fields.device))
    power = modes.abs().square() / (height * width) ** 2
    # A real transform holds k and -k once, but for the columns that are their own mirror image.
    twice = torch.full((modes.shape[-1],), 2.0, dtype=torch.float64)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    index, count = _shell_index(height, width, spacing)
    power = (power * twice.to(power.device)).flatten(-2)
    spectrum = power.new_zeros(*power.shape[:-1], count)
    spectrum.index_add_(-1, index.to(power.device), power)
    spectrum[..., 0] += mean.squeeze((-2, -1)).square()
    return spectrum


def shells(
    height: int, width: int, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, int]:
    """Wavenumbers of the shells of :func:`isotropic_spectrum` and the last that is complete.

    Returns: wavenumbers ``(K,)`` float64, in waves per length of the longer side; and the largest
    wavenumber, the Nyquist one of the coarser axis, up to which a shell holds all directions.
    """
    count = _shell_index(height, width, spacing)[1]
    longest = max(height * spacing[0], width * spacing[1])
    complete = min(longest / (2 * spacing[0]), longest / (2 * spacing[1]))
    return torch.arange(count, dtype=torch.float64), math.floor(complete + 1e-9)


def log_spectral_distance(
    power: Tensor, reference: Tensor, *, floor: float = 1e-6, last: int | None = None
) -> Tensor:
    """``sqrt(mean_k (10 log10 (power_k / reference_k))^2)`` in dB; 0 is equal, 3 a factor of two.

    Args:
        power: ``(..., K)`` mean spectra, k = 0 first.
        reference: ``(K,)`` or the shape of ``power``.
        floor: shells that hold less than this share of the reference's power (without k = 0) do not
            count: there is nothing there but rounding.
        last: the last wavenumber that counts; None: all.

    Returns: ``(...)`` float64; inf when ``power`` is zero in a shell that counts.
    """
    ours = power.double()[..., 1 : None if last is None else last + 1]
    theirs = reference.double()[..., 1 : None if last is None else last + 1]
    counts = theirs > floor * theirs.sum(-1, keepdim=True)
    ratio = torch.where(counts, ours / theirs, 1.0)
    squares = (10 * ratio.log10()).square()
    return (squares.sum(-1) / counts.expand(squares.shape).sum(-1)).sqrt()


def _window(size: int, periodic: bool) -> Tensor:
    if periodic:
        return torch.ones(size, dtype=torch.float64)
    # Half a step off the edges: symmetric, and zero nowhere.
    window = torch.sin(math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size).square()
    return window / window.square().mean().sqrt()


def _shell_index(height: int, width: int, spacing: tuple[float, float]) -> tuple[Tensor, int]:
    """Shell of each mode of rfft2, flattened, and the number of shells."""
    longest = max(height * spacing[0], width * spacing[1])
    rows = torch.fft.fftfreq(height, d=spacing[0], dtype=torch.float64) * longest
    columns = torch.fft.rfftfreq(width, d=spacing[1], dtype=torch.float64) * longest
    index = (rows[:, None].square() + columns.square()).sqrt().add(0.5).floor().long()
    return index.flatten(), int(index.max()) + 1
