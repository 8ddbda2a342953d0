"""`dyngen rollout` from a model whose frames are the calendar: what it writes is known exactly.

Run as ``python calendar_world.py CUBE OUT YEARS [PAUSE [KILL_AT]]`` it rolls out, and kills itself
at a replacement of a file if told to.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from data_modules.climate_cube import ClimateCubeDataModule
from dyngen import forecast as verb
from dyngen.rollout import Sampling

SHAPE = (3, 4)


def write_cube(path: Path, calendar: str | None, days: int = 40, hours: int = 24) -> Path:
    """A cube that ends on the last day of 2003, or has no dates."""
    values = np.random.default_rng(0).normal(size=(2, days, *SHAPE)).astype(np.float32)
    times: Any = np.arange(float(days))
    if calendar is not None:
        last = cftime.datetime(2003, 12, 30 if calendar == "360_day" else 31, calendar=calendar)
        steps = (
            cftime.date2num(last, "hours since 1970-01-01", calendar=calendar)
            - hours * (np.arange(days)[::-1])
        )
        times = cftime.num2date(steps, "hours since 1970-01-01", calendar=calendar)
        if calendar == "standard":
            times = np.array([np.datetime64(t.isoformat()) for t in times]).astype("M8[ns]")
    data = xr.Dataset(
        {name: (("time", "lat", "lon"), v) for name, v in zip("uv", values, strict=True)},
        {
            "time": times,
            "lat": ("lat", [-40.0, 0.0, 40.0], {"units": "degrees_north"}),
            "lon": ("lon", [0.0, 90.0, 180.0, 270.0], {"units": "degrees_east"}),
        },
    )
    data.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def data_of(path: Path) -> ClimateCubeDataModule:
    return ClimateCubeDataModule(
        path, forcing=["day_of_year"], splits={"train": 0.5, "test": 0.5}, window_length=2
    )


class Calendar(nn.Module):
    """A model whose next frame is the forcing of its day, plus noise too small to matter."""

    history_length = 1
    block_length = 1

    def __init__(self, data: ClimateCubeDataModule | None, pause: float) -> None:
        super().__init__()
        self.cube = None if data is None else data.description()
        self.pause = pause
        self.weight = nn.Parameter(torch.ones(()))
        self.denoiser = self.estimate
        self.estimate.__func__.network = SimpleNamespace(context_channels=2)  # type: ignore[attr-defined]

    def estimate(
        self, x: Tensor, sigma: Tensor, history: Tensor, context: Tensor | None = None
    ) -> Tensor:
        time.sleep(self.pause)
        if context is None:
            return 0.9 * history[:, -1]
        return context.to(x).expand_as(x)


def roll_out(cube: Path, out: Path, pause: float = 0.0, **changes: Any) -> None:
    """`dyngen rollout`, with the model in place of a checkpoint."""
    data = ClimateCubeDataModule(cube, splits={"train": 0.5, "test": 0.5})
    if data.cube.calendar is not None:
        data = data_of(cube)
    model = Calendar(data, pause)
    verb.load_model = lambda path: model
    verb.read_checkpoint = lambda path: {}
    verb.training_cost = lambda checkpoint: {}
    arguments: dict[str, Any] = {
        "sampling": Sampling(steps=1, sampler="ddim"),
        "members": 2,
        "device": "cpu",
        "progress": False,
    }
    verb.forecast(Path("last.ckpt"), data, out, **arguments | changes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    cube_path, out_path, years = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 5:
        original, count = Path.replace, 0

        def replace(self: Path, target: Path) -> Path:
            global count
            count += Path(target).is_relative_to(out_path)  # not while it is prepared aside
            if count == int(sys.argv[5]):
                os.kill(os.getpid(), signal.SIGKILL)  # what is written is not in place yet
            return original(self, target)

        Path.replace = replace  # type: ignore[method-assign]
    roll_out(cube_path, out_path, float(sys.argv[4]) if len(sys.argv) > 4 else 0.0, years=years)
