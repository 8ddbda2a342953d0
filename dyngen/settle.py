"""`dyngen settle`: a calibration under which a free run has the mean that the cube has."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_modules.along import Along
from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.climatology import fit_climatology
from data_modules.normalisation import Normalisation
from dyngen.forecast import Start, compile_networks, start_from
from dyngen.launch import launched, local_device
from dyngen.models.checkpoints import load_model
from dyngen.rollout import (
    FrameNoise,
    FrameSampler,
    Processes,
    Sampling,
    frame_sampler,
    weights_digest,
)
from dyngen.rollout.calibration import (
    CalibratedFrameSampler,
    Calibration,
    QuantileMap,
    Seasons,
)
from dyngen.rollout.progress import FrameProgress
from dyngen.rollout.settling import Settling
from dyngen.rollout.store import plain, replace_arrays

log = logging.getLogger(__name__)

HARMONICS = 3  # of the year, in the mean that is aimed at
SAMPLED = 256  # frames that tell how much a shift changes
STEEP = 0.35  # of a cell's standard deviation: a shift changes cells that are mostly dry by less
KEPT = 50  # steps between states on disk


def settle(
    model: Path,
    data: ClimateCubeDataModule,
    out: Path,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    split: Literal["train", "validate", "test"] = "train",
    members: int = 16,
    steps: int = 1000,
    seed: int = 0,
    device: str = "auto",
    compile: bool = False,
) -> None:
    """Let members run freely and learn what to shift each cell by; stopped, it goes on.

    Launched as several processes, by torchrun or srun, it shares the members out to them.

    Each cell's shift follows what the members' frames, in physical units, are off from the cube's
    mean at that time of the year (see `dyngen.rollout.settling`). It is added to the calibration
    that the sampling names, if it names one, and `--sampling.calibration` of a rollout takes what
    is written.

    Args:
        model: Checkpoint of a model that rolls out.
        data: The cube whose mean is aimed at, that of its training split.
        out: File to write. What is needed to go on lies beside it until it is there.
        sampling: How frames are sampled.
        split: Part of the cube that members start from.
        members: Members, each from a state of its own.
        steps: Steps of each.
        seed: With member and step it decides the random numbers.
        device: cpu, cuda, or auto.
        compile: Compile the networks with torch.compile. Compiled networks round otherwise, and a
            free run adds that up: settle as the rollout will run.

    Raises:
        ValueError: If checkpoint, cube or settings do not fit together, the model makes several
            frames at a time, there are fewer members than processes, or the state beside `out` is
            of other settings.
    """
    with launched() as processes:
        if not processes.first:
            logging.getLogger("dyngen").setLevel(logging.WARNING)
        trained: Any = load_model(model)
        place = local_device(device, processes)
        if compile:
            compile_networks(trained, place)
        sampler = frame_sampler(trained, sampling, place)
        if sampler.block_length > 1:
            raise ValueError(
                f"a {type(trained).__name__} makes {sampler.block_length} frames at a time, and "
                "cells are shifted after each one: settle a model that makes one."
            )
        if members < processes.count:
            raise ValueError(
                f"{members} members cannot be shared out to {processes.count} processes: give "
                f"--members {processes.count} or more, or start fewer processes."
            )
        begun = start_from(trained, sampler, data, split, members)
        weights = weights_digest(trained)
        settings: dict[str, Any] = {
            "weights": weights,
            "sampler": sampler.description(),
            "members": members,
            "seed": seed,
            "steps": steps,
            "compiled": compile,  # other numbers, by rounding
            "start": hashlib.sha256(begun.histories.numpy().tobytes()).hexdigest()[:16],
        }
        if processes.first:
            out.parent.mkdir(parents=True, exist_ok=True)
        state = _State(out.with_name(f".{out.name}.state.npz"), plain(settings))
        aim = Aim.of(data, begun.along)
        shift = _settled(sampler, begun, aim, state, seed, steps, place, processes)
        if not processes.first:
            return
        before = _calibration(sampler, weights, tuple(shift.shape))
        replace(before, path=str(out), seasons=before.seasons.shifted(shift)).write()
        state.path.unlink(missing_ok=True)
        sizes = shift.square().mean((-2, -1)).sqrt()
        for name, each in zip(data.cube.variables, sizes, strict=True):
            log.info("%s: cells are shifted by %.2g standard deviations at each step", name, each)
        log.info("%s: %d members settled over %d steps", out, members, steps)


def _settled(
    sampler: FrameSampler,
    begun: Start,
    aim: Aim,
    state: _State,
    seed: int,
    steps: int,
    device: torch.device,
    processes: Processes,
) -> Tensor:
    """(C, H, W) shifts, from what is on disk on; each process samples its share of the members."""
    members = len(begun.histories)
    history, settling = processes.after_first(state.read) or (
        begun.histories,
        Settling.start(tuple(begun.histories.shape[2:]), steps),
    )
    history = history.to(device)
    first, end = (
        members * rank // processes.count for rank in (processes.rank, processes.rank + 1)
    )
    numbers = list(range(first, end))
    rows = [(initial, 0) for initial in numbers]
    progress = FrameProgress(
        members * steps,
        members * settling.step,
        shown=processes.first,
        years_per_frame=begun.field.years_per_step,
        label="settling",
    )
    with progress:
        for step in range(settling.step, steps):
            known = {} if begun.context is None else begun.context(numbers, step)
            known = {name: values.to(device) for name, values in known.items()}
            mine, _ = sampler(history[first:end], FrameNoise(seed, rows, step), **known)
            frames = torch.cat(processes.gather(mine.cpu())).to(device)
            frames = frames + settling.shift.to(frames)
            history = torch.cat([history[:, 1:], frames], 1)
            if not frames.isfinite().all():
                raise ValueError(f"at step {step} frames are no longer finite; see sampling.clip.")
            times = begun.along.times(range(members), [step])[:, 0]
            settling.follow(aim.error(frames[:, 0].cpu(), times))
            if processes.first and settling.step % KEPT == 0 and settling.step < steps:
                state.write(history.cpu(), settling)
            progress.advance(members)
    return settling.settled


@dataclass(frozen=True)
class Aim:
    """The mean that a free run is to have.

    Args:
        along: The way from normalised frames to physical units.
        climate: Of the cube in physical units; 0 is its mean at that time of the year.
        scale: (C, H, W) physical units by which a shift of 1 changes the mean.
    """

    along: Along
    climate: Normalisation
    scale: Tensor

    @classmethod
    def of(cls, data: ClimateCubeDataModule, along: Along) -> Aim:
        """That of the training split of a cube."""
        channels, calendar = len(data.cube.variables), data.cube.calendar
        harmonics = 0 if calendar is None else HARMONICS
        known = fit_climatology(
            data.cube,
            data.split("train"),
            [0.0] * channels,
            [None] * channels,
            [harmonics] * channels,
        )
        rows, columns = data.crop_slices
        most = min(SAMPLED, data.split("train").frames)
        frames, times = data.initial_states("train", most, 1, 0)
        physical = data.normalisation.denormalise(frames, times)
        frames = along.normalisation.normalise(physical, times)
        higher, lower = (
            along.normalisation.denormalise(frames + step, times) for step in (0.05, -0.05)
        )
        slope = ((higher - lower) / 0.1).mean((0, 1))
        spread = known.pixel_std[:, rows, columns]
        scale = torch.maximum(slope, STEEP * spread)
        zeros, ones = [0.0] * channels, [1.0] * channels
        cycle = known.cycle[:, :, rows, columns]
        return cls(along, Normalisation(zeros, ones, cycle=cycle, calendar=calendar), scale)

    def error(self, frames: Tensor, times: np.ndarray) -> Tensor:
        """(C, H, W) mean over members of normalised frames (N, C, H, W) less what it should be."""
        physical = self.along.normalisation.denormalise(frames, times)
        normal = self.climate.denormalise(torch.zeros_like(frames), times)
        return ((physical - normal) / self.scale).nan_to_num(nan=0.0).mean(0)


@dataclass(frozen=True)
class _State:
    """What is on disk of members that are settling."""

    path: Path
    settings: Mapping[str, Any]

    def read(self) -> tuple[Tensor, Settling] | None:
        """Histories and shifts, or None where there is nothing.

        Raises:
            ValueError: If it is of other settings, or cannot be read.
        """
        try:
            with np.load(self.path, allow_pickle=False) as file:
                before = json.loads(str(file["settings"]))
                history, shift, total = (
                    torch.from_numpy(file[name]) for name in ("history", "shift", "total")
                )
                step = int(file["step"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.path} cannot be read ({error}): delete it to start anew."
            ) from error
        for key, now in self.settings.items():
            if before.get(key) != now:
                raise ValueError(
                    f"{self.path} was begun with other {key}: go on with those, delete it to start "
                    "anew, or write to another --out."
                )
        log.info("resumed at step %d of %d", step, self.settings["steps"])
        return history, Settling(shift, total, step, self.settings["steps"])

    def write(self, history: Tensor, settling: Settling) -> None:
        """Keep where things stand, whole or not at all."""
        replace_arrays(
            self.path,
            history=history.numpy(),
            shift=settling.shift.numpy(),
            total=settling.total.numpy(),
            step=np.int64(settling.step),
            settings=np.array(json.dumps(self.settings)),
        )


def _calibration(sampler: FrameSampler, weights: str, shape: tuple[int, ...]) -> Calibration:
    """That of the sampler, or one that changes nothing."""
    if isinstance(sampler, CalibratedFrameSampler):
        return sampler.calibration
    same = torch.stack([-torch.ones(shape), torch.ones(shape)])
    return Calibration(
        "", Seasons([QuantileMap(same, same)]), weights, plain(sampler.description())
    )
