"""Clips of a motion.zarr for training: pictures, and how their pixels move."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from lightning import LightningDataModule
from torch import Tensor

from data_modules.axes import listed, nearest
from data_modules.errors import DataError
from data_modules.loader import Batch, Spans, WindowLoader
from data_modules.splits import FRACTIONS, NAMES
from data_modules.windows import Span

logger = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**30
DRAWS = 2**31 - 1  # a loader's two random numbers for each clip are below this
LAYOUT = {
    "image": ("clip", "y", "x", "channel"),
    "displacement": ("clip", "time", "axis", "y", "x"),
    "frames": ("clip", "time", "y", "x", "channel"),
    "mask": ("clip", "y", "x"),
    "fps": ("clip",),
}


@dataclass(frozen=True)
class Clips:
    """Clips in memory, N of them, as they are on disk.

    Args:
        numbers: Numbers of the clips (N,).
        fields: Variables of `LAYOUT` by name, with its dimensions.
    """

    numbers: Tensor
    fields: dict[str, Tensor]


class TrajectoryDataModule(LightningDataModule):
    """Pictures and the displacements of their pixels, from any motion.zarr.

    A batch is a dictionary: `image (B, 3, H, W)`, float32 in -1..1; `displacement (B, T, 2, H, W)`,
    float32 in pixels, x before y, from the image to each of the T frames after it; `fps (B,)`; and,
    where the file has it, `mask (B, 1, H, W)`. Whole videos go to a split: clips of the same
    `source` are never in two. Epochs are shuffled, and resumed in their middle, as those of cubes.

    Args:
        path: The motion.zarr: variables `image (clip, y, x, channel)`, uint8, and `displacement
            (clip, time, axis, y, x)` in pixels, and perhaps `frames (clip, time, y, x, channel)`,
            `mask (clip, y, x)`, `fps`, `source` and `quality` (clip).
        batch_size: Clips in a batch.
        pairs: Give also `frame (B, 3, H, W)` and `flow (B, 2, H, W)`: one of the frames of each
            clip, and the displacement to it. It is drawn anew in each epoch of training, and is
            always the same else.
        splits: For each of `train`, `validate` and `test` a fraction of the videos, taken in this
            order, or a list of them by `source`. Default: 0.75, 0.125 and 0.125.
        crop: Rows and columns of a crop: random in training, central else.
        flip: Mirror half of the clips in training, left to right; what moved right moves left.
        least_quality: Leave out clips whose `quality` is less.
        num_workers: Processes that read ahead when the split is not held in memory.
        in_memory: Hold the splits in memory; by default when that of training has less than 1 GiB.
        shuffle_buffer: MiB of clips that are read and shuffled together when not in memory.
        seed: Names the shuffling, the crops, the flips and the pairs.

    Raises:
        DataError: From `setup`, if the clips cannot be used as asked.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 8,
        pairs: bool = False,
        splits: dict[str, float | list[str]] | None = None,
        crop: tuple[int, int] | None = None,
        flip: bool = False,
        least_quality: float = 0.0,
        num_workers: int = 0,
        in_memory: bool | None = None,
        shuffle_buffer: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; make it 1 or more.")
        self.path, self.batch_size, self.pairs = Path(path), batch_size, pairs
        self._splits, self._crop, self.flip = splits, crop, flip
        self.least_quality, self.num_workers = least_quality, num_workers
        self._in_memory, self.shuffle_buffer, self.seed = in_memory, shuffle_buffer, seed
        self._sizes: dict[str, int] = {}
        self._fps = 0.0
        self._names: tuple[str, ...] = ()
        self._held: dict[str, Clips] = {}
        self.splits: dict[str, np.ndarray] = {}

    def setup(self, stage: str | None = None) -> None:
        """Open the file and make the splits; clips are read when they are first needed.

        Raises:
            DataError: If the clips cannot be used as asked.
        """
        if self.splits:
            return
        data = open_motion(str(self.path))
        sizes = {str(name): size for name, size in data["displacement"].sizes.items()}
        if self.pairs and "frames" not in data:
            raise DataError(
                f"{self.path} has no variable 'frames', which pairs are made of; write it again "
                "with its frames, or set pairs to false."
            )
        size = sizes["y"], sizes["x"]
        if self._crop is not None and any(
            not 1 <= c <= n for c, n in zip(self._crop, size, strict=True)
        ):
            raise DataError(
                f"crop is {tuple(self._crop)}, but clips of {self.path} have {size} rows and "
                "columns."
            )
        wanted = ["image", "displacement", "fps", "mask"] + ["frames"] * self.pairs
        self._names = tuple(name for name in wanted if name in data)
        self._fps = float(np.median(data["fps"].values)) if "fps" in data else 30.0
        self._sizes = sizes
        chosen = np.arange(sizes["clip"])
        if "quality" in data:
            chosen = chosen[data["quality"].values >= self.least_quality]
        if not len(chosen):
            raise DataError(
                f"No clip of {self.path} has a quality of {self.least_quality:g} or more; lower "
                "least_quality."
            )
        if "source" in data:
            sources = [str(data["source"].values[clip]) for clip in chosen]
        else:
            sources = [f"clip {clip}" for clip in chosen]
        self.splits = split_by_source(chosen, sources, self._splits)

    @property
    def frames(self) -> int:
        """T, the frames after the start frame."""
        self.setup()
        return self._sizes["time"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what is in a batch."""
        self.setup()
        full = (self._sizes["y"], self._sizes["x"])
        return full if self._crop is None else (self._crop[0], self._crop[1])

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip in memory."""
        self.setup()
        pixels = self._sizes["y"] * self._sizes["x"]
        return pixels * (4 + self.frames * (4 + 3 * self.pairs))

    @property
    def in_memory(self) -> bool:
        """Whether the splits are held in memory."""
        if self._in_memory is not None:
            return self._in_memory
        return self.clip_bytes * len(self.split("train")) < IN_MEMORY_BYTES

    def split(self, name: str) -> np.ndarray:
        """Numbers of the clips of a split.

        Raises:
            DataError: If there is no such split.
        """
        self.setup()
        if name not in self.splits:
            raise DataError(
                f"There is no split '{name}'; there are {', '.join(self.splits)}: add it to splits."
            )
        return self.splits[name]

    def description(self) -> dict[str, Any]:
        """What the clips are, as plain values that any checkpoint can hold.

        Keys: `height` and `width` of what is in a batch, `frames` (T), `fps` (the median over
        clips), `clips` (the number of each split) and `attributes` of the file. The scales of
        spectral volumes are the models' own, which measure them over the training split.
        """
        height, width = self.shape
        return {
            "height": height,
            "width": width,
            "frames": self.frames,
            "fps": self._fps,
            "clips": {name: len(clips) for name, clips in self.splits.items()},
            "attributes": _plain(open_motion(str(self.path)).attrs),
        }

    def train_dataloader(self) -> WindowLoader:
        """Shuffled clips of the training split, in full batches."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> WindowLoader | list[Any]:
        """All clips of the validation split; nothing without such a split."""
        self.setup()
        return self._loader("validate") if "validate" in self.splits else []

    def test_dataloader(self) -> WindowLoader:
        """All clips of the test split, always in the same order."""
        return self._loader("test")

    def predict_dataloader(self) -> WindowLoader:
        """All clips of the test split in order."""
        return self._loader("test")

    def _loader(self, name: str, training: bool = False) -> WindowLoader:
        clips, together = self.split(name), max(self.shuffle_buffer * 2**20 // self.clip_bytes, 1)
        # To the loader a clip is a trajectory of one frame. What it draws for each, the place of a
        # crop in cubes, is here the seed of all that is random about a clip.
        spans = [Span((clip, clip + 1), (0, 1), (0,)) for clip in clips.tolist()]
        read = partial(read_clips, str(self.path), self._names)
        return WindowLoader(
            spans,
            partial(self._hold, name) if self.in_memory else read,  # type: ignore[arg-type]
            partial(self._batch, training=training),
            self.batch_size,
            shuffle=training,
            seed=self.seed,
            resident=self.in_memory,
            group_frames=together,
            frame_bytes=self.clip_bytes,
            offsets=(DRAWS, DRAWS),
            workers=self.num_workers,
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self.trainer.world_size if self.trainer else 1,
        )

    def _hold(self, name: str, spans: Spans) -> Clips:
        """The clips of a split, read once."""
        if name not in self._held:
            self._held[name] = read_clips(str(self.path), self._names, spans)
        return self._held[name]

    def _batch(
        self, clips: Clips, positions: Tensor, draws: np.ndarray, training: bool = False
    ) -> Batch:
        """A batch of the clips at positions (B,), with random numbers (B, 2) for each."""
        one_by_one = [
            self._clip(clips, int(position), np.random.default_rng(draw), training)
            for position, draw in zip(positions, draws.tolist(), strict=True)
        ]
        return {key: torch.stack([clip[key] for clip in one_by_one]) for key in one_by_one[0]}

    def _clip(
        self, clips: Clips, position: int, random: np.random.Generator, training: bool
    ) -> Batch:
        """One clip, cropped, mirrored, and in the units of a batch."""
        full, kept = (self._sizes["y"], self._sizes["x"]), self.shape
        spare = [f - k + 1 for f, k in zip(full, kept, strict=True)]
        y, x = random.integers(spare) if training else [(n - 1) // 2 for n in spare]
        mirrored = training and self.flip and random.random() < 0.5
        rows, columns = slice(int(y), int(y) + kept[0]), slice(int(x), int(x) + kept[1])
        fields = {name: values[position] for name, values in clips.fields.items()}
        moved = _mirrored(fields["displacement"][..., rows, columns], mirrored).float()
        if mirrored:
            moved[:, 0] = -moved[:, 0]  # its own copy: it was turned around
        given = {
            "image": _picture(fields["image"][rows, columns], mirrored),
            "displacement": moved,
            "fps": fields["fps"].float() if "fps" in fields else torch.tensor(self._fps),
        }
        if "mask" in fields:
            given["mask"] = _mirrored(fields["mask"][None, rows, columns].float(), mirrored)
        if self.pairs:
            # Else always the same, but another one from clip to clip.
            time = (
                random.integers(self.frames) if training else _spread(clips, position, len(moved))
            )
            given["frame"] = _picture(fields["frames"][int(time), rows, columns], mirrored)
            given["flow"] = moved[int(time)].clone()
        return given


def split_by_source(
    clips: np.ndarray,
    sources: Sequence[str],
    splits: Mapping[str, float | Sequence[str]] | None = None,
) -> dict[str, np.ndarray]:
    """Divide clips into splits, so that no source is in two of them.

    Args:
        clips: Numbers of the clips (N,).
        sources: Where each is from.
        splits: For each name a fraction of the sources, taken in the order in which they come, or a
            list of sources. Each fraction above 0 gets one source at least.

    Returns:
        Numbers of the clips of each split.

    Raises:
        DataError: If a split is unknown or empty, there are more splits than sources, or a source
            is unknown or in two splits.
    """
    wanted = dict(FRACTIONS if splits is None else splits)
    for name in wanted:
        if name not in NAMES:
            raise DataError(f"'{name}' is no split; splits can be {', '.join(NAMES)}.")
    if "train" not in wanted:
        raise DataError("There is no 'train' split; add one.")
    known = list(dict.fromkeys(sources))
    fractions = {name: value for name, value in wanted.items() if isinstance(value, int | float)}
    if fractions and len(fractions) < len(wanted):
        raise DataError(
            f"splits mixes fractions and lists ({wanted}); give one or the other for all."
        )
    if fractions:
        chosen = _by_fraction(fractions, known)
    else:
        chosen = {name: _checked(name, list(value), known) for name, value in wanted.items()}  # type: ignore[arg-type]
    owner: dict[str, str] = {}
    for name, some in chosen.items():
        for source in some:
            if owner.setdefault(source, name) != name:
                raise DataError(
                    f"The source '{source}' is in the splits '{owner[source]}' and '{name}'; leave "
                    "it out of one."
                )
    return {
        name: np.array([c for c, s in zip(clips.tolist(), sources, strict=True) if s in set(some)])
        for name, some in chosen.items()
    }


def _by_fraction(fractions: Mapping[str, float], known: Sequence[str]) -> dict[str, list[str]]:
    if min(fractions.values()) < 0 or sum(fractions.values()) > 1 + 1e-9:
        raise DataError(
            f"The fractions of splits ({dict(fractions)}) must not be negative nor add up to more "
            "than 1."
        )
    used = {name: value for name, value in fractions.items() if value > 0}
    if len(used) > len(known):
        raise DataError(
            f"{len(known)} videos cannot be divided into {listed(used)}; extract motion from more "
            "videos, or set splits to {train: 1.0}."
        )
    edges = np.round(np.cumsum([0.0, *used.values()]) * len(known)).astype(int)
    for i in range(1, len(edges)):  # each has one source at least,
        edges[i] = max(edges[i], edges[i - 1] + 1)
    for i in reversed(range(1, len(edges))):  # and leaves one for each that follows
        edges[i] = min(edges[i], len(known) - (len(edges) - 1 - i))
    return {name: list(known[edges[i] : edges[i + 1]]) for i, name in enumerate(used)}


def _checked(name: str, some: list[str], known: Sequence[str]) -> list[str]:
    if not some:
        raise DataError(f"The split '{name}' is empty; give it sources, or leave it out.")
    for source in some:
        if source not in known:
            raise DataError(
                f"The split '{name}' names the source '{source}'{nearest(source, known)}, but "
                f"there are {listed(known)}."
            )
    return some


@lru_cache(maxsize=4)
def open_motion(path: str) -> xr.Dataset:
    """A motion.zarr, not read yet.

    Raises:
        DataError: If it cannot be opened, or lacks something.
    """
    if not Path(path).exists():
        raise DataError(
            f"There is no motion at {path}; make one with dyngen simulate garden or dyngen "
            "extract-motion."
        )
    try:
        data = xr.open_zarr(path, chunks=None, consolidated=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be opened as a Zarr; give a motion.zarr.") from error
    for name in ("image", "displacement"):
        if name not in data:
            raise DataError(f"{path} has no variable '{name}' (it has {listed(data)}).")
    for name, dims in LAYOUT.items():
        if name in data and set(data[name].dims) != set(dims):
            raise DataError(
                f"'{name}' of {path} has the dimensions {listed(data[name].dims)}; they must be "
                f"{listed(dims)}."
            )
    if data["image"].dtype != np.uint8:
        raise DataError(f"'image' of {path} is {data['image'].dtype}; it must be uint8, 0 to 255.")
    for name, dim, count in (("image", "channel", 3), ("displacement", "axis", 2)):
        if data[name].sizes[dim] != count:
            raise DataError(
                f"'{name}' of {path} has {data[name].sizes[dim]} along '{dim}'; it must be {count}."
            )
    if not data["image"].sizes["clip"]:
        raise DataError(f"{path} has no clips; see what extract-motion says of the videos.")
    return data


def read_clips(path: str, names: Sequence[str], spans: Spans) -> Clips:
    """Read the clips of spans.

    Raises:
        DataError: If displacements are not finite, naming the clip.
    """
    data = open_motion(path)
    numbers = [clip for span in spans for clip in range(*span.trajectories)]
    fields = {}
    for name in names:
        variable = data[name].transpose(*LAYOUT[name])
        shape = (len(numbers), *variable.shape[1:])
        values = np.empty(shape, variable.dtype)
        for place, clip in enumerate(numbers):
            values[place] = variable[clip].values
            if name == "displacement" and not np.isfinite(values[place]).all():
                raise DataError(
                    f"Clip {clip} of {path} has displacements that are not finite; leave it out."
                )
        fields[name] = torch.from_numpy(values)
    return Clips(torch.tensor(numbers), fields)


def _picture(image: Tensor, mirrored: bool) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) in -1..1."""
    return _mirrored(image.movedim(-1, 0).float() / 127.5 - 1, mirrored)


def _mirrored(field: Tensor, mirrored: bool) -> Tensor:
    return field.flip(-1) if mirrored else field


def _spread(clips: Clips, position: int, frames: int) -> int:
    """One of the frames, another for each clip, all of them in the course of many clips."""
    golden = (5**0.5 - 1) / 2
    return int((int(clips.numbers[position]) * golden % 1) * frames)


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    plain = (str, int, float, bool)
    return {str(key): value for key, value in attributes.items() if isinstance(value, plain)}
