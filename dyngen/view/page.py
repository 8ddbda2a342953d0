"""`dyngen view`: a picture and its motion to one static page that answers when it is pulled.

The page needs no network, no server and no build: style, program, picture, mode shapes and what is
behind the picture are inside one HTML file. Motion is that of :mod:`dyngen.motion.modes`, whose
oscillators the page runs in JavaScript, drawn by splatting every pixel forward on the GPU.
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dyngen.motion.modes import Modes, PartModes, modes_of_parts, moving_parts
from dyngen.view.backdrop import behind, in_front
from dyngen.view.packing import Packed, encode, grow, halve, pack
from dyngen.view.sources import SAMPLED_DAMPING, Motion, read_image, read_motion, read_start_frame

log = logging.getLogger(__name__)

STYLES = ("page.css",)
SCRIPTS = ("oscillators.js", "picture.js", "controls.js")
PARTS = 16  # with the rest
FAINT = 0.02  # pixels: a mode that moves nothing by more is noise to the eye
TAIL = 0.98  # of the pixels of a part move less than what counts as its strength


def view(
    motion: Path,
    out: Path,
    image: Path | None = None,
    clip: int = 0,
    modes: int = 16,
    damping: float = 0.02,
    largest: int = 1024,
    megabytes: float = 4.0,
    title: str = "",
) -> Path:
    """Write a page on which a picture sways when it is pulled, into a folder.

    Args:
        motion: A motion.zarr, or a spectral volume as .pt or .npz.
        out: Folder for the page, made if need be; `index.html` in it opens from disk.
        image: Picture that moves; by default the start frame that the motion comes with.
        clip: Which clip of the motion.
        modes: The most modes, 1 to 64; the strongest are taken.
        damping: Least damping ratio: what was filmed may sway for minutes.
        largest: Longer side of the picture in pixels; larger ones are made smaller.
        megabytes: Size to keep the mode shapes in, at half the resolution if need be.
        title: Heading of the page; the name of the picture or of the film by default.

    Returns: the page's path.

    Raises:
        ValueError: If picture or motion cannot be read or do not fit, or if nothing moves.
    """
    _check(modes, damping, largest, megabytes)
    moved = read_motion(motion, clip)
    if image is None:
        picture, name = read_start_frame(motion, clip, largest), Path(moved.source).stem
    else:
        picture, name = read_image(image, largest), image.stem
    height, width = moved.volume.shape[-2:]
    if abs(math.log(picture.width * height / (picture.height * width))) > 0.03:
        raise ValueError(
            f"{image or 'The start frame'} is {picture.width}x{picture.height} and the motion "
            f"{width}x{height}; crop the picture to the same proportions."
        )
    page = render(picture, moved, modes, damping, megabytes, title or name)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "index.html"
    partial = out / "index.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    log.info("%s: %.1f MB; open it in a browser", path, path.stat().st_size / 1e6)
    return path


def render(
    picture: Image.Image,
    motion: Motion,
    modes: int = 16,
    damping: float = 0.02,
    megabytes: float = 4.0,
    title: str = "",
) -> str:
    """The page of a picture and its motion, whose sides have the same proportions.

    Raises: ValueError if nothing moves.
    """
    found, labels = find_modes(picture.size, motion, modes, damping)
    strength = part_strengths(found, labels)
    found, labels = grow(found, labels, strength)
    packed = pack(found, labels)
    data = encode(packed)
    while len(data) > megabytes * 1e6 and min(labels.shape) > 64:
        log.info("mode shapes take %.1f MB; halving their resolution", len(data) / 1e6)
        found, labels = halve(found, labels)
        packed = pack(found, labels)
        data = encode(packed)
    about = {
        "title": title,
        "source": motion.source,
        "width": picture.width,
        "height": picture.height,
        "grid": {"width": labels.shape[1], "height": labels.shape[0]},
        "layers": len(packed.layers),
        "sheet": len(labels.unique()) == 1,
        "error": packed.error,
        "parts": _parts(labels, strength),
        "modes": _modes(found, packed),
    }
    plate = _plate(picture, labels, strength)
    tiny = picture.resize((24, max(1, round(24 * picture.height / picture.width))))
    assets = resources.files("dyngen.view") / "assets"

    def text(names: tuple[str, ...]) -> str:
        return "\n".join((assets / name).read_text(encoding="utf-8") for name in names)

    parts = {
        "TITLE": html.escape(title),
        "STYLE": text(STYLES),
        "SCRIPT": text(SCRIPTS),
        "ABOUT": json.dumps(about, separators=(",", ":")).replace("</", "<\\/"),
        "MOTION": base64.b64encode(data).decode(),
        "PICTURE": _data_address(picture, quality=93),
        "BEHIND": _data_address(plate, quality=85),
        "AMBIENT": _data_address(tiny, quality=80),
    }
    page = (assets / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found.group(1)], page)


def find_modes(
    size: tuple[int, int], motion: Motion, count: int = 16, damping: float = 0.0
) -> tuple[PartModes, Tensor]:
    """The modes of a motion in pixels of a picture of a size (width, height), and its parts.

    Things that are known move each by themselves, and so do those that a sampled motion tells
    apart. A motion estimated from a film does not say where one thing ends: it is smoothed, and the
    picture is one sheet, which may stretch but does not tear, with every frequency for a mode (Li
    et al. 2024, section 6). What is too faint to be seen is left out, but for the strongest mode.

    Args:
        count: the most modes.
        damping: the least ratio.

    Returns: modes on the motion's grid, and labels ``(H, W)`` of parts numbered from 0 on.
    Raises: ValueError if nothing moves.
    """
    height, width = motion.volume.shape[-2:]
    scale = motion.volume.new_tensor([size[0] / width] * 2 + [size[1] / height] * 2)
    volume = motion.volume * scale[:, None, None]
    ratio = motion.damping
    if motion.objects is not None:
        labels = _strongest(motion.objects, volume)
    elif motion.damping is None:
        volume, labels = smoothed(volume), torch.zeros(height, width, dtype=torch.int64)
        ratio = SAMPLED_DAMPING
    else:
        labels = moving_parts(volume, count=PARTS - 1)
    found = modes_of_parts(volume, labels, motion.period, motion.frames_per_second, count, ratio)
    most = farthest(found)
    seen = (most >= FAINT) | (most == most.max())
    modes = Modes(
        found.modes.shapes[seen],
        found.modes.frequencies[seen],
        found.modes.damping[seen].clamp(min=damping),
    )
    return PartModes(modes, found.part[seen]), labels


def smoothed(volume: Tensor) -> Tensor:
    """A volume ``(K, 4, H, W)`` without what a few pixels do against those around them.

    Each value becomes the median about it, then the mean of medians about it, within an eightieth
    of the width to all sides.
    """
    reach = max(1, round(volume.shape[-1] / 80))
    size = 2 * reach + 1

    def around(plane: Tensor) -> Tensor:
        return functional.pad(plane[None, None], [reach] * 4, mode="replicate")

    planes = []
    for plane in volume.flatten(0, 1):
        calm = functional.unfold(around(plane), size)[0].median(0).values.view_as(plane)
        for _ in range(2):
            calm = functional.avg_pool2d(around(calm), size, 1)[0, 0]
        planes.append(calm)
    return torch.stack(planes).view_as(volume)


def farthest(found: PartModes) -> Tensor:
    """The most pixels that each mode moves anything, ``(M,)``."""
    return found.modes.shapes.abs().square().sum(1).amax((1, 2)).sqrt()


def part_strengths(found: PartModes, labels: Tensor) -> Tensor:
    """Pixels that each part moves, ``(parts,)``: what moves more is taken to be in front."""
    amplitude = found.modes.shapes.abs().square().sum((0, 1)).sqrt()
    strength = torch.zeros(PARTS)
    for part in found.part.unique().tolist():
        strength[part] = amplitude[labels == part].quantile(TAIL).item()
    return strength


def _strongest(objects: Tensor, volume: Tensor) -> Tensor:
    """Objects as parts: 1, 2, ... the strongest, 0 the others."""
    power = volume[1:].square().sum((0, 1))
    ids = objects.unique().tolist()
    ids.sort(key=lambda one: -power[objects == one].sum().item())
    labels = torch.zeros_like(objects)
    for number, one in enumerate(ids[: PARTS - 1], 1):
        labels[objects == one] = number
    return labels


def _parts(labels: Tensor, strength: Tensor) -> list[dict[str, Any]]:
    """What the page needs to know of each part; depth grows towards the viewer."""
    described = []
    ranks = strength.argsort(stable=True).argsort().tolist()
    for part in range(PARTS):
        rows, columns = (labels == part).nonzero(as_tuple=True)
        centre = [0.5, 0.5]
        if len(rows):
            centre = [
                round((columns.float().mean().item() + 0.5) / labels.shape[1], 4),
                round((rows.float().mean().item() + 0.5) / labels.shape[0], 4),
            ]
        described.append({"depth": ranks[part] / PARTS, "centre": centre})
    return described


def _modes(found: PartModes, packed: Packed) -> list[dict[str, Any]]:
    """What the page needs to know of each mode besides its shape."""
    shapes = found.modes.shapes
    blown = shapes[:, 0].conj().sum((1, 2))  # how a steady wind along x pushes it
    size = blown.abs()
    push = torch.where(size > 1e-9, blown / size.clamp(min=1e-9), torch.ones_like(blown))
    largest = farthest(found)
    return [
        {
            "part": int(found.part[m]),
            "layer": int(packed.layer[m]),
            "scale": packed.scale[m].item(),
            "frequency": found.modes.frequencies[m].item(),
            "damping": found.modes.damping[m].item(),
            "largest": largest[m].item(),
            "push": [push[m].real.item(), push[m].imag.item()],
        }
        for m in range(len(shapes))
    ]


def _plate(picture: Image.Image, labels: Tensor, strength: Tensor) -> Image.Image:
    """What is behind the things in the picture."""
    reach = math.ceil(4 * float(strength.max()) * labels.shape[1] / picture.width) + 2
    front = in_front(labels, strength, min(reach, 64)).float()[None, None]
    front = functional.interpolate(front, (picture.height, picture.width), mode="nearest")
    front = functional.max_pool2d(front, 3, 1, 1)[0, 0] > 0  # its soft edge, too
    values = torch.from_numpy(np.asarray(picture).copy()).movedim(2, 0).float()
    filled = behind(values, front).round().clamp(0, 255).byte()
    return Image.fromarray(filled.movedim(0, 2).numpy())


def _data_address(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _check(modes: int, damping: float, largest: int, megabytes: float) -> None:
    if not 1 <= modes <= 64:
        raise ValueError(f"modes must be 1 to 64, not {modes}.")
    if not 0 < damping < 1:
        raise ValueError(f"damping must lie between 0 and 1, not at {damping:g}.")
    if largest < 64:
        raise ValueError(f"largest must be 64 pixels or more, not {largest}.")
    if not megabytes > 0:
        raise ValueError(f"megabytes must be positive, not {megabytes:g}.")
