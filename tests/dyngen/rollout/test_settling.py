"""Shifts that settle where the mean of a free run is right, against closed forms."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import calendar_world
import numpy as np
import pytest
import ranks
import torch
import xarray as xr
from torch import Tensor

from data_modules.along import Along
from data_modules.transforms import Transform
from dyngen import settle as verb
from dyngen.rollout import Processes, Sampling, open_rollout
from dyngen.rollout.calibration import read_calibration
from dyngen.rollout.settling import FAST, LARGEST, RATES, SPIN_UP, Settling

SHAPE = (1, 2, 3)


@pytest.mark.parametrize("memory", [0.3, 0.6, 0.9])
def test_settles_where_the_mean_is_right_whatever_the_memory(memory: float) -> None:
    # x' = a x + b + noise has its mean at 0 for a shift of -b, and for no other.
    generator = torch.Generator().manual_seed(0)
    pull = torch.linspace(-0.05, 0.05, 6).view(SHAPE)
    x, settling = torch.zeros(32, *SHAPE), Settling.start(SHAPE, 1500)
    frames = []
    for _ in range(settling.steps):
        noise = torch.randn(x.shape, generator=generator)
        x = memory * x + pull + (1 - memory**2) ** 0.5 * noise + settling.shift
        settling.follow(x.mean(0))
        frames.append(x.mean(0))
    torch.testing.assert_close(settling.settled, -pull, atol=0.012, rtol=0)
    late = torch.stack(frames[750:]).mean(0)
    assert late.abs().max() < 0.06  # 0.07, 0.13 and 0.5 without
    assert (settling.settled - settling.shift).abs().max() > 0  # a mean, not the last


def test_rates_are_those_that_are_said() -> None:
    settling = Settling.start(SHAPE, 900)
    ones, shifts = torch.ones(SHAPE), []
    for _ in range(900):
        settling.follow(0.1 * ones)
        shifts.append(settling.shift.mean().item())
    expected = -0.1 * np.cumsum(np.repeat(RATES, [SPIN_UP, FAST - SPIN_UP, 900 - FAST]))
    np.testing.assert_allclose(shifts, expected, atol=1e-5)
    assert settling.settled.mean().item() == pytest.approx(expected[300:].mean(), abs=1e-5)
    for _ in range(3000):
        settling.follow(ones)
    assert settling.shift.min() == -LARGEST


def test_too_few_steps_are_refused_and_nothing_is_settled_at_first() -> None:
    with pytest.raises(ValueError, match="20 steps are too few to settle"):
        Settling.start(SHAPE, 20)
    with pytest.raises(ValueError, match="after 0 of 100 steps nothing has settled"):
        _ = Settling.start(SHAPE, 100).settled


class Pulled(calendar_world.Calendar):
    """x' = 0.5 x + 0.05: of mean 0.1, unless each step is shifted by -0.05."""

    def estimate(self, x: Tensor, sigma: Tensor, history: Tensor, **context: Tensor) -> Tensor:
        return 0.5 * history[:, -1] + 0.05


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(calendar_world, "Calendar", Pulled)
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "noleap", days=1600)
    data = calendar_world.data_of(cube)
    model = Pulled(data, 0.0)
    monkeypatch.setattr(verb, "load_model", lambda path: model)

    def settled(out: str, **changes: Any) -> Path:
        usual = {"sampling": Sampling(steps=1, sampler="ddim"), "steps": 600, "members": 3}
        verb.settle(Path("last.ckpt"), data, tmp_path / out, **usual | changes)
        return tmp_path / out

    return cube, data, settled


def test_the_verb_makes_what_a_rollout_settles_with(world: Any, tmp_path: Path) -> None:
    cube, data, settled = world
    made = settled("new/settled.npz")
    shift = read_calibration(str(made)).seasons.at(0.0)(torch.zeros(2, *calendar_world.SHAPE))
    # The cube's own mean, of 800 days of noise, is not quite 0 in each cell.
    assert shift.mean() == pytest.approx(-0.05, abs=0.01)
    for calibration, mean in ((None, 0.1), (str(made), 0.0)):
        out = tmp_path / f"{mean}.zarr"
        sampling = Sampling(steps=1, sampler="ddim", calibration=calibration)
        calendar_world.roll_out(cube, out, sampling=sampling, steps=60, initial_states=4)
        run = open_rollout(out)
        frames = torch.from_numpy(np.stack([run[name].values for name in "uv"], -3))
        found = data.normalisation.normalise(frames[:, :, -20:])
        assert found.mean() == pytest.approx(mean, abs=0.02)


def test_one_that_is_stopped_ends_with_the_same_bytes(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, settled = world
    whole = settled("whole.npz", steps=220).read_bytes()
    follow, calls = Settling.follow, 0

    def stopped(self: Settling, error: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls in (30, 130):
            raise KeyboardInterrupt
        follow(self, error)

    monkeypatch.setattr(Settling, "follow", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            settled("stopped.npz", steps=220)
    with pytest.raises(ValueError, match=r"stopped\.npz\.state\.npz was begun with other seed"):
        settled("stopped.npz", steps=220, seed=1)
    with pytest.raises(ValueError, match="was begun with other compiled"):
        settled("stopped.npz", steps=220, compile=True)
    assert settled("stopped.npz", steps=220).read_bytes() == whole
    assert calls == 30 + 100 + 170  # anew, anew, and from step 50
    assert not list(tmp_path.glob(".*state*"))


def test_two_processes_settle_as_one_does_and_either_goes_on(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, settled = world
    whole = settled("whole.npz", steps=220).read_bytes()
    assert ranks.run(lambda: settled("two.npz", steps=220), 2) == [0, 0]
    assert (tmp_path / "two.npz").read_bytes() == whole

    follow = Settling.follow

    def dies(self: Settling, error: Tensor) -> None:
        assert self.step < 130
        follow(self, error)

    with monkeypatch.context() as patch:
        patch.setattr(Settling, "follow", dies)
        assert ranks.run(lambda: settled("stopped.npz", steps=220), 2) == [1, 1]
    assert not (tmp_path / "stopped.npz").exists()
    with np.load(tmp_path / ".stopped.npz.state.npz") as kept:
        assert kept["step"] == 100
    assert settled("stopped.npz", steps=220).read_bytes() == whole
    assert ranks.run(lambda: settled("none.npz", members=1), 2) == [1, 1]
    monkeypatch.setattr(verb, "launched", lambda: nullcontext(Processes(0, 2)))
    with pytest.raises(ValueError, match="1 members cannot be shared out to 2 processes: give"):
        settled("none.npz", members=1)


def test_what_is_aimed_at_is_the_cubes_year_in_physical_units(tmp_path: Path) -> None:
    # Rain, whose root is what is normalised, with a cycle of the year.
    days = np.arange(4 * 365)
    season = 4 + 2 * np.cos(2 * np.pi * days / 365)
    drawn = np.random.default_rng(0).gamma(0.5, 2, (len(days), 3, 4))
    data = xr.Dataset(
        {"pr": (("time", "lat", "lon"), (season[:, None, None] * drawn).astype(np.float32))},
        {
            "time": xr.date_range(
                "2001-01-01", periods=len(days), calendar="noleap", use_cftime=True
            ),
            "lat": ("lat", [-40.0, 0.0, 40.0], {"units": "degrees_north"}),
            "lon": ("lon", [0.0, 90.0, 180.0, 270.0], {"units": "degrees_east"}),
        },
    )
    data.to_zarr(tmp_path / "rain.zarr", zarr_format=3, consolidated=False)
    cube = calendar_world.ClimateCubeDataModule(
        tmp_path / "rain.zarr",
        splits={"train": 0.5, "test": 0.5},
        transforms={"pr": Transform("power", exponent=0.5, lower=0.0)},
    )
    frames, times = cube.initial_states("train", 700, 1, 0)
    along = Along(cube.description(), times[:, 0], "noleap")
    aim = verb.Aim.of(cube, along)
    numbers = along.initial
    assert aim.error(frames[:, 0], numbers).abs().max() < 0.02  # the cube itself is right
    physical = cube.normalisation.denormalise(frames[:, 0])
    more = cube.normalisation.normalise(1.1 * physical)
    expected = 0.1 * physical.mean(0) / aim.scale
    found = aim.error(more, numbers) - aim.error(frames[:, 0], numbers)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    summer, winter = numbers[:1], numbers[:1] + 182 * 86400
    dry = cube.normalisation.normalise(torch.zeros(1, 1, 3, 4))
    ratio = aim.error(dry, winter).mean() / aim.error(dry, summer).mean()
    assert ratio == pytest.approx(2 / 6, abs=0.08)
