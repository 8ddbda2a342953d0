"""Pieces that figures of scores are made of: lines with names, maps, colour bars."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from dyngen.report.style import FAINT, Look, label_ends, looks

DIVERGING = "RdBu_r"
SEQUENTIAL = "viridis"


def curves(axes: Axes, scores: xr.Dataset, score: str, dim: str) -> None:
    """A line per system that has the score, with its interval."""
    look = looks(scores["system"].values)
    x = scores[dim].values
    for system in systems_with(scores, score):
        values = scores[score].sel(system=system).values
        if f"{score}_interval" in scores and system != "truth":
            low, high = scores[f"{score}_interval"].sel(system=system).values
            axes.fill_between(x, low, high, color=look[system].colour, alpha=0.18, linewidth=0)
        line(axes, x, values, system, look[system])


def finished(figure: Figure, axes: Axes, scores: xr.Dataset, score: str, dim: str) -> Figure:
    """Axes of curves with their range, and the names of the systems where their lines end."""
    look = looks(scores["system"].values)
    known = scores[score].notnull().any("system").values
    last = scores[dim].values[known]
    if len(last) > 1:
        axes.set_xlim(last[0], last[-1])
    axes.set_xlabel(f"{dim} (steps)")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    ends = [
        (s, last_of(scores[score].sel(system=s).values), look[s].colour)
        for s in systems_with(scores, score)
    ]
    label_lines(figure, axes, ends)
    return figure


def label_lines(
    figure: Figure, axes: Axes, ends: list[tuple[str, float, str]], gap: float = 0.062
) -> None:
    """Names at the right edge, where the lines end; (name, height, colour), NaN left out."""
    figure.draw_without_rendering()  # so that heights are known
    label_ends(axes, [end for end in ends if math.isfinite(end[1])], gap)


def line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, look: Look) -> tuple[str, float, str]:
    """A line, or a point where there is but one; what :func:`label_lines` needs of it."""
    marker = "o" if np.isfinite(y).sum() == 1 else ""
    axes.plot(
        x,
        y,
        color=look.colour,
        linestyle=look.dashes,
        linewidth=look.width,
        marker=marker,
        label=name,
        zorder=3 if name == "truth" else 2.5,
    )
    return name, last_of(y), look.colour


def show_map(axes: Axes, values: np.ndarray, low: float, high: float, colours: str) -> AxesImage:
    """A field as an image, without ticks; what is missing is grey."""
    colour_map = mpl.colormaps[colours].with_extremes(bad=FAINT)
    image = axes.imshow(
        np.ma.masked_invalid(values), vmin=low, vmax=high, cmap=colour_map, interpolation="nearest"
    )
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return image


def field_limits(values: np.ndarray, diverging: bool | None = None) -> tuple[float, float, str]:
    """Range and colour map that show 99.5 % of the values, the same for every panel.

    Args:
        values: of the truth; NaN where missing.
        diverging: a range around zero; None: when there are values on both sides of it.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -1.0, 1.0, DIVERGING
    low, high = (float(v) for v in np.quantile(finite, [0.0025, 0.9975]))
    if diverging is None:
        diverging = low < 0 < high
    if diverging:
        limit = max(-low, high) or 1.0
        return -limit, limit, DIVERGING
    return low, high if high > low else low + 1.0, SEQUENTIAL


def colour_bar(figure: Figure, image: AxesImage, panels: Any, label: str) -> None:
    """A plain colour bar beside the panels."""
    bar = figure.colorbar(image, ax=panels, extend="both", shrink=0.85, aspect=28, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(label)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()


def unit_of(scores: xr.Dataset, square: bool = False) -> str:
    """The unit of the variable in brackets, or nothing."""
    unit = str(scores["units"].values) if "units" in scores.coords else "1"
    if unit in ("", "1"):
        return ""
    return f" (({unit})²)" if square else f" ({unit})"


def last_of(values: np.ndarray) -> float:
    """The last value that is known."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else math.nan


def ink() -> Look:
    """How the truth looks."""
    return looks(["truth"])["truth"]


def systems_with(scores: xr.Dataset, score: str) -> list[str]:
    """Systems that have a value of the score; the truth last, so that it is drawn on top."""
    values = scores[score]
    there = values.notnull().any([d for d in values.dims if d != "system"])
    found = [str(s) for s in scores["system"].values if bool(there.sel(system=s))]
    return sorted(found, key=lambda system: system == "truth")
