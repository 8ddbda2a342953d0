"""What a cube is understood to be, how fast it can be read, and what would make it faster."""

from __future__ import annotations

import logging
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from data_modules.axes import is_latitude, is_longitude, listed
from data_modules.calendars import GAP, show
from data_modules.chunks import open_array
from data_modules.climate_cube import IN_MEMORY_BYTES
from data_modules.cube import Cube, open_cube
from data_modules.sources import is_zarr

logger = logging.getLogger(__name__)

MEASURED_BYTES = 2**26  # read at once, at most, to measure
ALONE = 8  # windows read one by one
CHUNK_BYTES = 2**20  # of a chunk as it should be, decoded
SHARD_BYTES = 2**26
FEW_FILES = 10_000
SHOWN_GAPS = 5


@dataclass(frozen=True)
class Storage:
    """How a variable is stored.

    Args:
        format: Such as "Zarr v3" or "NetCDF".
        dtype: Of the stored numbers.
        dims: Its dimensions, in order.
        shape: Their sizes.
        chunks: Entries in a chunk; None when it is stored as a whole.
        shards: Entries in a shard, if there are any.
        absent: Files of the array that are not there; None where that is not known.
    """

    format: str
    dtype: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    shards: tuple[int, ...] | None
    absent: int | None = None

    @property
    def files(self) -> int:
        """Number of files or objects that hold it."""
        sizes = self.shards or self.chunks or self.shape
        return math.prod(math.ceil(n / size) for n, size in zip(self.shape, sizes, strict=True))


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Args:
        cube: The cube as it was understood.
        storage: How each variable is stored.
        window_length: Frames in a window, as measured.
        gaps: Times before and after each gap.
        streamed: Windows per second when chunks are read as a whole and windows taken from them;
            None where nothing was measured.
        alone: Windows per second when each is read by itself.
        buffer_bytes: What streaming with shuffling holds in memory.
        reasons: Why other chunks would be better; empty when these are good.
        chunks: Better chunks.
        shards: Better shards.
    """

    cube: Cube
    storage: dict[str, Storage]
    window_length: int
    gaps: list[tuple[str, str]]
    streamed: float | None
    alone: float | None
    buffer_bytes: int
    reasons: list[str]
    chunks: dict[str, int]
    shards: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all frames as float32."""
        return self.cube.frame_bytes * len(self.cube.times) * self.cube.trajectories

    @property
    def command(self) -> str | None:
        """The command that rewrites the cube; None when there is no need."""
        if not self.reasons:
            return None
        paths = self.cube.source.paths
        name = Path(paths[0].rstrip("/")).stem if len(paths) == 1 else "joined"
        given = paths[0] if len(paths) == 1 else "[" + ",".join(paths) + "]"
        words = ["dyngen", "rechunk", "--cube", given, "--out", f"{name}_rechunked.zarr"]
        words += [f"--chunks.{dim}={size}" for dim, size in self.chunks.items()]
        words += [f"--shards.{dim}={size}" for dim, size in self.shards.items()]
        stored = dict.fromkeys(channel.variable for channel in self.cube.channels)
        words += [f"--variables={list(stored)}".replace("'", "").replace(" ", "")]
        for key, value in self.cube.source.storage_options.items():
            if key in ("anon", "endpoint_url", "requester_pays") or value == "anon":  # no secrets
                words.append(f"--storage_options.{key}={str(value).lower()}")
        return shlex.join(words)


def inspect(
    cube: str | Path | list[str],
    variables: list[str] | None = None,
    window_length: int = 2,
    time_dim: str | None = None,
    trajectory_dim: str | None = None,
    spatial_dims: tuple[str, str] | None = None,
    missing: Literal["refuse", "fill"] = "fill",
    shuffle_buffer: int = 128,
    measure: bool = True,
    storage_options: dict[str, Any] | None = None,
) -> Inspection:
    """Say what a cube is understood to be, how fast it is read, and what would make it faster.

    Nothing is written, and of the fields no more is read than a few windows.

    Args:
        cube: A Zarr group or NetCDF file, a pattern or a list of them, on disk or behind a URL.
        variables: Names of the variables; by default all that have time and space.
        window_length: Frames in the windows that are measured.
        time_dim: Name of the dimension of time, where it is not recognised.
        trajectory_dim: Name of the dimension of trajectories, likewise.
        spatial_dims: Names of the two dimensions in space, rows first, likewise.
        missing: Whether missing values stop the measurement, or are passed over.
        shuffle_buffer: MiB of frames that training would read and shuffle together.
        measure: Read some windows and time it.
        storage_options: For the file system of a URL, as fsspec takes them.

    Returns:
        What was found; it is logged as well.

    Raises:
        DataError: If the cube cannot be used, saying why.
    """
    opened = open_cube(
        cube,
        variables,
        time_dim=time_dim,
        trajectory_dim=trajectory_dim,
        spatial_dims=spatial_dims,
        missing=missing,
        storage_options=storage_options,
    )
    found = examine(opened, window_length, shuffle_buffer, measure)
    for line in describe(found):
        logger.info("%s", line)
    return found


def examine(
    cube: Cube, window_length: int = 2, shuffle_buffer: int = 128, measure: bool = True
) -> Inspection:
    """What there is to say of a cube; see `Inspection`."""
    names = dict.fromkeys(channel.variable for channel in cube.channels)
    storage = {name: _storage(cube, name) for name in names}
    runs = cube.runs()
    gaps = [(show(cube.times[stop - 1]), show(cube.times[stop])) for _, stop in runs[:-1]]
    longest = max(stop - start for start, stop in runs)
    window = min(window_length, longest)
    streamed = _streamed(cube, window) if measure else None
    alone = _alone(cube, window) if measure else None
    reasons = [r for name, s in storage.items() for r in _faults(cube, name, s, shuffle_buffer)]
    chunks, shards = better_layout(cube, storage)
    group = max(shuffle_buffer * 2**20, cube.frame_bytes * cube.chunks[0] * cube.chunks[1])
    total = cube.frame_bytes * len(cube.times) * cube.trajectories
    return Inspection(
        cube=cube,
        storage=storage,
        window_length=window,
        gaps=gaps,
        streamed=streamed,
        alone=alone,
        buffer_bytes=total if total < IN_MEMORY_BYTES else 3 * min(group, total),
        reasons=list(dict.fromkeys(reasons)),
        chunks=chunks,
        shards=shards,
    )


def better_layout(cube: Cube, storage: dict[str, Storage]) -> tuple[dict[str, int], dict[str, int]]:
    """Chunks of whole frames of about a MiB, and shards of about 64 MiB, by dimension.

    A window is then in one chunk or two, a chunk is decoded in a millisecond or so, and files are
    few and as large as disks and buckets like them.
    """
    frame = 4 * cube.shape[0] * cube.shape[1]
    level_dims = {c.level_dim for c in cube.channels if c.level_dim is not None}
    levels = {dim: cube.dataset.sizes[dim] for dim in level_dims}
    together = max(levels.values(), default=1)
    if frame * together > 8 * CHUNK_BYTES:
        together, levels = 1, dict.fromkeys(levels, 1)
    frames = len(cube.times)
    chunk = max(1, min(frames, CHUNK_BYTES // (frame * together)))
    chunk = 2 ** int(math.log2(chunk))
    many = max(1, min(math.ceil(frames / chunk), SHARD_BYTES // (frame * together * chunk)))
    leading = {} if cube.trajectory_dim is None else {cube.trajectory_dim: 1}
    space = dict(zip(cube.dims, cube.shape, strict=True))
    known = {str(dim) for s in storage.values() for dim in s.dims}
    sizes = {**leading, cube.time_dim: chunk, **levels, **space}
    return (
        {dim: size for dim, size in sizes.items() if dim in known},
        {cube.time_dim: chunk * many},
    )


def describe(found: Inspection) -> list[str]:
    """The lines that `inspect` logs."""
    cube = found.cube
    first, last = show(cube.times[0]), show(cube.times[-1])
    kind = next(iter(found.storage.values())).format
    lines = [
        f"cube          {cube.path} ({kind}, {_bytes(found.total_bytes)} as float32)",
        f"grid          {_grid(cube)}",
        f"time          {cube.time_dim}: {len(cube.times)} frames, {first} to {last}, "
        f"{_step(cube)} apart, {_calendar(cube)}",
    ]
    if cube.trajectory_dim is not None:
        lines.append(f"trajectories  {cube.trajectory_dim}: {cube.trajectories}")
    shown = [f"{before} to {after}" for before, after in found.gaps[:SHOWN_GAPS]]
    more = "" if len(found.gaps) <= SHOWN_GAPS else f", and {len(found.gaps) - SHOWN_GAPS} more"
    lines.append(f"gaps          {'none' if not shown else '; '.join(shown) + more}")
    for name, attrs in cube.variables.items():
        units = attrs.get("units", "no units")
        lines.append(f"channel       {name} [{units}] {attrs.get('long_name', '')}".rstrip())
    for name, storage in found.storage.items():
        lines.append(f"stored        {name}: {_layout(storage)}")
        if storage.absent:
            lines.append(
                f"              {storage.absent} of {storage.files} files of '{name}' are not "
                "there: they read as its fill value"
            )
    if found.total_bytes < IN_MEMORY_BYTES:
        lines.append(f"memory        {_bytes(found.buffer_bytes)}: the whole of it is held")
    else:
        lines.append(f"memory        {_bytes(found.buffer_bytes)} for streaming with shuffling")
    if found.streamed is not None and found.alone is not None:
        lines.append(
            f"speed         about {found.streamed:,.0f} windows/s of {found.window_length} frames "
            f"streamed by one process, {found.alone:,.0f} read one by one"
        )
    lines += [f"slow because  {reason}" for reason in found.reasons]
    if found.command:
        lines.append(f"better        {found.command}")
    else:
        lines.append("chunks        good as they are")
    return lines


def _storage(cube: Cube, name: str) -> Storage:
    array = cube.dataset[name]
    dims, shape = tuple(map(str, array.dims)), array.shape
    dtype = str(np.dtype(array.encoding.get("dtype", array.dtype)))
    if not is_zarr(cube.source.paths[0]):
        preferred = array.encoding.get("preferred_chunks")
        chunks = None if not preferred else tuple(int(preferred[d]) for d in dims)
        return Storage("NetCDF", dtype, dims, shape, chunks, None)
    if len(cube.source.paths) > 1:
        chunks = tuple(array.encoding.get("chunks") or shape)
        return Storage("Zarr", dtype, dims, shape, chunks, array.encoding.get("shards"))
    stored = open_array(cube.source, name)
    version = f"Zarr v{stored.metadata.zarr_format}"
    storage = Storage(version, dtype, dims, shape, stored.chunks, stored.shards)
    if storage.files > FEW_FILES:  # counting them would take long
        return storage
    return Storage(
        version, dtype, dims, shape, stored.chunks, stored.shards, _absent(stored, storage.files)
    )


def _absent(stored: zarr.Array[Any], files: int) -> int | None:
    try:
        # With shards, Zarr counts the chunks that those which are there could hold.
        sizes = zip(stored.shards or stored.chunks, stored.chunks, strict=True)
        each = math.prod(shard // chunk for shard, chunk in sizes)
        return files - stored.nchunks_initialized // each
    except Exception:  # a store that cannot list what it has
        return None


def _faults(cube: Cube, name: str, storage: Storage, shuffle_buffer: int) -> list[str]:
    """Why the chunks of a variable are slow to read windows from."""
    if storage.chunks is None:  # as a whole: any piece of it is read as it is
        return []
    chunks = dict(zip(storage.dims, storage.chunks, strict=True))
    frame = dict(zip(cube.dims, cube.shape, strict=True))
    pieces = math.prod(math.ceil(frame[dim] / chunks[dim]) for dim in frame)
    decoded = 4 * math.prod(chunks.values())
    long = 4 * math.prod(frame.values()) * chunks[cube.time_dim]
    faults = []
    if pieces > 1:
        faults.append(f"a frame of '{name}' is in {pieces} chunks, which are read for each window")
    if long > shuffle_buffer * 2**20 // 4 and chunks[cube.time_dim] > 1:
        faults.append(
            f"a chunk of '{name}' spans {chunks[cube.time_dim]} frames ({_bytes(long)}), so that "
            "few of them are shuffled together"
        )
    if decoded < CHUNK_BYTES // 16 and len(cube.times) > chunks[cube.time_dim]:
        faults.append(f"a chunk of '{name}' holds {_bytes(decoded)}, which costs a read each")
    if storage.format != "NetCDF" and storage.files > FEW_FILES:
        faults.append(f"'{name}' is in {storage.files} files")
    return faults


def _streamed(cube: Cube, window: int) -> float:
    """Windows per second of a few spans of whole chunks, read as training reads them."""
    deep, long = cube.chunks
    frames = max(long, MEASURED_BYTES // (cube.frame_bytes * deep) // long * long)
    frames = min(frames, len(cube.times))
    rates = []
    for start in np.linspace(0, len(cube.times) - frames, 3).astype(int).tolist():
        piece = slice(start - start % long, min(start - start % long + frames, len(cube.times)))
        rows = slice(0, min(deep, cube.trajectories))
        began = time.perf_counter()
        cube.read(rows, piece)
        count = (piece.stop - piece.start - window + 1) * (rows.stop - rows.start)
        rates.append(max(count, 1) / (time.perf_counter() - began))
    return float(np.median(rates))


def _alone(cube: Cube, window: int) -> float:
    """Windows per second when each is read by itself, at random."""
    generator = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(ALONE):
        start = int(generator.integers(len(cube.times) - window + 1))
        row = int(generator.integers(cube.trajectories))
        cube.read(slice(row, row + 1), slice(start, start + window))
    return ALONE / (time.perf_counter() - began)


def _grid(cube: Cube) -> str:
    parts = []
    for dim, size, edge in zip(cube.dims, cube.shape, cube.boundary, strict=True):
        if dim not in cube.coords:
            parts.append(f"{dim}: {size} without a coordinate, {edge}")
            continue
        _, values, attrs = cube.coords[dim]
        kind = "latitude" if is_latitude(dim, attrs) else ""
        kind = "longitude" if is_longitude(dim, attrs) else kind
        ends = f"{values[0]:g} to {values[-1]:g} {attrs.get('units', '')}".rstrip()
        parts.append(f"{dim}: {size}{', ' + kind if kind else ''}, {ends}, {edge}")
    others = [name for name in cube.coords if name not in cube.dims]
    return "; ".join(parts) + (f"; also {listed(others)}" if others else "")


def _step(cube: Cube) -> str:
    if cube.calendar is None:
        units = str(cube.time_attributes.get("units", "1"))
        return f"{cube.step:g}" + ("" if units == "1" else f" {units}")
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if cube.step >= seconds:
            even = np.ptp(np.diff(cube.time_numbers)[np.diff(cube.time_numbers) < GAP * cube.step])
            about = "about " if len(cube.times) > 2 and even > 1e-3 * cube.step else ""
            many = unit if cube.step != seconds else unit[:-1]
            return f"{about}{cube.step / seconds:g} {many}"
    return f"{cube.step:g} seconds"


def _calendar(cube: Cube) -> str:
    return "numbers without a calendar" if cube.calendar is None else f"calendar {cube.calendar}"


def _layout(storage: Storage) -> str:
    def sizes(values: tuple[int, ...]) -> str:
        return " x ".join(f"{d} {n}" for d, n in zip(storage.dims, values, strict=True))

    if storage.chunks is None:
        return f"{storage.dtype}, as a whole"
    text = f"{storage.dtype}, chunks of {sizes(storage.chunks)}"
    if storage.shards:
        text += f", shards of {sizes(storage.shards)}"
    decoded = math.prod(storage.chunks) * 4
    text += f" ({_bytes(decoded)} decoded)"
    return text if storage.format == "NetCDF" else f"{text}, {storage.files} files"


def _bytes(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"
