"""Static fields, and forcing that follows the calendar, in batches and along rollouts."""

import io
import re
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from data_modules.along import Along
from data_modules.calendars import as_numbers, day_fraction, year_fraction
from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.conditioning import context_maps
from data_modules.errors import DataError

FRAMES = 730


def refused(sentence: str) -> Any:
    return pytest.raises(DataError, match=re.escape(sentence))


def cube(path: Path, calendar: str = "noleap", **changes: Any) -> Path:
    times = xr.date_range(
        "2001-01-01", periods=FRAMES, calendar=calendar, use_cftime=calendar != "standard"
    )
    generator = np.random.default_rng(0)
    dataset = xr.Dataset(
        {
            "pr": (("time", "lat", "lon"), generator.random((FRAMES, 4, 6)).astype(np.float32)),
            "land": (("lat", "lon"), generator.integers(0, 2, (4, 6))),
            "co2": ("time", np.linspace(370.0, 380.0, FRAMES)),
        },
        {
            "time": times,
            "lat": ("lat", [60.0, 20.0, -20.0, -60.0], {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0, 360, 60.0), {"units": "degrees_east"}),
        },
    )
    dataset.assign(changes).to_zarr(path, consolidated=False)
    return path


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "all_leap", "julian"])
def test_where_in_the_year(calendar: str) -> None:
    dates = [
        cftime.datetime(year, month, day, hour, calendar=calendar)
        for year, month, day, hour in ((2000, 1, 1, 0), (1999, 7, 1, 12), (2096, 12, 30, 18))
    ]
    numbers = as_numbers(np.array(dates))
    for date, fraction in zip(dates, year_fraction(numbers, calendar), strict=True):
        start = cftime.datetime(date.year, 1, 1, calendar=calendar)
        stop = cftime.datetime(date.year + 1, 1, 1, calendar=calendar)
        assert fraction == pytest.approx((date - start) / (stop - start), abs=1e-9)
    np.testing.assert_allclose(day_fraction(numbers), [0, 0.5, 0.75], atol=1e-9)


def test_dates_of_numpy_count_as_those_of_cftime() -> None:
    times = np.array(["2000-02-29T06", "2001-03-01", "1969-12-31T12"], dtype="datetime64[ns]")
    same = np.array(
        [
            cftime.datetime(2000, 2, 29, 6, calendar="standard"),
            cftime.datetime(2001, 3, 1, calendar="standard"),
            cftime.datetime(1969, 12, 31, 12, calendar="standard"),
        ]
    )
    np.testing.assert_array_equal(as_numbers(times), as_numbers(same))


def test_batches_hold_the_calendar_and_the_grid(tmp_path: Path) -> None:
    data = ClimateCubeDataModule(
        cube(tmp_path / "a.zarr"),
        static=["land", "latitude", "longitude"],
        forcing=["day_of_year", "co2"],
        batch_size=8,
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["static"].shape == (4, 4, 6)
    sine = torch.tensor([60.0, 20, -20, -60]).deg2rad().sin()
    torch.testing.assert_close(batch["static"][1], sine[:, None].expand(4, 6))
    angle = torch.arange(0, 360, 60.0).deg2rad()
    torch.testing.assert_close(batch["static"][2], angle.cos().expand(4, 6))
    assert batch["forcing"].shape == (8, 2, 3)
    days = batch["time"] / 86400 % 365
    angle = (2 * np.pi * days / 365).float()
    expected = 2**0.5 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    torch.testing.assert_close(batch["forcing"][..., :2], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_forcing_goes_on_after_the_cubes_end(tmp_path: Path, calendar: str) -> None:
    data = ClimateCubeDataModule(cube(tmp_path / "a.zarr", calendar), forcing=["day_of_year"])
    index = data.cube.times
    assert data.forcing_at(index[:50].reshape(5, 10)).shape == (5, 10, 2)
    batch = next(iter(data.predict_dataloader()))
    at = np.searchsorted(data.cube.time_numbers, batch["time"].numpy())
    assert torch.equal(data.forcing_at(index[at]), batch["forcing"])
    # A century of daily steps: what the calendar says of each date, not of a year of 365.25 days.
    along = data.along(index[[100, 500]])
    times = along.times([0, 1], range(36_500))
    assert times.shape == (2, 36_500)
    last = cftime.num2date(times[1, -1], "seconds since 1970-01-01", calendar=calendar)
    first = cftime.datetime(last.year, 1, 1, calendar=calendar)
    following = cftime.datetime(last.year + 1, 1, 1, calendar=calendar)
    context = along.context()
    assert context is not None
    angle = 2 * np.pi * ((last - first) / (following - first))
    maps = context([1], 36_499)["context"]
    assert maps.shape == (1, 2, 4, 6)
    assert maps[0, 0, 2, 3].item() == pytest.approx(2**0.5 * np.cos(angle), abs=1e-4)
    assert maps[0, 1, 2, 3].item() == pytest.approx(2**0.5 * np.sin(angle), abs=1e-4)


def test_along_needs_no_more_than_the_checkpoint(tmp_path: Path) -> None:
    data = ClimateCubeDataModule(
        cube(tmp_path / "a.zarr"),
        static=["land"],
        forcing=["day_of_year", "co2"],
        seasonal=1,
        frame_stride=2,
    )
    file = io.BytesIO()
    torch.save(data.description(), file)
    file.seek(0)
    along = Along(torch.load(file, weights_only=True), data.cube.times[[10, 40]])
    context = along.context(frames=3)
    assert context is not None
    maps = context([1, 1, 0], 4)["context"]
    assert maps.shape == (3, 3, 4, 4, 6)  # rows, frames, channels, H, W
    assert data.description()["conditioning"]["channels"] == 4
    # Step 4 from frame 40 is frame 40 + 5 * 2.
    expected = data.forcing_at(data.cube.times[[50, 52, 54]])
    torch.testing.assert_close(maps[0, :, 1:, 0, 0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(maps[2, 1, 0], batch["static"][0])
    # Frames go back to the units of their own date.
    frames = torch.zeros(2, 5, 3, 1, 4, 6)
    physical = along.at(frames, [0, 1], [0, 1, 2])
    one = data.normalisation.denormalise(torch.zeros(1, 4, 6)[None], data.cube.times[[44]])[0]
    torch.testing.assert_close(physical[1, 3, 1], one)
    with refused("The forcing 'co2' is known from 977616000 to 1040601600 only, but the rollout"):
        context([0], 1000)


def test_maps_of_static_fields_and_forcing() -> None:
    static, forcing = torch.randn(2, 4, 6), torch.randn(3, 5, 1)
    maps = context_maps(static, forcing, (4, 6))
    assert maps is not None
    assert maps.shape == (3, 5, 3, 4, 6)
    assert torch.equal(maps[1, 2, :2], static)
    assert (maps[1, 2, 2] == forcing[1, 2, 0]).all()
    assert torch.equal(context_maps(static, None, (4, 6)), static)  # type: ignore[arg-type]
    assert context_maps(None, None, (4, 6)) is None


def test_latitudes_of_each_cell(tmp_path: Path) -> None:
    latitudes = np.linspace(50, 60, 24).reshape(4, 6)
    path = cube(tmp_path / "a.zarr")
    dataset = xr.open_zarr(path, consolidated=False).drop_vars(["lat", "lon"]).load()
    dataset = dataset.rename(lat="eta", lon="xi").assign_coords(
        latitude=(("eta", "xi"), latitudes, {"standard_name": "latitude"})
    )
    dataset.drop_encoding().to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    data = ClimateCubeDataModule(
        tmp_path / "b.nc", ["pr"], spatial_dims=("eta", "xi"), static=["latitude"]
    )
    batch = next(iter(data.train_dataloader()))
    torch.testing.assert_close(
        batch["static"][0], torch.from_numpy(np.sin(np.deg2rad(latitudes))).float()
    )
    with refused("has no coordinate that is a longitude; leave it out of static."):
        ClimateCubeDataModule(
            tmp_path / "b.nc", ["pr"], spatial_dims=("eta", "xi"), static=["longitude"]
        ).setup()


def test_what_cannot_be(tmp_path: Path, make_cube: Any) -> None:
    path = cube(tmp_path / "a.zarr")
    with refused("has no variable 'day_of_yea' (did you mean 'day_of_year'?); correct forcing."):
        ClimateCubeDataModule(path, forcing=["day_of_yea"]).setup()
    with refused("There is no forcing; name some, such as forcing: [day_of_year]."):
        ClimateCubeDataModule(path).forcing_at(np.array(["2001-01-01"], dtype="datetime64[s]"))
    with refused("has times without a calendar, so that there is no day_of_year; leave it out"):
        ClimateCubeDataModule(make_cube(), forcing=["day_of_year"]).setup()

    def drag(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.assign(drag=(("time", "trajectory"), np.arange(160.0).reshape(20, 8)))

    data = ClimateCubeDataModule(make_cube(change=drag, name="b.zarr"), forcing=["drag"])
    with refused("The forcing 'drag' differs by trajectory, so that it is not known along a roll"):
        data.along(np.array([3.0])).context()([0], 0)  # type: ignore[misc]
