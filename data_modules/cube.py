"""A data cube as it lies on disk: what is in it, and how to read a piece of it.

A cube is anything that xarray opens with one or more variables over time and two dimensions in
space, and perhaps a dimension of independent trajectories. `open_cube` finds these by name or by
their CF attributes, checks all that can be checked without reading the fields, and describes the
result as a `Cube`, whose `read` gives float32 frames.
"""

from __future__ import annotations

import difflib
import itertools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr

from data_modules.errors import DataError

TIME_NAMES = ("time", "valid_time", "t")
TRAJECTORY_NAMES = ("trajectory", "member", "realization", "number", "ensemble", "sample")
ROW_NAMES = ("y", "lat", "latitude", "rlat", "projection_y_coordinate", "grid_latitude")
COLUMN_NAMES = ("x", "lon", "longitude", "rlon", "projection_x_coordinate", "grid_longitude")
BOUNDARIES = ("periodic", "reflect", "zero")
EPOCH = "1970-01-01"
GAP = 1.5  # steps: months differ in length by less, a missing frame makes more


@dataclass(frozen=True)
class Cube:
    """What a cube holds, without its fields.

    Args:
        path: Where it is.
        variables: Attributes of each variable, in the order of the channels.
        time_dim: Name of the dimension of time.
        trajectory_dim: Name of the dimension of independent trajectories, if there is one.
        dims: Names of the dimensions in space, rows first.
        shape: Their sizes (H, W).
        trajectories: Number of trajectories; 1 without such a dimension.
        times: Time of each frame: datetime64, cftime dates or numbers.
        time_numbers: The same as float64: seconds since 1970-01-01 in the cube's calendar for
            dates, else the cube's own numbers.
        step: Time between frames, in the unit of `time_numbers`.
        calendar: Calendar of the dates; None when times are numbers.
        time_attributes: Attributes of the time coordinate.
        coords: Coordinates in space: name -> (dimensions, values, attributes).
        boundary: What lies beyond the edge of each dimension in space: periodic, reflect or zero.
        attributes: Attributes of the whole cube.
        chunks: Frames and trajectories in one stored chunk, as (trajectories, frames).
        refuse_missing: Whether missing values are refused, rather than left or filled.
        fill_values: For each variable, the number that replaces missing values, if any.
    """

    path: str
    variables: dict[str, dict[str, Any]]
    time_dim: str
    trajectory_dim: str | None
    dims: tuple[str, str]
    shape: tuple[int, int]
    trajectories: int
    times: np.ndarray
    time_numbers: np.ndarray
    step: float
    calendar: str | None
    time_attributes: dict[str, Any]
    coords: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]
    boundary: tuple[str, str]
    attributes: dict[str, Any]
    chunks: tuple[int, int]
    refuse_missing: bool = True
    fill_values: tuple[float | None, ...] = ()
    _open: dict[int, xr.Dataset] = field(default_factory=dict, repr=False, compare=False)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame of all variables as float32."""
        return 4 * len(self.variables) * self.shape[0] * self.shape[1]

    @property
    def dataset(self) -> xr.Dataset:
        """The opened dataset; each process opens its own."""
        if os.getpid() not in self._open:
            self._open[os.getpid()] = open_dataset(self.path)
        return self._open[os.getpid()]

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when sent to another process."""
        return self.__dict__ | {"_open": {}}

    def runs(self) -> list[tuple[int, int]]:
        """Frames [start, stop) without a gap in time between them, in order."""
        edges = np.flatnonzero(np.diff(self.time_numbers) > GAP * self.step) + 1
        bounds = [0, *edges.tolist(), len(self.times)]
        return list(itertools.pairwise(bounds))

    def read(self, trajectories: slice, frames: slice, out: np.ndarray | None = None) -> np.ndarray:
        """Read float32 frames (trajectories, frames, C, H, W) in physical units.

        Missing values are refused, filled, or left as NaN, as the cube was opened.

        Args:
            trajectories: Which trajectories, from start to stop.
            frames: Which frames; may have a step.
            out: Array of that shape to read into.

        Raises:
            DataError: If a value is missing and that is refused, or a chunk cannot be read.
        """
        if out is None:
            counts = (trajectories.stop - trajectories.start, len(self.times[frames]))
            out = np.empty((*counts, len(self.variables), *self.shape), dtype=np.float32)
        for channel, name in enumerate(self.variables):
            array = self.dataset[name].isel({self.time_dim: frames})
            order: tuple[str, ...] = (self.time_dim, *self.dims)
            if self.trajectory_dim is not None:
                array = array.isel({self.trajectory_dim: trajectories})
                order = (self.trajectory_dim, *order)
            try:
                values = array.transpose(*order).values
            except Exception as error:  # each codec and file system raises its own
                raise DataError(
                    f"Variable '{name}' of {self.path} cannot be read from "
                    f"{self.span(frames)} ({first_line(error)}); the file may be damaged."
                ) from error
            target = out[:, :, channel]
            target[...] = values.reshape(target.shape)
            self._mind_missing(target, channel, trajectories, frames)
        return out

    def span(self, frames: slice) -> str:
        """Frames in words: their numbers and times."""
        first, last = self.times[frames.start], self.times[frames.stop - 1]
        return f"frames {frames.start} to {frames.stop - 1} (time {_show(first)} to {_show(last)})"

    def _mind_missing(
        self, values: np.ndarray, channel: int, trajectories: slice, frames: slice
    ) -> None:
        if np.isfinite(values.sum(dtype=np.float64)):
            return  # a sum is many times faster than a mask, and NaN and infinity survive it
        missing = ~np.isfinite(values)
        if not missing.any():
            return
        if not self.refuse_missing:
            fill = self.fill_values[channel]
            values[missing] = np.nan if fill is None else fill
            return
        where = np.argwhere(missing.any(axis=(2, 3)))
        trajectory, frame = where[0] + (trajectories.start, frames.start)
        chunk = frame - frame % self.chunks[1]
        chunk = slice(chunk, min(chunk + self.chunks[1], len(self.times)))
        of = "" if self.trajectory_dim is None else f"trajectory {trajectory}, "
        name = list(self.variables)[channel]
        raise DataError(
            f"Variable '{name}' of {self.path} has missing values in the chunk of {of}"
            f"{self.span(chunk)}, first at time {_show(self.times[frame])}; repair the cube, or "
            "set missing to 'fill' to replace them."
        )


def open_dataset(path: str, chunks: dict[str, int] | None = None) -> xr.Dataset:
    """Open Zarr or NetCDF lazily, without warnings about how the metadata are stored.

    Raises:
        DataError: If nothing is there, or it cannot be read as Zarr or NetCDF.
    """
    remote = "://" in path
    if not remote and not Path(path).exists():
        raise DataError(f"There is no cube at {path}; make it first, or correct the path.")
    zarr = remote or Path(path).is_dir() or path.rstrip("/").endswith(".zarr")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return xr.open_dataset(
                path,
                engine="zarr" if zarr else None,
                chunks=chunks,
                cache=False,
                decode_timedelta=False,
            )
    except Exception as error:  # each backend raises its own
        raise DataError(
            f"{path} cannot be opened as a Zarr or NetCDF cube ({first_line(error)}); "
            "give the path of one."
        ) from error


def open_cube(
    path: str | os.PathLike[str],
    variables: Sequence[str] | None = None,
    time_dim: str | None = None,
    trajectory_dim: str | None = None,
    spatial_dims: Sequence[str] | None = None,
    boundary: Sequence[str] | None = None,
    missing: str = "refuse",
    fill_value: float | dict[str, float] | None = None,
) -> Cube:
    """Open a cube and check everything that can be checked without reading its fields.

    Args: as in `ClimateCubeDataModule`.

    Raises:
        DataError: If a variable, dimension or time is missing or unusable, saying which.
    """
    path = os.fspath(path)
    dataset = open_dataset(path)
    for name in variables or ():
        if name not in dataset.data_vars:
            raise DataError(
                f"{path} has no variable '{name}'{_nearest(name, list(dataset.data_vars))}; "
                f"it has {_listed(dataset.data_vars)}."
            )
    if variables and len(set(variables)) < len(variables):
        raise DataError(f"variables names one of {_listed(variables)} twice; name each once.")
    empty = [dim for dim, size in dataset.sizes.items() if not size]
    if empty:
        raise DataError(f"{path} is empty: its dimension '{empty[0]}' has no entries.")
    time_dim = _time_dim(dataset, path, time_dim)
    rows, columns = _spatial_dims(dataset, path, spatial_dims)
    names = list(variables) if variables else _on_the_grid(dataset, (time_dim, rows, columns))
    if not names:
        raise DataError(
            f"{path} has no variable with dimensions {time_dim}, {rows} and {columns}; "
            f"it has {_listed(dataset.data_vars)}."
        )
    trajectory_dim = _trajectory_dim(dataset, path, names, trajectory_dim, time_dim, rows, columns)
    times, numbers, calendar = _times(dataset, path, time_dim)
    coords = _spatial_coords(dataset, (rows, columns))
    known = boundary or [_boundary(dataset, dim) for dim in (rows, columns)]
    if len(known) != 2 or any(b not in BOUNDARIES for b in known):
        raise DataError(
            f"boundary is {list(known)}; give one of {', '.join(BOUNDARIES)} for {rows} and one "
            f"for {columns}."
        )
    if missing not in ("refuse", "fill"):
        raise DataError(f"missing is '{missing}'; it can be 'refuse' or 'fill'.")
    fills = fill_value if isinstance(fill_value, dict) else dict.fromkeys(names, fill_value)
    for name in fills:
        if name not in names:
            raise DataError(
                f"fill_value names '{name}'{_nearest(name, names)}, which is not among the "
                f"variables {_listed(names)}."
            )
    first = dataset[names[0]]
    stored = first.encoding.get("preferred_chunks") or {}
    return Cube(
        path=path,
        variables={name: plain(dataset[name].attrs) for name in names},
        time_dim=time_dim,
        trajectory_dim=trajectory_dim,
        dims=(rows, columns),
        shape=(dataset.sizes[rows], dataset.sizes[columns]),
        trajectories=dataset.sizes[trajectory_dim] if trajectory_dim else 1,
        times=times,
        time_numbers=numbers,
        step=_step(numbers),
        calendar=calendar,
        time_attributes=plain(dataset[time_dim].attrs) if time_dim in dataset.coords else {},
        coords=coords,
        boundary=(known[0], known[1]),
        attributes=plain(dataset.attrs),
        chunks=(int(stored.get(trajectory_dim, 1)), int(stored.get(time_dim, 1))),
        refuse_missing=missing == "refuse",
        fill_values=tuple(fills.get(name) for name in names),
        _open={os.getpid(): dataset},
    )


def plain(value: Any) -> Any:
    """The value as plain Python, which a checkpoint can hold and anyone can read."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")


def _time_dim(dataset: xr.Dataset, path: str, asked: str | None) -> str:
    if asked is not None:
        return _existing(dataset, path, asked, "time_dim")
    for name in map(str, dataset.sizes):
        attrs = dataset[name].attrs if name in dataset.coords else {}
        dates = name in dataset.coords and dataset[name].dtype.kind == "M"
        if dates or attrs.get("axis") == "T" or attrs.get("standard_name") == "time":
            return name
    return _first_known(dataset, path, TIME_NAMES, "time", "time_dim")


def _spatial_dims(dataset: xr.Dataset, path: str, asked: Sequence[str] | None) -> tuple[str, str]:
    if asked is not None:
        if len(asked) != 2:
            raise DataError(f"spatial_dims is {list(asked)}; give two names, rows first.")
        rows, columns = (_existing(dataset, path, name, "spatial_dims") for name in asked)
        return rows, columns
    found = []
    for axis, known, words in (("Y", ROW_NAMES, "row"), ("X", COLUMN_NAMES, "column")):
        for name in map(str, dataset.sizes):
            attrs = dataset[name].attrs if name in dataset.coords else {}
            if attrs.get("axis") == axis or attrs.get("standard_name") in known:
                found.append(name)
                break
        else:
            found.append(_first_known(dataset, path, known, words, "spatial_dims"))
    return found[0], found[1]


def _first_known(
    dataset: xr.Dataset, path: str, known: Sequence[str], what: str, argument: str
) -> str:
    for name in known:
        if name in dataset.sizes:
            return name
    raise DataError(
        f"{path} has no {what} dimension that can be recognised among {_listed(dataset.sizes)}; "
        f"name it with {argument}."
    )


def _existing(dataset: xr.Dataset, path: str, name: str, argument: str) -> str:
    if name not in dataset.sizes:
        raise DataError(
            f"{path} has no dimension '{name}' ({argument})"
            f"{_nearest(name, list(dataset.sizes))}; it has {_listed(dataset.sizes)}."
        )
    return name


def _on_the_grid(dataset: xr.Dataset, dims: tuple[str, ...]) -> list[str]:
    return [
        str(name)
        for name, array in dataset.data_vars.items()
        if set(dims) <= set(array.dims) and array.dtype.kind in "fiu"
    ]


def _trajectory_dim(
    dataset: xr.Dataset,
    path: str,
    names: list[str],
    asked: str | None,
    *frame_dims: str,
) -> str | None:
    """The dimension of trajectories, once it is sure that all variables have the same ones."""
    if asked is not None:
        _existing(dataset, path, asked, "trajectory_dim")
    rest = [str(d) for d in dataset[names[0]].dims if d not in frame_dims]
    found = asked or next((d for d in rest if d in TRAJECTORY_NAMES), None)
    wanted = {*frame_dims, *([found] if found else [])}
    for name in names:
        array = dataset[name]
        if array.dtype.kind not in "fiu":
            raise DataError(f"Variable '{name}' of {path} holds {array.dtype}, not numbers.")
        if set(array.dims) != wanted:
            raise DataError(
                f"Variable '{name}' of {path} has dimensions {_listed(array.dims)} where "
                f"{_listed(sorted(wanted))} are needed; choose other variables, or name the "
                "dimensions with time_dim, trajectory_dim and spatial_dims."
            )
    return found


def _times(dataset: xr.Dataset, path: str, dim: str) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Times, the same as float64, and the calendar, once they are known to rise."""
    if dim not in dataset.coords:
        numbers = np.arange(dataset.sizes[dim], dtype=np.float64)
        return numbers, numbers, None
    times, numbers, calendar = dataset[dim].values, np.empty(0), None
    if times.dtype.kind == "M":
        if np.isnat(times).any():
            raise DataError(f"Coordinate '{dim}' of {path} has a missing time; repair the cube.")
        calendar = dataset[dim].encoding.get("calendar", "proleptic_gregorian")
        numbers = times.astype("datetime64[us]").astype(np.int64) / 1e6
    elif times.dtype.kind == "O" and isinstance(times[0], cftime.datetime):
        calendar = times[0].calendar
        numbers = cftime.date2num(times, f"seconds since {EPOCH}", calendar=calendar)
    elif times.dtype.kind in "fiu":
        times = times.astype(np.float64)
        numbers = times
    else:
        raise DataError(
            f"Coordinate '{dim}' of {path} holds {times.dtype}, neither dates nor numbers."
        )
    numbers = np.asarray(numbers, dtype=np.float64)
    steps = np.diff(numbers)
    if not np.isfinite(numbers).all():
        raise DataError(f"Coordinate '{dim}' of {path} has a missing time; repair the cube.")
    if (steps == 0).any():
        i = int(np.argmax(steps == 0))
        raise DataError(
            f"Coordinate '{dim}' of {path} has time {_show(times[i])} twice, at indices {i} and "
            f"{i + 1}; remove one of them."
        )
    if (steps < 0).any():
        i = int(np.argmax(steps < 0))
        raise DataError(
            f"Coordinate '{dim}' of {path} is not in order: {_show(times[i])} at index {i} is "
            f"followed by {_show(times[i + 1])}; sort the cube by '{dim}'."
        )
    return times, numbers, calendar


def _step(numbers: np.ndarray) -> float:
    """The time between frames: the mean over all pairs without a gap between them."""
    steps = np.diff(numbers)
    if not len(steps):
        return 1.0
    return float(steps[steps <= GAP * np.median(steps)].mean())


def _spatial_coords(
    dataset: xr.Dataset, dims: tuple[str, str]
) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]:
    """Numeric coordinates over the dimensions in space, such as latitudes."""
    return {
        str(name): (
            tuple(map(str, coord.dims)),
            coord.values.astype(np.float64),
            plain(coord.attrs),
        )
        for name, coord in dataset.coords.items()
        if coord.dims and set(coord.dims) <= set(dims) and coord.dtype.kind in "fiu"
    }


def _boundary(dataset: xr.Dataset, dim: str) -> str:
    """What the coordinate says lies beyond its edge; a longitude around the globe is periodic."""
    if dim not in dataset.coords:
        return "reflect"
    coord = dataset[dim]
    if "boundary" in coord.attrs:
        return str(coord.attrs["boundary"])
    if is_longitude(dim, coord.attrs) and coord.size > 1:
        steps = np.diff(coord.values.astype(np.float64))
        around = abs(float(steps.mean())) * coord.size
        if np.ptp(steps) < 0.01 * abs(steps.mean()) and abs(around - 360) < 0.01 * 360 / coord.size:
            return "periodic"
    return "reflect"


def is_longitude(name: str, attrs: dict[str, Any]) -> bool:
    """Whether a coordinate is a longitude, by its attributes or its name."""
    if "standard_name" in attrs:
        return bool(attrs["standard_name"] == "longitude")
    return "degrees_east" in str(attrs.get("units")) or name in ("lon", "longitude")


def is_latitude(name: str, attrs: dict[str, Any]) -> bool:
    """Whether a coordinate is a latitude, by its attributes or its name."""
    if "standard_name" in attrs:
        return bool(attrs["standard_name"] == "latitude")
    return "degrees_north" in str(attrs.get("units")) or name in ("lat", "latitude")


def _nearest(name: str, known: Sequence[Any]) -> str:
    match = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "none"


def _show(time: Any) -> str:
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]"))
    return f"{time:g}" if isinstance(time, float) else str(time)
