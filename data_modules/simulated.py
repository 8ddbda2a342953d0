"""Cubes of simulated worlds on disk: sharded Zarr v3, written as the simulation runs."""

import dataclasses
import logging
import math
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from dyngen.simulate.turbulence import Turbulence, evolve

logger = logging.getLogger(__name__)

DIMENSIONS = ("trajectory", "time", "y", "x")
CHUNK_BYTES = 2**18  # small enough to read a short window without much waste
SHARD_BYTES = 2**24  # one file; a batch of them is what a run holds in memory


def write_turbulence(
    path: Path | str,
    parameters: Turbulence = Turbulence(),  # noqa: B008 (frozen)
    *,
    trajectories: int = 64,
    frames: int = 250,
    seed: int = 0,
    batch: int = 16,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Simulate forced two-dimensional turbulence and write it as a Zarr cube.

    The cube appears at `path` when it is complete: until then it grows beside it, in a folder whose
    name ends in `.partial`, which an interrupted run leaves behind at worst and the next one
    removes.

    Args:
        path: Folder of the cube, such as `turbulence.zarr`.
        parameters: What to simulate.
        trajectories: Independent trajectories.
        frames: Frames of each trajectory, the first at the end of the spin-up.
        seed: Names the randomness. A trajectory depends on the seed and on its own number alone.
        batch: Trajectories computed together; changes the speed and the memory, not the numbers.
        device: Where to compute, such as `cpu` or `cuda`.
        overwrite: Replace what is at `path`.
        progress: Show a progress bar.

    Returns:
        `path`.

    Raises:
        FileExistsError: Something is at `path` and `overwrite` is off.
        ValueError: A parameter is out of its range, or `dt` is too large for the flow.
    """
    path = Path(path)
    for name, value in (("trajectories", trajectories), ("frames", frames), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; choose another path, or pass overwrite=True to replace it."
        )
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        vorticity = _create(partial, parameters, trajectories, frames, seed)
        with _progress_bar(progress) as bar:
            task = bar.add_task("simulating turbulence", total=trajectories * frames)
            for first in range(0, trajectories, batch):
                numbers = range(first, min(first + batch, trajectories))
                stream = evolve(parameters, numbers, seed=seed, device=device)
                for start, block in _blocks(stream, frames, vorticity.shards[1]):
                    vorticity[first : numbers.stop, start : start + block.shape[1]] = block
                    bar.advance(task, len(numbers) * block.shape[1])
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    logger.info("wrote %d trajectories of %d frames to %s", trajectories, frames, path)
    return path


def _create(
    path: Path, parameters: Turbulence, trajectories: int, frames: int, seed: int
) -> zarr.Array:
    """An empty cube with its coordinates and attributes; returns the vorticity array."""
    n = parameters.output_resolution
    group = zarr.create_group(path, zarr_format=3)
    group.attrs.update(
        {
            "Conventions": "CF-1.11",
            "title": "Forced two-dimensional turbulence",
            "source": f"dyngen {version('dyngen')}, dyngen.simulate.turbulence",
            "dyngen_version": version("dyngen"),
            "seed": seed,
            "parameters": dataclasses.asdict(parameters),
        }
    )
    points = np.arange(n) * (parameters.box / n)
    times = np.arange(frames) * parameters.output_interval
    horizontal = {"units": "1", "boundary": "periodic", "period": parameters.box}
    coordinates: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "trajectory": (np.arange(trajectories), {"long_name": "trajectory", "units": "1"}),
        "time": (times, {"long_name": "time since the end of the spin-up", "units": "1"}),
        "y": (points, {"long_name": "y", "axis": "Y", **horizontal}),
        "x": (points, {"long_name": "x", "axis": "X", **horizontal}),
    }
    for name, (values, attributes) in coordinates.items():
        group.create_array(name, data=values, dimension_names=[name], attributes=attributes)

    chunk = min(frames, max(1, CHUNK_BYTES // (4 * n * n)))
    shard = chunk * min(math.ceil(frames / chunk), max(1, SHARD_BYTES // (4 * n * n * chunk)))
    return group.create_array(
        "vorticity",
        shape=(trajectories, frames, n, n),
        chunks=(1, chunk, n, n),
        shards=(1, shard, n, n),
        dtype="float32",
        fill_value=float("nan"),
        dimension_names=DIMENSIONS,
        attributes={
            "long_name": "vorticity, positive anticlockwise",
            "units": "1",
        },
    )


def _blocks(stream: Iterator[Tensor], frames: int, length: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first frame, float32 array (trajectory, time, y, x)) of at most `length` frames each."""
    for start in range(0, frames, length):
        block = [next(stream) for _ in range(min(length, frames - start))]
        yield start, torch.stack(block, dim=1).to("cpu", torch.float32).numpy()


def _progress_bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not show,
    )
