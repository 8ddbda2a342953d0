"""What is given beside the frames: static fields of the grid, and series that force the world.

Static fields are variables over space, or made of the coordinates: `latitude` (its sine) and
`longitude` (cosine and sine). Forcing are variables over time, or made of the calendar:
`day_of_year` and `time_of_day` (cosine and sine each), which are known at any time, also long after
the cube's end.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_modules.axes import is_latitude, is_longitude
from data_modules.calendars import day_fraction, year_fraction
from data_modules.cube import Cube
from data_modules.errors import DataError
from data_modules.splits import Split

OF_CALENDAR = ("day_of_year", "time_of_day")
OF_GRID = ("latitude", "longitude")


@dataclass(frozen=True)
class Conditioning:
    """Standardised static fields and forcing series.

    Args:
        static: (C_s, H, W), or None.
        forcing: (trajectories or 1, frames, C_f), or None.
        names: Names of the static fields and of the forcing, as they were asked for.
        series: How to have the forcing at any time; see `forcing_at`.
    """

    static: Tensor | None = None
    forcing: Tensor | None = None
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    series: tuple[dict[str, Any], ...] = ()

    def of(self, trajectory: Tensor, number: Tensor) -> dict[str, Tensor]:
        """What a batch holds beside frames, by trajectory and frame numbers (B, T)."""
        batch = {}
        if self.static is not None:
            batch["static"] = self.static
        if self.forcing is not None:
            row = trajectory if len(self.forcing) > 1 else torch.zeros_like(trajectory)
            batch["forcing"] = self.forcing[row, number]
        return batch

    def description(self) -> dict[str, Any]:
        """As plain values, for checkpoints; empty when there is nothing.

        Keys: `static` and `forcing` (names), `fields` (C_s, H, W), `series` (see `forcing_at`) and
        `channels`, how many maps `context_maps` makes of them.
        """
        if self.static is None and self.forcing is None:
            return {}
        fields = 0 if self.static is None else len(self.static)
        series = 0 if self.forcing is None else self.forcing.shape[-1]
        return {
            "static": list(self.names[0]),
            "forcing": list(self.names[1]),
            "fields": self.static,
            "series": [dict(entry) for entry in self.series],
            "channels": fields + series,
        }


def read_conditioning(
    cube: Cube, static: Sequence[str], forcing: Sequence[str], train: Split
) -> Conditioning:
    """Read and standardise; forcing by its mean and spread over the training split.

    Raises:
        DataError: If a variable is missing, has other dimensions, or has missing values.
    """
    series = tuple(_series(cube, name, train) for name in forcing)
    return Conditioning(
        torch.cat([_static(cube, name) for name in static]) if static else None,
        _known(cube, series) if series else None,
        (tuple(static), tuple(forcing)),
        series,
    )


def forcing_at(series: Sequence[Mapping[str, Any]], seconds: np.ndarray, calendar: str) -> Tensor:
    """Forcing (..., C_f) at any times.

    Args:
        series: For each `name` and `kind`: `day_of_year` and `time_of_day` need no more; a `series`
            has `times` (N,) and standardised `values` (N,), between which it is linear.
        seconds: (...) times as numbers, of the cube's own kind.
        calendar: That in which they count.

    Raises:
        DataError: If a series is not known at one of the times, or differs by trajectory.
    """
    seconds = np.asarray(seconds, dtype=np.float64)
    parts = []
    for entry in series:
        if entry["kind"] in OF_CALENDAR:
            parts += _of_calendar(entry["kind"], seconds, calendar)
            continue
        times, values = entry["times"].numpy(), entry["values"].numpy()
        if values.ndim > 1:
            raise DataError(
                f"The forcing '{entry['name']}' differs by trajectory, so that it is not known "
                "along a rollout; leave it out of forcing."
            )
        margin = 1e-6 * (times[-1] - times[0])
        if seconds.min() < times[0] - margin or seconds.max() > times[-1] + margin:
            raise DataError(
                f"The forcing '{entry['name']}' is known from {times[0]:.0f} to {times[-1]:.0f} "
                f"only, but the rollout goes to {seconds.max():.0f} (seconds since 1970 where "
                "times are dates); roll out fewer steps, or use a cube whose series goes further."
            )
        parts.append(np.interp(seconds, times, values))
    return torch.from_numpy(np.stack(parts, axis=-1)).float()


def context_maps(
    static: Tensor | None, forcing: Tensor | None, shape: Sequence[int]
) -> Tensor | None:
    """Static fields and forcing as maps (..., C_s + C_f, H, W), what networks take as context.

    Args:
        static: (C_s, H, W), or None.
        forcing: (..., C_f), or None; without it there are no leading dimensions.
        shape: H and W.
    """
    parts = []
    leading = () if forcing is None else forcing.shape[:-1]
    if static is not None:
        parts.append(static.expand(*leading, *static.shape))
    if forcing is not None:
        parts.append(forcing[..., None, None].expand(*forcing.shape, *shape))
    if not parts:
        return None
    return torch.cat([part.to(parts[-1]) for part in parts], dim=-3)


def first_channel(description: Mapping[str, Any], kind: str) -> int | None:
    """Where among the maps of `context_maps` the forcing of a kind begins; None without it.

    Args:
        description: Of the conditioning, as `Conditioning.description` gives it.
        kind: `day_of_year` or `time_of_day`, cosine and then sine.
    """
    fields = description.get("fields")
    first = 0 if fields is None else len(fields)
    for entry in description.get("series", ()):
        if entry["kind"] == kind:
            return first
        first += 2 if entry["kind"] in OF_CALENDAR else 1
    return None


def _of_calendar(kind: str, seconds: np.ndarray, calendar: str) -> list[np.ndarray]:
    """Cosine and sine, whose variance over whole years or days is 1."""
    fraction = year_fraction(seconds, calendar) if kind == OF_CALENDAR[0] else day_fraction(seconds)
    return [np.sqrt(2) * f(2 * np.pi * fraction) for f in (np.cos, np.sin)]


def _known(cube: Cube, series: Sequence[Mapping[str, Any]]) -> Tensor:
    """Forcing (trajectories or 1, frames, C_f) at the cube's own times."""
    parts: list[Tensor] = []
    for entry in series:
        if entry["kind"] in OF_CALENDAR:
            waves = _of_calendar(entry["kind"], cube.time_numbers, str(cube.calendar))
            parts += [torch.from_numpy(wave).float()[None] for wave in waves]
        else:
            parts.append(torch.atleast_2d(entry["values"].float()))
    return torch.stack(torch.broadcast_tensors(*parts), dim=-1)


def _static(cube: Cube, name: str) -> Tensor:
    """(1 or 2, H, W) of one name."""
    if name in OF_GRID and not _over(cube, name, set(cube.dims)):
        return _of_grid(cube, name)
    array = _variable(cube, name, set(cube.dims), "static").transpose(*cube.dims)
    values = array.values.astype(np.float64)
    return _standardised(values, values, cube, name).float()[None]


def _of_grid(cube: Cube, name: str) -> Tensor:
    is_one = is_latitude if name == "latitude" else is_longitude
    for known, (dims, values, attrs) in cube.coords.items():
        if is_one(known, attrs):
            order = [dim for dim in cube.dims if dim in dims]
            angle = xr.DataArray(np.deg2rad(values), dims=dims).transpose(*order)
            sizes = dict(zip(cube.dims, cube.shape, strict=True))
            shape = tuple(sizes[dim] if dim in dims else 1 for dim in cube.dims)
            grid = np.broadcast_to(angle.values.reshape(shape), cube.shape)
            waves = [np.sin] if name == "latitude" else [np.cos, np.sin]
            return torch.from_numpy(np.stack([wave(grid) for wave in waves])).float()
    raise DataError(f"{cube.path} has no coordinate that is a {name}; leave it out of static.")


def _series(cube: Cube, name: str, train: Split) -> dict[str, Any]:
    """One entry for `forcing_at`."""
    if name in OF_CALENDAR and name not in cube.dataset.data_vars:
        if cube.calendar is None:
            raise DataError(
                f"{cube.path} has times without a calendar, so that there is no {name}; leave it "
                "out of forcing."
            )
        return {"name": name, "kind": name}
    array = _variable(cube, name, {cube.time_dim, cube.trajectory_dim}, "forcing")
    values = array.transpose(..., cube.time_dim).values.astype(np.float64)
    rows = np.atleast_2d(values)
    seen = rows[slice(*train.trajectories)] if len(rows) > 1 else rows
    seen = np.concatenate([seen[:, a:b] for a, b in train.runs], axis=1)
    times = torch.from_numpy(cube.time_numbers)
    return {
        "name": name,
        "kind": "series",
        "times": times,
        "values": _standardised(values, seen, cube, name),
    }


def _over(cube: Cube, name: str, dims: set[str]) -> bool:
    return name in cube.dataset.data_vars and set(cube.dataset[name].dims) == dims


def _variable(cube: Cube, name: str, dims: set[str | None], argument: str) -> xr.DataArray:
    if name not in cube.dataset.variables:
        made = OF_GRID if argument == "static" else OF_CALENDAR
        known = [*map(str, cube.dataset.variables), *made]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise DataError(f"{cube.path} has no variable '{name}'{hint}; correct {argument}.")
    array = cube.dataset[name]
    array = array.isel({d: 0 for d in array.dims if d not in dims and array.sizes[d] == 1})
    complete = set(array.dims) == dims if argument == "static" else cube.time_dim in array.dims
    if not set(array.dims) <= dims or not complete:
        raise DataError(
            f"Variable '{name}' of {cube.path} has dimensions {', '.join(map(str, array.dims))}, "
            f"so that it cannot be {argument}; remove it from {argument}."
        )
    return array


def _standardised(values: np.ndarray, seen: np.ndarray, cube: Cube, name: str) -> Tensor:
    if not np.isfinite(values).all():
        raise DataError(f"Variable '{name}' of {cube.path} has missing values; repair the cube.")
    spread = seen.std()
    return torch.from_numpy((values - seen.mean()) / (spread if spread else 1.0))
