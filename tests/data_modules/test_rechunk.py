"""Rewriting a cube: the same values in other chunks, wherever a run was killed."""

import re
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr

from data_modules import rechunk as module
from data_modules.cube import open_cube
from data_modules.errors import DataError
from data_modules.rechunk import rechunk

FRAMES = 50


def refused(sentence: str) -> Any:
    return pytest.raises(DataError, match=re.escape(sentence))


def packed(frames: int = FRAMES, start: str = "2001-01-01") -> xr.Dataset:
    """Temperatures, packed, with missing values; rain with calm shards; a mask and a bound."""
    generator = np.random.default_rng(0)
    ta = 270 + 0.01 * generator.integers(0, 3000, (frames, 4, 6))
    ta[3, 1, 1] = np.nan
    rain = np.zeros((frames, 4, 6), dtype=np.float32)
    rain[:10] = generator.random((10, 4, 6))
    times = xr.date_range(start, periods=frames, calendar="noleap", use_cftime=True)
    return xr.Dataset(
        {
            "ta": (("time", "lat", "lon"), ta, {"units": "K"}),
            "pr": (("time", "lat", "lon"), rain),
            "land": (("lat", "lon"), generator.integers(0, 2, (4, 6))),
            "area": ((), 3.0),
        },
        {"time": times, "lat": [60.0, 20.0, -20.0, -60.0], "lon": np.arange(0, 360, 60.0)},
        {"title": "packed"},
    )


ENCODING: dict[str, Any] = {
    "ta": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 270.0, "_FillValue": -1}
}


def write(path: Path, zarr_format: Any = 3, **chunks: Any) -> Path:
    encoding = {name: dict(ENCODING.get(name, {}), **chunks) for name in ("ta", "pr")}
    packed().to_zarr(path, zarr_format=zarr_format, consolidated=False, encoding=encoding)
    return path


def bytes_of(path: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunks", [{}, {"chunks": (50, 2, 2)}, {"chunks": (1, 4, 6)}])
@pytest.mark.parametrize("memory", [1, 1024])
def test_the_same_values_in_other_chunks(
    tmp_path: Path, zarr_format: int, chunks: Any, memory: int
) -> None:
    path = write(tmp_path / "old.zarr", zarr_format, **chunks)
    out = tmp_path / "new.zarr"
    said = rechunk(path, out, {"time": 6}, {"time": 12}, memory=memory, progress=False)
    assert said == str(out)
    assert not (tmp_path / "new.zarr.partial").exists()
    before = xr.open_dataset(path, engine="zarr", consolidated=False)
    after = xr.open_dataset(out, engine="zarr")
    xr.testing.assert_identical(before, after)
    stored = zarr.open_group(out, mode="r")["ta"]
    assert isinstance(stored, zarr.Array)
    assert (stored.chunks, stored.shards, stored.dtype) == (
        (6, 4, 6),
        (12, 4, 6),
        np.dtype("int16"),
    )
    cube = open_cube(out, ["ta", "pr"], missing="fill")
    assert cube.chunks == (1, 6)
    assert cube.calendar == "noleap"
    # Shards of nothing but zeros are stored: one that is not there has got lost.
    assert len(list((out / "pr" / "c").glob("*/0/0"))) == 5
    open_cube(out, ["pr"]).read(slice(0, 1), slice(0, FRAMES))


@pytest.mark.parametrize("kills", [1, 3])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    path = write(tmp_path / "old.zarr", chunks=(5, 4, 6))
    options: dict[str, Any] = {"shards": {"time": 4}, "progress": False, "scheduler": "synchronous"}
    monkeypatch.setattr(module, "_pieces", one_shard_each)
    rechunk(path, tmp_path / "whole.zarr", {"time": 2}, **options)
    copy, copied = module._copy, []

    def killed(*arguments: Any) -> None:
        copy(*arguments)
        copied.append(arguments)
        if len(copied) in (3, 6, 8)[:kills]:
            raise KeyboardInterrupt  # after its chunks are written, before that is recorded

    monkeypatch.setattr(module, "_copy", killed)
    for _ in range(kills):
        with pytest.raises(KeyboardInterrupt):
            rechunk(path, tmp_path / "new.zarr", {"time": 2}, **options)
        assert not (tmp_path / "new.zarr").exists()
    rechunk(path, tmp_path / "new.zarr", {"time": 2}, **options)
    assert len(copied) == 13 + kills
    assert bytes_of(tmp_path / "new.zarr") == bytes_of(tmp_path / "whole.zarr")
    rechunk(path, tmp_path / "new.zarr", {"time": 2}, **options)  # finished already
    assert len(copied) == 13 + kills


def one_shard_each(
    dataset: xr.Dataset, large: Any, layout: Any, time_dim: str, memory: int
) -> list[dict[str, slice]]:
    size = layout[time_dim][1]
    edges = range(0, dataset.sizes[time_dim], size)
    whole = {str(d): slice(0, n) for d, n in dataset.sizes.items()}
    return [whole | {time_dim: slice(a, min(a + size, FRAMES))} for a in edges]


def test_pieces_fit_into_memory(tmp_path: Path) -> None:
    wide = xr.Dataset(
        {
            "u": (
                ("time", "y", "x"),
                dask.array.zeros((4000, 100, 100), dtype="f4", chunks=(16, 100, 100)),
            )
        }
    )
    layout = {"time": (8, 32), "y": (100, 100), "x": (100, 100)}
    for memory in (2**22, 2**24, 2**28):
        pieces = list(module._pieces(wide, ["u"], layout, "time", memory))
        longest = max(piece["time"].stop - piece["time"].start for piece in pieces)
        assert longest == max(32, memory // (2 * 40_000) // 32 * 32)
        assert sum(piece["time"].stop - piece["time"].start for piece in pieces) == 4000


def test_what_is_there_already(tmp_path: Path) -> None:
    path = write(tmp_path / "old.zarr")
    out = tmp_path / "new.zarr"
    rechunk(path, out, {"time": 5}, progress=False)
    with refused(f"{out} exists and is not the same cube with the same chunks; choose another"):
        rechunk(path, out, {"time": 10}, progress=False)
    rechunk(path, out, {"time": 10}, overwrite=True, progress=False)
    assert open_cube(out, ["pr"]).chunks == (1, 10)
    other = tmp_path / "notes"
    other.mkdir()
    with refused(f"{other} exists and is not the same cube"):
        rechunk(path, other, {"time": 5}, progress=False)


def test_files_are_joined(tmp_path: Path) -> None:
    for year in (2001, 2002):
        part = packed(365, f"{year}-01-01")
        part.to_netcdf(tmp_path / f"{year}.nc", engine="h5netcdf", encoding=ENCODING)
    rechunk(f"{tmp_path}/*.nc", tmp_path / "new.zarr", {"time": 73}, progress=False)
    joined = open_cube(tmp_path / "new.zarr", ["ta"], missing="fill")
    before = open_cube(f"{tmp_path}/*.nc", ["ta"], missing="fill")
    assert (joined.calendar, len(joined.times), joined.chunks) == ("noleap", 730, (1, 73))
    np.testing.assert_array_equal(joined.times, before.times)
    np.testing.assert_array_equal(
        joined.read(slice(0, 1), slice(350, 380)), before.read(slice(0, 1), slice(350, 380))
    )


def test_variables_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "old.zarr")
    rechunk(path, tmp_path / "new.zarr", {"time": 5}, variables=["ta"], progress=False)
    assert list(xr.open_zarr(tmp_path / "new.zarr").data_vars) == ["ta"]
    with refused(f"{path} has no variable 'tas'; it has"):
        rechunk(path, tmp_path / "b.zarr", {"time": 5}, variables=["tas"], progress=False)


def test_a_running_cluster_computes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    path = write(tmp_path / "old.zarr", chunks=(50, 2, 2))
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(processes=False, **options) as cluster:
        address = cluster.scheduler_address
        rechunk(path, tmp_path / "new.zarr", {"time": 5}, scheduler=address, progress=False)
    before = xr.open_dataset(path, engine="zarr", consolidated=False)
    xr.testing.assert_identical(before, xr.open_dataset(tmp_path / "new.zarr", engine="zarr"))


def test_from_bucket_to_bucket(tmp_path: Path, s3: dict[str, Any]) -> None:
    packed().to_zarr("s3://climate/old.zarr", storage_options=s3, consolidated=False)
    for _ in range(2):  # the second time there is nothing left to do
        rechunk(
            "s3://climate/old.zarr",
            "s3://climate/new.zarr",
            {"time": 5},
            {"time": 25},
            storage_options=s3,
            out_storage_options=s3,
            progress=False,
        )
    cube = open_cube("s3://climate/new.zarr", ["pr"], storage_options=s3)
    assert cube.chunks == (1, 5)
    np.testing.assert_array_equal(
        cube.read(slice(0, 1), slice(0, FRAMES))[0, :, 0], packed()["pr"].values
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"chunks": {"tme": 5}}, "has no dimension 'tme' (chunks) (did you mean 'time'?)"),
        ({"chunks": {"time": 0}}, "chunks has 0 for 'time'; make it 1 or more."),
        (
            {"chunks": {"time": 4}, "shards": {"time": 10}},
            "shards has 10 for 'time', which is no multiple of its chunks of 4; make it 12.",
        ),
        (
            {"chunks": {"time": 4}, "scheduler": "thread"},
            "scheduler is 'thread'; it can be threads, processes, synchronous, distributed, or an",
        ),
    ],
)
def test_what_cannot_be(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path / "old.zarr")
    with refused(sentence):
        rechunk(path, tmp_path / "new.zarr", **options, progress=False)


def test_a_damaged_cube_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "old.zarr", chunks=(10, 4, 6))
    (path / "ta" / "c" / "2" / "0" / "0").write_bytes(b"damaged")
    with refused(f"{path} cannot be read ("):
        rechunk(path, tmp_path / "new.zarr", {"time": 5}, progress=False)
