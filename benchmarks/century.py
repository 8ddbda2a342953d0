"""Simulated years per day: daily frames of the climate experiment, written as they go.

One member on the 48 x 96 grid of `experiments/speedy` with its three variables, its networks and
its settings of the sampler (weights do not change the time, and are drawn at random), through
`write_rollout`: forcing by the calendar, guided sampling, physical units, the Zarr.

- The peer is the image model alone through the same path, at as many noise levels.
- The limit is what the networks alone take: as many evaluations of the image model, and gradients
  of the logit, as a guided frame has, one after another and nothing else.

Then the same with an ensemble, all of whose members' years are counted: eight on a CPU, 64 on a
GPU; and both with all networks compiled, as `dyngen rollout --compile true` has them. Each is run
in turn several times, the first time unrecorded; the medians are given.

    python -m benchmarks.century profile

prints where the time of a guided frame goes.
"""

from __future__ import annotations

import importlib
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from data_modules.along import Along
from dyngen.diffusion.denoiser import Denoiser
from dyngen.diffusion.precision import computes_bf16
from dyngen.forecast import compile_networks
from dyngen.models import TimeConsistencyDiscriminator
from dyngen.rollout import Field, FrameSampler, Sampling, frame_sampler, write_rollout
from dyngen.rollout.randomness import FrameNoise

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "speedy"
VARIABLES, HEIGHT, WIDTH = ("pr", "ta", "ps"), 48, 96
DAY, YEAR = 86400.0, 365.2425
FRAMES, REPEATS = 16, 3
Model = TimeConsistencyDiscriminator


def run() -> list[dict[str, Any]]:
    """An entry for one member and one for an ensemble, eager and compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entries = []
    for compiled in (False, True):
        for members in (1, 64 if device.type == "cuda" else 8):
            model = build().to(device)
            if compiled:
                torch.compiler.reset()  # graphs of one batch size, as a rollout's
                compile_networks(model, device)
            with tempfile.TemporaryDirectory() as folder:
                entry = _measure(model, device, members, Path(folder))
            entries.append(entry | {"name": entry["name"] + (", compiled" if compiled else "")})
    return entries


def build() -> Model:
    """The system of the experiment, with random weights that leave frames finite."""
    torch.manual_seed(0)
    image = _configured("image")["network"]
    ours = _configured("discriminator")
    model = TimeConsistencyDiscriminator(
        _made(ours["discriminator"]),
        forecast_spread=ours["forecast_spread"],
        ratio_level=ours["ratio_level"],
    )
    model._adopt(Denoiser(_made(image)), {})
    return model.eval().requires_grad_(False)


def sampling() -> Sampling:
    """The experiment's settings of the sampler but the calibration, which is of its weights."""
    settings = yaml.safe_load((EXPERIMENT / "rollout.yaml").read_text())["sampling"]
    settings.pop("calibration", None)
    settings["interval"] = tuple(settings.get("interval", (0.0, float("inf"))))
    return Sampling(**settings)


def _configured(name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = yaml.safe_load((EXPERIMENT / f"{name}.yaml").read_text())
    return dict(arguments["model"]["init_args"])


def _made(configuration: dict[str, Any]) -> nn.Module:
    module, _, name = configuration["class_path"].rpartition(".")
    network: nn.Module = getattr(importlib.import_module(module), name)(
        **configuration["init_args"]
    )
    return network


def _measure(model: Model, device: torch.device, members: int, folder: Path) -> dict[str, Any]:
    guided = frame_sampler(model, sampling(), device)
    alone = frame_sampler(model, _unguided(), device)
    count = iter(range(10**6))

    def rolling(sampler: FrameSampler) -> Callable[[], object]:
        return lambda: _roll_out(sampler, members, device, folder / f"{members}-{next(count)}.zarr")

    tasks = {
        "ours": rolling(guided),
        "peer": rolling(alone),
        "limit": _bare(model, guided, members, device),
    }
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(REPEATS + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                seconds = time.perf_counter() - started
                rates[name].append(FRAMES * members / YEAR / seconds * DAY)
    median = {name: statistics.median(values) for name, values in rates.items()}
    who = "one member" if members == 1 else f"{members} members together"
    return {
        "name": f"daily frames of {HEIGHT}x{WIDTH} with {len(VARIABLES)} variables, {who}",
        "ours": median["ours"],
        "peer": median["peer"],
        "peer_name": "the image model alone",
        "limit": median["limit"],
        "unit": "simulated years/day",
        "ratio_to_peer": median["ours"] / median["peer"],
        "ratio_to_limit": median["ours"] / median["limit"],
        "spread": (max(rates["ours"]) - min(rates["ours"])) / median["ours"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def _unguided() -> Sampling:
    """As many noise levels, from where images begin."""
    ours = sampling()
    return Sampling(steps=ours.steps, scale=0.0, clip=ours.clip, precision=ours.precision)


def _roll_out(sampler: FrameSampler, members: int, device: torch.device, path: Path) -> None:
    description = _description()
    start = np.array(["2005-01-01"], dtype="datetime64[s]")
    along = Along(description, start)
    generator = torch.Generator().manual_seed(1)
    shape = (1, sampler.history_length, len(VARIABLES), HEIGHT, WIDTH)
    write_rollout(
        path,
        sampler,
        torch.randn(shape, generator=generator),
        Field(
            {name: {"units": "1"} for name in VARIABLES},
            ("lat", "lon"),
            (HEIGHT, WIDTH),
            start,
            np.timedelta64(1, "D"),
        ),
        members=members,
        steps=FRAMES,
        seed=0,
        settings={},
        batch_size=members,
        denormalise=along,
        conditioning=along.context(),
        device=device,
    )


def _description() -> dict[str, Any]:
    """What a checkpoint says of such a cube, as far as a rollout asks."""
    channels = _configured("image")["network"]["init_args"]["context_channels"]
    generator = torch.Generator().manual_seed(2)
    return {
        "normalisation": {"mean": [0.0] * len(VARIABLES), "std": [1.0] * len(VARIABLES)},
        "time": {"step": DAY, "unit": "seconds", "calendar": "standard", "attributes": {}},
        "shape": [HEIGHT, WIDTH],
        "conditioning": {
            "fields": torch.randn(channels - 2, HEIGHT, WIDTH, generator=generator),
            "series": [{"name": "day_of_year", "kind": "day_of_year"}],
        },
    }


def _bare(
    model: Model, sampler: FrameSampler, members: int, device: torch.device
) -> Callable[[], object]:
    """The networks alone: as many evaluations as the guided frames have, and the expectations."""
    along = Along(_description(), np.array(["2005-01-01"], dtype="datetime64[s]"))
    given = along.context()
    assert given is not None
    context = given([0] * members, 0)["context"].to(device)
    generator = torch.Generator().manual_seed(1)
    shape = (members, sampler.history_length, len(VARIABLES), HEIGHT, WIDTH)
    history = torch.randn(shape, generator=generator).to(device)
    noise = FrameNoise(0, [(0, m) for m in range(members)], 0)
    _, figures = sampler(history, noise, context=context)
    denoised, logits = (int(figures[f"{name}_evaluations"][0]) for name in ("denoiser", "logit"))
    x, sigma = history[:, -1], torch.ones((), device=device)

    def evaluate() -> None:
        for _ in range(FRAMES):
            with torch.no_grad():
                known = model.expectation(history, context)
                for _ in range(denoised):
                    estimate = _denoise(model, x, sigma, context)
                for _ in range(logits):
                    model.logit_gradient(x, sigma, estimate, history, context, **known)

    bf16 = sampling().precision == "bf16" and computes_bf16(device)

    def cast() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            evaluate()

    return cast


def _denoise(model: Model, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
    assert model.denoiser is not None
    estimate: Tensor = model.denoiser(x, sigma, context=context)
    return estimate


def profile() -> str:
    """Where the time of guided frames of one member goes, by function of torch."""
    model = build()
    sampler = frame_sampler(model, sampling())
    with tempfile.TemporaryDirectory() as folder:
        _roll_out(sampler, 1, torch.device("cpu"), Path(folder) / "warm.zarr")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            _roll_out(sampler, 1, torch.device("cpu"), Path(folder) / "profiled.zarr")
    return str(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    if sys.argv[1:] == ["profile"]:
        sys.stdout.write(profile())
    else:
        sys.stdout.write(json.dumps(run(), indent=2) + "\n")
