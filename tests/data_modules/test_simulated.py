"""The turbulence cube on disk: what it holds, how it opens, and what an interrupted run leaves."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from jsonargparse import auto_cli
from torch import Tensor

from data_modules import simulated
from data_modules.simulated import write_turbulence
from dyngen.simulate.turbulence import Turbulence, evolve, simulate

SMALL = Turbulence(
    resolution=16,
    output_resolution=8,
    box=3.0,
    kolmogorov_wavenumber=2,
    dt=0.02,
    output_interval=0.04,
    spin_up=0.08,
)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five trajectories of seven frames, in batches of two, the last of one."""
    out = tmp_path_factory.mktemp("simulated") / "turbulence.zarr"
    return write_turbulence(out, SMALL, trajectories=5, frames=7, seed=3, batch=2, progress=False)


def values(path: Path) -> np.ndarray:
    return np.asarray(xr.open_zarr(path)["vorticity"])


def test_the_cube_holds_what_the_simulation_gives(cube: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = simulate(SMALL, 5, 7, seed=3)
    torch.set_num_threads(threads)
    assert np.array_equal(values(cube), expected.numpy())


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_numbers_do_not_depend_on_the_batch(cube: Path, tmp_path: Path, batch: int) -> None:
    threads = torch.get_num_threads()
    other = write_turbulence(
        tmp_path / "new" / "other.zarr",
        SMALL,
        trajectories=5,
        frames=7,
        seed=3,
        batch=batch,
        progress=False,
    )
    assert np.array_equal(values(other), values(cube))
    assert torch.get_num_threads() == threads


def test_long_trajectories_are_written_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cube: Path
) -> None:
    monkeypatch.setattr(simulated, "CHUNK_BYTES", 2 * 8 * 8 * 4)
    monkeypatch.setattr(simulated, "SHARD_BYTES", 4 * 8 * 8 * 4)
    out = write_turbulence(
        tmp_path / "cube.zarr", SMALL, trajectories=5, frames=7, seed=3, progress=False
    )
    array = zarr.open_group(out, mode="r")["vorticity"]
    assert isinstance(array, zarr.Array)
    assert (array.chunks, array.shards) == ((1, 2, 8, 8), (1, 4, 8, 8))
    assert np.array_equal(values(out), values(cube))


def test_it_opens_with_xarray_without_a_warning_and_says_what_it_is(cube: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(cube)
        dataset.load()
    vorticity = dataset["vorticity"]
    assert vorticity.dims == ("trajectory", "time", "y", "x")
    assert vorticity.shape == (5, 7, 8, 8)
    assert vorticity.dtype == np.float32
    assert vorticity.attrs["units"] == "1"
    np.testing.assert_allclose(dataset["time"], 0.04 * np.arange(7))
    np.testing.assert_array_equal(dataset["trajectory"], np.arange(5))
    for name in ("y", "x"):
        np.testing.assert_allclose(dataset[name], np.arange(8) * 3.0 / 8)
        assert dataset[name].attrs["boundary"] == "periodic"
        assert dataset[name].attrs["period"] == 3.0
    assert Turbulence(**json.loads(dataset.attrs["parameters"])) == SMALL
    assert dataset.attrs["seed"] == 3
    assert dataset.attrs["Conventions"].startswith("CF-")


def test_it_says_where_the_steady_force_lies(cube: Path, tmp_path: Path) -> None:
    """The curl of (A sin(k y), 0), by differences of the force on a fine grid."""
    curl = xr.open_zarr(cube)["force_curl"]
    assert curl.dims == ("y", "x")
    k, step = 2 * np.pi * SMALL.kolmogorov_wavenumber / SMALL.box, 1e-4
    y = np.asarray(curl["y"])

    def force(y: np.ndarray) -> np.ndarray:
        return np.asarray(SMALL.kolmogorov_amplitude * np.sin(k * y))

    expected = -(force(y + step) - force(y - step)) / (2 * step)
    np.testing.assert_allclose(curl, np.repeat(expected[:, None], 8, axis=1), atol=1e-6)

    calm = replace(SMALL, kolmogorov_amplitude=0.0)
    other = write_turbulence(tmp_path / "calm.zarr", calm, trajectories=1, frames=2, progress=False)
    assert set(xr.open_zarr(other).data_vars) == {"vorticity"}


def test_it_is_sharded_zarr_v3(cube: Path) -> None:
    metadata = json.loads((cube / "vorticity" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["codecs"][0]["name"] == "sharding_indexed"
    assert metadata["dimension_names"] == ["trajectory", "time", "y", "x"]
    shards = [path for path in (cube / "vorticity" / "c").rglob("*") if path.is_file()]
    assert len(shards) == 5  # one for each trajectory


def test_it_can_be_saved_as_netcdf(cube: Path, tmp_path: Path) -> None:
    xr.open_zarr(cube).to_netcdf(tmp_path / "cube.nc")
    with xr.open_dataset(tmp_path / "cube.nc") as copy:
        assert json.loads(copy.attrs["parameters"]) == asdict(SMALL)


def test_an_existing_path_is_refused_or_replaced_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "cube.zarr"
    options: dict[str, Any] = {"trajectories": 1, "frames": 2, "progress": False}
    write_turbulence(out, SMALL, seed=1, **options)
    before = values(out)
    with pytest.raises(FileExistsError, match=r"cube\.zarr exists; choose another path"):
        write_turbulence(out, SMALL, seed=2, **options)
    assert np.array_equal(values(out), before)
    write_turbulence(out, SMALL, seed=2, overwrite=True, **options)
    assert not np.array_equal(values(out), before)
    assert os.listdir(tmp_path) == ["cube.zarr"]


@pytest.mark.parametrize("name", ["trajectories", "frames", "batch"])
def test_counts_below_one_are_refused(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        write_turbulence(tmp_path / "cube.zarr", SMALL, **options)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_nothing_and_spares_what_it_was_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    out = tmp_path / "cube.zarr"
    options: dict[str, Any] = {"trajectories": 4, "frames": 3, "batch": 1, "progress": False}
    write_turbulence(out, SMALL, **options)
    before = values(out)
    started = []

    def fails(parameters: Turbulence, numbers: range, **keywords: Any) -> Iterator[Tensor]:
        started.append(numbers)
        yield from (frame for frame, _ in zip(evolve(parameters, numbers), range(2), strict=False))
        raise error("stop here")

    monkeypatch.setattr(simulated, "evolve", fails)
    with pytest.raises(error, match="stop here"):
        write_turbulence(out, SMALL, overwrite=True, **options)
    assert os.listdir(tmp_path) == ["cube.zarr"]
    assert np.array_equal(values(out), before)
    with pytest.raises(error, match="stop here"):
        write_turbulence(tmp_path / "new.zarr", SMALL, **options)
    assert os.listdir(tmp_path) == ["cube.zarr"]


def test_a_step_too_large_is_refused_in_one_sentence(tmp_path: Path) -> None:
    hasty = replace(SMALL, dt=4.0, output_interval=4.0, spin_up=0.0)
    with pytest.raises(ValueError, match=r"^dt 4 is too large .*; use dt [0-9.]+ or less\.$"):
        write_turbulence(tmp_path / "cube.zarr", hasty, trajectories=3, batch=1, progress=False)
    assert os.listdir(tmp_path) == []


def test_a_killed_run_leaves_no_cube_and_the_next_one_is_whole(tmp_path: Path, cube: Path) -> None:
    out = tmp_path / "cube.zarr"
    killed = f"""
        import os, signal
        from data_modules import simulated
        from dyngen.simulate.turbulence import Turbulence, evolve

        simulated.SHARD_BYTES = simulated.CHUNK_BYTES = 2 * 8 * 8 * 4

        def dies(*arguments, **keywords):
            for number, frame in enumerate(evolve(*arguments, **keywords)):
                if number == 6:  # two frames of spin-up and a shard of two are done
                    assert any(p.is_file() for p in partial.glob("vorticity/c/**/*"))
                    os.kill(os.getpid(), signal.SIGKILL)
                yield frame

        from pathlib import Path
        partial = Path({str(out)!r} + ".partial")
        simulated.evolve = dies
        simulated.write_turbulence({str(out)!r}, {SMALL!r}, trajectories=5, frames=7, seed=3)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(killed)], capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert os.listdir(tmp_path) == ["cube.zarr.partial"]
    write_turbulence(out, SMALL, trajectories=5, frames=7, seed=3, progress=False)
    assert os.listdir(tmp_path) == ["cube.zarr"]
    assert np.array_equal(values(out), values(cube))


def test_it_shows_progress_and_logs_where_the_cube_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "cube.zarr"
    with caplog.at_level(logging.INFO):
        write_turbulence(out, SMALL, trajectories=2, frames=3)
    assert "10/10 frames" in capsys.readouterr().out  # 2 x (3 and a spin-up of 2)
    assert f"2 trajectories of 3 frames to {out}" in caplog.text


def test_the_command_line_can_set_every_argument(tmp_path: Path) -> None:
    out = tmp_path / "cube.zarr"
    line = f"--out {out} --trajectories 3 --frames 2 --seed 5 --batch 2 --device cpu"
    line += " --overwrite true --progress false --parameters.resolution 16"
    line += " --parameters.output_resolution 8 --parameters.injection_rate 0.1"
    line += " --parameters.spin_up 0.8"
    assert auto_cli(write_turbulence, args=line.split(), as_positional=False) == out
    dataset = xr.open_zarr(out)
    assert Turbulence(**json.loads(dataset.attrs["parameters"])) == Turbulence(
        resolution=16, output_resolution=8, injection_rate=0.1, spin_up=0.8
    )
    assert (dataset["vorticity"].shape, dataset.attrs["seed"]) == ((3, 2, 8, 8), 5)
