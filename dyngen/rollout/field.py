"""What a rollout is made of, in the world's own terms: variables, grid, times, CF metadata.

From a `Field` and a `Layout` comes the empty dataset that a rollout then fills: float32 variables
in physical units with real coordinates, following the CF conventions, so that any tool of the
field reads it without this library.

Many initial states give dimensions (initial, member, lead, y, x) with `initial_time(initial)` and
the valid time `time(initial, lead)`. One initial state gives (member, time, y, x) with
`lead(time)`. The names of y and x are the grid's own.
"""

import datetime
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cftime
import dask.array
import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec

from dyngen.rollout.layout import Layout

DAY = 86400.0  # seconds
YEAR_DAYS = {"noleap": 365.0, "365_day": 365.0, "all_leap": 366.0, "366_day": 366.0}
YEAR_DAYS |= {"360_day": 360.0, "julian": 365.25}
GREGORIAN_YEAR = 365.2425  # days
COORDINATE_CHUNK = 4096  # fixed, so that a longer rollout has the same chunks and some more

Coordinate = tuple[tuple[str, ...], np.ndarray, Mapping[str, Any]]


@dataclass(frozen=True)
class Field:
    """Variables and coordinates of the frames of a rollout.

    Args:
        variables: attributes (units, long_name, ...) of each variable, in the order of channels.
        dims: names of the two spatial dimensions, rows first.
        shape: their sizes (H, W).
        initial_times: (N,) times of the last given frame of each initial state: datetime64,
            cftime dates, or numbers for a world without a calendar.
        step: time from one frame to the next: timedelta64 with dates, else a number.
        coords: spatial coordinates: name -> (dimensions, values, attributes).
        time_attributes: attributes of numeric times, such as their units.
        attributes: attributes of the whole dataset, such as its title.
        initial_trajectories: (N,) numbers of the trajectories that the initial states are of, for
            a world that has several.

    Raises:
        ValueError: when a coordinate does not fit the grid, a name is taken twice, or times and
            step are not of one kind.
    """

    variables: Mapping[str, Mapping[str, Any]]
    dims: tuple[str, str]
    shape: tuple[int, int]
    initial_times: np.ndarray
    step: Any
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    time_attributes: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    initial_trajectories: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = dict(zip(self.dims, self.shape, strict=True))
        taken = {"initial", "member", "lead", "time", "initial_time", "initial_trajectory"}
        for name in [*self.variables, *self.dims]:
            if name in taken:
                raise ValueError(f"{name!r} cannot be a variable or dimension of a rollout's grid.")
        for name, (dims, values, _) in self.coords.items():
            if name in taken | set(self.variables):
                raise ValueError(f"coordinate {name!r} has the name of something else.")
            if tuple(np.shape(values)) != tuple(sizes.get(dim) for dim in dims):
                raise ValueError(
                    f"coordinate {name!r} has shape {np.shape(values)} where the grid has {sizes}."
                )
        if self.initial_times.ndim != 1:
            raise ValueError("initial_times must have one dimension, one time per initial state.")
        if self.initial_trajectories is not None and (
            np.shape(self.initial_trajectories) != self.initial_times.shape
        ):
            raise ValueError("initial_trajectories must have one number per initial state.")
        if self.has_dates != isinstance(self.step, np.timedelta64 | datetime.timedelta):
            raise ValueError(
                f"the step between frames, {self.step!r}, must be a timedelta when the initial "
                "times are dates, and a number when they are numbers."
            )

    @property
    def has_dates(self) -> bool:
        """Whether times are dates rather than plain numbers."""
        return self.initial_times.dtype.kind in "MO"

    @property
    def years_per_step(self) -> float | None:
        """Years of the calendar, on average, from one frame to the next; None without dates."""
        if not self.has_dates:
            return None
        calendar = getattr(self.initial_times.flat[0], "calendar", "standard")
        days = np.timedelta64(self.step) / np.timedelta64(1, "s") / DAY
        return float(days / YEAR_DAYS.get(calendar, GREGORIAN_YEAR))

    def steps_in_years(self, years: int) -> int:
        """Steps until so many years after every initial time, by its own calendar.

        A last step that would reach less than a tenth of itself into these years is left out: the
        steps of a cube of months are of one length, and months are not.

        Raises:
            ValueError: for no years, or times that are no dates.
        """
        if years < 1:
            raise ValueError(f"years of a rollout must be at least 1, not {years}.")
        if not self.has_dates:
            raise ValueError(
                "years cannot be counted, since the times of this cube are numbers without a "
                "calendar: give steps."
            )
        step = np.timedelta64(self.step).astype("timedelta64[ms]").astype(float)
        longest = max(_milliseconds(_years_later(t, years) - t) for t in self.initial_times)
        return max(1, math.ceil(longest / step - 0.1))


def empty_rollout(
    field: Field, layout: Layout, *, diagnostics: tuple[str, ...], attributes: Mapping[str, Any]
) -> tuple[xr.Dataset, dict[Hashable, dict[str, Any]]]:
    """The dataset that a rollout fills and how to encode it; its data variables are lazy.

    Args:
        diagnostics: names of the sampler's figures per member and frame, stored beside the fields.
        attributes: further attributes of the dataset.
    """
    one = layout.initials == 1
    rows = ("member",) if one else ("initial", "member")
    axis = "time" if one else "lead"
    sizes = {
        "initial": layout.initials,
        "member": layout.members,
        axis: layout.kept,
        **dict(zip(field.dims, field.shape, strict=True)),
    }
    chunks = {
        "initial": layout.slab_initials,
        "member": layout.slab_members,
        axis: layout.kept_per_block,
    }
    data, encoding = {}, dict[Hashable, dict[str, Any]]()
    for name, attrs in [*field.variables.items(), *((d, {}) for d in diagnostics)]:
        dims = (*rows, axis) if name in diagnostics else (*rows, axis, *field.dims)
        shape = tuple(sizes[dim] for dim in dims)
        empty = dask.array.full(shape, np.nan, dtype=np.float32, chunks=-1)
        data[name] = (dims, empty, _portable(attrs))
        encoding[name] = {
            "chunks": tuple(chunks.get(dim, sizes[dim]) for dim in dims),
            "compressors": (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),),
            "fill_value": np.float32("nan"),  # what is not written yet reads as missing
            "_FillValue": None,
        }
    coords, time_encoding = _times(field, layout)
    if field.initial_trajectories is not None:
        numbers = np.asarray(field.initial_trajectories, dtype=np.int64)
        coords["initial_trajectory"] = (
            () if one else "initial",
            numbers[0] if one else numbers,
            {"long_name": "trajectory of the initial state"},
        )
    coords["member"] = ("member", np.arange(layout.members), {"standard_name": "realization"})
    coords |= {name: (dims, v, _portable(a)) for name, (dims, v, a) in field.coords.items()}
    for name, coord in coords.items():
        encoding[name] = {"_FillValue": None, **time_encoding.get(name, {})}
        if np.ndim(coord[1]) and axis in coord[0]:
            encoding[name]["chunks"] = tuple(
                COORDINATE_CHUNK if dim == axis else sizes[dim] for dim in _names(coord[0])
            )
    attrs = {"Conventions": "CF-1.11", **_portable(field.attributes), **attributes}
    return xr.Dataset(data, coords, attrs), encoding


def _times(field: Field, layout: Layout) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Coordinates lead, time and initial_time, and the encoding of those that are dates."""
    numbers = layout.every * np.arange(1, layout.kept + 1)
    encoding: dict[str, dict[str, Any]] = {}
    attrs = _portable(field.time_attributes)
    lead: np.ndarray
    if field.has_dates:
        step = np.timedelta64(field.step)
        unit = _unit(step, field.initial_times)
        lead = numbers * step.astype("timedelta64[s]")
        if field.initial_times.dtype.kind == "M":
            initial = field.initial_times.astype("datetime64[s]")
            valid = initial[:, None] + lead
            calendar = "standard"
        else:
            initial = field.initial_times
            valid = initial[:, None] + np.array([s.astype(object) for s in lead])
            calendar = initial[0].calendar
        dates = {"units": f"{unit} since 1970-01-01", "calendar": calendar, "dtype": "int64"}
        encoding = {
            "time": dates,
            "initial_time": dates,
            "lead": {"units": unit, "dtype": "int64"},
        }
        attrs = {}
    else:
        initial = field.initial_times.astype(np.float64)
        lead = numbers * float(field.step)
        valid = initial[:, None] + lead
    lead_attrs = attrs | {"standard_name": "forecast_period", "long_name": "lead time"}
    time_attrs = attrs | {"standard_name": "time", "long_name": "valid time"}
    initial_attrs = attrs | {
        "standard_name": "forecast_reference_time",
        "long_name": "time of the initial state",
    }
    if layout.initials == 1:
        coords: dict[str, Any] = {
            "time": ("time", valid[0], time_attrs | {"axis": "T"}),
            "lead": ("time", lead, lead_attrs),
            "initial_time": ((), initial[0], initial_attrs),
        }
    else:
        coords = {
            "lead": ("lead", lead, lead_attrs),
            "initial_time": ("initial", initial, initial_attrs),
            "time": (("initial", "lead"), valid, time_attrs),
        }
    return coords, encoding


def _unit(step: np.timedelta64, initial_times: np.ndarray) -> str:
    """The coarsest unit in which the step and all times are whole numbers."""
    seconds = step / np.timedelta64(1, "s")
    if seconds != int(seconds) or seconds <= 0:
        raise ValueError(f"the step between frames, {step}, must be a whole number of seconds.")
    if initial_times.dtype.kind == "M":
        of_day = [int(t) % 86400 for t in initial_times.astype("datetime64[s]").astype(np.int64)]
    else:
        of_day = [t.hour * 3600 + t.minute * 60 + t.second for t in initial_times]
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if not any(part % length for part in [int(seconds), *of_day]):
            return unit
    return "seconds"


def _years_later(time: Any, years: int) -> Any:
    """The same day and hour of a later year; the first of March for a 29th of February."""
    if isinstance(time, np.datetime64):
        month = time.astype("datetime64[M]")
        return (month + 12 * years).astype("datetime64[s]") + (time - month).astype("m8[s]")
    month = cftime.datetime(time.year, time.month, 1, calendar=time.calendar)
    return month.replace(year=time.year + years) + (time - month)


def _milliseconds(span: Any) -> float:
    return float(np.timedelta64(span) / np.timedelta64(1, "ms"))


def _portable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that every format has: Zarr's may be any JSON, NetCDF's are texts and numbers."""

    def portable(value: Any) -> Any:
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        parts = value if isinstance(value, list | tuple) and value else [value]
        if any(isinstance(p, bool) or not isinstance(p, str | int | float) for p in parts):
            return json.dumps(value, default=str)
        return value

    return {str(name): portable(value) for name, value in attributes.items()}


def _names(dims: str | tuple[str, ...]) -> tuple[str, ...]:
    return (dims,) if isinstance(dims, str) else dims
