"""The whole way in one command: data, image model, discriminator, rollouts, scores, report."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

from rich.console import Console

from dyngen.callbacks.terminal import score_tables
from dyngen.report.provenance import machine
from dyngen.stages import Stage, read_stages, run_stages, seconds_table


def demo(out: Path = Path("runs/demo"), experiment: Path = Path("experiments/turbulence")) -> None:
    """Make turbulence, train on it, roll out, measure and report, in about ten minutes.

    Args:
        out: Folder of everything that the demo writes; delete it to start anew.
        experiment: Folder with `cube.yaml`, `image.yaml`, `discriminator.yaml`, and `demo.yaml`,
            which says what the demo changes in both models.

    Raises:
        ValueError: If the experiment's files are not there.
    """
    for name in ("cube.yaml", "image.yaml", "discriminator.yaml", "demo.yaml"):
        if not (experiment / name).is_file():
            raise ValueError(
                f"{experiment / name} does not exist; run the demo from the root of the repository "
                "or give --experiment."
            )
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"[bold]dyngen demo[/] on {machine()['processor']}, into {out}")
    run_stages(out, _stages(out, experiment), console)
    _finish(out, console)


def _stages(out: Path, experiment: Path) -> list[Stage]:
    cube, configuration = out / "cube.zarr", str(experiment / "cube.yaml")
    afresh = ("--overwrite", "true")  # what is there when the stage is not done
    checkpoint = str(out / "discriminator" / "checkpoints" / "last.ckpt")
    shorter = ("--config", str(experiment / "demo.yaml"))
    image = ("--config", str(experiment / "image.yaml"), *shorter)
    discriminator = ("--config", str(experiment / "discriminator.yaml"), *shorter)
    stage = partial(Stage, folder=out)
    return [
        stage(
            "simulate",
            "Make turbulence: a Zarr cube of forced two-dimensional Navier-Stokes",
            ("simulate", "turbulence", "--config", configuration, "--out", str(cube), *afresh),
            cube.exists,
        ),
        stage(
            "train_image",
            "Train the image model, which only sees single snapshots",
            ("fit", *image),
        ),
        stage(
            "train_discriminator",
            "Train the time-consistency discriminator beside the frozen image model",
            ("fit", *discriminator),
        ),
        stage(
            "evaluate",
            "Roll out from held-out states, measure, and write the report",
            ("test", *discriminator, "--ckpt_path", checkpoint),
            (out / "report.html").exists,
        ),
    ]


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
    console.print(seconds_table(summary["seconds"]))
    console.print(f"\nscores  {path}\nreport  [bold]{out / 'report.html'}[/]", soft_wrap=True)
    console.print("curves  make tensorboard")
