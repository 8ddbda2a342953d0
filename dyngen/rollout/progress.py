"""How far a rollout is: a bar on a terminal, a line in the log now and then elsewhere."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class FrameProgress:
    """Counts frames as they are sampled; a context manager.

    Args:
        total: frames of the whole rollout, over all members.
        done: frames that an earlier run has sampled.
        shown: whether to show anything.
    """

    def __init__(self, total: int, done: int = 0, *, shown: bool) -> None:
        self._total, self._done, self._frames = total, done, 0
        self._started = self._last_line = time.perf_counter()
        console = Console(stderr=True)
        self._in_log = shown and not console.is_terminal
        self._bar = Progress(
            TextColumn("rollout"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
            TextColumn("{task.fields[rate]:.1f} frames/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or self._in_log,
        )
        self._task = self._bar.add_task("rollout", total=total, completed=done, rate=0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @property
    def frames_per_second(self) -> float:
        """Frames sampled per second since the start of this run."""
        return self._frames / max(time.perf_counter() - self._started, 1e-9)

    def advance(self, frames: int) -> None:
        """Count frames that were just sampled."""
        self._frames += frames
        self._bar.update(self._task, advance=frames, rate=self.frames_per_second)
        now = time.perf_counter()
        if self._in_log and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            log.info(
                "rollout: %d of %d frames, %.1f frames/s",
                self._done + self._frames,
                self._total,
                self.frames_per_second,
            )
