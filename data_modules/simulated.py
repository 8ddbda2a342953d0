"""Cubes of simulated worlds on disk: sharded Zarr v3, written as the simulation runs."""

import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

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

from dyngen.simulate.turbulence import Turbulence, evolve, steady_force_curl

logger = logging.getLogger(__name__)

DIMENSIONS = ("trajectory", "time", "y", "x")
CHUNK_BYTES = 2**18  # small enough to read a short window without much waste
SHARD_BYTES = 2**24  # one file; a batch of them is what a run holds in memory


def write_turbulence(
    out: Path | str,
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

    The cube appears at `out` when it is complete: until then it grows beside it, in a folder whose
    name ends in `.partial`, which a killed run leaves behind at worst and the next one removes.

    On a CPU every core computes a batch of its own, so the numbers depend on `batch` in no bit. On
    a GPU they may, by rounding, which turbulence amplifies.

    Args:
        out: Folder of the cube, such as `turbulence.zarr`.
        parameters: What to simulate.
        trajectories: Independent trajectories.
        frames: Frames of each trajectory, the first at the end of the spin-up.
        seed: Names the randomness. A trajectory depends on the seed and on its own number alone.
        batch: Trajectories computed together: more take more memory; fewer batches than cores
            leave cores idle.
        device: Where to compute, such as `cpu` or `cuda`.
        overwrite: Replace what is at `out`.
        progress: Show a progress bar.

    Returns:
        `out`.

    Raises:
        FileExistsError: Something is at `out` and `overwrite` is off.
        ValueError: A parameter is out of its range, or `dt` is too large for the flow.
    """
    out = Path(out)
    for name, value in (("trajectories", trajectories), ("frames", frames), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another path, or ask to overwrite it.")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        vorticity = _create(partial, parameters, trajectories, frames, seed)
        spin_up = round(parameters.spin_up / parameters.output_interval)
        with _progress_bar(progress) as bar:
            task = bar.add_task("simulating turbulence", total=trajectories * (spin_up + frames))

            def write_batch(numbers: range, stop: Event) -> None:
                # The frames of the spin-up come out too, to show progress and to heed `stop`.
                stream = evolve(replace(parameters, spin_up=0.0), numbers, seed=seed, device=device)
                block: list[Tensor] = []
                for frame in range(-spin_up, frames):
                    if stop.is_set():
                        return
                    field = next(stream)
                    bar.advance(task, len(numbers))
                    if frame >= 0:
                        block.append(field.to("cpu", torch.float32))
                    if len(block) == _lengths(parameters, frames).shard or frame == frames - 1:
                        stretch = slice(frame + 1 - len(block), frame + 1)
                        values = torch.stack(block, dim=1).numpy()
                        vorticity[numbers.start : numbers.stop, stretch] = values
                        block = []

            batches = [
                range(first, min(first + batch, trajectories))
                for first in range(0, trajectories, batch)
            ]
            on_cpu = torch.device(device).type == "cpu"
            _side_by_side(write_batch, batches, torch.get_num_threads() if on_cpu else 1)
        _consolidate(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    logger.info("wrote %d trajectories of %d frames to %s", trajectories, frames, out)
    return out


def _side_by_side(
    work: Callable[[range, Event], None], batches: Sequence[range], workers: int
) -> None:
    """Do the work of every batch, `workers` at a time; the first error stops them all.

    Each worker uses one core. That is faster than several cores on one batch, whose small tensors
    leave them waiting for each other, and rounds the same whatever the batch.
    """
    stop = Event()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        min(workers, len(batches)), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        for done in as_completed([pool.submit(work, numbers, stop) for numbers in batches]):
            done.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads made later inherit what was set last


def _create(
    path: Path, parameters: Turbulence, trajectories: int, frames: int, seed: int
) -> zarr.Array:
    """An empty cube with its coordinates and steady force; returns the vorticity array."""
    n = parameters.output_resolution
    group = zarr.create_group(path, zarr_format=3)
    group.attrs.update(
        {
            "Conventions": "CF-1.11",
            "title": "Forced two-dimensional turbulence",
            "source": f"dyngen {version('dyngen')}, dyngen.simulate.turbulence",
            "dyngen_version": version("dyngen"),
            "seed": seed,
            "parameters": json.dumps(asdict(parameters)),
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

    if parameters.kolmogorov_amplitude:  # what no model can see in a frame: where the force lies
        group.create_array(
            "force_curl",
            data=steady_force_curl(parameters, n).numpy().astype("float32"),
            dimension_names=DIMENSIONS[2:],
            attributes={"long_name": "curl of the steady force", "units": "1"},
        )
    chunk, shard = _lengths(parameters, frames)
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


class _Lengths(NamedTuple):
    """Frames in a chunk and in a shard."""

    chunk: int
    shard: int


def _lengths(parameters: Turbulence, frames: int) -> _Lengths:
    frame_bytes = 4 * parameters.output_resolution**2
    chunk = min(frames, max(1, CHUNK_BYTES // frame_bytes))
    chunks = min(math.ceil(frames / chunk), max(1, SHARD_BYTES // (frame_bytes * chunk)))
    return _Lengths(chunk, chunk * chunks)


def _consolidate(path: Path) -> None:
    """Put all metadata into one file, which xarray otherwise warns that it misses."""
    with warnings.catch_warnings():  # zarr warns that version 3 of the format has no such file yet
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


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
