"""`dyngen garden`: train every model of motion on the garden, and measure them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_modules.extract_motion import end_point_error
from data_modules.trajectories import TrajectoryDataModule
from dyngen.garden_results import motion_results, write_results
from dyngen.models.checkpoints import read_checkpoint, training_cost
from dyngen.models.spectral_ldm import GUIDANCE_SCALE
from dyngen.real_clips import real_clips, real_clips_markdown
from dyngen.report.motion import amplitude_figure, correlation_figure, spectrum_figure
from dyngen.report.table import markdown_table
from dyngen.simulate.garden import Garden
from dyngen.stages import Stage, run_stages, seconds_table

MOTION = ("cube", "autoencoder", "spectral_base", "spectral_ldm")  # files of the experiment

VERSION = "--trainer.logger.init_args.version"
SCALED = "autoencoder_image_size"

# Stage 1 of the latent diffusion again, with one thing changed: what it waits for, and options, in
# which {out} is the folder of all.
ABLATION: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # All terms at once, and so twice the clips a step.
    "volume": (
        "autoencoder",
        (
            *("--model.init_args.network.init_args.coordination", "volume"),
            *("--data.init_args.batch_size", "8"),
        ),
    ),
    **{
        f"terms_{terms}": ("autoencoder", ("--model.init_args.network.init_args.terms", str(terms)))
        for terms in (4, 8, 24)
    },
    "image_size": (
        SCALED,
        ("--model.init_args.autoencoder", f"{{out}}/{SCALED}/checkpoints/last.ckpt"),
    ),
}
SAMPLINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "DDIM": ("coordinated", {"sampler": "ddim"}),
    "classifier-free guidance": ("coordinated", {"guidance_scale": GUIDANCE_SCALE}),
}
OF_SAMPLES = (
    "power_spectrum_distance_db",
    "amplitude_distance",
    "spatial_correlation_error",
    "frequency_coherence_error",
    "area_under_curve",
)
COLUMNS = ("reconstruction_error", *OF_SAMPLES)


def garden(
    experiment: Path = Path("experiments/garden"),
    out: Path = Path("runs/garden"),
    results: Path = Path("docs/results/garden"),
    ablation: bool = True,
    clips: int = 16,
    steps: int = 25,
    flow_clips: int = 4,
    videos: list[Path] | None = None,
    device: str = "auto",
    together: int | None = None,
) -> None:
    """Train the models of motion on the garden, and measure them on held-out clips.

    Interrupted, the same command goes on. What is in `out` already is not trained again.

    Args:
        experiment: Folder with `cube.yaml`, `autoencoder.yaml`, `spectral_base.yaml` and
            `spectral_ldm.yaml`.
        out: Folder of the clips and of everything that is trained.
        results: Folder for `motion.json`, `motion.md` and its figures.
        ablation: Train the volume variant, other numbers of terms, and scaling by image size too.
        clips: Held-out clips to sample motion for.
        steps: Of the sampler.
        flow_clips: Clips whose motion is estimated by optical flow, and held against the truth.
        videos: Real films whose motion is extracted, made into spectral volumes, and back.
        device: To sample on: cpu, cuda, or auto.
        together: Trainings that run side by side, as in `dyngen contest`.

    Raises:
        ValueError: If the experiment's files are not there.
    """
    check_experiment(experiment, MOTION)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"[bold]garden[/], into {out}")
    run_stages(out, motion_stages(experiment, out, ablation), console, together)
    models = {"coordinated": "spectral_ldm", "independent": "spectral_base"}
    models |= {name: name for name in ABLATION} if ablation else {}
    console.print("\n[bold]Measure[/]")
    found = motion_results(
        TrajectoryDataModule(str(out / "motion.zarr"), batch_size=4),
        {name: out / folder / "checkpoints" / "last.ckpt" for name, folder in models.items()},
        results / "motion.json",
        clips=clips,
        steps=steps,
        samplings=SAMPLINGS if ablation else None,
        device=device,
        command=_command(experiment, videos or []),
    )
    error = end_point_error(Garden(width=256, height=160), range(flow_clips))
    seconds = {name: _training_seconds(out / folder) for name, folder in models.items()}
    for name in ("autoencoder", *([SCALED] if ablation else [])):
        seconds[name] = _training_seconds(out / name)
    more: dict[str, Any] = {
        "end_point_error_median": error["median"],
        "end_point_error": error,
        "seconds": seconds,
    }
    if videos:
        more["real_clips"] = real_clips(videos, out / "real", results)
    found = write_results(results / "motion.json", more)
    write_motion_page(results, found)
    console.print(_table(found))
    console.print(seconds_table(seconds))
    console.print(f"figures  {results / 'motion.json'}\ntables   {results / 'motion.md'}")


def check_experiment(experiment: Path, names: Sequence[str]) -> None:
    """See that an experiment's files are there.

    Raises:
        ValueError: If one is not, naming it.
    """
    for name in names:
        if not (experiment / f"{name}.yaml").is_file():
            raise ValueError(
                f"{experiment / name}.yaml does not exist; run from the root of the repository or "
                "give --experiment."
            )


def motion_stages(experiment: Path, out: Path, ablation: bool) -> list[Stage]:
    """The commands that make the clips and train the models of motion on them.

    Args:
        experiment: As in `garden`.
        out: As in `garden`.
        ablation: Train the variants too.
    """
    clips = out / "motion.zarr"
    stage = partial(Stage, folder=out)

    def fit(name: str, config: str, title: str, after: str, *options: str) -> Stage:
        words = ("fit", "--config", str(experiment / f"{config}.yaml"), *options)
        return stage(name, title, words, after=(after,))

    stages = [
        stage(
            "simulate",
            "Make clips of things that sway",
            (
                *("simulate", "garden", "--config", str(experiment / "cube.yaml")),
                *("--out", str(clips)),
            ),
            clips.exists,
        ),
        fit("autoencoder", "autoencoder", "Train the autoencoder of spectral terms", "simulate"),
        fit(
            "spectral_base",
            "spectral_base",
            "Train the latent diffusion, terms independent",
            "autoencoder",
        ),
        fit(
            "spectral_ldm",
            "spectral_ldm",
            "Train the attention that coordinates the terms",
            "spectral_base",
        ),
    ]

    def again(name: str, config: str, title: str, after: str, options: tuple[str, ...]) -> Stage:
        words = (*(word.format(out=out) for word in options), VERSION, name)
        return fit(name, config, f"Train {title}: {name.replace('_', ' ')}", after, *words)

    if ablation:
        scaling = ("--model.init_args.normalisation", "image_size")
        stages.append(again(SCALED, "autoencoder", "once more", "simulate", scaling))
        for name, change in ABLATION.items():
            stages.append(again(name, "spectral_base", "the latent diffusion", *change))
    return [one for one in stages if one.name != "simulate" or not clips.exists()]


def write_motion_page(results: Path, found: Mapping[str, Any]) -> None:
    """Figures of sampled motion beside held-out motion, and the numbers as Markdown."""
    main = {name: found["models"][name] for name in ("coordinated", "independent")}
    one = main["coordinated"]
    figures = {
        "motion_spectrum": spectrum_figure(
            {"real": one["power_spectrum"]["real"]}
            | {name: of["power_spectrum"]["sampled"] for name, of in main.items()},
            one["frequencies"],
        ),
        "motion_amplitude": amplitude_figure(
            {"real": one["amplitude_histogram"]["real"]}
            | {name: of["amplitude_histogram"]["sampled"] for name, of in main.items()},
            one["amplitude_edges"],
        ),
        "motion_correlation": correlation_figure(
            {"real": one["spatial_correlation"]["real"]}
            | {name: of["spatial_correlation"]["sampled"] for name, of in main.items()},
            one["correlation_distances"],
        ),
    }
    for name, figure in figures.items():
        figure.savefig(
            results / f"{name}.svg", facecolor="white", metadata={"Date": None}, bbox_inches="tight"
        )
    kept = ", ".join(f"{value:.3f} with {k}" for k, value in found["energy_kept"].items())
    head = ["model", "terms", *_spoken(COLUMNS), "s / sample"]
    rows = [
        [
            name.replace("_", " "),
            str(of["terms"]),
            *(_digits(of.get(column)) for column in COLUMNS),
            _digits(of["seconds_per_sample"]),
        ]
        for name, of in found["ablation"].items()
    ]
    limit = {"reconstruction_error": found["reconstruction_error"]["autoencoder"]}
    for name, of in (
        ("autoencoder alone", {**found["autoencoder"], **limit}),
        ("half of the clips", found.get("floor", {})),
    ):
        rows.append([name, "–", *(_digits(of.get(column)) for column in COLUMNS), "–"])
    table = markdown_table(head, rows)
    others = [
        [
            f"{of['model']}, {name}",
            f"{of['sampler']}, {of['steps']} steps, w {of['guidance_scale']:g}",
            *(_digits(of.get(column)) for column in OF_SAMPLES),
            _digits(of["seconds_per_sample"]),
        ]
        for name, of in found.get("samplings", {}).items()
    ]
    usual = found["sampling"]
    sampled = (
        f"All are sampled with {usual['sampler']}, {usual['steps']} steps and w "
        f"{usual['guidance_scale']:g}. "
    )
    if others:
        head = ["otherwise", "sampling", *_spoken(OF_SAMPLES), "s / sample"]
        sampled += f"In other ways:\n\n{markdown_table(head, others)}\n\n"
    minutes = sum(found["seconds"].values()) / 60
    real = found.get("real_clips")
    (results / "motion.md").write_text(
        f"# Motion on the garden\n\n`{found['command']}`: {minutes:.0f} minutes of training on "
        f"{found['machine']['processor']}, {found['clips']} held-out clips.\n\n{table}\n\n"
        "Autoencoder alone: real motion encoded and decoded. Half of the clips: the distance of "
        "one half of the held-out clips from the other.\n\n"
        f"{sampled}"
        f"Of the mean square displacement terms keep {kept}. Optical flow finds the true "
        f"displacement to {_digits(found['end_point_error_median'])} px (median).\n\n"
        + "\n\n".join(f"![{name.replace('_', ' ')}]({name}.svg)" for name in figures)
        + "\n"
        + (f"\n## Real films\n\n{real_clips_markdown(real)}" if real else "")
    )


def _spoken(names: Iterable[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _command(experiment: Path, videos: list[Path]) -> str:
    films = f" --videos [{', '.join(video.name for video in videos)}]" if videos else ""
    return f"dyngen garden --experiment {experiment.as_posix()}{films}"


def _training_seconds(folder: Path) -> float:
    return float(training_cost(read_checkpoint(folder / "checkpoints" / "last.ckpt"))["seconds"])


def _table(found: Mapping[str, Any]) -> Table:
    table = Table("model", *_spoken(COLUMNS), box=None)
    for name, of in found["ablation"].items():
        table.add_row(name, *(_digits(of.get(column)) for column in COLUMNS))
    return table


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
