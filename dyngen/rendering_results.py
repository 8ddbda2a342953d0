"""What rendered films come to on held-out clips, as numbers for a JSON file."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data_modules.trajectories import TrajectoryDataModule, open_motion, read_clips
from data_modules.windows import Span
from dyngen.animate import Renderer, Swaying, render_film, resize_volume
from dyngen.metrics.frechet import (
    feature_scale,
    gaussian_distance,
    moments,
    rescaled,
    score_name,
    warn_of_few_samples,
)
from dyngen.metrics.pictures import psnr, ssim
from dyngen.metrics.windows import SLIDING_FID_FRAMES, cut_windows, sliding_frechet, window_kind
from dyngen.motion.loops import loop_closure
from dyngen.motion.splatting import motion_importance
from dyngen.networks.perceptual import PerceptualDistance

log = logging.getLogger(__name__)

HIGHEST_PSNR = 100.0  # decibels: that of a frame that is the truth, so that means are finite
CURVE_STRIDE = 10  # frames from one window of the sliding FID to the next
AT_ONCE = 16  # windows whose features are taken together
FILM = 16  # frames that are rendered to measure the speed
REPEATS = 3


class Clip(NamedTuple):
    """A held-out clip, of whose frames perhaps the first T alone are scored.

    Attributes:
        number: In its file.
        image: (1, 3, H, W) in -1..1.
        frames: (1, T, 3, H, W) in -1..1.
        displacement: (1, T, 2, H, W) in pixels.
        whole: That of all frames there are.
        motion: Its mean length (1, 1, H, W).
    """

    number: int
    image: Tensor
    frames: Tensor
    displacement: Tensor
    whole: Tensor
    motion: Tensor


Film = Callable[[Clip], Tensor]  # frames (1, T, 3, H, W) in -1..1 of a clip


@dataclass
class Films:
    """What is kept of films.

    Attributes:
        scores: By score and system, (clips, T).
        features: By length of a window, 1 being frames, and system, (clips, windows, D); those of
            the held-out clips themselves are `truth`.
    """

    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    features: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def held_out_clips(
    data: TrajectoryDataModule, clips: int, frames: int | None, device: torch.device
) -> Iterator[Clip]:
    """The first clips of the test split, one by one.

    Args:
        data: The clips.
        clips: How many at most.
        frames: How many of each; None for all.
        device: Where they go.

    Raises:
        ValueError: If the file has no frames, or none of its clips or frames is asked for.
    """
    if "frames" not in open_motion(str(data.path)):
        raise ValueError(
            f"{data.path} has no variable 'frames', which rendered ones are held against; write it "
            "again with its frames."
        )
    numbers = data.split("test")[: max(clips, 0)].tolist()
    kept = data.frames if frames is None else min(frames, data.frames)
    if not numbers or kept < 1:
        raise ValueError(
            f"There is nothing to measure with clips={clips} and frames={frames}; ask for at least "
            "one of each."
        )
    for number in numbers:
        names = ("image", "displacement", "frames")
        found = read_clips(
            str(data.path), names, (Span((number, number + 1), (0, 1), (0,)),)
        ).fields
        displacement = found["displacement"].float().to(device)
        yield Clip(
            number,
            _pictures(found["image"]).to(device),
            _pictures(found["frames"][:, :kept]).to(device),
            displacement[:, :kept],
            displacement,
            motion_importance(displacement),
        )


def measure_films(
    clips: Iterable[Clip],
    paired: Mapping[str, Film],
    unpaired: Mapping[str, Film],
    distance: PerceptualDistance,
    extractors: Mapping[int, Callable[[Tensor], Tensor]],
) -> Films:
    """Scores and features of what systems make of clips.

    Args:
        clips: Held-out ones.
        paired: Systems that are given the clip's motion, whose frames are held against its own.
        unpaired: Systems with a motion of their own, of whose frames features are taken alone.
        distance: How different two pictures look.
        extractors: Of features, by the length of their windows; 1 is of frames.
    """
    scores: dict[tuple[str, str], list[Tensor]] = {}
    features: dict[tuple[int, str], list[Tensor]] = {}
    for clip in clips:
        films: dict[str, Film] = {"truth": lambda clip: clip.frames, **paired, **unpaired}
        for system, film in films.items():
            frames = film(clip)
            if system in paired:
                for name, values in frame_scores(frames[0], clip.frames[0], distance).items():
                    scores.setdefault((name, system), []).append(values)
                    if name == "psnr":
                        log.info("clip %d: %s %.2f dB", clip.number, system, values.mean())
            for length, extractor in extractors.items():
                if length <= frames.shape[1]:
                    found = film_features(frames, length, extractor)
                    features.setdefault((length, system), []).append(found)
    out = Films()
    for (name, system), rows in scores.items():
        out.scores.setdefault(name, {})[system] = torch.stack(rows)
    for (length, system), parts in features.items():
        out.features.setdefault(length, {})[system] = torch.cat(parts)
    return out


@torch.no_grad()
def frame_scores(frames: Tensor, truth: Tensor, distance: PerceptualDistance) -> dict[str, Tensor]:
    """How near frames (T, 3, H, W) are to true ones, each by itself: (T,) by score."""
    looks = [distance(a[None], b[None]) for a, b in zip(frames, truth, strict=True)]
    return {
        "psnr": psnr(frames, truth).clamp(max=HIGHEST_PSNR).cpu(),
        "ssim": ssim(frames, truth).cpu(),
        f"perceptual_{distance.name}": torch.stack(looks).cpu(),
    }


@torch.no_grad()
def film_features(film: Tensor, length: int, extractor: Callable[[Tensor], Tensor]) -> Tensor:
    """Features (1, windows, D) of a film (1, T, 3, H, W), in windows that do not overlap."""
    samples = film[0] if length == 1 else cut_windows(film, length)
    count = len(samples)
    if film.stride(1) == 0:  # one frame repeated, and not copied: all windows are alike
        samples = samples[:1]
    found = torch.cat([extractor(part).double().cpu() for part in samples.split(AT_ONCE)])
    return found.expand(count, -1)[None]


def film_distances(
    features: Mapping[int, Mapping[str, Tensor]],
    extractors: Mapping[int, Callable[[Tensor], Tensor]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Fréchet distances of systems from the truth, by the name of the distance and the system.

    Returns: the distances, and what samples of their sizes from one law would score on average.
    """
    found: dict[str, dict[str, float]] = {}
    floors: dict[str, dict[str, float]] = {}
    for length, of in features.items():
        name = score_name(_kind(length, extractors[length]), extractors[length])
        real = moments(of["truth"].flatten(0, 1))
        if real.samples < 2:
            continue
        scale = torch.ones_like(real.mean)
        if getattr(extractors[length], "standardise", False):
            scale = feature_scale(real)
        for system, values in of.items():
            if system != "truth":
                ours = rescaled(moments(values.flatten(0, 1)), scale)
                theirs = rescaled(real, scale)
                result = gaussian_distance(ours, theirs)
                if name not in found:  # the others have as many samples
                    warn_of_few_samples(result, ours, theirs, f"{name} of {system}")
                found.setdefault(name, {})[system] = float(result.distance)
                floors.setdefault(name, {})[system] = float(result.floor)
    return found, floors


def sliding_curves(
    features: Mapping[int, Mapping[str, Tensor]],
    extractors: Mapping[int, Callable[[Tensor], Tensor]],
) -> dict[str, dict[str, list[float]]]:
    """Distances in a window that slides along the films: by name, then `start` and by system.

    Frames are compared 30 at a time, windows of 16 one at a time, with those of the truth at the
    same time; `floor` is what samples of these sizes from one law would score.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for length, most in ((1, SLIDING_FID_FRAMES), (16, 1)):
        of = features.get(length, {})
        if not of or of["truth"].shape[1] < most or most * len(of["truth"]) < 2:
            continue
        extractor = extractors[length]
        kind = f"FID-{most}" if length == 1 else _kind(length, extractor)
        name = score_name(f"sliding-{kind}", extractor)
        curves: dict[str, list[float]] = {}
        for system, values in of.items():
            if system == "truth":
                continue
            curve = sliding_frechet(
                values,
                of["truth"],
                length=most,
                stride=CURVE_STRIDE if length == 1 else 1,
                standardise=bool(getattr(extractor, "standardise", False)),
                name=f"{name} of {system}",
            )
            curves["start"] = (curve.start * length + 1).tolist()
            curves[system] = curve.distance.tolist()
            curves.setdefault("floor", curve.floor.tolist())
        found[name] = curves
    return found


# Loops


def loop_scores(render: Renderer, image: Tensor, swaying: Swaying) -> dict[str, float]:
    """How a film that is played again and again goes from its last frame to its first.

    Args:
        render: What makes frames.
        image: (1, 3, H, W) in -1..1.
        swaying: Its motion.

    Returns: `jump`, the mean absolute difference of those two frames, of 255; `step`, the mean one
        of neighbouring frames; and `closure`, the energy L_g of the motion that guidance lowers.
    """
    volume = resize_volume(swaying.volume, image.shape[-2], image.shape[-1])
    times = torch.arange(1, swaying.period + 1, dtype=torch.float64)
    film = np.stack(list(render_film(render, image, volume, times, swaying.period)))
    return film_jump(film) | {"closure": loop_closure(swaying.volume, swaying.period).item()}


def film_jump(film: np.ndarray) -> dict[str, float]:
    """Mean absolute differences of the last frame from the first, and of neighbours: (T, ...)."""
    values = film.astype(np.float32)
    return {
        "jump": float(np.abs(values[-1] - values[0]).mean()),
        "step": float(np.abs(np.diff(values, axis=0)).mean()),
    }


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each key."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


# Speed


@torch.no_grad()
def frames_per_second(render: Renderer, clip: Clip, width: int, height: int) -> float:
    """How fast the frames of one film are rendered, the median of a few runs after one to warm up.

    Args:
        render: What makes frames.
        clip: Whose picture and motion, resized.
        width: Of the film.
        height: Of the film.
    """
    old_height, old_width = clip.image.shape[-2:]
    image = functional.interpolate(clip.image, (height, width), mode="bilinear", antialias=True)
    ratio = clip.image.new_tensor([width / old_width, height / old_height])[:, None, None]
    moved = functional.interpolate(clip.displacement[0, :FILM], (height, width), mode="bilinear")
    displacement = (moved * ratio)[None]
    motion = motion_importance(displacement)
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        render(image, displacement, motion).sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return displacement.shape[1] / statistics.median(seconds[1:])


def rounded(value: Any, digits: int = 5) -> Any:
    """Numbers of a tree to some significant digits, which keeps files of curves small."""
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _kind(length: int, extractor: object) -> str:
    textures = bool(getattr(extractor, "dynamic_textures", False))
    return "FID" if length == 1 else window_kind(length, textures)


def _pictures(pixels: Tensor) -> Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) in -1..1."""
    return pixels.movedim(-1, -3).float() / 127.5 - 1
