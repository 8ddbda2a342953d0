"""`dyngen to-weatherbench`: a rollout, or a cube, in the layout that WeatherBench 2 evaluates."""

from __future__ import annotations

import logging
from pathlib import Path

import xarray as xr

from data_modules.sources import find_source
from dyngen.rollout import RolloutError, open_rollout
from dyngen.rollout.foreign import NotARollout, as_weatherbench

log = logging.getLogger(__name__)

SINCE = "hours since 1900-01-01"
SMALL = 32  # times in a chunk; space is whole, as its documentation recommends


def to_weatherbench(rollout: str, out: Path, names: dict[str, str] | None = None) -> None:
    """Write a rollout, or the cube of what came true, as a Zarr that WeatherBench 2 evaluates.

    Dimensions are (time, number, prediction_timedelta, level, latitude, longitude), `time` is that
    of the initial state; variables known from CMIP or ECMWF get the names and units of the data
    guide. Give `evaluate.py` of WeatherBench `--by_init=True --ensemble_dim=number`.

    Args:
        rollout: A Zarr that `dyngen rollout` wrote, or a cube.
        out: Zarr to write, of format 2 as those of WeatherBench; there must be nothing yet.
        names: Names in WeatherBench of variables by those they have here, where these are not
            known, such as `{"ta": "2m_temperature"}`.

    Raises:
        ValueError: If it cannot be put into that layout, or there is something at `out`.
    """
    if out.exists():
        raise ValueError(f"there is something at {out} already: give another path for the Zarr.")
    try:
        data = open_rollout(rollout)
    except RolloutError:
        data = find_source(rollout).open()
    try:
        forecast = as_weatherbench(data, names)
    except NotARollout as problem:
        raise ValueError(f"{rollout} cannot be written for WeatherBench: {problem}") from problem
    small = {"time": 1, "number": 1, "prediction_timedelta": SMALL}
    if "prediction_timedelta" not in forecast.dims:  # what came true
        small = {"time": SMALL}
    sizes = {str(dim): size for dim, size in forecast.sizes.items()}
    forecast = forecast.chunk({dim: min(small.get(dim, size), size) for dim, size in sizes.items()})
    _write(forecast, out)
    shown = ", ".join(f"{dim} {size}" for dim, size in sizes.items())
    log.info("%s: %s (%s)", out, ", ".join(map(str, forecast)), shown)


def _write(forecast: xr.Dataset, out: Path) -> None:
    for name in forecast.variables:
        forecast[name].encoding = {}  # that of the Zarr that it was read from
    calendar = getattr(forecast["time"].values[0], "calendar", "proleptic_gregorian")
    encoding = {"time": {"units": SINCE, "calendar": calendar, "dtype": "int64"}}
    if "prediction_timedelta" in forecast.coords:
        encoding["prediction_timedelta"] = {"units": "hours", "dtype": "int64"}
    forecast.to_zarr(out, mode="w-", zarr_format=2, consolidated=True, encoding=encoding)
