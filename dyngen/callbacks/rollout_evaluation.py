"""Guided rollouts from held-out initial states, measured at `validate` and `test`."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from data_modules.truth import Place
from dyngen.callbacks.cost import TrainingCost, read_cost, rollout_cost, write_cost
from dyngen.callbacks.tensorboard import log_evaluation
from dyngen.callbacks.world import initial_field, world_of
from dyngen.report.assessment import assess, write_assessment
from dyngen.report.feature_distances import Features
from dyngen.report.provenance import machine
from dyngen.rollout import (
    Field,
    FrameSampler,
    OtherSettings,
    Processes,
    open_rollout,
    together,
    write_rollout,
)
from dyngen.rollout.sampling import Sampling, frame_sampler, weights_digest

log = logging.getLogger(__name__)

ALONE = Processes()


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
        features: What frames and films are compared by, for FID, KID, FVD and their curves; None:
            no such distances.
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
        features: Features | None = Features(),  # noqa: B008 (frozen)
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
        self.features = features
        self.output = output
        self.seed = seed
        self.batch_size = batch_size
        self.during_fit = during_fit

    def state_dict(self) -> dict[str, Any]:
        """How frames are sampled, for `dyngen rollout` to do the same by default."""
        return {"systems": {name: asdict(how) for name, how in self.systems.items()}}

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
        """Roll out in all processes, score in the first while the others wait."""
        with together() as processes:
            self.measure(trainer, model, split, processes)
            processes.gather(None)

    @torch.inference_mode(False)  # Lightning's own mode, in which no gradient can guide
    @torch.no_grad()
    def measure(
        self,
        trainer: Trainer,
        model: LightningModule,
        split: str,
        processes: Processes = ALONE,
    ) -> dict[str, Any]:
        """Roll out, score, log and write; the summary is returned.

        Args:
            trainer: Its data module gives initial states, truth and normalisation.
            model: What `dyngen.rollout.sampling.frame_sampler` makes a sampler of.
            split: `validate` or `test`.
            processes: Those that train together, each of which rolls out its share; the first
                alone scores, and the others return nothing.

        Raises:
            ValueError: If there is no data module with initial states.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "initial_states"):
            raise ValueError(
                "RolloutEvaluation needs a data module with initial states; configure one, such as "
                "data_modules.ClimateCubeDataModule, under data."
            )
        output = Path(self.output or trainer.log_dir or trainer.default_root_dir)
        samplers = {
            name: frame_sampler(model, how, model.device) for name, how in self.systems.items()
        }
        history = max(sampler.history_length for sampler in samplers.values())
        start = _Start(data, split, history, self.leads)
        callbacks: list[Callback] = vars(trainer)["callbacks"]
        counted = [c.state_dict() for c in callbacks if isinstance(c, TrainingCost)]
        self._training = counted[0] if counted else {}
        seconds: dict[str, float] = {}
        costs: dict[str, Any] = {}
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
                    what = (path, model, sampler, start, initials, members, steps)
                    self._roll_out(*what, processes=processes)
                    if not processes.first:
                        continue
                    found[name] = files.enter_context(open_rollout(path))
                    costs.setdefault(name, read_cost(path))
                    seconds[f"{kind} {name}"] = round(time.perf_counter() - started, 1)
            if not processes.first:
                return {}
            for name, place in self.compare.items():
                forecasts[name] = files.enter_context(open_rollout(place))
                costs[name] = read_cost(place)
            started = time.perf_counter()
            world = world_of(
                data, split, start.places(self.initial_states), range(1, self.leads + 1)
            )
            found_out = assess(forecasts, free_runs, world, features=self.features, seed=self.seed)
        seconds["scores"] = round(time.perf_counter() - started, 1)
        found_out.summary["seconds"] = seconds
        provenance = {
            "model": f"{type(model).__name__}, {trainer.ckpt_path or 'in training'}",
            "systems": {name: asdict(how) for name, how in self.systems.items()},
            "split": split,
            "seed": self.seed,
            "seconds": seconds,
            "machine": machine(),
        }
        write_assessment(output, found_out, provenance)
        log_evaluation(trainer, found_out.summary, found_out.figures, found_out.animation)
        return found_out.summary

    def _roll_out(
        self,
        path: Path,
        model: LightningModule,
        sampler: FrameSampler,
        start: _Start,
        initials: int,
        members: int,
        steps: int,
        processes: Processes,
    ) -> None:
        histories = start.histories(initials, sampler.history_length)
        field = start.field(initials)
        along = start.data.along(field.initial_times)
        context = along.context(getattr(sampler, "frames", 1))
        for attempt in range(2):
            try:
                log.info("%s: %d x %d members, %d frames", path.name, initials, members, steps)
                written = write_rollout(
                    path,
                    sampler,
                    histories,
                    field,
                    members=members,
                    steps=steps,
                    seed=self.seed,
                    settings={"model": type(model).__name__, "weights": weights_digest(model)},
                    batch_size=self.batch_size,
                    denormalise=along,
                    conditioning=context,
                    device=model.device,
                    progress=True,
                    processes=processes,
                )
                if written.frames and processes.first:
                    cost = rollout_cost(
                        model, sampler, histories, written, self._training, model.device, context
                    )
                    write_cost(path, cost)
                return
            except OtherSettings:
                if attempt:
                    raise
                log.info("%s is of another model or other settings: it is made anew", path)
                if processes.first:
                    shutil.rmtree(path)


class _Start:
    """Where the rollouts of one split start.

    Args:
        data: A data module of cubes.
        split: Name of the split.
        history: Frames given to the systems, so that all start at the same frames.
        leads: Frames that are forecast.
    """

    def __init__(self, data: Any, split: str, history: int, leads: int) -> None:
        self.data, self.split, self.history, self.leads = data, split, history, leads

    def histories(self, initials: int, length: int) -> Tensor:
        """Normalised histories (N, length, C, H, W)."""
        frames, _ = self.data.initial_states(self.split, initials, self.history, self.leads)
        return frames[:, self.history - length :].clone()

    def places(self, initials: int) -> list[Place]:
        """Trajectory and number of the last frame of each history."""
        found: list[Place] = self.data.initial_places(
            self.split, initials, self.history, self.leads
        )
        return found

    def field(self, initials: int) -> Field:
        """What a rollout from here is made of."""
        return initial_field(self.data, self.places(initials))
