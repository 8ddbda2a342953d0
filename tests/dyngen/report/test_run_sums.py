"""Block maxima, return levels and wave spectra of runs that go by in blocks."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from yardsticks import draw, yardstick

from dyngen.metrics.extremes import block_maxima
from dyngen.metrics.waves import wave_spectrum
from dyngen.report.run_extremes import (
    PERIODS,
    SHOWN,
    BlockMaxima,
    block_length,
    return_level_intervals,
    return_levels,
    shown_maxima,
)
from dyngen.report.run_waves import LEAST, WaveSums, segment_length, wave_lines, wave_sums
from dyngen.report.yardstick import Yardstick

BOUNDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


def goes_by(observe: object, frames: torch.Tensor, steps: int, overlap: int) -> None:
    """Show runs (R, T, H, W) in blocks, each with what is old, the last run by itself."""
    for runs in (slice(0, len(frames) - 1), slice(len(frames) - 1, len(frames))):
        for start in range(0, frames.shape[1], steps):
            old = min(start, overlap)
            observe(runs, start, frames[runs, start - old : start + steps], old)  # type: ignore[operator]


@pytest.mark.parametrize("steps", [3, 7, 40])
def test_maxima_are_those_of_the_whole_run(steps: int) -> None:
    frames = draw(3, 31, 4, 5)
    frames[0, :9, 1, 1] = math.nan
    for skip in (True, False):
        seen = BlockMaxima(3, 31, 8, yardstick(4, 5), skip_missing=skip)
        goes_by(seen, frames, steps, overlap=5)
        expected = block_maxima(frames, 8, time_dim=1).flatten(2).flatten(0, 1)
        if not skip:
            expected[:2, 6] = math.nan  # both blocks have a gap at that point
        torch.testing.assert_close(seen.maxima(), expected, equal_nan=True)


def test_return_levels_of_independent_steps_are_known() -> None:
    """Exceeded once in T blocks of n steps: the quantile (1 - 1 / T)^(1 / n) of a step."""
    maxima = draw(60, 50, 400).amax(1)
    area = torch.ones(400, dtype=torch.float64)
    levels = return_levels(maxima, area)
    expected = stats.norm.ppf((1 - 1 / np.array(PERIODS)) ** (1 / 50))
    np.testing.assert_allclose(levels.numpy(), expected, rtol=0.02)
    low, high = return_level_intervals(maxima, area, BOUNDS, seed=0)
    assert bool((low < levels).all())
    assert bool((levels < high).all())
    changed = return_levels(3 * maxima - 2, area)
    torch.testing.assert_close(changed, 3 * levels - 2)


def test_intervals_cover_as_often_as_they_say() -> None:
    expected = stats.norm.ppf(0.5 ** (1 / 30))
    inside = 0
    for trial in range(30):
        maxima = draw(25, 30, 4, seed=trial).amax(1)
        low, high = return_level_intervals(
            maxima, torch.ones(4, dtype=torch.float64), BOUNDS, seed=trial
        )
        inside += bool(low[0] < expected < high[0])
    assert 24 <= inside <= 30


def test_points_weigh_by_their_area_and_not_at_all_without_one() -> None:
    maxima = draw(30, 3)
    double = torch.cat([maxima, maxima[:, :1]], 1)
    weights = torch.tensor([2.0, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(
        return_levels(maxima, weights), return_levels(double, torch.ones(4).double())
    )
    gone = maxima.clone()
    gone[:, 1] = math.nan
    weights[1] = 0
    assert bool(return_levels(gone, weights).isfinite().all())


@pytest.mark.parametrize("count", [24, 500])
def test_the_maxima_that_are_shown_lie_at_their_periods(count: int) -> None:
    maxima = draw(count, 1)
    periods, levels = shown_maxima(maxima, torch.ones(1, dtype=torch.float64))
    assert periods.shape == levels.shape == (SHOWN,)
    known = periods[~periods.isnan()]
    assert len(known) == 24 if count == 24 else 20 < len(known) <= SHOWN
    ordered = maxima[:, 0].sort().values
    for period, level in zip(known.tolist(), levels.tolist(), strict=False):
        rank = round(count + 1 - (count + 1) / period)
        assert math.isclose(level, ordered[rank - 1], rel_tol=1e-9)
    assert math.isclose(known[-1], count + 1)


def test_blocks_leave_enough_of_every_run() -> None:
    assert block_length([(8, 250), (2, 1000)]) == 83
    assert block_length([(50, 36500), (4, 36500)]) == 365
    assert block_length([(1, 60)]) is None


@pytest.mark.parametrize(("steps", "columns"), [(9, False), (50, False), (13, True)])
def test_waves_are_those_of_the_whole_run(steps: int, columns: bool) -> None:
    frames = draw(3, 50, 6, 8)
    area = torch.rand(6, 8, dtype=torch.float64) + 0.1
    area[2, 3] = 0  # the row and the column through it are left out
    grid = yardstick(6, 8, area=area, periodic=(columns, not columns))
    seen = WaveSums(3, 16, grid, skip_missing=True)
    goes_by(seen, frames, steps, overlap=15)
    turned = frames.transpose(-2, -1) if columns else frames
    weights = (area.T if columns else area).sum(1)
    lines = [i for i in range(turned.shape[-2]) if i != (3 if columns else 2)]
    power = wave_spectrum(turned[..., lines, :].transpose(1, 2), segment=16).power
    expected = torch.einsum("rlfx,l->fx", power, weights[lines] / weights[lines].sum()) / 3
    torch.testing.assert_close(seen.power(), expected)
    halves = [seen.power(slice(i, None, 2)) for i in (0, 1)]
    torch.testing.assert_close((2 * halves[0] + halves[1]) / 3, expected)


def test_segments_with_gaps_are_skipped_or_told() -> None:
    frames = draw(2, 64, 2, 8)
    frames[0, 40, 1, 1] = math.nan
    grid = yardstick(2, 8)
    told, skipped = (WaveSums(2, 16, grid, skip_missing=skip) for skip in (False, True))
    for seen in (told, skipped):
        goes_by(seen, frames, 20, overlap=15)
    assert bool(told.power().isnan().all())
    whole = [frames[0:1, i : i + 16] for i in (0, 8, 16, 24, 48)]
    whole += [frames[1:2, i : i + 16] for i in range(0, 49, 8)]
    expected = sum(
        wave_spectrum(part.transpose(1, 2), segment=16).power.mean((0, 1)) for part in whole
    )
    torch.testing.assert_close(skipped.power(), expected / len(whole))


def test_waves_of_forecasts_are_the_mean_over_members() -> None:
    ensemble, truth = draw(3, 4, LEAST, 3, 6), draw(3, LEAST, 3, 6, seed=1)
    truth[1, 5, 0, 0] = math.nan
    found = wave_sums(ensemble, truth, yardstick(3, 6))
    assert found["wave_count"].tolist() == [1, 0, 1]
    expected = wave_spectrum(ensemble.transpose(2, 3), segment=LEAST).power.mean((1, 2))
    torch.testing.assert_close(found["waves"][[0, 2]], expected[[0, 2]])


def test_where_waves_cannot_be_looked_for() -> None:
    assert wave_lines(yardstick(4, 4, periodic=(False, False))) is None
    area = torch.ones(4, 4, dtype=torch.float64)
    area[:, 2] = 0
    grid: Yardstick = yardstick(4, 4, area=area)
    assert wave_lines(grid) is None
    with pytest.raises(ValueError, match="waves need an axis that is periodic"):
        WaveSums(1, 16, grid, skip_missing=True)
    assert segment_length([250, 1000]) == 64
    assert segment_length([250, 40]) == 32
    assert segment_length([250, 15]) is None
