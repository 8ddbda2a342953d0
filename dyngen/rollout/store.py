"""A rollout on disk: a Zarr v3 dataset written as it goes, which a killed run picks up again.

Beside the dataset lies `.restart/` with one small file per slab: the last normalised frames of its
members and the step they stand at. A block is written in this order: its chunks, whole; a flush to
the disk; the restart file, replaced at once. Whenever the run is killed, the restart files speak of
nothing that is not on disk, and what was written beyond them is computed again, with the same
random numbers, to the same bytes.

A restart file holds the state at a boundary between blocks. A rollout that is asked for more steps
therefore computes its last, short block again and writes that chunk whole: it ends with the same
bytes as if it had been asked for all of them at first.

No chunk and no restart file belongs to two slabs, so several processes may write one rollout, each
its own slabs, once one of them has prepared it.
"""

import contextlib
import errno
import io
import json
import logging
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from torch import Tensor

from dyngen.rollout.field import Field, empty_rollout
from dyngen.rollout.layout import Layout, Slab

log = logging.getLogger(__name__)

RESTART = ".restart"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RolloutError(ValueError):
    """A rollout that cannot be started, continued or read, in one sentence."""


class OtherSettings(RolloutError):
    """A rollout that is there was started with other settings."""


@dataclass(frozen=True)
class Restart:
    """Where a slab stands.

    Args:
        history: (initials, members, k, C, H, W) normalised frames before `step`.
        step: the step to compute next, at a boundary between blocks.
        written: steps on disk, `step` or, when the last block is a short one, more.
    """

    history: np.ndarray
    step: int
    written: int


def open_rollout(path: str | os.PathLike[str], normalised: bool = False) -> xr.Dataset:
    """Open a rollout lazily, in physical units, or where that is asked for in normalised ones.

    An unfinished rollout (attribute `dyngen_complete` is 0) is cut to the frames that all its
    members have reached, and a warning is logged.

    Raises:
        RolloutError: when there is no rollout at `path`, or it is in the other units.
    """
    path = Path(path)
    attributes = _attributes(path)
    check_units(path, attributes, normalised)
    seconds = xr.coders.CFDatetimeCoder(time_unit="s")  # nanoseconds end in the year 2262
    data = xr.open_zarr(path, consolidated=True, decode_times=seconds, decode_timedelta=True)
    if attributes["dyngen_complete"]:
        return data
    layout = _layout(attributes)
    steps, reached = layout.steps, _reached(path, layout)
    log.warning("%s is unfinished: its members have reached step %d of %d.", path, reached, steps)
    axis = "lead" if "lead" in data.dims else "time"
    return data.isel({axis: slice(0, reached // layout.every)})


def check_units(
    place: str | os.PathLike[str], attributes: Mapping[str, Any], normalised: bool
) -> None:
    """Refuse a rollout in the other units.

    Args:
        place: Where it is.
        attributes: Of the dataset; those of other origins do not say, and are physical.
        normalised: Which units are wanted.

    Raises:
        RolloutError: If it is in the other ones.
    """
    if json.loads(attributes.get("dyngen_settings", "{}")).get("normalised", False) != normalised:
        there, wanted = ("physical", "true") if normalised else ("normalised", "false")
        raise RolloutError(
            f"{place} is in {there} units: roll out to another path with --normalised {wanted}."
        )


class RolloutStore:
    """A rollout being written; `prepare_store` makes or reopens one.

    Attributes:
        path: the Zarr directory.
        layout: sizes, slabs and blocks, as they are on disk.
        complete: whether every frame is on disk.
    """

    def __init__(self, path: Path, layout: Layout, complete: bool) -> None:
        self.path = path
        self.layout = layout
        self.complete = complete
        attributes = _attributes(path)
        self._variables: list[str] = json.loads(attributes["dyngen_settings"])["variables"]
        self._diagnostics: list[str] = json.loads(attributes["dyngen_diagnostics"])
        self._arrays = {
            name: zarr.open_array(path / name, mode="r+", zarr_format=3)
            for name in (*self._variables, *self._diagnostics)
        }

    def restart(self, slab: Slab) -> Restart | None:
        """Where the slab stands, or None when none of its blocks is finished.

        Raises:
            RolloutError: when the restart file cannot be read.
        """
        for name in self._arrays:  # left by a kill in the middle of a write
            for leftover in self._folder(name, slab).rglob("*.partial"):
                leftover.unlink()
        return _read_restart(_restart_path(self.path, slab))

    def write(
        self,
        slab: Slab,
        block: range,
        frames: Tensor,
        diagnostics: Mapping[str, Tensor],
        restart: Restart,
    ) -> None:
        """Write one block of one slab, then its restart file.

        Args:
            frames: (initials, members, kept frames, C, H, W) in physical units.
            diagnostics: name -> (initials, members, kept frames).
            restart: where the slab stands after this block.

        Raises:
            RolloutError: when the disk is full or cannot be written.
        """
        every = self.layout.every
        kept = slice(block.start // every, block.stop // every)
        rows = (_slice(slab.initials), _slice(slab.members), kept)
        region = rows[self.layout.initials == 1 :]
        values = frames.detach().cpu().float().numpy()
        contents = {name: values[:, :, :, c] for c, name in enumerate(self._variables)}
        contents |= {n: diagnostics[n].detach().cpu().float().numpy() for n in self._diagnostics}
        with self._told_when_full():
            for name, content in contents.items():
                self._arrays[name][region] = content[0] if self.layout.initials == 1 else content
            chunks = [self._chunk(name, slab, block) for name in contents]
            folders = {f for c in chunks for f in c.parents if f.is_relative_to(self.path)}
            for place in (*chunks, *sorted(folders, reverse=True)):
                _flush(place)
            _write_restart(_restart_path(self.path, slab), restart)

    def finish(self, certain: bool = False) -> None:
        """Mark the rollout complete if every slab is.

        Args:
            certain: whether that is known already, as when all processes have said so.
        """
        if certain or _reached(self.path, self.layout) >= self.layout.steps:
            with self._told_when_full():
                try:
                    _set_attribute(self.path, "dyngen_complete", 1)
                except FileNotFoundError:  # another process did the same at the same moment
                    if not _attributes(self.path)["dyngen_complete"]:
                        raise
            self.complete = True

    def _folder(self, name: str, slab: Slab) -> Path:
        """The folder that holds the slab's chunks of a variable, and no other's."""
        index = slab.index[self.layout.initials == 1 :]
        return self.path.joinpath(name, "c", *map(str, index))

    def _chunk(self, name: str, slab: Slab, block: range) -> Path:
        time = str(block.start // self.layout.block_steps)
        spatial = () if name in self._diagnostics else ("0", "0")
        return self._folder(name, slab).joinpath(time, *spatial)

    @contextlib.contextmanager
    def _told_when_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = "The disk is full" if error.errno in FULL_DISK else f"{error.strerror or error}"
            raise RolloutError(
                f"{what}: {self.path} holds {_reached(self.path, self.layout)} of "
                f"{self.layout.steps} steps of every member and nothing of it is lost; make room "
                "and run the same command again to go on from there."
            ) from error


def prepare_store(
    path: str | os.PathLike[str],
    field: Field,
    layout: Layout,
    *,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    diagnostics: tuple[str, ...] = (),
) -> RolloutStore:
    """Make a rollout's Zarr, or reopen the one that is there to go on with it.

    Args:
        layout: what is wanted; a rollout that is there keeps its own slabs and blocks.
        settings: everything that decides the numbers (seed, sampler, checkpoint, ...), as
            JSON-serialisable values. A rollout that was started with others is not continued.
        provenance: what else to remember (configuration, versions), from the first run.
        diagnostics: names of the sampler's figures to store.

    Raises:
        RolloutError: when `path` holds something else, a rollout with other settings, or an
            unfinished rollout of more steps than asked for; when the disk is full.
    """
    path = Path(path)
    wanted = json.loads(json.dumps(plain({**settings, **_outline(field, layout)}), sort_keys=True))
    attributes = {
        "dyngen_complete": 0,
        "dyngen_layout": json.dumps(asdict(layout)),
        "dyngen_diagnostics": json.dumps(diagnostics),
        "dyngen_settings": json.dumps(wanted, sort_keys=True),
        "dyngen_provenance": json.dumps(plain(provenance or {}), sort_keys=True),
    }
    if not path.exists():
        _write_empty(path, field, layout, diagnostics, attributes)
        return RolloutStore(path, layout, complete=False)

    there = _attributes(path)
    _refuse_other_settings(path, json.loads(there["dyngen_settings"]), wanted)
    on_disk = _layout(there)
    wider = replace(on_disk, steps=layout.steps)
    if layout.steps > on_disk.steps:
        attributes |= {
            "dyngen_layout": json.dumps(asdict(wider)),
            "dyngen_provenance": there["dyngen_provenance"],
        }
        _write_empty(path, field, wider, diagnostics, attributes)
        log.info("%s is extended from %d to %d steps.", path, on_disk.steps, wider.steps)
        return RolloutStore(path, wider, complete=False)
    if there["dyngen_complete"]:
        log.info("%s is finished: it holds all of its %d steps.", path, on_disk.steps)
        return RolloutStore(path, on_disk, complete=True)
    if layout.steps < on_disk.steps:
        raise RolloutError(
            f"{path} was started for {on_disk.steps} steps and is unfinished: ask for at least "
            f"that many, not {layout.steps}, or write to another path."
        )
    reached = _reached(path, on_disk)
    log.info("%s is resumed at step %d of %d.", path, reached, on_disk.steps)
    return RolloutStore(path, on_disk, complete=False)


def reopen_store(path: str | os.PathLike[str]) -> RolloutStore:
    """A rollout that another process has prepared, to write a share of it.

    Raises:
        RolloutError: when there is none.
    """
    path = Path(path)
    there = _attributes(path)
    return RolloutStore(path, _layout(there), complete=bool(there["dyngen_complete"]))


def _outline(field: Field, layout: Layout) -> dict[str, Any]:
    """What the store itself adds to the settings that must not change."""
    return {
        "initial states": layout.initials,
        "members": layout.members,
        "every": layout.every,
        "variables": list(field.variables),
        "grid": list(field.shape),
        "initial times": [str(time) for time in field.initial_times],
        "step": str(field.step),
    }


def _refuse_other_settings(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    before, now = _flat(there), _flat(wanted)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise OtherSettings(
                f"{path} was started with {key} = {_short(before.get(key))}, not "
                f"{_short(now.get(key))}: go on with what it was started with, or write to "
                "another path."
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-16:]}"


def plain(value: Any) -> Any:
    """The value with what JSON cannot say turned into what it can."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _write_empty(
    path: Path,
    field: Field,
    layout: Layout,
    diagnostics: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> None:
    """Write metadata and coordinates aside, then move them into place.

    A new rollout appears at once. One that is extended gets its files one by one, the metadata of
    the whole last: until then it is the rollout it was, and an interrupted extension is repeated.
    """
    data, encoding = empty_rollout(field, layout, diagnostics=diagnostics, attributes=attributes)
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():  # zarr warns that consolidated metadata is not yet in v3
            warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
            data.to_zarr(
                aside, mode="w", zarr_format=3, compute=False, consolidated=True, encoding=encoding
            )
        if not path.exists():
            (aside / RESTART).mkdir()
            # A group of its own: whoever lists the folder finds nothing that is no Zarr.
            (aside / RESTART / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
            aside.rename(path)
            return
        files = [file for file in aside.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda f: (f.name == "zarr.json", f == aside / "zarr.json")):
            target = path / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    except OSError as error:
        what = "The disk is full" if error.errno in FULL_DISK else f"{error.strerror or error}"
        raise RolloutError(
            f"{what}: {path} could not be prepared for {layout.steps} steps; make room and run "
            "the same command again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _attributes(path: Path) -> dict[str, Any]:
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except FileNotFoundError:
        problem = "has no zarr.json" if path.exists() else "does not exist"
        raise RolloutError(f"{path} is not a rollout: it {problem}.") from None
    except (OSError, ValueError, KeyError) as error:
        raise RolloutError(f"{path / 'zarr.json'} cannot be read: {error}.") from error
    if "dyngen_settings" not in attributes:
        raise RolloutError(f"{path} is a Zarr but not a rollout of dyngen: choose another path.")
    return attributes


def _set_attribute(path: Path, name: str, value: Any) -> None:
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"][name] = value
    _replace_file(path / "zarr.json", json.dumps(metadata, indent=2).encode())


def _layout(attributes: Mapping[str, Any]) -> Layout:
    return Layout(**json.loads(attributes["dyngen_layout"]))


def _reached(path: Path, layout: Layout) -> int:
    """Steps on disk for every member."""
    restarts = (_read_restart(_restart_path(path, slab)) for slab in layout.slabs())
    return min(0 if restart is None else restart.written for restart in restarts)


def _restart_path(path: Path, slab: Slab) -> Path:
    a, b = slab.index
    return path / RESTART / f"slab-{a:05d}-{b:05d}.npz"


def _read_restart(path: Path) -> Restart | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Restart(file["history"], int(file["step"]), int(file["written"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RolloutError(
            f"{path} cannot be read ({error}): delete it to compute its members from the start."
        ) from error


def _write_restart(path: Path, restart: Restart) -> None:
    path.parent.mkdir(exist_ok=True)
    replace_arrays(
        path,
        history=restart.history.astype(np.float32, copy=False),
        step=np.int64(restart.step),
        written=np.int64(restart.written),
    )


def replace_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays, by name, to an .npz, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    _replace_file(path, content.getvalue())


def _replace_file(path: Path, content: bytes) -> None:
    """Replace a small file at once: a reader, or a kill, finds the old one or the new one."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the system put a file, or the entries of a folder, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)
