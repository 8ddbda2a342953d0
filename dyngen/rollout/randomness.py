"""Random numbers of a rollout: a function of (seed, initial, member, step) and of nothing else.

Every row of a batch, one member from one initial state, draws from a generator of its own that is
seeded anew at every step. A member's trajectory is therefore the same whatever the batch it is
computed in, the number of devices, or the step at which the run was interrupted.

The generators are NumPy's (PCG64 behind `SeedSequence`, O'Neill 2014), on the CPU, and the draws
are moved to the device: a GPU's own generator would give other numbers than a CPU's, and
`torch.Generator` keeps only 32 bits of a seed, few enough for two frames of a century-long
ensemble to share their noise. Large draws are shared out to threads, which NumPy lets run at once,
so that a GPU does not wait for them.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

LARGE = 2**17  # numbers; drawing them takes about a millisecond, much longer than to start threads


class FrameNoise:
    """Random numbers of one step for a batch of rows.

    Calling it with `x` of shape (R, ...) gives standard normal numbers like `x`. With B rows, R
    is B, or a multiple B * P whose rows are grouped by member (P particles per member): each
    member's share comes from that member's generator. Consecutive calls continue the sequence.
    Uniform numbers come from a second, independent sequence.

    Args:
        seed: non-negative seed of the rollout.
        rows: (initial, member) of each row, both non-negative.
        step: index of the (first) frame to be sampled, from 0.

    Raises:
        ValueError: for a negative seed, index or step, and for a tensor whose rows cannot be
            shared out evenly.
    """

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]], step: int) -> None:
        if min(seed, step, *(index for row in rows for index in row)) < 0:
            raise ValueError(
                f"seed {seed}, step {step} and the indices of initial states and members "
                "must not be negative."
            )
        self._seed, self._rows, self._step = seed, rows, step
        self._normal = [_generator(seed, (*row, step, 0)) for row in rows]

    @cached_property
    def _uniform(self) -> list[np.random.Generator]:
        return [_generator(self._seed, (*row, self._step, 1)) for row in self._rows]

    def __call__(self, x: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `x` (R, ...)."""
        share = self._share(x.shape)
        draws = np.empty((len(self._normal), share), dtype=np.float32)

        def draw(row: int) -> None:
            self._normal[row].standard_normal(out=draws[row], dtype=np.float32)

        if draws.size < LARGE:
            for row in range(len(draws)):
                draw(row)
        else:
            list(_threads(os.getpid()).map(draw, range(len(draws))))
        return torch.from_numpy(draws).reshape(x.shape).to(x.device, x.dtype)

    def uniform(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1), (count,) float32 on the CPU, grouped by row as in a call."""
        share = self._share(torch.Size([count]))
        draws = np.stack([g.random(share, dtype=np.float32) for g in self._uniform])
        return torch.from_numpy(draws).flatten()

    def _share(self, shape: torch.Size) -> int:
        """How many numbers each row draws for a tensor of this shape."""
        rows = len(self._normal)
        if not shape or shape[0] % rows:
            raise ValueError(
                f"noise for {rows} rows cannot be shared out over a tensor of shape "
                f"{tuple(shape)}: its first dimension must be a multiple of {rows}."
            )
        return shape.numel() // rows


def _generator(seed: int, key: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads that draw; a forked process, which has none of its parent's, gets its own."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="noise")
