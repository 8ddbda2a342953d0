"""Writing frames to a film: MP4 and WebM by PyAV, GIF by Pillow.

A film is written beside its name and gets it when it is complete.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)

CODECS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("libx264", {"crf": "17", "preset": "medium"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0"}),
}
SUFFIXES = (*CODECS, ".gif")
COLOURS_FROM = 16  # frames of a GIF that its colours are chosen from
FASTEST = 50  # frames per second of a GIF, whose delays are in hundredths of a second


def check_film(path: Path, fps: float) -> None:
    """Refuse a film that could not be written, before there are frames to write.

    Raises:
        ValueError: For an unknown suffix, a rate that is not positive, or without PyAV.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path} ends in '{path.suffix}'; a film ends in one of {', '.join(SUFFIXES)}."
        )
    if not fps > 0:
        raise ValueError(f"fps must be positive, not {fps:g}.")
    if path.suffix.lower() in CODECS and importlib.util.find_spec("av") is None:
        raise ValueError(
            f"{path.suffix} needs PyAV: pip install 'dyngen[video]', or write a .gif instead."
        )


def needs_even_sides(path: Path) -> bool:
    """Whether a film's width and height must be even, as colours are kept for 2 by 2 pixels."""
    return path.suffix.lower() in CODECS


def write_film(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write frames ``(H, W, 3)`` uint8, as they come, and return how many there were.

    Args:
        path: Its suffix says which kind of film; folders are made if need be.
        frames: All of one size, even for MP4 and WebM.
        fps: Frames per second.

    Raises:
        ValueError: As `check_film`, or if there are no frames.
    """
    check_film(path, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    write = _write_video if path.suffix.lower() in CODECS else _write_gif
    try:
        count = write(partial, frames, fps)
        if not count:
            raise ValueError(f"There are no frames for {path}.")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    import av

    codec, options = CODECS[path.suffix.lower()]
    count = 0
    with av.open(str(path), "w") as film:
        stream: Any = None
        for frame in frames:
            if stream is None:
                rate = Fraction(fps).limit_denominator(1001)
                stream = film.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"  # what every browser plays
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            film.mux(stream.encode(picture))
            count += 1
        if stream is not None:
            film.mux(stream.encode())
    return count


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    pictures = [Image.fromarray(frame) for frame in frames]
    if not pictures:
        return 0
    if fps > FASTEST:
        log.info("%s: a GIF has %d frames per second at most, not %g", path, FASTEST, fps)
    every = max(1, len(pictures) // COLOURS_FROM)
    some = np.concatenate([np.asarray(picture) for picture in pictures[::every]])
    colours = Image.fromarray(some).quantize(256, dither=Image.Dither.NONE)
    # One palette for all, and no dithering: still parts stay still, and cost nothing.
    indexed = [p.quantize(palette=colours, dither=Image.Dither.NONE) for p in pictures]
    # Delays are rounded so that they add up.
    ends = [round(100 * (n + 1) / min(fps, FASTEST)) for n in range(len(pictures))]
    delays = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    indexed[0].save(
        path, save_all=True, append_images=indexed[1:], duration=delays, loop=0, disposal=1
    )
    return len(pictures)
