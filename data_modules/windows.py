"""The windows of a split: where each one starts, and how they are read from disk together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from data_modules.errors import DataError
from data_modules.splits import Split


@dataclass(frozen=True)
class Windows:
    """Windows of `length` frames, `spacing` apart, starting every `stride` frames of a run.

    They are numbered by trajectory, then by time.

    Args:
        split: Where they lie; each within one run of one trajectory.
        length: Frames in a window.
        stride: Frames from the start of a window to the next one's.
        spacing: Frames from one frame of a window to the next.

    Raises:
        DataError: If a number is not positive or no window fits into the split.
    """

    split: Split
    length: int
    stride: int = 1
    spacing: int = 1

    def __post_init__(self) -> None:
        for name in ("length", "stride", "spacing"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"The {name} of windows is {getattr(self, name)}; make it 1 or more."
                )
        if not len(self):
            longest = max((b - a for a, b in self.split.runs), default=0)
            raise DataError(
                f"A window of {self.length} frames spans {self.extent} frames of the cube, but the "
                f"longest run of frames in the split '{self.split.name}' has {longest}; use a "
                "shorter window, or splits with longer runs."
            )

    @property
    def extent(self) -> int:
        """Frames of the cube from a window's first to its last, both included."""
        return (self.length - 1) * self.spacing + 1

    @property
    def starts(self) -> np.ndarray:
        """Number of the first frame of each window of one trajectory, in order."""
        return np.concatenate([self.starts_within(*run) for run in self.split.runs])

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """First frames of the windows of one run of frames [start, stop)."""
        return np.arange(start, stop - self.extent + 1, self.stride)

    def __len__(self) -> int:
        first, stop = self.split.trajectories
        return (stop - first) * sum(len(self.starts_within(*run)) for run in self.split.runs)

    def locate(self, index: int) -> tuple[int, int]:
        """Trajectory and first frame of window `index`."""
        starts = self.starts
        trajectory, within = divmod(index, len(starts))
        return self.split.trajectories[0] + trajectory, int(starts[within])

    def frames(self, start: int) -> slice:
        """The frames of the window that starts at frame `start`."""
        return slice(start, start + self.extent, self.spacing)


@dataclass(frozen=True)
class Span:
    """A piece of a cube that is read at once, and the windows that start in it.

    Args:
        trajectories: [start, stop) of the trajectories.
        frames: [start, stop) of the frames.
        starts: First frames of the windows, the same in each trajectory.
    """

    trajectories: tuple[int, int]
    frames: tuple[int, int]
    starts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of frames to read."""
        return (self.trajectories[1] - self.trajectories[0]) * (self.frames[1] - self.frames[0])

    @property
    def windows(self) -> int:
        """Number of windows that start in it."""
        return (self.trajectories[1] - self.trajectories[0]) * len(self.starts)

    def positions(self) -> np.ndarray:
        """Where each window starts in the span's frames, counted trajectory by trajectory."""
        rows = np.arange(self.trajectories[1] - self.trajectories[0])
        per_row = self.frames[1] - self.frames[0]
        starts = np.array(self.starts, dtype=np.int64) - self.frames[0]
        return (rows[:, None] * per_row + starts).ravel()


def whole_spans(windows: Windows) -> list[Span]:
    """One span for each run of the split, with all its trajectories."""
    return [
        Span(windows.split.trajectories, run, tuple(windows.starts_within(*run).tolist()))
        for run in windows.split.runs
    ]


def chunked_spans(windows: Windows, chunks: tuple[int, int], most_frames: int) -> list[Span]:
    """Spans of whole chunks, long enough that few chunks belong to two of them.

    Args:
        windows: The windows.
        chunks: Trajectories and frames in one chunk on disk.
        most_frames: Most frames in a span, unless one chunk has more.
    """
    deep, long = chunks
    first, stop = windows.split.trajectories
    rows = [(piece.start, piece.stop) for piece in aligned(first, stop, deep)]
    # The last windows of a span need frames of the next chunk, which is then read twice: with
    # sixteen chunks in a span that is one in seventeen at most.
    wanted = max(16 * long, 16 * (windows.extent - 1))
    allowed = max(most_frames // max(b - a for a, b in rows), 1)
    frames = max(min(wanted, allowed) // long, 1) * long
    spans = []
    for start, end in windows.split.runs:
        for low in range(start - start % frames, end, frames):
            starts = windows.starts_within(start, end)
            starts = starts[(starts >= low) & (starts < low + frames)]
            if len(starts):
                piece = (int(starts[0]), int(starts[-1]) + windows.extent)
                spans += [Span(row, piece, tuple(starts.tolist())) for row in rows]
    return spans


def aligned(start: int, stop: int, size: int) -> list[slice]:
    """Pieces of [start, stop) that end at multiples of `size`."""
    edges = [start, *range(start - start % size + size, stop, size), stop]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
