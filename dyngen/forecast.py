"""`dyngen rollout`: an ensemble of trajectories from a trained model, into a Zarr."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch._inductor.config
from torch import Tensor

from data_modules.along import Along
from data_modules.climate_cube import ClimateCubeDataModule, check_compatible
from data_modules.errors import DataError
from dyngen.callbacks.cost import rollout_cost, write_cost
from dyngen.callbacks.world import initial_field
from dyngen.launch import launched, local_device
from dyngen.models.checkpoints import (
    load_model,
    read_checkpoint,
    sampling_settings,
    training_cost,
)
from dyngen.networks.unet import UNet2d
from dyngen.options import OptionParser
from dyngen.rollout import Field, FrameSampler, Written, write_rollout
from dyngen.rollout.progress import years_per_day
from dyngen.rollout.sampling import Sampling, frame_sampler, weights_digest

log = logging.getLogger(__name__)

ROOM = 64  # frames


def forecast(
    model: Path,
    data: ClimateCubeDataModule,
    out: Path,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    split: Literal["train", "validate", "test"] = "test",
    initial_states: int | None = None,
    members: int = 8,
    steps: int | None = None,
    years: int | None = None,
    every: int = 1,
    history: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    compile: bool = False,
    normalised: bool = False,
    progress: bool = True,
) -> None:
    """Sample an ensemble from a trained model into a Zarr; run again, it goes on.

    Many initial states give dimensions (initial, member, lead, y, x), one gives (member, time, y,
    x); both are CF, in physical units, and need nothing of dyngen to be read. Launched as several
    processes, by torchrun or srun, it shares the members out to them, and they write the same
    bytes as one process would.

    Args:
        model: Checkpoint of a model that rolls out, such as a discriminator's `last.ckpt`.
        data: The cube whose frames are the initial states.
        out: Zarr to write. One that is unfinished is gone on with, a longer run extends it.
        sampling: How frames are sampled. On the command line, what is not said of it is as in the
            first system of the `RolloutEvaluation` that the model was trained beside.
        split: Part of the cube that initial states come from.
        initial_states: Initial states, spread evenly over the split; by default 16, or 1 for years.
        members: Ensemble members from each.
        steps: Frames to sample; by default 10.
        years: Instead of steps: as many as so many years of the cube's calendar have.
        every: Keep each so many-th frame.
        history: Frames up to and including the initial states, at least those that the model is
            given: with the same history and steps, different models start from the same states.
        seed: With initial state, member and step it decides the random numbers.
        batch_size: The most frames sampled at a time; by default 64 on a GPU, and on a CPU so many
            that up to eight processes can share them.
        device: cpu, cuda, or auto.
        compile: Compile the networks with torch.compile: a minute or more before the first frame,
            then up to twice as many in a second. Frames differ from eager ones by rounding.
        normalised: Write frames as the model has them, for `dyngen calibrate`, and not in physical
            units, in which what lies below the least possible value is lost.
        progress: Show frames per second and the time that is left.

    Raises:
        ValueError: If checkpoint, cube or settings do not fit together, or `out` holds something
            else.
    """
    with launched() as processes:
        if not processes.first:
            logging.getLogger("dyngen").setLevel(logging.WARNING)
        steps, initial_states = _length(steps, years, initial_states)
        trained: Any = load_model(model)
        place = local_device(device, processes)
        if compile:
            compile_networks(trained, place)
        sampler = frame_sampler(trained, sampling, place)
        start = start_from(trained, sampler, data, split, initial_states, history)
        field = _normalised(start.field) if normalised else start.field
        if years is not None:
            steps = _steps_in_years(field, years, data.path)
            steps = -(-steps // every) * every if every > 0 else steps
            log.info("years = %d from %s are %d steps", years, field.initial_times[0], steps)
        written = write_rollout(
            out,
            sampler,
            start.histories,
            field,
            members=members,
            steps=steps,
            every=every,
            seed=seed,
            settings={
                "model": type(trained).__name__,
                "weights": weights_digest(trained),
                "split": split,
                **({"compiled": True} if compile else {}),  # other bytes, by rounding
                **({"normalised": True} if normalised else {}),
            },
            provenance={
                "checkpoint": str(model),
                "data": data.path,
                "dyngen": version("dyngen"),
            },
            batch_size=batch_size,
            denormalise=None if normalised else start.along,
            conditioning=start.context,
            device=place,
            progress=progress,
            processes=processes,
        )
        if not processes.first:
            return
        if written.frames:
            training = training_cost(read_checkpoint(model))
            cost = rollout_cost(
                trained, sampler, start.histories, written, training, place, start.context
            )
            write_cost(out, cost)
            _tell(out, written, place, processes.count)
        else:
            log.info("%s was finished already", out)


def compile_networks(trained: Any, device: torch.device) -> None:
    """Compile what a model samples with; its rounding differs from then on.

    A logit's gradient becomes one graph of both passes, and on a CPU weights become constants, laid
    out and rounded once instead of at each call.
    """
    if device.type == "cpu":
        # Of the process, since it decides how graphs are traced too, which is at the first call.
        torch._inductor.config.freezing = True
    for network in trained.modules():
        if isinstance(network, UNet2d):
            network.compile()
    if hasattr(trained, "learned_gradient"):
        trained.learned_gradient = torch.compile(trained.learned_gradient)


@dataclass(frozen=True)
class Start:
    """What a rollout starts from.

    Args:
        histories: (N, k, C, H, W), normalised as in training.
        along: The calendar, and the way back to physical units.
        context: What the sampler is given besides the history; None where there is nothing.
        field: What the rollout is made of.
    """

    histories: Tensor
    along: Along
    context: Callable[[list[int], int], dict[str, Tensor]] | None
    field: Field


def start_from(
    trained: Any,
    sampler: FrameSampler,
    data: ClimateCubeDataModule,
    split: str,
    initial_states: int,
    history: int | None = None,
) -> Start:
    """Initial states spread evenly over a split, normalised as the model was trained on them.

    Args:
        history: Frames up to and including each, at least those that the sampler is given.

    Raises:
        DataError: If the cube does not fit the model, or has not so many states.
    """
    given = sampler.history_length
    before = max(given, history or given)
    description = data.description()
    if trained.cube is not None:
        check_compatible(trained.cube, description)
        description = trained.cube  # normalised as in training, whatever this cube's statistics
    room = _room(data, split, initial_states, before)
    frames, times = data.initial_states(split, initial_states, before, room)
    frames, times = frames[:, before - given :], times[:, before - given :]
    places = data.initial_places(split, initial_states, before, room)
    physical = data.normalisation.denormalise(frames, times)
    along = Along(description, times[:, -1], data.cube.calendar)
    return Start(
        along.normalisation.normalise(physical, times),
        along,
        along.context(getattr(sampler, "frames", 1)),
        initial_field(data, places, description),
    )


class RolloutOptions(OptionParser):
    """The options of `dyngen rollout`, whose defaults of the sampling are those of the model."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parse, with what the checkpoint says of the sampling in place of the defaults."""
        if all(action.dest != "model" for action in self._actions):  # a parser of nested keys
            return super().parse_args(args, *rest, **options)
        # Printing would exit before the checkpoint is known.
        asked = [word for word in args or () if not word.startswith("--print_config")]
        model = Path(super().parse_args(asked, *rest, **options).model)
        usual = sampling_settings(read_checkpoint(model)) if model.is_file() else {}
        names = [field.name for field in fields(Sampling) if field.name in usual]
        self.set_defaults({f"sampling.{name}": usual[name] for name in names})
        return super().parse_args(args, *rest, **options)


def _length(steps: int | None, years: int | None, initial_states: int | None) -> tuple[int, int]:
    """Steps, as long as they are not those of years, and initial states.

    Raises:
        ValueError: If both steps and years are given.
    """
    if steps is not None and years is not None:
        raise ValueError(f"steps = {steps} and years = {years} were both given: give one of them.")
    if initial_states is None:
        initial_states = 16 if years is None else 1
    return 10 if steps is None else steps, initial_states


def _normalised(field: Field) -> Field:
    """The same with variables in normalised units."""
    variables = {
        name: {"units": "1", "long_name": f"{known.get('long_name', name)}, normalised"}
        for name, known in field.variables.items()
    }
    return replace(field, variables=variables)


def _steps_in_years(field: Field, years: int, path: str) -> int:
    if not field.has_dates:
        raise ValueError(
            f"the times of {path} are numbers without a calendar, in which years = {years} cannot "
            "be counted: give steps instead."
        )
    return field.steps_in_years(years)


def _tell(out: Path, written: Written, device: torch.device, processes: int) -> None:
    """Say how fast it went."""
    rate = written.frames_per_second
    where = f"{device}" if processes == 1 else f"{device} in {processes} processes"
    speed = f"{rate:.3g} frames/s"
    if written.years_per_frame is not None:
        speed += f", {years_per_day(rate, written.years_per_frame)} simulated years per day"
    log.info("%s: %d frames at %s on %s", out, written.frames, speed, where)


def _room(data: ClimateCubeDataModule, split: str, count: int, history: int) -> int:
    """Frames that the cube has after each initial state, for the truth to compare with.

    They do not depend on the steps asked for: a rollout that is extended starts where it did.
    """
    shortest = min(stop - start for start, stop in data.split(split).runs) // data.frame_stride
    room = min(shortest // 2, ROOM)
    try:
        data.initial_places(split, count, history, room)
    except DataError:
        return 0
    return room
