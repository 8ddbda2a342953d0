"""Scores of fields as wholes: how members hang together in space and time, and at which scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyngen.metrics.calibration import spread_skill_ratio
from dyngen.metrics.multivariate import energy_score, lagged_variogram_score
from dyngen.metrics.scales import spread_and_error_spectra
from dyngen.report.forecast_sums import ForecastSums, Sums, Values
from dyngen.report.yardstick import Yardstick

SEPARATIONS = (1, 2, 4, 8)  # of pairs of points, in cells along rows and along columns
TIME_SEPARATIONS = (1, 2, 5, 10)  # of pairs of leads, in steps
SUMS = (
    *("energy", "fields", "variogram", "pairs", "time_variogram", "time_pairs"),
    *("scale_variance", "scale_error"),
)


def field_sums(ensemble: Tensor, truth: Tensor, yardstick: Yardstick) -> Sums:
    """Sums of the scores of whole fields, for some initial states.

    The energy score takes all points of a field; the variogram scores, pairs that start from a
    fixed spread of points (:attr:`~dyngen.report.yardstick.Yardstick.stride`). A forecast that is
    missing where there is truth makes them NaN.

    Args:
        ensemble: ``(I, M, L, H, W)``.
        truth: ``(I, L, H, W)``.
        yardstick: what to measure with.

    Returns: ``energy`` and how many fields had truth, ``fields``, ``(I, L)``; ``variogram`` and
    ``pairs`` ``(I, L, separations)``; ``time_variogram`` and ``time_pairs``
    ``(I, time separations)``; ``scale_variance`` and ``scale_error`` ``(I, L, bands)``.
    """
    weights = ~truth.isnan() * yardstick.area
    total = weights.sum((-2, -1))
    energy = energy_score(
        ensemble,
        truth,
        member_dim=1,
        vector_dims=(2, 3),
        weights=weights / total.clamp_min(1e-300)[..., None, None],
    )
    variogram, pairs = _variogram(ensemble, truth, yardstick)
    in_time, pairs_in_time = _time_variogram(ensemble, truth, yardstick)
    variance, error = (
        _in_bands(power, bands_of(yardstick))
        for power in spread_and_error_spectra(
            ensemble,
            truth,
            member_dim=1,
            periodic=yardstick.periodic,
            spacing=yardstick.spacing,
            there=weights > 0,
        )
    )
    return {
        "energy": torch.where(total > 0, energy, 0.0),
        "fields": (total > 0).double(),
        "variogram": variogram,
        "pairs": pairs,
        "time_variogram": in_time,
        "time_pairs": pairs_in_time,
        "scale_variance": variance,
        "scale_error": error,
    }


def field_scores(sums: ForecastSums, counts: Tensor) -> Values:
    """Scores of resamplings of the initial states.

    Args:
        sums: with those of :func:`field_sums` among the further ones.
        counts: ``(B, I)`` how often each initial state is in each resampling.

    Returns: by name, dimensions after the first and values ``(B, ...)``.
    """
    of = {name: torch.tensordot(counts, sums.further[name], dims=1) for name in SUMS}
    by_separation = of["variogram"] / of["pairs"]
    ratio = spread_skill_ratio(of["scale_variance"].sqrt(), of["scale_error"].sqrt(), sums.members)
    return {
        "energy_score": (("lead",), of["energy"] / of["fields"]),
        "variogram_score": (("lead",), by_separation.mean(-1)),
        "variogram_score_by_separation": (("lead", "separation"), by_separation),
        "time_variogram_score": (
            ("time_separation",),
            of["time_variogram"] / of["time_pairs"],
        ),
        "spread_skill_by_scale": (("lead", "band"), ratio),
    }


def separations_of(yardstick: Yardstick) -> tuple[int, ...]:
    """Those of :data:`SEPARATIONS` that two points of the grid can be apart."""
    limits = [
        n // 2 if wraps else n - 1
        for n, wraps in zip(yardstick.shape, yardstick.periodic, strict=True)
    ]
    return tuple(s for s in SEPARATIONS if s <= min(limits))


def time_separations_of(leads: int) -> tuple[int, ...]:
    """Those of :data:`TIME_SEPARATIONS` that two of so many leads can be apart."""
    return tuple(s for s in TIME_SEPARATIONS if s < leads)


def bands_of(yardstick: Yardstick) -> list[tuple[int, int]]:
    """Octaves of wavenumbers, first and last of each: 1, 2 to 3, 4 to 7, ...

    Up to the last complete shell, which is not left to a band of its own.
    """
    complete = yardstick.complete
    bands = []
    low = 1
    while low <= complete:
        bands.append((low, min(2 * low - 1, complete)))
        low *= 2
    if len(bands) > 1 and bands[-1][1] - bands[-1][0] + 1 <= bands[-1][0] // 4:
        (first, _), (_, last) = bands[-2:]
        bands[-2:] = [(first, last)]
    return bands


def _variogram(ensemble: Tensor, truth: Tensor, yardstick: Yardstick) -> tuple[Tensor, Tensor]:
    """Scores of pairs by separation, mean of rows and columns, and whether there are any."""
    separations = separations_of(yardstick)
    if not separations:
        empty = torch.zeros(*truth.shape[:2], 0, dtype=torch.float64)
        return empty, empty
    offsets = [offset for s in separations for offset in ((0, s), (s, 0))]
    score = _lagged(
        ensemble,
        truth,
        offsets,
        periodic=yardstick.periodic,
        weights=yardstick.area,
        stride=yardstick.stride,
    )
    score, there = (part.unflatten(-1, (len(separations), 2)).sum(-1) for part in score)
    return score, there


def _time_variogram(ensemble: Tensor, truth: Tensor, yardstick: Yardstick) -> tuple[Tensor, Tensor]:
    """Scores of pairs of leads at one point, by how far the leads are apart."""
    separations = time_separations_of(truth.shape[1])
    if not separations:
        empty = torch.zeros(len(truth), 0, dtype=torch.float64)
        return empty, empty
    every = (..., *yardstick.every)
    # A field of leads and points: the weight of a pair is the product of its points' weights.
    return _lagged(
        ensemble[every].flatten(-2),
        truth[every].flatten(-2),
        [(s, 0) for s in separations],
        periodic=(False, False),
        weights=yardstick.area[every].flatten().sqrt(),
        stride=(1, 1),
    )


def _lagged(
    ensemble: Tensor,
    truth: Tensor,
    offsets: Sequence[tuple[int, int]],
    *,
    periodic: tuple[bool, bool],
    weights: Tensor,
    stride: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Variogram score where there are pairs, 0 where there are none; and 1 or 0 to say which."""

    def score(members: Tensor) -> Tensor:
        return lagged_variogram_score(
            members, truth, offsets, member_dim=1, periodic=periodic, weights=weights,
            stride=stride,
        )  # fmt: skip

    found = score(ensemble)
    there = torch.ones_like(found)
    if bool(found.isnan().any()):  # for want of truth, or of a forecast?
        there = (~score(torch.zeros_like(ensemble[:, :1])).isnan()).double()
    return torch.where(there > 0, found, 0.0), there


def _in_bands(power: Tensor, bands: Sequence[tuple[int, int]]) -> Tensor:
    """(..., K) -> (..., bands)."""
    return torch.stack([power[..., low : high + 1].sum(-1) for low, high in bands], dim=-1)
