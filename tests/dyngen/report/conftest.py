"""A small world of autoregressive fields: forecasts, free runs and truth whose scores are known."""

from typing import Any

import pytest
import torch
import xarray as xr

from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

COEFFICIENT = 0.8
FORECAST = ("initial", "member", "lead", "lat", "lon")
ATTRIBUTES = {"units": "s-1", "long_name": "vorticity"}


def dataset(dims: tuple[str, ...], values: torch.Tensor) -> xr.Dataset:
    return xr.Dataset({"vorticity": (dims, values.numpy(), ATTRIBUTES)})


def make_world(initials: int = 40, members: int = 6, leads: int = 12) -> dict[str, Any]:
    """Arguments of `evaluate`: `guided` follows the law of the truth, `unguided` has no memory."""
    world = AutoregressiveFields(power_law_spectrum(8, 8, slope=1.0), COEFFICIENT)
    generator = torch.Generator().manual_seed(0)

    def simulate(runs: int, frames: int) -> torch.Tensor:
        return world.simulate(runs, frames, generator=generator)[:, :, 0]

    windows = simulate(initials, 1 + leads)
    state = windows[:, :1].repeat_interleave(members, 0)
    frames = []
    for _ in range(leads):
        state = world.step(state, world._noise(state.shape, generator, torch.float32))
        frames.append(state[:, 0])
    guided = torch.stack(frames, 1).reshape(initials, members, leads, 8, 8)
    unguided = simulate(initials * members * leads, 1).reshape(initials, members, leads, 8, 8)
    run = ("trajectory", "time", "lat", "lon")
    free = ("member", "time", "lat", "lon")
    return {
        "forecasts": {
            "guided": dataset(FORECAST, guided),
            "unguided": dataset(FORECAST, unguided),
        },
        "truth": dataset(("initial", "lead", "lat", "lon"), windows[:, 1:]),
        "initial_frames": dataset(("initial", "lat", "lon"), windows[:, 0]),
        "reference": dataset(run, simulate(4, 400)),
        "training": dataset(run, simulate(5, 300)),
        "free_runs": {
            "guided": dataset(free, simulate(3, 400)),
            "unguided": dataset(free, 1.2 * simulate(1200, 1).reshape(3, 400, 8, 8) + 0.3),
        },
        "bootstrap": 200,
    }


@pytest.fixture(scope="session")
def world() -> dict[str, Any]:
    return make_world()


@pytest.fixture(scope="session")
def scores(world: dict[str, Any]) -> xr.Dataset:
    from dyngen.report.evaluate import evaluate

    return evaluate(**world)
