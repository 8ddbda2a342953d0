"""What a spectral volume keeps of real films: their motion extracted, made into terms, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.errors import DataError
from data_modules.extract_motion import extract_motion, probe
from data_modules.trajectories import open_motion
from dyngen.metrics.pictures import psnr
from dyngen.motion.holes import splat_frames
from dyngen.motion.spectral_volume import displacement_frames, energy_lost, spectral_volume
from dyngen.motion.splatting import motion_importance
from dyngen.report.rendering_figures import time_slices
from dyngen.report.table import markdown_table

logger = logging.getLogger(__name__)

TERMS = (4, 8, 16, 24)
SHORTEST = 8  # frames after the start frame
AT_ONCE = 8  # frames rendered together
MOST_CAMERA = 5.0  # pixels: a hand that holds the camera is put up with here


def real_clips(
    videos: Sequence[Path],
    out: Path,
    results: Path,
    frames: int = 149,
    width: int = 256,
    height: int = 160,
) -> dict[str, dict[str, Any]]:
    """Extract the motion of films and measure what is left of it, a clip of each.

    What a film's own colours are when they are carried along its optical flow is compared with
    the film, and likewise along the motion that K terms of the flow's spectral volume make.

    Args:
        videos: Files of films.
        out: Folder for a motion.zarr of each; one that is there is not made again.
        results: Folder for a picture of each, `real_NAME.png`: a row of pixels through time.
        frames: T at most; a shorter film gives as many as it has.
        width: Of clips in pixels.
        height: Of clips in pixels.

    Returns: By file name: `frames`, `largest_displacement` in pixels, `quality` of the flow,
    `energy_kept` by K, and `psnr`, medians over frames, of `repeat_first_frame`, `optical_flow`
    and `terms_K`; or `refused`, a sentence, of a film that cannot be used.
    """
    found: dict[str, dict[str, Any]] = {}
    for video in videos:
        motion = out / f"{video.stem}.zarr"
        try:
            length = min(frames, probe(video, SHORTEST).frames - 1)
            with suppress(FileExistsError):  # made before
                extract_motion(
                    [str(video)],
                    motion,
                    width,
                    height,
                    length,
                    every=length + 1,
                    most_camera=MOST_CAMERA,
                    workers=1,
                )
            found[video.name] = _of_clip(motion, results / f"real_{video.stem}.png")
        except DataError as error:
            logger.warning("%s", error)
            found[video.name] = {"refused": str(error).replace(str(video), video.name)}
    return found


def real_clips_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of `real_clips` as a table, with its pictures."""
    used = {name: of for name, of in found.items() if "refused" not in of}
    lines = []
    if used:
        systems = list(next(iter(used.values()))["psnr"])
        head = [
            "film",
            "frames",
            "largest motion (px)",
            *(name.replace("_", " ") for name in systems),
        ]
        rows = [
            [name, str(of["frames"]), f"{of['largest_displacement']:.1f}"]
            + [f"{of['psnr'].get(system, float('nan')):.1f}" for system in systems]
            for name, of in used.items()
        ]
        lines += ["PSNR (dB) against the film, median over frames:", ""]
        lines += [markdown_table(head, rows), ""]
    for name, of in used.items():
        kept = ", ".join(f"{value:.3f} with {k}" for k, value in of["energy_kept"].items())
        lines += [f"{name}: of the mean square displacement terms keep {kept}.", ""]
        lines += [f"![a row of {name} through time](real_{Path(name).stem}.png)", ""]
    lines += [f"Left out: {of['refused']}" for of in found.values() if "refused" in of]
    return "\n".join(lines).strip() + "\n"


@torch.no_grad()
def _of_clip(path: Path, picture: Path) -> dict[str, Any]:
    data = open_motion(str(path)).isel(clip=0)
    displacement = torch.from_numpy(
        data["displacement"].transpose("time", "axis", "y", "x").values.astype(np.float32)
    )[None]
    start = _pixels(data["image"].transpose("y", "x", "channel").values)[None]
    film = data["frames"].transpose("time", "y", "x", "channel").values
    count = displacement.shape[1]
    terms = [k for k in TERMS if 2 * k <= count + 1]
    motions = {"optical_flow": displacement} | {
        f"terms_{k}": displacement_frames(spectral_volume(displacement, k), count) for k in terms
    }
    films = {name: _carried(start, motion) for name, motion in motions.items()}
    truth = _pixels(film)
    shown = {"repeat_first_frame": start.expand(count, -1, -1, -1)} | films
    quality = {name: float(psnr(frames, truth).median()) for name, frames in shown.items()}
    row = int(displacement.norm(dim=2).mean((0, 1, 3)).argmax())
    chosen = {"film": film} | {
        name.replace("_", " "): _bytes(films[name])
        for name in ("optical_flow", f"terms_{max(k for k in terms if k <= 16)}", "terms_4")
    }
    picture.parent.mkdir(parents=True, exist_ok=True)
    time_slices(chosen, row, zoom=1).save(picture, optimize=True)
    return {
        "frames": count,
        "row": row,
        "largest_displacement": float(displacement.norm(dim=2).max()),
        "quality": float(data["quality"]),
        "energy_kept": {str(k): 1 - float(energy_lost(displacement, k)) for k in terms},
        "psnr": quality,
    }


def _carried(start: Tensor, displacement: Tensor) -> Tensor:
    """Frames (T, 3, H, W) of a start frame (1, 3, H, W) splatted along (1, T, 2, H, W)."""
    importance = motion_importance(displacement)
    parts = displacement.split(AT_ONCE, dim=1)
    return torch.cat([splat_frames(start, part, importance)[0] for part in parts]).clamp(-1, 1)


def _pixels(values: np.ndarray) -> Tensor:
    """Bytes (..., H, W, 3) as numbers (..., 3, H, W) in -1..1."""
    return torch.from_numpy(np.array(values)).movedim(-1, -3).float() / 127.5 - 1


def _bytes(frames: Tensor) -> np.ndarray:
    return ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
