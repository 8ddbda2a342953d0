"""How figures look: colours that colour-blind readers tell apart, thin axes, labels on the lines.

Every colour is one of a few fixed values, so that the report can swap them for those of a dark
page. Styles hold inside :func:`styled` alone; no state of pyplot is touched.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1b1d22"  # text, axes, and the truth
FAINT = "#d5d8de"  # grid lines
SHADE = "#9aa0aa"  # ranges of the truth, persistence

Dashes = str | tuple[float, tuple[float, ...]]

# Okabe & Ito (2008), the darker ones first; each with its counterpart for a dark page.
COLOURS = {
    "#0072b2": "#5ab4f0",
    "#d55e00": "#ff9354",
    "#009e73": "#3fd0a4",
    "#cc79a7": "#eda3cb",
    "#8a6d00": "#e0c04a",
    "#5f4bb6": "#a99cf0",
}
DASHES: tuple[Dashes, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1)))
DARK_PAGE = {INK: "#e8eaee", FAINT: "#363a42", SHADE: "#8b929d", **COLOURS}
FIXED: dict[str, tuple[str, Dashes]] = {
    "truth": (INK, "-"),
    "reference": (INK, "-"),
    "persistence": ("#777d87", (0, (5, 2))),
    "climatology": ("#777d87", (0, (1, 1.5))),
}
DARK_PAGE["#777d87"] = "#a3a9b4"

RC: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.useoffset": False,
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Look:
    """Colour and dashes of a system's line."""

    colour: str
    dashes: Dashes
    width: float = 1.6


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """A look for each system: the truth in ink, what is to be beaten in grey, others in colour.

    Where there are more than colours, the next ones are dashed.
    """
    free = itertools.cycle(itertools.product(DASHES, COLOURS))
    found = {}
    for system in systems:
        if system in FIXED:
            colour, dashes = FIXED[system]
            found[system] = Look(colour, dashes, 2.0 if colour == INK else 1.3)
        else:
            dashes, colour = next(free)
            found[system] = Look(colour, dashes)
    return found


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context({**RC, "figure.facecolor": "white", "axes.facecolor": "none"}):
            return draw(*args, **kwargs)

    return inside


def one_axes(width: float = 4.8, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def label_ends(axes: Axes, labels: Sequence[tuple[str, float, str]], gap: float = 0.062) -> None:
    """Write names at the right edge, at the heights of their lines, moved apart where they meet.

    Args:
        labels: name, height in data coordinates, colour.
        gap: least distance between two names, as a share of the height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    places = sorted(
        (min(max(float(to_axes.transform((x, y))[1]), 0.0), 1.0), name, colour)
        for name, y, colour in labels
    )
    heights = _apart([y for y, _, _ in places], gap)
    for height, (_, name, colour) in zip(heights, places, strict=True):
        axes.annotate(
            name,
            (1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
        )


def _apart(heights: list[float], gap: float) -> list[float]:
    """Ascending heights at least ``gap`` apart, moved as little as need be (pool adjacent)."""
    groups: list[list[float]] = []  # [centre, count]
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1:
            (low, n), (high, m) = groups[-2:]
            if high - low >= gap * (n + m) / 2:
                break
            groups[-2:] = [[(low * n + high * m) / (n + m), n + m]]
    return [
        centre + gap * (i - (count - 1) / 2) for centre, count in groups for i in range(int(count))
    ]
