"""The data module: batches, what rollouts ask of it, and what goes into checkpoints."""

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from torch import Tensor

from data_modules import climate_cube
from data_modules.climate_cube import ClimateCubeDataModule, check_compatible, field_arguments
from data_modules.errors import DataError
from dyngen.rollout.field import Field

BOTH = pytest.mark.parametrize("in_memory", [True, False])


def refused(sentence: str) -> Any:
    return pytest.raises(DataError, match=re.escape(sentence))


def places(cube: ClimateCubeDataModule, frames: Tensor) -> list[list[tuple[int, int]]]:
    """(trajectory, frame) of each frame of windows (N, T, C, H, W), as the values tell."""
    values = cube.normalisation.denormalise(frames)[..., 0, 0, 0].double().round().long()
    return [[divmod(v, 1000) for v in window] for window in values.tolist()]


@BOTH
def test_batches(make_cube, in_memory):
    cube = ClimateCubeDataModule(make_cube(), window_length=3, batch_size=4, in_memory=in_memory)
    batch = next(iter(cube.train_dataloader()))
    assert set(batch) == {"frames", "time"}
    assert batch["frames"].shape == (4, 3, 1, 4, 5)
    assert (batch["frames"].dtype, batch["time"].dtype) == (torch.float32, torch.float64)
    values = torch.cat([b["frames"] for b in cube.train_dataloader()])
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1
    for loader in (cube.val_dataloader(), cube.test_dataloader(), cube.predict_dataloader()):
        assert sum(len(b["frames"]) for b in loader) == 18


def test_evaluation_gives_every_window_scattered_and_always_alike(make_cube):
    path = make_cube()
    cube = ClimateCubeDataModule(path, window_length=3, batch_size=4, in_memory=True)

    def starts(loader):
        frames = torch.cat([batch["frames"] for batch in loader])
        return [tuple(window[0]) for window in places(cube, frames)]

    loader = cube.test_dataloader()
    first, again = starts(loader), starts(loader)
    assert first == again == starts(cube.test_dataloader())
    in_order = starts(cube.predict_dataloader())
    assert in_order == sorted(in_order) != first
    assert sorted(first) == in_order


def test_time_is_seconds_in_the_cubes_calendar(make_cube):
    times = xr.date_range("2000-02-27", periods=20, calendar="noleap", use_cftime=True)
    cube = ClimateCubeDataModule(make_cube(times=times))
    time = next(iter(cube.predict_dataloader()))["time"]
    assert (time[:, 1] - time[:, 0] == 86400).all()
    assert time[0, 0] == (30 * 365 + 31 + 26) * 86400


def test_memory_decides_where_the_frames_are(make_cube, monkeypatch):
    path = make_cube()
    assert ClimateCubeDataModule(path).in_memory
    monkeypatch.setattr(climate_cube, "IN_MEMORY_BYTES", 1000)
    assert not ClimateCubeDataModule(path).in_memory
    assert ClimateCubeDataModule(path, in_memory=True).in_memory


def test_static_and_forcing(make_cube):
    def add(dataset):
        dataset["land"] = (("x", "y"), np.arange(20.0).reshape(5, 4))
        dataset["co2"] = ("time", np.arange(20.0))
        dataset["drag"] = (("time", "trajectory"), np.arange(160.0).reshape(20, 8))
        return dataset

    path = make_cube(change=add)
    cube = ClimateCubeDataModule(path, static=["land"], forcing=["co2", "drag"], batch_size=5)
    batch = next(iter(cube.train_dataloader()))
    assert batch["frames"].shape[2] == 1
    assert batch["static"].shape == (1, 4, 5)
    land = (np.arange(20.0).reshape(5, 4).T - 9.5) / np.std(np.arange(20.0))
    torch.testing.assert_close(batch["static"][0], torch.from_numpy(land).float())
    assert batch["forcing"].shape == (5, 2, 2)
    for window, forcing in zip(places(cube, batch["frames"]), batch["forcing"], strict=True):
        for (trajectory, frame), (co2, drag) in zip(window, forcing.tolist(), strict=True):
            seen = np.arange(160.0).reshape(20, 8)[:, :6]
            assert co2 == pytest.approx((frame - 9.5) / np.std(np.arange(20.0)), abs=1e-5)
            expected = (8.0 * frame + trajectory - seen.mean()) / seen.std()
            assert drag == pytest.approx(expected, abs=1e-5)
    with refused(f"{path} has no variable 'lant' (did you mean 'land'?); correct static."):
        ClimateCubeDataModule(path, static=["lant"]).setup()
    with refused(f"Variable 'land' of {path} has dimensions x, y, so that it cannot be forcing"):
        ClimateCubeDataModule(path, forcing=["land"]).setup()
    with refused("Static fields cannot be cropped with the frames; drop crop or static."):
        ClimateCubeDataModule(path, static=["land"], crop=(2, 2)).setup()


@BOTH
def test_missing_values_become_the_mean(make_cube, in_memory):
    def hole(dataset):
        dataset["u"].values[:, :, 1, 1] = np.nan
        return dataset

    path = make_cube(change=hole)
    with refused(f"Variable 'u' of {path} has missing values in the chunk of trajectory "):
        list(ClimateCubeDataModule(path, in_memory=in_memory).train_dataloader())
    cube = ClimateCubeDataModule(path, in_memory=in_memory, missing="fill")
    frames = next(iter(cube.train_dataloader()))["frames"]
    assert (frames[..., 1, 1] == 0).all()
    assert (cube.read_window("test", 0, 3)[0][..., 1, 1] == 0).all()
    assert torch.isfinite(frames).all()


@BOTH
def test_windows_by_number(make_cube, in_memory):
    cube = ClimateCubeDataModule(make_cube(), in_memory=in_memory, frame_stride=2)
    frames, times = cube.read_window("train", 17, 3)
    assert places(cube, frames[None]) == [[(1, 1), (1, 3), (1, 5)]]
    assert times.tolist() == [0.5, 1.5, 2.5]
    with refused("There is no window 96 of 3 frames in the split 'train'; it has 96."):
        cube.read_window("train", 96, 3)
    with refused("A window of 20 frames spans 39 frames of the cube, but the longest run"):
        cube.read_window("train", 0, 20)
    with refused("There is no split 'tests'; there are train, validate, test: add it to splits."):
        cube.read_window("tests", 0, 1)


@BOTH
@pytest.mark.parametrize("count", [1, 3, 6, 11, 48, 90])
def test_initial_states_are_spread_evenly(make_cube, in_memory, count):
    cube = ClimateCubeDataModule(make_cube(), in_memory=in_memory)
    frames, times = cube.initial_states("train", count, history=2, leads=4)
    assert frames.shape == (count, 2, 1, 4, 5)
    assert times.shape == (count, 2)
    found = places(cube, frames)
    assert len({window[0] for window in found}) == count
    for window, row in zip(found, times, strict=True):
        (trajectory, first) = window[0]
        assert window == [(trajectory, first + i) for i in range(2)]
        assert row.tolist() == [0.5 * (first + i) for i in range(2)]
    per_trajectory = np.bincount([w[0][0] for w in found], minlength=6)
    assert np.ptp(per_trajectory) <= 1
    if count >= 6:
        assert abs(np.mean([w[0][1] for w in found]) - 7) < 2.5  # of starts 0 to 14
    again, _ = cube.initial_states("train", count, history=2, leads=4)
    assert torch.equal(frames, again)


def test_initial_states_of_one_long_run(make_cube):
    times = xr.date_range("2001-01-01", periods=200)
    cube = ClimateCubeDataModule(make_cube(frames=200, squeeze=True, times=times))
    frames, found = cube.initial_states("train", 5, history=2, leads=9)
    assert [w[0][1] for w in places(cube, frames)] == [14, 42, 70, 98, 126]
    assert found.dtype.kind == "M"
    assert (np.diff(found, axis=1) == np.timedelta64(1, "D")).all()


def test_initial_states_that_are_not_there(make_cube):
    cube = ClimateCubeDataModule(make_cube())
    assert len(cube.initial_states("test", 19, 1, 1)[0]) == 19
    with refused("20 initial states of 1 + 1 frames were asked for, but the split 'test' has 19"):
        cube.initial_states("test", 20, 1, 1)
    with refused("A window of 21 frames spans 21 frames of the cube"):
        cube.initial_states("test", 1, 1, 20)


@BOTH
def test_frames_and_runs(make_cube, in_memory):
    times = np.r_[0:8, 20:32] * 0.5
    path = make_cube(times=times)
    cube = ClimateCubeDataModule(path, in_memory=in_memory)
    sample = cube.sample_frames("train", 10)
    assert sample.shape == (10, 1, 4, 5)
    assert len({w[0] for w in places(cube, sample[:, None])}) == 10
    assert cube.run_count("train") == 12
    frames, found = cube.read_run("train", 3)
    assert places(cube, frames[None]) == [[(1, t) for t in range(8, 20)]]
    assert found.tolist() == times[8:].tolist()
    strided = ClimateCubeDataModule(path, in_memory=in_memory, frame_stride=3)
    assert places(strided, strided.read_run("train", 2)[0][None]) == [[(1, 0), (1, 3), (1, 6)]]
    with refused("There is no run 12 in the split 'train'; it has 12."):
        cube.read_run("train", 12)


def globe(dataset: xr.Dataset) -> xr.Dataset:
    latitudes = ("lat", [60.0, 20.0, -20.0, -60.0], {"units": "degrees_north"})
    longitudes = ("lon", np.arange(0.0, 360.0, 72.0), {"units": "degrees_east"})
    dataset = dataset.rename(y="lat", x="lon").assign_coords(lat=latitudes, lon=longitudes)
    dataset["u"].attrs = {"units": "m s-1", "level": np.float32(2.5)}
    return dataset.assign_attrs(title="A cube", parameters={"dt": 0.1})


def test_area_weights(make_cube):
    weights = ClimateCubeDataModule(make_cube(change=globe)).area_weights
    cosines = np.cos(np.deg2rad([60, 20, -20, -60]))
    torch.testing.assert_close(weights, torch.from_numpy(cosines / cosines.mean()).float())
    assert torch.equal(ClimateCubeDataModule(make_cube(name="b.zarr")).area_weights, torch.ones(4))


def test_description_is_complete_and_plain(make_cube):
    times = xr.date_range("2001-01-01", periods=20, calendar="noleap", use_cftime=True)
    cube = ClimateCubeDataModule(make_cube(change=globe, times=times), frame_stride=2)
    description = cube.description()
    file = io.BytesIO()
    torch.save(description, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    check_compatible(read, description)
    assert read["variables"] == {"u": {"units": "m s-1", "level": 2.5}}
    assert (read["dims"], read["shape"]) == (["lat", "lon"], [4, 5])
    assert read["boundary"] == {"lat": "reflect", "lon": "periodic"}
    assert read["coords"]["lat"]["values"].tolist() == [60, 20, -20, -60]
    assert read["normalisation"]["mean"] == cube.statistics.mean
    assert {k: read["time"][k] for k in ("step", "unit", "calendar")} == {
        "step": 2 * 86400.0,
        "unit": "seconds",
        "calendar": "noleap",
    }
    assert read["attributes"] == {"title": "A cube", "parameters": {"dt": 0.1}}


def test_a_crop_is_described_by_its_centre(make_cube):
    cube = ClimateCubeDataModule(make_cube(change=globe), crop=(2, 5))
    description = cube.description()
    assert description["shape"] == [2, 5]
    assert description["coords"]["lat"]["values"].tolist() == [20, -20]
    assert description["boundary"] == {"lat": "reflect", "lon": "periodic"}
    assert cube.read_window("test", 0, 2)[0].shape == (2, 1, 2, 5)
    narrow = ClimateCubeDataModule(make_cube(change=globe, name="b.zarr"), crop=(4, 3))
    assert narrow.description()["boundary"]["lon"] == "reflect"
    with refused("crop is (5, 5), but frames of"):
        ClimateCubeDataModule(make_cube(name="c.zarr"), crop=(5, 5)).setup()


def test_what_a_field_is_built_from(make_cube):
    days = xr.date_range("2001-01-01", periods=20)
    arguments = field_arguments(
        ClimateCubeDataModule(make_cube(change=globe, times=days)).description()
    )
    assert arguments["step"] == np.timedelta64(1, "D")
    assert (arguments["dims"], arguments["shape"]) == (("lat", "lon"), (4, 5))
    dims, values, attributes = arguments["coords"]["lat"]
    assert (dims, attributes) == (("lat",), {"units": "degrees_north"})
    np.testing.assert_array_equal(values, [60, 20, -20, -60])
    numbers = field_arguments(ClimateCubeDataModule(make_cube(name="b.zarr")).description())
    assert numbers["step"] == 0.5


@pytest.mark.parametrize("calendar", [None, "standard", "360_day"])
def test_a_rollouts_field_is_built_from_it(make_cube, calendar):
    times = None
    if calendar:
        times = xr.date_range(
            "2001-01-01", periods=20, calendar=calendar, use_cftime=calendar != "standard"
        )
    cube = ClimateCubeDataModule(make_cube(change=globe, times=times))
    _, found = cube.initial_states("test", 3, history=2, leads=5)
    field = Field(**field_arguments(cube.description()), initial_times=found[:, 0])
    assert field.has_dates == (calendar is not None)
    step = field.step.item() if found.dtype.kind == "O" else field.step
    assert (found[:, 0] + step == found[:, 1]).all()


def test_other_variables_and_grids_are_refused(make_cube):
    saved = ClimateCubeDataModule(make_cube(change=globe)).description()

    def other(**changes: Any) -> dict[str, Any]:
        return copy.deepcopy(saved) | changes

    check_compatible(saved, other(normalisation={"mean": [0.0], "std": [2.0]}))
    with refused("The checkpoint was trained on u, but this cube gives pr, ta; set"):
        check_compatible(saved, other(variables={"pr": {}, "ta": {}}))
    with refused("trained on a grid with shape (4, 5), but this cube has (8, 5)"):
        check_compatible(saved, other(shape=[8, 5]))
    with refused("trained on a grid with dims ('lat', 'lon'), but this cube has ('y', 'x')"):
        check_compatible(saved, other(dims=["y", "x"]))
    flipped = other()
    flipped["coords"]["lat"]["values"] = saved["coords"]["lat"]["values"].flip(0)
    with refused("whose 'lat' goes from 60 to -60, but this cube's goes from -60 to 60"):
        check_compatible(saved, flipped)


def test_statistics_travel_with_the_state(make_cube, monkeypatch):
    path = make_cube()
    state = ClimateCubeDataModule(path).state_dict()

    def again(*_: Any) -> None:
        raise AssertionError("statistics were computed again")

    monkeypatch.setattr(climate_cube, "compute_statistics", again)
    cube = ClimateCubeDataModule(path)
    cube.load_state_dict(copy.deepcopy(state))
    next(iter(cube.train_dataloader()))
    assert cube.state_dict() == state
    other = ClimateCubeDataModule(make_cube(change=lambda d: d.rename(u="v"), name="v.zarr"))
    with refused("The checkpoint was trained on u, but this cube gives v"):
        other.load_state_dict(state)


def test_frames_are_normalised_by_restored_statistics(make_cube):
    cube = ClimateCubeDataModule(make_cube())
    before = cube.read_window("test", 0, 2)[0]
    state = cube.state_dict()
    state["statistics"]["mean"] = [state["statistics"]["mean"][0] + state["statistics"]["std"][0]]
    cube.load_state_dict(state)
    torch.testing.assert_close(cube.read_window("test", 0, 2)[0], before - 1)


class Nothing(LightningModule):
    """Trains a number that no one needs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self.weight * batch["frames"].mean()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.log("frames", batch["frames"].mean())

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return batch["frames"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_every_verb_of_lightning(make_cube, tmp_path: Path):
    path = make_cube()
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "max_epochs": 2,
    }
    cube, model = ClimateCubeDataModule(path), Nothing()
    trainer = Trainer(**options)
    trainer.fit(model, datamodule=cube)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["ClimateCubeDataModule"]["statistics"] == cube.statistics.state()
    for verb in ("validate", "test"):
        fresh = ClimateCubeDataModule(path)
        getattr(Trainer(**options), verb)(model, datamodule=fresh, ckpt_path=tmp_path / "last.ckpt")
        assert fresh.statistics == cube.statistics
    assert len(Trainer(**options).predict(model, datamodule=cube) or []) == 1


def test_without_a_validation_split(make_cube):
    cube = ClimateCubeDataModule(make_cube(), splits={"train": 0.5, "test": 0.5})
    assert cube.val_dataloader() == []


def test_every_argument_can_be_configured_and_is_documented():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ClimateCubeDataModule, "data")
    parsed = parser.parse_object(
        {
            "data": {
                "path": "cube.zarr",
                "splits": {"train": ["1990", "2004"], "test": ["2005", "2010"]},
                "crop": [64, 64],
                "fill_value": {"pr": 0.0},
                "missing": "fill",
                "spatial_dims": ["lat", "lon"],
                "in_memory": False,
            }
        }
    )
    cube = parser.instantiate(parsed).data
    assert isinstance(cube, ClimateCubeDataModule)
    assert cube._crop == (64, 64)
    for name in parsed.data.as_dict():
        assert f"\n        {name}: " in (ClimateCubeDataModule.__doc__ or "")


def test_what_cannot_be(make_cube):
    path = make_cube()
    with refused("batch_size is 0; make it 1 or more."):
        ClimateCubeDataModule(path, batch_size=0)
    with refused("A window of 30 frames spans 30 frames of the cube, but the longest run of"):
        ClimateCubeDataModule(path, window_length=30).setup()
    with refused("There is no cube at"):
        ClimateCubeDataModule(path / "none").setup("fit")
