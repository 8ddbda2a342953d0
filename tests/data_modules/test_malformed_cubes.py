"""Every way in which a cube can be wrong that we know of, and the one sentence that it gets."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from data_modules.climate_cube import ClimateCubeDataModule, check_compatible
from data_modules.errors import DataError

FRAMES = 48


def sound() -> xr.Dataset:
    """A cube that nothing is wrong with: two years by the half month, temperatures and rain."""
    generator = np.random.default_rng(0)
    shape = (FRAMES, 4, 6)
    ta = (250 + 50 * generator.random(shape)).astype(np.float32)
    return xr.Dataset(
        {
            "ta": (("time", "lat", "lon"), ta, {"units": "K", "standard_name": "air_temperature"}),
            "pr": (("time", "lat", "lon"), generator.random(shape).astype(np.float32)),
        },
        {
            "time": xr.date_range("2001-01-01", periods=FRAMES, freq="D"),
            "lat": ("lat", [60.0, 20.0, -20.0, -60.0], {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0.0, 360.0, 60.0), {"units": "degrees_east"}),
        },
    )


def write(dataset: xr.Dataset, path: Path, **encoding: Any) -> Path:
    chunks = {"chunks": (6, 4, 6)} | encoding
    dataset.to_zarr(path, consolidated=False, encoding={"ta": chunks, "pr": {"chunks": (6, 4, 6)}})
    return path


def chunk(path: Path, name: str = "ta", number: int = 2) -> Path:
    return path / name / "c" / str(number) / "0" / "0"


def with_times(change: Callable[[np.ndarray], None]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        times = sound()["time"].values.copy()
        change(times)
        return write(sound().assign_coords(time=times), path)

    return make


def times_twice(times: np.ndarray) -> None:
    times[7] = times[6]


def times_back(times: np.ndarray) -> None:
    times[[9, 10]] = times[[10, 9]]


def times_missing(times: np.ndarray) -> None:
    times[5] = np.datetime64("NaT")


def times_with_gaps(times: np.ndarray) -> None:
    for start in range(0, FRAMES, 3):
        times[start:] += np.timedelta64(7, "D")


def time_attribute(**attributes: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        write(sound(), path)
        zarr.open_array(path / "time", mode="r+").attrs.update(attributes)
        return path

    return make


def coordinate(name: str, values: Any, **attributes: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        attrs = attributes or sound()[name].attrs
        return write(sound().assign_coords({name: (name, values, attrs)}), path)

    return make


def values(change: Callable[[xr.Dataset], Any]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        dataset = sound()
        changed = change(dataset)
        return write(dataset if changed is None else changed, path)

    return make


def truncated(path: Path) -> Path:
    file = chunk(write(sound(), path))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


def truncated_shard(path: Path) -> Path:
    file = chunk(write(sound(), path, shards=(12, 4, 6)), number=1)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


def absent(path: Path) -> Path:
    chunk(write(sound(), path)).unlink()
    return path


def absent_and_zero(path: Path) -> Path:
    """Zarr's own default: what is not stored reads as 0, not as missing."""
    write(sound(), path)
    shutil.rmtree(path / "ta")
    array = zarr.open_group(path, mode="r+").create_array(
        "ta",
        shape=(FRAMES, 4, 6),
        chunks=(6, 4, 6),
        dtype="float32",
        dimension_names=("time", "lat", "lon"),
        attributes={"units": "K"},
    )
    array[:] = sound()["ta"].values
    chunk(path).unlink()
    return path


def netcdf_cut_short(path: Path) -> Path:
    file = path.with_suffix(".nc")
    sound().to_netcdf(file, engine="h5netcdf")
    file.write_bytes(file.read_bytes()[:1000])
    return file


def files_of_two_calendars(path: Path) -> list[str]:
    files = []
    for i, calendar in enumerate(("noleap", "360_day")):
        times = xr.date_range(
            f"200{i + 1}-01-01", periods=FRAMES, calendar=calendar, use_cftime=True
        )
        files.append(str(path.with_name(f"{i}.nc")))
        sound().assign_coords(time=times).to_netcdf(files[-1], engine="h5netcdf")
    return files


def nothing_but_missing(dataset: xr.Dataset) -> None:
    dataset["ta"].values[:] = np.nan


def one_missing(dataset: xr.Dataset) -> None:
    dataset["ta"].values[20, 1, 1] = np.inf


def celsius_called_kelvin(dataset: xr.Dataset) -> None:
    dataset["ta"].values[:] -= 273.15


def as_text(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(ta=dataset["ta"].astype(str))


def as_complex(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(ta=dataset["ta"].astype(complex))


def constant(dataset: xr.Dataset) -> None:
    dataset["ta"].values[:] = 280.0


def no_frames(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.isel(time=slice(0))


def other_dimension(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.expand_dims(scenario=3, axis=0).transpose("time", "lat", "lon", "scenario")


CASES: dict[str, tuple[Callable[[Path], Any], str, dict[str, Any]]] = {
    "a day twice": (
        with_times(times_twice),
        "Coordinate 'time' of {} has time 2001-01-07T00:00:00 twice, at indices 6 and 7; remove",
        {},
    ),
    "days out of order": (
        with_times(times_back),
        "Coordinate 'time' of {} is not in order: 2001-01-11T00:00:00 at index 9 is followed by",
        {},
    ),
    "a time that is missing": (
        with_times(times_missing),
        "Coordinate 'time' of {} has a missing time; repair the cube.",
        {},
    ),
    "gaps everywhere": (
        with_times(times_with_gaps),
        "A window of 6 frames spans 6 frames of the cube, but the longest run of frames in the "
        "split 'train' has 3; use a shorter window, or splits with longer runs.",
        {"window_length": 6},
    ),
    "a unit of time that is none": (
        time_attribute(units="furlongs since 2001-01-01"),
        "The times of {} have units 'furlongs since 2001-01-01'",
        {},
    ),
    "a calendar that is none": (
        time_attribute(calendar="martian"),
        "The times of {} have units 'days since 2001-01-01",
        {},
    ),
    "times as text": (
        lambda path: write(sound().assign_coords(time=[f"day {i}" for i in range(FRAMES)]), path),
        "Coordinate 'time' of {} holds",
        {},
    ),
    "two calendars": (
        files_of_two_calendars,
        "'time' has calendar noleap in {}, but 360_day in",
        {},
    ),
    "latitudes out of order": (
        coordinate("lat", [60.0, -20.0, 20.0, -60.0]),
        "Coordinate 'lat' of {} neither rises nor falls throughout: -20 at index 1 is followed by "
        "20; sort the cube by 'lat'.",
        {},
    ),
    "a longitude twice": (
        coordinate("lon", [0.0, 60.0, 60.0, 120.0, 180.0, 240.0]),
        "Coordinate 'lon' of {} neither rises nor falls throughout: 60 at index 1 is followed by",
        {},
    ),
    "a missing longitude": (
        coordinate("lon", [0.0, 60.0, np.nan, 180.0, 240.0, 300.0]),
        "Coordinate 'lon' of {} has a missing value at index 2; repair the cube.",
        {},
    ),
    "latitudes that are none": (
        coordinate("lat", [6e3, 2e3, -2e3, -6e3], units="degrees_north"),
        "Coordinate 'lat' of {} goes from -6000 to 6000, which are no latitudes in degrees;",
        {},
    ),
    "latitudes in radians": (
        coordinate("lat", [1.0, 0.3, -0.3, -1.0], units="radians"),
        "Coordinate 'lat' of {} is in radians; convert it to degrees_north.",
        {},
    ),
    "a variable that is all missing": (
        values(nothing_but_missing),
        "Variable 'ta' of {} has missing values in the chunk of frames 0 to 5 (time 2001-01-01T",
        {},
    ),
    "a variable that is all missing, and missing values are filled": (
        values(nothing_but_missing),
        "Variable 'ta' of {} has no value at all in the training split; leave it out of variables.",
        {"missing": "fill"},
    ),
    "one infinite value": (
        values(one_missing),
        "Variable 'ta' of {} has missing values in the chunk of frames 18 to 23 (time 2001-01-19T"
        "00:00:00 to 2001-01-24T00:00:00), first at time 2001-01-21T00:00:00; repair the cube",
        {},
    ),
    "degrees Celsius called Kelvin": (
        values(celsius_called_kelvin),
        "Variable 'ta' of {} has units K, but values from -23",
        {},
    ),
    "a constant": (
        values(constant),
        "Variable 'ta' of {} is 280 everywhere in the training split, so that it cannot be",
        {},
    ),
    "text": (values(as_text), "Variable 'ta' of {} holds", {"variables": ["ta"]}),
    "complex numbers": (
        values(as_complex),
        "Variable 'ta' of {} holds complex128, not numbers; convert it, or leave it out",
        {"variables": ["ta"]},
    ),
    "a dimension too many": (
        lambda path: other_dimension(sound()).to_zarr(path, consolidated=False) and path,
        "Variable 'pr' of {} has dimensions time, lat, lon, scenario where lat, lon, time are",
        {},
    ),
    "no frames": (
        lambda path: no_frames(sound()).to_zarr(path, consolidated=False) and path,
        "{} is empty: its dimension 'time' has no entries.",
        {},
    ),
    "a chunk cut short": (
        truncated,
        "Variable 'ta' of {} cannot be read from frames 0 to 35 (time 2001-01-01T00:00:00 to "
        "2001-02-05T00:00:00)",
        {},
    ),
    "a shard cut short": (truncated_shard, "Variable 'ta' of {} cannot be read from frames", {}),
    "a chunk that is not there": (
        absent,
        "Variable 'ta' of {} has missing values in the chunk of frames 12 to 17 (time 2001-01-13T"
        "00:00:00 to 2001-01-18T00:00:00), which is not stored, first at time 2001-01-13T",
        {},
    ),
    "a chunk that is not there and reads as 0": (
        absent_and_zero,
        "The chunk of variable 'ta' of {} with time 2001-01-13T00:00:00 is not stored and would "
        "read as 0 throughout; write it again, or set missing to 'fill' if that is meant.",
        {},
    ),
    "a NetCDF file cut short": (
        netcdf_cut_short,
        "{} cannot be opened as a Zarr or NetCDF cube (",
        {},
    ),
    "metadata that are no metadata": (
        lambda path: (write(sound(), path) / "zarr.json").write_text("{") and path,
        "{} cannot be opened as a Zarr or NetCDF cube (",
        {},
    ),
    "nothing": (lambda path: path, "There is no cube at {}; make it first, or correct", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_one_sentence(tmp_path: Path, case: str) -> None:
    make, sentence, options = CASES[case]
    path = make(tmp_path / "cube.zarr")
    first = path[0] if isinstance(path, list) else path
    with pytest.raises(DataError, match=re.escape(sentence.format(first))) as caught:
        ClimateCubeDataModule(path, **options).statistics  # noqa: B018 (reads the training split)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    assert not re.search(r"\w\. [A-Z]", said), "more than one sentence"


def test_nothing_is_wrong_with_the_sound_one(tmp_path: Path) -> None:
    module = ClimateCubeDataModule(write(sound(), tmp_path / "cube.zarr"), ["ta", "pr"])
    assert module.statistics.mean[0] == pytest.approx(275, abs=2)


def test_what_zarr_left_out_because_it_is_all_zero_can_be_allowed(tmp_path: Path) -> None:
    path = absent_and_zero(tmp_path / "cube.zarr")
    module = ClimateCubeDataModule(path, ["ta"], missing="fill")
    assert module.statistics.minimum == [0.0]


def test_a_shard_with_chunks_that_are_all_zero_is_whole(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "cube.zarr", mode="w")
    rain = group.create_array(
        "pr",
        shape=(FRAMES, 4, 6),
        chunks=(2, 4, 6),
        shards=(12, 4, 6),
        dtype="float32",
        dimension_names=("time", "y", "x"),
    )
    wet = np.zeros(rain.shape, dtype=np.float32)
    wet[::12] = 1  # one frame of each shard
    rain[:] = wet
    module = ClimateCubeDataModule(tmp_path / "cube.zarr")
    assert module.statistics.maximum == [1.0]
    assert module.read_window("train", 0, 3)[0].shape == (3, 1, 4, 6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda d: d["variables"]["ta"].update(units="degC"),
            "The checkpoint was trained on 'ta' in K, but this cube has it in degC; convert the",
        ),
        (
            lambda d: d["time"].update(step=21600.0),
            "The checkpoint was trained on frames 86400 seconds apart, but those of this cube are "
            "21600 seconds apart; set frame_stride, or train again.",
        ),
    ],
)
def test_a_cube_that_a_model_was_not_trained_for(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    module = ClimateCubeDataModule(write(sound(), tmp_path / "cube.zarr"))
    saved, current = module.description(), module.description()
    check_compatible(saved, current)
    change(current)
    with pytest.raises(DataError, match=re.escape(sentence)):
        check_compatible(saved, current)


def test_gaps_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_times(times_with_gaps)(tmp_path / "cube.zarr")
    ClimateCubeDataModule(path).setup()
    assert caplog.messages == [
        f"{path} has 15 gaps in time, the first between 2001-01-10T00:00:00 and "
        "2001-01-18T00:00:00; no window crosses one"
    ]


def test_other_conditioning_is_refused(tmp_path: Path) -> None:
    path = write(sound(), tmp_path / "cube.zarr")
    saved = ClimateCubeDataModule(path, static=["latitude"], forcing=["day_of_year"]).description()
    check_compatible(saved, ClimateCubeDataModule(path).description())  # enough to roll out
    other = ClimateCubeDataModule(path, static=["longitude"], forcing=["day_of_year"])
    with pytest.raises(DataError, match="was trained with static latitude, but this cube is read"):
        check_compatible(saved, other.description())
