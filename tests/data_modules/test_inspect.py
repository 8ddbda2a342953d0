"""What `inspect` says of a cube, and that the command it gives does what it promises."""

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from jsonargparse import auto_cli

from data_modules.cube import open_cube
from data_modules.inspect import describe, examine, inspect
from data_modules.rechunk import rechunk
from dyngen.options import OptionParser


def write(path: Path, frames: int = 400, gaps: tuple[int, ...] = (), **encoding: Any) -> Path:
    times = xr.date_range("2001-01-01", periods=frames, calendar="noleap", use_cftime=True)
    times = times.values.copy()
    for gap in gaps:
        times[gap:] += np.timedelta64(30, "D").astype(object)
    dataset = xr.Dataset(
        {
            "ta": (
                ("time", "lat", "lon"),
                np.random.default_rng(0).random((frames, 24, 48)).astype(np.float32),
                {"units": "K", "long_name": "air temperature"},
            )
        },
        {
            "time": times,
            "lat": ("lat", np.linspace(-86.25, 86.25, 24), {"standard_name": "latitude"}),
            "lon": ("lon", np.arange(48) * 7.5, {"standard_name": "longitude"}),
        },
    )
    dataset.to_zarr(path, consolidated=False, encoding={"ta": encoding})
    return path


def test_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.zarr", gaps=(100, 250), chunks=(64, 24, 48))
    with caplog.at_level(logging.INFO):
        found = inspect(path)
    lines = caplog.messages
    assert lines == describe(found)
    said = "\n".join(lines)
    assert f"{path} (Zarr v3, 1.76 MiB as float32)" in said
    assert "lat: 24, latitude, -86.25 to 86.25, pole; lon: 48, longitude, 0 to 352.5, peri" in said
    assert "time: 400 frames, 2001-01-01 00:00:00 to 2002-04-05 00:00:00, 1 day apart" in said
    assert "calendar noleap" in said
    assert found.gaps == [
        ("2001-04-10 00:00:00", "2001-05-11 00:00:00"),
        ("2001-10-07 00:00:00", "2001-11-07 00:00:00"),
    ]
    assert "2001-04-10 00:00:00 to 2001-05-11 00:00:00; 2001-10-07" in said
    assert "ta [K] air temperature" in said
    assert "float32, chunks of time 64 x lat 24 x lon 48 (288 KiB decoded), 7 files" in said
    assert re.search(r"about [\d,]+ windows/s of 2 frames streamed by one process, [\d,]+", said)
    assert found.command is None
    assert lines[-1] == "chunks        good as they are"


def test_files_that_are_not_there_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", chunks=(16, 24, 48), shards=(64, 24, 48))
    assert examine(open_cube(path, missing="fill"), measure=False).storage["ta"].absent == 0
    (path / "ta" / "c" / "2" / "0" / "0").unlink()
    found = examine(open_cube(path, missing="fill"), measure=False)
    assert (found.storage["ta"].files, found.storage["ta"].absent) == (7, 1)
    assert any("1 of 7 files of 'ta' are not there" in line for line in describe(found))


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ((400, 4, 4), "a frame of 'ta' is in 72 chunks, which are read for each window"),
        ((1, 24, 48), "a chunk of 'ta' holds 4.5 KiB, which costs a read each"),
        ((400, 24, 48), "a chunk of 'ta' spans 400 frames (1.76 MiB), so that few of them are"),
    ],
)
def test_the_command_makes_it_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a b.zarr", chunks=chunks)
    found = inspect(str(path), shuffle_buffer=4)
    assert any(said.startswith(reason) for said in found.reasons)
    assert found.command is not None
    program, verb, *arguments = shlex.split(found.command)
    assert (program, verb) == ("dyngen", "rechunk")
    # As the command line calls it.
    out = auto_cli(
        rechunk,
        args=[*arguments, "--progress=false"],
        as_positional=False,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="omegaconf",
        parser_class=OptionParser,
    )
    assert out == "a b_rechunked.zarr"
    better = inspect(out, shuffle_buffer=4)
    assert better.command is None
    assert better.storage["ta"].chunks == (128, 24, 48)
    assert better.storage["ta"].files == 1
    one, other = (open_cube(p).read(slice(0, 1), slice(0, 400)) for p in (path, out))
    np.testing.assert_array_equal(one, other)


def test_better_chunks_are_faster_where_frames_were_scattered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", chunks=(400, 2, 2))
    slow = examine(open_cube(path))
    rechunk(path, tmp_path / "b.zarr", slow.chunks, slow.shards, progress=False)
    fast = examine(open_cube(tmp_path / "b.zarr"))
    assert fast.streamed is not None
    assert slow.streamed is not None
    assert fast.streamed > 2 * slow.streamed


def test_trajectories_numbers_and_netcdf(tmp_path: Path) -> None:
    values = np.zeros((3, 20, 4, 6), dtype=np.float32)
    values += np.arange(20.0, dtype=np.float32)[:, None, None]
    dataset = xr.Dataset(
        {"u": (("trajectory", "time", "y", "x"), values)},
        {"time": ("time", np.arange(20) * 0.4, {"units": "1"})},
    )
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    found = inspect(tmp_path / "a.nc")
    said = "\n".join(describe(found))
    assert "(NetCDF, 5.62 KiB as float32)" in said
    assert "20 frames, 0 to 7.6, 0.4 apart, numbers without a calendar" in said
    assert "trajectories  trajectory: 3" in said
    assert "y: 4 without a coordinate, reflect" in said
    assert "memory        5.62 KiB: the whole of it is held" in said
    assert found.chunks == {"trajectory": 1, "time": 16, "y": 4, "x": 6}
    assert "float32, as a whole" in said
    assert found.command is None


def test_netcdf_in_scattered_chunks_is_better_rewritten(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    encoding = {"ta": {"chunksizes": (400, 4, 4)}}
    dataset = xr.open_zarr(path, consolidated=False).load().drop_encoding()
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=encoding)
    found = inspect(tmp_path / "a.nc")
    assert found.reasons == [
        "a frame of 'ta' is in 72 chunks, which are read for each window",
    ]
    assert "--chunks.time=128" in str(found.command)


def test_a_bucket_is_inspected(s3: dict[str, Any]) -> None:
    dataset = xr.Dataset({"u": (("time", "y", "x"), np.ones((20, 4, 6), np.float32))})
    encoding = {"u": {"chunks": (1, 4, 6)}}
    url = "s3://climate/inspect.zarr"
    dataset.to_zarr(url, storage_options=s3, consolidated=False, encoding=encoding)
    found = inspect("s3://climate/inspect.zarr", storage_options=s3)
    assert found.storage["u"].absent == 0
    assert found.streamed is not None
    command = str(found.command)
    assert f"--storage_options.endpoint_url={s3['endpoint_url']}" in command
    assert "secret" not in command
