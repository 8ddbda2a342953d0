"""`dyngen rendering`: train the renderer and its ablations on the garden, and measure them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from data_modules.trajectories import TrajectoryDataModule
from dyngen.animate import Swaying, device_named, load_renderer, resize_volume, sample_motion
from dyngen.garden import MOTION, VERSION, check_experiment, motion_stages
from dyngen.garden_results import write_results
from dyngen.models import MotionRenderer
from dyngen.models.checkpoints import read_checkpoint
from dyngen.models.spectral_ldm import LOOP_SCALE, SAMPLER
from dyngen.motion.holes import splat_frames
from dyngen.motion.spectral_volume import displacement_frames, spectral_volume
from dyngen.motion.splatting import motion_importance
from dyngen.rendering_results import (
    Clip,
    Film,
    film_distances,
    frames_per_second,
    held_out_clips,
    loop_scores,
    measure_films,
    medians,
    rounded,
    sliding_curves,
)
from dyngen.report.feature_distances import Features
from dyngen.report.provenance import machine
from dyngen.report.rendering_figures import (
    picture_sheet,
    score_curves,
    sliding_figure,
    time_slices,
)
from dyngen.report.rendering_page import rendering_markdown
from dyngen.stages import Stage, read_stages, run_stages, seconds_table

ABLATION: Mapping[str, tuple[str, ...]] = {
    "single_scale": ("--model.init_args.scales", "1"),
    "importance_by_motion": ("--model.init_args.importance", "motion"),
}
PAPER_LOOP_SCALE = 200.0  # Li et al. 2024, section 5, is tried too
SPEED_SIZES = ((256, 160),)  # width and height, beside the clips' own


def rendering(
    experiment: Path = Path("experiments/garden"),
    out: Path = Path("runs/garden"),
    results: Path = Path("docs/results/garden"),
    ablation: bool = True,
    clips: int = 16,
    frames: int | None = None,
    loop_clips: int = 4,
    steps: int = 25,
    guidance_scale: float = 0.0,
    features: Features = Features(),  # noqa: B008 (frozen)
    seed: int = 0,
    device: str = "auto",
    together: int | None = None,
) -> None:
    """Train the renderer on the garden, and measure what it renders on held-out clips.

    It is held against its ablations, splatting without a network, and the first frame repeated;
    with the motion of the clips, and with motion that the latent diffusion samples. Interrupted,
    the same command goes on. What is in `out` already is not trained again.

    Args:
        experiment: Folder with `renderer.yaml` and the files of `dyngen garden`.
        out: Folder of the clips and of everything that is trained.
        results: Folder for `rendering.json`, `rendering.md` and its figures.
        ablation: Train the renderer of a single scale, and that with the paper's importance, too.
        clips: Held-out clips to render.
        frames: Frames of each to score; by default all.
        loop_clips: Of these clips, how many to sample a loop for, too.
        steps: Of the sampler of motion.
        guidance_scale: w of classifier-free guidance.
        features: What frames and windows are compared by; by default wavelet scattering.
        seed: Of the motion that is sampled.
        device: To render and sample on: cpu, cuda, or auto.
        together: Trainings that run side by side, as in `dyngen contest`.

    Raises:
        ValueError: If the experiment's files are not there, or a number is out of range.
    """
    check_experiment(experiment, (*MOTION, "renderer"))
    _check(clips=clips, loop_clips=loop_clips, steps=steps, frames=1 if frames is None else frames)
    place = device_named(device)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"[bold]rendering[/], into {out}")
    run_stages(out, _stages(experiment, out, ablation), console, together)
    console.print("\n[bold]Measure[/]")
    names = ["renderer", *(ABLATION if ablation else ())]
    paths = {name: out / name / "checkpoints" / "last.ckpt" for name in names}
    models = {name: load_renderer(path, place) for name, path in paths.items()}
    sample = partial(
        sample_motion,
        out / "spectral_ldm" / "checkpoints" / "last.ckpt",
        steps=steps,
        guidance_scale=guidance_scale,
        name="the start frame",
    )
    found, films, row = measure(
        TrajectoryDataModule(str(out / "motion.zarr")),
        models,
        lambda clip, scale: sample(
            clip.image, seed + clip.number, scale is not None, loop_scale=scale or 0.0
        ),
        clips=clips,
        frames=frames,
        loop_clips=loop_clips,
        features=features,
        device=place,
        console=console,
    )
    found["sampling"] = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": {"without_guidance": SAMPLER, "with_guidance": "self_recurrent_ddim"},
        "loop_scale": {"with_guidance": LOOP_SCALE, "with_less_guidance": PAPER_LOOP_SCALE},
    }
    found["training"] = {
        name: {
            "steps": read_checkpoint(path).get("global_step"),
            "seconds": read_stages(out)[name]["seconds"],
            "parameters": sum(p.numel() for p in models[name].parameters()),
        }
        for name, path in paths.items()
    }
    found["command"] = _command(
        experiment=experiment,
        ablation=ablation,
        clips=clips,
        frames=frames,
        loop_clips=loop_clips,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
    )
    found = write_results(results / "rendering.json", found)
    draw(results, found, films, row)
    console.print(_table(found))
    console.print(seconds_table({n: float(s["seconds"]) for n, s in read_stages(out).items()}))
    console.print(f"figures  {results / 'rendering.json'}\ntables   {results / 'rendering.md'}")


def measure(
    data: TrajectoryDataModule,
    models: Mapping[str, MotionRenderer],
    sample: Callable[[Clip, float | None], Swaying],
    *,
    clips: int,
    frames: int | None,
    loop_clips: int,
    features: Features,
    device: torch.device,
    console: Console,
) -> tuple[dict[str, Any], dict[str, np.ndarray], int]:
    """All figures, and one clip as all systems render it.

    Args:
        data: The clips.
        models: `renderer`, and perhaps its ablations.
        sample: Motion for the picture of a clip; with a number, u, as a loop.
        clips: How many.
        frames: Of each; None for all.
        loop_clips: How many loops.
        features: What frames and windows are compared by.
        device: Where the models are.
        console: Where progress is shown.

    Returns: the figures; films (T, H, W, 3) uint8 of the clip that moves most, by system, the truth
    first; and the row of it that moves most.
    """
    found = list(held_out_clips(data, clips, frames, device))
    first = found[0]
    height, width = first.image.shape[-2:]
    extractors = features.extractors(3, (height, width), (False, False))
    renderers = {
        "rendered": models["renderer"].render,
        **{name: model.render for name, model in models.items() if name != "renderer"},
        "direct_splatting": splat_frames,
    }
    paired: dict[str, Film] = {n: partial(_with_motion, r) for n, r in renderers.items()}
    paired["repeat_first_frame"] = _repeated
    sampled: dict[int, Swaying] = {}

    def of_sampled(clip: Clip) -> Tensor:
        sampled[clip.number] = sample(clip, None)
        volume = resize_volume(sampled[clip.number].volume, height, width)
        displacement = displacement_frames(volume, sampled[clip.number].period)
        count = clip.frames.shape[1]
        return renderers["rendered"](
            clip.image, displacement[:, :count], motion_importance(displacement)
        )

    films = measure_films(
        _shown(found, "rendering", console),
        paired,
        {"sampled_motion": of_sampled},
        models["renderer"].distance(),
        extractors,
    )
    distances, floors = film_distances(films.features, extractors)
    loops: dict[str, list[dict[str, float]]] = {}
    for clip in _shown(found[:loop_clips], "sampling loops", console):
        terms = sampled[clip.number].volume.shape[1]
        ways = {
            "without_guidance": sampled[clip.number],
            "with_less_guidance": sample(clip, PAPER_LOOP_SCALE),
            "with_guidance": sample(clip, LOOP_SCALE),
            "held_out": Swaying(spectral_volume(clip.whole, terms), clip.whole.shape[1], 0.0),
        }
        for way, swaying in ways.items():
            scores = loop_scores(renderers["rendered"], clip.image, swaying)
            loops.setdefault(way, []).append(scores)
    loop = {way: medians(rows) for way, rows in loops.items()}
    means = {
        name: {system: float(values.mean()) for system, values in of.items()}
        for name, of in films.scores.items()
    }
    shown = max(found, key=lambda clip: float(clip.motion.mean()))
    out = {
        "clips": len(found),
        "frames": first.frames.shape[1],
        "size": {"width": width, "height": height},
        **{name: values for name, values in means.items() if name in ("psnr", "ssim")},
        "distances": {
            **{name: values for name, values in means.items() if name.startswith("perceptual_")},
            **distances,
        },
        "floor": floors,
        "by_frame": {
            name: {system: values.mean(0).tolist() for system, values in of.items()}
            for name, of in films.scores.items()
        },
        "sliding": sliding_curves(films.features, extractors),
        "loop_jump": {way: scores["jump"] for way, scores in loop.items()},
        "neighbouring_frames": {way: scores["step"] for way, scores in loop.items()},
        "loop_closure": {way: scores["closure"] for way, scores in loop.items()},
        "loop_clips": len(found[:loop_clips]),
        "frames_per_second": {
            f"{w}x{h}": {name: frames_per_second(r, first, w, h) for name, r in renderers.items()}
            for w, h in ((width, height), *SPEED_SIZES)
        },
        "shown_clip": shown.number,
        "machine": {**machine(), "threads": torch.get_num_threads()},
    }
    rendered = {name: film(shown) for name, film in paired.items()}
    moving = {name: _bytes(film) for name, film in {"truth": shown.frames, **rendered}.items()}
    return rounded(out), moving, int(shown.motion[0, 0].mean(1).argmax())


def draw(
    results: Path, found: Mapping[str, Any], films: Mapping[str, np.ndarray], row: int
) -> None:
    """Write the page and its figures.

    Args:
        results: Folder to write into.
        found: The figures.
        films: One clip as all systems render it.
        row: Of the clip, whose course in time is shown.
    """
    count = len(films["truth"])
    chosen = sorted({round(part * (count - 1)) for part in (0.25, 0.5, 0.75, 1.0)})
    pictures = {
        "rendering_frames": picture_sheet(films, chosen),
        "rendering_slices": time_slices(films, row),
    }
    curves = {"rendering_by_frame": score_curves(found["by_frame"])}
    if found["sliding"]:
        curves["rendering_sliding"] = sliding_figure(found["sliding"])
    for name, figure in curves.items():
        figure.savefig(
            results / f"{name}.svg", facecolor="white", metadata={"Date": None}, bbox_inches="tight"
        )
    for name, image in pictures.items():
        image.save(results / f"{name}.png", optimize=True)
    files = [*(f"{name}.png" for name in pictures), *(f"{name}.svg" for name in curves)]
    (results / "rendering.md").write_text(rendering_markdown(found, files))


def _stages(experiment: Path, out: Path, ablation: bool) -> list[Stage]:
    """The clips, the models of motion, the renderer and its ablations."""
    config = ("fit", "--config", str(experiment / "renderer.yaml"))
    stages = motion_stages(experiment, out, ablation=False)
    fit = partial(Stage, folder=out, after=("simulate",))
    stages.append(fit("renderer", "Train the renderer", config))
    for name, options in ABLATION.items() if ablation else ():
        apart = (VERSION, name)
        title = f"Train the renderer again: {name.replace('_', ' ')}"
        stages.append(fit(name, title, (*config, *options, *apart)))
    return stages


def _with_motion(render: Callable[[Tensor, Tensor, Tensor], Tensor], clip: Clip) -> Tensor:
    return render(clip.image, clip.displacement, clip.motion)


def _repeated(clip: Clip) -> Tensor:
    return clip.image[:, None].expand_as(clip.frames)


def _bytes(film: Tensor) -> np.ndarray:
    """(1, T, 3, H, W) in -1..1 to (T, H, W, 3)."""
    pixels = ((film[0].clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.movedim(1, -1).cpu().numpy()


def _command(experiment: Path, **options: Any) -> str:
    """The command line that gives these numbers: options that are not as by default."""
    parameters = inspect.signature(rendering).parameters
    told = [f"--experiment {experiment.as_posix()}"]
    told += [f"--{k} {v}" for k, v in options.items() if v != parameters[k].default]
    return " ".join(["dyngen rendering", *told])


def _shown(clips: list[Clip], what: str, console: Console) -> Iterable[Clip]:
    return track(clips, what, console=console, disable=not console.is_terminal)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}.")


def _table(found: Mapping[str, Any]) -> Table:
    scores = {"psnr": found["psnr"], "ssim": found["ssim"], **found["distances"]}
    table = Table("system", *(name.replace("_", "\n", 1) for name in scores), box=None)
    for system in dict.fromkeys(system for of in scores.values() for system in of):
        values = (of.get(system) for of in scores.values())
        told = ("–" if value is None else f"{value:.3g}" for value in values)
        table.add_row(system.replace("_", " "), *told)
    return table
