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
    check_ensemble(ensemble, observation, member_dim)
    members = ensemble.movedim(member_dim, 0).double()
    size = len(members)
    mean = members.mean(0)

    def spectrum(fields: Tensor) -> Tensor:
        power = isotropic_spectrum(fields, periodic=periodic, spacing=spacing)
        return power.reshape(-1, power.shape[-1]).mean(0)

    skill = spectrum(mean - observation.double()).sqrt()
    if size == 1:
        none = torch.full_like(skill, torch.nan)
        return SpreadSkill(none, skill, none)
    variance = torch.zeros_like(skill)
    for member in members:
        variance += spectrum(member - mean) / (size - 1)
    spread = variance.sqrt()
    return SpreadSkill(spread, skill, spread_skill_ratio(spread, skill, size))


def fractions_skill(
    ensemble: Tensor,
    observation: Tensor,
    threshold: float | Tensor,
    widths: Sequence[int],
    *,
    member_dim: int,
    periodic: tuple[bool, bool] = (True, True),
    weights: Tensor | None = None,
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

    Returns: sums over everything, ``(len(widths),)`` float64.

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
    forecast = torch.zeros(observation.shape, dtype=torch.float64, device=observation.device)
    for member in members:
        forecast += (member > threshold).double() / len(members)
    observed = (observation > threshold).double()
    area = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    area = area.to(observation.device).expand(observation.shape) * there
    errors, references = [], []
    for side in widths:
        count = _box_sum(area, side, periodic).clamp_min(1e-300)
        ours = _box_sum(forecast * area, side, periodic) / count
        theirs = _box_sum(observed * area, side, periodic) / count
        errors.append((area * (ours - theirs).square()).sum())
        references.append((area * (ours.square() + theirs.square())).sum())
    return Fractions(torch.stack(errors), torch.stack(references))


def _box_sum(values: Tensor, side: int, periodic: tuple[bool, bool]) -> Tensor:
    """Sum over a square of cells around each point ``(..., H, W)``; beyond an edge is nothing."""
    half = side // 2
    flat = values.reshape(-1, 1, *values.shape[-2:])
    for pad, wraps in (((0, 0, half, half), periodic[0]), ((half, half, 0, 0), periodic[1])):
        flat = F.pad(flat, pad, mode="circular" if wraps else "constant")
    summed = F.avg_pool2d(flat, side, stride=1) * side**2
    return summed.reshape(values.shape)
