"""Quantile maps against numpy and closed forms, in rollouts and by the verb."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import calendar_world
import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from toy_world import LinearSampler

from data_modules.calendars import as_numbers, year_fraction
from data_modules.transforms import Transform
from dyngen import calibrate as verb
from dyngen.evaluation import fitting
from dyngen.rollout import (
    FrameNoise,
    Sampling,
    frame_sampler,
    open_rollout,
    rollout,
    weights_digest,
)
from dyngen.rollout.calibration import (
    CalibratedFrameSampler,
    Calibration,
    QuantileMap,
    Seasons,
    normal_at,
    read_calibration,
)

SHAPE = (2, 3, 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_is_numpys_interpolation_in_each_cell() -> None:
    source, target = (normal(5, *SHAPE, seed=s).sort(0).values for s in (1, 2))
    x = source[0] + (source[-1] - source[0]) * torch.rand(7, *SHAPE)
    found = QuantileMap(source, target)(x)
    for cell in np.ndindex(*SHAPE):
        of_cell = (slice(None), *cell)
        expected = np.interp(x[of_cell], source[of_cell], target[of_cell])
        np.testing.assert_allclose(found[of_cell], expected, atol=1e-5)


def test_has_slope_1_beyond_its_knots() -> None:
    source, target = (normal(5, *SHAPE, seed=s).sort(0).values for s in (1, 2))
    mapped = QuantileMap(source, target)
    torch.testing.assert_close(mapped(source[-1] + 3), target[-1] + 3)
    torch.testing.assert_close(mapped(source[0] - 3), target[0] - 3)


def test_knots_are_means_of_parts_that_are_small_at_the_ends() -> None:
    frames = normal(100, *SHAPE)
    found = QuantileMap.fit(frames, 2 * frames, knots=4)
    ends = [0, 15, 50, 85, 100]  # of 100 sin^2 of 0, 22.5, 45, 67.5 and 90 degrees
    ordered = np.sort(frames.numpy(), axis=0)
    for knot, (first, last) in enumerate(pairwise(ends)):
        np.testing.assert_allclose(found.source[knot], ordered[first:last].mean(0), atol=1e-6)
    torch.testing.assert_close(found.target, 2 * found.source)
    as_many = QuantileMap.fit(frames[:4], frames[:4], knots=4)  # each part has one
    np.testing.assert_allclose(as_many.source, np.sort(frames[:4].numpy(), axis=0))


def test_forecasts_get_the_distribution_of_what_came_true() -> None:
    truths = normal(20_000, 1, 2, 2).exp()  # as rain: positive, with a heavy tail
    forecasts = 0.3 + 0.8 * normal(20_000, 1, 2, 2, seed=1)
    mapped = QuantileMap.fit(forecasts, truths)(forecasts)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        ratio = mapped.quantile(share, 0) / truths.quantile(share, 0)
        assert (ratio - 1).abs().max() < 0.06
    assert (mapped.mean(0) / truths.mean(0) - 1).abs().max() < 0.02


def test_values_that_are_all_the_same_stay_finite() -> None:
    dry = torch.zeros(40, *SHAPE)
    mapped = QuantileMap.fit(dry, dry + 1, knots=4)
    torch.testing.assert_close(mapped(torch.zeros(3, *SHAPE)), torch.ones(3, *SHAPE))


def test_seasons_follow_the_year() -> None:
    # Forecasts are off by the sine of the time of the year; over two months a chord replaces it.
    phases = torch.arange(4800) / 4800
    off = torch.sin(2 * torch.pi * phases).view(-1, 1, 1, 1)
    truths = normal(4800, *SHAPE)
    seasons = Seasons.fit(truths + off, truths, phases, knots=8)
    for phase in (0.0, 0.2, 0.25, 0.7, 0.99):
        error = seasons.at(phase)(torch.zeros(SHAPE)) + np.sin(2 * np.pi * phase)
        assert error.abs().max() < 0.25
        assert abs(error.mean()) < 0.1
    assert len(Seasons.fit(truths + off, truths, None, knots=8).maps) == 1


class Wrong:
    """x' = 0.6 x + 0.2 + 0.5 n, forecasts of a process that has mean 0 and variance 1."""

    history_length, block_length = 1, 1
    diagnostic_names: tuple[str, ...] = ()

    def __call__(self, history: Tensor, noise: Any, **conditioning: Tensor) -> Any:
        last = history[:, -1]
        return (0.6 * last + 0.2 + 0.5 * noise(last))[:, None], {}

    def description(self) -> dict[str, Any]:
        return {"name": "wrong"}


class Still(Wrong):
    """x' = x."""

    def __call__(self, history: Tensor, noise: Any, **conditioning: Tensor) -> Any:
        return history[:, -1:], {}


def test_the_time_of_the_year_is_read_from_the_context() -> None:
    maps = [
        QuantileMap(torch.stack([-o, o]), torch.stack([-o, o]) + m)
        for m in range(12)
        for o in [torch.full(SHAPE, 9.0)]
    ]
    given = Calibration("file", Seasons(maps), "weights", {}, channel=1)
    calibrated = CalibratedFrameSampler(Still(), given)
    angles = 2 * torch.pi * torch.tensor([0.0, 3.5, 11.5]) / 12
    context = torch.stack([0 * angles, angles.cos(), angles.sin()], 1)[..., None, None]
    history = torch.zeros(3, 1, *SHAPE)
    frames, _ = calibrated(history, FrameNoise(0, [(i, 0) for i in range(3)], 0), context=context)
    assert frames[:, 0, 0, 0, 0].tolist() == pytest.approx([0, 3.5, 5.5], abs=1e-4)  # 5.5 of 11, 0


def test_what_is_normal_is_added_before_the_map_and_subtracted_after_it() -> None:
    # 3 + cos of the year; values, not anomalies, are halved.
    ends = torch.full(SHAPE, 9.0)
    halved = QuantileMap(torch.stack([-ends, ends]), torch.stack([-ends, ends]) / 2)
    of_year = torch.tensor([3.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, *SHAPE)
    given = Calibration("file", Seasons([halved]), "weights", {}, channel=0, normal=of_year)
    angles = 2 * torch.pi * torch.tensor([0.0, 0.25, 0.4])
    context = torch.stack([angles.cos(), angles.sin()], 1)[..., None, None]
    history, noise = normal(3, 1, *SHAPE), FrameNoise(0, [(i, 0) for i in range(3)], 0)
    frames, _ = CalibratedFrameSampler(Still(), given)(history, noise, context=context)
    level = (3 + angles.cos()).view(3, 1, 1, 1, 1)
    torch.testing.assert_close(frames, (history + level) / 2 - level)
    assert given.digest != replace(given, normal=2 * of_year).digest


def test_rain_keeps_its_upper_end_where_its_season_begins() -> None:
    # In the wet half of the year 5.5 to 6.5, never more; before, less on most days, of any size.
    phases = torch.arange(2400) / 2400
    wet = (phases >= 0.5).view(-1, 1, 1, 1)
    truths = torch.where(wet, 6 + normal(2400, *SHAPE).clamp(-1, 1) / 2, normal(2400, *SHAPE).abs())
    forecasts = truths + 0.3 * normal(2400, *SHAPE, seed=1)
    cycle = torch.where(wet, 6.0, 0.8)
    of_values = Seasons.fit(forecasts, truths, phases)
    of_anomalies = Seasons.fit(forecasts - cycle, truths - cycle, phases)
    late = slice(1200, 1300)  # the first days of the wet season
    values = of_values.at(0.5)(forecasts[late])
    anomalies = of_anomalies.at(0.5)(forecasts[late] - cycle[late]) + cycle[late]
    assert values.max() < 6.6  # 6.5 in truth
    assert anomalies.max() > 7


def calibration(quantiles: QuantileMap) -> Calibration:
    return Calibration("file", Seasons([quantiles]), "weights", {})


def test_a_calibrated_rollout_has_the_true_climate_and_an_uncalibrated_one_has_not() -> None:
    # Uncalibrated: mean 0.2 / (1 - 0.6), variance 0.25 / (1 - 0.36).
    truths, noise = normal(10_000, 1, 3, 3), normal(10_000, 1, 3, 3, seed=1)
    quantiles = QuantileMap.fit(0.6 * truths + 0.2 + 0.5 * noise, truths)
    starts = normal(300, 1, 1, 3, 3, seed=2)

    def climate(sampler: Any) -> tuple[float, float]:
        frames = rollout(sampler, starts, members=1, steps=40, seed=0).frames[:, :, 20:]
        return frames.mean().item(), frames.var().item()

    mean, variance = climate(Wrong())
    assert mean == pytest.approx(0.5, abs=0.02)
    assert variance == pytest.approx(0.25 / 0.64, abs=0.02)
    mean, variance = climate(CalibratedFrameSampler(Wrong(), calibration(quantiles)))
    assert mean == pytest.approx(0, abs=0.03)
    assert variance == pytest.approx(1, abs=0.03)


def test_a_sampler_of_blocks_is_mapped_frame_by_frame() -> None:
    sampler = LinearSampler(0.9, block_length=3)
    source = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 2, 4, 5).contiguous()
    given = calibration(QuantileMap(source, 2 * source))
    calibrated = CalibratedFrameSampler(sampler, given)
    assert (calibrated.block_length, calibrated.history_length) == (3, 2)
    assert calibrated.diagnostic_names == ("spread",)
    assert calibrated.description() == {**sampler.description(), "calibration": given.digest}
    frames = rollout(calibrated, normal(3, 2, 2, 4, 5), members=2, steps=7, seed=0).frames
    assert frames.shape == (3, 2, 7, 2, 4, 5)
    first = rollout(sampler, normal(3, 2, 2, 4, 5), members=2, steps=3, seed=0).frames
    inside = first.abs() < 1
    torch.testing.assert_close(frames[:, :, :3][inside], 2 * first[inside])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Quantiles of shape"):
        QuantileMap(torch.zeros(3, *SHAPE), torch.zeros(4, *SHAPE))
    with pytest.raises(ValueError, match="20 forecasts and 50 frames that came true have no 32"):
        QuantileMap.fit(torch.zeros(20, *SHAPE), torch.zeros(50, *SHAPE))


class Halved(calendar_world.Calendar):
    """x' = 0.5 x + 0.3, which a map that knows both distributions makes x' = x."""

    def estimate(self, x: Tensor, sigma: Tensor, history: Tensor, **context: Tensor) -> Tensor:
        return 0.5 * history[:, -1] + 0.3


SAMPLING = {"steps": 1, "sampler": "ddim"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cube of days that have nothing to do with each other, and the model that halves them."""
    monkeypatch.setattr(calendar_world, "Calendar", Halved)
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "noleap", days=3000)
    data = calendar_world.data_of(cube)
    known = {"cube": data.description()}
    monkeypatch.setattr(verb, "read_checkpoint", lambda path: known)

    def forecast(out: str, calibration: str | None = None, **changes: Any) -> Path:
        usual = {"initial_states": 600, "members": 1, "steps": 1, "split": "train"}
        sampling = Sampling(**SAMPLING, calibration=calibration)
        changes = {"normalised": changes.get("steps", 1) == 1} | changes
        calendar_world.roll_out(cube, tmp_path / out, sampling=sampling, **usual | changes)
        return tmp_path / out

    return cube, forecast, data.normalisation


def test_the_verb_makes_what_the_rollout_reads(world: Any, tmp_path: Path) -> None:
    cube, forecast, normalisation = world
    made = tmp_path / "new" / "calibration.npz"
    verb.calibrate(forecast("day.zarr"), str(cube), made, knots=10)
    free = forecast("free.zarr", str(made), initial_states=50, steps=2)
    run = open_rollout(free)
    frames = np.stack([run[name].values for name in "uv"], -3)  # (initial, 1, lead, C, y, x)
    mapped = normalisation.normalise(torch.from_numpy(frames))
    starts = np.searchsorted(*(t.astype(str) for t in times(cube, run)))
    begun = open_cube(cube, starts, normalisation)
    last = mapped[:, 0, -1]
    assert last.mean().abs() < 0.1  # 0.45 without
    assert last.std() == pytest.approx(begun.std().item(), abs=0.15)  # 0.25 without
    assert np.corrcoef(last.flatten(), begun.flatten())[0, 1] > 0.8
    plain = open_rollout(forecast("plain.zarr", initial_states=50, steps=2))
    frames = np.stack([plain[name].values for name in "uv"], -3)
    forgotten = normalisation.normalise(torch.from_numpy(frames))[:, 0, -1]
    assert forgotten.mean() == pytest.approx(0.45, abs=0.05)


def times(cube: Path, run: Any) -> tuple[np.ndarray, np.ndarray]:
    with xr.open_zarr(cube, consolidated=False) as data:
        return data.time.values, run.initial_time.values


def open_cube(cube: Path, frames: np.ndarray, normalisation: Any) -> Tensor:
    with xr.open_zarr(cube, consolidated=False) as data:
        values = np.stack([data[name].values[frames] for name in "uv"], 1)
    return normalisation.normalise(torch.from_numpy(values))


def test_the_verb_maps_values_of_a_variable_with_a_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = calendar_world.ClimateCubeDataModule
    of_world = {"forcing": ["day_of_year"], "seasonal": 2, "transforms": {"v": Transform("log")}}

    def data_of(path: Path) -> Any:
        return usual(path, splits={"train": 0.9, "test": 0.1}, window_length=2, **of_world)

    monkeypatch.setattr(calendar_world, "data_of", data_of)
    monkeypatch.setattr(calendar_world, "Calendar", Halved)
    plain = calendar_world.write_cube(tmp_path / "plain.zarr", "noleap", days=3000)
    with xr.open_zarr(plain, consolidated=False) as known:
        wave = np.cos(2 * np.pi * np.arange(3000) / 365).astype(np.float32)
        seasonal = known.load().assign(v=known["v"] + wave[:, None, None])
    cube = tmp_path / "cube.zarr"
    seasonal.drop_encoding().to_zarr(cube, zarr_format=3, consolidated=False)
    data = data_of(cube)
    monkeypatch.setattr(verb, "read_checkpoint", lambda path: {"cube": data.description()})
    changes = {"initial_states": 2400, "members": 1, "steps": 1, "split": "train"}
    out, made = tmp_path / "day.zarr", tmp_path / "calibration.npz"
    sampling = Sampling(**SAMPLING)
    calendar_world.roll_out(cube, out, sampling=sampling, **changes, normalised=True)
    verb.calibrate(out, str(cube), made, knots=10)
    given = read_calibration(str(made))
    assert given.normal is not None
    assert given.normal[:, 0].abs().max() == 0
    assert given.normal[1:, 1].square().sum(0).sqrt().min() > 0.4
    times = data.cube.times[[40, 2000]]
    level = torch.stack(
        [normal_at(given.normal, p) for p in year_fraction(as_numbers(times), "noleap")]
    )
    none = data.normalisation.denormalise(torch.zeros(2, *SHAPE), times)
    values = (level * data.normalisation.std)[:, 1]
    torch.testing.assert_close(values.sign() * values.abs().expm1(), none[:, 1])
    # Forecasts of true states have the spread of these again; of v nearly so, in whose two months
    # together the season counts as spread.
    run = open_rollout(out, normalised=True)
    frames = torch.from_numpy(np.stack([run[name].values for name in "uv"], -3))[:, 0]
    angle = (
        2
        * torch.pi
        * torch.from_numpy(year_fraction(as_numbers(run["time"].values[:, 0]), "noleap"))
    )
    sampler = CalibratedFrameSampler(Still(), given)
    context = torch.stack([angle.cos(), angle.sin()], 1)[..., None, None]
    noise = FrameNoise(0, [(i, 0) for i in range(len(frames))], 0)
    mapped, _ = sampler(frames, noise, context=context)
    assert frames.std((0, 1, 3, 4)).max() < 0.55
    torch.testing.assert_close(mapped.std((0, 1, 3, 4)), torch.ones(2), atol=0.1, rtol=0)
    assert mapped.mean((0, 1, 3, 4)).abs().max() < 0.02


def test_what_cannot_be_calibrated_is_refused(world: Any, tmp_path: Path) -> None:
    cube, forecast, _ = world
    out = tmp_path / "calibration.npz"
    physical = forecast("physical.zarr", initial_states=40, normalised=False)
    with pytest.raises(ValueError, match=r"physical\.zarr is in physical units: .* --normalised t"):
        verb.calibrate(physical, str(cube), out)
    two = forecast("two.zarr", initial_states=40, steps=2, normalised=True)
    with pytest.raises(ValueError, match=r"two\.zarr holds no forecasts of one step"):
        verb.calibrate(two, str(cube), out)
    day = forecast("day.zarr", initial_states=400)
    with pytest.raises(ValueError, match=r"within a month, too few for 90 knots"):
        verb.calibrate(day, str(cube), out, knots=90)
    verb.calibrate(day, str(cube), out, knots=10)
    again = forecast("again.zarr", str(out), initial_states=400)
    with pytest.raises(ValueError, match=r"again\.zarr was calibrated already"):
        verb.calibrate(again, str(cube), out)


def test_a_calibration_of_something_else_is_refused(tmp_path: Path) -> None:
    model = Halved(None, 0.0)
    quantiles = QuantileMap(normal(3, *SHAPE), normal(3, *SHAPE))
    path = str(tmp_path / "calibration.npz")
    sampling = Sampling(**SAMPLING, calibration=path)
    with pytest.raises(ValueError, match=r"calibration\.npz does not exist"):
        frame_sampler(model, sampling)
    Path(path).write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"calibration\.npz is not a calibration"):
        frame_sampler(model, sampling)
    plain = frame_sampler(model, Sampling(**SAMPLING))
    made = Calibration(path, Seasons([quantiles]), weights_digest(model), plain.description())
    made.write()
    assert read_calibration(path).digest == made.digest
    seasonal = replace(made, normal=normal(3, *SHAPE))
    seasonal.write()
    assert read_calibration(path).digest == seasonal.digest != made.digest
    made.write()
    assert frame_sampler(model, sampling).description()["calibration"] == made.digest
    with pytest.raises(ValueError, match=r"with clip = None, not 3\.0: forecast one step"):
        frame_sampler(model, Sampling(**SAMPLING, calibration=path, clip=3.0))
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(ValueError, match="was fitted to forecasts of another model"):
        frame_sampler(model, sampling)


def test_a_normalised_rollout_is_the_physical_one_in_other_units(world: Any) -> None:
    cube, forecast, normalisation = world
    usual = {"initial_states": 5, "members": 2, "steps": 3}
    physical = open_rollout(forecast("physical.zarr", **usual, normalised=False))
    made = forecast("normalised.zarr", **usual, normalised=True)
    run = open_rollout(made, normalised=True)
    frames, expected = (np.stack([r[name].values for name in "uv"], -3) for r in (run, physical))
    expected = normalisation.normalise(torch.from_numpy(expected))
    torch.testing.assert_close(torch.from_numpy(frames), expected, rtol=1e-4, atol=1e-4)
    assert run["u"].attrs["units"] == "1"
    xr.testing.assert_equal(run.coords.to_dataset(), physical.coords.to_dataset())
    for opened in (
        open_rollout,
        lambda path: fitting(str(path), run, calendar_world.data_of(cube)),
    ):
        with pytest.raises(ValueError, match=r"is in normalised units: .* --normalised false"):
            opened(made)
    with pytest.raises(ValueError, match="was started with normalised = true"):
        forecast("normalised.zarr", **usual, normalised=False)
