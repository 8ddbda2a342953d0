"""Small cubes whose values say where they come from, and a server of buckets."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

MakeCube = Callable[..., Path]

# Read when gcsfs is imported: else it asks for the kind of a bucket by gRPC, which the emulator of
# Google's storage does not speak.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def encoded(trajectories: int, frames: int, rows: int = 4, columns: int = 5) -> np.ndarray:
    """Values (trajectory, time, y, x) that name their place: 1000 trajectory + time + y / 10."""
    trajectory, time, y, _ = np.indices((trajectories, frames, rows, columns))
    return (1000.0 * trajectory + time + y / 10).astype(np.float32)


@pytest.fixture
def make_cube(tmp_path: Path) -> MakeCube:
    """Write a cube of one variable `u`; changes are applied to the dataset before it is written."""

    def make(
        trajectories: int = 8,
        frames: int = 20,
        chunk: int = 6,
        times: Any = None,
        change: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset,
        name: str = "cube.zarr",
        squeeze: bool = False,
    ) -> Path:
        dataset = xr.Dataset(
            {"u": (("trajectory", "time", "y", "x"), encoded(trajectories, frames))},
            {
                "trajectory": np.arange(trajectories),
                "time": np.arange(frames) * 0.5 if times is None else times,
                "y": np.arange(4.0),
                "x": np.arange(5.0),
            },
        )
        dataset = change(dataset.isel(trajectory=0, drop=True) if squeeze else dataset)
        path = tmp_path / name
        if name.endswith(".zarr"):
            encoding = {
                key: {"chunks": tuple({"trajectory": 1, "time": chunk}.get(d, 5) for d in v.dims)}
                for key, v in dataset.data_vars.items()
                if v.ndim > 2
            }
            dataset.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding)
        else:
            dataset.to_netcdf(path, engine="h5netcdf")
        return path

    return make


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """Storage options of a server with an empty bucket named `climate`."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'dyngen[test]'")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {"key": "key", "secret": "secret", "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options).mkdir("climate")
    yield options
    running.stop()


@pytest.fixture(scope="session")
def gcs() -> Iterator[dict[str, Any]]:
    """Storage options of an emulator of Google's storage, with an empty bucket named `climate`."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'dyngen[test]'")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    running = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="climate")
    running.start()
    yield {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"}
    running.stop()
