"""How far training is: one bar over all its steps, or a line in the log now and then."""

from __future__ import annotations

import logging
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress(ProgressBar):
    """Steps done and left over the whole run, with the metrics that modules put on the bar.

    Lightning's own bars count the batches of an epoch, of which a run of so many steps has many or
    less than one. Where standard error is no terminal, a line is logged every ten seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._shown = True
        self._started, self._first, self._last_line = 0.0, 0, 0.0

    def disable(self) -> None:
        """Show nothing."""
        self._shown = False

    def enable(self) -> None:
        """Show the bar again."""
        self._shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        self._started = self._last_line = time.perf_counter()
        self._first = trainer.global_step
        console = Console(stderr=True)
        if not self._shown or not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar.add_task("", total=self._total, completed=trainer.global_step, metrics="")
        self._bar.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar, or log a line."""
        step = trainer.global_step
        now = time.perf_counter()
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=step, metrics=self._metrics(trainer, pl_module))
        elif self._shown and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            log.info("training: %s, %s", self._where(step, now), self._metrics(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._shown:
            where = self._where(trainer.global_step, time.perf_counter())
            log.info("training: %s, done", where)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def _total(self) -> int | None:
        total = self.trainer.estimated_stepping_batches
        return int(total) if total != float("inf") else None

    def _where(self, step: int, now: float) -> str:
        rate = (step - self._first) / max(now - self._started, 1e-9)
        total = self._total
        left = f", {(total - step) / rate:.0f} s left" if total and rate and total > step else ""
        return f"step {step} of {total or 'many'}{left}"

    def _metrics(self, trainer: Trainer, pl_module: LightningModule) -> str:
        metrics = self.get_metrics(trainer, pl_module)
        return "  ".join(
            f"{name.removeprefix('train/').replace('_', ' ')} {value:.4g}"
            for name, value in metrics.items()
            if isinstance(value, float)
        )
