"""Figures of climates: quantiles beside quantiles, return levels, and waves."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from dyngen.report.drawing import colour_bar, ink, label_lines, line, systems_with, unit_of
from dyngen.report.style import FAINT, INK, SHADE, looks, one_axes, styled

MARKED = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
SHORTEST = 1.5  # return period that is shown, in blocks
FLOOR = 1e-6  # of all power: below, a ratio says nothing


@styled
def quantile_quantile(scores: xr.Dataset) -> Figure:
    """Quantiles of free runs, or else of forecasts, against those of the truth."""
    if "free_value_quantile" in scores:
        truth, score = scores["reference_value_quantile"].values, "free_value_quantile"
        name = "quantile of the free run"
    else:
        truth, score = scores["value_quantile"].sel(system="truth").values, "value_quantile"
        name = "quantile of the forecasts"
    figure, axes = one_axes(4.8, 3.9)
    look = looks(scores["system"].values)
    levels = scores["level"].values
    marked = np.isin(levels.round(6), MARKED)
    axes.axline((truth[0], truth[0]), slope=1, color=INK, linewidth=0.8)
    highest = lowest = truth
    ends = []
    for system in systems_with(scores, score):
        if system in ("truth", "persistence"):  # persistence shows the truth once more
            continue
        values = scores[score].sel(system=system).values
        ends.append(line(axes, truth, values, system, look[system]))
        axes.plot(truth[marked], values[marked], "o", color=look[system].colour, markersize=3)
        lowest, highest = np.fmin(lowest, values), np.fmax(highest, values)
    margin = 0.04 * (truth[-1] - truth[0])
    axes.set_xlim(truth[0] - margin, truth[-1] + margin)
    axes.set_ylim(np.nanmin(lowest) - margin, np.nanmax(highest) + margin)
    axes.set_xlabel(f"quantile of the truth{unit_of(scores)}")
    axes.set_ylabel(f"{name}{unit_of(scores)}")
    top = axes.secondary_xaxis("top")
    few = _apart(truth, levels, gap=0.11 * (truth[-1] - truth[0]))
    top.set_xticks(truth[few], [f"{100 * levels[i]:g} %" for i in few], fontsize=7.5)
    top.spines[:].set_visible(False)
    top.tick_params(length=0, pad=1)
    label_lines(figure, axes, ends)
    return figure


def _apart(truth: np.ndarray, levels: np.ndarray, gap: float) -> list[int]:
    """Which quantiles to name: the highest first, and others that are not too close to those."""
    chosen: list[int] = []
    for level in (0.9999, 0.0001, 0.5, 0.99, 0.01):
        (place,) = np.flatnonzero(np.isclose(levels, level))
        if all(abs(truth[place] - truth[other]) > gap for other in chosen):
            chosen.append(int(place))
    return sorted(chosen)


@styled
def return_levels(scores: xr.Dataset) -> Figure:
    """Return levels of the truth and of the free runs: fitted law, its interval, and the maxima."""
    figure, axes = one_axes(4.8, 3.3)
    look = looks(scores["system"].values)
    periods = scores["return_period"].values
    ends = []
    _return_curve(axes, scores, "reference_", None, INK)
    ends.append(line(axes, periods, scores["reference_return_level"].values, "truth", ink()))
    for system in systems_with(scores, "free_return_level"):
        _return_curve(axes, scores, "free_", system, look[system].colour)
        values = scores["free_return_level"].sel(system=system).values
        ends.append(line(axes, periods, values, system, look[system]))
    axes.set_xscale("log")
    axes.set_xlim(SHORTEST, periods[-1])
    ticks = [2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    steps = int(scores["return_period"].attrs.get("block_steps", 0))
    axes.set_xlabel(f"return period (blocks of {steps} steps)")
    axes.set_ylabel(f"return level{unit_of(scores)}")
    label_lines(figure, axes, ends)
    return figure


def _return_curve(
    axes: Axes, scores: xr.Dataset, prefix: str, system: str | None, colour: str
) -> None:
    """The interval of a return level and the maxima themselves."""
    of = scores if system is None else scores.sel(system=system)
    low, high = of[f"{prefix}return_level_interval"].transpose("bound", ...).values
    axes.fill_between(
        scores["return_period"].values, low, high, color=colour, alpha=0.13, linewidth=0
    )
    at = of[f"{prefix}maximum_period"].values
    inside = at >= SHORTEST
    axes.plot(
        at[inside],
        of[f"{prefix}maximum"].values[inside],
        "o",
        color=colour,
        markersize=2.6,
        alpha=0.65,
        markeredgewidth=0,
    )


@styled
def free_waves(scores: xr.Dataset) -> Figure:
    """Wavenumber-frequency spectra of the truth and the free runs, and how far they differ.

    Below the truth, one half of it beside the other: what differs by chance.
    """
    systems = systems_with(scores, "free_wave_spectrum")
    power = {"truth": scores["reference_wave_spectrum"]}
    power |= {s: scores["free_wave_spectrum"].sel(system=s) for s in systems}
    distance = {s: float(scores["free_wave_distance_db"].sel(system=s)) for s in systems}
    if "reference_wave_halves" in scores:
        distance["truth"] = float(scores["reference_wave_distance_db"])
    return _waves(scores, power, distance, scores.get("reference_wave_halves"))


@styled
def forecast_waves(scores: xr.Dataset) -> Figure:
    """Likewise of the forecasts, from the first to the last lead."""
    still = ("truth", "persistence")
    systems = [s for s in systems_with(scores, "wave_spectrum") if s not in still]
    power = {s: scores["wave_spectrum"].sel(system=s) for s in ["truth", *systems]}
    distance = {s: float(scores["wave_distance_db"].sel(system=s)) for s in systems}
    if "wave_halves" in scores:
        distance["truth"] = float(scores["wave_halves_distance_db"])
    return _waves(scores, power, distance, scores.get("wave_halves"))


def _waves(
    scores: xr.Dataset,
    power: dict[str, xr.DataArray],
    distance: dict[str, float],
    halves: xr.DataArray | None,
) -> Figure:
    """Two rows of panels: decibels of power, and of its ratio to the truth's."""
    axis = str(next(d for d in power["truth"].dims if d != "signed_wavenumber"))
    frequency = scores[axis].values[1:]
    wavenumber = scores["signed_wavenumber"].values
    values = {name: p.transpose(axis, "signed_wavenumber").values[1:] for name, p in power.items()}
    truth = values["truth"]
    known = truth > FLOOR * np.nansum(truth)
    top = 10 * np.log10(np.nanmax(truth[:, wavenumber != 0]))
    figure = Figure(figsize=(2.15 * len(values) + 1.2, 4.5), layout="constrained")
    grid = figure.subplots(2, len(values), squeeze=False, sharex=True, sharey=True)
    look = looks(scores["system"].values)
    reach = min(np.abs(wavenumber[known.any(0)]).max(initial=1), -wavenumber[0])
    half = 0.5 * (frequency[1] - frequency[0]) if len(frequency) > 1 else 0.5
    shown = {
        "aspect": "auto",
        "origin": "lower",
        "extent": (
            wavenumber[0] - 0.5,
            wavenumber[-1] + 0.5,
            frequency[0] - half,
            frequency[-1] + half,
        ),
        "interpolation": "nearest",
    }
    for (name, own), upper, lower in zip(values.items(), *grid, strict=True):
        ours, theirs = own, truth
        if name == "truth" and halves is not None:
            ours, theirs = halves.transpose("half", axis, "signed_wavenumber").values[:, 1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            decibels = np.ma.masked_invalid(10 * np.log10(own))
            ratio = np.ma.masked_invalid(np.where(known, 10 * np.log10(ours / theirs), np.nan))
        image = upper.imshow(decibels, vmin=top - 50, vmax=top, cmap="magma", **shown)
        difference = lower.imshow(ratio, vmin=-6, vmax=6, cmap="RdBu_r", **shown)
        upper.set_title(name, color=look[name].colour)
        if name in distance:
            against = "half against half" if name == "truth" else "against truth"
            lower.set_title(f"{against}: {distance[name]:.1f} dB", fontsize=8)
        lower.set_facecolor(FAINT)
        lower.set_xlabel("wavenumber")
        for axes in (upper, lower):
            axes.axvline(0, color=SHADE, linewidth=0.6)
            axes.grid(False)
            axes.set_xlim(-reach - 0.5, reach + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for row, drawn, name in zip(
        grid, (image, difference), ("power (dB)", "ratio (dB)"), strict=True
    ):
        row[0].set_ylabel("frequency (per step)")
        colour_bar(figure, drawn, list(row), name)
    return figure
