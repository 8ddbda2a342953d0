"""Sums over whole years of a long run, read once, a month at a time, whatever its length.

Kept are small vectors for each year (global means, regional months, spectra) and maps for each
block of years: a century needs no more memory than a decade does, but for those few numbers. Years
are whole calendar years; what is left at either end of a run does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

BANDS = {  # least latitude in degrees north
    "southern polar": -90.0,
    "southern mid-latitudes": -60.0,
    "tropics": -30.0,
    "northern mid-latitudes": 30.0,
    "northern polar": 60.0,
}
EVERYWHERE = "all"
LEAST_DAYS = 355  # in what counts as a whole year: a year of 360 days may miss a few
LONGEST_SPELL = 400  # days; longer ones are counted as this
SPREAD = 1100  # points at which yearly maxima are kept, about
DRY, WET = 0, 1


@dataclass(frozen=True)
class Ruler:
    """What a run and its reference are both measured with.

    Args:
        area: (H, W) weights of the cells, of sum 1.
        regions: names of the bands of rows; the first is everywhere.
        region_of: (H,) which band a row belongs to, from 1 on, 0 where there are no bands.
        climatology: (12, H, W) mean of each month of the reference, from which anomalies are taken.
        wet: the least rain of a wet day in the units of the variable; None: it is no rain.
    """

    area: np.ndarray
    regions: tuple[str, ...]
    region_of: np.ndarray
    climatology: np.ndarray
    wet: float | None

    @property
    def region_weights(self) -> np.ndarray:
        """(R, H, W) weights of the cells of each region, of sum 1."""
        inside = [np.ones_like(self.area)]
        for number in range(1, len(self.regions)):
            inside.append(np.broadcast_to((self.region_of == number)[:, None], self.area.shape))
        weights = np.stack(inside) * self.area
        return weights / weights.sum((1, 2), keepdims=True)

    @property
    def spread(self) -> tuple[slice, slice]:
        """Every so-manieth row and column, where all cells would be too many."""
        step = int(np.ceil(np.sqrt(self.area.size / SPREAD)))
        return slice(None, None, step), slice(None, None, step)


@dataclass(frozen=True)
class YearSums:
    """What is known of a run: M members, Y whole years, B blocks of them, R regions.

    Args:
        years: (Y,) the calendar years.
        edges: (B + 1,) the first year (its number) of each block, and Y.
        month: (M, Y, 12, R) mean of each month over each region.
        annual: (M, Y) mean over everything.
        variance: (M, Y) mean square of anomalies from the reference's months.
        spectrum: (M, Y, K) power of anomalies by zonal wavenumber, mean over the rows by area; for
            k > 0 of both directions.
        maxima: (M, Y, P) largest value of each year at a spread of points.
        map_sum, map_square: (M, B, H, W) sums over the years of a block of the mean map of each
            year, and of its square.
        spells: (M, B, 2, R, L) area-weighted number of dry and of wet spells of 1 to L days that
            ended in a block; None where the variable is no rain.
        missing: how many values were not finite.
        frames: how many frames a member has in these years.
    """

    years: np.ndarray
    edges: np.ndarray
    month: np.ndarray
    annual: np.ndarray
    variance: np.ndarray
    spectrum: np.ndarray
    maxima: np.ndarray
    map_sum: np.ndarray
    map_square: np.ndarray
    spells: np.ndarray | None
    missing: int
    frames: int

    @property
    def sizes(self) -> np.ndarray:
        """(B,) years in each block."""
        return np.diff(self.edges)

    def of_block(self, yearly: np.ndarray, block: int) -> np.ndarray:
        """The years (M, years, ...) of one block; negative numbers count from the end."""
        block %= len(self.sizes)
        return yearly[:, self.edges[block] : self.edges[block + 1]]


def whole_years(run: xr.DataArray) -> list[tuple[int, list[slice]]]:
    """The whole calendar years of a run, and where each month of them lies in time.

    Args:
        run: with a coordinate `time` of dates in any calendar.

    Raises:
        ValueError: when times are no dates, or leave no two whole years.
    """
    name = run.name
    if "time" not in run.coords or run["time"].dtype.kind not in "MO":
        raise ValueError(
            f"the times of {name!r} are no dates, so that it has no years; drift is told of runs "
            "with a calendar."
        )
    time = run["time"]
    years, months = time.dt.year.values, time.dt.month.values
    days = (time.values[-1] - time.values[0]) / max(time.size - 1, 1)
    if time.dtype.kind == "M":
        days = float(days / np.timedelta64(1, "D"))
    else:
        days = days.total_seconds() / 86400
    found: list[tuple[int, list[slice]]] = []
    turns = np.flatnonzero(np.diff(years)) + 1
    for start, stop in zip([0, *turns], [*turns, len(years)], strict=True):
        if (stop - start) * days < LEAST_DAYS:
            continue
        inner = np.flatnonzero(np.diff(months[start:stop])) + 1 + start
        slices = [
            slice(int(a), int(b)) for a, b in zip([start, *inner], [*inner, stop], strict=True)
        ]
        if len(slices) == 12:
            found.append((int(years[start]), slices))
    if len(found) < 2:
        raise ValueError(
            f"{name!r} has {len(found)} whole calendar years; a report on drift wants two or more."
        )
    return found


def month_means(run: xr.DataArray) -> np.ndarray:
    """(12, H, W) mean of each month over all whole years and members of a reference.

    Args:
        run: (member, time, y, x), possibly lazy.
    """
    total = np.zeros((12, *run.shape[2:]))
    years = whole_years(run)
    for _, months in years:
        for number, span in enumerate(months):
            total[number] += run[:, span].to_numpy().mean((0, 1), dtype=np.float64)
    return total / len(years)


def ruler_of(
    reference: xr.DataArray,
    area_weights: np.ndarray,
    latitude: np.ndarray | None,
    wet: float | None,
) -> Ruler:
    """What a reference and its runs are measured with.

    Args:
        reference: (member, time, y, x).
        area_weights: (H,) weights of the rows.
        latitude: (H,) degrees north; None where rows have none: there are no bands then.
        wet: as in `Ruler`.
    """
    area = np.broadcast_to(np.asarray(area_weights, dtype=np.float64)[:, None], reference.shape[2:])
    area = area / area.sum()
    names, region_of = [EVERYWHERE], np.zeros(area.shape[0], dtype=int)
    if latitude is not None:
        band_of = np.digitize(latitude, list(BANDS.values())[1:])
        for number, band in enumerate(BANDS):
            rows = band_of == number
            if rows.any():
                region_of[rows] = len(names)
                names.append(band)
    return Ruler(area, tuple(names), region_of, month_means(reference), wet)


def year_sums(run: xr.DataArray, ruler: Ruler, block_years: int) -> YearSums:
    """Read a run once, month by month.

    Args:
        run: (member, time, y, x), possibly lazy, with dates.
        ruler: what to measure with.
        block_years: years in a block, about: blocks are equally long but for a year.

    Raises:
        ValueError: when there are no two whole years.
    """
    years = whole_years(run)
    members, count = run.shape[0], len(years)
    blocks = min(max(2, round(count / block_years)), count)
    edges = np.linspace(0, count, blocks + 1).round().astype(int)
    height, width = ruler.area.shape
    weights, rows = ruler.region_weights, ruler.area.sum(1)
    month = np.zeros((members, count, 12, len(ruler.regions)))
    annual, variance = np.zeros((members, count)), np.zeros((members, count))
    spectrum = np.zeros((members, count, width // 2 + 1))
    points = ruler.area[ruler.spread].size
    maxima = np.full((members, count, points), -np.inf)
    map_sum = np.zeros((members, blocks, height, width))
    map_square = np.zeros_like(map_sum)
    spells = None if ruler.wet is None else Spells(members, blocks, ruler)
    missing = seen = 0
    for number, (_, months) in enumerate(years):
        block = int(np.searchsorted(edges, number, side="right")) - 1
        total = np.zeros((members, height, width))
        days = 0
        for which, span in enumerate(months):
            frames = run[:, span].to_numpy()
            missing += int((~np.isfinite(frames)).sum())
            length = frames.shape[1]
            mean = frames.mean(1, dtype=np.float64)
            month[:, number, which] = np.einsum("mhw,rhw->mr", mean, weights)
            total += mean * length
            anomalies = frames - ruler.climatology[which].astype(np.float32)
            square = np.square(anomalies).mean(1, dtype=np.float64)
            variance[:, number] += np.einsum("mhw,hw->m", square, ruler.area) * length
            power = np.abs(np.fft.rfft(anomalies, axis=-1) / width) ** 2
            spectrum[:, number] += np.einsum("mthk,h->mk", power, rows)
            largest = frames[:, :, *ruler.spread].max(1).reshape(members, points)
            maxima[:, number] = np.maximum(maxima[:, number], largest)
            if spells is not None:
                spells.see(block, frames)
            days += length
        mean = total / days
        annual[:, number] = np.einsum("mhw,hw->m", mean, ruler.area)
        variance[:, number] /= days
        spectrum[:, number] /= days
        map_sum[:, block] += mean
        map_square[:, block] += mean**2
        seen += days
    spectrum[..., 1 : (width + 1) // 2] *= 2  # a real transform holds k and -k once
    return YearSums(
        years=np.array([year for year, _ in years]),
        edges=edges,
        month=month,
        annual=annual,
        variance=variance,
        spectrum=spectrum,
        maxima=maxima,
        map_sum=map_sum,
        map_square=map_square,
        spells=None if spells is None else spells.counted,
        missing=missing,
        frames=seen,
    )


class Spells:
    """How long it stays dry and wet at each cell, counted as the days go by.

    A spell counts where it ends, and not where its beginning or its end was not seen.

    Args:
        members, blocks: of the run.
        ruler: with the least rain of a wet day.
    """

    def __init__(self, members: int, blocks: int, ruler: Ruler) -> None:
        assert ruler.wet is not None
        self.wet, self.regions = ruler.wet, len(ruler.regions)
        shape = (members, *ruler.area.shape)
        self._member = np.broadcast_to(np.arange(members)[:, None, None], shape)
        self._band = np.broadcast_to(ruler.region_of[:, None], shape)
        self._area = np.broadcast_to(ruler.area, shape)
        self._state: np.ndarray | None = None
        self._length = np.ones(shape, dtype=np.int64)
        self._begun = np.zeros(shape, dtype=bool)
        self.counted = np.zeros((members, blocks, 2, self.regions, LONGEST_SPELL))

    def see(self, block: int, frames: np.ndarray) -> None:
        """See the next days (M, T, H, W), which belong to a block."""
        for day in range(frames.shape[1]):
            state = frames[:, day] >= self.wet
            if self._state is None:
                self._state = state
                continue
            changed = state != self._state
            ended = changed & self._begun
            if ended.any():
                index = np.minimum(self._length[ended], LONGEST_SPELL) - 1
                kind, member = self._state[ended].astype(int), self._member[ended]
                area, band = self._area[ended], self._band[ended]
                into = self.counted[:, block]
                np.add.at(into, (member, kind, 0, index), area)
                if self.regions > 1:
                    np.add.at(into, (member, kind, band, index), area)
            self._length = np.where(changed, 1, self._length + 1)
            self._begun |= changed
            self._state = state


def spread_out(maxima: np.ndarray, years: np.ndarray) -> np.ndarray:
    """Maxima (N, P) of some of the years of all members, one after the other."""
    chosen = maxima[:, years]
    return chosen.reshape(-1, chosen.shape[-1])
