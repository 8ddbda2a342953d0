"""Guided rollouts from held-out initial states, measured at `validate` and `test`."""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from data_modules.climate_cube import field_arguments
from dyngen.callbacks.pictures import draw
from dyngen.callbacks.tensorboard import log_evaluation
from dyngen.report.evaluate import evaluate
from dyngen.report.html import write_report
from dyngen.report.provenance import machine
from dyngen.report.summary import summarise
from dyngen.rollout import Field, FrameSampler, OtherSettings, open_rollout, write_rollout
from dyngen.rollout.sampling import Sampling, frame_sampler, weights_digest

log = logging.getLogger(__name__)


class RolloutEvaluation(Callback):
    """Rolls a model out from held-out initial states and measures how right the ensemble is.

    Beside the systems stand persistence and climatology, and other rollouts when given. Scores are
    logged to TensorBoard with figures and a short video, and written as `scores.nc`,
    `summary.json` and a self-contained `report.html`. The rollouts themselves are kept as Zarr, so
    that an interrupted evaluation goes on where it stopped.

    Args:
        systems: Name -> how its frames are sampled. By default `guided`, at scale 1, and
            `unguided`, the image model alone.
        initial_states: Held-out initial states, spread evenly over the split.
        members: Ensemble members from each.
        leads: Frames of each forecast.
        free_run_steps: Frames of a further run from one initial state, to see drift; 0 for none.
        free_run_members: Its members.
        free_run_systems: Which systems run on; by default the first.
        compare: Name -> path of a rollout made elsewhere from the same initial states.
        output: Folder to write to; by default the logger's.
        seed: With initial state, member and step it decides the random numbers.
        batch_size: The most frames sampled at a time.
        during_fit: Whether to measure at the validation of `fit` as well.

    Raises:
        ValueError: For sizes below 1, or a model that has no frame sampler.
    """

    def __init__(
        self,
        systems: dict[str, Sampling] | None = None,
        initial_states: int = 16,
        members: int = 8,
        leads: int = 10,
        free_run_steps: int = 0,
        free_run_members: int = 4,
        free_run_systems: list[str] | None = None,
        compare: dict[str, str] | None = None,
        output: str | None = None,
        seed: int = 0,
        batch_size: int = 64,
        during_fit: bool = False,
    ) -> None:
        least = {"initial_states": 2, "members": 2, "leads": 1, "free_run_members": 1}
        for name, bound in least.items():
            if (value := locals()[name]) < bound:
                raise ValueError(
                    f"{name} of RolloutEvaluation must be at least {bound}, not {value}."
                )
        self.systems = systems or {"guided": Sampling(), "unguided": Sampling(scale=0.0)}
        self.free_run_systems = free_run_systems or list(self.systems)[:1]
        unknown = set(self.free_run_systems) - set(self.systems)
        if unknown:
            raise ValueError(
                f"free_run_systems names {sorted(unknown)}; the systems are {list(self.systems)}."
            )
        self.initial_states = initial_states
        self.members = members
        self.leads = leads
        self.free_run_steps = free_run_steps
        self.free_run_members = free_run_members
        self.compare = compare or {}
        self.output = output
        self.seed = seed
        self.batch_size = batch_size
        self.during_fit = during_fit

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure after the last batch, while averaged weights, if any, are in place."""
        last = batch_idx + 1 == int(trainer.num_val_batches[dataloader_idx])
        fitting = trainer.state.fn == "fit"
        if last and not trainer.sanity_checking and (self.during_fit or not fitting):
            self._measure_once(trainer, pl_module, "validate")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure after the last batch."""
        if batch_idx + 1 == int(trainer.num_test_batches[dataloader_idx]):
            self._measure_once(trainer, pl_module, "test")

    def _measure_once(self, trainer: Trainer, model: LightningModule, split: str) -> None:
        """Measure in the first process, while the others wait."""
        if trainer.is_global_zero:
            self.measure(trainer, model, split)
        trainer.strategy.barrier("rollout evaluation")

    @torch.inference_mode(False)  # Lightning's own mode, in which no gradient can guide
    @torch.no_grad()
    def measure(self, trainer: Trainer, model: LightningModule, split: str) -> dict[str, Any]:
        """Roll out, score, log and write; the summary is returned.

        Args:
            trainer: Its data module gives initial states, truth and normalisation.
            model: What `dyngen.rollout.sampling.frame_sampler` makes a sampler of.
            split: `validate` or `test`.

        Raises:
            ValueError: If there is no data module with initial states.
        """
        data = getattr(trainer, "datamodule", None)
        if not hasattr(data, "initial_states"):
            raise ValueError(
                "RolloutEvaluation needs a data module with initial states; configure one, such as "
                "data_modules.ClimateCubeDataModule, under data."
            )
        output = Path(self.output or trainer.log_dir or trainer.default_root_dir)
        samplers = {name: frame_sampler(model, how) for name, how in self.systems.items()}
        history = max(sampler.history_length for sampler in samplers.values())
        world = _World(data, split, history, self.leads)
        seconds: dict[str, float] = {}
        forecasts: dict[str, xr.Dataset] = {}
        free_runs: dict[str, xr.Dataset] = {}
        with ExitStack() as files:
            for name, sampler in samplers.items():
                runs = [("forecast", self.initial_states, self.members, self.leads, forecasts)]
                if name in self.free_run_systems and self.free_run_steps:
                    steps, members = self.free_run_steps, self.free_run_members
                    runs.append(("free run", 1, members, steps, free_runs))
                for kind, initials, members, steps, found in runs:
                    started = time.perf_counter()
                    path = output / "rollouts" / split / f"{name} {kind}.zarr".replace(" ", "_")
                    self._roll_out(path, model, sampler, world, initials, members, steps)
                    found[name] = files.enter_context(open_rollout(path))
                    seconds[f"{kind} {name}"] = round(time.perf_counter() - started, 1)
            for name, place in self.compare.items():
                forecasts[name] = files.enter_context(open_rollout(place))
            started = time.perf_counter()
            truth, initial_frames = world.truth(self.initial_states)
            reference = world.runs(split)
            scores = evaluate(
                forecasts,
                truth,
                reference=reference,
                training=world.runs("train"),
                initial_frames=initial_frames,
                free_runs=free_runs,
                area_weights=world.area_weights,
                periodic=world.periodic,
                seed=self.seed,
            )
            summary = summarise(scores)
            figures, animation = draw(scores, truth, forecasts, reference, free_runs)
        seconds["scores"] = round(time.perf_counter() - started, 1)
        summary["seconds"] = seconds
        output.mkdir(parents=True, exist_ok=True)
        _write_netcdf(scores, output / "scores.nc")
        _write_text(output / "summary.json", json.dumps(summary, indent=2))
        provenance = {
            "model": f"{type(model).__name__}, {trainer.ckpt_path or 'in training'}",
            "systems": {name: asdict(how) for name, how in self.systems.items()},
            "split": split,
            "seed": self.seed,
            "seconds": seconds,
            "machine": machine(),
        }
        write_report(output / "report.html", scores, summary, figures, animation, provenance)
        log_evaluation(trainer, summary, figures, animation)
        log.info("scores in %s, report in %s", output / "summary.json", output / "report.html")
        return summary

    def _roll_out(
        self,
        path: Path,
        model: LightningModule,
        sampler: FrameSampler,
        world: _World,
        initials: int,
        members: int,
        steps: int,
    ) -> None:
        histories, times = world.histories(initials, sampler.history_length)
        for attempt in range(2):
            try:
                log.info("%s: %d x %d members, %d frames", path.name, initials, members, steps)
                write_rollout(
                    path,
                    sampler,
                    histories,
                    world.field(times),
                    members=members,
                    steps=steps,
                    seed=self.seed,
                    settings={"model": type(model).__name__, "weights": weights_digest(model)},
                    batch_size=self.batch_size,
                    denormalise=world.data.normalisation.denormalise,
                    device=model.device,
                    progress=True,
                )
                return
            except OtherSettings:
                if attempt:
                    raise
                log.info("%s is of another model or other settings: it is made anew", path)
                shutil.rmtree(path)


class _World:
    """What a rollout is compared with: the truth of one split, in physical units.

    Args:
        data: A data module of cubes.
        split: Name of the split.
        history: Frames given to the systems, so that all start at the same frames.
        leads: Frames that are forecast.
    """

    def __init__(self, data: Any, split: str, history: int, leads: int) -> None:
        self.data, self.split, self.history, self.leads = data, split, history, leads
        self.description = data.description()
        self.dims = tuple(self.description["dims"])
        self.periodic = tuple(self.description["boundary"][d] == "periodic" for d in self.dims)
        self.area_weights = xr.DataArray(
            self.description["area_weights"].numpy(), dims=self.dims[0]
        )

    def histories(self, initials: int, length: int) -> tuple[Tensor, np.ndarray]:
        """Normalised histories (N, length, C, H, W), and the times (N,) of their last frames."""
        frames, times = self._windows(initials)
        given = frames[:, self.history - length : self.history].clone()
        return given, times[:, self.history - 1]

    def field(self, initial_times: np.ndarray) -> Field:
        """What a rollout from these times is made of."""
        return Field(initial_times=initial_times, **field_arguments(self.description))

    def truth(self, initials: int) -> tuple[xr.Dataset, xr.Dataset]:
        """What came true, (initial, lead, y, x), and the last given frames, (initial, y, x)."""
        frames, times = self._windows(initials)
        frames = self.data.normalisation.denormalise(frames)
        start = {"initial_time": ("initial", times[:, self.history - 1])}
        came = self._dataset(frames[:, self.history :], ("initial", "lead"), start)
        given = self._dataset(frames[:, self.history - 1], ("initial",), start)
        return came, given

    def runs(self, split: str, frames: int = 20_000) -> xr.Dataset:
        """Runs of a split, (run, time, y, x), cut to the shortest and to so many frames in all."""
        count = self.data.run_count(split)
        lengths = [len(self.data.read_run(split, index)[1]) for index in range(count)]
        longest = max(lengths)
        chosen = [i for i, length in enumerate(lengths) if length >= min(longest, 2 * self.leads)]
        length = min(lengths[i] for i in chosen)
        keep = max(1, min(len(chosen), frames // length))
        chosen = [chosen[i * len(chosen) // keep] for i in range(keep)]
        runs = [self.data.read_run(split, i)[0][: min(length, frames)] for i in chosen]
        return self._dataset(
            self.data.normalisation.denormalise(torch.stack(runs)), ("run", "time"), {}
        )

    def _windows(self, initials: int) -> tuple[Tensor, np.ndarray]:
        found: tuple[Tensor, np.ndarray] = self.data.initial_states(
            self.split, initials, self.history, self.leads
        )
        return found

    def _dataset(self, frames: Tensor, dims: tuple[str, ...], coords: dict[str, Any]) -> xr.Dataset:
        """Frames (..., C, H, W) in physical units as a dataset with the cube's own names."""
        variables = self.description["variables"]
        space = field_arguments(self.description)["coords"]
        data = {
            name: ((*dims, *self.dims), frames[..., channel, :, :].numpy(), dict(attributes))
            for channel, (name, attributes) in enumerate(variables.items())
        }
        return xr.Dataset(data, coords | space)


def _write_netcdf(scores: xr.Dataset, path: Path) -> None:
    """Replace a file at once, so that an interrupted run leaves the old one."""
    partial = path.with_name(f"{path.name}.partial")
    scores.to_netcdf(partial, engine="h5netcdf")
    partial.replace(path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
