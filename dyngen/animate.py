"""`dyngen animate`: a picture and a motion, given or sampled, to a film."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from dyngen.film import check_film, needs_even_sides, write_film
from dyngen.models import MotionRenderer, SpectralLDM
from dyngen.models.checkpoints import load_model
from dyngen.models.spectral_ldm import GUIDANCE_SCALE, LOOP_SCALE, STEPS
from dyngen.motion.holes import splat_frames
from dyngen.motion.loops import loop_closure
from dyngen.motion.spectral_volume import displacement_at
from dyngen.motion.spectral_volume import magnify as magnified
from dyngen.motion.splatting import motion_importance
from dyngen.view.sources import read_image, read_motion, read_start_frame

log = logging.getLogger(__name__)

AT_ONCE = 8  # frames rendered together
ALL = 1e6  # hertz: every frequency that a clip has
LARGEST = 2**20  # pixels along a side of a picture that is read
SAME_SHAPE = 0.03  # by which proportions may differ, as a part


class Renderer(Protocol):
    """What makes frames: start images (B, 3, H, W) in -1..1, displacements (B, T, 2, H, W), and
    mean lengths of the whole motion (B, 1, H, W) in pixels to frames (B, T, 3, H, W)."""

    def __call__(self, image: Tensor, displacement: Tensor, motion: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Swaying:
    """A motion that repeats itself.

    Attributes:
        volume: (1, K, 4, h, w) in pixels of its own grid.
        period: T, frames.
        fps: Frames per second at which it is as fast as it was.
    """

    volume: Tensor
    period: int
    fps: float


def animate(
    out: Path,
    image: Path | None = None,
    motion: Path | None = None,
    motion_model: Path | None = None,
    renderer: Path | None = None,
    clip: int = 0,
    seed: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    slow: float = 1.0,
    magnify: float = 1.0,
    mask: Path | None = None,
    loop: bool = False,
    loop_scale: float = LOOP_SCALE,
    steps: int | None = None,
    guidance_scale: float = GUIDANCE_SCALE,
    largest: int = 1024,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Make a film of a picture: sample how it may move, or take a motion, and render it.

    Args:
        out: Film to write: .mp4, .webm or .gif.
        image: The picture, PNG, JPEG or another that Pillow reads; by default the start frame that
            the motion comes with.
        motion: A motion.zarr, or a spectral volume as .pt or .npz.
        motion_model: Checkpoint of a `SpectralLDM` that motion is sampled from, instead.
        renderer: Checkpoint of a `MotionRenderer`; without, colours are splatted, holes filled.
        clip: Which clip of the motion.
        seed: Of the motion that is sampled.
        frames: Frames to write; one period by default.
        fps: Frames per second; those of the motion by default. It changes no speed.
        slow: How many times as slow as it was; the motion between frames is that of its Fourier
            series.
        magnify: How many times as large a motion.
        mask: Picture that is bright where things may move; elsewhere nothing does.
        loop: Guide the motion that is sampled so that its end meets its beginning.
        loop_scale: u, how strongly.
        steps: Of the sampler; 50, or 500 for a loop.
        guidance_scale: w of classifier-free guidance.
        largest: Longer side of the film in pixels; a larger picture is made smaller.
        device: cpu, cuda, or auto.
        progress: Show how far it is.

    Returns: the film's path.

    Raises:
        ValueError: If a file cannot be read, things do not fit together, or a number is out of
            range.
    """
    _check(frames, slow, largest)
    check_film(out, 1.0 if fps is None else fps)
    if (motion is None) == (motion_model is None):
        raise ValueError("Give either a motion, or a motion_model to sample one from.")
    if loop and motion_model is None:
        raise ValueError("A loop is made while motion is sampled; give a motion_model, no motion.")
    place = device_named(device)
    name = "the start frame" if image is None else str(image)
    picture = _fitted(_read(image, motion, clip), name, largest, needs_even_sides(out))
    render = splat_frames if renderer is None else load_renderer(renderer, place).render
    if motion is not None:
        given = read_motion(motion, clip, highest=ALL)
        swaying = Swaying(given.volume[None], given.period, given.frames_per_second)
    else:
        assert motion_model is not None
        swaying = sample_motion(
            motion_model, picture.to(place), seed, loop, steps, guidance_scale, name, loop_scale
        )
    height, width = picture.shape[-2:]
    volume = resize_volume(swaying.volume.to(place), height, width, name)
    volume = magnified(volume, magnify)
    if mask is not None:
        volume = volume * read_mask(mask, height, width).to(place)
    rate = swaying.fps if fps is None else fps
    step = swaying.fps / (rate * slow)  # of the motion's frames, from one of the film to the next
    count = max(1, round(swaying.period / step)) if frames is None else frames
    times = 1 + step * torch.arange(count, dtype=torch.float64)
    started = time.perf_counter()
    rendered = render_film(render, picture.to(place), volume, times, swaying.period)
    console = Console(stderr=True)
    shown = track(
        rendered,
        "rendering",
        total=count,
        console=console,
        disable=not (progress and console.is_terminal),
    )
    written = write_film(out, shown, rate)
    log.info(
        "%s: %d frames of %dx%d at %g frames/s, rendered at %.1f frames/s on %s",
        *(out, written, width, height, rate, written / (time.perf_counter() - started), place),
    )
    return out


@torch.no_grad()
def render_film(
    render: Renderer, image: Tensor, volume: Tensor, times: Tensor, period: int
) -> Iterator[np.ndarray]:
    """The frames of a motion at any times.

    Args:
        render: What makes frames.
        image: (1, 3, H, W) in -1..1.
        volume: (1, K, 4, H, W) in pixels.
        times: (N,) in frames after the start frame.
        period: T, frames.

    Yields: (H, W, 3) uint8.
    """
    whole = torch.arange(1, period + 1, dtype=torch.float64)
    sums = [
        len(part) * motion_importance(displacement_at(volume, part.to(volume.device), period))
        for part in whole.split(AT_ONCE)
    ]
    importance = torch.stack(sums).sum(0) / period
    for part in times.split(AT_ONCE):
        displacement = displacement_at(volume, part.to(volume.device), period)
        frames = render(image, displacement, importance)[0]
        pixels = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        yield from pixels.permute(0, 2, 3, 1).cpu().numpy()


def sample_motion(
    checkpoint: Path,
    image: Tensor,
    seed: int = 0,
    loop: bool = False,
    steps: int | None = None,
    guidance_scale: float = GUIDANCE_SCALE,
    name: str = "the picture",
    loop_scale: float = LOOP_SCALE,
) -> Swaying:
    """Sample how a picture may move.

    Args:
        checkpoint: Of a `SpectralLDM`.
        image: (1, 3, H, W) in -1..1; it is resized to the size of the clips trained on.
        seed: Of the sample.
        loop: Guide it so that its end meets its beginning (Li et al. 2024, section 6).
        steps: Of the sampler; 50, or 500 for a loop.
        guidance_scale: w of classifier-free guidance.
        name: Of the picture, for errors.
        loop_scale: u of the guidance of a loop.

    Raises:
        ValueError: If the checkpoint is of another model, its clips have other proportions, or the
            guidance of a loop is so strong that it diverges.
    """
    model = load_model(checkpoint).to(image.device)
    if not isinstance(model, SpectralLDM) or model.cube is None:
        raise ValueError(
            f"{checkpoint} holds a {type(model).__name__}; motion is sampled from a trained "
            "SpectralLDM."
        )
    clips: dict[str, Any] = model.cube
    height, width = int(clips["height"]), int(clips["width"])
    _check_proportions(image.shape[-2:], (height, width), name, "the clips trained on")
    small = functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    options: dict[str, Any] = {"steps": steps or (500 if loop else STEPS)}
    if loop:
        options |= {
            "terms": [model.loop_term(small, loop_scale)],
            "sampler": "self_recurrent_ddim",
            "recurrences": 2,
        }
    log.info("sampling a motion of %dx%d in %d steps", width, height, options["steps"])
    volume = model.sample(small, seed, guidance_scale=guidance_scale, **options)
    closure = loop_closure(volume, model.frames).item()
    log.info("its end is %.3g pixels and pixels per frame from its beginning", closure)
    if loop and not closure < max(height, width):
        raise ValueError(
            f"With loop_scale = {loop_scale:g} the guidance of the loop diverged (its end is "
            f"{closure:.3g} pixels from its beginning); give a smaller one."
        )
    return Swaying(volume, model.frames, float(clips.get("fps", 30.0)))


def resize_volume(volume: Tensor, height: int, width: int, name: str = "the picture") -> Tensor:
    """A volume (1, K, 4, h, w) on the grid of a picture, in pixels of it.

    Raises:
        ValueError: If picture and volume have other proportions.
    """
    h, w = volume.shape[-2:]
    if (h, w) == (height, width):
        return volume
    _check_proportions((height, width), (h, w), name, "the motion")
    log.info("the motion of %dx%d is resized to %dx%d", w, h, width, height)
    resized = functional.interpolate(
        volume[0], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    ratio = volume.new_tensor([width / w, width / w, height / h, height / h])
    return resized[None] * ratio[:, None, None]


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """Where things may move, (height, width) in 0..1, from a picture that is bright there.

    Raises:
        ValueError: If it is no picture.
    """
    mask = read_image(path, LARGEST).convert("L")
    if mask.size != (width, height):
        log.info("the mask of %dx%d is resized to %dx%d", *mask.size, width, height)
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)


def _read(image: Path | None, motion: Path | None, clip: int) -> Image.Image:
    if image is not None:
        return read_image(image, LARGEST)
    if motion is None:
        raise ValueError("Give a picture, image, that a motion is to be sampled for.")
    return read_start_frame(motion, clip, LARGEST)


def _fitted(picture: Image.Image, name: str, largest: int, even: bool) -> Tensor:
    """A picture (1, 3, H, W) in -1..1, made smaller if it is too large or has odd sides."""
    ratio = min(1.0, largest / max(picture.size))
    multiple = 2 if even else 1
    width, height = (max(multiple, round(n * ratio) // multiple * multiple) for n in picture.size)
    if (width, height) != picture.size:
        log.info("%s of %dx%d is resized to %dx%d", name, *picture.size, width, height)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


def load_renderer(checkpoint: Path, device: torch.device) -> MotionRenderer:
    """A trained renderer.

    Raises:
        ValueError: If the checkpoint cannot be read or is of another model.
    """
    model = load_model(checkpoint).to(device)
    if not isinstance(model, MotionRenderer):
        raise ValueError(
            f"{checkpoint} holds a {type(model).__name__}; frames are rendered by a MotionRenderer."
        )
    return model


def _check(frames: int | None, slow: float, largest: int) -> None:
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be 1 or more, not {frames}.")
    if not slow > 0:
        raise ValueError(f"slow must be positive, not {slow:g}; 2 is half the speed.")
    if largest < 16:
        raise ValueError(f"largest must be 16 pixels or more, not {largest}.")


def _check_proportions(
    picture: tuple[int, ...] | torch.Size, motion: tuple[int, int], name: str, of: str
) -> None:
    (height, width), (h, w) = picture, motion
    if abs(math.log(width * h / (height * w))) > SAME_SHAPE:
        raise ValueError(
            f"{name} is {width}x{height} and {of} {w}x{h}; crop it to the same proportions."
        )


def device_named(name: str) -> torch.device:
    """The device of a name, auto being a GPU if there is one.

    Raises:
        ValueError: If it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name} cannot be used here ({reason}); give cpu.") from error
    return device
