"""The garden on disk: it holds what the scenes give, and a stopped run ends like another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_modules import simulated_garden
from data_modules.simulated_garden import write_garden
from dyngen.simulate.garden import Garden, simulate

SMALL = Garden(width=48, height=32, frames=5, sway=4.0, lowest=2.0, stems=2, seed=2)


def write(out: Path, **options: Any) -> xr.Dataset:
    options = {"clips": 3, "workers": 1, "progress": False} | options
    return xr.open_zarr(write_garden(out, SMALL, **options)).load()


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return write(tmp_path_factory.mktemp("garden") / "motion.zarr")


def test_it_holds_what_the_scenes_give(garden: xr.Dataset) -> None:
    clip = simulate(SMALL, 1)
    video = (clip.video.movedim(1, -1).numpy() * 255).round()
    assert np.array_equal(garden["image"][1], video[0])
    assert np.array_equal(garden["frames"][1], video[1:])
    assert garden["displacement"].dims == ("clip", "time", "axis", "y", "x")
    assert garden["displacement"].dtype == np.float16
    assert np.allclose(garden["displacement"][1], clip.displacement, atol=4e-3)
    assert np.array_equal(garden["object"][1], clip.mask)
    size = clip.displacement.norm(dim=1).amax(0)
    assert np.array_equal(garden["mask"][1] > 0, size > simulated_garden.MOVES)
    assert garden["fps"].values.tolist() == [30.0] * 3


def test_its_modes_are_told(garden: xr.Dataset) -> None:
    told = json.loads(str(garden["scene"].values[2]))
    layers = simulate(SMALL, 2).layers
    assert [thing["kind"] for thing in told] == [layer.kind for layer in layers]
    for thing, layer in zip(told, layers, strict=True):
        assert [m["frequency"] for m in thing["modes"]] == [m.frequency for m in layer.modes]
        assert [m["damping"] for m in thing["modes"]] == [m.damping for m in layer.modes]
    assert json.loads(garden.attrs["parameters"])["sway"] == SMALL.sway


def test_the_sway_asked_for_is_reached(garden: xr.Dataset) -> None:
    size = np.linalg.norm(garden["displacement"].values.astype(float), axis=2)
    assert np.all(np.abs(size.max((1, 2, 3)) - SMALL.sway) < 0.01)


def test_a_stopped_run_goes_on_and_ends_the_same(
    garden: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = simulated_garden.draw

    def failing(parameters: Garden, frames: bool, number: int) -> Any:
        if number == 2 and len(drawn) == 2:
            drawn.append(-1)
            raise KeyboardInterrupt
        drawn.append(number)
        return draw(parameters, frames, number)

    monkeypatch.setattr(simulated_garden, "draw", failing)
    out = tmp_path / "motion.zarr"
    with pytest.raises(KeyboardInterrupt):
        write(out)
    assert not out.exists()
    assert garden.identical(write(out))
    assert drawn == [0, 1, -1, 2]


def test_several_processes_give_the_same(garden: xr.Dataset, tmp_path: Path) -> None:
    assert garden.identical(write(tmp_path / "motion.zarr", workers=2))


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    write(tmp_path / "motion.zarr", clips=1, frames=False)
    with pytest.raises(FileExistsError, match=r"motion\.zarr exists"):
        write(tmp_path / "motion.zarr", clips=1)
    again = write(tmp_path / "motion.zarr", clips=1, overwrite=True)
    assert "frames" in again


@pytest.mark.parametrize("change", [{"clips": 0}, {"workers": 0}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        write(tmp_path / "motion.zarr", **change)
