"""Rollouts of other tools are understood by their own names."""

import numpy as np
import pytest
import xarray as xr

from dyngen.rollout.foreign import NotARollout, as_rollout

VALUES = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)
STARTS = np.array(["2000-01-01", "2000-01-05"], dtype="datetime64[ns]")
LEADS = np.arange(1, 5) * np.timedelta64(1, "D")
SPACE = ("latitude", "longitude")


def weatherbench() -> xr.Dataset:
    """Dimensions (time, prediction_timedelta, number, longitude, latitude), as published."""
    data = VALUES.transpose(0, 2, 1, 4, 3)
    return xr.Dataset(
        {"t": (("time", "prediction_timedelta", "number", "longitude", "latitude"), data)},
        {"time": STARTS, "prediction_timedelta": LEADS, "latitude": np.arange(5.0)},
    )


def cfgrib() -> xr.Dataset:
    """Dimensions (number, time, step, latitude, longitude) and a coordinate valid_time."""
    return xr.Dataset(
        {"t": (("number", "time", "step", "latitude", "longitude"), VALUES.swapaxes(0, 1))},
        {"time": STARTS, "step": LEADS, "valid_time": (("time", "step"), STARTS[:, None] + LEADS)},
    )


def climpred() -> xr.Dataset:
    """Dimensions (init, lead, member, lat, lon) with CF names of axes."""
    return xr.Dataset(
        {"t": (("init", "lead", "member", "lat", "lon"), VALUES.swapaxes(1, 2))},
        {
            "init": STARTS,
            "lead": ("lead", np.arange(1, 5), {"units": "days"}),
            "lat": ("lat", np.arange(5.0), {"standard_name": "latitude"}),
        },
    )


@pytest.mark.parametrize("make", [weatherbench, cfgrib, climpred])
def test_forecasts_of_other_tools(make: object) -> None:
    rollout = as_rollout(make(), ["t"], SPACE)  # type: ignore[operator]
    assert rollout["t"].dims == ("initial", "member", "lead", *SPACE)
    np.testing.assert_array_equal(rollout["t"].values, VALUES)
    np.testing.assert_array_equal(rollout["initial_time"].values, STARTS)
    assert rollout.sizes["lead"] == len(rollout["lead"]) == 4


def test_one_start_without_members_is_a_forecast_of_one() -> None:
    one = weatherbench().isel(time=0, number=0)
    rollout = as_rollout(one.rename(time="initial_time"), ["t"], SPACE)
    assert rollout["t"].dims == ("initial", "member", "lead", *SPACE)
    np.testing.assert_array_equal(rollout["t"].values, VALUES[:1, :1])


def test_a_film_is_a_free_run() -> None:
    film = xr.Dataset({"t": (("time", "row", "col"), VALUES[0, 0])}, {"time": STARTS[0] + LEADS})
    rollout = as_rollout(film, ["t"], ("y", "x"))
    assert rollout["t"].dims == ("member", "time", "y", "x")


def test_what_is_left_over_is_named() -> None:
    odd = weatherbench().expand_dims(level=[500, 850])
    with pytest.raises(NotARollout, match=r"'t' has dimensions .*'level'.* left over"):
        as_rollout(odd, ["t"], SPACE)
    with pytest.raises(NotARollout, match="no time of their initial state"):
        as_rollout(weatherbench().isel(time=0, drop=True), ["t"], SPACE)
