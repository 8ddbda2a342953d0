"""Do the default Fréchet distances rank known corruptions by their strength?

Films of turbulence are made on the spot, half of them held as real, and half corrupted more and
more: blurred, made noisy, their frames shuffled, frozen, played backwards, or drifting. A good
distance grows with each step. Beside the default extractor, wavelet scattering, stands what needs
no idea at all: values on a coarse grid. Distances of frames cannot see what becomes of their order,
which the table shows too.

Writes docs/results/scores/corruptions.json, .md (a table) and .svg (a figure).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from dyngen.metrics.features import ScatteringFrames, ScatteringWindows
from dyngen.metrics.frechet import (
    covariance,
    feature_scale,
    gaussian_distance,
    moments,
    rescaled,
    sampling_floor,
    score_name,
)
from dyngen.metrics.windows import cut_windows, window_kind
from dyngen.report.style import COLOURS, INK, SHADE, styled
from dyngen.simulate.turbulence import Turbulence, simulate

FILMS, FRAMES, LENGTH = 80, 64, 16
FRAME_STRIDE = 8
PARTS = 3
OUT = Path(__file__).parent.parent / "docs" / "results" / "scores"


# Corruptions: of films (N, T, 1, H, W), normalised, at a strength


def blur(films: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Convolved with a Gaussian, its standard deviation in grid cells."""
    size = films.shape[-1]
    k = 2 * math.pi * torch.fft.fftfreq(size)
    gain = torch.exp(-0.5 * width**2 * (k[:, None] ** 2 + k[: size // 2 + 1] ** 2))
    return torch.fft.irfft2(torch.fft.rfft2(films) * gain, s=films.shape[-2:])


def noise(films: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """White noise, in standard deviations of the field."""
    return films + level * torch.randn(films.shape, generator=generator)


def shuffle(films: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the frames of every window of 16 trade places at random."""
    count = round(share * LENGTH)
    order = torch.arange(films.shape[1]).repeat(len(films), 1)
    for film in order:
        for start in range(0, films.shape[1], LENGTH):
            chosen = start + torch.randperm(LENGTH, generator=generator)[:count]
            film[chosen] = film[chosen.roll(1)]  # one cycle, so that each of them moves
    return torch.stack([film[places] for film, places in zip(films, order, strict=True)])


def freeze(films: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The last share of the frames of every window of 16 stand still."""
    place = torch.arange(films.shape[1])
    last = LENGTH - 1 - round(share * LENGTH)
    return films[:, place - (place % LENGTH - last).clamp_min(0)]


def reverse(films: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the films played backwards."""
    count = round(share * len(films))
    return torch.cat([films[:count].flip(1), films[count:]])


def drift(films: Tensor, end: float, generator: torch.Generator) -> Tensor:
    """A mean that grows linearly along the film, in standard deviations at its end."""
    return films + end * torch.linspace(0, 1, films.shape[1]).reshape(1, -1, 1, 1, 1)


def amplify(films: Tensor, end: float, generator: torch.Generator) -> Tensor:
    """An amplitude that grows linearly along the film, by this share at its end."""
    return films * (1 + end * torch.linspace(0, 1, films.shape[1]).reshape(1, -1, 1, 1, 1))


Corruption = Callable[[Tensor, float, torch.Generator], Tensor]
CORRUPTIONS: dict[str, tuple[Corruption, str, tuple[float, ...], bool]] = {
    # what it does, the unit of its strength, strengths, and whether single frames show it
    "blur": (blur, "cells", (0.3, 0.5, 0.8, 1.2), True),
    "noise": (noise, "std", (0.05, 0.1, 0.2, 0.4), True),
    "frame shuffle": (shuffle, "share of frames", (0.125, 0.25, 0.5, 1.0), False),
    "frame freeze": (freeze, "share of frames", (0.125, 0.25, 0.5, 0.875), False),
    "time reversal": (reverse, "share of films", (0.25, 0.5, 0.75, 1.0), False),
    "drift of the mean": (drift, "std at the end", (0.1, 0.2, 0.4, 0.8), True),
    "drift of the amplitude": (amplify, "share at the end", (0.1, 0.2, 0.4, 0.8), True),
}


class CoarseValues(nn.Module):
    """Values on a coarse grid: of a frame 8 x 8, of a window 2 x 2 at every time."""

    name = "coarse-values"

    def forward(self, samples: Tensor) -> Tensor:
        cells = 8 if samples.ndim == 4 else 2
        pooled = F.adaptive_avg_pool2d(samples.flatten(0, -3), cells)
        return pooled.reshape(len(samples), -1)


def measure(seed: int = 0) -> dict[str, Any]:
    """Distances by extractor, corruption and strength."""
    films = simulate(Turbulence(), 2 * FILMS, FRAMES, seed=seed)[:, :, None]
    films = films / films.std()
    real, clean = films[:FILMS], films[FILMS:]
    scattering = {"FID": ScatteringFrames(), window_kind(LENGTH): ScatteringWindows(length=LENGTH)}
    coarse = {"FID": CoarseValues(), window_kind(LENGTH): CoarseValues()}
    extractors: dict[str, nn.Module] = {
        score_name(kind, extractor): extractor
        for group in (scattering, coarse)
        for kind, extractor in group.items()
    }
    of_real = {name: _features(name, e, real) for name, e in extractors.items()}
    found: dict[str, Any] = {name: {} for name in extractors}
    none = {name: _features(name, e, clean) for name, e in extractors.items()}
    for label, (corrupt, unit, strengths, in_frames) in CORRUPTIONS.items():
        by_strength = {0.0: none}
        for strength in strengths:
            corrupted = corrupt(clean, strength, torch.Generator().manual_seed(seed + 1))
            by_strength[strength] = {n: _features(n, e, corrupted) for n, e in extractors.items()}
        for name in extractors:
            curve = [
                _distance(of[name], of_real[name], getattr(extractors[name], "standardise", False))
                for of in by_strength.values()
            ]
            distances = [one[0] for one in curve]
            found[name][label] = {
                "unit": unit,
                "strength": list(by_strength),
                "distance": distances,
                "spread": [one[1] for one in curve],
                "visible_in_frames": in_frames,
                "monotone": all(a < b for a, b in itertools.pairwise(distances)),
            }
    return {
        "command": "python -m benchmarks corruptions",
        "world": {"films": FILMS, "frames": FRAMES, "window": LENGTH, "seed": seed},
        "samples": {name: len(features) for name, features in of_real.items()},
        "features": {name: features.shape[1] for name, features in of_real.items()},
        "sampling_floor": {
            name: _floor(of_real[name], len(none[name]), getattr(e, "standardise", False))
            for name, e in extractors.items()
        },
        "scores": found,
    }


def _features(name: str, extractor: nn.Module, films: Tensor) -> Tensor:
    """Of windows side by side, or of every eighth frame, film by film."""
    if name.startswith("FID"):
        samples = films[:, ::FRAME_STRIDE].flatten(0, 1)
    else:
        samples = cut_windows(films, LENGTH)
    with torch.no_grad():
        return torch.cat([extractor(part) for part in samples.split(64)])


def _distance(features: Tensor, real: Tensor, standardise: bool) -> tuple[float, float]:
    """Distance from the real ones, and its spread if films were fewer, by parts of them."""
    theirs = moments(real)
    scale = feature_scale(theirs) if standardise else torch.ones_like(theirs.mean)
    theirs = rescaled(theirs, scale)

    def distance(of: Tensor) -> float:
        return float(gaussian_distance(rescaled(moments(of), scale), theirs).distance)

    # Parts are strided, so that each has a like share of what was done to a share of the films.
    parts = torch.tensor([distance(features[part::PARTS]) for part in range(PARTS)])
    return distance(features), float(parts.std()) / math.sqrt(PARTS)


def _floor(real: Tensor, samples: int, standardise: bool) -> float:
    theirs = moments(real)
    if standardise:
        theirs = rescaled(theirs, feature_scale(theirs))
    return float(sampling_floor(covariance(theirs), len(real), samples))


# What is shown


def table(result: Mapping[str, Any]) -> str:
    """Markdown: distances by strength, a row per corruption and score."""
    lines = ["| corruption | score | none | weak | moderate | strong | severe | grows |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | :-: |")
    for label, (_, unit, strengths, _) in CORRUPTIONS.items():
        steps = ", ".join(f"{s:g}" for s in strengths)
        for i, (name, scores) in enumerate(result["scores"].items()):
            one = scores[label]
            cells = " | ".join(f"{d:.3g}" for d in one["distance"])
            what = f"{label} ({steps} {unit})" if i == 0 else ""
            lines.append(f"| {what} | {name} | {cells} | {'yes' if one['monotone'] else 'no'} |")
    return "\n".join(lines) + "\n"


@styled
def figure(result: Mapping[str, Any]) -> Figure:
    """A panel per corruption: distances, relative to that of films without corruption."""
    drawing = Figure(figsize=(9.6, 4.8), layout="constrained")
    panels = drawing.subplots(2, 4, sharey=True).flatten()
    names = list(result["scores"])
    looks = dict(zip(names, [*list(COLOURS)[:2], SHADE, SHADE], strict=True))
    for axes, label in zip(panels, CORRUPTIONS, strict=False):
        axes.axhline(1, color=INK, linewidth=0.7)
        for name in names:
            one = result["scores"][name][label]
            places = range(len(one["strength"]))
            relative = [d / one["distance"][0] for d in one["distance"]]
            axes.plot(
                places,
                relative,
                color=looks[name],
                marker="o" if name.startswith("FVD") else "s",
                markersize=3.5,
                linestyle="-" if name.startswith("FVD") else (0, (4, 2)),
                label=name,
            )
            axes.set_xticks(places, [f"{s:g}" for s in one["strength"]])
        axes.set_yscale("log")
        axes.set_title(label)
        axes.set_xlabel(one["unit"])
    for axes in (panels[0], panels[4]):
        axes.set_ylabel("distance / that of truth")
    panels[-1].set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="center left")
    return drawing


def write(result: Mapping[str, Any], folder: Path = OUT) -> None:
    """The result as JSON, as a table and as a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corruptions.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "corruptions.md").write_text(table(result))
    figure(result).savefig(folder / "corruptions.svg", facecolor="white", metadata={"Date": None})


def run() -> list[dict[str, Any]]:
    """Entries for benchmarks/results.json."""
    result = measure()
    write(result)
    shares = {}
    for name, scores in result["scores"].items():
        visible = [s for s in scores.values() if name.startswith("FVD") or s["visible_in_frames"]]
        shares[name] = sum(s["monotone"] for s in visible) / len(visible)
    names = list(shares)
    return [
        {
            "name": f"{ours}: corruptions ranked by their strength",
            "ours": shares[ours],
            "peer": shares[peer],
            "peer_name": peer,
            "limit": 1.0,
            "unit": "share",
            "ratio_to_peer": shares[ours] / shares[peer] if shares[peer] else None,
            "ratio_to_limit": shares[ours],
            "spread": 0.0,
        }
        for ours, peer in zip(names[:2], names[2:], strict=True)
    ]


if __name__ == "__main__":
    for entry in run():
        print(entry)
