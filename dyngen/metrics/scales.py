"""Scores by scale: spread against skill by wavenumber, and events within a neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dyngen.metrics.calibration import SpreadSkill, spread_skill_ratio
from dyngen.metrics.crps import check_ensemble
from dyngen.metrics.spectra import isotropic_spectrum


class Fractions(NamedTuple):
    """Sums for the fractions skill score, by neighbourhood; sums of batches add up."""

    error: Tensor
    reference: Tensor

    @property
    def score(self) -> Tensor:
        """``1 - error / reference``: 1 is perfect, 0 no overlap at all; NaN without any event."""
        return 1 - self.error / self.reference


def spread_skill_by_scale(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    periodic: tuple[bool, bool] = (True, True),
    spacing: tuple[float, float] = (1.0, 1.0),
) -> SpreadSkill:
    """Spread and error of the ensemble mean by wavenumber; a ratio of 1 is calibrated there.

    Spectra of the members' deviations from their mean, over M - 1, and of the error of the mean.
    On a periodic box the squares of both add up, over the wavenumbers, to those of
    :func:`~dyngen.metrics.calibration.spread_skill`. Fields with a missing value make it NaN.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: ``(..., H, W)``, the shape of ``ensemble`` without ``member_dim``; dimensions
            before the last two are averaged over.
        member_dim: which dimension of ``ensemble`` holds the members.
        periodic: as in :func:`~dyngen.metrics.spectra.isotropic_spectrum`.
        spacing: likewise.

    Returns: ``(K,)`` float64 each; spread and ratio are NaN for a single member.
    """
    variance, error = spread_and_error_spectra(
        ensemble, observation, member_dim=member_dim, periodic=periodic, spacing=spacing
    )
    spread, skill = (
        power.reshape(-1, power.shape[-1]).mean(0).sqrt() for power in (variance, error)
    )
    return SpreadSkill(spread, skill, spread_skill_ratio(spread, skill, ensemble.shape[member_dim]))


def spread_and_error_spectra(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    periodic: tuple[bool, bool] = (True, True),
    spacing: tuple[float, float] = (1.0, 1.0),
    there: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Power of the members' deviations from their mean, over M - 1, and of the mean's error.

    Of a calibrated ensemble the second is (M + 1) / M times the first, on average and at every
    wavenumber; so it is of parts of the fields.

    Args: as in :func:`spread_skill_by_scale`;
        there: ``(..., H, W)`` which points count; deviations and errors elsewhere are taken for
            zero. None: all.

    Returns: ``(..., K)`` float64 each; the first is NaN for a single member.
    """
    check_ensemble(ensemble, observation, member_dim)
    members = ensemble.movedim(member_dim, 0)
    size = len(members)
    mean = members.mean(0, dtype=torch.float64)

    def spectrum(fields: Tensor) -> Tensor:
        kept = fields if there is None else torch.where(there, fields, 0.0)
        return isotropic_spectrum(kept, periodic=periodic, spacing=spacing)

    error = spectrum(mean - observation)
    if size == 1:
        return torch.full_like(error, torch.nan), error
    variance = torch.zeros_like(error)
    for member in members:
        variance += spectrum(member - mean) / (size - 1)
    return variance, error


def fractions_skill(
    ensemble: Tensor,
    observation: Tensor,
    threshold: float | Tensor,
    widths: Sequence[int],
    *,
    member_dim: int,
    periodic: tuple[bool, bool] = (True, True),
    weights: Tensor | None = None,
    dim: Sequence[int] | None = None,
) -> Fractions:
    """Fractions skill score (Roberts & Lean 2008): are there as many events nearby as forecast?

    The share of points above the threshold in a square around each point, forecast (the mean over
    members) and observed; ``error`` is the sum of their squared difference, ``reference`` of the
    sum of their squares. A single forecast is an ensemble of one. Points with a missing value do
    not count in a neighbourhood, which may be smaller at an edge.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: ``(..., H, W)``, the shape of ``ensemble`` without ``member_dim``.
        threshold: an event is a value above it; broadcasts against ``observation``.
        widths: sides of the squares in cells, odd.
        member_dim: which dimension of ``ensemble`` holds the members.
        periodic: whether rows and columns wrap around.
        weights: area weights that broadcast against ``observation``.
        dim: dimensions of ``observation`` to sum over; None: all.

    Returns: sums ``(*kept, len(widths))`` float64.

    Raises:
        ValueError: for a width that is even, or wider than the field.
    """
    check_ensemble(ensemble, observation, member_dim)
    height, width = observation.shape[-2:]
    for side in widths:
        if side < 1 or side % 2 == 0 or side > min(height, width):
            raise ValueError(
                f"a neighbourhood of {side} cells does not fit a field of {height} x {width}; "
                "widths must be odd and no larger."
            )
    members = ensemble.movedim(member_dim, 0)
    there = ~(observation.isnan() | members.isnan().any(0))
    above = torch.zeros(observation.shape, dtype=torch.float32, device=observation.device)
    for member in members:
        above += member > threshold
    area = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    area = area.to(observation.device).expand(observation.shape)
    # Without a gap the area within a square is the same for all fields.
    cells = area[(0,) * (area.ndim - 2)] if _same_everywhere(area, there) else area * there
    forecast, observed = above.double() / len(members) * cells, (observation > threshold) * cells
    summed = tuple(range(observation.ndim)) if dim is None else tuple(dim)
    errors, references = [], []
    for side in widths:
        count = _box_sum(cells, side, periodic).clamp_min(1e-300)
        ours = _box_sum(forecast, side, periodic) / count
        theirs = _box_sum(observed, side, periodic) / count
        errors.append((cells * (ours - theirs).square()).sum(summed))
        references.append((cells * (ours.square() + theirs.square())).sum(summed))
    return Fractions(torch.stack(errors, -1), torch.stack(references, -1))


def _same_everywhere(area: Tensor, there: Tensor) -> bool:
    """Whether all fields ``(..., H, W)`` are whole and have one area."""
    leading = area.stride()[:-2]
    return bool(there.all()) and all(
        step == 0 or size == 1 for step, size in zip(leading, area.shape, strict=False)
    )


def _box_sum(values: Tensor, side: int, periodic: tuple[bool, bool]) -> Tensor:
    """Sum over a square of cells around each point ``(..., H, W)``; beyond an edge is nothing."""
    half = side // 2
    flat = values.reshape(-1, 1, *values.shape[-2:])
    # One axis after the other: 2 n additions for a square of n^2 cells.
    for pad, box, wraps in (
        ((0, 0, half, half), (side, 1), periodic[0]),
        ((half, half, 0, 0), (1, side), periodic[1]),
    ):
        flat = F.pad(flat, pad, mode="circular" if wraps else "constant")
        flat = F.avg_pool2d(flat, box, stride=1) * side
    return flat.reshape(values.shape)
