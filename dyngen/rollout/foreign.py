"""Rollouts that others wrote, with this library's names of dimensions, and ours with theirs.

Dimensions are known by CF attributes first (`realization`, `forecast_period`,
`forecast_reference_time`, axes Y and X), then by the names that the field's tools use: WeatherBench
(`time`, `prediction_timedelta`, `number`), cfgrib (`time`, `step`, `number`) and climpred (`init`,
`lead`, `member`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

STANDARD = {
    "realization": "member",
    "forecast_period": "lead",
    "forecast_reference_time": "initial",
    "latitude": "y",
    "longitude": "x",
    "projection_y_coordinate": "y",
    "projection_x_coordinate": "x",
}
USUAL = {
    "member": ("number", "realization", "ensemble", "ens", "sample"),
    "lead": ("prediction_timedelta", "step", "lead_time", "leadtime", "forecast_period"),
    "initial": ("initial_time", "init", "init_time", "forecast_reference_time", "start_time"),
    "y": ("latitude", "lat", "row", "height"),
    "x": ("longitude", "lon", "column", "col", "width"),
}


class NotARollout(ValueError):
    """A dataset that cannot be understood as a rollout, in one sentence."""


def as_rollout(dataset: xr.Dataset, variables: Sequence[str], space: tuple[str, str]) -> xr.Dataset:
    """A dataset as forecasts (initial, member, lead, y, x) or free runs (member, time, y, x).

    Args:
        dataset: Of any origin.
        variables: Names of its variables that matter.
        space: What to call the spatial dimensions, rows first.

    Raises:
        NotARollout: Where a dimension is missing, or one is left over.
    """
    first = dataset[variables[0]]
    names: dict[str, str] = {}
    for dim in map(str, first.dims):
        known = _meaning(dataset, dim, space)
        if known is not None and known not in names.values():
            names[dim] = known
    if "lead" in names.values() and "initial" not in names.values() and "time" in names:
        names["time"] = "initial"  # WeatherBench and cfgrib: the time of the initial state
    chosen = dataset[list(variables)]
    for dim, name in names.items():
        if dim != name:
            chosen = _renamed(chosen, dim, name)
    if "initial" in chosen.dims and "initial_time" not in chosen.coords:
        if "initial" not in chosen.coords:
            raise NotARollout("its forecasts have no times of their initial states; add them.")
        chosen = chosen.assign_coords(initial_time=("initial", chosen["initial"].values))
    if "initial" in chosen.coords:
        chosen = chosen.drop_vars("initial")
    if "member" not in chosen.dims:
        chosen = chosen.expand_dims("member")
    forecast = {"initial", "member", "lead", *space}
    if "lead" in chosen.dims and "initial" not in chosen.dims:
        if "initial_time" not in chosen.coords:
            raise NotARollout("its forecasts have no time of their initial state; add it.")
        start = chosen["initial_time"].values
        extra = {"initial_time": ("initial", np.atleast_1d(start))}
        if "initial_trajectory" in chosen.coords:
            numbers = np.atleast_1d(chosen["initial_trajectory"].values)
            extra["initial_trajectory"] = ("initial", numbers)
        chosen = chosen.drop_vars(list(extra)).expand_dims("initial").assign_coords(extra)
    free = {"member", "time", *space}
    for name in variables:
        dims = set(map(str, chosen[name].dims))
        if dims not in (forecast, free):
            raise NotARollout(
                f"variable {name!r} has dimensions {tuple(map(str, first.dims))}, which are not "
                "those of forecasts (initial time, member, lead, y, x) nor of a free run (member, "
                "time, y, x); select along what is left over, or name dimensions by CF attributes."
            )
    order = ["initial", "member", "lead"] if "lead" in chosen.dims else ["member", "time"]
    return chosen.transpose(*order, *space, ...)


def _meaning(dataset: xr.Dataset, dim: str, space: tuple[str, str]) -> str | None:
    """What this library calls a dimension."""
    places = {"y": space[0], "x": space[1]}
    if dim in (*space, "member", "lead", "initial", "time"):
        return dim
    attributes = dataset[dim].attrs if dim in dataset.coords else {}
    known = STANDARD.get(str(attributes.get("standard_name")))
    known = known or {"Y": "y", "X": "x"}.get(str(attributes.get("axis")))
    if known is None:
        known = next((name for name, usual in USUAL.items() if dim.lower() in usual), None)
    return None if known is None else places.get(known, known)


def _renamed(dataset: xr.Dataset, dim: str, name: str) -> xr.Dataset:
    """With a dimension and its coordinate renamed, unless the name is another coordinate's."""
    if name in dataset.coords and name not in dataset.dims:
        dataset = dataset.drop_vars(name)
    return dataset.rename({dim: name})


def as_weatherbench(dataset: xr.Dataset, names: Mapping[str, str] | None = None) -> xr.Dataset:
    """A rollout as WeatherBench 2 lays out forecasts, or a cube as it lays out what came true.

    Forecasts get dimensions (time, number, prediction_timedelta, [level,] latitude, longitude),
    where `time` is that of the initial state and `prediction_timedelta` the time since: the
    init-time convention of its documentation, evaluated with `--by_init=True
    --ensemble_dim=number`. A run from one initial state is one forecast. Latitudes rise, and
    longitudes rise from 0. Variables that its data guide has get its names and units, channels on
    pressure levels (`ta_850`) become one variable with a dimension `level` in hPa, and variables
    without space, such as a sampler's figures, are left out. Nothing is computed but what units
    ask for.

    Args:
        dataset: A rollout, as `open_rollout` gives it, or a cube (time, y, x).
        names: Names of variables, by those they have: for those not known, or known wrongly.

    Raises:
        NotARollout: Where the grid is no latitudes and longitudes, times are no dates, or units are
            not understood.
    """
    space = _globe(dataset)
    chosen = dataset[[name for name, values in dataset.items() if set(space) <= set(values.dims)]]
    if not chosen:
        raise NotARollout("none of its variables has latitudes and longitudes.")
    chosen = _in_its_times(chosen).rename(dict(zip(space, ("latitude", "longitude"), strict=True)))
    chosen = chosen.assign_coords(longitude=chosen["longitude"] % 360)
    for axis in ("latitude", "longitude"):  # a view where it is in order already
        if (np.diff(chosen[axis].values) < 0).any():
            chosen = chosen.sortby(axis)
    spans = chosen["prediction_timedelta" if "prediction_timedelta" in chosen else "time"].values
    every = json.loads(dataset.attrs.get("dyngen_layout", "{}")).get("every", 1)
    hours = _hours(spans[0] if spans.dtype.kind == "m" else spans[1] - spans[0]) / every
    single: dict[str, xr.DataArray] = {}
    levels: dict[str, list[xr.DataArray]] = {}
    for name, values in chosen.items():
        level = values.attrs.get("level")
        stem = str(name) if level is None else str(name).rpartition("_")[0]
        known, unit = _published(stem, values, level is not None, hours, names or {})
        values = _in_unit(str(name), values, unit, hours)
        if level is None:
            single[known] = values
        else:
            pascal = values.attrs.pop("level_units", "hPa") == "Pa"
            del values.attrs["level"]
            place = round(float(level) / (100 if pascal else 1))
            levels.setdefault(known, []).append(values.expand_dims(level=[place]))
    for known, parts in levels.items():
        single[known] = xr.concat(parts, "level", combine_attrs="override").sortby("level")
    result = xr.merge([values.rename(name) for name, values in single.items()], join="outer")
    if "level" in result:
        result["level"].attrs = {
            "units": "hPa",
            "standard_name": "air_pressure",
            "positive": "down",
        }
    order = ("time", "number", "prediction_timedelta", "level", "latitude", "longitude")
    return result.transpose(*order, missing_dims="ignore").assign_attrs(dataset.attrs)


# Names of variables in CMIP and at ECMWF -> name and unit in the data guide of WeatherBench 2.
AT_THE_SURFACE = {
    ("tas", "t2m", "2t"): ("2m_temperature", "K"),
    ("uas", "u10", "10u"): ("10m_u_component_of_wind", "m s**-1"),
    ("vas", "v10", "10v"): ("10m_v_component_of_wind", "m s**-1"),
    ("sfcWind", "10si"): ("10m_wind_speed", "m s**-1"),
    ("psl", "msl", "air_pressure_at_mean_sea_level"): ("mean_sea_level_pressure", "Pa"),
    ("ps", "sp", "surface_air_pressure"): ("surface_pressure", "Pa"),
    ("tos", "sst", "sea_surface_temperature"): ("sea_surface_temperature", "K"),
    ("prw", "tcwv"): ("total_column_water_vapour", "kg m**-2"),
    ("pr", "tp", "precipitation_flux", "lwe_precipitation_rate"): ("total_precipitation", "m"),
}
ON_LEVELS = {
    ("ta", "t", "air_temperature"): ("temperature", "K"),
    ("ua", "u", "eastward_wind"): ("u_component_of_wind", "m s**-1"),
    ("va", "v", "northward_wind"): ("v_component_of_wind", "m s**-1"),
    ("hus", "q", "specific_humidity"): ("specific_humidity", "kg kg**-1"),
    ("wap", "w", "lagrangian_tendency_of_air_pressure"): ("vertical_velocity", "Pa s**-1"),
    ("z", "geopotential"): ("geopotential", "m**2 s**-2"),
}


# From and to -> factor and shift; rates to sums of one hour.
CONVERSIONS = {
    ("degC", "K"): (1.0, 273.15),
    ("hPa", "Pa"): (100.0, 0.0),
    ("mbar", "Pa"): (100.0, 0.0),
    ("1", "kg kg-1"): (1.0, 0.0),
    ("g kg-1", "kg kg-1"): (1e-3, 0.0),
    ("mm", "m"): (1e-3, 0.0),
    ("kg m-2", "m"): (1e-3, 0.0),
    ("mm h-1", "m"): (1e-3, 0.0),
    ("mm day-1", "m"): (1e-3 / 24, 0.0),
    ("kg m-2 day-1", "m"): (1e-3 / 24, 0.0),
    ("mm s-1", "m"): (3.6, 0.0),
    ("kg m-2 s-1", "m"): (3.6, 0.0),
    ("m s-1", "m"): (3600.0, 0.0),
}
SPELLINGS = {"d-1": "day-1", "hr-1": "h-1", "hour-1": "h-1"}
SPELLINGS |= {"degrees_Celsius": "degC", "degree_Celsius": "degC", "Celsius": "degC"}


def _published(
    stem: str, values: xr.DataArray, on_levels: bool, hours: float, names: Mapping[str, str]
) -> tuple[str, str | None]:
    """Name and unit of a variable in the data guide; its own and None where it has none."""
    table = ON_LEVELS if on_levels else AT_THE_SURFACE
    aliases = {alias: entry for several, entry in table.items() for alias in several}
    by_name = {entry[0]: entry for entry in table.values()}
    name, unit = aliases.get(stem, (stem, None))
    if unit is None:
        name, unit = aliases.get(str(values.attrs.get("standard_name")), (stem, None))
    if stem in names:
        name = names[stem]
        unit = by_name.get(name, (name, None))[1]
        unit = "m" if name.startswith("total_precipitation") else unit
    elif name == "total_precipitation":  # since the frame before: the guide names the hours
        name = f"{name}_{hours:g}hr"
    return name, unit


def _in_unit(name: str, values: xr.DataArray, unit: str | None, hours: float) -> xr.DataArray:
    """In the unit that is published; sums of rain are those of the hours between two frames."""
    if unit is None:
        return values.copy(deep=False)
    own, wanted = _spelt(str(values.attrs.get("units", ""))), _spelt(unit)
    factor, shift = CONVERSIONS.get((own, wanted), (1.0 if own == wanted else None, 0.0))
    if factor is None:
        raise NotARollout(
            f"variable {name!r} has units {own!r}, which are not understood as {unit!r}: convert "
            "it, or give it a name that WeatherBench does not know."
        )
    if wanted == "m" and own.endswith("-1"):
        factor *= hours
    attributes = values.attrs | {"units": unit}
    if unit == "m":
        attributes["standard_name"] = "lwe_thickness_of_precipitation_amount"
        attributes.pop("cell_methods", None)
    if (factor, shift) != (1.0, 0.0):
        values = values * np.float32(factor) + np.float32(shift)
    return values.assign_attrs(attributes)


def _spelt(unit: str) -> str:
    """A unit as UDUNITS spells it with spaces: `mm/day` and `mm d**-1` are `mm day-1`."""
    above, *below = unit.replace("**", "").replace("^", "").replace(" per ", "/").split("/")
    parts = above.split()
    for part in " ".join(below).split():
        name = part.rstrip("0123456789")
        parts.append(f"{name}-{part[len(name) :] or 1}")
    return " ".join(SPELLINGS.get(part, part) for part in parts)


def _globe(dataset: xr.Dataset) -> tuple[str, str]:
    """Names of the dimensions that are latitudes and longitudes."""
    found = {}
    for axis, direction in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
        for dim in map(str, dataset.dims):
            attributes = dataset[dim].attrs if dim in dataset.coords else {}
            known = dim in (axis, axis[:3]) or attributes.get("units") == direction
            if dim in dataset.coords and (known or attributes.get("standard_name") == axis):
                found[axis] = dim
    if len(found) < 2:
        raise NotARollout(
            "its grid is no latitudes and longitudes, which WeatherBench evaluates alone: put it "
            "on such a grid, or name its coordinates by CF attributes."
        )
    return found["latitude"], found["longitude"]


def _in_its_times(rollout: xr.Dataset) -> xr.Dataset:
    """With WeatherBench's names of times and members, and no other coordinates of time."""
    start = "initial_time" if "initial_time" in rollout.coords else "time"
    if rollout[start].dtype.kind not in "MO":
        raise NotARollout("its times are numbers without a calendar; WeatherBench has dates.")
    rollout = rollout.drop_vars("initial_trajectory", errors="ignore")
    if start == "time":
        return rollout  # a cube
    if "initial" in rollout.dims:
        rollout = rollout.drop_vars("time").swap_dims(initial="initial_time")
    else:
        rollout = rollout.swap_dims(time="lead").drop_vars("time").expand_dims("initial_time")
    names = {"initial_time": "time", "lead": "prediction_timedelta", "member": "number"}
    return rollout.rename({old: new for old, new in names.items() if old in rollout.dims})


def _hours(span: Any) -> float:
    return float(np.timedelta64(span) / np.timedelta64(1, "s")) / 3600
