"""Real cubes: a climate model's daily output and radar composites, where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.errors import DataError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def at_hand(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"../shared/data/{name} is not here")
    return DATA / name


def test_daily_climate():
    cube = ClimateCubeDataModule(
        at_hand("speedy_daily.zarr"),
        splits={
            "train": ["1983", "1984"],
            "validate": ["1985-01", "1985-06"],
            "test": ["2010", "2011"],
        },
        batch_size=8,
        in_memory=False,
        shuffle_buffer=16,
        num_workers=2,
    )
    description = cube.description()
    assert list(description["variables"]) == ["pr", "ps", "ta"]
    assert description["boundary"] == {"lat": "pole", "lon": "periodic"}
    assert description["time"]["step"] == 86400.0
    assert [split.frames for split in cube.splits.values()] == [731, 181, 730]
    batch = next(iter(cube.train_dataloader()))
    assert batch["frames"].shape == (8, 2, 3, 48, 96)
    assert abs(batch["frames"].mean()) < 0.1

    # The README of the data gives the mean of precipitation and the lag-1 correlations.
    frames, _ = cube.read_run("test", 0)
    physical = cube.normalisation.denormalise(frames)
    mean = (physical.mean(dim=(0, -1)) * cube.area_weights).mean(dim=-1)
    assert mean[0] == pytest.approx(2.64, abs=0.1)
    anomalies = frames - frames.mean(dim=0)
    lagged = (anomalies[1:] * anomalies[:-1]).mean(dim=(0, 2, 3))
    correlation = lagged / anomalies.square().mean(dim=(0, 2, 3))
    np.testing.assert_allclose(correlation, [0.69, 0.90, 0.99], atol=0.03)


def test_radar():
    path = at_hand("radar_fmi.nc")
    with pytest.raises(DataError, match=r"Variable 'DBZH' of .* has missing values in the chunk"):
        ClimateCubeDataModule(path).statistics  # noqa: B018
    cube = ClimateCubeDataModule(
        path, missing="fill", fill_value=-32.0, crop=(64, 64), batch_size=4, window_length=4
    )
    assert cube.cube.runs() == [(0, 40), (40, 80)]
    assert cube.split("train").runs == ((0, 40), (40, 60))
    assert cube.description()["time"]["step"] == 300.0
    loader = cube.train_dataloader()
    assert len(loader) == (37 + 17) // 4
    for batch in loader:
        assert batch["frames"].shape == (4, 4, 1, 64, 64)
        assert torch.isfinite(batch["frames"]).all()
        assert (batch["time"].diff(dim=1) == 300).all()
    assert cube.statistics.minimum == [-32.0]
