"""Which chunks of a Zarr array are there: what is not reads as the fill value, without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.sync import sync
from zarr.storage import StorePath

from data_modules.sources import Source, is_remote, is_zarr


def decoded_fill(array: xr.DataArray) -> float:
    """What a chunk of a variable that is not stored reads as, in physical units.

    Args:
        array: A variable as xarray opened it from Zarr.
    """
    encoding = array.encoding
    fill = encoding.get("fill_value", encoding.get("_FillValue"))
    fill = 0.0 if fill is None else float(fill)
    masked = [encoding.get("_FillValue"), encoding.get("missing_value")]
    if any(value is not None and float(value) == fill for value in masked):
        return float("nan")
    return fill * float(encoding.get("scale_factor", 1)) + float(encoding.get("add_offset", 0))


def all_fill(array: xr.DataArray, values: np.ndarray) -> np.ndarray:
    """Where all of the last two dimensions are what a missing chunk reads as.

    Args:
        array: The variable, for what that is.
        values: float32 (..., H, W).

    Returns:
        bool (...); nowhere for variables that are not from Zarr, or where it reads as missing.
    """
    if "compressors" not in array.encoding and "compressor" not in array.encoding:
        return np.zeros(values.shape[:-2], dtype=bool)
    fill = np.float32(decoded_fill(array))
    corners = values[..., [0, 0, -1, -1], [0, -1, 0, -1]]  # almost always enough to say no
    suspect = np.asarray((corners == fill).all(axis=-1))
    for place in map(tuple, np.argwhere(suspect)):
        suspect[place] = (values[place] == fill).all()
    return suspect


def is_stored(source: Source, array: xr.DataArray, name: str, place: Mapping[str, int]) -> bool:
    """Whether the chunk (or shard) that holds an entry of a variable is there.

    Args:
        source: The cube; with several files none is looked for.
        array: The variable.
        name: Its name.
        place: Index by dimension; 0 where not given.
    """
    if len(source.paths) > 1 or not is_zarr(source.paths[0]):
        return True
    stored = open_array(source, name)
    sizes = stored.shards or stored.chunks
    dims = zip(map(str, array.dims), sizes, strict=True)
    key = stored.metadata.encode_chunk_key(tuple(place.get(dim, 0) // size for dim, size in dims))
    return bool(sync(StorePath(stored.store, f"{stored.path}/{key}").exists()))


def open_array(source: Source, name: str) -> zarr.Array[Any]:
    """One array of a cube that is a single Zarr group."""
    path = source.paths[0]
    options = dict(source.storage_options) if is_remote(path) else None
    return zarr.open_array(f"{path.rstrip('/')}/{name}", mode="r", storage_options=options)
