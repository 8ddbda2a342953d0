"""A motion.zarr: pictures, and how each of their pixels moves in the frames after them.

Sharded Zarr v3, one shard for each clip, with these variables, of which those in brackets may be
missing:

    image         (clip, y, x, channel)         uint8, the start frame, RGB
    displacement  (clip, time, axis, y, x)      float16, pixels, x before y, from the start frame to
                                                the frames 1..T after it
    [frames]      (clip, time, y, x, channel)   uint8, the frames 1..T
    [mask]        (clip, y, x)                  uint8, 1 where things move
    [object]      (clip, y, x)                  uint8, which thing is seen, 0 the background
    fps           (clip)                        float32, frames per second
    quality       (clip)                        float32, in 0..1, how far to trust the displacement
    source        (clip)                        text, the video
    start_frame   (clip)                        int32, number of the start frame in it
    [scene]       (clip)                        text, JSON, what is known of it
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from data_modules.errors import DataError

CHUNK_BYTES = 2**19
FIELDS = {  # name -> dimensions, dtype, attributes
    "image": ("clip y x channel", "uint8", {"long_name": "start frame, RGB"}),
    "displacement": (
        "clip time axis y x",
        "float16",
        {"long_name": "displacement since the start frame", "units": "pixel"},
    ),
    "frames": ("clip time y x channel", "uint8", {"long_name": "frames 1 to T, RGB"}),
    "mask": ("clip y x", "uint8", {"long_name": "1 where things move"}),
    "object": ("clip y x", "uint8", {"long_name": "which thing is seen, 0 the background"}),
    "fps": ("clip", "float32", {"long_name": "frames per second", "units": "s-1"}),
    "quality": ("clip", "float32", {"long_name": "trust in the displacement, 0 to 1"}),
    "source": ("clip", "str", {"long_name": "the video"}),
    "start_frame": ("clip", "int32", {"long_name": "number of the start frame in the video"}),
    "scene": ("clip", "str", {"long_name": "what is known of the clip, JSON"}),
}


class MotionClip(NamedTuple):
    """One clip.

    Attributes:
        image: (H, W, 3) uint8.
        displacement: (T, 2, H, W) in pixels.
        fps: Frames per second.
        quality: In 0..1.
        source: The video.
        start_frame: Number of the start frame in it.
        frames: (T, H, W, 3) uint8, or None.
        mask: (H, W), 1 where things move, or None.
        object: (H, W), or None.
        scene: JSON, or None.
    """

    image: np.ndarray
    displacement: np.ndarray
    fps: float
    quality: float
    source: str
    start_frame: int
    frames: np.ndarray | None = None
    mask: np.ndarray | None = None
    object: np.ndarray | None = None
    scene: str | None = None


class MotionWriter:
    """Writes clips one after the other; what a killed run has written, the next one keeps.

    Clips grow in a folder beside `out` whose name ends in `.partial`, and appear at `out` when
    `finish` is called. How far a run came is remembered as a number of tasks, each of which gave a
    clip or none.

    Args:
        out: Folder of the motion.zarr.
        attributes: Attributes of the whole, which say what it was made of: a partial folder with
            others is started anew.
        overwrite: Replace what is at `out`.

    Raises:
        FileExistsError: If something is at `out` and `overwrite` is off.
    """

    def __init__(self, out: Path, attributes: Mapping[str, Any], overwrite: bool = False) -> None:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists; choose another path, or ask to overwrite it.")
        self.out, self.partial = out, out.with_name(f"{out.name}.partial")
        told = json.dumps(dict(attributes), sort_keys=True)
        mark = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        group: Any = _open(self.partial)
        if group is None or group.attrs.get("made_of") != mark:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            group = zarr.create_group(self.partial, zarr_format=3)
            state: dict[str, Any] = {"made_of": mark, "tasks_done": 0, "clips": 0, "refused": []}
            group.attrs.update(dict(attributes) | state)
        self.group: Any = group

    @property
    def done(self) -> int:
        """Tasks done, by this run or earlier ones."""
        return int(self.group.attrs["tasks_done"])

    @property
    def clips(self) -> int:
        """Clips written."""
        return int(self.group.attrs["clips"])

    @property
    def refused(self) -> list[str]:
        """Why tasks gave no clip."""
        return list(self.group.attrs["refused"])

    def append(self, clip: MotionClip | str) -> None:
        """Write the clip that a task gave, or note in one sentence why it gave none."""
        count, refused = self.clips, self.refused
        if isinstance(clip, str):
            refused.append(clip)
        else:
            for name, value in clip._asdict().items():
                if value is not None:
                    self._write(name, count, value)
            count += 1
        # Last: a clip without this note is written again by the next run.
        note = {"tasks_done": self.done + 1, "clips": count, "refused": refused}
        self.group.attrs.update(note)

    def finish(self) -> Path:
        """Put everything at `out`.

        Raises:
            DataError: If there is no clip.
        """
        if not self.clips:
            shutil.rmtree(self.partial, ignore_errors=True)
            why = f": {self.refused[0]}" if self.refused else "."
            raise DataError(f"No clip is left to write to {self.out}{why}")
        for name in self.group.array_keys():
            array = self.group[name]
            array.resize((self.clips, *array.shape[1:]))
        with warnings.catch_warnings():  # version 3 of the format has no such file yet
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.partial)
        if self.out.exists():
            shutil.rmtree(self.out)
        self.partial.rename(self.out)
        return self.out

    def _write(self, name: str, number: int, value: Any) -> None:
        dimensions, dtype, attributes = FIELDS[name]
        if name not in self.group:
            shape = np.shape(value)
            chunks = _chunks(name, shape, np.dtype(dtype).itemsize)
            self.group.create_array(
                name,
                shape=(0, *shape),
                chunks=chunks,
                shards=_shards(shape, chunks) if shape else None,
                dtype=str if dtype == "str" else dtype,
                dimension_names=dimensions.split(),
                attributes=attributes,
            )
        array = self.group[name]
        if array.shape[0] <= number:
            array.resize((number + 1, *array.shape[1:]))
        array[number] = value


def _chunks(name: str, shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """Few numbers are together; of long fields as many frames as make a good piece to read."""
    if not shape:
        return (1024,)
    if "time" not in FIELDS[name][0].split():
        return (1, *shape)
    frames = max(1, min(shape[0], CHUNK_BYTES // (item * math.prod(shape[1:]))))
    return (1, frames, *shape[1:])


def _shards(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    return (1, math.ceil(shape[0] / chunks[1]) * chunks[1], *shape[1:])


def _open(path: Path) -> Any:
    """The group there, or None."""
    try:
        return zarr.open_group(path, mode="r+")
    except (OSError, ValueError, KeyError):
        return None
