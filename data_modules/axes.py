"""Which dimension of a cube is what: by its CF attributes first, by its name else.

In this order: `standard_name`, `axis`, `units`, the coordinates' own kind (dates, or latitudes and
longitudes over two dimensions), and last the names below.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from data_modules.errors import DataError

TIME_NAMES = ("time", "valid_time", "t", "Time", "date")
TRAJECTORY_NAMES = ("trajectory", "member", "realization", "number", "ensemble", "sample")
ROW_NAMES = (
    *("y", "lat", "latitude", "rlat", "projection_y_coordinate", "grid_latitude"),
    *("yc", "south_north", "nj", "j", "nlat", "lats"),
)
COLUMN_NAMES = (
    *("x", "lon", "longitude", "rlon", "projection_x_coordinate", "grid_longitude"),
    *("xc", "west_east", "ni", "i", "nlon", "lons"),
)
LEVEL_NAMES = (
    *("level", "lev", "plev", "pressure", "pressure_level", "isobaricInhPa", "isobaric"),
    *("height", "altitude", "depth", "z", "model_level", "hybrid"),
)
LEVEL_STANDARD_NAMES = ("air_pressure", "height", "altitude", "depth", "model_level_number")
PRESSURE_UNITS = ("Pa", "hPa", "mbar", "millibar", "millibars")
NORTH = ("degrees_north", "degree_north", "degrees_N", "degree_N", "degreesN", "degreeN")
EAST = ("degrees_east", "degree_east", "degrees_E", "degree_E", "degreesE", "degreeE")
BOUNDARIES = ("periodic", "reflect", "zero", "pole")

Coordinates = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]


def find_time_dim(dataset: xr.Dataset, path: str, asked: str | None) -> str:
    """The dimension of time.

    Raises:
        DataError: If it cannot be recognised, or the one asked for is not there.
    """
    if asked is not None:
        return existing(dataset, path, asked, "time_dim")
    known = {name: _attributes(dataset, name) for name in map(str, dataset.sizes)}
    for name, attrs in known.items():
        if attrs.get("standard_name") == "time" or attrs.get("axis") == "T":
            return name
    for name, attrs in known.items():
        if name in dataset.coords and dataset[name].dtype.kind == "M":
            return name
        if " since " in str(attrs.get("units")):  # not decoded
            return name
        if name in dataset.coords and hasattr(_first(dataset[name]), "calendar"):
            return name
    return _first_known(dataset, path, TIME_NAMES, "time", "time_dim")


def find_spatial_dims(
    dataset: xr.Dataset, path: str, asked: Sequence[str] | None
) -> tuple[str, str]:
    """The dimensions of rows and columns.

    Raises:
        DataError: If they cannot be recognised, or those asked for are not there.
    """
    if asked is not None:
        if len(asked) != 2:
            raise DataError(f"spatial_dims is {list(asked)}; give two names, rows first.")
        rows, columns = (existing(dataset, path, name, "spatial_dims") for name in asked)
        return rows, columns
    found = []
    curvilinear = _curvilinear_dims(dataset)
    sides = (("Y", ROW_NAMES, NORTH, "row"), ("X", COLUMN_NAMES, EAST, "column"))
    for side, (axis, known, units, words) in enumerate(sides):
        for name in map(str, dataset.sizes):
            attrs = _attributes(dataset, name)
            by_name = attrs.get("standard_name") in known
            if by_name or attrs.get("axis") == axis or attrs.get("units") in units:
                found.append(name)
                break
        else:
            if curvilinear:
                found.append(curvilinear[side])
            else:
                found.append(_first_known(dataset, path, known, words, "spatial_dims"))
    return found[0], found[1]


def find_other_dims(
    dataset: xr.Dataset,
    path: str,
    names: Sequence[str],
    asked: str | None,
    frame_dims: tuple[str, str, str],
) -> tuple[str | None, dict[str, str | None]]:
    """The dimension of trajectories, and for each variable that of levels, if there is one.

    Dimensions of size 1 that are neither are of no consequence.

    Args:
        dataset: The cube.
        path: Where it is.
        names: The variables.
        asked: The dimension of trajectories that was asked for.
        frame_dims: Time, rows and columns.

    Raises:
        DataError: If a variable does not hold numbers, or has other dimensions.
    """
    if asked is not None:
        existing(dataset, path, asked, "trajectory_dim")
    rest = [str(d) for name in names for d in dataset[name].dims if d not in frame_dims]
    trajectory = asked or next((d for d in rest if _is_trajectory(dataset, d)), None)
    wanted = {*frame_dims, *([trajectory] if trajectory else [])}
    levels: dict[str, str | None] = {}
    for name in names:
        array = dataset[name]
        if array.dtype.kind not in "fiu":
            raise DataError(
                f"Variable '{name}' of {path} holds {array.dtype}, not numbers; convert it, or "
                "leave it out of variables."
            )
        others = [str(d) for d in array.dims if d not in wanted and array.sizes[d] > 1]
        vertical = [d for d in others if is_level(dataset, d)]
        if not wanted <= set(array.dims) or len(others) > len(vertical) or len(vertical) > 1:
            raise DataError(
                f"Variable '{name}' of {path} has dimensions {listed(array.dims)} where "
                f"{listed(sorted(wanted))} are needed; choose other variables, or name the "
                "dimensions with time_dim, trajectory_dim and spatial_dims."
            )
        levels[name] = vertical[0] if vertical else None
    return trajectory, levels


def read_spatial_coords(dataset: xr.Dataset, path: str, dims: tuple[str, str]) -> Coordinates:
    """Numeric coordinates over the dimensions in space, such as latitudes.

    Raises:
        DataError: If the coordinate of a dimension does not rise or fall throughout, or a latitude
            is none.
    """
    coords: Coordinates = {}
    for name, coord in dataset.coords.items():
        on_grid = coord.dims and set(coord.dims) <= set(dims)
        if on_grid and coord.dtype.kind in "fiu":
            attrs = {str(key): value for key, value in coord.attrs.items()}
            values = coord.values.astype(np.float64)
            coords[str(name)] = (tuple(map(str, coord.dims)), values, attrs)
    for dim in dims:
        if dim in coords:
            _require_axis(path, dim, *coords[dim][1:])
    return coords


def find_boundary(coords: Coordinates, dims: tuple[str, str]) -> tuple[str, str]:
    """What the coordinates say lies beyond the edge of rows and of columns.

    Longitudes around the globe are periodic, and latitudes from pole to pole go on beyond the pole
    on the meridian opposite.
    """
    rows, columns = (_edge(coords, dim) for dim in dims)
    if rows == "reflect" and columns == "periodic" and dims[0] in coords:
        _, values, attrs = coords[dims[0]]
        if "boundary" not in attrs and is_latitude(dims[0], attrs) and len(values) > 1:
            step = float(np.abs(np.diff(values)).mean())
            reached = min(-values.min(), values.max()) + step / 2
            if reached >= 90 - min(0.3 * step, 1.5):  # Gaussian latitudes end a little short
                rows = "pole"
    return rows, columns


def is_longitude(name: str, attrs: dict[str, Any]) -> bool:
    """Whether a coordinate is a longitude, by its attributes or its name."""
    if "standard_name" in attrs:
        return bool(attrs["standard_name"] == "longitude")
    return str(attrs.get("units")) in EAST or name in ("lon", "longitude")


def is_latitude(name: str, attrs: dict[str, Any]) -> bool:
    """Whether a coordinate is a latitude, by its attributes or its name.

    That of a rotated pole counts: the area of its cells goes with its cosine as well.
    """
    if "standard_name" in attrs:
        return attrs["standard_name"] in ("latitude", "grid_latitude")
    return str(attrs.get("units")) in NORTH or name in ("lat", "latitude", "rlat")


def is_level(dataset: xr.Dataset, dim: str) -> bool:
    """Whether a dimension is a vertical one."""
    attrs = _attributes(dataset, dim)
    return (
        attrs.get("axis") == "Z"
        or "positive" in attrs
        or attrs.get("standard_name") in LEVEL_STANDARD_NAMES
        or attrs.get("units") in PRESSURE_UNITS
        or dim in LEVEL_NAMES
    )


def existing(dataset: xr.Dataset, path: str, name: str, argument: str) -> str:
    """The name of a dimension, once it is known to exist.

    Raises:
        DataError: If it does not.
    """
    if name not in dataset.sizes:
        raise DataError(
            f"{path} has no dimension '{name}' ({argument})"
            f"{nearest(name, list(dataset.sizes))}; it has {listed(dataset.sizes)}."
        )
    return name


def nearest(name: str, known: Sequence[Any]) -> str:
    """A question after the nearest name that is known, or nothing."""
    match = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def listed(names: Any) -> str:
    """Names, separated by commas."""
    return ", ".join(str(name) for name in names) or "none"


def _attributes(dataset: xr.Dataset, dim: str) -> dict[str, Any]:
    return dict(dataset[dim].attrs) if dim in dataset.coords else {}


def _first(array: xr.DataArray) -> Any:
    return array.values.flat[0] if array.dtype.kind == "O" and array.size else None


def _is_trajectory(dataset: xr.Dataset, dim: str) -> bool:
    standard_name = _attributes(dataset, dim).get("standard_name")
    return dim in TRAJECTORY_NAMES or standard_name == "realization"


def _curvilinear_dims(dataset: xr.Dataset) -> tuple[str, str] | None:
    """The dimensions of latitudes that are given for each cell."""
    for name, coord in dataset.coords.items():
        if coord.ndim == 2 and is_latitude(str(name), dict(coord.attrs)):
            rows, columns = map(str, coord.dims)
            return rows, columns
    return None


def _first_known(
    dataset: xr.Dataset, path: str, known: Sequence[str], what: str, argument: str
) -> str:
    for name in known:
        if name in dataset.sizes:
            return name
    raise DataError(
        f"{path} has no {what} dimension that can be recognised among {listed(dataset.sizes)}; "
        f"name it with {argument}."
    )


def _require_axis(path: str, name: str, values: np.ndarray, attrs: dict[str, Any]) -> None:
    if not np.isfinite(values).all():
        raise DataError(
            f"Coordinate '{name}' of {path} has a missing value at index "
            f"{int(np.argmax(~np.isfinite(values)))}; repair the cube."
        )
    if is_latitude(name, attrs):
        if "radian" in str(attrs.get("units", "")):
            raise DataError(
                f"Coordinate '{name}' of {path} is in radians; convert it to degrees_north."
            )
        if np.abs(values).max() > 90.01:
            raise DataError(
                f"Coordinate '{name}' of {path} goes from {values.min():g} to {values.max():g}, "
                "which are no latitudes in degrees; correct its values, units or standard_name."
            )
    steps = np.diff(_unwrapped(name, values, attrs))
    wrong = np.sign(steps) != np.sign(steps[0]) if len(steps) else np.zeros(0, dtype=bool)
    if len(steps) and (wrong.any() or steps[0] == 0):
        i = int(np.argmax(wrong | (steps == 0)))
        raise DataError(
            f"Coordinate '{name}' of {path} neither rises nor falls throughout: {values[i]:g} at "
            f"index {i} is followed by {values[i + 1]:g}; sort the cube by '{name}'."
        )


def _unwrapped(name: str, values: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """Longitudes that go on rising where they cross the end of their range."""
    return np.unwrap(values, period=360) if is_longitude(name, attrs) else values


def _edge(coords: Coordinates, dim: str) -> str:
    if dim not in coords:
        return "reflect"
    _, values, attrs = coords[dim]
    if "boundary" in attrs:
        return str(attrs["boundary"])
    if is_longitude(dim, attrs) and values.size > 1:
        steps = np.diff(_unwrapped(dim, values, attrs))
        around = abs(float(steps.mean())) * values.size
        even = np.ptp(steps) < 0.01 * abs(steps.mean())
        if even and abs(around - 360) < 0.01 * 360 / values.size:
            return "periodic"
    return "reflect"
