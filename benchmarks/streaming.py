"""Windows per second of the streamed loader, on a cube made for the purpose.

Beside it, on the same shuffled training windows of the same cube:

- two peers: `xarray.isel` for each window, as a plain `Dataset.__getitem__` would do; and a
  `BatchGenerator` of xbatcher, whose windows are drawn in random order (its batches of neighbours,
  which cannot be shuffled, are slower still);
- the limit: a loop that reads and decodes each chunk of the training split once with zarr, and does
  nothing else.

Each is run in turn several times, the first time unrecorded; the medians are given. All read from
the page cache, so that it is the software that is measured and not the disk.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr

from data_modules.climate_cube import ClimateCubeDataModule

logger = logging.getLogger(__name__)

TRAJECTORIES, FRAMES, SIZE = 32, 384, 64
CHUNK, SHARD = 32, 192
WINDOW = 4
BATCH = 32
NAIVE_WINDOWS = 512  # a sample: the peer would take a minute for all of them
REPEATS = 5


def run() -> list[dict[str, Any]]:
    """Measure with and without worker processes; an entry for each and each peer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cube.zarr"
        write_cube(path)
        return [entry for workers in (0, 2) for entry in _measure(path, workers)]


def write_cube(path: Path) -> None:
    """A sharded cube of smooth fields that drift, of a hundred and a half megabytes or so."""
    generator = np.random.default_rng(0)
    group = zarr.create_group(path)
    array = group.create_array(
        "vorticity",
        shape=(TRAJECTORIES, FRAMES, SIZE, SIZE),
        chunks=(1, CHUNK, SIZE, SIZE),
        shards=(1, SHARD, SIZE, SIZE),
        dtype="float32",
        dimension_names=("trajectory", "time", "y", "x"),
    )
    for name, size in (("trajectory", TRAJECTORIES), ("time", FRAMES), ("y", SIZE), ("x", SIZE)):
        group.create_array(name, data=np.arange(size, dtype=np.float64), dimension_names=(name,))
    waves = np.fft.rfftfreq(SIZE, 1 / SIZE) ** 2 + np.fft.fftfreq(SIZE, 1 / SIZE)[:, None] ** 2
    envelope = (1 + waves) ** -1.0
    for trajectory in range(TRAJECTORIES):
        phases = generator.uniform(0, 2 * np.pi, waves.shape)
        drift = generator.normal(0, 0.05, waves.shape) * np.arange(FRAMES)[:, None, None]
        fields = np.fft.irfft2(envelope * np.exp(1j * (phases + drift)), s=(SIZE, SIZE))
        array[trajectory] = fields.astype(np.float32)


def _measure(path: Path, workers: int) -> list[dict[str, Any]]:
    module = ClimateCubeDataModule(
        path,
        window_length=WINDOW,
        batch_size=BATCH,
        in_memory=False,
        shuffle_buffer=16,
        num_workers=workers,
    )
    loader = module.train_dataloader()
    dataset = xr.open_dataset(path, engine="zarr", consolidated=False)
    array = zarr.open_group(path, mode="r")["vorticity"]
    assert isinstance(array, zarr.Array)
    trajectories, mean = module.split("train").trajectories[1], module.statistics.mean[0]

    def ours() -> int:
        return sum(len(batch["frames"]) for batch in loader)

    def isel() -> int:
        return sum(len(b) for b in _naive(dataset, trajectories, mean))

    def xbatcher() -> int:
        return sum(len(b) for b in _xbatcher(dataset, trajectories, mean))

    def limit() -> int:
        for trajectory in np.random.default_rng(0).permutation(trajectories):
            for first in range(0, FRAMES, CHUNK):
                array[trajectory, first : first + CHUNK]
        return loader.windows

    tasks = {"ours": ours, "xarray.isel per window": isel, "limit": limit}
    if importlib.util.find_spec("xbatcher"):
        tasks["xbatcher, windows in random order"] = xbatcher
    else:
        logger.warning("xbatcher is not installed and is left out: pip install xbatcher")
    rates = _in_turn(tasks)
    median = {name: statistics.median(values) for name, values in rates.items()}
    low, high = min(rates["ours"]), max(rates["ours"])
    beside = {
        "xarray.isel per window": "",
        "xbatcher, windows in random order": ", beside xbatcher",
    }
    return [
        {
            "name": f"streaming, shuffled, {workers} workers{label}",
            "ours": median["ours"],
            "peer": median[peer],
            "peer_name": peer,
            "limit": median["limit"],
            "unit": "windows/s",
            "ratio_to_peer": median["ours"] / median[peer],
            "ratio_to_limit": median["ours"] / median["limit"],
            "spread": (high - low) / median["ours"],
        }
        for peer, label in beside.items()
        if peer in median
    ]


def _naive(dataset: xr.Dataset, trajectories: int, mean: float) -> Iterator[torch.Tensor]:
    generator = np.random.default_rng(0)
    for _ in range(math.ceil(NAIVE_WINDOWS / BATCH)):
        windows = []
        for _ in range(BATCH):
            start = int(generator.integers(FRAMES - WINDOW + 1))
            window = dataset["vorticity"].isel(
                trajectory=int(generator.integers(trajectories)),
                time=slice(start, start + WINDOW),
            )
            windows.append(torch.from_numpy(window.values) - mean)
        yield torch.stack(windows)


def _xbatcher(dataset: xr.Dataset, trajectories: int, mean: float) -> Iterator[torch.Tensor]:
    from xbatcher import BatchGenerator

    windows = BatchGenerator(
        dataset[["vorticity"]].isel(trajectory=slice(0, trajectories)),
        input_dims={"trajectory": 1, "time": WINDOW, "y": SIZE, "x": SIZE},
        input_overlap={"time": WINDOW - 1},
        preload_batch=False,
    )
    chosen = np.random.default_rng(0).permutation(len(windows))[:NAIVE_WINDOWS]
    for few in np.array_split(chosen, math.ceil(NAIVE_WINDOWS / BATCH)):
        batch = [torch.from_numpy(windows[int(i)]["vorticity"].values) - mean for i in few]
        yield torch.cat(batch)


def _in_turn(tasks: dict[str, Callable[[], int]]) -> dict[str, list[float]]:
    """Windows per second of each task, run in turn; the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(REPEATS + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            windows = task()
            if repeat:
                rates[name].append(windows / (time.perf_counter() - start))
    return rates


if __name__ == "__main__":
    for entry in run():
        print(entry)
