"""The whole way in one command: data, image model, discriminator, rollouts, scores, report.

Every stage is a command that a user could type; it is shown before it runs. A stage that is done
is not repeated, one that was interrupted goes on: training from its last checkpoint, rollouts from
their last block.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dyngen.callbacks.terminal import score_tables
from dyngen.cli import run
from dyngen.report.provenance import machine

STAGES = "stages.json"


@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Args:
        name: Key of its seconds.
        title: What a reader is told.
        arguments: Command line after `dyngen`.
        done: Whether its result is on disk, when that is more than its having returned.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    done: Callable[[], bool] = lambda: True


def demo(out: Path = Path("runs/demo"), experiment: Path = Path("experiments/turbulence")) -> None:
    """Make turbulence, train on it, roll out, measure and report, in about ten minutes.

    Args:
        out: Folder of everything that the demo writes; delete it to start anew.
        experiment: Folder with `cube.yaml`, `image.yaml` and `discriminator.yaml`.

    Raises:
        ValueError: If the experiment's files are not there.
    """
    for name in ("cube.yaml", "image.yaml", "discriminator.yaml"):
        if not (experiment / name).is_file():
            raise ValueError(
                f"{experiment / name} does not exist; run the demo from the root of the repository "
                "or give --experiment."
            )
    os.environ["DYNGEN_RUN"] = str(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"[bold]dyngen demo[/] on {machine()['processor']}, into {out}")
    stages = _stages(out, experiment)
    for number, stage in enumerate(stages, 1):
        record = read_stages(out)
        heading = f"[bold]{number}/{len(stages)} {stage.title}[/]"
        if record.get(stage.name, {}).get("done") and stage.done():
            console.print(f"{heading}: done before", soft_wrap=True)
            continue
        console.print(f"\n{heading}\n[dim]$ dyngen {shlex.join(stage.arguments)}[/]")
        _timed(out, stage)
    _finish(out, console)


def _stages(out: Path, experiment: Path) -> list[Stage]:
    cube, configuration = out / "cube.zarr", str(experiment / "cube.yaml")
    afresh = ("--overwrite", "true")  # what is there when the stage is not done
    checkpoint = str(out / "discriminator" / "checkpoints" / "last.ckpt")
    discriminator = str(experiment / "discriminator.yaml")
    return [
        Stage(
            "simulate",
            "Make turbulence: a Zarr cube of forced two-dimensional Navier-Stokes",
            ("simulate", "turbulence", "--config", configuration, "--out", str(cube), *afresh),
            cube.exists,
        ),
        Stage(
            "train_image",
            "Train the image model, which only sees single snapshots",
            ("fit", "--config", str(experiment / "image.yaml")),
        ),
        Stage(
            "train_discriminator",
            "Train the time-consistency discriminator beside the frozen image model",
            ("fit", "--config", discriminator),
        ),
        Stage(
            "evaluate",
            "Roll out from held-out states, measure, and write the report",
            ("test", "--config", discriminator, "--ckpt_path", checkpoint),
            (out / "report.html").exists,
        ),
    ]


def read_stages(out: Path) -> dict[str, dict[str, float | bool]]:
    """Seconds spent in each stage so far, and whether it is done."""
    path = out / STAGES
    return json.loads(path.read_text()) if path.exists() else {}


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


def _finish(out: Path, console: Console) -> None:
    """Add seconds and machine to the summary, and show the scores."""
    path = out / "summary.json"
    summary = json.loads(path.read_text())
    seconds = {name: stage["seconds"] for name, stage in read_stages(out).items()}
    setup = os.environ.get("DYNGEN_SETUP_SECONDS", "")
    if setup.isdigit():
        seconds = {"setup": float(setup), **seconds}
    summary["seconds"] = {**summary.get("seconds", {}), **seconds, "total": sum(seconds.values())}
    summary["machine"] = machine()
    path.write_text(json.dumps(summary, indent=2))
    console.print()
    for table in score_tables(summary):
        console.print(table)
    console.print()
    console.print(_seconds_table(summary["seconds"]))
    console.print(f"\nscores  {path}\nreport  [bold]{out / 'report.html'}[/]", soft_wrap=True)
    console.print("curves  make tensorboard")


def _seconds_table(seconds: dict[str, float]) -> Table:
    table = Table("stage", "seconds", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in seconds.items():
        table.add_row(name.replace("_", " "), f"{value:.0f}")
    return table
