"""What every model of a data cube shares: its optimiser, and the cube's description."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn

from data_modules.climate_cube import check_compatible
from data_modules.conditioning import context_maps
from dyngen.diffusion.denoiser import align
from dyngen.models.optimisers import OPTIMISERS, Optimiser

log = logging.getLogger(__name__)

CUBE_KEY = "cube"
VALIDATION_SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


class CubeModule(LightningModule):
    """A LightningModule that remembers the cube it was trained on.

    Variables, grid and normalisation are written into each checkpoint, so that a checkpoint alone
    suffices to sample frames in physical units, and another cube is refused with a sentence.

    Args:
        learning_rate: Peak learning rate.
        warmup_steps: Steps over which the learning rate rises linearly; it then falls as a cosine
            to a hundredth of the peak at the last step.
        weight_decay: Weight decay.
        area_weighted: Whether errors count by the area of their cells.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        area_weighted: bool = False,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__()
        self.area_weighted = area_weighted
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        if optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser is '{optimiser}'; choose {' or '.join(OPTIMISERS)}.")
        self.optimiser = optimiser
        self.cube: dict[str, Any] | None = None
        self._windows: int | None = None  # in the batch at hand, which its static fields do not say

    def meet_cube(self) -> None:
        """Take the cube's description from the data module, or check it against the checkpoint's.

        When a run begins, after checkpoints are restored: with the statistics of a checkpoint a
        large cube is not read through again.

        Raises:
            DataError: If the checkpoint was trained on other variables or another grid.
        """
        description = _describe(self._trainer)
        if description is None:
            return
        if self.cube is not None:
            check_compatible(self.cube, description)
        else:
            self.cube = description

    @property
    def context_channels(self) -> int:
        """Channels of static fields and forcing that the network takes."""
        return 0

    def mean_square(self, error: Tensor) -> Tensor:
        """Mean square (B,) of errors (B, ..., H, W), by area of the cells where that is asked for.

        The best denoiser is the same with any weights; on a sphere, where rows near the poles are
        small, a network of limited size serves the larger cells better.
        """
        square = error.square()
        if self.area_weighted and self.cube is not None:
            square = square * self.cube["area_weights"].to(square)[:, None]
        return square.flatten(1).mean(dim=1)

    def on_fit_start(self) -> None:
        """Meet the cube."""
        self.meet_cube()
        given = (self.cube or {}).get("conditioning")
        if given and not self.context_channels:
            log.warning(
                "the data give static fields or forcing (%d channels), but the network of %s has "
                "no context_channels and will not see them",
                given["channels"],
                type(self).__name__,
            )

    def on_validation_start(self) -> None:
        """Meet the cube."""
        self.meet_cube()

    def on_test_start(self) -> None:
        """Meet the cube."""
        self.meet_cube()

    def on_predict_start(self) -> None:
        """Meet the cube."""
        self.meet_cube()

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, with the number of windows in the batch as its size."""
        if self._windows is not None:
            kwargs.setdefault("batch_size", self._windows)
        super().log(*args, **kwargs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step's randomness from (seed, rank, step) alone.

        A run that is resumed then draws what an uninterrupted one would have drawn.
        """
        self._count(batch)
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # what seed_everything was given
        key = (self.global_rank, self.trainer.fit_loop.total_batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0]))

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count its windows."""
        self._count(batch)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count its windows."""
        self._count(batch)

    def _count(self, batch: Any) -> None:
        """Remember how many windows a batch has, which its static fields do not say."""
        frames = batch.get("frames") if isinstance(batch, dict) else None
        self._windows = None if frames is None else len(frames)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the cube's description into the checkpoint."""
        checkpoint[CUBE_KEY] = self.cube

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the cube's description back, and refuse another cube before its weights are loaded.

        Raises:
            DataError: If the data module's cube has other variables or another grid.
        """
        self.cube = checkpoint.get(CUBE_KEY) or self.cube
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        statistics = checkpoint.get(type(datamodule).__qualname__)
        if statistics is not None:
            datamodule.load_state_dict(statistics)
        if CUBE_KEY in checkpoint:
            self.meet_cube()

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimiser sees."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """The optimiser with linear warm-up and cosine decay over the trainer's number of steps."""
        optimiser = OPTIMISERS[self.optimiser](
            self.trained_parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.99),
        )
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))
            return min(1.0, (step + 1) / self.warmup_steps) * (0.01 + 0.99 * cosine)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def unless_given(*names: str) -> list[str]:
    """Which arguments `save_hyperparameters` must leave out: those that are objects.

    The command line gives Lightning each object's class path and arguments, and a checkpoint with
    these says how to build the model; without it only the object itself is there.
    """
    return [] if _given_hyperparameters.get() is not None else list(names)


def with_errors(
    history: Tensor, largest: float, change: float = 0.0, offset: float = 0.0
) -> Tensor:
    """Histories (B, k, C, H, W) with noise, as a rollout's own frames have errors.

    What a model makes of its own frames it never sees in training, and errors that it copies from
    frame to frame add up. Its standard deviation is drawn for each window between 0 and `largest`,
    so that a clean history is still trusted (Ho et al. 2021, arXiv 2106.15282, section 4;
    Sanchez-Gonzalez et al. 2020, arXiv 2002.09405).

    Args:
        largest: Largest standard deviation of white noise, which is another one on each frame.
        change: Largest share of what changes from frame to frame in other windows of the batch:
            errors shaped as those of a forecast are, which last from frame to frame and add up.
            A history of one frame shows no change and has none.
        offset: Largest standard deviation of a constant that all values of a channel share, in all
            frames alike: the error at the largest scale of all, where white noise has next to none.
            A forecast that has seen it leads the mean of a long run back to what it should be.
    """
    disturbed = history
    if largest:
        level = largest * torch.rand(len(history), device=history.device)
        disturbed = disturbed + align(level, history) * torch.randn_like(history)
    if change and history.shape[1] > 1:
        level = change * torch.rand(len(history), device=history.device)
        shape = history[:, -1] - history[:, -2]
        drawn = [shape[torch.randperm(len(shape), device=shape.device)] for _ in history[0]]
        disturbed = disturbed + align(level, history) * torch.stack(drawn, 1).cumsum(1)
    if offset:
        level = offset * torch.rand(len(history), device=history.device)
        constant = torch.randn_like(history[:, :1, :, :1, :1])
        disturbed = disturbed + align(level, history) * constant
    return disturbed


def frame_context(network: Any, batch: dict[str, Tensor]) -> Tensor | None:
    """Static fields and forcing of each frame (B, T, C_context, H, W), or None.

    Args:
        network: Anything with `context_channels`; None or without these has no context.
        batch: With `frames`, and perhaps `static` and `forcing`.

    Raises:
        ValueError: If the network takes another number of channels.
    """
    wanted = getattr(network, "context_channels", 0)
    if not wanted:
        return None
    frames = batch["frames"]
    maps = context_maps(batch.get("static"), batch.get("forcing"), frames.shape[-2:])
    given = 0 if maps is None else maps.shape[-3]
    if maps is None or given != wanted:
        raise ValueError(
            f"{type(network).__name__} takes {wanted} channels of context, but static and forcing "
            f"of the data come to {given}; set its context_channels to {given}, or name others in "
            "data.init_args.static and forcing."
        )
    return maps.expand(*frames.shape[:2], *maps.shape[-3:])


def as_context(context: Tensor | None) -> dict[str, Tensor]:
    """A context as arguments of a network, which is given none where there is none."""
    return {} if context is None else {"context": context}


def fixed_noise(like: Tensor, seed: int) -> Tensor:
    """Standard normal noise of a tensor's shape, the same at each call and on each device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


def _describe(trainer: Any) -> dict[str, Any] | None:
    """Description of the cube of a trainer's data module, if it has one."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    return datamodule.description() if hasattr(datamodule, "description") else None
