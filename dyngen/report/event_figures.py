"""Figures of events: reliability, ROC, Brier skill, and the fractions skill score by scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dyngen.report.drawing import label_lines, last_of, line, systems_with, unit_of
from dyngen.report.style import INK, SHADE, looks, styled

SQUARE = 2.75  # inches of a square panel


@styled
def brier_skill_by_lead(scores: xr.Dataset) -> Figure:
    """Brier skill score by lead, relative to the frequency of the event; a panel per threshold."""
    figure, panels = _panels(scores, width=3.1, height=2.9, sharey=True)
    look = looks(scores["system"].values)
    systems = systems_with(scores, "brier_skill")
    leads = scores["lead"].values
    lowest = float(scores["brier_skill"].sel(system=systems).min())
    for axes, event in zip(panels, scores["exceedance"].values, strict=True):
        axes.axhline(0, color=INK, linewidth=0.8)
        one = scores.sel(exceedance=event)
        for system in systems:
            _band(axes, leads, one, "brier_skill", system, look[system].colour)
            values = one["brier_skill"].sel(system=system).values
            line(axes, leads, values, system, look[system])
        _leads(axes, leads)
    panels[0].set_ylim(max(lowest, -0.6) - 0.05, 1.02)
    panels[0].set_ylabel("Brier skill score")
    of = scores["brier_skill"].isel(exceedance=-1)
    ends = [(s, last_of(of.sel(system=s).values), look[s].colour) for s in systems]
    label_lines(figure, panels[-1], ends)
    return figure


@styled
def reliability(scores: xr.Dataset) -> Figure:
    """How often events came by how probable they were said to be; below, how often that was."""
    events = scores["exceedance"].values
    figure = Figure(figsize=(SQUARE * len(events) + 0.7, SQUARE + 1.35), layout="constrained")
    grid = figure.subplots(
        2, len(events), squeeze=False, sharex=True, sharey="row", height_ratios=[3.4, 1]
    )
    look = looks(scores["system"].values)
    systems = [s for s in systems_with(scores, "reliability_frequency") if _members(scores, s) > 1]
    for upper, lower, event in zip(grid[0], grid[1], events, strict=True):
        one = scores.sel(exceedance=event)
        rate = float(one["event_frequency"].mean())
        upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
        upper.axhline(rate, color=SHADE, linewidth=0.8, linestyle=(0, (4, 3)))
        for system in systems:
            of = one.sel(system=system)
            known = (of["reliability_share"] > 0).values
            x = of["reliability_probability"].values[known]
            y = of["reliability_frequency"].values[known]
            _band(upper, x, one, "reliability_frequency", system, look[system].colour, known)
            line(upper, x, y, system, look[system])
            upper.plot(x, y, "o", color=look[system].colour, markersize=3, zorder=3)
            share = of["reliability_share"].values[known]
            line(lower, x, share, system, look[system])
        upper.set_title(_event(scores, event))
        upper.set_xlim(-0.02, 1.02)
        upper.set_ylim(-0.02, 1.02)
        lower.set_yscale("log")
        lower.set_xlabel("forecast probability")
        lower.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        upper.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    low = float(scores["reliability_share"].where(scores["reliability_share"] > 0).min())
    grid[1][0].set_ylim(max(low * 0.7, 1e-5), 1.4)
    grid[0][0].set_ylabel("observed frequency")
    grid[1][0].set_ylabel("share")
    grid[0][0].legend(loc="upper left", labelcolor="linecolor", handlelength=1.4)
    figure.align_ylabels(grid[:, 0])
    return figure


@styled
def roc(scores: xr.Dataset) -> Figure:
    """Hit rate against false alarm rate, all leads together, with the areas under the curves."""
    figure, panels = _panels(scores, width=SQUARE + 0.25, height=SQUARE + 0.65, sharey=True)
    look = looks(scores["system"].values)
    systems = systems_with(scores, "roc_hit_rate")
    for axes, event in zip(panels, scores["exceedance"].values, strict=True):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
        areas = []
        for system in systems:
            of = scores.sel(exceedance=event, system=system)
            x, y = of["roc_false_alarm_rate"].values, of["roc_hit_rate"].values
            line(axes, x, y, system, look[system])
            inner = slice(1, int(np.isfinite(x).sum()) - 1)
            axes.plot(x[inner], y[inner], "o", color=look[system].colour, markersize=2.6, zorder=3)
            areas.append((system, float(np.trapezoid(y[np.isfinite(y)], x[np.isfinite(x)]))))
        for row, (system, area) in enumerate(sorted(areas, key=lambda pair: pair[1])):
            axes.annotate(
                f"{system}  {area:.2f}",
                (0.97, 0.04 + 0.078 * row),
                xycoords="axes fraction",
                ha="right",
                fontsize=8,
                color=look[system].colour,
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_aspect("equal", adjustable="box")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.set_xlabel("false alarm rate")
    panels[0].set_ylabel("hit rate")
    return figure


@styled
def fractions_skill(scores: xr.Dataset) -> Figure:
    """Fractions skill score by lead: a row per threshold, a column per size of neighbourhood.

    The line is that of a forecast which has the right number of events, evenly spread.
    """
    widths = scores["neighbourhood"].values
    places = np.linspace(0, len(widths) - 1, min(3, len(widths))).round().astype(int)
    shown = widths[np.unique(places)]
    events = scores["exceedance"].values
    figure = Figure(
        figsize=(2.35 * len(shown) + 1.3, 2.05 * len(events) + 0.55), layout="constrained"
    )
    grid = figure.subplots(len(events), len(shown), squeeze=False, sharex=True, sharey=True)
    look = looks(scores["system"].values)
    systems = systems_with(scores, "fractions_skill")
    leads = scores["lead"].values
    for row, event in zip(grid, events, strict=True):
        one = scores.sel(exceedance=event)
        for axes, width in zip(row, shown, strict=True):
            here = one.sel(neighbourhood=width)
            useful = 0.5 + 0.5 * one["event_frequency"].values
            axes.plot(leads, useful, color=SHADE, linewidth=0.9, linestyle=(0, (4, 3)))
            for system in systems:
                _band(axes, leads, here, "fractions_skill", system, look[system].colour)
                line(
                    axes,
                    leads,
                    here["fractions_skill"].sel(system=system).values,
                    system,
                    look[system],
                )
            _leads(axes, leads, label=bool(axes in grid[-1]))
            if axes in grid[0]:
                axes.set_title(f"{width} × {width} cells" if width > 1 else "each cell")
        row[0].set_ylabel(f"FSS, {_event(scores, event)}", fontsize=8.5)
    grid[0][0].set_ylim(0, 1.02)
    # Where lines are furthest apart names fit beside them: the highest threshold.
    of = scores["fractions_skill"].sel(exceedance=events[-1], neighbourhood=shown[-1])
    ends = [(s, last_of(of.sel(system=s).values), look[s].colour) for s in systems]
    label_lines(figure, grid[-1][-1], ends, gap=0.1)
    return figure


def _panels(
    scores: xr.Dataset, *, width: float, height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A panel per event, side by side, each with its threshold above."""
    events = scores["exceedance"].values
    figure = Figure(figsize=(width * len(events) + 0.9, height), layout="constrained")
    panels = list(figure.subplots(1, len(events), squeeze=False, **options)[0])
    for axes, event in zip(panels, events, strict=True):
        axes.set_title(_event(scores, event))
    return figure, panels


def _event(scores: xr.Dataset, exceedance: float) -> str:
    """The event in words: the share of values that are above, and the threshold with its unit."""
    threshold = float(scores["threshold"].sel(exceedance=exceedance))
    unit = unit_of(scores).strip(" ()")
    return f"top {100 * (1 - exceedance):.3g} %, > {threshold:.3g}{unit and f' {unit}'}"


def _members(scores: xr.Dataset, system: str) -> int:
    return int(scores["members"].sel(system=system))


def _band(
    axes: Axes,
    x: np.ndarray,
    scores: xr.Dataset,
    score: str,
    system: str,
    colour: str,
    known: np.ndarray | None = None,
) -> None:
    """The interval of a score as a band, where there is one."""
    if f"{score}_interval" not in scores:
        return
    interval = scores[f"{score}_interval"].sel(system=system).transpose("bound", ...).values
    low, high = interval if known is None else interval[:, known]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _leads(axes: Axes, leads: np.ndarray, *, label: bool = True) -> None:
    if len(leads) > 1:
        axes.set_xlim(leads[0], leads[-1])
    if label:
        axes.set_xlabel("lead (steps)")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
