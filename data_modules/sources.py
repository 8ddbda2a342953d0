"""Where a cube lies: one path or many, on disk or behind a URL, as Zarr or NetCDF.

Paths with `://` are read through fsspec with the user's usual credentials, or with whatever
`storage_options` say: `{"anon": true}` for a public bucket of S3, `{"token": "anon"}` for one of
Google. What goes wrong on the way is told in one sentence.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import xarray as xr
import zarr

from data_modules.errors import DataError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

NETCDF = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".netcdf")
ZARR_METADATA = ("zarr.json", ".zmetadata", ".zgroup", ".zarray")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}

# Words by which file systems say what is wrong: each raises its own exceptions.
EXPIRED = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired", "SSOToken", "has expired")
NO_CREDENTIALS = (
    "NoCredentials",
    "PartialCredentials",
    "CredentialRetrieval",
    "DefaultCredentials",
)
DENIED = (
    "PermissionError",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Forbidden",
    "Unauthorized",
    " 401",
    " 403",
    "status=401",
    "status=403",
)
UNREACHABLE = (
    "ConnectionError",
    "ConnectorError",
    "ConnectorDNSError",
    "ConnectTimeout",
    "ReadTimeout",
    "TimeoutError",
    "ServerDisconnected",
    "gaierror",
    "ConnectionRefused",
    "Cannot connect to host",
)


_FORKED: list[bool] = []  # not empty in a forked process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _FORKED.append(True))


@dataclass(frozen=True)
class Source:
    """The files of a cube.

    Args:
        paths: Zarr groups or NetCDF files, which are joined by their coordinates.
        storage_options: For the file system of paths that are URLs.
    """

    paths: tuple[str, ...]
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path, or the first of several, for messages."""
        more = len(self.paths) - 1
        return self.paths[0] + (f" and {more} more" if more else "")

    def open(self, decode: bool = True) -> xr.Dataset:
        """Open lazily, without warnings about how the metadata are stored.

        Args:
            decode: Whether to decode times and packed values; of several files always.

        Raises:
            DataError: If nothing is there, or it cannot be read as Zarr or NetCDF.
        """
        if len(self.paths) == 1:
            return open_one(self.paths[0], self.storage_options, decode=decode)
        return _joined(
            [(path, open_one(path, self.storage_options, chunks={})) for path in self.paths]
        )


def find_source(path: Paths, storage_options: Mapping[str, Any] | None = None) -> Source:
    """The files that a path, a pattern such as `pr_*.nc`, or a list of these stands for.

    Raises:
        DataError: If a list is empty or a pattern matches nothing.
    """
    options = dict(storage_options or {})
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    paths = [one for each in given for one in _matches(os.fspath(each), options)]
    if not paths:
        raise DataError("path is an empty list; name at least one cube.")
    return Source(tuple(paths), options)


def open_one(
    path: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    decode: bool = True,
    chunks: dict[str, int] | None = None,
) -> xr.Dataset:
    """Open one Zarr group or NetCDF file lazily.

    Raises:
        DataError: If nothing is there, or it cannot be read as Zarr or NetCDF.
    """
    options = dict(storage_options or {})
    if is_remote(path):
        require_reachable(path, options)
    elif not Path(path).exists():
        raise DataError(_not_there(path))
    how: dict[str, Any] = {"engine": _engine(path)}
    if is_remote(path) and is_zarr(path):
        how["storage_options"] = options
    try:
        with warnings.catch_warnings(), _codecs(path):
            warnings.simplefilter("ignore")
            dataset = xr.open_dataset(
                _remote_file(path, options) if is_remote(path) and not is_zarr(path) else path,
                chunks=chunks,
                cache=False,
                decode_timedelta=False,
                decode_cf=decode,
                **how,
            )
    except Exception as error:  # each backend raises its own
        raise DataError(_why_not_opened(path, error)) from error
    if path.startswith("http") and is_zarr(path) and not dataset.variables:
        raise DataError(
            f"{path} lists no variables, since its metadata are not consolidated and {path[:5]} "
            "cannot list them; consolidate them with zarr.consolidate_metadata."
        )
    return dataset


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def is_zarr(path: str) -> bool:
    """Whether a path is taken for a Zarr group rather than a file."""
    if is_remote(path):
        return not path.lower().endswith(NETCDF)
    return Path(path).is_dir() or path.rstrip("/").endswith(".zarr")


def require_reachable(path: str, storage_options: Mapping[str, Any]) -> None:
    """Look whether anything is at a URL, so that what is wrong with it is known by its own name.

    Raises:
        DataError: If it cannot be reached, access is denied, or nothing is there.
    """
    wanted = [f"{path.rstrip('/')}/{name}" for name in ZARR_METADATA] if is_zarr(path) else [path]
    try:
        system, root = fsspec.core.url_to_fs(path, **storage_options)
        trouble: Exception | None = None
        for url in wanted:
            try:
                system.info(system._strip_protocol(url))
                return
            except Exception as error:  # each file system raises its own
                if isinstance(error, FileNotFoundError) and trouble_at(path, error) is None:
                    continue
                trouble = error
                break
        if trouble is not None and not path.startswith("http"):
            system.ls(root)  # which says the reason, where asking for a file does not
        if trouble is not None:
            raise trouble
    except Exception as error:
        if isinstance(error, FileNotFoundError) and trouble_at(path, error) is None:
            raise DataError(_not_there(path)) from error
        raise DataError(trouble_at(path, error) or _why_not_opened(path, error)) from error
    raise DataError(_not_there(path))


def trouble_at(path: str, error: BaseException) -> str | None:
    """What an exception says about access to a URL, in one sentence; None if it is not about that.

    Args:
        path: What was to be read.
        error: Of any kind; what caused it is considered as well.
    """
    if not is_remote(path):
        return None
    chain = [f"{type(e).__name__}: {e}" for e in _chain(error)]
    said = " ".join(chain)
    shown = isinstance(error, FileNotFoundError) and error.__cause__  # what it hides
    line = first_line(shown or error)
    protocol = path.partition("://")[0]
    anonymous = "{'token': 'anon'}" if protocol in ("gs", "gcs") else "{'anon': true}"
    public = "" if protocol.startswith("http") else f", or for public data {anonymous}"

    def says(words: Sequence[str]) -> bool:
        return any(word in said for word in words)

    if says(EXPIRED):
        return f"The credentials for {path} have expired ({line}); renew them and start again."
    if says(NO_CREDENTIALS):
        return (
            f"There are no credentials for {path}; configure them as for any other program, give "
            f"them in storage_options{public}."
        )
    if says(DENIED):
        return (
            f"Access to {path} is denied ({line}); give credentials that may read it in "
            f"storage_options{public}."
        )
    if says(UNREACHABLE):
        return (
            f"{path} cannot be reached ({line}); check the network, the name and, in "
            "storage_options, the endpoint."
        )
    if isinstance(error, ImportError):
        package = PACKAGES.get(protocol, protocol)
        return f"{path} needs the package {package}; install it: pip install {package}."
    return None


def first_line(error: BaseException) -> str:
    """What an exception says, in one line without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ").replace(". ", "; ")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _matches(path: str, options: Mapping[str, Any]) -> list[str]:
    if not is_remote(path):
        path = os.path.expanduser(path)
        if not glob.has_magic(path) or Path(path).exists():
            return [path]
        found = sorted(glob.glob(path, recursive=True))
    elif not glob.has_magic(path):
        return [path]
    else:
        try:
            system, pattern = fsspec.core.url_to_fs(path, **options)
            found = sorted(system.unstrip_protocol(one) for one in system.glob(pattern))
        except Exception as error:
            raise DataError(trouble_at(path, error) or _why_not_opened(path, error)) from error
    if not found:
        raise DataError(f"Nothing matches {path}; correct the path.")
    return found


def _not_there(path: str) -> str:
    return f"There is no cube at {path}; make it first, or correct the path."


def _engine(path: str) -> str | None:
    if is_zarr(path):
        return "zarr"
    return "h5netcdf" if is_remote(path) else None


def _codecs(path: str) -> AbstractContextManager[Any]:
    """Decode with `zarrs` where it is installed, in half to two thirds of the time.

    Its threads do not survive a fork, so that worker processes decode as zarr-python does.
    """
    if is_zarr(path) and not is_remote(path) and not _FORKED and find_spec("zarrs"):
        return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return nullcontext()


def _remote_file(path: str, options: Mapping[str, Any]) -> Any:
    """A NetCDF file behind a URL: read piece by piece where the server allows, else whole."""
    system, root = fsspec.core.url_to_fs(path, **options)
    file = system.open(root)
    return file if file.seekable() else io.BytesIO(system.cat_file(root))


def _why_not_opened(path: str, error: BaseException) -> str:
    trouble = trouble_at(path, error)
    if trouble:
        return trouble
    line = first_line(error)
    said = " ".join(str(e) for e in _chain(error))
    units = re.search(
        r"unable to decode time units '([^']*)' with (?:calendar )?(.*?)\.? Try", said
    )
    if units:
        return (
            f"The times of {path} have units '{units[1]}' (with {units[2].strip()}), which cannot "
            "be read as dates; correct the attributes units and calendar of its time coordinate."
        )
    if "dependencies may not be installed" in said:
        return (
            f"{path} is a NetCDF file of a kind that the packages here do not read; install one "
            "that does: pip install scipy, or pip install netCDF4."
        )
    return f"{path} cannot be opened as a Zarr or NetCDF cube ({line}); give the path of one."


def _joined(parts: list[tuple[str, xr.Dataset]]) -> xr.Dataset:
    """One dataset of several files: different variables side by side, times one after the other."""
    _require_alike(parts)
    first: dict[str, xr.Variable] = {}
    for _, dataset in parts:
        first = {str(name): v for name, v in dataset.variables.items()} | first
    try:
        whole = xr.combine_by_coords(
            [dataset for _, dataset in parts],
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
    except Exception as error:  # xarray raises several kinds
        raise DataError(
            f"{parts[0][0]} and {len(parts) - 1} more cannot be joined into one cube "
            f"({first_line(error)}); give files whose coordinates follow each other, and the same "
            "times for all variables."
        ) from error
    assert isinstance(whole, xr.Dataset)
    for name, variable in whole.variables.items():  # joining forgets how values are stored
        variable.encoding = dict(first[str(name)].encoding)
    return whole


def _require_alike(parts: list[tuple[str, xr.Dataset]]) -> None:
    """Refuse files whose units, calendars or times contradict each other, naming two of them."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for path, dataset in parts:
        for name, variable in dataset.variables.items():
            kinds = {"units": variable.attrs.get("units"), "calendar": _calendar(variable)}
            for kind, value in kinds.items():
                if value is None:
                    continue
                before, other = seen.setdefault((str(name), kind), (str(value), path))
                if before != value:
                    raise DataError(
                        f"'{name}' has {kind} {before} in {other}, but {value} in {path}; convert "
                        "one of them."
                    )
    spans: dict[tuple[Any, ...], list[tuple[Any, Any, str]]] = {}
    for path, dataset in parts:
        for name in dataset.dims:
            times = dataset.variables.get(name)
            if times is not None and _calendar(times) and times.size:
                beside = tuple(_extent(dataset, dim) for dim in dataset.dims if dim != name)
                fields = tuple(sorted(str(v) for v in dataset.data_vars))
                low, high = times.values.min(), times.values.max()
                spans.setdefault((name, fields, beside), []).append((low, high, path))
    for together in spans.values():
        together.sort(key=lambda span: span[:2])
        for (_, end, one), (start, _, other) in itertools.pairwise(together):
            if start <= end:
                raise DataError(
                    f"{one} and {other} overlap in time, from {_shown(start)} on; leave one of "
                    "them out, or remove what they share."
                )


def _extent(dataset: xr.Dataset, dim: Hashable) -> tuple[Any, ...]:
    """What tells pieces of different regions or members apart."""
    extent = dataset.variables.get(dim)
    if extent is None or not extent.size:
        return (dim, dataset.sizes[dim])
    return (dim, extent.size, str(extent.values.flat[0]), str(extent.values.flat[-1]))


def _calendar(variable: xr.Variable) -> str | None:
    """The calendar of a variable of dates, whatever they were decoded to."""
    if variable.dtype.kind == "M":
        calendar = variable.encoding.get("calendar", "standard")
        same = {"gregorian": "standard", "proleptic_gregorian": "standard"}
        return same.get(calendar, calendar)
    if variable.dtype.kind == "O" and variable.size:
        calendar = getattr(variable.values.flat[0], "calendar", None)
        return {"gregorian": "standard"}.get(str(calendar), calendar)
    return None


def _shown(time: Any) -> str:
    return str(time.astype("datetime64[s]")) if isinstance(time, np.datetime64) else str(time)
