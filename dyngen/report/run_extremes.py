"""Extremes of long runs: block maxima at a spread of points, and what returns once in so long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyngen.metrics.extremes import empirical_return_levels, fit_extreme_value_law, return_level
from dyngen.report.yardstick import Yardstick

PERIODS = (2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)  # of return levels, in blocks
LONGEST, SHORTEST = 365, 5  # steps in a block, unless it is given
BLOCKS = 20  # at least, of the reference and of each run, or there are no return levels
SHOWN = 60  # empirical points that are kept
RESAMPLINGS = 100
WORK = 5_000_000  # values to sort for an interval, about: fewer points for more blocks


def block_length(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Steps in a block: as many as leave enough blocks of every run; None when too few.

    Args: sizes (runs, steps) of the reference and the free runs.
    """
    length = LONGEST
    for runs, steps in sizes:
        length = min(length, steps // -(-BLOCKS // runs))
    return length if length >= SHORTEST else None


class BlockMaxima:
    """Largest value of each whole block of steps, as a run goes by.

    Args:
        runs, steps: size of what will be seen.
        length: steps in a block.
        yardstick: which points are looked at: its spread, where there is area.
        skip_missing: whether a NaN is passed over, or makes its block NaN.
    """

    def __init__(
        self, runs: int, steps: int, length: int, yardstick: Yardstick, *, skip_missing: bool
    ) -> None:
        self.length = length
        self.every = yardstick.every
        self.area = yardstick.area[self.every].flatten()
        self.skip_missing = skip_missing
        shape = (runs, steps // length, len(self.area))
        self._largest = torch.full(shape, -torch.inf, dtype=torch.float64)

    def __call__(self, runs: slice, start: int, frames: Tensor, old: int) -> None:
        """See frames (R, T, H, W), the first ``old`` of which were seen before ``start``."""
        values = frames[:, old:, *self.every].flatten(2)
        if self.skip_missing:
            values = torch.where(values.isnan(), -torch.inf, values)
        blocks = self._largest.shape[1]
        first, last = start // self.length, (start + values.shape[1] - 1) // self.length
        for block in range(first, min(last + 1, blocks)):
            low = max(block * self.length - start, 0)
            part = values[:, low : (block + 1) * self.length - start].amax(1).double()
            self._largest[runs, block] = torch.maximum(self._largest[runs, block], part)

    def maxima(self) -> Tensor:
        """``(N, P)`` of all blocks of all runs; NaN where a block has no value."""
        largest = torch.where(self._largest == -torch.inf, torch.nan, self._largest)
        return largest.flatten(0, 1)


def return_levels(maxima: Tensor, area: Tensor) -> Tensor:
    """Levels that are exceeded on average once in so many blocks, at a point: ``(periods,)``.

    Of the generalised extreme value law whose L-moments are the area mean of those at the points:
    L-moments are sums over sorted maxima, so that they are those of the mean of the sorted maxima.

    Args: maxima ``(N, P)``; area ``(P,)``.
    """
    law = fit_extreme_value_law(mean_of_sorted(maxima, area))
    return return_level(law, torch.tensor(PERIODS, dtype=torch.float64))


def return_level_intervals(maxima: Tensor, area: Tensor, bounds: Tensor, seed: int) -> Tensor:
    """Intervals ``(bounds, periods)`` from resampling blocks, all points of a block together.

    Quantiles of the resampled levels about their mean, as resampling with repetition itself lowers
    the tail. Where blocks are many, the width is that of fewer points, evenly spread: an area mean
    over fewer points is a little more uncertain, if anything.
    """
    count, points = maxima.shape
    kept = max(1, min(points, WORK // (count * RESAMPLINGS)))
    places = torch.arange(kept) * points // kept
    few, weights = maxima[:, places], area[places]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (RESAMPLINGS, count), generator=generator)
    spread = torch.stack([return_levels(few[rows], weights) for rows in drawn])
    width = spread.quantile(bounds, dim=0) - spread.mean(0)
    return return_levels(maxima, area) + width


def shown_maxima(maxima: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Periods and mean levels of some of the sorted maxima, ``(SHOWN,)`` each, NaN behind.

    Evenly spread over the logarithm of the period, the largest always among them.
    """
    periods, levels = empirical_return_levels(mean_of_sorted(maxima, area))
    if len(periods) > SHOWN:
        wanted = torch.linspace(0, 1, SHOWN, dtype=torch.float64)
        scale = (periods.log() - periods[0].log()) / (periods[-1] / periods[0]).log()
        places = torch.searchsorted(scale, wanted.clamp(max=1 - 1e-12)).clamp(max=len(periods) - 1)
        places = places.unique()
        periods, levels = periods[places], levels[places]
    blank = torch.full((SHOWN - len(periods),), torch.nan, dtype=torch.float64)
    return torch.cat([periods, blank]), torch.cat([levels, blank])


def mean_of_sorted(maxima: Tensor, area: Tensor) -> Tensor:
    """Area mean of the k-th smallest maximum at each point: ``(N, P) -> (N,)``, ascending."""
    weights = area / area.sum()
    return torch.where(weights > 0, maxima.sort(dim=0).values, 0.0) @ weights
