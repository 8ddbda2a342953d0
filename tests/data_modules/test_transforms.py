"""Transforms, anomalies, pixels: exact ways back, known cycles, and checkpoints that hold them."""

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from data_modules import climate_cube
from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.errors import DataError
from data_modules.normalisation import Normalisation, seasonal_basis
from data_modules.transforms import Transform

LOG = Transform("log", scale=0.5, lower=0.0)
YEARS = 4


def refused(sentence: str) -> Any:
    return pytest.raises(DataError, match=re.escape(sentence))


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20),
    st.sampled_from(["log", "power"]),
    st.floats(1e-3, 1e3),
    st.floats(0.2, 1.0),
)
@example([5e-324, 1.0], "log", 1.0, 1.0)
@settings(max_examples=60, deadline=None)
def test_the_way_back_is_exact(values: list[float], kind: Any, scale: float, p: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    transform = Transform(kind, scale, p)
    torch.testing.assert_close(transform.inverse(transform.forward(x)), x, rtol=1e-9, atol=1e-9)
    y = transform.forward(x)
    normal = (x == 0) | (x.abs() > 1e-300)  # below that, processors may flush to 0
    assert torch.equal(y[normal].sign(), x[normal].sign())
    order = x.argsort()
    assert (y[order].diff() >= 0).all()


def test_closed_forms_and_the_least_value() -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 8.0])
    torch.testing.assert_close(Transform("log", 2.0).forward(x), (1 + x / 2).log())
    torch.testing.assert_close(Transform("power", 2.0, 0.5).forward(x), (x / 2).sqrt())
    negative = torch.tensor([-0.3, 0.0, 0.3])
    assert torch.equal(LOG.inverse(negative)[:2], torch.zeros(2))
    assert (Transform("log").inverse(negative)[0] < 0).all()
    with refused("A transform has scale 0 and exponent 0.5; make both positive."):
        Transform("log", scale=0.0)
    with refused("The transform 'cube' is unknown; it can be log or power."):
        Transform("cube")  # type: ignore[arg-type]
    with refused("A transform has spread 0.5 and lower None: make the spread positive, and give"):
        Transform("log", spread=0.5)
    with refused("A transform has spread -1 and lower 0.0"):
        Transform("log", lower=0.0, spread=-1.0)


Made = tuple[Path, np.ndarray, np.ndarray]


def seasonal_cube(
    path: Path, calendar: str = "noleap", hole: bool = False, swing: float = 0.0
) -> Made:
    """A cube whose cycle (time, y, x) is known, and white noise around it of known spread.

    Its variance swings by so much of itself with the first harmonic of the year.
    """
    generator = np.random.default_rng(0)
    length = {"360_day": 360}.get(calendar, 365)
    times = xr.date_range("2001-01-01", periods=YEARS * length, calendar=calendar, use_cftime=True)
    angle = 2 * np.pi * np.arange(YEARS * length) / length
    a, b, c = generator.normal(size=(3, 4, 6))
    cycle = 10 * a + 3 * b * np.cos(angle)[:, None, None] + c * np.sin(2 * angle)[:, None, None]
    spread = generator.uniform(0.5, 2, (4, 6))
    noise = np.sqrt(1 + swing * np.sin(angle))[:, None, None] * generator.normal(size=cycle.shape)
    ta = (280 + cycle + spread * noise).astype(np.float32)
    if hole:
        ta[::5, 1, 1] = np.nan
        ta[:, 2, 2] = np.nan
    pr = np.exp(generator.normal(size=cycle.shape)).astype(np.float32)
    dataset = xr.Dataset(
        {"pr": (("time", "lat", "lon"), pr), "ta": (("time", "lat", "lon"), ta)},
        {"time": times, "lat": [60.0, 20.0, -20.0, -60.0], "lon": np.arange(0, 360, 60.0)},
    )
    dataset.to_zarr(path, consolidated=False, encoding={"ta": {"chunks": (100, 4, 6)}})
    return path, 280 + cycle, spread


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_the_seasonal_cycle_that_is_there_is_found(tmp_path: Path, calendar: str) -> None:
    path, cycle, spread = seasonal_cube(tmp_path / "a.zarr", calendar)
    data = ClimateCubeDataModule(
        path, ["ta", "pr"], seasonal={"ta": 2}, splits={"train": 1.0}, in_memory=True
    )
    normalisation = data.normalisation
    zero = torch.zeros(len(cycle), 2, 4, 6)
    found = normalisation.denormalise(zero, data.cube.time_numbers)[:, 0]
    # Coefficients of an average over n days have a standard error of spread sqrt(2 / n).
    error = (found - torch.from_numpy(cycle)).abs().amax(dim=0)
    assert (error < 5 * torch.from_numpy(spread) * (5 / len(cycle)) ** 0.5).all()
    overall = float(np.sqrt((spread**2).mean()))
    assert normalisation.std[0].item() == pytest.approx(overall, rel=0.02)
    frames, _ = data.read_run("train", 0)
    assert abs(frames[:, 0].mean()) < 1e-4
    assert float(frames[:, 0].std()) == pytest.approx(1, abs=1e-3)
    # The other channel is left alone.
    plain = ClimateCubeDataModule(path, ["pr"], splits={"train": 1.0})
    torch.testing.assert_close(frames[:, 1:], plain.read_run("train", 0)[0])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"seasonal": 2},
        {"standardise": "pixel"},
        {"seasonal": 2, "standardise": "season", "transforms": {"pr": LOG}},
        {"seasonal": {"ta": 1}, "standardise": "pixel", "transforms": {"pr": LOG}},
        {"transforms": {"pr": LOG, "ta": Transform("power", 100.0, 0.3)}},
    ],
)
def test_batches_windows_and_the_way_back(
    tmp_path: Path, in_memory: bool, options: dict[str, Any]
) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    data = ClimateCubeDataModule(
        path, ["pr", "ta"], in_memory=in_memory, window_length=3, batch_size=16, **options
    )
    frames, times = data.read_window("test", 17, 5)
    start = int(np.flatnonzero(data.cube.times == times[0])[0])
    truth = torch.from_numpy(data.cube.read(slice(0, 1), slice(start, start + 5))[0])
    back = data.normalisation.denormalise(frames, times)
    torch.testing.assert_close(back, truth, rtol=2e-5, atol=1e-5)
    batch = next(iter(data.train_dataloader()))
    windows = data.normalisation.denormalise(batch["frames"], batch["time"])
    first = np.searchsorted(data.cube.time_numbers, batch["time"][:, 0].numpy())
    for window, at in zip(windows, first.tolist(), strict=True):
        truth = torch.from_numpy(data.cube.read(slice(0, 1), slice(at, at + 3))[0])
        torch.testing.assert_close(window, truth, rtol=2e-5, atol=1e-5)
    frames, _ = data.read_run("train", 0)
    assert (frames.mean(dim=(0, 2, 3)).abs() < 0.02).all()
    spread = frames.std(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(2), rtol=0.01, atol=0.01)
    if "standardise" in options:
        torch.testing.assert_close(frames.std(dim=0), torch.ones(2, 4, 6), rtol=0.01, atol=0.01)
        assert (frames.mean(dim=0).abs() < 0.02).all()


def test_the_seasonal_cycle_of_the_variance_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, spread = seasonal_cube(tmp_path / "a.zarr", swing=0.6)

    def fitted(**options: Any) -> ClimateCubeDataModule:
        given = {"seasonal": {"ta": 2}, "standardise": "season", "splits": {"train": 1.0}}
        return ClimateCubeDataModule(path, ["ta", "pr"], **(given | options))

    data = fitted()
    frames, times = data.read_run("train", 0)
    angle = 2 * np.pi * (np.arange(len(frames)) % 365) / 365
    truth = spread**2 * (1 + 0.6 * np.sin(angle))[:, None, None]
    width = data.normalisation.denormalise(torch.ones_like(frames), times)
    width -= data.normalisation.denormalise(torch.zeros_like(frames), times)
    # A coefficient of n squares of a Gaussian has a standard error of 2 / sqrt(n) of the variance.
    error = (width[:, 0].square() / torch.from_numpy(truth) - 1).abs().amax()
    assert error < 5 * 2 * (5 / len(frames)) ** 0.5 / (1 - 0.6)
    for season in (angle < 1, abs(angle - np.pi) < 0.5, angle > 5.3):
        of_it = frames[season, 0].std(dim=0)
        error = (of_it - 1).abs().amax()
        assert error < 5 * (1 / (2 * season.sum())) ** 0.5 + 0.02, error
    # Without harmonics a channel has the same variance all year, that of each pixel.
    by_pixel = fitted(seasonal={"ta": 2}, standardise="pixel").read_run("train", 0)[0]
    torch.testing.assert_close(frames[:, 1], by_pixel[:, 1], rtol=1e-4, atol=1e-4)
    # And in pieces it is the same.
    monkeypatch.setattr("data_modules.climatology.SPAN_BYTES", 10_000)
    climatology, pieces = data.climatology, fitted().climatology
    assert climatology is not None
    assert pieces is not None
    torch.testing.assert_close(pieces.variance, climatology.variance, rtol=1e-5, atol=1e-6)
    many = fitted(seasonal=5).climatology
    assert many is not None
    assert many.variance is not None
    assert many.cycle.shape[0] == 11
    assert many.variance.shape[0] == 7


def test_a_variance_that_would_vanish_is_kept_from_it() -> None:
    variance = torch.zeros(3, 1, 1, 2)
    variance[:, 0, 0, 0] = torch.tensor([4.0, 4.0, 0.0])  # 0 in the middle of the year
    variance[0, 0, 0, 1] = 1e-6  # it never rains
    law = Normalisation([0.0], [2.0], variance=variance, calendar="360_day")
    times = np.array([0.0, 180.0]) * 86400
    found = law.denormalise(torch.ones(2, 1, 1, 2), times)[:, 0, 0]
    expected = torch.tensor([[8**0.5, 0.2], [(0.15 * 4) ** 0.5, 0.2]])
    torch.testing.assert_close(found, expected)
    assert law.is_seasonal
    assert not law.is_plain
    with refused("Anomalies against a seasonal cycle are made of frames and their times; give"):
        law.normalise(torch.ones(1, 1, 2))


def test_missing_values_take_no_part(tmp_path: Path) -> None:
    path, cycle, spread = seasonal_cube(tmp_path / "a.zarr", hole=True)
    whole, _, _ = seasonal_cube(tmp_path / "b.zarr")
    options: dict[str, Any] = {"seasonal": 2, "splits": {"train": 1.0}, "standardise": "season"}
    data = ClimateCubeDataModule(path, ["ta"], missing="fill", **options)
    beside = ClimateCubeDataModule(whole, ["ta"], **options)
    climatology, truth = data.climatology, beside.climatology
    assert climatology is not None
    assert truth is not None
    mine, other = (
        c.cycle[:, 0] + torch.tensor([m.statistics.mean[0], 0, 0, 0, 0])[:, None, None]
        for c, m in ((climatology, data), (truth, beside))
    )
    full = torch.ones(4, 6, dtype=torch.bool)
    full[1, 1] = full[2, 2] = False
    torch.testing.assert_close(mine[:, full], other[:, full], rtol=1e-4, atol=1e-3)
    # A fifth of the days are missing: another fit, within its error.
    error = (mine[:, 1, 1] - other[:, 1, 1]).abs()
    assert (error < 4 * spread[1, 1] * (2 / (0.8 * len(cycle))) ** 0.5).all()
    assert (mine[1:, 2, 2] == 0).all()  # where nothing is known there is no cycle
    frames = data.read_run("train", 0)[0]
    assert (frames[::5, 0, 1, 1] == 0).all()
    assert torch.isfinite(frames).all()
    there = torch.arange(len(frames)) % 5 != 0
    assert frames[there, 0, 1, 1].std().item() == pytest.approx(1, abs=0.02)


def test_the_fit_does_not_depend_on_how_the_cube_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    data = ClimateCubeDataModule(path, ["ta"], seasonal=3)
    once = data.climatology
    monkeypatch.setattr("data_modules.climatology.SPAN_BYTES", 10_000)
    pieces = ClimateCubeDataModule(path, ["ta"], seasonal=3).climatology
    assert once is not None
    assert pieces is not None
    torch.testing.assert_close(pieces.cycle, once.cycle, rtol=1e-5, atol=1e-6)
    assert pieces.std == pytest.approx(once.std, rel=1e-9)
    # Against numpy's own least squares on all values at once.
    start, stop = data.split("train").runs[0]
    values = data.cube.read(slice(0, 1), slice(start, stop))[0, :, 0].reshape(stop - start, -1)
    basis = seasonal_basis(data.cube.time_numbers[start:stop], "noleap", 3)
    expected = np.linalg.lstsq(basis, values - data.statistics.mean[0], rcond=None)[0]
    np.testing.assert_allclose(once.cycle[:, 0].reshape(7, -1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("standardise", ["pixel", "season"])
def test_a_checkpoint_holds_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standardise: str
) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    options: dict[str, Any] = {
        "seasonal": 2,
        "standardise": standardise,
        "transforms": {"pr": LOG},
        "forcing": ["day_of_year"],
        "static": ["latitude"],
    }
    data = ClimateCubeDataModule(path, **options)
    description, state = data.description(), data.state_dict()
    file = io.BytesIO()
    torch.save({"description": description, "state": state}, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    frames, times = data.read_window("test", 3, 4)
    again = Normalisation(**read["description"]["normalisation"])
    expected = data.normalisation.denormalise(frames, times)
    assert torch.equal(again.denormalise(frames, times), expected)

    def anew(*_: Any) -> None:
        raise AssertionError("the cube was read through again")

    monkeypatch.setattr(climate_cube, "compute_statistics", anew)
    monkeypatch.setattr(climate_cube, "fit_climatology", anew)
    restored = ClimateCubeDataModule(path, **options)
    restored.load_state_dict(read["state"])
    assert torch.equal(restored.read_window("test", 3, 4)[0], frames)
    for key, other in (("seasonal", 1), ("transforms", {}), ("standardise", "variable")):
        with refused(f"The checkpoint was trained with {key} "):
            ClimateCubeDataModule(path, **(options | {key: other})).load_state_dict(
                copy.deepcopy(state)
            )


def test_nothing_changes_without_them(tmp_path: Path) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    data = ClimateCubeDataModule(path)
    assert set(data.state_dict()) == {"variables", "statistics"}
    assert set(data.description()["normalisation"]) == {"mean", "std"}
    assert "conditioning" not in data.description()
    assert data.normalisation.is_plain


def test_from_a_configuration(tmp_path: Path) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ClimateCubeDataModule, "data")
    given = {"path": str(path), "transforms": {"pr": {"kind": "log", "scale": 0.5, "lower": 0.0}}}
    cube = parser.instantiate(parser.parse_object({"data": given | {"seasonal": {"ta": 2}}})).data
    assert cube.transforms == [LOG, None]


def test_rain_stays_rain(tmp_path: Path) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    data = ClimateCubeDataModule(path, ["pr"], transforms={"pr": LOG})
    noise = 3 * torch.randn(50, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    assert (data.normalisation.denormalise(noise) >= 0).all()
    raw = ClimateCubeDataModule(path, ["pr"]).read_run("train", 0)[0]
    frames = data.read_run("train", 0)[0]
    skewness = [((x - x.mean()) ** 3).mean() / x.std() ** 3 for x in (raw, frames)]
    assert abs(skewness[1]) < 0.3 * abs(skewness[0])


@pytest.mark.parametrize("in_memory", [True, False])
def test_dry_days_are_spread_below_zero_and_come_back(tmp_path: Path, in_memory: bool) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    cube = xr.load_dataset(path, consolidated=False)
    cube["pr"] = cube["pr"].where(cube["pr"] > 1, 0.0)  # half of the days are dry
    cube.to_zarr(path, mode="w", consolidated=False)
    wet, spread = torch.from_numpy(cube["pr"].values) > 0, Transform("power", lower=0.0, spread=0.7)

    def frames(transform: Transform) -> tuple[torch.Tensor, ClimateCubeDataModule]:
        given: dict[str, Any] = {"transforms": {"pr": transform}, "standardise": "pixel"}
        data = ClimateCubeDataModule(
            path, ["ta", "pr"], splits={"train": 1.0}, in_memory=in_memory, **given
        )
        return data.read_run("train", 0)[0], data

    plain, _ = frames(Transform("power", lower=0.0))
    found, data = frames(spread)
    lowered = plain - found
    assert not lowered[:, 0].any()  # the other variable
    assert not lowered[:, 1][wet].any()
    below = lowered[:, 1][~wet] / 0.7
    half_normal = [0.12566, 0.67449, 1.64485]  # quantiles of |N(0, 1)| at 0.1, 0.5 and 0.9
    quantiles = torch.quantile(below[:100000], torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor(half_normal), atol=0.03, rtol=0)
    neighbours = torch.stack([below[:-1], below[1:]])
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 0.03  # noise: nothing says what comes next
    back = data.normalisation.denormalise(found, data.cube.time_numbers)
    assert torch.equal(back[:, 1] == 0, ~wet)
    torch.testing.assert_close(back[:, 1], torch.from_numpy(cube["pr"].values))
    # The time decides, not the order of reading: a window has the frames of the run.
    batch = next(iter(data.train_dataloader()))
    at = torch.searchsorted(torch.from_numpy(data.cube.time_numbers), batch["time"])
    assert torch.equal(batch["frames"], found[at])


def test_what_cannot_be(tmp_path: Path) -> None:
    path, _, _ = seasonal_cube(tmp_path / "a.zarr")
    with refused("transforms names 'prr' (did you mean 'pr'?), which is not among the variables"):
        ClimateCubeDataModule(path, transforms={"prr": LOG}).setup()
    with refused("seasonal names 'tas' (did you mean 'ta'?), which is not among the variables"):
        ClimateCubeDataModule(path, seasonal={"tas": 1}).setup()
    with refused("seasonal is -1; give 0 or more harmonics."):
        ClimateCubeDataModule(path, seasonal=-1).normalisation  # noqa: B018
    with refused("standardise is 'season', but seasonal is 0: no variance follows the year; give"):
        ClimateCubeDataModule(path, standardise="season").normalisation  # noqa: B018
    with refused("standardise is 'all'; it can be 'variable', 'pixel' or 'season'."):
        ClimateCubeDataModule(path, standardise="all")  # type: ignore[arg-type]
    with refused("What is normal at each pixel cannot be cropped with the frames; drop crop, or"):
        ClimateCubeDataModule(path, seasonal=1, crop=(2, 2)).setup()
    short = {"train": ["2001-01", "2001-03"]}
    with refused("covers too little of the year for its seasonal cycle to be fitted; give it"):
        ClimateCubeDataModule(path, seasonal=2, splits=short).normalisation  # noqa: B018
    with refused("Anomalies against a seasonal cycle are made of frames and their times; give"):
        ClimateCubeDataModule(path, seasonal=1).normalisation.denormalise(torch.zeros(2, 4, 6))


def test_a_cube_without_a_calendar_has_no_seasons(make_cube: Any) -> None:
    with refused("has times without a calendar, so that there is no seasonal cycle to subtract"):
        ClimateCubeDataModule(make_cube(), seasonal=1).normalisation  # noqa: B018
