"""Figures of long free runs beside the climate of held-out truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.spectra import log_spectral_distance
from dyngen.metrics.temporal import correlation, drift
from dyngen.metrics.waves import log_wave_distance
from dyngen.report.forecast_scores import BOUNDS, density, distribution_scores, value_quantiles
from dyngen.report.labels import Scores
from dyngen.report.long_runs import Observer, RunStatistics, run_statistics
from dyngen.report.run_extremes import (
    BlockMaxima,
    block_length,
    return_level_intervals,
    return_levels,
    shown_maxima,
)
from dyngen.report.run_waves import WaveSums, segment_length, wave_lines
from dyngen.report.yardstick import COARSE, FINE, Yardstick

BLOCKS = 40  # stretches of a free run
END = 0.2  # the part of a free run that its last figures are taken from


@dataclass(frozen=True)
class Lengths:
    """Steps in a block of which maxima are taken, and in a segment in which waves are looked for.

    None where runs are too short for that. The same for the reference and all free runs.
    """

    block: int | None
    segment: int | None


@dataclass(frozen=True)
class Climate:
    """What is known of a run: its statistics, its block maxima and its waves."""

    statistics: RunStatistics
    maxima: Tensor | None
    waves: WaveSums | None


def lengths_of(
    runs: Sequence[xr.DataArray],
    yardstick: Yardstick,
    *,
    block: int | None = None,
    segment: int | None = None,
) -> Lengths:
    """Blocks and segments that all of the runs, (run, time, y, x), are long enough for.

    Args:
        runs: the reference first.
        yardstick: what will be measured with.
        block: steps in a block; None: what the runs are long enough for.
        segment: likewise.

    Raises:
        ValueError: for a block of which a run does not hold three, or a segment longer than a run.
    """
    for length, least, what in ((block, 3, "maxima_block"), (segment, 1, "wave_segment")):
        for run in runs:
            count = run.shape[1] // length if length else least
            if what == "maxima_block":
                count *= run.shape[0]
            if (length is not None and length < 2) or count < least:
                raise ValueError(
                    f"{what} is {length} steps, but {run.shape[0]} runs of {run.shape[1]} do not "
                    f"hold {least} of them."
                )
    if block is None:
        block = block_length([(run.shape[0], run.shape[1]) for run in runs])
    if segment is None:
        segment = segment_length([run.shape[1] for run in runs])
    return Lengths(block, segment if wave_lines(yardstick) is not None else None)


def climate_of(
    runs: xr.DataArray,
    yardstick: Yardstick,
    lengths: Lengths,
    *,
    blocks: int,
    memory: int,
    skip_missing: bool,
) -> Climate:
    """One pass over runs (run, time, y, x).

    Args: as in :func:`~dyngen.report.long_runs.run_statistics`.
    """
    count, steps = runs.shape[:2]
    observers: list[Observer] = []
    maxima = waves = None
    if lengths.block is not None:
        maxima = BlockMaxima(count, steps, lengths.block, yardstick, skip_missing=skip_missing)
        observers.append(maxima)
    if lengths.segment is not None:
        waves = WaveSums(count, lengths.segment, yardstick, skip_missing=skip_missing)
        observers.append(waves)
    statistics = run_statistics(
        runs,
        yardstick,
        blocks=blocks,
        memory=memory,
        skip_missing=skip_missing,
        observers=observers,
        overlap=(lengths.segment or 1) - 1,
    )
    return Climate(statistics, None if maxima is None else maxima.maxima(), waves)


def reference_scores(known: Climate, yardstick: Yardstick, seed: int) -> Scores:
    """The reference's own figures; of no system."""
    climate = known.statistics
    length = climate.weight.shape[1]
    mean, std = climate.mean_and_std(torch.tensor([0, length]))
    out: Scores = {
        ("reference_autocorrelation", ""): (("lag",), correlation(climate.lags.sum(0))),
        ("reference_spectrum", ""): (("wavenumber",), climate.spectrum[0]),
        ("reference_mean", ""): ((), mean[0] + _area_mean(yardstick.centre, yardstick.area)),
        ("reference_std", ""): ((), std[0]),
        ("reference_increment_std", ""): ((), torch.tensor(climate.square_increment).sqrt()),
        ("reference_mean_map", ""): (("y", "x"), climate.mean),
        ("reference_value_quantile", ""): (("level",), value_quantiles(climate, yardstick)),
        ("reference_value_histogram", ""): (
            ("bin",),
            density(climate.values, yardstick.value_edges),
        ),
        ("reference_increment_histogram", ""): (
            ("bin",),
            density(climate.increments, yardstick.increment_edges),
        ),
        ("value", ""): (("bin",), _centres(yardstick.value_edges)),
        ("increment", ""): (("bin",), _centres(yardstick.increment_edges)),
    }
    if len(climate.lags) > 1:
        by_run = correlation(climate.lags).quantile(BOUNDS, dim=0)
        out["reference_autocorrelation_range", ""] = ("bound", "lag"), by_run
    if known.maxima is not None:
        out |= _extremes("reference_", "", known.maxima, _area_of(known, yardstick), seed)
    if known.waves is not None:
        out["reference_wave_spectrum", ""] = WAVE_DIMS, known.waves.power()
        if len(climate.weight) > 1:
            halves = [known.waves.power(slice(start, None, 2)) for start in (0, 1)]
            out["reference_wave_halves", ""] = ("half", *WAVE_DIMS), torch.stack(halves)
            out["reference_wave_distance_db", ""] = (), log_wave_distance(*halves)
    return out


def free_scores(
    name: str, free: Climate, reference: Climate, yardstick: Yardstick, seed: int
) -> Scores:
    """Figures of a free run beside the reference's climate."""
    found, climate = free.statistics, reference.statistics
    complete = yardstick.complete
    edges = found.edges
    blocks, length = len(edges) - 1, int(edges[-1])
    area_mean = _area_mean(yardstick.centre, yardstick.area)
    whole = torch.tensor([0, climate.weight.shape[1]])
    mean_of_truth, std_of_truth = (part[0] for part in climate.mean_and_std(whole))
    mean, std = found.mean_and_std(edges)
    first_of_end = min(round(blocks * (1 - END)), blocks - 1)
    end = torch.stack([edges[first_of_end], edges[-1]])
    end_mean, end_std = (part[0] for part in found.mean_and_std(end))
    all_mean, all_std = (part[0] for part in found.mean_and_std(torch.tensor([0, length])))
    steps = (edges[:-1] + edges[1:] + 1).double() / 2  # the first frame is step 1
    spectrum = _over_blocks(found.spectrum, edges, 0)
    end_spectrum = _over_blocks(found.spectrum, edges, first_of_end)

    def distance(power: Tensor) -> Tensor:
        return log_spectral_distance(power, climate.spectrum[0], last=complete)

    out: dict[str, tuple[tuple[str, ...], Tensor]] = {
        "steps": ((), torch.tensor(float(length))),
        "members": ((), torch.tensor(float(len(found.weight)))),
        "step": (("block",), _padded(steps)),
        "mean": (("block",), _padded(mean + area_mean)),
        "std": (("block",), _padded(std)),
        "log_spectral_distance_db_block": (("block",), _padded(distance(found.spectrum))),
        "bias": ((), all_mean - mean_of_truth),
        "std_ratio": ((), all_std / std_of_truth),
        "log_spectral_distance_db": ((), distance(spectrum)),
        "end_bias": ((), end_mean - mean_of_truth),
        "end_std_ratio": ((), end_std / std_of_truth),
        "end_log_spectral_distance_db": ((), distance(end_spectrum)),
        "spectrum": (("wavenumber",), spectrum),
        "end_spectrum": (("wavenumber",), end_spectrum),
        "autocorrelation": (("lag",), correlation(found.lags.sum(0))),
        "increment_std_ratio": (
            (),
            torch.tensor(found.square_increment / climate.square_increment).sqrt(),
        ),
        "mean_map": (("y", "x"), found.mean),
    }
    if blocks > 1:
        out["mean_drift"] = (), drift(mean, steps=steps)
        out["std_drift"] = (), drift(std, steps=steps)
    stretch = length // blocks
    if climate.weight.shape[1] >= stretch:
        for which, part in zip(("mean", "std"), climate.segments(stretch), strict=True):
            part = part[~part.isnan()]
            if len(part) > 1:
                offset = area_mean if which == "mean" else 0.0
                out[f"{which}_range_of_truth"] = ("bound",), part.quantile(BOUNDS) + offset
    labelled = {(f"free_{key}", name): value for key, value in out.items()}
    labelled |= distribution_scores("free_", name, found, climate, yardstick)
    if free.maxima is not None and reference.maxima is not None:
        area = _area_of(reference, yardstick)
        labelled |= _extremes("free_", name, free.maxima, area, seed)
        own = return_levels(reference.maxima, area)
        levels = labelled["free_return_level", name][1]
        labelled["free_return_level_bias", name] = ("return_period",), levels - own
    if free.waves is not None and reference.waves is not None:
        power, own = free.waves.power(), reference.waves.power()
        labelled["free_wave_spectrum", name] = WAVE_DIMS, power
        labelled["free_wave_distance_db", name] = (), log_wave_distance(power, own)
    return labelled


WAVE_DIMS = ("frequency", "signed_wavenumber")


def _extremes(prefix: str, name: str, maxima: Tensor, area: Tensor, seed: int) -> Scores:
    """Return levels with intervals, and some of the maxima at the periods they stand for."""
    periods, levels = shown_maxima(maxima, area)
    return {
        (f"{prefix}return_level", name): (("return_period",), return_levels(maxima, area)),
        (f"{prefix}return_level_interval", name): (
            ("bound", "return_period"),
            return_level_intervals(maxima, area, BOUNDS, seed),
        ),
        (f"{prefix}maximum_period", name): (("maximum",), periods),
        (f"{prefix}maximum", name): (("maximum",), levels),
    }


def _area_of(reference: Climate, yardstick: Yardstick) -> Tensor:
    """Area of the points at which every block of the reference has a value."""
    assert reference.maxima is not None
    area = yardstick.area[yardstick.every].flatten()
    return torch.where(reference.maxima.isnan().any(0), 0.0, area)


def _over_blocks(spectrum: Tensor, edges: Tensor, first: int) -> Tensor:
    """Mean power over the blocks from ``first`` on, each by its steps."""
    steps = edges.diff()[first:].double()
    return (spectrum[first:] * (steps / steps.sum())[:, None]).sum(0)


def _padded(values: Tensor) -> Tensor:
    """To BLOCKS values, for a run that is shorter than that."""
    return torch.cat([values, torch.full((BLOCKS - len(values),), math.nan, dtype=torch.float64)])


def _centres(edges: Tensor) -> Tensor:
    coarse = edges[:: FINE // COARSE]
    return (coarse[:-1] + coarse[1:]) / 2


def _area_mean(field: Tensor, area: Tensor) -> Tensor:
    return (field.nan_to_num(0.0) * area).sum() / area.sum()
