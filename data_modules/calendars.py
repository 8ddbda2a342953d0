"""Times and calendars: dates of any calendar as numbers, and where in the year and day they lie."""

from __future__ import annotations

from typing import Any

import cftime
import numpy as np
import xarray as xr

from data_modules.errors import DataError

EPOCH = "1970-01-01"
DAY = 86400.0
GAP = 1.5  # steps: months differ in length by less, a missing frame makes more
YEAR_DAYS = {"noleap": 365, "365_day": 365, "all_leap": 366, "366_day": 366, "360_day": 360}
GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")


def read_times(
    dataset: xr.Dataset, path: str, dim: str
) -> tuple[np.ndarray, np.ndarray, str | None, dict[str, Any]]:
    """Times of a cube, the same as numbers, the calendar and the attributes.

    Without a coordinate of that name a coordinate of dates over the same dimension will do; without
    any, frames are counted.

    Returns:
        times (datetime64, cftime dates or float64), float64 numbers (seconds since 1970-01-01 in
        the calendar for dates), the calendar (None for numbers), attributes.

    Raises:
        DataError: If a time is missing or they do not rise.
    """
    name = _coordinate(dataset, dim)
    if name is None:
        numbers = np.arange(dataset.sizes[dim], dtype=np.float64)
        return numbers, numbers, None, {}
    times, calendar = dataset[name].values, None
    if times.dtype.kind == "M":
        if np.isnat(times).any():
            raise DataError(f"Coordinate '{name}' of {path} has a missing time; repair the cube.")
        calendar = dataset[name].encoding.get("calendar", "proleptic_gregorian")
    elif times.dtype.kind == "O" and all(isinstance(t, cftime.datetime) for t in times):
        calendar = times[0].calendar
    elif times.dtype.kind in "fiu":
        times = times.astype(np.float64)
    else:
        raise DataError(
            f"Coordinate '{name}' of {path} holds {times.dtype}, neither dates nor numbers; give "
            "it numbers with units such as 'days since 1970-01-01'."
        )
    numbers = as_numbers(times)
    _require_rising(times, numbers, path, name)
    return times, numbers, calendar, dict(dataset[name].attrs)


def as_numbers(times: np.ndarray) -> np.ndarray:
    """Times as float64: seconds since 1970-01-01 in their own calendar for dates.

    Args:
        times: datetime64, cftime dates or numbers, of any shape.
    """
    if times.dtype.kind == "M":
        return np.asarray(times.astype("datetime64[us]").astype(np.int64) / 1e6)
    if times.dtype.kind == "O":
        units = f"seconds since {EPOCH}"
        calendar = times.flat[0].calendar
        return np.asarray(cftime.date2num(times, units, calendar=calendar), dtype=np.float64)
    return times.astype(np.float64)


def typical_step(numbers: np.ndarray) -> float:
    """The time between frames: the mean over all pairs without a gap between them."""
    steps = np.diff(numbers)
    if not len(steps):
        return 1.0
    return float(steps[steps <= GAP * np.median(steps)].mean())


def year_fraction(seconds: np.ndarray, calendar: str) -> np.ndarray:
    """How much of its year has passed at each time, in [0, 1).

    Args:
        seconds: Since 1970-01-01 in the calendar, of any shape; far beyond any cube's end is fine.
        calendar: A CF calendar, such as standard, noleap or 360_day.
    """
    seconds = np.asarray(seconds, dtype=np.float64)
    if calendar in YEAR_DAYS:
        return seconds / DAY % YEAR_DAYS[calendar] / YEAR_DAYS[calendar]
    if calendar in GREGORIAN:
        dates = (np.floor(seconds)).astype("datetime64[s]")
        years = dates.astype("datetime64[Y]")
        start = years.astype("datetime64[s]").astype(np.int64)
        stop = (years + 1).astype("datetime64[s]").astype(np.int64)
        return (seconds - start) / (stop - start)
    flat = cftime.num2date(seconds.ravel(), f"seconds since {EPOCH}", calendar=calendar)
    fractions = []
    for date, second in zip(flat, seconds.ravel(), strict=True):
        edges = [cftime.datetime(date.year + i, 1, 1, calendar=calendar) for i in (0, 1)]
        start, stop = as_numbers(np.array(edges, dtype=object))
        fractions.append((second - start) / (stop - start))
    return np.reshape(fractions, seconds.shape)


def day_fraction(seconds: np.ndarray) -> np.ndarray:
    """How much of its day has passed at each time (UTC), in [0, 1)."""
    return np.asarray(seconds, dtype=np.float64) / DAY % 1.0


def show(time: Any) -> str:
    """A time as text."""
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]"))
    return f"{time:g}" if isinstance(time, float) else str(time)


def _coordinate(dataset: xr.Dataset, dim: str) -> str | None:
    """The coordinate of a dimension of time: its own, or another one with dates over it."""
    if dim in dataset.coords:
        return dim
    for name, coord in dataset.coords.items():
        dates = coord.dtype.kind == "M" or coord.attrs.get("standard_name") == "time"
        if coord.dims == (dim,) and dates:
            return str(name)
    return None


def _require_rising(times: np.ndarray, numbers: np.ndarray, path: str, name: str) -> None:
    if not np.isfinite(numbers).all():
        raise DataError(f"Coordinate '{name}' of {path} has a missing time; repair the cube.")
    steps = np.diff(numbers)
    if (steps == 0).any():
        i = int(np.argmax(steps == 0))
        raise DataError(
            f"Coordinate '{name}' of {path} has time {show(times[i])} twice, at indices {i} and "
            f"{i + 1}; remove one of them."
        )
    if (steps < 0).any():
        i = int(np.argmax(steps < 0))
        raise DataError(
            f"Coordinate '{name}' of {path} is not in order: {show(times[i])} at index {i} is "
            f"followed by {show(times[i + 1])}; sort the cube by '{name}'."
        )
