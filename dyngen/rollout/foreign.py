"""Rollouts that others wrote, with this library's names of dimensions.

Dimensions are known by CF attributes first (`realization`, `forecast_period`,
`forecast_reference_time`, axes Y and X), then by the names that the field's tools use: WeatherBench
(`time`, `prediction_timedelta`, `number`), cfgrib (`time`, `step`, `number`) and climpred (`init`,
`lead`, `member`).
"""

from __future__ import annotations

from collections.abc import Sequence

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
