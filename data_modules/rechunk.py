"""Write a cube again with other chunks and shards, for reading windows at speed.

The new cube is Zarr v3 with whole shards for files. It grows beside its place, in a folder whose
name ends in `.partial`, piece by piece; a run that was killed is gone on with by the same command,
and one that is finished is left alone. Of a single cube the stored values are copied as they are,
packed or not, so that nothing is lost; several files are joined first and written unpacked.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array
import fsspec
import numpy as np
import xarray as xr
import zarr
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from zarr.codecs import BloscCodec

from data_modules.axes import existing, find_time_dim, listed
from data_modules.errors import DataError
from data_modules.sources import Source, find_source, first_line, is_remote, trouble_at

logger = logging.getLogger(__name__)

JOURNAL = ".rechunk.json"  # in the cube: what was asked for, and how much of it is done
LOCAL_SCHEDULERS = ("threads", "processes", "synchronous")

Region = dict[str, slice]


def rechunk(
    cube: str | Path | list[str],
    out: str | Path,
    chunks: dict[str, int],
    shards: dict[str, int] | None = None,
    variables: list[str] | None = None,
    scheduler: str = "threads",
    memory: int = 1024,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
    out_storage_options: dict[str, Any] | None = None,
    progress: bool = True,
) -> str:
    """Write a cube again with other chunks; run again, it goes on.

    Args:
        cube: A Zarr group or NetCDF file, a pattern or a list of them, on disk or behind a URL.
        out: Zarr to write, on disk or behind a URL.
        chunks: Entries in a chunk for each dimension, such as `--chunks.time=32`; dimensions that
            are not named are not divided.
        shards: Entries in a shard, a file, in multiples of chunks; by default a shard is a chunk.
        variables: Variables to write; by default all.
        scheduler: Where dask computes: threads, processes or synchronous on this machine,
            distributed for a cluster of processes on it, or the address of a running one, such as
            tcp://head:8786.
        memory: MiB of the cube that are in memory at a time.
        overwrite: Replace what is at `out`.
        storage_options: For the file system of `cube`, where it is a URL.
        out_storage_options: Likewise for `out`.
        progress: Show a progress bar.

    Returns:
        Where the new cube is.

    Raises:
        DataError: If the cube cannot be read, chunks do not fit it, or something else is at `out`.
    """
    source = find_source(cube, storage_options)
    target = _Target(str(out).rstrip("/"), dict(out_storage_options or {}))
    with ExitStack() as stack:
        dataset = stack.enter_context(_opened(source, variables))
        time_dim = find_time_dim(dataset, source.name, None)
        large = [
            str(name)
            for name, array in dataset.data_vars.items()
            if time_dim in array.dims and array.ndim > 1 and array.dtype.kind in "fiu"
        ]
        if not large:
            raise DataError(f"{source.name} has no variable over {time_dim} and space to rechunk.")
        layout = _layout(dataset, source.name, chunks, shards)
        settings = {
            "cube": [p if is_remote(p) else str(Path(p).resolve()) for p in source.paths],
            "variables": {name: [str(d) for d in dataset[name].dims] for name in large},
            "sizes": {str(dim): size for dim, size in dataset.sizes.items()},
            "chunks": {dim: chunk for dim, (chunk, _) in layout.items()},
            "shards": {dim: shard for dim, (_, shard) in layout.items()},
        }
        if target.finished(settings, overwrite):
            logger.info("%s was finished already", target.path)
            return target.path
        pieces = list(_pieces(dataset, large, layout, time_dim, memory * 2**20))
        done = target.begin(dataset, large, layout, settings)
        stack.enter_context(_computing(scheduler))
        bar = stack.enter_context(_progress_bar(progress))
        task = bar.add_task("rechunking", total=len(pieces), completed=done)
        for number, piece in enumerate(pieces[done:], done + 1):
            _copy(dataset, large, layout, piece, target, source.name)
            target.record(settings, number)
            bar.advance(task)
    target.finish()
    logger.info("wrote %s to %s", listed(large), target.path)
    return target.path


@dataclass(frozen=True)
class _Target:
    """The new cube: at `path` when it is finished, beside it until then."""

    path: str
    options: dict[str, Any]

    @property
    def partial(self) -> str:
        return f"{self.path}.partial"

    def _system(self, path: str) -> tuple[Any, str]:
        try:
            system, root = fsspec.core.url_to_fs(path, **self.options)
        except Exception as error:
            raise DataError(
                trouble_at(path, error) or f"{path} cannot be written ({first_line(error)})."
            ) from error
        return system, root

    def finished(self, settings: Mapping[str, Any], overwrite: bool) -> bool:
        """Whether all is done; what is there and is not this is removed or refused."""
        for path in (self.path, self.partial):
            system, root = self._system(path)
            try:
                there = system.exists(root)
                journal = self._journal(path) if there else {}
            except Exception as error:
                raise DataError(
                    trouble_at(path, error) or f"{path} cannot be read ({first_line(error)})."
                ) from error
            if not there:
                continue
            if journal.get("settings") == settings and not overwrite:
                return path == self.path
            if not overwrite:
                raise DataError(
                    f"{path} exists and is not the same cube with the same chunks; choose another "
                    "path, or ask to overwrite it."
                )
            system.rm(root, recursive=True)
        return False

    def _journal(self, path: str) -> dict[str, Any]:
        system, root = self._system(path)
        if not system.exists(f"{root}/{JOURNAL}"):
            return {}
        try:
            read = json.loads(system.cat_file(f"{root}/{JOURNAL}"))
        except ValueError:  # killed while it was written
            return {}
        return read if isinstance(read, dict) else {}

    def begin(
        self,
        dataset: xr.Dataset,
        large: list[str],
        layout: Mapping[str, tuple[int, int]],
        settings: Mapping[str, Any],
    ) -> int:
        """Make the empty cube unless it is there; how many pieces of it are done."""
        done = int(self._journal(self.partial).get("done", -1))
        if done >= 0:
            return done
        encoding: dict[str, dict[str, Any]] = {}
        for name in large:
            dims = [str(dim) for dim in dataset[name].dims]
            encoding[name] = {
                "chunks": tuple(layout[dim][0] for dim in dims),
                "shards": tuple(layout[dim][1] for dim in dims),
                "compressors": (BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),),
            }
            missing = dataset[name].attrs.get("_FillValue")
            if missing is None and dataset[name].dtype.kind == "f":
                missing = np.nan
            if missing is not None:
                encoding[name]["fill_value"] = dataset[name].dtype.type(missing)
        small = [name for name in dataset.variables if name not in large]
        with warnings.catch_warnings():  # about what has no specification yet
            warnings.simplefilter("ignore")
            dataset.assign({n: dataset[n].load() for n in small if n in dataset.data_vars}).to_zarr(
                self.partial,
                mode="w",
                zarr_format=3,
                consolidated=False,
                compute=False,
                safe_chunks=False,  # its values are written later, by whole shards
                encoding=encoding,
                storage_options=self.options if is_remote(self.path) else None,
            )
        self.record(settings, 0)
        return 0

    def record(self, settings: Mapping[str, Any], done: int) -> None:
        system, root = self._system(self.partial)
        # Sorted: zarr lists what is in a cube in no particular order.
        text = json.dumps({"settings": settings, "done": done}, indent=1, sort_keys=True).encode()
        if is_remote(self.path):
            system.pipe_file(f"{root}/{JOURNAL}", text)
        else:  # replaced at once
            temporary = Path(root) / f"{JOURNAL}.new"
            temporary.write_bytes(text)
            temporary.replace(Path(root) / JOURNAL)

    def array(self, name: str) -> zarr.Array[Any]:
        return zarr.open_array(
            f"{self.partial}/{name}",
            mode="r+",
            storage_options=self.options if is_remote(self.path) else None,
            # A shard that is not there is one that got lost, not one of zeros.
            config={"write_empty_chunks": True},
        )

    def finish(self) -> None:
        options = self.options if is_remote(self.path) else None
        group = zarr.open_group(self.partial, mode="r+", storage_options=options)
        with warnings.catch_warnings():  # zarr warns that version 3 has no such file yet
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(group.store)
        system, root = self._system(self.partial)
        final = self._system(self.path)[1]
        if not is_remote(self.path):
            Path(root).rename(final)
            return
        files = system.find(root)  # buckets have no folders that could be renamed
        system.copy(files, [final + file[len(root) :] for file in files])
        system.rm(root, recursive=True)


def _opened(source: Source, variables: list[str] | None) -> xr.Dataset:
    """The cube behind dask, by its own chunks; a single one as it is stored, without decoding."""
    single = len(source.paths) == 1
    dataset = source.open(decode=not single)
    dataset = dataset.chunk(
        {str(dim): size for dim, size in _stored_chunks(dataset).items()} if single else {}
    )
    for name in variables or ():
        if name not in dataset.data_vars:
            raise DataError(
                f"{source.name} has no variable '{name}'; it has {listed(dataset.data_vars)}."
            )
    if variables:
        others = [name for name in dataset.data_vars if name not in variables]
        dataset = dataset.drop_vars(others)
    for key, variable in dataset.variables.items():
        if single:
            variable.encoding = {}
            continue
        known = ("units", "calendar") if variable.dtype.kind in "MO" else ()
        variable.encoding = {k: v for k, v in variable.encoding.items() if k in known}
        if key in dataset.data_vars and variable.dtype == np.float64:
            dataset[key] = dataset[key].astype(np.float32)
    return dataset


def _stored_chunks(dataset: xr.Dataset) -> dict[str, int]:
    """The largest chunk along each dimension among the variables, or one entry's worth."""
    sizes: dict[str, int] = {}
    for array in dataset.data_vars.values():
        for dim, size in (array.encoding.get("preferred_chunks") or {}).items():
            sizes[str(dim)] = max(sizes.get(str(dim), 1), int(size))
    return sizes


def _layout(
    dataset: xr.Dataset, path: str, chunks: Mapping[str, int], shards: Mapping[str, int] | None
) -> dict[str, tuple[int, int]]:
    """Chunk and shard of each dimension."""
    for argument, given in (("chunks", chunks), ("shards", shards or {})):
        for dim, size in given.items():
            existing(dataset, path, dim, argument)
            if size < 1:
                raise DataError(f"{argument} has {size} for '{dim}'; make it 1 or more.")
    layout = {}
    for dim in map(str, dataset.sizes):
        size = dataset.sizes[dim]
        chunk = min(chunks.get(dim, size), size)
        shard = (shards or {}).get(dim, chunk)
        if shard % chunk:
            raise DataError(
                f"shards has {shard} for '{dim}', which is no multiple of its chunks of {chunk}; "
                f"make it {math.ceil(shard / chunk) * chunk}."
            )
        layout[dim] = (chunk, min(shard, math.ceil(size / chunk) * chunk))
    return layout


def _pieces(
    dataset: xr.Dataset,
    large: list[str],
    layout: Mapping[str, tuple[int, int]],
    time_dim: str,
    memory: int,
) -> Iterator[Region]:
    """Regions of whole shards that fit into memory: as many frames at once as that allows.

    Where that leaves room, one takes whole chunks of the old cube too, so that none is read twice.
    """
    dims = dict.fromkeys(str(dim) for name in large for dim in dataset[name].dims)
    spatial = set.intersection(*({str(d) for d in dataset[name].dims} for name in large))
    spatial -= {time_dim}
    extent = {d: dataset.sizes[d] if d in spatial else layout[d][1] for d in dims}
    extent[time_dim] = layout[time_dim][1]

    def needed() -> int:
        # What is read and what is written, both.
        return 2 * sum(
            dataset[name].dtype.itemsize * math.prod(extent[str(d)] for d in dataset[name].dims)
            for name in large
        )

    for dim in sorted(spatial, key=lambda d: layout[d][1] - dataset.sizes[d]):
        if needed() > memory:
            extent[dim] = min(layout[dim][1], dataset.sizes[dim])
    fit = max(memory // max(needed(), 1), 1)
    old = max((dataset[n].chunksizes.get(time_dim, (1,))[0] for n in large), default=1)
    both = math.lcm(layout[time_dim][1], old) // layout[time_dim][1]
    extent[time_dim] *= fit - fit % both if fit >= both else fit
    ranges = [
        [
            slice(a, min(a + extent[d], dataset.sizes[d]))
            for a in range(0, dataset.sizes[d], extent[d])
        ]
        for d in dims
    ]
    for region in itertools.product(*ranges):
        yield dict(zip(dims, region, strict=True))


def _copy(
    dataset: xr.Dataset,
    large: list[str],
    layout: Mapping[str, tuple[int, int]],
    piece: Region,
    target: _Target,
    name_of_cube: str,
) -> None:
    blocks, regions = [], []
    arrays: Any = []
    for name in large:
        dims = [str(dim) for dim in dataset[name].dims]
        region = {dim: piece[dim] for dim in dims}
        data = dataset[name].isel(region).data
        blocks.append(data.rechunk(tuple(layout[dim][1] for dim in dims)))
        arrays.append(target.array(name))
        regions.append(tuple(region[dim] for dim in dims))
    try:
        dask.array.store(blocks, arrays, regions=regions, lock=False, compute=True)
    except OSError as error:
        raise DataError(
            trouble_at(name_of_cube, error)
            or trouble_at(target.path, error)
            or f"{name_of_cube} cannot be copied to {target.path} ({first_line(error)}); the same "
            "command goes on from what is there."
        ) from error
    except Exception as error:  # each codec raises its own
        raise DataError(
            trouble_at(name_of_cube, error)
            or f"{name_of_cube} cannot be read ({first_line(error)}); the file may be damaged."
        ) from error


def _computing(scheduler: str) -> Any:
    """A context in which dask computes where it was asked to."""
    if scheduler in LOCAL_SCHEDULERS:
        return dask.config.set(scheduler=scheduler)
    if scheduler != "distributed" and not is_remote(scheduler):
        raise DataError(
            f"scheduler is '{scheduler}'; it can be {', '.join(LOCAL_SCHEDULERS)}, distributed, or "
            "an address such as tcp://head:8786."
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError(
            f"The scheduler {scheduler} needs the package distributed; install it: pip install "
            "distributed."
        ) from error
    try:
        return Client() if scheduler == "distributed" else Client(scheduler, timeout=20)
    except OSError as error:
        raise DataError(
            f"No dask scheduler answers at {scheduler} ({first_line(error)}); start one there, or "
            "correct the address."
        ) from error


def _progress_bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pieces"),
        TimeRemainingColumn(),
        disable=not show,
    )
