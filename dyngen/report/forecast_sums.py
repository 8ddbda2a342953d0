"""Scores of ensemble forecasts against what came true, one initial state at a time.

Every score here is a ratio or root of sums over initial states. The sums are kept apart by initial
state, so that the scores can be computed for any resampling of them: that is where the intervals
come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyngen.metrics.averages import weighted_sums
from dyngen.metrics.calibration import rank_histogram, spread_skill_ratio, variance_and_error
from dyngen.metrics.crps import crps_ensemble
from dyngen.metrics.distributions import histogram
from dyngen.metrics.spectra import isotropic_spectrum
from dyngen.metrics.temporal import correlation, lag_sums

Block = Callable[[slice], Tensor]  # initial states -> (initials, members, leads, H, W)


@dataclass(frozen=True)
class Yardstick:
    """What the figures of one variable are measured with, the same for every system.

    Args:
        centre: ``(H, W)`` climatological mean, from which anomalies are taken.
        area: ``(H, W)`` area weights.
        lags: for autocorrelations, in steps.
        value_edges: bin edges for values, as anomalies.
        increment_edges: bin edges for increments.
        periodic, spacing: of the grid, as in :func:`~dyngen.metrics.spectra.isotropic_spectrum`.
    """

    centre: Tensor
    area: Tensor
    lags: tuple[int, ...]
    value_edges: Tensor
    increment_edges: Tensor
    periodic: tuple[bool, bool]
    spacing: tuple[float, float]

    def spectrum(self, fields: Tensor) -> Tensor:
        """Isotropic spectra ``(..., K)`` of ``(..., H, W)``."""
        return isotropic_spectrum(fields, periodic=self.periodic, spacing=self.spacing)


@dataclass(frozen=True)
class ForecastSums:
    """What is left of a system's forecasts: sums by initial state (I, ...) and totals.

    ``by_initial`` holds, (I, L) each, sums of area weights (``weight``) and of weighted scores at
    every point and, (I, lags, 3), ``lags``. ``rank`` is (L, M + 1), ``spectrum`` (L, K) mean
    power, ``values`` and ``increments`` are histograms.
    """

    members: int
    by_initial: dict[str, Tensor]
    rank: Tensor
    spectrum: Tensor
    values: Tensor
    increments: Tensor


def forecast_sums(
    forecasts: Block,
    truth: Block,
    yardstick: Yardstick,
    *,
    blocks: list[slice],
    generator: torch.Generator | None = None,
) -> ForecastSums:
    """Score the forecasts of a system block by block of initial states.

    Points where the truth is missing do not count; a forecast that is missing elsewhere makes its
    scores NaN.

    Args:
        forecasts: reads the members of some initial states.
        truth: reads what came true, as an ensemble of one.
        yardstick: what to measure with.
        blocks: initial states to read at a time.
        generator: for ties among ranks.
    """
    parts = [_of_block(forecasts(b), truth(b)[:, 0], yardstick, generator) for b in blocks]
    return ForecastSums(
        members=parts[0].members,
        by_initial={
            name: torch.cat([part.by_initial[name] for part in parts])
            for name in parts[0].by_initial
        },
        rank=torch.stack([part.rank for part in parts]).sum(0),
        spectrum=_mean_of_blocks([part.spectrum for part in parts], blocks),
        values=torch.stack([part.values for part in parts]).sum(0),
        increments=torch.stack([part.increments for part in parts]).sum(0),
    )


def scores(sums: ForecastSums, counts: Tensor) -> dict[str, Tensor]:
    """Scores of resamplings of the initial states.

    Args:
        counts: ``(B, I)`` how often each initial state is in each resampling; ones for the sample
            as it is.

    Returns: by name, ``(B, L)`` by lead, ``autocorrelation`` ``(B, lags)``, and over all leads
    ``(B,)`` ``std_all`` and ``increment_std``; float64.
    """
    total = {
        name: torch.tensordot(counts.double(), part, dims=1)
        for name, part in sums.by_initial.items()
    }
    weight = total["weight"]
    mean = total["anomaly"] / weight
    spread = (total["variance"] / weight).sqrt()
    skill = (total["square_error"] / weight).sqrt()
    all_mean = total["anomaly"].sum(1) / weight.sum(1)
    all_square = total["square_anomaly"].sum(1) / weight.sum(1)
    return {
        "crps": total["crps"] / weight,
        "mean_absolute_error": total["absolute_error"] / weight,
        "rmse": skill,
        "bias": total["error"] / weight,
        "spread": spread,
        "spread_skill": spread_skill_ratio(spread, skill, sums.members),
        "std": (total["square_anomaly"] / weight - mean.square()).clamp_min(0).sqrt(),
        "std_all": (all_square - all_mean.square()).clamp_min(0).sqrt(),
        "increment_std": (total["square_increment"] / total["increment_weight"]).sqrt(),
        "autocorrelation": correlation(total["lags"]),
    }


def resamplings(initials: int, samples: int, seed: int) -> Tensor:
    """Counts of a bootstrap over initial states: ``(samples, initials)`` float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(initials, (samples, initials), generator=generator)
    counts = torch.zeros(samples, initials, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def _of_block(
    ensemble: Tensor, truth: Tensor, yardstick: Yardstick, generator: torch.Generator | None
) -> ForecastSums:
    """Of an ensemble (I, M, L, H, W) and the truth (I, L, H, W)."""
    members = ensemble.shape[1]
    there = ~truth.isnan()
    weights = there * yardstick.area
    space = (-2, -1)

    def summed(points: Tensor, w: Tensor = weights) -> Tensor:
        return weighted_sums(points, w, space)[0]

    variance, error = variance_and_error(ensemble, truth, member_dim=1)
    anomalies = ensemble.double() - yardstick.centre
    increments = ensemble.double().diff(dim=2)
    both = weights[:, 1:] * there[:, :-1]
    by_initial = {
        "weight": weights.sum(space),
        "crps": summed(crps_ensemble(ensemble, truth, member_dim=1)),
        "error": summed(error),
        "absolute_error": summed(error.abs()),
        "square_error": summed(error.square()),
        "variance": summed(variance),
        "anomaly": summed(anomalies.mean(1)),
        "square_anomaly": summed(anomalies.square().mean(1)),
        "square_increment": summed(increments.square().mean(1), both).sum(1),
        "increment_weight": both.sum((1, 2, 3)),
        "lags": _lag_sums(anomalies, weights, yardstick),
    }
    every = weights[:, None].expand_as(anomalies)
    return ForecastSums(
        members=members,
        by_initial=by_initial,
        rank=rank_histogram(ensemble, truth, member_dim=1, dim=(0, 2, 3), generator=generator),
        spectrum=yardstick.spectrum(ensemble).mean((0, 1)),
        values=histogram(anomalies, yardstick.value_edges, every),
        increments=histogram(
            increments, yardstick.increment_edges, both[:, None].expand_as(increments)
        ),
    )


def _lag_sums(anomalies: Tensor, weights: Tensor, yardstick: Yardstick) -> Tensor:
    """Lag sums over members and points: (I, lags, 3)."""
    series = anomalies.transpose(1, 2).flatten(2)  # (I, L, M * H * W)
    by_point = weights[:, :, None].expand_as(anomalies.transpose(1, 2)).flatten(2)
    return lag_sums(series, yardstick.lags, by_point)


def _mean_of_blocks(spectra: list[Tensor], blocks: list[slice]) -> Tensor:
    sizes = torch.tensor([b.stop - b.start for b in blocks], dtype=torch.float64)
    return torch.einsum("b,blk->lk", sizes / sizes.sum(), torch.stack(spectra))
