"""What came true is the cube's own frames, wherever and however they are asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from data_modules import ClimateCubeDataModule
from data_modules.errors import DataError
from data_modules.truth import Truth

MakeCube = Callable[..., Path]


def opened(path: Path, **settings: object) -> tuple[Truth, ClimateCubeDataModule, xr.DataArray]:
    data = ClimateCubeDataModule(path, **settings)  # type: ignore[arg-type]
    return Truth(data), data, xr.open_zarr(path, consolidated=False)["u"]


@pytest.mark.parametrize("stride", [1, 3])
def test_frames_after_places_are_those_of_the_cube(make_cube: MakeCube, stride: int) -> None:
    truth, _, cube = opened(make_cube(), frame_stride=stride)
    places = [(2, 1), (7, 4)]
    came = truth.after(places, [1, 2, 3])["u"]
    assert came.dims == ("initial", "lead", "y", "x")
    for row, (trajectory, frame) in enumerate(places):
        expected = cube[trajectory, [frame + lead * stride for lead in (1, 2, 3)]]
        np.testing.assert_array_equal(came[row].values, expected.values)
    given = truth.at(places)["u"]
    np.testing.assert_array_equal(given.values, np.stack([cube[t, f].values for t, f in places]))
    np.testing.assert_array_equal(truth.at(places)["initial_time"], [0.5, 2.0])


def test_every_second_lead(make_cube: MakeCube) -> None:
    truth, _, cube = opened(make_cube())
    came = truth.after([(1, 3)], [2, 4, 6])["u"]
    np.testing.assert_array_equal(came[0].values, cube[1, [5, 7, 9]].values)


def test_runs_of_a_split_are_whole_or_thinned_evenly(make_cube: MakeCube) -> None:
    truth, data, cube = opened(make_cube())
    first, stop = data.split("train").trajectories
    runs = truth.runs("train")["u"]
    np.testing.assert_array_equal(runs.values, cube[first:stop].values)
    some = truth.runs("train", frames=3 * 20)["u"]
    assert some.sizes["run"] == 3
    numbers = (some[:, 0, 0, 0].values // 1000).tolist()
    assert numbers == [0, 2, 4]
    assert truth.runs("train", frames=7)["u"].shape[:2] == (1, 7)


def test_a_cropped_module_gives_the_same_crop_as_its_batches(make_cube: MakeCube) -> None:
    truth, data, _cube = opened(make_cube(), crop=(2, 3))
    frames, _ = data.initial_states("test", 1, 3, 0)
    places = data.initial_places("test", 1, 1, 2)
    came = truth.after(places, [1, 2])["u"]
    batch = data.normalisation.denormalise(frames)[:, 1:, 0]
    np.testing.assert_allclose(came.values, batch.numpy(), rtol=1e-5)
    assert came["y"].values.tolist() == [1.0, 2.0]


def test_places_agree_with_initial_states(make_cube: MakeCube) -> None:
    truth, data, _ = opened(make_cube())
    frames, times = data.initial_states("train", 7, history=2, leads=3)
    places = data.initial_places("train", 7, history=2, leads=3)
    shown = data.normalisation.denormalise(frames)[:, 1, 0]
    np.testing.assert_allclose(truth.at(places)["u"].values, shown.numpy(), rtol=1e-5, atol=1e-2)
    trajectories = np.array([t for t, _ in places])
    assert truth.places(times[:, 1], trajectories) == places


def test_thousands_of_frames_are_those_of_the_datasets(make_cube: MakeCube) -> None:
    truth, data, _ = opened(make_cube(), crop=(2, 3))
    places = [*data.initial_places("train", 7, 2, 3), *data.initial_places("test", 5, 1, 3)]
    lazily = truth.after(places, [1, 2, 3])
    expected = np.stack([lazily[name].values for name in data.cube.variables], 2)
    reads = []
    with pytest.MonkeyPatch.context() as patch:
        read = type(data.cube).read
        patch.setattr(type(data.cube), "read", lambda *a: reads.append(a[1:]) or read(*a))
        found = truth.read_after(places, 3)
    np.testing.assert_array_equal(found, expected[:, 2])
    assert len(reads) == len({(t, (f + 3) // data.cube.chunks[1]) for t, f in places})
    with pytest.raises(DataError, match="ends after"):
        truth.read_after([(0, len(data.cube.times) - 2)], 3)


def test_missing_values_stay_missing_though_batches_are_filled(make_cube: MakeCube) -> None:
    def holed(dataset: xr.Dataset) -> xr.Dataset:
        dataset["u"][7, 5, 1, 2] = np.nan
        return dataset

    truth, _, _ = opened(make_cube(change=holed), missing="fill", fill_value=-1.0)
    came = truth.after([(7, 4)], [1])["u"]
    assert np.isnan(came.values).sum() == 1
    assert np.isnan(came.values[0, 0, 1, 2])


def test_dates_are_found_in_any_calendar(make_cube: MakeCube) -> None:
    noleap = xr.date_range("2000-02-27", periods=20, calendar="noleap", use_cftime=True)
    truth, _, _ = opened(make_cube(times=noleap, trajectories=1, squeeze=True))
    dates = np.array(["2000-02-28", "2000-03-01"], dtype="datetime64[ns]")
    assert truth.places(dates) == [(0, 1), (0, 2)]
    assert truth.places(noleap.values[[3, 4]]) == [(0, 3), (0, 4)]


def test_what_cannot_be_verified_is_said(make_cube: MakeCube) -> None:
    truth, _, _ = opened(make_cube())
    with pytest.raises(DataError, match=r"has no frame at time 0\.7"):
        truth.places(np.array([0.7]), np.array([0]))
    with pytest.raises(DataError, match=r"8 trajectories.*initial_trajectory"):
        truth.places(np.array([0.5]))
    with pytest.raises(DataError, match=r"trajectory 8.*trajectories 0 to 7"):
        truth.places(np.array([0.5]), np.array([8]))
    with pytest.raises(DataError, match="are numbers, those of the rollout dates"):
        truth.places(np.array(["2000-01-01"], dtype="datetime64[s]"), np.array([0]))
    with pytest.raises(
        DataError, match=r"5 steps from time 8.0 cannot be verified.*ends after 9.5"
    ):
        truth.after([(0, 16)], [1, 2, 3, 4, 5])


def test_a_gap_is_not_jumped(make_cube: MakeCube) -> None:
    times = np.r_[np.arange(10.0), np.arange(15.0, 25.0)]
    truth, _, _ = opened(make_cube(times=times))
    with pytest.raises(DataError, match="has a gap after 9"):
        truth.after([(0, 8)], [1, 2])
    assert truth.after([(0, 10)], [1, 2])["u"].values[0, 0, 0, 0] == 11
