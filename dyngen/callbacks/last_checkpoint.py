"""The one file from which a run goes on, and from which its model is read: `last.ckpt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` every so many steps, and at the end of training.

    Lightning's `save_last` leaves out the steps after the last full interval, and goes on in a
    `last-v1.ckpt` where the folder of a run has been moved, beside the stale `last.ckpt`.

    Args:
        every_n_train_steps: Interval.
    """

    def __init__(self, every_n_train_steps: int = 100) -> None:
        super().__init__(
            every_n_train_steps=every_n_train_steps,
            save_top_k=0,
            save_last=True,
            enable_version_counter=False,
        )
        self.interval = every_n_train_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *rest: Any, **more: Any
    ) -> None:
        """Save at each interval, and after the last step."""
        super().on_train_batch_end(trainer, pl_module, *rest, **more)
        if trainer.global_step == trainer.max_steps:
            self._save_at_the_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the last epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._save_at_the_end(trainer)

    def _save_at_the_end(self, trainer: Trainer) -> None:
        # Not in on_train_end, where averaged weights have taken the place of the current ones.
        if trainer.global_step % self.interval and self.dirpath is not None:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
