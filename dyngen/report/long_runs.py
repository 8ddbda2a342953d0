"""Statistics of long runs, read once from end to end in blocks that fit in memory.

A run is (run, time, y, x): the members of a free run, or the trajectories of held-out truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.averages import weighted_sums
from dyngen.metrics.distributions import histogram
from dyngen.metrics.temporal import lag_sums
from dyngen.report.yardstick import Extent, Yardstick

WORKING_BYTES = 48  # per point: the frame, its anomaly, square, transform and power

# Sees runs (a slice), the first new step, their frames (R, T, H, W), and how many of them are old.
Observer = Callable[[slice, int, Tensor, int], None]


@dataclass(frozen=True)
class RunStatistics:
    """Sums over a run's frames.

    Args:
        weight, anomaly, square: ``(R, T)`` sums over the area of the weights, the anomalies and
            their squares.
        spectrum: ``(blocks, K)`` mean power in each block of steps.
        edges: ``(blocks + 1,)`` the first step of each block, and T.
        lags: ``(R, lags, 3)`` as in :func:`~dyngen.metrics.temporal.lag_sums`, of anomalies from
            the mean over the runs' own times.
        values, increments, absolute: histograms of anomalies, increments, and values as they are.
        square_increment: mean square of the increments.
        mean: ``(H, W)`` mean over time and runs.
    """

    weight: Tensor
    anomaly: Tensor
    square: Tensor
    spectrum: Tensor
    edges: Tensor
    lags: Tensor
    values: Tensor
    increments: Tensor
    absolute: Tensor
    square_increment: float
    mean: Tensor

    def mean_and_std(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean anomaly and standard deviation in stretches of steps, all runs together.

        Args: blocks ``(n + 1,)`` edges. Returns: two ``(n,)`` float64.
        """
        weight, first, second = (
            torch.stack([part[:, a:b].sum() for a, b in _pairs(blocks)])
            for part in (self.weight, self.anomaly, self.square)
        )
        mean = first / weight
        return mean, (second / weight - mean.square()).clamp_min(0).sqrt()

    def segments(self, length: int) -> tuple[Tensor, Tensor]:
        """Mean anomaly and standard deviation of each stretch of ``length`` steps of each run."""
        count = self.weight.shape[1] // length

        def cut(part: Tensor) -> Tensor:
            return part[:, : count * length].reshape(len(part), count, length).sum(-1).flatten()

        mean = cut(self.anomaly) / cut(self.weight)
        return mean, (cut(self.square) / cut(self.weight) - mean.square()).clamp_min(0).sqrt()


def extent(runs: xr.DataArray, memory: int) -> Extent:
    """First pass over the reference: what its anomalies and bins are to be.

    Args:
        runs: (run, time, y, x), possibly lazy; NaN where missing.
        memory: bytes to hold at a time, about.

    Raises:
        ValueError: when nothing is observed at all.
    """
    shape = runs.shape[-2:]
    total, count = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    lowest = torch.full(shape, math.inf, dtype=torch.float64)
    highest = torch.full(shape, -math.inf, dtype=torch.float64)
    increment = 0.0
    for _, frames, old in _read(runs, memory, overlap=1):
        new = frames[:, old:].double()
        there = ~new.isnan()
        total += new.where(there, 0.0).sum((0, 1))
        count += there.sum((0, 1))
        lowest = torch.minimum(lowest, new.where(there, math.inf).amin((0, 1)))
        highest = torch.maximum(highest, new.where(there, -math.inf).amax((0, 1)))
        steps = frames.diff(dim=1).abs()
        if steps.numel():
            increment = max(increment, float(steps.nan_to_num(0.0).max()))
    if not bool((count > 0).any()):
        raise ValueError(f"the reference holds no value of {runs.name!r}: all of it is missing.")
    mean = total / count
    seen = count > 0
    return Extent(
        mean=mean,
        lowest=float((lowest - mean)[seen].min()),
        highest=float((highest - mean)[seen].max()),
        least=float(lowest[seen].min()),
        most=float(highest[seen].max()),
        largest_increment=increment,
    )


def run_statistics(
    runs: xr.DataArray,
    yardstick: Yardstick,
    *,
    blocks: int,
    memory: int,
    skip_missing: bool,
    observers: Sequence[Observer] = (),
    overlap: int = 0,
) -> RunStatistics:
    """Everything a report says of a long run, in one pass.

    Args:
        runs: (run, time, y, x), possibly lazy.
        yardstick: what to measure with.
        blocks: stretches of steps to average spectra over; fewer for a run that is shorter.
        memory: bytes to hold at a time, about.
        skip_missing: whether NaN is an observation not made, to be left out, or a run that has
            gone wrong, to be told.
        observers: what else is to see each block of frames, once, as it is read.
        overlap: how many old frames they need to see again at the start of a block, if there are
            so many.
    """
    count, length = runs.shape[:2]
    blocks = min(blocks, length)
    edges = torch.tensor([i * length // blocks for i in range(blocks + 1)])
    block_of = torch.bucketize(torch.arange(length), edges[1:-1], right=True)
    area = yardstick.area
    edges_of = yardstick.value_edges, yardstick.increment_edges, yardstick.absolute_edges
    weight, first, second = (torch.zeros(count, length, dtype=torch.float64) for _ in range(3))
    lags = torch.zeros(count, len(yardstick.lags), 3, dtype=torch.float64)
    values, increments, absolute = (
        torch.zeros(len(bins) - 1, dtype=torch.float64) for bins in edges_of
    )
    spectrum, frames_in = None, torch.zeros(blocks, dtype=torch.float64)
    square_increment, pairs = 0.0, 0.0
    map_total = torch.zeros_like(yardstick.centre)
    map_count = torch.zeros_like(yardstick.centre)

    overlap = max(overlap, *yardstick.lags)
    for (group, start), frames, old in _read(runs, memory, overlap=overlap):
        for observe in observers:
            observe(group, start, frames, old)
        anomalies = frames.double() - yardstick.centre
        there = ~anomalies.isnan() if skip_missing else None
        w = area.expand_as(anomalies) if there is None else area * there
        new = slice(old, None)
        rows, columns = group, slice(start, start + frames.shape[1] - old)
        total, of = weighted_sums(anomalies[:, new], w[:, new], (-2, -1))
        first[rows, columns], weight[rows, columns] = total, of
        second[rows, columns] = weighted_sums(anomalies[:, new].square(), w[:, new], (-2, -1))[0]
        lags[rows] += _lag_sums(anomalies, area, there, yardstick.lags, old)
        values += histogram(anomalies[:, new], yardstick.value_edges, w[:, new])
        absolute += histogram(frames[:, new], yardstick.absolute_edges, w[:, new])
        step = frames[:, max(old - 1, 0) :].double().diff(dim=1)
        both = (w[:, 1:] * w[:, :-1]).sqrt()[:, max(old - 1, 0) :]
        increments += histogram(step, yardstick.increment_edges, both)
        summed, of = weighted_sums(step.square(), both)
        square_increment, pairs = square_increment + float(summed), pairs + float(of)
        kept = w[:, new] > 0
        map_total += anomalies[:, new].where(kept, 0.0).sum((0, 1))
        map_count += kept.sum((0, 1))
        power = yardstick.spectrum(frames[:, new])
        complete = ~power.isnan().any(-1) if skip_missing else torch.ones(power.shape[:2])
        power = power.where(complete[..., None] > 0, 0.0)
        if spectrum is None:
            spectrum = power.new_zeros(blocks, power.shape[-1])
        spectrum.index_add_(0, block_of[columns], power.sum(0))
        frames_in.index_add_(0, block_of[columns], complete.double().sum(0))

    assert spectrum is not None
    own_mean = map_total / map_count
    # Correlations are about the run's own mean, or a constant bias would pass for persistence.
    pairs_of_lag = torch.tensor([max(length - lag, 0) for lag in yardstick.lags]).double()
    lags -= (own_mean.square() * area)[area > 0].sum() * pairs_of_lag[:, None]
    return RunStatistics(
        weight=weight,
        anomaly=first,
        square=second,
        spectrum=spectrum / frames_in[:, None],
        edges=edges,
        lags=lags,
        values=values,
        increments=increments,
        absolute=absolute,
        square_increment=square_increment / pairs if pairs else math.nan,
        mean=yardstick.centre + own_mean,
    )


def _lag_sums(
    anomalies: Tensor, area: Tensor, there: Tensor | None, lags: tuple[int, ...], counted: int
) -> Tensor:
    if there is None or bool(there[..., area > 0].all()):
        # Weights that do not change in time go into the anomalies: a third of the work.
        series = torch.where(area > 0, anomalies, 0.0) * area.sqrt()
        return lag_sums(series.flatten(2), lags, counted=counted)
    return lag_sums(anomalies.flatten(2), lags, (area * there).flatten(2), counted=counted)


def _read(
    runs: xr.DataArray, memory: int, *, overlap: int
) -> Iterator[tuple[tuple[slice, int], Tensor, int]]:
    """Blocks of a run: its runs and first new step, frames (R, T, H, W), and how many are old.

    Each block but the first of a run starts with the last ``overlap`` frames of the one before,
    which are kept, not read again.
    """
    count, length, height, width = runs.shape
    per_frame = WORKING_BYTES * height * width
    group_size = max(1, min(count, memory // (per_frame * (2 * overlap + 1))))
    steps = max(1, memory // (per_frame * group_size) - overlap)
    chunks = runs.chunks[1][0] if runs.chunks else 1
    steps = max(chunks, steps - steps % chunks)
    for first in range(0, count, group_size):
        group = slice(first, min(first + group_size, count))
        carried: Tensor | None = None
        for start in range(0, length, steps):
            read = runs[group, start : start + steps].to_numpy()
            frames = torch.from_numpy(np.ascontiguousarray(read))
            old = 0
            if carried is not None:
                old = carried.shape[1]
                frames = torch.cat([carried, frames], dim=1)
            yield (group, start), frames, old
            carried = frames[:, frames.shape[1] - min(overlap, frames.shape[1]) :].clone()


def _pairs(edges: Tensor) -> list[tuple[int, int]]:
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
