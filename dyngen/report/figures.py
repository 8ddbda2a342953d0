"""The figures of a report: what a paper would show of the scores, and the fields themselves.

Each function takes the scores of :func:`~dyngen.report.evaluate.evaluate` and a variable and
returns a matplotlib Figure; :func:`score_figures` draws all there are scores for. The truth is
black, and lines carry their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter

from dyngen.report.climate_figures import (
    forecast_waves,
    free_waves,
    quantile_quantile,
    return_levels,
)
from dyngen.report.drawing import (
    colour_bar,
    curves,
    field_limits,
    finished,
    ink,
    label_lines,
    last_of,
    line,
    show_map,
    systems_with,
    unit_of,
)
from dyngen.report.event_figures import brier_skill_by_lead, fractions_skill, reliability, roc
from dyngen.report.field_figures import energy_by_lead, spread_skill_by_scale, variogram_by_lead
from dyngen.report.style import INK, SHADE, label_ends, looks, one_axes, styled

OF_REFERENCE = {"free_std": "reference_std", "free_mean": "reference_mean"}


def score_figures(scores: xr.Dataset, variable: str | None = None) -> dict[str, Figure]:
    """All figures of the scores of one variable, by name, in the order of a report.

    Args:
        scores: what `evaluate` returns.
        variable: which one; None: the first.
    """
    name = str(scores["variable"].values[0]) if variable is None else variable
    one = scores.sel(variable=name)
    needs: list[tuple[str, str, Callable[[xr.Dataset], Figure]]] = [
        ("crps", "crps", crps_by_lead),
        ("spread_skill", "spread_skill", spread_skill_by_lead),
        ("bias", "bias", bias_by_lead),
        ("rank_histogram", "rank_histogram", rank_histograms),
        ("spread_skill_by_scale", "spread_skill_by_scale", spread_skill_by_scale),
        ("energy_score", "energy_score", energy_by_lead),
        ("variogram_score", "variogram_score", variogram_by_lead),
        ("reliability", "reliability_frequency", reliability),
        ("roc", "roc_hit_rate", roc),
        ("brier_skill", "brier_skill", brier_skill_by_lead),
        ("fractions_skill", "fractions_skill", fractions_skill),
        ("autocorrelation", "autocorrelation", autocorrelations),
        ("increments", "increment_histogram", increments),
        ("spectrum", "spectrum", spectra),
        ("waves", "wave_distance_db", forecast_waves),
        ("stability", "free_std", stability),
        ("free_autocorrelation", "free_autocorrelation", free_autocorrelations),
        ("free_spectrum", "free_spectrum", free_spectra),
        ("free_values", "free_value_histogram", free_values),
        ("quantile_quantile", "value_quantile", quantile_quantile),
        ("return_levels", "free_return_level", return_levels),
        ("free_waves", "free_wave_spectrum", free_waves),
        ("free_bias_map", "free_mean_map", free_bias_maps),
    ]
    return {
        figure: draw(one)
        for figure, score, draw in needs
        if score in one and bool(one[score].notnull().any())
    }


# By lead


@styled
def crps_by_lead(scores: xr.Dataset) -> Figure:
    """Fair CRPS by lead with 95 % intervals."""
    figure, axes = one_axes()
    curves(axes, scores, "crps", "lead")
    axes.set_ylim(0, None)
    axes.set_ylabel(f"fair CRPS{unit_of(scores)}")
    return finished(figure, axes, scores, "crps", "lead")


@styled
def spread_skill_by_lead(scores: xr.Dataset) -> Figure:
    """Spread-skill ratio by lead with 95 % intervals; 1 is calibrated."""
    figure, axes = one_axes()
    axes.axhline(1, color=INK, linewidth=0.8)
    curves(axes, scores, "spread_skill", "lead")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.7), max(high, 1.3))
    axes.set_ylabel("spread / skill")
    return finished(figure, axes, scores, "spread_skill", "lead")


@styled
def bias_by_lead(scores: xr.Dataset) -> Figure:
    """Mean error by lead with 95 % intervals."""
    figure, axes = one_axes()
    axes.axhline(0, color=INK, linewidth=0.8)
    curves(axes, scores, "bias", "lead")
    axes.set_ylabel(f"bias{unit_of(scores)}")
    return finished(figure, axes, scores, "bias", "lead")


@styled
def rank_histograms(scores: xr.Dataset) -> Figure:
    """Where the truth ranks among the members, all leads together; flat is calibrated."""
    frequency = scores["rank_histogram"].mean("lead", skipna=True)
    systems = systems_with(scores, "rank_histogram")
    figure = Figure(figsize=(1.6 * max(len(systems), 2) + 0.6, 2.5), layout="constrained")
    panels = figure.subplots(1, len(systems), sharey=True, squeeze=False)[0]
    look = looks(scores["system"].values)
    for axes, system in zip(panels, systems, strict=True):
        values = (
            frequency.sel(system=system).dropna("rank").values
            * scores["members"].sel(system=system).item()
        )
        values = values * (len(values) / (len(values) - 1))
        axes.bar(
            np.linspace(0, 1, len(values)),
            values,
            width=0.86 / max(len(values) - 1, 1),
            color=look[system].colour,
        )
        axes.axhline(1, color=INK, linewidth=0.8)
        distance = float(scores["rank_distance_from_flat"].sel(system=system))
        p_value = float(scores["rank_p_value"].sel(system=system))
        told = f"p {p_value:.2f}" if p_value >= 0.01 else f"p {p_value:.1g}"
        axes.set_title(f"{system}\nKL {distance:.3f}, {told}", color=look[system].colour)
        axes.set_xticks([0, 1], ["below\nall", "above\nall"])
        axes.grid(False, axis="x")
    panels[0].set_ylabel("frequency / expected")
    return figure


# In time


@styled
def autocorrelations(scores: xr.Dataset) -> Figure:
    """Correlation by lag within the forecasts, and of the truth over the same windows."""
    figure, axes = one_axes()
    axes.axhline(0, color=INK, linewidth=0.6)
    curves(axes, scores, "autocorrelation", "lag")
    axes.set_ylabel("autocorrelation")
    return finished(figure, axes, scores, "autocorrelation", "lag")


@styled
def free_autocorrelations(scores: xr.Dataset) -> Figure:
    """Correlation by lag in the free runs, and of held-out truth."""
    figure, axes = one_axes()
    axes.axhline(0, color=INK, linewidth=0.6)
    lags = scores["lag"].values
    if "reference_autocorrelation_range" in scores:
        low, high = scores["reference_autocorrelation_range"].values
        axes.fill_between(lags, low, high, color=SHADE, alpha=0.3, linewidth=0)
    ends = [line(axes, lags, scores["reference_autocorrelation"].values, "truth", ink())]
    look = looks(scores["system"].values)
    for system in systems_with(scores, "free_autocorrelation"):
        values = scores["free_autocorrelation"].sel(system=system).values
        ends.append(line(axes, lags, values, system, look[system]))
    axes.set_ylabel("autocorrelation (free run)")
    axes.set_xlabel("lag (steps)")
    axes.margins(x=0)
    label_lines(figure, axes, ends)
    return figure


@styled
def increments(scores: xr.Dataset) -> Figure:
    """Distribution of the change from one frame to the next."""
    systems = [s for s in systems_with(scores, "increment_histogram") if s != "persistence"]
    values = {s: scores["increment_histogram"].sel(system=s).values for s in systems}
    return _distributions(scores, scores["increment"].values, values, "increment in one step")


@styled
def free_values(scores: xr.Dataset) -> Figure:
    """Distribution of anomalies in the free runs, and of held-out truth."""
    values = {"truth": scores["reference_value_histogram"].values}
    for system in systems_with(scores, "free_value_histogram"):
        values[system] = scores["free_value_histogram"].sel(system=system).values
    return _distributions(scores, scores["value"].values, values, "anomaly in the free run")


@styled
def stability(scores: xr.Dataset) -> Figure:
    """Standard deviation, mean and spectrum of the free runs, step by step; shaded: the truth."""
    rows = [
        ("free_std", f"std{unit_of(scores)}", "free_std_range_of_truth"),
        ("free_mean", f"mean{unit_of(scores)}", "free_mean_range_of_truth"),
        ("free_log_spectral_distance_db_block", "LSD (dB)", None),
    ]
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    panels = figure.subplots(len(rows), 1, sharex=True)
    look = looks(scores["system"].values)
    systems = systems_with(scores, "free_std")
    for axes, (score, name, band) in zip(panels, rows, strict=True):
        if band in scores:
            low, high = scores[band].sel(system=systems[0]).values
            axes.axhspan(low, high, color=SHADE, alpha=0.3, linewidth=0)
        for system in systems:
            steps = scores["free_step"].sel(system=system).values
            line(axes, steps, scores[score].sel(system=system).values, system, look[system])
        if score in OF_REFERENCE:
            axes.axhline(float(scores[OF_REFERENCE[score]]), color=INK, linewidth=1.2)
        else:
            axes.set_ylim(0, None)
        axes.set_ylabel(name)
        axes.margins(x=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    panels[-1].set_xlabel("step of the free run")
    figure.align_ylabels(panels)
    figure.draw_without_rendering()  # so that heights are known
    for axes, (score, _, _) in zip(panels, rows, strict=True):
        ends = [(s, last_of(scores[score].sel(system=s).values), look[s].colour) for s in systems]
        if score in OF_REFERENCE:
            ends.append(("truth", float(scores[OF_REFERENCE[score]]), INK))
        label_ends(axes, [end for end in ends if math.isfinite(end[1])], gap=0.19)
    return figure


# In space


@styled
def spectra(scores: xr.Dataset) -> Figure:
    """Isotropic spectra of the forecasts, all leads together, and their ratio to the truth's."""
    systems = [s for s in systems_with(scores, "spectrum") if s != "truth"]
    of = {s: scores["spectrum"].sel(system=s).values for s in systems}
    return _spectra(scores, scores["spectrum"].sel(system="truth").values, of)


@styled
def free_spectra(scores: xr.Dataset) -> Figure:
    """Isotropic spectra of the last fifth of the free runs, and their ratio to held-out truth."""
    systems = systems_with(scores, "free_end_spectrum")
    of = {s: scores["free_end_spectrum"].sel(system=s).values for s in systems}
    return _spectra(scores, scores["reference_spectrum"].values, of)


@styled
def free_bias_maps(scores: xr.Dataset) -> Figure:
    """Time mean of the free runs less that of held-out truth."""
    systems = systems_with(scores, "free_mean_map")
    error = {
        s: scores["free_mean_map"].sel(system=s).values - scores["reference_mean_map"].values
        for s in systems
    }
    limits = field_limits(np.stack(list(error.values())), diverging=True)
    height, width = next(iter(error.values())).shape
    figure = Figure(
        figsize=(2.4 * len(systems) + 0.9, 2.4 * min(max(height / width, 0.4), 2) + 0.4),
        layout="constrained",
    )
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for axes, system in zip(panels, systems, strict=True):
        image = show_map(axes, error[system], *limits)
        axes.set_title(system)
    colour_bar(figure, image, panels, f"bias of the time mean{unit_of(scores)}")
    return figure


@styled
def field_panels(
    systems: Mapping[str, xr.DataArray],
    *,
    leads: Sequence[int] = (1, 2, 5, 10),
    label: str = "",
    diverging: bool | None = None,
) -> Figure:
    """Fields at a few leads, a row per system, all on one scale.

    Args:
        systems: by name, (lead, y, x); the truth first.
        leads: steps from 1; those beyond the forecasts are left out.
        label: of the colour bar, with units.
        diverging: a map around zero; None: when the truth has values on both sides of it.
    """
    arrays = {name: np.asarray(data.values) for name, data in systems.items()}
    first = next(iter(arrays.values()))
    columns = [lead for lead in leads if lead <= len(first)]
    limits = field_limits(first, diverging)
    aspect = min(max(first.shape[1] / first.shape[2], 0.35), 2.0)
    figure = Figure(
        figsize=(1.55 * len(columns) + 1.5, (1.55 * aspect + 0.06) * len(arrays) + 0.3),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02),
    )
    panels = figure.subplots(len(arrays), len(columns), squeeze=False)
    for row, (name, values) in zip(panels, arrays.items(), strict=True):
        for axes, lead in zip(row, columns, strict=True):
            image = show_map(axes, values[lead - 1], *limits)
            if axes in panels[0]:
                axes.set_title(f"step {lead}", loc="center")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    colour_bar(figure, image, panels, label)
    return figure


@styled
def hovmoller(
    systems: Mapping[str, xr.DataArray],
    *,
    label: str = "",
    diverging: bool | None = None,
) -> Figure:
    """A row of the grid through time (x-t slice), one panel per system, all on one scale.

    Args:
        systems: by name, (time, x); the truth first. They may differ in length.
        label: of the colour bar, with units.
        diverging: as in :func:`field_panels`.
    """
    arrays = {name: np.asarray(data.values) for name, data in systems.items()}
    limits = field_limits(next(iter(arrays.values())), diverging)
    figure = Figure(figsize=(1.75 * len(arrays) + 1.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(arrays), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(panels, arrays.items(), strict=True):
        image = show_map(axes, values, *limits)
        axes.set_aspect("auto")
        axes.set_title(name)
        axes.set_xlabel("x")
        axes.tick_params(axis="y", left=True, labelleft=axes is panels[0])
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel("step")
    colour_bar(figure, image, panels, label)
    return figure


# Pieces


def _distributions(
    scores: xr.Dataset, x: np.ndarray, values: Mapping[str, np.ndarray], name: str
) -> Figure:
    figure, axes = one_axes()
    look = looks(dict.fromkeys(["truth", *map(str, scores["system"].values)]))
    peak = max(float(np.nanmax(v)) for v in values.values())
    inside = np.zeros(len(x), dtype=bool)
    for system, density in values.items():
        seen = np.where(density > 0, density, np.nan)
        line(axes, x, seen, system, look[system])
        inside |= density > 1e-5 * peak
    axes.set_yscale("log")
    axes.set_ylim(1e-5 * peak, 3 * peak)
    if inside.any():
        axes.set_xlim(x[inside][0], x[inside][-1])
    axes.set_xlabel(f"{name}{unit_of(scores)}")
    axes.set_ylabel("probability density")
    axes.legend(loc="upper right", labelcolor="linecolor", handlelength=1.6)
    return figure


def _spectra(scores: xr.Dataset, truth: np.ndarray, of: Mapping[str, np.ndarray]) -> Figure:
    complete = int(scores["wavenumber"].attrs.get("complete_to", len(truth) - 1))
    shown = slice(1, complete + 1)
    k = scores["wavenumber"].values[shown]
    look = looks(scores["system"].values)
    figure = Figure(figsize=(4.8, 3.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    line(upper, k, truth[shown], "truth", ink())
    lower.axhline(0, color=INK, linewidth=0.8)
    for edge in (-3, 3):
        lower.axhline(edge, color=SHADE, linewidth=0.7, linestyle=(0, (4, 3)))
    for system, power in of.items():
        line(upper, k, power[shown], system, look[system])
        with np.errstate(divide="ignore", invalid="ignore"):
            decibels = 10 * np.log10(power[shown] / truth[shown])
        line(lower, k, decibels, system, look[system])
    upper.set_xscale("log")
    upper.set_yscale("log")
    upper.set_xlim(k[0], k[-1])
    ticks = [t for t in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if k[0] <= t <= k[-1]]
    lower.set_xticks(ticks, [str(t) for t in ticks])
    lower.xaxis.set_minor_formatter(NullFormatter())
    low, high = lower.get_ylim()
    lower.set_ylim(max(min(low, -4), -12), min(max(high, 4), 12))
    upper.set_ylabel(f"power{unit_of(scores, square=True)}")
    lower.set_ylabel("to truth (dB)")
    lower.set_xlabel("wavenumber (waves per side)")
    upper.legend(loc="lower left", labelcolor="linecolor", handlelength=1.6)
    figure.align_ylabels([upper, lower])
    return figure
