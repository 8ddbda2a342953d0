"""Batches of windows, shuffled with respect for chunks, resumable in the middle of an epoch.

The windows of an epoch are put in an order that depends on the seed and the epoch alone. They come
in groups: a group is a few randomly chosen spans of whole chunks, is read once, and its windows are
shuffled among themselves. A split that fits into memory is a single group that is always there.
Since the order is a function of (seed, epoch), the number of batches already given is all there is
to remember: a loader that is told it starts again at that very batch, reading only what is needed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.blocks import Block, window_positions
from data_modules.errors import DataError
from data_modules.windows import Span

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")

Spans = tuple[Span, ...]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Group:
    """Spans that are in memory together, and the order of their windows."""

    spans: Spans
    order: np.ndarray


class WindowLoader:
    """Iterates over batches of windows; each epoch has its own order.

    Args:
        spans: Spans with all windows of a split.
        read: Reads the frames of spans. It is called in worker processes.
        batch: Makes a batch from a block, positions (B,) of windows in it and offsets (B, 2) of
            their crops.
        batch_size: Windows in a batch.
        shuffle: Shuffle, and give full batches only; else all windows, in batches whose sizes
            differ by one at most.
        scatter: Without shuffling, put windows that are in memory together in one fixed random
            order instead of their own: a batch of neighbours says little about a split, and one
            has no negatives in it.
        seed: Names the shuffling.
        resident: Whether `read` gives a block that is in memory already; one group then.
        group_frames: Most frames in a group, unless one span has more.
        frame_bytes: Bytes of a frame, to know what passes between processes.
        offsets: Number of possible offsets of a crop, rows and columns.
        workers: Processes that read ahead; with 0 a thread of this process does.
        rank: Number of this process among those that train together.
        world: Number of processes that train together; each gets other windows.
    """

    batch_sampler = None  # Lightning looks for it where there is a sampler

    def __init__(
        self,
        spans: Sequence[Span],
        read: Callable[[Spans], Block],
        batch: Callable[[Block, Tensor, np.ndarray], Batch],
        batch_size: int,
        *,
        shuffle: bool = False,
        scatter: bool = False,
        seed: int = 0,
        resident: bool = True,
        group_frames: int = 1,
        frame_bytes: int = 0,
        offsets: tuple[int, int] = (1, 1),
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.spans, self.read, self.batch = tuple(spans), read, batch
        self.shuffle, self.scatter, self.seed, self.resident = shuffle, scatter, seed, resident
        self.group_frames, self.frame_bytes, self.offsets = group_frames, frame_bytes, offsets
        self.workers, self.rank, self.world = (0 if resident else workers), rank, world
        self.batch_size = min(batch_size, self.windows) if shuffle else batch_size
        if not len(self):
            raise DataError(
                f"There are too few windows for {world} processes; use fewer devices, or a smaller "
                "shuffle_buffer."
            )
        self.epoch = 0  # that is running, or comes next
        self._given = 0  # batches already given in it
        self._start = 0  # the batch at which the next iteration starts
        self._told: int | None = None  # the last epoch that `set_epoch` was told

    @property
    def windows(self) -> int:
        """Number of windows that this process gives in an epoch, before batches are full."""
        if self.resident:
            total = sum(span.windows for span in self.spans)
            extra = 0 if self.shuffle else self.rank < total % self.world
            return total // self.world + extra
        counts = [sum(s.windows for s in self.spans[r :: self.world]) for r in range(self.world)]
        return min(counts) if self.shuffle else counts[self.rank]

    def __len__(self) -> int:
        if self.shuffle:
            return self.windows // self.batch_size if self.windows else 0
        return -(-self.windows // self.batch_size)

    @property
    def sampler(self) -> WindowLoader:
        """Itself: Lightning calls `set_epoch` of a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Hear from Lightning that an epoch begins.

        A new number ends an epoch that was cut short, and the first one is where a new loader
        starts; otherwise the loader counts by itself, since Lightning's numbers jump after a resume
        from the end of an epoch.
        """
        if self._told is None:
            self.epoch = epoch
        elif epoch != self._told and self._given:
            self.epoch, self._given, self._start = self.epoch + 1, 0, 0
        self._told = epoch

    def state_dict(self) -> dict[str, int | None]:
        """Where the loader is: what Lightning puts in each checkpoint."""
        return self._identity() | {"epoch": self.epoch, "given": self._given, "told": self._told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken, if the windows are still the same."""
        self.epoch, self._given, self._told = state["epoch"], state["given"], state["told"]
        changed = [key for key, value in self._identity().items() if state.get(key) != value]
        if changed and self._given:
            what = " and ".join(changed)
            logger.warning("the epoch starts again from its first batch, since %s changed", what)
            self._given = 0
        self._start = self._given

    def _identity(self) -> dict[str, int | None]:
        """What an order of batches depends on, beside the epoch."""
        return {"batch_size": self.batch_size, "windows": self.windows, "seed": self.seed}

    def groups(self, epoch: int) -> list[Group]:
        """The groups of an epoch in order; reads nothing."""
        generator = np.random.default_rng([self.seed, epoch if self.shuffle else 0])
        spans = list(self.spans if self.resident else self.spans[self.rank :: self.world])
        if self.resident:
            order = self._order(spans, generator)[self.rank :: self.world]
            return [Group(tuple(spans), order)]
        if self.shuffle:
            spans = [spans[i] for i in generator.permutation(len(spans))]
        together: list[list[Span]] = [[]]
        size = 0
        for span in spans:
            if together[-1] and size + span.size > self.group_frames:
                together.append([])
                size = 0
            together[-1].append(span)
            size += span.size
        return [Group(tuple(few), self._order(few, generator)) for few in together]

    def _order(self, spans: Sequence[Span], generator: np.random.Generator) -> np.ndarray:
        windows = sum(span.windows for span in spans)
        mixed = self.shuffle or self.scatter
        return generator.permutation(windows) if mixed else np.arange(windows)

    def _bounds(self) -> np.ndarray:
        """Where batches start and end in the order of an epoch."""
        if self.shuffle:
            return np.arange(len(self) + 1) * self.batch_size
        return np.linspace(0, self.windows, len(self) + 1).astype(np.int64)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing happens before the first batch is asked for, when the epoch is known.
        epoch, first = self.epoch, self._start
        self._given, self._start = first, 0
        groups, bounds, batches = self.groups(epoch), self._bounds(), len(self)
        ends = np.cumsum([len(group.order) for group in groups])
        offsets = self._crops(epoch, int(ends[-1]))
        here = int(np.searchsorted(ends, bounds[first], side="right"))
        blocks = self._read_ahead([group.spans for group in groups[here:]])
        block, positions, start = None, np.empty(0), 0
        for number in range(first, batches):
            parts, at = [], int(bounds[number])
            while at < bounds[number + 1]:
                if block is None or at >= ends[here]:
                    here += block is not None
                    block, start = next(blocks), int(ends[here]) - len(groups[here].order)
                    positions = window_positions(groups[here].spans)[groups[here].order]
                stop = min(int(bounds[number + 1]), int(ends[here]))
                chosen = torch.from_numpy(positions[at - start : stop - start])
                parts.append(self.batch(block, chosen, offsets[at:stop]))
                at = stop
            last = number + 1 == batches
            self.epoch, self._given = (epoch + 1, 0) if last else (epoch, number + 1)
            yield _joined(parts)

    def _crops(self, epoch: int, windows: int) -> np.ndarray:
        """Offsets (windows, 2) of the crops: random in training, central else."""
        if not self.shuffle:
            return np.tile([(n - 1) // 2 for n in self.offsets], (windows, 1))
        generator = np.random.default_rng([self.seed, epoch, 1])
        return generator.integers(self.offsets, size=(windows, 2))

    def _read_ahead(self, spans: list[Spans]) -> Iterator[Block]:
        if self.resident:
            return map(self.read, spans)
        if not self.workers:
            return _one_ahead(self.read, spans)
        self._require_shared_memory(spans)
        return _by_workers(self.read, spans, self.workers)

    def _require_shared_memory(self, spans: list[Spans]) -> None:
        if not SHARED_MEMORY.is_dir():
            return
        sizes = [sum(span.size for span in group) for group in spans]
        needed = max(sizes, default=0) * self.frame_bytes  # a rank may have none to read
        needed *= self.workers + 1
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < needed:
            raise DataError(
                f"{self.workers} workers need {needed / 2**20:.0f} MiB of shared memory, but "
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB; use fewer workers or a smaller "
                "shuffle_buffer."
            )


def _one_ahead(read: Callable[[Spans], Block], spans: list[Spans]) -> Iterator[Block]:
    """Read the next block in a thread while the last one is in use: decoding frees the GIL."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(read, spans[0])
        for following in spans[1:]:
            block = pending.result()
            pending = thread.submit(read, following)
            yield block
        yield pending.result()


def _by_workers(
    read: Callable[[Spans], Block], spans: list[Spans], workers: int
) -> Iterator[Block]:
    """Read blocks in other processes, in order, each worker one block ahead."""
    blocks = DataLoader(
        _Reading(read),
        batch_size=None,
        sampler=spans,  # what a sampler gives is what is read
        num_workers=min(workers, len(spans)),
        prefetch_factor=1,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # so that the global one is left alone
    )
    for block in blocks:
        if isinstance(block, DataError):
            raise block
        yield block


class _Reading(Dataset[Block | DataError]):
    """Reads blocks in a worker; an error of ours comes back as it is, without a traceback."""

    def __init__(self, read: Callable[[Spans], Block]) -> None:
        self.read = read

    def __getitem__(self, spans: Spans) -> Block | DataError:
        try:
            return self.read(spans)
        except DataError as error:
            return error


def _as_it_is(block: Any) -> Any:
    return block


def _joined(parts: list[Batch]) -> Batch:
    """One batch from pieces of it; what has no windows is the same in all."""
    if len(parts) == 1:
        return parts[0]
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0] if key != "static"}
    return joined | {key: parts[0][key] for key in parts[0] if key == "static"}
