"""A data cube as it lies on disk: what is in it, and how to read a piece of it.

A cube is anything that xarray opens with one or more variables over time and two dimensions in
space, and perhaps dimensions of independent trajectories and of levels. `open_cube` finds these by
their CF attributes or their names, checks all that can be checked without reading the fields, and
describes the result as a `Cube`, whose `read` gives float32 frames.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from data_modules import chunks
from data_modules.axes import (
    BOUNDARIES,
    find_boundary,
    find_other_dims,
    find_spatial_dims,
    find_time_dim,
    listed,
    nearest,
    read_spatial_coords,
)
from data_modules.calendars import GAP, read_times, show, typical_step
from data_modules.errors import DataError
from data_modules.sources import Paths, Source, find_source, first_line, is_zarr, trouble_at


class Channel(NamedTuple):
    """Where a channel comes from: a variable of the cube, and perhaps one of its levels."""

    variable: str
    level_dim: str | None = None
    level: int = 0


@dataclass(frozen=True)
class Cube:
    """What a cube holds, without its fields.

    Args:
        path: Where it is.
        source: The files, and how to open them.
        variables: Attributes of each channel, by its name: that of a variable, or of a variable
            and a level such as `ta_850`.
        channels: Where each channel comes from.
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
    source: Source
    variables: dict[str, dict[str, Any]]
    channels: tuple[Channel, ...]
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
            self._open[os.getpid()] = self.source.open()
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
        for name, within in self._stored():
            values = self._stored_values(name, within, trajectories, frames)
            # (trajectories, frames, levels, H, W)
            out[:, :, within] = values.reshape(*out.shape[:2], -1, *self.shape)
            self._mind_absent(out[:, :, within], name, within, trajectories, frames)
            for channel in range(within.start, within.stop):
                self._mind_missing(out[:, :, channel], channel, trajectories, frames)
        return out

    def _stored(self) -> Iterator[tuple[str, slice]]:
        """Variables as they are stored, and their channels, which are read together."""
        start = 0
        for name, group in itertools.groupby(self.channels, lambda channel: channel.variable):
            stop = start + len(list(group))
            yield name, slice(start, stop)
            start = stop

    def _stored_values(
        self, name: str, within: slice, trajectories: slice, frames: slice
    ) -> np.ndarray:
        order = [self.time_dim, *self.dims]
        chosen: dict[str, Any] = {self.time_dim: frames}
        if self.trajectory_dim is not None:
            chosen[self.trajectory_dim] = trajectories
            order = [self.trajectory_dim, *order]
        channels = self.channels[within]
        level_dim = channels[0].level_dim
        if level_dim is not None:
            levels = [channel.level for channel in channels]
            through = list(range(levels[0], levels[-1] + 1)) == levels
            chosen[level_dim] = slice(levels[0], levels[-1] + 1) if through else levels
            order.insert(-2, level_dim)
        array = self.dataset[name]
        chosen |= {str(dim): 0 for dim in array.dims if dim not in order}  # of size 1
        try:
            piece = array.isel(chosen).transpose(*order)
            if piece.chunks is not None:
                # Several files are behind dask, whose own threads do not survive a fork.
                piece = piece.compute(scheduler="synchronous")
            return np.asarray(piece.values)
        except Exception as error:  # each codec and file system raises its own
            raise DataError(
                trouble_at(self.path, error)
                or f"Variable '{name}' of {self.path} cannot be read from "
                f"{self.span(frames)} ({first_line(error)}); the file may be damaged."
            ) from error

    def _mind_absent(
        self, values: np.ndarray, name: str, within: slice, trajectories: slice, frames: slice
    ) -> None:
        """Refuse frames that are nothing but what Zarr gives for a chunk that is not there."""
        if not self.refuse_missing:
            return
        suspect = chunks.all_fill(self.dataset[name], values)  # (trajectories, frames, levels)
        if not suspect.any():
            return
        for trajectory, frame, level in np.argwhere(suspect):
            channel = within.start + int(level)
            number = int(np.arange(len(self.times))[frames][frame])
            if not self._is_stored(channel, int(trajectory) + trajectories.start, number):
                value = values[trajectory, frame, level, 0, 0]
                raise DataError(
                    f"The chunk of variable '{name}' of {self.path} with time "
                    f"{show(self.times[number])} is not stored and would read as "
                    f"{value:g} throughout; write it again, or set missing to 'fill' if that is "
                    "meant."
                )

    def _is_stored(self, channel: int, trajectory: int, frame: int) -> bool:
        name, level_dim, level = self.channels[channel]
        place = {self.time_dim: frame, str(self.trajectory_dim): trajectory, str(level_dim): level}
        return chunks.is_stored(self.source, self.dataset[name], name, place)

    def span(self, frames: slice) -> str:
        """Frames in words: their numbers and times."""
        first, last = self.times[frames.start], self.times[frames.stop - 1]
        return f"frames {frames.start} to {frames.stop - 1} (time {show(first)} to {show(last)})"

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
        trajectory, frame = np.argwhere(missing.any(axis=(2, 3)))[0].tolist()
        trajectory += trajectories.start
        frame = int(np.arange(len(self.times))[frames][frame])
        start = frame - frame % self.chunks[1]
        chunk = slice(start, min(start + self.chunks[1], len(self.times)))
        of = "" if self.trajectory_dim is None else f"trajectory {trajectory}, "
        stored = self._is_stored(channel, trajectory, frame)
        raise DataError(
            f"Variable '{list(self.variables)[channel]}' of {self.path} has missing values in the "
            f"chunk of {of}{self.span(chunk)}{'' if stored else ', which is not stored'}, first at "
            f"time {show(self.times[frame])}; repair the cube, or set missing to 'fill' to replace "
            "them."
        )


def open_cube(
    path: Paths,
    variables: Sequence[str] | None = None,
    time_dim: str | None = None,
    trajectory_dim: str | None = None,
    spatial_dims: Sequence[str] | None = None,
    boundary: Sequence[str] | None = None,
    missing: str = "refuse",
    fill_value: float | dict[str, float] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Cube:
    """Open a cube and check everything that can be checked without reading its fields.

    Args: as in `ClimateCubeDataModule`.

    Raises:
        DataError: If a variable, dimension or time is missing or unusable, saying which.
    """
    source = find_source(path, storage_options)
    path, dataset = source.name, source.open()
    empty = [dim for dim, size in dataset.sizes.items() if not size]
    if empty:
        raise DataError(f"{path} is empty: its dimension '{empty[0]}' has no entries.")
    if variables and len(set(variables)) < len(variables):
        raise DataError(f"variables names one of {listed(variables)} twice; name each once.")
    asked = [_variable_of(dataset, path, name) for name in variables or ()]
    time_dim = find_time_dim(dataset, path, time_dim)
    rows, columns = find_spatial_dims(dataset, path, spatial_dims)
    if rows == columns or time_dim in (rows, columns):
        raise DataError(
            f"{path} has dimensions {listed(dataset.sizes)}, of which '{rows}' was taken for rows, "
            f"'{columns}' for columns and '{time_dim}' for time; name them with time_dim and "
            "spatial_dims."
        )
    stored = list(dict.fromkeys(asked)) or _on_the_grid(dataset, (time_dim, rows, columns))
    if not asked and is_zarr(source.paths[0]):
        stored = sorted(stored)  # a folder lists them in no order
    if not stored:
        raise DataError(
            f"{path} has no variable with dimensions {time_dim}, {rows} and {columns}; "
            f"it has {listed(dataset.data_vars)}."
        )
    trajectory_dim, levels = find_other_dims(
        dataset, path, stored, trajectory_dim, (time_dim, rows, columns)
    )
    channels = _channels(dataset, path, levels, variables)
    names = list(channels)
    times, numbers, calendar, time_attributes = read_times(dataset, path, time_dim)
    coords = read_spatial_coords(dataset, path, (rows, columns))
    known = boundary or find_boundary(coords, (rows, columns))
    if len(known) != 2 or any(b not in BOUNDARIES for b in known):
        raise DataError(
            f"boundary is {list(known)}; give one of {', '.join(BOUNDARIES)} for {rows} and one "
            f"for {columns}."
        )
    if missing not in ("refuse", "fill"):
        raise DataError(f"missing is '{missing}'; it can be 'refuse' or 'fill'.")
    fills = fill_value if isinstance(fill_value, dict) else dict.fromkeys(names, fill_value)
    for name in fills:
        if name not in names and name not in stored:
            raise DataError(
                f"fill_value names '{name}'{nearest(name, names)}, which is not among the "
                f"variables {listed(names)}."
            )
    first = dataset[stored[0]]
    preferred = first.encoding.get("preferred_chunks") or {}
    return Cube(
        path=path,
        source=source,
        variables={name: _attributes(dataset, channel) for name, channel in channels.items()},
        channels=tuple(channels.values()),
        time_dim=time_dim,
        trajectory_dim=trajectory_dim,
        dims=(rows, columns),
        shape=(dataset.sizes[rows], dataset.sizes[columns]),
        trajectories=dataset.sizes[trajectory_dim] if trajectory_dim else 1,
        times=times,
        time_numbers=numbers,
        step=typical_step(numbers),
        calendar=calendar,
        time_attributes=plain(time_attributes),
        coords={name: (dims, values, plain(a)) for name, (dims, values, a) in coords.items()},
        boundary=(known[0], known[1]),
        attributes=plain(dataset.attrs),
        chunks=(int(preferred.get(trajectory_dim, 1)), int(preferred.get(time_dim, 1))),
        refuse_missing=missing == "refuse",
        fill_values=tuple(
            fills.get(name, fills.get(channel.variable)) for name, channel in channels.items()
        ),
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


def _on_the_grid(dataset: xr.Dataset, dims: tuple[str, ...]) -> list[str]:
    return [
        str(name)
        for name, array in dataset.data_vars.items()
        if set(dims) <= set(array.dims) and array.dtype.kind in "fiu"
    ]


def _variable_of(dataset: xr.Dataset, path: str, name: str) -> str:
    """The variable that a name of a channel means: itself, or that before the level."""
    stem = name.rpartition("_")[0]
    for known in (name, stem):
        if known in dataset.data_vars:
            return known
    raise DataError(
        f"{path} has no variable '{name}'{nearest(name, list(dataset.data_vars))}; "
        f"it has {listed(dataset.data_vars)}."
    )


def _channels(
    dataset: xr.Dataset,
    path: str,
    levels: Mapping[str, str | None],
    asked: Sequence[str] | None,
) -> dict[str, Channel]:
    """The channels by name: those asked for, each level of a variable being one."""
    known: dict[str, Channel] = {}
    every: dict[str, list[str]] = {}
    for name, dim in levels.items():
        own = {name: Channel(name)} if dim is None else _level_channels(dataset, name, dim)
        every[name] = list(own)
        known |= own
    wanted: list[str] = []
    for name in asked or list(levels):
        if name not in every and name not in known:
            stem = name.rpartition("_")[0]
            raise DataError(
                f"Variable '{stem}' of {path} has no level '{name.rpartition('_')[2]}'; it gives "
                f"{listed(every[stem])}."
            )
        wanted += every.get(name, [name])
    if len(set(wanted)) < len(wanted):
        raise DataError(f"variables {listed(asked)} name a level twice; name each once.")
    return {name: known[name] for name in wanted}


def _level_channels(dataset: xr.Dataset, name: str, dim: str) -> dict[str, Channel]:
    size = dataset.sizes[dim]
    values = dataset[dim].values if dim in dataset.coords else np.arange(size)
    numeric = values.dtype.kind in "fiu"
    labels = [f"{float(v):g}" if numeric else str(v) for v in values]
    return {f"{name}_{label}": Channel(name, dim, i) for i, label in enumerate(labels)}


def _attributes(dataset: xr.Dataset, channel: Channel) -> dict[str, Any]:
    """Attributes of a channel: those of its variable, and its level."""
    attrs: dict[str, Any] = plain(dataset[channel.variable].attrs)
    if channel.level_dim is None or channel.level_dim not in dataset.coords:
        return attrs
    coord = dataset[channel.level_dim]
    level = {"level": plain(coord.values[channel.level])}
    units = coord.attrs.get("units")
    return attrs | level | ({"level_units": str(units)} if units else {})
