"""Frames in memory, normalised, and windows gathered from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_modules.cube import Cube
from data_modules.normalisation import Normalisation
from data_modules.windows import Span, aligned

PIECE_BYTES = 2**26  # read at once; bounds what is held beside the block itself


@dataclass(frozen=True)
class Block:
    """The frames of some spans.

    Args:
        frames: Normalised frames (N, C, H, W), float32, span by span, trajectory by trajectory.
        trajectory: Trajectory of each frame (N,).
        number: Number of each frame in time (N,).
    """

    frames: Tensor
    trajectory: Tensor
    number: Tensor

    def index(self, positions: Tensor, length: int, spacing: int) -> Tensor:
        """Indices (B, T) of the frames of windows that start at `positions` (B,)."""
        return positions[:, None] + spacing * torch.arange(length)


def read_block(cube: Cube, normalisation: Normalisation, spans: Sequence[Span]) -> Block:
    """Read and normalise the frames of spans; what is missing becomes the mean, 0."""
    frames = torch.empty(
        (sum(span.size for span in spans), len(cube.variables), *cube.shape), dtype=torch.float32
    )
    trajectory, number = [], []
    deep, long = cube.chunks
    long *= max(PIECE_BYTES // (cube.frame_bytes * deep * long), 1)
    at = 0
    for span in spans:
        rows, columns = np.arange(*span.trajectories), np.arange(*span.frames)
        trajectory.append(np.repeat(rows, len(columns)))
        number.append(np.tile(columns, len(rows)))
        place = frames[at : at + span.size].unflatten(0, (len(rows), len(columns)))
        for row in aligned(*span.trajectories, deep):
            for column in aligned(*span.frames, long):
                piece = place[_shifted(row, rows[0]), _shifted(column, columns[0])]
                cube.read(row, column, out=piece.numpy())
                if normalisation.is_plain:
                    piece.sub_(normalisation.mean).div_(normalisation.std)
                else:
                    times = np.broadcast_to(cube.time_numbers[column], piece.shape[:2])
                    piece.copy_(normalisation.normalise(piece, times))
                if not cube.refuse_missing:
                    piece.nan_to_num_(nan=0.0)
        at += span.size
    return Block(
        frames,
        torch.from_numpy(np.concatenate(trajectory)),
        torch.from_numpy(np.concatenate(number)),
    )


def _shifted(piece: slice, by: int) -> slice:
    return slice(piece.start - by, piece.stop - by)


def window_positions(spans: Sequence[Span]) -> np.ndarray:
    """Where the windows of spans start in a block of these spans' frames."""
    bases = np.cumsum([0, *(span.size for span in spans)])
    return np.concatenate(
        [base + span.positions() for base, span in zip(bases, spans, strict=False)]
    )
