"""Scores of every system that forecasts, and the truth's own figures over the same windows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.calibration import distance_from_flat, flatness_p_value, reduced_chi_square
from dyngen.metrics.distributions import histogram_quantile, histogram_wasserstein
from dyngen.metrics.spectra import log_spectral_distance
from dyngen.metrics.waves import log_wave_distance
from dyngen.report.event_sums import (
    event_diagrams,
    event_frequency_sums,
    event_scores,
    event_sums,
)
from dyngen.report.field_sums import field_scores, field_sums
from dyngen.report.forecast_sums import (
    Block,
    ForecastSums,
    Measure,
    Values,
    forecast_sums,
    resamplings,
    scores,
)
from dyngen.report.labels import LEVELS, PROBABILITIES, Scores
from dyngen.report.long_runs import RunStatistics
from dyngen.report.run_waves import LEAST, wave_lines, wave_sums
from dyngen.report.yardstick import COARSE, FINE, Yardstick

log = logging.getLogger(__name__)

BOUNDS = torch.tensor((0.025, 0.975), dtype=torch.float64)
NOT_OF_TRUTH = {
    "crps",
    "crps_biased",
    "mean_absolute_error",
    "rmse",
    "bias",
    "spread",
    "spread_skill",
    "std_ratio",
    "std_ratio_lead",
    "increment_std_ratio",
}
WITH_INTERVAL = {
    "crps",
    "bias",
    "spread_skill",
    "autocorrelation",
    "std_ratio",
    "energy_score",
    "variogram_score",
    "time_variogram_score",
    "threshold_weighted_crps",
    "brier",
    "brier_skill",
    "roc_area",
    "fractions_skill",
    "reliability_frequency",
}
WAVE_DIMS = ("lead_frequency", "signed_wavenumber")
DIMS_OF: dict[str, tuple[str, ...]] = {
    "autocorrelation": ("lag",),
    "std_all": (),
    "std_ratio": (),
    "increment_std": (),
    "increment_std_ratio": (),
}


def forecast_scores(
    readers: Mapping[str, tuple[Block, int]],
    target: xr.DataArray,
    yardstick: Yardstick,
    *,
    thresholds: Tensor,
    widths: Sequence[int],
    bootstrap: int,
    seed: int,
    memory: int,
) -> Scores:
    """Read and score the forecasts.

    Args:
        readers: by system, the truth first: what reads its forecasts, and its number of members.
        target: what came true, (initial, lead, y, x).
        yardstick: what to measure with.
        thresholds: ``(Q,)`` above which there is an event.
        widths: of neighbourhoods, in cells.
        bootstrap: resamplings of the initial states behind the intervals.
        seed: of the resamplings, of ties among ranks and of the tests.
        memory: bytes to work in, about.
    """
    initials = target.shape[0]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, ForecastSums] = {}
    for name, (read, members) in readers.items():
        per_initial = 64 * members * math.prod(target.shape[1:])
        size = max(1, memory // per_initial)
        blocks = [slice(i, min(i + size, initials)) for i in range(0, initials, size)]
        found[name] = forecast_sums(
            read,
            readers["truth"][0],
            yardstick,
            blocks=blocks,
            measures=_measures(name, target, yardstick, thresholds, widths),
            generator=generator,
        )
        log.info("Scored %s: %d forecasts of %d members.", name, initials, members)
    resampled = resamplings(initials, bootstrap, seed) if initials > 1 and bootstrap else None
    as_is = torch.ones(1, initials, dtype=torch.float64)
    out: Scores = {}
    crps: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name in found:
        point = _values(found[name], found["truth"], as_is)
        spread = None if resampled is None else _values(found[name], found["truth"], resampled)
        for score, (dims, values) in point.items():
            if name == "truth" and score in NOT_OF_TRUTH:
                continue
            out[score, name] = dims, values[0]
            if score in WITH_INTERVAL and spread is not None:
                interval = spread[score][1].nanquantile(BOUNDS, dim=0)
                # A score that cannot be told has no interval either.
                interval = torch.where(values[0].isnan(), torch.nan, interval)
                out[f"{score}_interval", name] = ("bound", *dims), interval
        out |= _of_totals(name, found[name], found["truth"], yardstick, seed)
        if name != "truth":
            crps[name] = point["crps"][1][0], None if spread is None else spread["crps"][1]
    out |= _ratios(crps)
    further = found["truth"].further
    if "waves" in further and initials > 1:
        halves = torch.stack(
            [
                further["waves"][start::2].sum(0) / further["wave_count"][start::2].sum()
                for start in (0, 1)
            ]
        )
        out["wave_halves", ""] = ("half", *WAVE_DIMS), halves
        out["wave_halves_distance_db", ""] = (), log_wave_distance(halves[0], halves[1])
    came = further["event_frequency"].sum(0)
    out["event_frequency", ""] = ("exceedance", "lead"), came[..., 0] / came[..., 1]
    return out


def _ratios(crps: Mapping[str, tuple[Tensor, Tensor | None]]) -> Scores:
    """CRPS over that of the first system; both resampled alike, so that what they share cancels.

    Args:
        crps: by system, (L,) as it is and (B, L) resampled.
    """
    out: Scores = {}
    if not crps:
        return out
    first, first_resampled = next(iter(crps.values()))
    for name, (value, resampled) in crps.items():
        out["crps_ratio", name] = ("lead",), value / first
        if resampled is not None and first_resampled is not None:
            interval = (resampled / first_resampled).nanquantile(BOUNDS, dim=0)
            out["crps_ratio_interval", name] = ("bound", "lead"), interval
    return out


def _measures(
    name: str,
    target: xr.DataArray,
    yardstick: Yardstick,
    thresholds: Tensor,
    widths: Sequence[int],
) -> list[Measure]:
    """What is summed of a system besides what there is for all."""
    waves: list[Measure] = []
    if target.shape[1] >= LEAST and wave_lines(yardstick) is not None:
        waves = [wave_sums]
    if name == "truth":
        return [*waves, partial(event_frequency_sums, thresholds=thresholds)]
    return [*waves, field_sums, partial(event_sums, thresholds=thresholds, widths=widths)]


def _values(sums: ForecastSums, truth: ForecastSums, counts: Tensor) -> Values:
    """Everything that is resampled: scores, beside the truth's own where they are ratios."""
    here, own = scores(sums, counts), scores(truth, counts)
    here["std_ratio"] = here["std_all"] / own["std_all"]
    here["std_ratio_lead"] = here["std"] / own["std"]
    here["increment_std_ratio"] = here["increment_std"] / own["increment_std"]
    values: Values = {name: (DIMS_OF.get(name, ("lead",)), of) for name, of in here.items()}
    if "event_counts" in sums.further:
        values |= event_scores(sums, counts) | event_diagrams(sums, counts)
    if "energy" in sums.further:
        values |= field_scores(sums, counts)
    return values


def _of_totals(
    name: str, sums: ForecastSums, truth: ForecastSums, yardstick: Yardstick, seed: int
) -> Scores:
    """Figures of all initial states together, without intervals."""
    out: Scores = {("members", name): ((), torch.tensor(float(sums.members)))}
    if sums.members > 1:
        counts = sums.rank.sum(0).double()  # (L, M + 1)
        out["rank_histogram", name] = ("lead", "rank"), counts / counts.sum(1, keepdim=True)
        out["rank_chi_square", name] = (), reduced_chi_square(counts.sum(0))
        out["rank_distance_from_flat", name] = (), distance_from_flat(counts.sum(0))
        generator = torch.Generator().manual_seed(seed)
        p_value = flatness_p_value(sums.rank.sum(1), generator=generator)
        by_lead = [flatness_p_value(of, generator=generator) for of in sums.rank.unbind(1)]
        out["rank_p_value", name] = (), p_value
        out["rank_p_value_lead", name] = ("lead",), torch.stack(by_lead)
    out["spectrum", name] = ("wavenumber",), sums.spectrum.mean(0)
    out["spectrum_lead", name] = ("lead", "wavenumber"), sums.spectrum
    out |= distribution_scores("", name, sums, truth, yardstick)
    if name != "truth":
        complete, reference = yardstick.complete, truth.spectrum
        out["log_spectral_distance_db", name] = (
            (),
            log_spectral_distance(sums.spectrum.mean(0), reference.mean(0), last=complete),
        )
        out["log_spectral_distance_db_lead", name] = (
            ("lead",),
            log_spectral_distance(sums.spectrum, reference, last=complete),
        )
    if "waves" in sums.further:
        waves, own = (
            of.further["waves"].sum(0) / of.further["wave_count"].sum() for of in (sums, truth)
        )
        out["wave_spectrum", name] = WAVE_DIMS, waves
        if name != "truth":
            out["wave_distance_db", name] = (), log_wave_distance(waves, own)
    return out


def distribution_scores(
    prefix: str,
    name: str,
    found: ForecastSums | RunStatistics,
    truth: ForecastSums | RunStatistics,
    yardstick: Yardstick,
) -> Scores:
    """Histograms and what follows from them: quantiles, tail bias, Wasserstein-1 distances."""
    probabilities = torch.tensor(PROBABILITIES, dtype=torch.float64)
    edges = yardstick.value_edges
    quantile = histogram_quantile(found.values, edges, probabilities)
    tail = quantile - histogram_quantile(truth.values, edges, probabilities)
    moved = histogram_wasserstein(found.increments, truth.increments, yardstick.increment_edges)
    return {
        (f"{prefix}value_histogram", name): (("bin",), density(found.values, edges)),
        (f"{prefix}increment_histogram", name): (
            ("bin",),
            density(found.increments, yardstick.increment_edges),
        ),
        (f"{prefix}quantile", name): (("probability",), quantile),
        (f"{prefix}value_quantile", name): (("level",), value_quantiles(found, yardstick)),
        (f"{prefix}tail_bias", name): (("probability",), tail),
        (f"{prefix}value_wasserstein", name): (
            (),
            histogram_wasserstein(found.values, truth.values, edges),
        ),
        (f"{prefix}increment_wasserstein", name): ((), moved),
    }


def value_quantiles(found: ForecastSums | RunStatistics, yardstick: Yardstick) -> Tensor:
    """Quantiles of the values as they are, for a quantile-quantile plot."""
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return histogram_quantile(found.absolute, yardstick.absolute_edges, levels)


def density(counts: Tensor, edges: Tensor) -> Tensor:
    """Probability density in coarse bins."""
    coarse = counts.reshape(COARSE, -1).sum(1)
    return coarse / coarse.sum() / (edges[:: FINE // COARSE].diff())
