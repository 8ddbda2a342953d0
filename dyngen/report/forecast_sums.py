"""Scores of ensemble forecasts against what came true, one initial state at a time.

Every score here is a ratio or root of sums over initial states. The sums are kept apart by initial
state, so that the scores can be computed for any resampling of them: that is where the intervals
come from. Further measures of the same forecasts (:mod:`~dyngen.report.event_sums`, of events;
:mod:`~dyngen.report.field_sums`, of whole fields) are read along with these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyngen.metrics.averages import weighted_sums
from dyngen.metrics.calibration import rank_histogram, spread_skill_ratio, variance_and_error
from dyngen.metrics.crps import crps_ensemble
from dyngen.metrics.distributions import histogram
from dyngen.metrics.temporal import correlation, lag_sums
from dyngen.report.yardstick import Yardstick

Block = Callable[[slice], Tensor]  # initial states -> (initials, members, leads, H, W)
Sums = dict[str, Tensor]  # by name, (initials, ...)
# An ensemble (I, M, L, H, W) and what came true (I, L, H, W) -> sums by initial state.
Measure = Callable[[Tensor, Tensor, Yardstick], Sums]
Values = dict[str, tuple[tuple[str, ...], Tensor]]  # by name, dimensions and (resamplings, ...)


@dataclass(frozen=True)
class ForecastSums:
    """What is left of a system's forecasts: sums by initial state (I, ...) and totals.

    ``by_initial`` holds, (I, L) each, sums of area weights (``weight``) and of weighted scores at
    every point and, (I, lags, 3), ``lags``; ``further`` what further measures found. ``rank`` is
    (I, L, M + 1), ``spectrum`` (L, K) mean power; ``values`` (anomalies), ``increments`` and
    ``absolute`` (values as they are) are histograms.
    """

    members: int
    by_initial: Sums
    further: Sums
    rank: Tensor
    spectrum: Tensor
    values: Tensor
    increments: Tensor
    absolute: Tensor


def forecast_sums(
    forecasts: Block,
    truth: Block,
    yardstick: Yardstick,
    *,
    blocks: list[slice],
    measures: Sequence[Measure] = (),
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
        measures: what else to sum.
        generator: for ties among ranks.
    """
    parts = [
        _of_block(forecasts(b), truth(b)[:, 0], yardstick, measures, generator) for b in blocks
    ]
    return ForecastSums(
        members=parts[0].members,
        by_initial=_joined([part.by_initial for part in parts]),
        further=_joined([part.further for part in parts]),
        rank=torch.cat([part.rank for part in parts]),
        spectrum=_mean_of_blocks([part.spectrum for part in parts], blocks),
        values=torch.stack([part.values for part in parts]).sum(0),
        increments=torch.stack([part.increments for part in parts]).sum(0),
        absolute=torch.stack([part.absolute for part in parts]).sum(0),
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
    crps, error_of_members = total["crps"] / weight, total["error_of_members"] / weight
    # The two forms are one error less the members' differences, over M (M - 1) pairs or M^2.
    differences = (error_of_members - crps) * (sums.members - 1) / sums.members
    return {
        "crps": crps,
        "crps_biased": error_of_members - differences,
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
    ensemble: Tensor,
    truth: Tensor,
    yardstick: Yardstick,
    measures: Sequence[Measure],
    generator: torch.Generator | None,
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
        "error_of_members": summed(_error_of_members(ensemble, truth)),
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
    further: Sums = {}
    for measure in measures:
        further |= measure(ensemble, truth, yardstick)
    return ForecastSums(
        members=members,
        by_initial=by_initial,
        further=further,
        rank=rank_histogram(ensemble, truth, member_dim=1, dim=(2, 3), generator=generator),
        spectrum=yardstick.spectrum(ensemble).mean((0, 1)),
        values=histogram(anomalies, yardstick.value_edges, every),
        increments=histogram(
            increments, yardstick.increment_edges, both[:, None].expand_as(increments)
        ),
        absolute=histogram(ensemble, yardstick.absolute_edges, every),
    )


def _error_of_members(ensemble: Tensor, truth: Tensor) -> Tensor:
    """Mean over members of ``|x_m - y|``: (I, L, H, W) float64."""
    total = torch.zeros(truth.shape, dtype=torch.float64)
    for member in ensemble.unbind(1):
        total += (member - truth).abs()
    return total / ensemble.shape[1]


def _lag_sums(anomalies: Tensor, weights: Tensor, yardstick: Yardstick) -> Tensor:
    """Lag sums over members and points: (I, lags, 3)."""
    series = anomalies.transpose(1, 2).flatten(2)  # (I, L, M * H * W)
    by_point = weights[:, :, None].expand_as(anomalies.transpose(1, 2)).flatten(2)
    return lag_sums(series, yardstick.lags, by_point)


def _joined(parts: list[Sums]) -> Sums:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _mean_of_blocks(spectra: list[Tensor], blocks: list[slice]) -> Tensor:
    sizes = torch.tensor([b.stop - b.start for b in blocks], dtype=torch.float64)
    return torch.einsum("b,blk->lk", sizes / sizes.sum(), torch.stack(spectra))
