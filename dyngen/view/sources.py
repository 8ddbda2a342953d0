"""Reading what the page shows: a picture, and the motion of a clip or a spectral volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dyngen.motion.spectral_volume import FRAMES, spectral_volume

SAMPLED_DAMPING = 0.05  # of the terms of a sampled volume, whose phases say nothing of it


@dataclass(frozen=True)
class Motion:
    """The motion of one picture.

    Attributes:
        volume: ``(K, 4, H, W)`` in pixels of its own grid, the convention of
            :mod:`dyngen.motion.spectral_volume`.
        period: T, frames.
        frames_per_second: of the video.
        damping: None if the motion was seen, and its damping can be; a ratio if it was sampled.
        objects: labels ``(H, W)`` of the things in the picture, if they are known.
        source: where it comes from, in words.
    """

    volume: Tensor
    period: int
    frames_per_second: float
    damping: float | None
    objects: Tensor | None
    source: str


def read_image(path: Path, largest: int) -> Image.Image:
    """A picture in RGB, upright, its longer side at most ``largest`` pixels.

    Raises: ValueError if the file is no picture.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"There is no picture at {path}; check the path.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture; give a PNG or JPEG.") from error
    return _no_larger(image, largest)


def read_start_frame(path: Path, clip: int, largest: int) -> Image.Image:
    """The picture that a motion begins with, its longer side at most ``largest`` pixels.

    Args:
        path: of a motion as :func:`read_motion` reads it, with ``image (clip, y, x, channel)`` in
            bytes of red, green and blue.
        clip: which one, if there are several.
        largest: pixels.

    Raises: ValueError if the motion is not there or says not what it is of.
    """
    _check_there(path)
    held = _open(path) if path.is_dir() else _load(path)
    if "image" not in held:
        raise ValueError(f"{path} has no start frame ('image'); give the picture that it moves.")
    pixels = np.asarray(held["image"])
    if pixels.ndim == 4:
        _check_clip(path, clip, len(pixels))
        pixels = pixels[clip]
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path}: the image is {pixels.dtype} of shape {tuple(pixels.shape)}; it must be bytes "
            "(H, W, 3)."
        )
    return _no_larger(Image.fromarray(pixels), largest)


def _no_larger(image: Image.Image, largest: int) -> Image.Image:
    ratio = largest / max(image.size)
    if ratio >= 1:
        return image
    width, height = (max(1, round(n * ratio)) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def read_motion(path: Path, clip: int = 0, highest: float = 4.0) -> Motion:
    """The motion of a clip in a Zarr, or a spectral volume in a ``.pt`` or ``.npz`` file.

    A Zarr holds ``displacement (clip, time, axis, y, x)`` in pixels from the start frame, and
    perhaps ``fps``, ``object`` and ``source``. A file holds ``volume (K, 4, H, W)`` or
    ``(clip, K, 4, H, W)``, and perhaps ``period`` and ``frames_per_second``; a ``.pt`` may also be
    the tensor itself.

    Args:
        path: of the motion.
        clip: which one, if there are several.
        highest: hertz up to which a clip is analysed.

    Raises: ValueError if there is no such motion.
    """
    _check_there(path)
    motion = _of_clip(path, clip, highest) if path.is_dir() else _of_file(path, clip)
    if not bool(torch.isfinite(motion.volume).all()):
        raise ValueError(
            f"{path}: clip {clip} has displacements that are not finite; take another."
        )
    return motion


def _of_clip(path: Path, clip: int, highest: float) -> Motion:
    data = _open(path)
    if "displacement" not in data:
        raise ValueError(
            f"{path} has no variable 'displacement' (it has {', '.join(map(str, data)) or 'none'});"
            " give a motion.zarr."
        )
    if "clip" in data.dims:
        _check_clip(path, clip, data.sizes["clip"])
        data = data.isel(clip=clip)
    moved = data["displacement"].transpose("time", "axis", "y", "x").values
    frames = len(moved)
    if frames < 5:
        raise ValueError(f"{path}: clip {clip} has {frames} frames; modes need 5 or more.")
    rate = float(data["fps"]) if "fps" in data else float(data.attrs.get("fps", 30.0))
    terms = min(max(math.ceil(highest * frames / rate) + 1, 3), (frames + 1) // 2)
    volume = spectral_volume(torch.from_numpy(moved.astype(np.float32))[None], terms)[0]
    objects = None
    if "object" in data:
        objects = torch.from_numpy(data["object"].transpose("y", "x").values.astype(np.int64))
    source = str(data["source"].values) if "source" in data else path.name
    return Motion(volume, frames, rate, None, objects, source)


def _open(path: Path) -> xr.Dataset:
    try:
        return xr.open_zarr(path, consolidated=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be opened as a Zarr; give a motion.zarr.") from error


def _of_file(path: Path, clip: int) -> Motion:
    held = _load(path)
    if "volume" not in held:
        raise ValueError(f"{path} has no 'volume'; it must hold a spectral volume (K, 4, H, W).")
    volume = torch.as_tensor(held["volume"]).float()
    if volume.ndim == 5:
        _check_clip(path, clip, len(volume))
        volume = volume[clip]
    if volume.ndim != 4 or volume.shape[1] != 4 or len(volume) < 2:
        raise ValueError(
            f"{path}: the volume has shape {tuple(volume.shape)}; it must be (K, 4, H, W) with K "
            "of 2 or more."
        )
    return Motion(
        volume,
        int(held.get("period", FRAMES)),
        float(held.get("frames_per_second", 30.0)),
        SAMPLED_DAMPING,
        None,
        path.name,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes of the reader
        raise ValueError(
            f"{path} cannot be read as a motion; give a motion.zarr, or a spectral volume as .pt "
            "or .npz."
        ) from error
    return loaded if isinstance(loaded, dict) else {"volume": loaded}


def _check_there(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"There is no motion at {path}; check the path.")


def _check_clip(path: Path, clip: int, count: int) -> None:
    if not 0 <= clip < count:
        raise ValueError(f"{path} has clips 0 to {count - 1}, no clip {clip}.")
