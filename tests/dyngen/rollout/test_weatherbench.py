"""Forecasts in WeatherBench's layout, held against what its documentation says of it.

The init-time convention: `time` is that of the initial state, and the valid time is the sum of
`time` and `prediction_timedelta`, which its evaluation looks up in the truth's own `time`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_world
import xarray as xr
import zarr

from dyngen.rollout import open_rollout
from dyngen.rollout.field import Field
from dyngen.rollout.foreign import NotARollout, as_rollout, as_weatherbench
from dyngen.weatherbench import to_weatherbench

SPACE = ("latitude", "longitude")
FORECAST = ("time", "number", "prediction_timedelta", *SPACE)


@pytest.fixture(scope="module")
def forecasts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecasts") / "rollout.zarr"
    toy_world.write(path, steps=4)
    return path


def scored(forecast: xr.Dataset, truth: xr.Dataset, name: str) -> xr.DataArray:
    """Error of the ensemble mean by lead, the way its evaluation pairs forecasts with truth."""
    assert "valid_time" not in forecast.coords
    renamed = forecast.rename(time="init_time", prediction_timedelta="lead_time")
    valid = renamed["init_time"] + renamed["lead_time"]
    error = renamed[name].mean("number") - truth[name].sel(time=valid)
    return np.sqrt((error**2).mean(("init_time", *SPACE)))


def test_an_evaluation_of_that_layout_scores_a_rollout(forecasts: Path, tmp_path: Path) -> None:
    out = tmp_path / "weatherbench.zarr"
    to_weatherbench(str(forecasts), out, {"pr": "total_precipitation_24hr"})
    assert zarr.open_group(out, mode="r").metadata.zarr_format == 2
    forecast = xr.open_zarr(out, decode_timedelta=True)
    assert set(forecast.data_vars) == {"2m_temperature", "total_precipitation_24hr"}
    assert set(forecast.coords) == set(FORECAST)
    ours = open_rollout(forecasts)
    days = np.arange("2001-01-01", "2001-04-01", dtype="datetime64[D]").astype("datetime64[ns]")
    values = np.random.default_rng(0).normal(280, 3, (len(days), 4, 5))
    truth = xr.Dataset(
        {"2m_temperature": (("time", *SPACE), values)},
        {"time": days, "latitude": ours.latitude.values, "longitude": ours.longitude.values},
    )
    expected = [
        np.sqrt(np.mean((ours.t2m[:, :, lead].mean("member").values - at) ** 2))
        for lead in range(4)
        for at in [np.stack([values[30 * i + lead + 1] for i in range(3)])]
    ]
    np.testing.assert_allclose(scored(forecast, truth, "2m_temperature"), expected, rtol=1e-5)


def test_names_dimensions_and_units_are_those_of_the_data_guide(forecasts: Path) -> None:
    forecast = as_weatherbench(open_rollout(forecasts))
    for values in forecast.values():
        assert values.dims == FORECAST
        assert values.dtype == np.float32
    assert forecast["2m_temperature"].attrs["units"] == "K"
    assert forecast["total_precipitation_24hr"].attrs["units"] == "m"
    np.testing.assert_allclose(
        forecast["total_precipitation_24hr"].values,
        open_rollout(forecasts).pr.values / 1000,  # mm/day of daily frames
        rtol=1e-6,
    )
    assert forecast["time"].dtype.kind == "M"
    assert forecast["prediction_timedelta"].dtype.kind == "m"
    np.testing.assert_array_equal(forecast["number"], np.arange(5))


def test_what_was_written_for_weatherbench_is_read_again(forecasts: Path, tmp_path: Path) -> None:
    to_weatherbench(str(forecasts), tmp_path / "out.zarr")
    ours = open_rollout(forecasts)
    again = as_rollout(
        xr.open_zarr(tmp_path / "out.zarr", decode_timedelta=True), ["2m_temperature"], SPACE
    )
    assert again["2m_temperature"].dims == ours.t2m.dims
    np.testing.assert_array_equal(again["2m_temperature"].values, ours.t2m.values)
    for name in ("initial_time", "lead", "member"):
        np.testing.assert_array_equal(again[name].values, ours[name].values)


def test_a_run_from_one_initial_state_is_one_forecast(tmp_path: Path) -> None:
    toy_world.write(tmp_path / "free.zarr", initials=1, steps=6, every=2, block_steps=4)
    forecast = as_weatherbench(open_rollout(tmp_path / "free.zarr"))
    assert dict(forecast.sizes) == {
        "time": 1, "number": 5, "prediction_timedelta": 3, "latitude": 4, "longitude": 5,
    }  # fmt: skip
    assert forecast["time"].values[0] == np.datetime64("2001-01-01")
    np.testing.assert_array_equal(
        forecast["prediction_timedelta"], np.array([2, 4, 6]) * np.timedelta64(1, "D")
    )
    assert "total_precipitation_24hr" in forecast  # days of rain, every second one


def cube(**changes: Any) -> xr.Dataset:
    """Two levels of wind and one of temperature over a grid the other way round."""
    dims = ("time", "lat", "lon")
    shape = (3, 4, 6)
    generator = np.random.default_rng(1)

    def field(**attributes: Any) -> Any:
        return dims, generator.normal(size=shape).astype(np.float32), attributes

    return xr.Dataset(
        {
            "ua_50000": field(units="m/s", level=50000.0, level_units="Pa"),
            "ua_85000": field(units="m/s", level=85000.0, level_units="Pa"),
            "ta_85000": field(units="degC", level=85000.0, level_units="Pa"),
            "ps": field(units="hPa"),
            "hus": field(units="1"),
        },
        {
            "time": np.arange(3) * np.timedelta64(6, "h") + np.datetime64("2000-01-01", "ns"),
            "lat": ("lat", [60.0, 20.0, -20.0, -60.0], {"units": "degrees_north"}),
            "lon": ("lon", np.arange(-180.0, 180.0, 60.0), {"units": "degrees_east"}),
        },
    ).assign(changes)


def test_levels_become_a_dimension_and_the_grid_is_put_in_order() -> None:
    given = cube()
    truth = as_weatherbench(given)
    assert truth["u_component_of_wind"].dims == ("time", "level", *SPACE)
    np.testing.assert_array_equal(truth["level"], [500, 850])
    assert truth["level"].attrs["units"] == "hPa"
    np.testing.assert_array_equal(truth["latitude"], [-60, -20, 20, 60])
    np.testing.assert_array_equal(truth["longitude"], np.arange(0, 360, 60))
    here = {"latitude": 20.0, "longitude": 240.0}
    there = {"lat": 20.0, "lon": -120.0}
    np.testing.assert_array_equal(
        truth["u_component_of_wind"].sel(level=500, **here), given["ua_50000"].sel(**there)
    )
    np.testing.assert_allclose(
        truth["temperature"].sel(level=850, **here), given["ta_85000"].sel(**there) + 273.15
    )
    assert np.isnan(truth["temperature"].sel(level=500)).all()
    np.testing.assert_allclose(
        truth["surface_pressure"].sel(here), 100 * given["ps"].sel(there), rtol=1e-6
    )
    assert truth["hus"].attrs["units"] == "1"  # not on a level: not a variable of the guide


@pytest.mark.parametrize(
    ("units", "metres"),
    [
        ("mm d-1", 0.25e-3),
        ("mm/day", 0.25e-3),
        ("kg m**-2 s**-1", 21.6),
        ("kg m-2 s-1", 21.6),
        ("m s-1", 21600.0),
        ("mm", 1e-3),
        ("m", 1.0),
    ],
)
def test_precipitation_is_metres_in_the_hours_of_a_frame(units: str, metres: float) -> None:
    rain = (("time", "lat", "lon"), np.ones((3, 4, 6), np.float32), {"units": units})
    truth = as_weatherbench(cube(pr=rain))
    np.testing.assert_allclose(truth["total_precipitation_6hr"], metres, rtol=1e-6)


def test_what_weatherbench_cannot_evaluate_is_told(forecasts: Path, tmp_path: Path) -> None:
    with pytest.raises(NotARollout, match="units 'furlong', which are not understood as 'm'"):
        as_weatherbench(cube(pr=(("time", "lat", "lon"), np.ones((3, 4, 6)), {"units": "furlong"})))
    flat = cube().rename(lat="y", lon="x")
    for axis in ("y", "x"):
        flat[axis].attrs = {"units": "km"}
    with pytest.raises(NotARollout, match="no latitudes and longitudes"):
        as_weatherbench(flat)
    toy = toy_world.field(1)
    numbers = Field(
        toy.variables, toy.dims, toy.shape, np.zeros(1), 0.25, {k: v for k, v in toy.coords.items()}
    )
    toy_world.write(tmp_path / "numbers.zarr", initials=1, field=numbers, steps=4)
    with pytest.raises(ValueError, match=r"numbers\.zarr cannot be written .* without a calendar"):
        to_weatherbench(str(tmp_path / "numbers.zarr"), tmp_path / "out.zarr")
    with pytest.raises(ValueError, match="there is something at"):
        to_weatherbench(str(forecasts), forecasts)
