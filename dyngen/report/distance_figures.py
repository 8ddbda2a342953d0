"""Figures of feature distances: who is how far from the truth, by lead, and along a free run."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyngen.report.style import INK, SHADE, label_ends, looks, one_axes, styled


def distance_figures(distances: xr.Dataset) -> dict[str, Figure]:
    """All figures of `feature_distances`, by name."""
    figures = {}
    bars = [
        name
        for name, values in distances.items()
        if values.dims == ("system",) and not str(name).endswith(("_floor", "_spread"))
    ]
    if bars:
        figures["distances"] = distance_bars(distances, [str(name) for name in bars])
    for name, values in distances.items():
        kind = values.dims[-1]
        if values.ndim == 2 and not str(name).endswith("_floor"):
            figure = "distance_lead" if kind == "lead" else f"free_distance_{kind}"
            figures[figure] = distance_curves(distances, str(name))
    return figures


@styled
def distance_bars(distances: xr.Dataset, names: list[str]) -> Figure:
    """Distances of all systems, a panel for each; the line is what equal laws would score."""
    systems = [str(s) for s in distances["system"].values]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    height = 0.24 * len(systems) + 0.8
    figure = Figure(figsize=(2.9 * columns + 0.6, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    look = looks(systems)
    for axes, name in zip(panels, names, strict=False):
        _bars(axes, distances, name, systems, {s: look[s].colour for s in systems})
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def _bars(
    axes: Axes, distances: xr.Dataset, name: str, systems: list[str], colours: dict[str, str]
) -> None:
    known = [s for s in systems if not np.isnan(float(distances[name].sel(system=s)))]
    values = [float(distances[name].sel(system=s)) for s in known]
    places = np.arange(len(known))[::-1]
    least = 1e-3 * max([abs(v) for v in values], default=1.0)
    spread = f"{name}_spread"
    errors = (
        [float(distances[spread].sel(system=s)) for s in known] if spread in distances else None
    )
    axes.barh(
        places,
        values,
        height=0.62,
        color=[colours[s] for s in known],
        xerr=errors,
        error_kw={"elinewidth": 0.8, "ecolor": INK},
    )
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.3g}",
            (max(value, least), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    floor = f"{name}_floor"
    if floor in distances:
        for place, system in zip(places, known, strict=True):
            at = float(distances[floor].sel(system=system))
            axes.plot([at, at], [place - 0.42, place + 0.42], color=INK, linewidth=1.1)
    kind, _, features = name.removeprefix("free_").partition("_")
    free = "free run, " if name.startswith("free_") else ""
    axes.set_title(f"{free}{kind}\n{features}", fontsize=8.5)
    axes.set_yticks(places, known)
    axes.margins(x=0.2)
    axes.set_xlim(min(0.0, *values) if values else 0, None)
    axes.grid(False, axis="y")


@styled
def distance_curves(distances: xr.Dataset, name: str) -> Figure:
    """A distance by lead or along a free run, and dotted what equal laws would score."""
    values = distances[name]
    axis = str(values.dims[-1])
    figure, axes = one_axes()
    systems = [str(s) for s in distances["system"].values]
    look, ends = looks(systems), []
    for system in systems:
        of = values.sel(system=system).dropna(axis)
        if not of.size:
            continue
        line = look[system]
        axes.plot(of[axis], of, color=line.colour, linestyle=line.dashes, linewidth=line.width)
        ends.append((system, float(of[-1]), line.colour))
        floor = distances[f"{name}_floor"].sel(system=system).sel({axis: of[axis]})
        if system == systems[-1] or system == systems[0]:
            axes.plot(of[axis], floor, color=SHADE, linestyle=":", linewidth=1.2)
    positive = values.where(values > 0)
    if float(positive.max()) > 30 * float(positive.min()):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
    kind, _, features = name.removeprefix("free_").removesuffix("_lead").partition("_")
    axes.set_ylabel(f"{kind}, {features}")
    axes.set_xlabel("lead (steps)" if axis == "lead" else "first step of the window")
    if len(values[axis]) > 1:
        axes.set_xlim(float(values[axis][0]), float(values[axis][-1]))
    figure.canvas.draw_idle()
    label_ends(axes, ends)
    return figure
