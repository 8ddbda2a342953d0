"""A garden in the wind on disk: a motion.zarr with the true motion of every pixel."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_modules.motion_store import MotionClip, MotionWriter
from data_modules.side_by_side import cores, in_order
from dyngen.simulate.garden import Garden, Layer, simulate

logger = logging.getLogger(__name__)

MOVES = 0.1  # pixels; what moves less at all times is not in the mask


def write_garden(
    out: Path | str,
    parameters: Garden = Garden(width=128, height=80, sway=5.0),  # noqa: B008 (frozen)
    *,
    clips: int = 128,
    frames: bool = True,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Draw a garden in the wind and write clips of it, with their true motion, as a motion.zarr.

    The variables are those of any motion.zarr, and `scene (clip)`: for each clip a JSON list of
    what is in it, from back to front, as `{"object", "kind", "modes"}`, `object` being the number
    in the variable `object`, and each mode having a `frequency` in hertz (undamped), `damping`
    (ratio), `phase` in radians at the start frame, and its `size` in pixels, the largest
    displacement of what is seen of the object that the mode makes when its coordinate goes by 1.

    A clip depends on the seed and on its own number alone. The file appears when it is complete;
    a run that was stopped goes on where it was.

    Args:
        out: Folder to write, such as `motion.zarr`.
        parameters: What the garden is like.
        clips: How many clips, each another scene.
        frames: Write the frames too, which a renderer is trained on.
        workers: Processes; by default one for each core.
        overwrite: Replace what is at `out`.
        progress: Show a progress bar.

    Returns:
        `out`.

    Raises:
        FileExistsError: If something is at `out` and `overwrite` is off.
        ValueError: If there are no clips to write, or no workers.
    """
    if clips < 1:
        raise ValueError(f"clips must be at least 1, not {clips}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    attributes = {
        "title": "A garden in the wind",
        "source": f"dyngen {version('dyngen')}, dyngen.simulate.garden",
        "dyngen_version": version("dyngen"),
        "seed": parameters.seed,
        "parameters": json.dumps(asdict(parameters)),
        "with_frames": frames,
        "clips_asked_for": clips,
    }
    writer = MotionWriter(Path(out), attributes, overwrite)
    left = range(writer.done, clips)
    with _bar(progress) as bar:
        task = bar.add_task("drawing the garden", total=clips, completed=min(writer.done, clips))
        for clip in in_order(partial(draw, parameters, frames), left, workers or cores()):
            writer.append(clip)
            bar.advance(task)
    writer.finish()
    logger.info("wrote %d clips of %d frames to %s", clips, parameters.frames, out)
    return Path(out)


def draw(parameters: Garden, frames: bool, number: int) -> MotionClip:
    """One clip of a garden, as it goes to disk."""
    clip = simulate(parameters, number)
    video = (clip.video.movedim(1, -1) * 255).round().to(torch.uint8).numpy()
    return MotionClip(
        image=video[0],
        displacement=clip.displacement.numpy().astype(np.float16),
        fps=parameters.frames_per_second,
        quality=1.0,
        source=f"garden {parameters.seed} clip {number}",
        start_frame=0,
        frames=video[1:] if frames else None,
        mask=(clip.displacement.norm(dim=1).amax(0) > MOVES).numpy().astype(np.uint8),
        object=clip.mask.numpy().astype(np.uint8),
        scene=json.dumps(_told(clip.layers, clip.mask)),
    )


def _told(layers: Sequence[Layer], seen: torch.Tensor) -> list[dict[str, Any]]:
    """What is in a clip, from back to front."""
    told = []
    for number, layer in enumerate(layers):
        y, x = (seen == number).nonzero().t()
        places = torch.stack([x, y], -1).float()
        modes = [
            {
                "frequency": mode.frequency,
                "damping": mode.damping,
                "phase": mode.phase,
                "size": mode.shape(places).norm(dim=-1).max().item() if len(places) else 0.0,
            }
            for mode in layer.modes
        ]
        told.append({"object": number, "kind": layer.kind, "modes": modes})
    return told


def _bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        TimeRemainingColumn(),
        disable=not show,
    )
