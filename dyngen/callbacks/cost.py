"""What a model cost to train, and what its frames cost to sample."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dyngen.report.provenance import machine
from dyngen.rollout import FrameSampler, Written
from dyngen.rollout.ensemble import Conditioning
from dyngen.rollout.randomness import FrameNoise

COST = ".cost.json"  # beside the arrays of a rollout: not of its numbers, so not in them


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions within it.

    By the formulas of `torch.utils.flop_counter`, whose own counter watches modules with hooks that
    do not live with gradients inside a forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as always, and count."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


class TrainingCost(Callback):
    """Counts seconds, steps and floating-point operations of training, over all its resumptions.

    Operations are those of matrix products and convolutions, forwards and backwards, of the first
    step (`torch.utils.flop_counter`), times the number of steps. Checkpoints hold the figures.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self.flops_per_step = 0
        self.batch_size = 0
        self._counter: Operations | None = None
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Figures so far; `flops` is of all steps."""
        return {
            "seconds": round(self.seconds, 3),
            "steps": self.steps,
            "flops_per_step": self.flops_per_step,
            "flops": self.flops_per_step * self.steps,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        for name in ("seconds", "steps", "flops_per_step", "batch_size"):
            setattr(self, name, state_dict[name])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, and at the very first step the counter."""
        if not self.flops_per_step:
            self.batch_size = len(batch["frames"]) if "frames" in batch else 0
            self._counter = Operations()
            self._counter.__enter__()
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the step."""
        self.seconds += time.perf_counter() - self._since
        self.steps += 1
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops_per_step = self._counter.total
            self._counter = None


def rollout_cost(
    model: Any,
    sampler: FrameSampler,
    history: Tensor,
    written: Written,
    training: dict[str, Any],
    device: torch.device,
    conditioning: Conditioning | None = None,
) -> dict[str, Any]:
    """What a rollout cost, beside what its model cost.

    Args:
        model: For its number of parameters.
        sampler: That the rollout was made with; it is called once more, to count operations.
        history: (N, k, C, H, W) normalised; the first is used.
        written: What `write_rollout` did.
        training: Of the model's checkpoint, from `training_cost`.
        device: Where frames were sampled.
        conditioning: What else the sampler was given.
    """
    history = history[:1].to(device)
    given = conditioning([0], 0) if conditioning else {}
    given = {name: values.to(device) for name, values in given.items()}
    with Operations() as counter:
        frames, figures = sampler(history, FrameNoise(0, [(0, 0)], step=0), **given)
    per_frame = 1 / frames.shape[1]
    evaluations = figures.get("denoiser_evaluations")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training,
        "image_model_training": getattr(model, "image_source", {}).get("training", {}),
        "evaluations_per_frame": None
        if evaluations is None
        else float(evaluations.mean()) * per_frame,
        "flops_per_frame": counter.total * per_frame,
        "seconds_per_frame": written.seconds / written.frames,
        "machine": machine(),
    }


def write_cost(path: Path, cost: dict[str, Any]) -> None:
    """Keep the cost of a rollout beside it."""
    (path / COST).write_text(json.dumps(cost, indent=2))


def read_cost(path: str | Path) -> dict[str, Any] | None:
    """The cost of a rollout, where it is known."""
    place = Path(path) / COST
    return json.loads(place.read_text()) if place.is_file() else None
