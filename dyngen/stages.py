"""Several commands of this library in turn, as one piece of work that can be stopped and resumed.

Every stage is a command that a user could type; it is shown before it runs. A stage that is done
is not repeated, one that was interrupted goes on: training from its last checkpoint, rollouts from
their last block.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dyngen.cli import run

STAGES = "stages.json"


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: Key of its seconds.
        title: What a reader is told.
        arguments: Command line after `dyngen`.
        done: Whether its result is on disk, when that is more than its having returned.
        folder: What `DYNGEN_RUN` is while it runs; None: as it is.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    done: Callable[[], bool] = lambda: True
    folder: Path | None = None


def run_stages(out: Path, stages: Sequence[Stage], console: Console) -> None:
    """Run what is not done yet, in order, and write down the seconds of each.

    Args:
        out: Folder for the record, `stages.json`.
        stages: In order.
        console: Where stages are announced.
    """
    for number, stage in enumerate(stages, 1):
        record = read_stages(out)
        heading = f"[bold]{number}/{len(stages)} {stage.title}[/]"
        if record.get(stage.name, {}).get("done") and stage.done():
            console.print(f"{heading}: done before", soft_wrap=True)
            continue
        console.print(f"\n{heading}\n[dim]$ dyngen {shlex.join(stage.arguments)}[/]")
        with _folder(stage.folder):
            _timed(out, stage)


def read_stages(out: Path) -> dict[str, dict[str, float | bool]]:
    """Seconds spent in each stage so far, and whether it is done."""
    path = out / STAGES
    return json.loads(path.read_text()) if path.exists() else {}


def seconds_table(seconds: dict[str, float]) -> Table:
    """Stages and their seconds, for a terminal."""
    table = Table("stage", "seconds", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in seconds.items():
        table.add_row(name.replace("_", " "), f"{value:.0f}")
    return table


def _timed(out: Path, stage: Stage) -> None:
    """Run a stage, adding its seconds to those of earlier attempts, interrupted or not."""
    started, done = time.perf_counter(), False
    try:
        run(stage.arguments)
        done = True
    finally:
        record = read_stages(out)
        before = float(record.get(stage.name, {}).get("seconds", 0.0))
        seconds = round(before + time.perf_counter() - started, 1)
        record[stage.name] = {"seconds": seconds, "done": done}
        partial = out / f"{STAGES}.partial"
        partial.write_text(json.dumps(record, indent=2))
        partial.replace(out / STAGES)


@contextmanager
def _folder(folder: Path | None) -> Iterator[None]:
    """`DYNGEN_RUN` for a while."""
    before = os.environ.get("DYNGEN_RUN")
    if folder is not None:
        os.environ["DYNGEN_RUN"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("DYNGEN_RUN", None)
        else:
            os.environ["DYNGEN_RUN"] = before
