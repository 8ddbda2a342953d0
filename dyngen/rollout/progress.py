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
        years_per_frame: what each frame is of a year, where there is a calendar.
        label: what to call the work.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        *,
        shown: bool,
        years_per_frame: float | None = None,
        label: str = "rollout",
    ) -> None:
        self._years_per_frame, self._label = years_per_frame, label
        self._total, self._done, self._frames = total, done, 0
        self._started = self._last_line = time.perf_counter()
        console = Console(stderr=True)
        self._in_log = shown and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or self._in_log,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, rate="")

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
        self._bar.update(self._task, advance=frames, rate=self._rate())
        now = time.perf_counter()
        if self._in_log and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            log.info(
                "%s: %d of %d frames, %s",
                self._label,
                self._done + self._frames,
                self._total,
                self._rate(),
            )

    def _rate(self) -> str:
        frames = self.frames_per_second
        if self._years_per_frame is None:
            return f"{frames:.1f} frames/s"
        return f"{frames:.3g} frames/s, {years_per_day(frames, self._years_per_frame)} years/day"


def years_per_day(frames_per_second: float, years_per_frame: float) -> str:
    """Simulated years in a day of computing, to three digits."""
    years = frames_per_second * years_per_frame * 86400
    return f"{years:.3g}" if years < 1000 else f"{years:,.0f}"
