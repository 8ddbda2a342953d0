"""Opening cubes: what is found in them, and one sentence for each thing that is wrong."""

import pickle
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
import zarr

from data_modules.cube import open_cube
from data_modules.errors import DataError


def refused(sentence: str) -> AbstractContextManager:
    """A DataError with this in its message, which must be one sentence."""
    return pytest.raises(DataError, match=re.escape(sentence))


def test_what_is_found(make_cube):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cube = open_cube(make_cube())
    assert list(cube.variables) == ["u"]
    assert (cube.trajectory_dim, cube.time_dim, cube.dims) == ("trajectory", "time", ("y", "x"))
    assert (cube.trajectories, cube.shape, cube.chunks) == (8, (4, 5), (1, 6))
    assert (cube.step, cube.calendar) == (0.5, None)
    assert cube.boundary == ("reflect", "reflect")
    np.testing.assert_array_equal(cube.coords["x"][1], np.arange(5.0))


@pytest.mark.parametrize("name", ["cube.zarr", "cube.nc"])
def test_reading_gives_what_xarray_gives(make_cube, name):
    path = make_cube(name=name, change=lambda d: d.transpose("time", "x", "trajectory", "y"))
    cube = open_cube(path)
    options = {"engine": "zarr", "consolidated": False} if name == "cube.zarr" else {}
    truth = xr.open_dataset(path, **options)
    expected = truth["u"].transpose("trajectory", "time", "y", "x").values[2:5, 3:11]
    read = cube.read(slice(2, 5), slice(3, 11))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[:, :, 0], expected)


def test_zarr_v2_and_consolidated_metadata_are_read_without_warnings(tmp_path):
    dataset = xr.Dataset({"u": (("time", "y", "x"), np.zeros((5, 3, 4)))})
    dataset.to_zarr(tmp_path / "two.zarr", zarr_format=2, consolidated=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cube = open_cube(tmp_path / "two.zarr")
    assert cube.read(slice(0, 1), slice(0, 5)).shape == (1, 5, 1, 3, 4)


def test_dimensions_by_attributes_and_by_name(tmp_path):
    dataset = xr.Dataset(
        {"u": (("step", "j", "i"), np.zeros((5, 3, 4)))},
        {
            "step": ("step", np.arange(5), {"axis": "T"}),
            "j": ("j", [50.0, 40.0, 30.0], {"standard_name": "latitude"}),
            "i": ("i", [0.0, 90.0, 180.0, 270.0], {"standard_name": "longitude"}),
        },
    )
    dataset.to_zarr(tmp_path / "cf.zarr", consolidated=False)
    cube = open_cube(tmp_path / "cf.zarr")
    assert (cube.time_dim, cube.dims) == ("step", ("j", "i"))
    assert cube.boundary == ("reflect", "periodic")
    for coord in dataset.coords.values():
        coord.attrs.clear()
    dataset.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    with refused("no time dimension that can be recognised among step, j, i"):
        open_cube(tmp_path / "plain.zarr")
    cube = open_cube(tmp_path / "plain.zarr", time_dim="step", spatial_dims=("j", "i"))
    assert cube.dims == ("j", "i")


@pytest.mark.parametrize(
    ("longitudes", "boundary"),
    [
        (np.arange(-180, 180, 30), "periodic"),
        (np.arange(0, 180, 30), "reflect"),
        (np.linspace(0, 360, 13), "reflect"),  # the first meridian twice: not one period
    ],
)
def test_only_longitudes_around_the_globe_are_periodic(tmp_path, longitudes, boundary):
    values = np.zeros((3, 2, len(longitudes)))
    coords = {"lon": ("lon", longitudes.astype(float), {"units": "degrees_east"})}
    dataset = xr.Dataset({"u": (("time", "lat", "lon"), values)}, coords)
    dataset.to_zarr(tmp_path / "globe.zarr", consolidated=False)
    assert open_cube(tmp_path / "globe.zarr").boundary == ("reflect", boundary)


def test_boundary_from_attributes_and_from_the_argument(make_cube):
    def periodic(dataset):
        dataset["y"].attrs["boundary"] = "periodic"
        return dataset

    path = make_cube(change=periodic)
    assert open_cube(path).boundary == ("periodic", "reflect")
    assert open_cube(path, boundary=("zero", "periodic")).boundary == ("zero", "periodic")
    with refused("give one of periodic, reflect, zero, pole for y and one for x"):
        open_cube(path, boundary=("zero", "round"))


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "standard"])
def test_calendars(make_cube, calendar):
    times = xr.date_range(
        "2001-02-27", periods=20, freq="D", calendar=calendar, use_cftime=calendar != "standard"
    )
    cube = open_cube(make_cube(times=times))
    assert cube.calendar == ("proleptic_gregorian" if calendar == "standard" else calendar)
    assert cube.step == 86400.0
    np.testing.assert_array_equal(np.diff(cube.time_numbers), 86400.0)
    if calendar != "standard":
        expected = cftime.date2num(list(times), "seconds since 1970-01-01", calendar=calendar)
        np.testing.assert_array_equal(cube.time_numbers, expected)


def test_gaps_in_time_end_runs(make_cube):
    times = np.r_[0:7, 9:15, 100:107] * 0.5
    cube = open_cube(make_cube(times=times))
    assert cube.runs() == [(0, 7), (7, 13), (13, 20)]
    assert cube.step == 0.5


def test_months_of_different_length_are_no_gaps(make_cube):
    times = xr.date_range("2001-01-01", periods=20, freq="MS")
    assert open_cube(make_cube(times=times)).runs() == [(0, 20)]


def test_another_process_opens_the_files_anew(make_cube):
    cube = open_cube(make_cube())
    cube.read(slice(0, 1), slice(0, 1))
    other = pickle.loads(pickle.dumps(cube))
    assert not other._open
    np.testing.assert_array_equal(
        other.read(slice(1, 2), slice(3, 9)), cube.read(slice(1, 2), slice(3, 9))
    )


def punch(where: tuple[int, ...], value: float = np.nan) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(dataset: xr.Dataset) -> xr.Dataset:
        dataset["u"].values[where] = value
        return dataset

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_missing_values_are_refused_by_chunk_and_time(make_cube, value):
    path = make_cube(change=punch((3, 8, 0, 0), value))
    cube = open_cube(path)
    cube.read(slice(0, 8), slice(0, 8))
    with refused(
        f"Variable 'u' of {path} has missing values in the chunk of trajectory 3, frames 6 to 11 "
        "(time 3 to 5.5), first at time 4; repair the cube, or set missing to 'fill'"
    ):
        cube.read(slice(2, 5), slice(4, 12))


def test_missing_values_are_filled_or_left(make_cube):
    path = make_cube(change=punch((3, 8, 0, 0)))
    cube = open_cube(path, missing="fill")
    assert np.isnan(cube.read(slice(3, 4), slice(8, 9))).sum() == 1
    cube = open_cube(path, missing="fill", fill_value={"u": -5.0})
    assert cube.read(slice(3, 4), slice(8, 9))[0, 0, 0, 0, 0] == -5.0
    with refused("missing is 'ignore'; it can be 'refuse' or 'fill'"):
        open_cube(path, missing="ignore")


def test_no_cube_at_the_path(tmp_path):
    with refused(f"There is no cube at {tmp_path / 'none.zarr'}; make it first"):
        open_cube(tmp_path / "none.zarr")


def test_what_is_no_cube(tmp_path):
    (tmp_path / "notes.txt").write_text("not a cube")
    (tmp_path / "folder").mkdir()
    zarr.create_array(tmp_path / "array.zarr", shape=(2,), dtype="f4")
    for name in ("notes.txt", "folder", "array.zarr"):
        with refused(f"{tmp_path / name} cannot be opened as a Zarr or NetCDF cube"):
            open_cube(tmp_path / name)


def test_a_damaged_chunk_names_variable_and_times(make_cube):
    path = make_cube()
    (path / "u" / "c" / "2" / "1" / "0" / "0").write_bytes(b"damaged")
    with refused(f"Variable 'u' of {path} cannot be read from frames 6 to 9 (time 3 to 4.5)"):
        open_cube(path).read(slice(2, 3), slice(6, 10))


def test_missing_variables_and_dimensions_name_the_nearest(make_cube):
    path = make_cube(change=lambda d: d.rename(u="vorticity"))
    with refused(
        f"{path} has no variable 'vortcity' (did you mean 'vorticity'?); it has vorticity."
    ):
        open_cube(path, ["vortcity"])
    with refused(f"{path} has no dimension 'tme' (time_dim) (did you mean 'time'?)"):
        open_cube(path, time_dim="tme")
    with refused(f"{path} has no dimension 'z' (spatial_dims); it has trajectory, time, y, x."):
        open_cube(path, spatial_dims=("z", "x"))
    with refused("spatial_dims is ['x']; give two names, rows first"):
        open_cube(path, spatial_dims=["x"])


def test_variables_that_do_not_lie_on_the_grid(make_cube):
    def add(dataset):
        dataset["flat"] = ("time", np.zeros(20))
        dataset["words"] = (("time", "y", "x"), np.full((20, 4, 5), "a"))
        return dataset

    path = make_cube(change=add, name="cube.nc")
    assert list(open_cube(path).variables) == ["u"]
    with refused(f"Variable 'flat' of {path} has dimensions time where"):
        open_cube(path, ["u", "flat"])
    with refused(f"Variable 'words' of {path} holds"):
        open_cube(path, ["words"])


def test_a_dimension_that_is_no_trajectory(make_cube):
    path = make_cube(change=lambda d: d.rename(trajectory="site"))
    with refused("has dimensions site, time, y, x where time, x, y are needed"):
        open_cube(path)
    assert open_cube(path, trajectory_dim="site").trajectories == 8


def test_variables_named_twice_and_fills_for_others(make_cube):
    path = make_cube()
    with refused("variables names one of u, u twice; name each once."):
        open_cube(path, ["u", "u"])
    with refused("fill_value names 'uu' (did you mean 'u'?), which is not among the variables u."):
        open_cube(path, missing="fill", fill_value={"uu": 0.0})


def test_an_empty_cube(make_cube):
    path = make_cube(change=lambda d: d.isel(time=slice(0)), name="cube.nc")
    with refused(f"{path} is empty: its dimension 'time' has no entries."):
        open_cube(path)


def test_no_variable_at_all(make_cube):
    path = make_cube(change=lambda d: d.rename(u="v").isel(y=0))
    with refused("no row dimension that can be recognised among trajectory, time, x"):
        open_cube(path)
    path = make_cube(change=lambda d: d.drop_vars("u"), name="empty.zarr")
    with refused(f"{path} has no variable with dimensions time, y and x; it has none."):
        open_cube(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({5: 2.0}, "has time 2 twice, at indices 4 and 5; remove one of them"),
        ({5: 0.2}, "is not in order: 2 at index 4 is followed by 0.2; sort the cube by 'time'"),
        ({5: np.nan}, "has a missing time; repair the cube"),
    ],
)
def test_times_that_cannot_be(make_cube, change, sentence):
    times = np.arange(20) * 0.5
    for index, time in change.items():
        times[index] = time
    path = make_cube(times=times)
    with refused(f"Coordinate 'time' of {path} {sentence}"):
        open_cube(path)


def test_dates_that_cannot_be(make_cube):
    times = xr.date_range("2001-01-01", periods=20).values.copy()
    times[7] = times[6]
    path = make_cube(times=times)
    with refused("has time 2001-01-07T00:00:00 twice, at indices 6 and 7; remove one of them"):
        open_cube(path)


def test_errors_are_one_sentence(make_cube, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        open_cube(make_cube(), ["v"])
    assert str(caught.value).endswith(".")
    assert str(caught.value).count(". ") == 0
