"""Figures of rendered films: scores by frame, distances along a film, pictures, and x-t slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dyngen.report.style import INK, SHADE, label_ends, looks, styled

LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
GAP, LINE = 6, 18  # pixels between pictures, and of a line of text
SHADES = 256  # colours of a sheet: fewer make a smaller file


@styled
def score_curves(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """How near frames are to the true ones, by their time, a panel for each score.

    Args:
        scores: By score and system, one value for each frame.
    """
    titles = {name: LABELS.get(name, name.replace("_", "\n", 1)) for name in scores}
    starts = {name: range(1, 1 + len(next(iter(of.values())))) for name, of in scores.items()}
    return _curves(scores, titles, starts, "frame")


@styled
def sliding_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Distances in a window that slides along films, a panel for each.

    Args:
        curves: By name, `start` of the windows, one value for each by system, and dotted the
            `floor`, what samples of their size from one law would score.
    """
    systems = {
        name: {key: values for key, values in of.items() if key not in ("start", "floor")}
        for name, of in curves.items()
    }
    titles = {name: name.replace("_", "\n", 1) for name in curves}
    starts = {name: of["start"] for name, of in curves.items()}
    figure = _curves(systems, titles, starts, "first frame of the window", logarithmic=True)
    for axes, of in zip(figure.axes, curves.values(), strict=True):
        axes.plot(of["start"], of["floor"], color=SHADE, linestyle=":", linewidth=1.2)
    return figure


def picture_sheet(
    films: Mapping[str, np.ndarray], frames: Sequence[int], zoom: int = 2
) -> Image.Image:
    """Some frames of a film, a row for each system.

    Args:
        films: (T, H, W, 3) uint8 by system.
        frames: Which, from 0.
        zoom: Pixels of the sheet for each of the film, along each side.
    """
    rows = {name: [film[frame] for frame in frames] for name, film in films.items()}
    return _sheet(rows, [f"frame {frame + 1}" for frame in frames], zoom)


def time_slices(films: Mapping[str, np.ndarray], row: int, zoom: int = 2) -> Image.Image:
    """A row of a film's pixels through time, downwards, side by side for each system.

    Args:
        films: (T, H, W, 3) uint8 by system.
        row: Which.
        zoom: As in `picture_sheet`.
    """
    return _sheet({"": [film[:, row] for film in films.values()]}, list(films), zoom)


def _curves(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    titles: Mapping[str, str],
    starts: Mapping[str, Sequence[float]],
    below: str,
    logarithmic: bool = False,
) -> Figure:
    figure = Figure(figsize=(2.5 * len(values) + 1.4, 2.7), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(values), squeeze=False)[0])
    look = looks(dict.fromkeys(system for of in values.values() for system in of))
    for axes, (name, of) in zip(panels, values.items(), strict=True):
        for system, line in of.items():
            axes.plot(
                starts[name],
                line,
                color=look[system].colour,
                linewidth=1.2,
                marker="o" if len(line) == 1 else "",
            )
        if logarithmic:
            axes.set_yscale("log")
        axes.set_title(titles[name], fontsize=8.5)
        axes.set_xlabel(below)
        axes.margins(x=0)
    figure.draw_without_rendering()  # so that heights are known
    last = list(values.values())[-1]
    ends = [(s.replace("_", " "), float(line[-1]), look[s].colour) for s, line in last.items()]
    label_ends(panels[-1], ends)
    return figure


def _sheet(
    rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], zoom: int
) -> Image.Image:
    """Pictures (h, w, 3) uint8 in rows with names at their left and titles above."""
    font = ImageFont.load_default(13)
    names = {name: name.replace("_", "\n") for name in rows}
    margin = max(
        (
            int(font.getlength(word)) + 2 * GAP
            for n in names.values()
            for word in n.split("\n")
            if n
        ),
        default=0,
    )
    height, width = (zoom * size for size in next(iter(rows.values()))[0].shape[:2])
    size = margin + (width + GAP) * len(titles), LINE + (height + GAP) * len(rows)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        left = margin + column * (width + GAP)
        draw.text((left, 1), title.replace("_", " "), fill=INK, font=font)
        for line, pictures in enumerate(rows.values()):
            # Whole pixels: what was rendered, not what an interpolation makes of it.
            picture = Image.fromarray(np.ascontiguousarray(pictures[column]))
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, LINE + line * (height + GAP)))
    for line, name in enumerate(names.values()):
        draw.multiline_text((GAP // 2, LINE + line * (height + GAP)), name, fill=INK, font=font)
    return sheet.quantize(SHADES, dither=Image.Dither.NONE)
