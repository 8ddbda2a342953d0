"""What `dyngen rollout` decides before it rolls out: where runs start, and what is compiled."""

from pathlib import Path
from typing import Any

import calendar_world
import numpy as np
import pytest

from dyngen.forecast import _room
from dyngen.networks.unet import UNet2d
from dyngen.rollout import RolloutError, open_rollout


def test_initial_states_leave_the_longest_half_of_a_run_to_compare_with(tmp_path: Path) -> None:
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", None, days=80)
    data = calendar_world.ClimateCubeDataModule(cube, splits={"train": 0.5, "test": 0.5})
    assert _room(data, "test", 5, 2) == 20  # of the 40 days of the split
    starts = np.array([day for _, day in data.initial_places("test", 5, 2, 20)])
    assert starts.min() >= 41  # after two days of history
    assert starts.max() <= 79 - 20  # with 20 days of truth to come
    assert _room(data, "test", 30, 2) == 0  # more starts than that leaves room for


def test_compiled_networks_are_written_down_and_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(UNet2d, "compile", lambda network: compiled.append(network))
    original = calendar_world.Calendar.__init__

    def with_network(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.network = UNet2d(1, widths=(8,), blocks=1)

    monkeypatch.setattr(calendar_world.Calendar, "__init__", with_network)
    monkeypatch.setattr("dyngen.forecast.weights_digest", lambda model: "the same")
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "noleap")
    out = tmp_path / "run.zarr"
    calendar_world.roll_out(cube, out, steps=4)
    assert not compiled
    with pytest.raises(RolloutError, match="compiled"):
        calendar_world.roll_out(cube, out, steps=8, compile=True)
    assert [type(network) for network in compiled] == [UNet2d]
    assert open_rollout(out).sizes["lead"] == 4
    calendar_world.roll_out(cube, tmp_path / "other.zarr", steps=4, compile=True)
    assert open_rollout(tmp_path / "other.zarr").sizes["lead"] == 4
