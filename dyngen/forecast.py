"""`dyngen rollout`: an ensemble of trajectories from a trained model, into a Zarr."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from data_modules.along import Along
from data_modules.climate_cube import ClimateCubeDataModule, check_compatible
from data_modules.errors import DataError
from dyngen.callbacks.cost import rollout_cost, write_cost
from dyngen.callbacks.world import initial_field
from dyngen.models.checkpoints import load_model, read_checkpoint, training_cost
from dyngen.rollout import write_rollout
from dyngen.rollout.sampling import Sampling, frame_sampler, weights_digest

log = logging.getLogger(__name__)

ROOM = 64  # frames


def forecast(
    model: Path,
    data: ClimateCubeDataModule,
    out: Path,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    split: Literal["train", "validate", "test"] = "test",
    initial_states: int = 16,
    members: int = 8,
    steps: int = 10,
    every: int = 1,
    history: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Sample an ensemble from a trained model into a Zarr; run again, it goes on.

    Many initial states give dimensions (initial, member, lead, y, x), one gives (member, time, y,
    x); both are CF, in physical units, and need nothing of dyngen to be read.

    Args:
        model: Checkpoint of a model that rolls out, such as a discriminator's `last.ckpt`.
        data: The cube whose frames are the initial states.
        out: Zarr to write. One that is unfinished is gone on with, a longer run extends it.
        sampling: How frames are sampled.
        split: Part of the cube that initial states come from.
        initial_states: Initial states, spread evenly over the split.
        members: Ensemble members from each.
        steps: Frames to sample.
        every: Keep each so many-th frame.
        history: Frames up to and including the initial states, at least those that the model is
            given: with the same history and steps, different models start from the same states.
        seed: With initial state, member and step it decides the random numbers.
        batch_size: The most frames sampled at a time.
        device: cpu, cuda, or auto.
        progress: Show frames per second and the time that is left.

    Raises:
        ValueError: If checkpoint, cube or settings do not fit together, or `out` holds something
            else.
    """
    trained: Any = load_model(model)
    sampler = frame_sampler(trained, sampling)
    given = sampler.history_length
    before = max(given, history or given)
    description = data.description()
    if trained.cube is not None:
        check_compatible(trained.cube, description)
        description = trained.cube  # normalised as in training, whatever this cube's statistics
    room = _room(data, split, initial_states, before)
    frames, times = data.initial_states(split, initial_states, before, room)
    frames, times = frames[:, before - given : before], times[:, before - given : before]
    places = data.initial_places(split, initial_states, before, room)
    physical = data.normalisation.denormalise(frames, times)
    along = Along(description, times[:, -1], data.cube.calendar)
    histories = along.normalisation.normalise(physical, times)
    context = along.context(getattr(sampler, "frames", 1))
    place = _device(device)
    written = write_rollout(
        out,
        sampler,
        histories,
        initial_field(data, places, description),
        members=members,
        steps=steps,
        every=every,
        seed=seed,
        settings={
            "model": type(trained).__name__,
            "weights": weights_digest(trained),
            "split": split,
        },
        provenance={
            "checkpoint": str(model),
            "data": data.path,
            "dyngen": version("dyngen"),
        },
        batch_size=batch_size,
        denormalise=along,
        conditioning=context,
        device=place,
        progress=progress,
    )
    if written.frames:
        training = training_cost(read_checkpoint(model))
        cost = rollout_cost(trained, sampler, histories, written, training, place, context)
        write_cost(out, cost)
        rate = written.frames_per_second
        log.info("%s: %d frames at %.1f frames/s on %s", out, written.frames, rate, place)
    else:
        log.info("%s was finished already", out)


def _room(data: ClimateCubeDataModule, split: str, count: int, history: int) -> int:
    """Frames that the cube has after each initial state, for the truth to compare with.

    They do not depend on the steps asked for: a rollout that is extended starts where it did.
    """
    shortest = min(stop - start for start, stop in data.split(split).runs) // data.frame_stride
    room = min(shortest // 4, ROOM)
    try:
        data.initial_places(split, count, history, room)
    except DataError:
        return 0
    return room


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name} cannot be used here ({reason}); give cpu.") from error
    return device
