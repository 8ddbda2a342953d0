"""A film of fields side by side, as a GIF that plays wherever a picture does."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dyngen.report.drawing import field_limits

BACKGROUND = (22, 24, 29)  # reads well on a light and on a dark page
TEXT = (232, 234, 238)
MISSING = (90, 94, 102)


def animation_gif(
    frames: Mapping[str, np.ndarray],
    *,
    labels: list[str] | None = None,
    panel: int = 224,
    frames_per_second: float = 8.0,
    diverging: bool | None = None,
) -> bytes:
    """Fields of several systems, side by side, through time.

    Args:
        frames: by system, (T, y, x); the truth first: it sets the colour range of all. A shorter
            system stays blank when it has ended.
        labels: a line for each step, such as its time; None: "step 1", ...
        panel: width of a panel in pixels.
        frames_per_second: speed; GIF can do 50 at most.
        diverging: as in :func:`~dyngen.report.drawing.field_limits`.

    Returns: the GIF file, looping for ever.

    Raises:
        ValueError: when there are no frames, or systems differ in their grid.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in frames.items()}
    shapes = {values.shape[1:] for values in arrays.values()}
    steps = max((len(values) for values in arrays.values()), default=0)
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or not steps:
        raise ValueError(
            "an animation needs (T, y, x) frames of one grid; got "
            f"{ {name: values.shape for name, values in arrays.items()} }."
        )
    low, high, colours = field_limits(next(iter(arrays.values())), diverging)
    height, width = next(iter(shapes))
    size = panel, max(24, min(2 * panel, round(panel * height / width)))
    gap, top, bottom = 8, 26, 22
    full = (gap + (size[0] + gap) * len(arrays), top + size[1] + bottom)
    title, small = ImageFont.load_default(14), ImageFont.load_default(12)
    palette = _palette(colours)
    pictures = []
    for step in range(steps):
        picture = Image.new("P", full, 0)
        picture.putpalette(palette)
        draw = ImageDraw.Draw(picture)
        draw.fontmode = "1"  # the palette has no shades for smooth letters
        for column, (name, values) in enumerate(arrays.items()):
            left = gap + column * (size[0] + gap)
            draw.text((left, 5), name, fill=1, font=title)
            if step < len(values):
                indices = _indices(values[step], low, high)
                # Whole pixels: what the model made, not what an interpolation made of it.
                picture.paste(
                    Image.fromarray(indices, "P").resize(size, Image.Resampling.NEAREST),
                    (left, top),
                )
        text = labels[step] if labels is not None else f"step {step + 1}"
        draw.text((gap, top + size[1] + 3), text, fill=1, font=small)
        done = round((full[0] - 2 * gap) * (step + 1) / steps)
        draw.rectangle((gap, full[1] - 3, gap + done, full[1] - 2), fill=2)
        pictures.append(picture)
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, 10 * round(100 / frames_per_second)),
        loop=0,
        optimize=False,
        disposal=1,
    )
    return file.getvalue()


FIRST = 3  # palette entries before the colour map: background, text, missing


def _palette(colours: str) -> list[int]:
    shades = mpl.colormaps[colours](np.linspace(0, 1, 256 - FIRST))[:, :3]
    fixed = np.array([BACKGROUND, TEXT, MISSING])
    return np.concatenate([fixed, np.round(255 * shades).astype(int)]).flatten().tolist()


def _indices(field: np.ndarray, low: float, high: float) -> np.ndarray:
    last = 255 - FIRST
    scaled = np.clip((field - low) / (high - low), 0, 1) * last
    known = np.where(np.isfinite(field), np.round(scaled), 0) + FIRST
    return np.where(np.isfinite(field), known, FIRST - 1).astype(np.uint8)
