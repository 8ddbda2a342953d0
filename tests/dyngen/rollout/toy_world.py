"""A world small enough to roll out in a test, and the script that the killing tests kill.

Run as ``python toy_world.py PATH [name=value ...]`` it writes a rollout of the toy world to PATH.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyngen.rollout.ensemble import Written, write_rollout
from dyngen.rollout.field import Field
from dyngen.rollout.randomness import FrameNoise


class LinearSampler:
    """x' = a x + sqrt(1 - a^2) n at each point: the AR(1) process without a diffusion model.

    With `block_length` n it gives n frames at a call, as a video model does; `pause` seconds pass
    at each call, and frames are spoilt at step `spoilt`.
    """

    def __init__(
        self,
        coefficient: float = 0.9,
        *,
        history_length: int = 2,
        block_length: int = 1,
        pause: float = 0.0,
        spoilt: int | None = None,
    ) -> None:
        self.coefficient = coefficient
        self.history_length = history_length
        self.block_length = block_length
        self.pause = pause
        self.spoilt = spoilt
        self.calls = 0
        self.diagnostic_names: tuple[str, ...] = ("spread",)

    def __call__(
        self, history: Tensor, noise: FrameNoise, **conditioning: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert history.shape[1] == self.history_length
        time.sleep(self.pause)
        frames = [history[:, -1]]
        for _ in range(self.block_length):
            forcing = (1 - self.coefficient**2) ** 0.5 * noise(frames[-1])
            frames.append(self.coefficient * frames[-1] + forcing)
        block = torch.stack(frames[1:], dim=1)
        for values in conditioning.values():
            block = block + values[:, None, None, None, None]
        if self.spoilt is not None and self.calls == self.spoilt:
            block[-1, -1, 0, 0, 0] = torch.nan
        self.calls += 1
        return block, {"spread": block.flatten(1).std(1), "unstored": block.flatten(1).mean(1)}

    def description(self) -> dict[str, Any]:
        return {"name": "linear", "coefficient": self.coefficient, "block": self.block_length}


def histories(initials: int = 3, length: int = 2, channels: int = 2, size: int = 4) -> Tensor:
    """Some normalised initial histories (N, k, C, H, W)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(initials, length, channels, size, size + 1, generator=generator)


def field(initials: int = 3, size: int = 4) -> Field:
    """Two variables on a small grid, daily, with calendar dates."""
    return Field(
        variables={"t2m": {"units": "K", "long_name": "temperature"}, "pr": {"units": "mm/day"}},
        dims=("latitude", "longitude"),
        shape=(size, size + 1),
        initial_times=np.datetime64("2001-01-01") + 30 * np.arange(initials).astype("m8[D]"),
        step=np.timedelta64(1, "D"),
        coords={
            "latitude": (("latitude",), np.linspace(-60, 60, size), {"units": "degrees_north"}),
            "longitude": (("longitude",), 72.0 * np.arange(size + 1), {"units": "degrees_east"}),
        },
    )


def to_physical(x: Tensor) -> Tensor:
    """Normalised (..., C, H, W) -> physical units."""
    mean, std = torch.tensor([280.0, 3.0]), torch.tensor([10.0, 0.5])
    return x * std[:, None, None] + mean[:, None, None]


def write(path: Path, **changes: Any) -> Written:
    """A rollout of the toy world with some arguments of `write_rollout` changed."""
    initials = changes.pop("initials", 3)
    pause = changes.pop("pause", 0.0)
    arguments: dict[str, Any] = {
        "members": 5,
        "steps": 10,
        "seed": 1,
        "batch_size": 4,
        "block_steps": 4,
        "denormalise": to_physical,
        "settings": {"checkpoint": "abc"},
        "provenance": {"config": {"made": "for a test"}},
    }
    sampler = changes.pop("sampler", LinearSampler(pause=pause))
    where = changes.pop("field", field(initials))
    return write_rollout(path, sampler, histories(initials), where, **arguments | changes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]), **{k: float(v) for k, v in (a.split("=") for a in sys.argv[2:])})
