"""Figures of drift: the run's first and last years beside the reference and its own spread."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from dyngen.report.drawing import DIVERGING, colour_bar, field_limits, label_lines, line
from dyngen.report.drift_scores import Trend, trend
from dyngen.report.style import FAINT, INK, SHADE, Look, one_axes, styled

FIRST, LAST = Look("#0072b2", "-"), Look("#d55e00", "-")
REFERENCE = Look(INK, "-", 2.0)
LOOKS = {"reference": REFERENCE, "first": FIRST, "last": LAST}
DRAWN = ("reference", "first", "last")
MONTHS = "JFMAMJJASOND"
SHOWN_SPELL = 60  # days


def drift_figures(curves: xr.Dataset) -> dict[str, Figure]:
    """Name -> figure, of one variable.

    Args:
        curves: as `drift_curves` gives it, of one variable.
    """
    figures = {
        "annual_means": annual_means(curves),
        "maps": maps(curves),
        "seasonal_cycle": seasonal_cycle(curves),
        "zonal_mean": zonal_mean(curves),
        "variance": variance(curves),
        "spectrum": spectrum(curves),
    }
    if bool(curves["return_level"].notnull().all()):
        figures["return_levels"] = return_levels(curves)
    if "spells" in curves:
        figures["spells"] = spells(curves)
    return figures


@styled
def annual_means(curves: xr.Dataset) -> Figure:
    """The mean over everything, year by year, with its trend and the range of the reference's."""
    return _by_year(curves, "annual_mean", "reference_annual_mean", f"annual mean{_unit(curves)}")


@styled
def variance(curves: xr.Dataset) -> Figure:
    """Variance about the reference's months, year by year."""
    return _by_year(
        curves,
        "annual_variance",
        "reference_annual_variance",
        f"variance{_unit(curves, square=True)}",
    )


def _by_year(curves: xr.Dataset, name: str, reference: str, label: str) -> Figure:
    figure, axes = one_axes(8.6, 2.7)
    years, own = curves["year"].values, curves[reference].values
    middle, reach = own.mean(), 2 * own.std(ddof=1)
    axes.axhspan(middle - reach, middle + reach, color=SHADE, alpha=0.22, linewidth=0)
    axes.axhline(middle, color=INK, linewidth=0.9)
    start = years[0] - len(own) - 2
    axes.plot(start + np.arange(len(own)), own, color=INK, linewidth=1.2)
    for member, values in enumerate(curves[name].values):
        colour = [FIRST.colour, "#009e73", "#cc79a7", "#8a6d00"][member % 4]
        axes.plot(years, values, color=colour, linewidth=1.1)
        if len(values) > 2:
            found: Trend = trend(values)
            fitted = values.mean() + found.slope * (np.arange(len(years)) - (len(years) - 1) / 2)
            axes.plot(years, fitted, color=LAST.colour, linewidth=1.6)
    axes.set_xlim(start - 1, years[-1] + 1)
    axes.axvline(years[0] - 1.5, color=FAINT, linewidth=1)
    ticks = [t for t in MaxNLocator(8, integer=True).tick_values(years[0], years[-1])]
    axes.set_xticks([int(t) for t in ticks if years[0] <= t <= years[-1]])
    axes.text(start, 1.02, "reference", transform=axes.get_xaxis_transform(), fontsize=8)
    axes.text(
        years[0],
        1.02,
        "rollout, with its trend",
        color=FIRST.colour,
        transform=axes.get_xaxis_transform(),
        fontsize=8,
    )
    axes.yaxis.get_offset_text().set_horizontalalignment("right")  # beside the names, not on them
    axes.set_ylabel(label)
    axes.set_xlabel("year of the rollout")
    return figure


@styled
def maps(curves: xr.Dataset) -> Figure:
    """Mean of the reference, and what the last years are off it and off the first years."""
    mean = curves["mean_map"]
    reference, first, last = (mean.sel(stretch=s).values for s in DRAWN)
    rows, columns = mean.dims[-2:]
    low, high, colours = field_limits(reference, diverging=False)
    off = np.stack([last - reference, last - first])
    limit = float(np.quantile(np.abs(off), 0.995)) or 1.0
    globe = _Globe(curves, str(rows), str(columns))
    figure = Figure(figsize=(8.8, 2.35 * globe.tall + 0.4), layout="constrained")
    upper, left, right = globe.axes(figure)
    image = globe.show(upper, reference, low, high, colours)
    upper.set_title("mean of the reference")
    colour_bar(figure, image, [upper], _unit(curves).strip(" ()") or "value")
    titles = ("last years less reference", "last years less first years")
    for axes, values, title in zip((left, right), off, titles, strict=True):
        image = globe.show(axes, values, -limit, limit, DIVERGING)
        axes.set_title(title)
    globe.dot(left, curves["within_spread"].values < 0.5)
    colour_bar(figure, image, [left, right], _unit(curves).strip(" ()") or "difference")
    return figure


class _Globe:
    """Maps with coastlines where cartopy is there and the grid is one of latitudes, else plain."""

    def __init__(self, curves: xr.Dataset, rows: str, columns: str) -> None:
        self.latitude = curves[rows].values if rows in curves.coords else None
        self.longitude = curves[columns].values if columns in curves.coords else None
        units = str(curves[rows].attrs.get("units", "")) if self.latitude is not None else ""
        self.geographic = units.startswith("degree") and self.longitude is not None
        height, width = curves.sizes[rows], curves.sizes[columns]
        self.shape = height, width
        self.tall = 2 if self.geographic else max(1.0, min(2.0, 4 * height / width))
        self.coast: Any = None
        if self.geographic:
            self.coast = _with_coastlines()

    def axes(self, figure: Figure) -> tuple[Axes, Axes, Axes]:
        grid = figure.add_gridspec(2, 2)
        kind = {} if self.coast is None else {"projection": self.coast}
        return (
            figure.add_subplot(grid[0, :], **kind),
            figure.add_subplot(grid[1, 0], **kind),
            figure.add_subplot(grid[1, 1], **kind),
        )

    def show(self, axes: Axes, values: np.ndarray, low: float, high: float, colours: str) -> Any:
        colour_map = mpl.colormaps[colours].with_extremes(bad=FAINT)
        y, x, values = self._turned(values)
        image = axes.pcolormesh(
            x,
            y,
            np.ma.masked_invalid(values),
            vmin=low,
            vmax=high,
            cmap=colour_map,
            rasterized=True,
        )
        axes.grid(False)
        axes.set_aspect("equal" if self.geographic else "auto")
        if self.geographic:
            axes.set_yticks([-60, -30, 0, 30, 60], ["60°S", "30°S", "0°", "30°N", "60°N"])
            axes.set_xticks([-120, -60, 0, 60, 120], ["120°W", "60°W", "0°", "60°E", "120°E"])
        axes.tick_params(labelsize=7, length=2)
        if self.coast is not None:
            axes.coastlines(linewidth=0.5, color=INK)  # type: ignore[attr-defined]
        return image

    def dot(self, axes: Axes, where: np.ndarray) -> None:
        """A dot in every cell that is marked."""
        y, x, marked = self._turned(where.astype(float))
        row, column = np.nonzero(marked > 0.5)
        size = max(0.15, 700 / where.size)
        axes.plot(x[column], y[row], ".", color=INK, markersize=4 * size, markeredgewidth=0)

    def _turned(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns in ascending order, longitudes from -180."""
        height, width = self.shape
        y = np.arange(height)[::-1] if self.latitude is None else self.latitude
        x = np.arange(width) if self.longitude is None else self.longitude
        if self.geographic:
            x = (x + 180) % 360 - 180
        columns, rows = np.argsort(x), np.argsort(y)
        return y[rows], x[columns], values[rows][:, columns]


def _with_coastlines() -> Any:
    """A projection, where cartopy is there and has coastlines on disk or a network to get them."""
    try:
        import_module("cartopy.io.shapereader").natural_earth("110m", "physical", "coastline")
        return import_module("cartopy.crs").PlateCarree()
    except (ImportError, OSError):
        return None


@styled
def seasonal_cycle(curves: xr.Dataset) -> Figure:
    """Months of the first and last years by region, and the range of the reference's blocks."""
    regions = list(curves["region"].values)
    columns = min(3, len(regions))
    rows = math.ceil(len(regions) / columns)
    figure = Figure(figsize=(2.9 * columns, 2.0 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    month = curves["month"].values
    for axes, region in zip(grid, regions, strict=False):
        own = curves["reference_seasonal_cycle"].sel(region=region)
        low, high = own.min("block"), own.max("block")
        axes.fill_between(month, low, high, color=SHADE, alpha=0.35, linewidth=0)
        for stretch in DRAWN:
            values = curves["seasonal_cycle"].sel(region=region, stretch=stretch).values
            line(axes, month, values, stretch, LOOKS[stretch])
        axes.set_title(str(region))
        axes.set_xticks(month, list(MONTHS), fontsize=7)
        axes.set_xlim(1, 12)
    for spare in grid[len(regions) :]:
        spare.set_visible(False)
    for row in range(rows):
        grid[row * columns].set_ylabel(_unit(curves).strip(" ()") or "value")
    _named(figure)
    return figure


@styled
def zonal_mean(curves: xr.Dataset) -> Figure:
    """Mean of each row, and what it is off the reference."""
    rows = str(curves["zonal_mean"].dims[-1])
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    at = curves[rows].values if rows in curves.coords else np.arange(curves.sizes[rows])
    whole = curves["zonal_mean"].sel(stretch="reference").values
    own = curves["reference_zonal_mean"].values
    for axes, base in ((left, 0.0), (right, whole)):
        low, high = (own - base).min(0), (own - base).max(0)
        axes.fill_between(at, low, high, color=SHADE, alpha=0.35, linewidth=0)
        for stretch in DRAWN:
            values = curves["zonal_mean"].sel(stretch=stretch).values - base
            line(axes, at, values, stretch, LOOKS[stretch])
        axes.set_xlabel("latitude (degrees north)" if rows in curves.coords else "row")
        axes.set_xlim(min(at[0], at[-1]), max(at[0], at[-1]))
    left.set_ylabel(f"zonal mean{_unit(curves)}")
    right.set_ylabel(f"less the reference{_unit(curves)}")
    _named(figure)
    return figure


@styled
def spectrum(curves: xr.Dataset) -> Figure:
    """Power of anomalies by zonal wavenumber, and its ratio to the reference's."""
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    power = curves["zonal_spectrum"].values[:, 1:]
    own = curves["reference_zonal_spectrum"].values[:, 1:]
    wavenumber = np.arange(1, power.shape[1] + 1)
    decibels = 10 * np.log10(own / power[0])
    right.fill_between(
        wavenumber, decibels.min(0), decibels.max(0), color=SHADE, alpha=0.35, linewidth=0
    )
    for stretch, values in zip(DRAWN, power, strict=True):
        line(left, wavenumber, values, stretch, LOOKS[stretch])
        line(right, wavenumber, 10 * np.log10(values / power[0]), stretch, LOOKS[stretch])
    left.set_yscale("log")
    left.set_ylabel(f"power{_unit(curves, square=True)}")
    right.set_ylabel("ratio to the reference (dB)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("zonal wavenumber")
        axes.set_xlim(1, wavenumber[-1])
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if t <= wavenumber[-1]]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    _named(figure)
    return figure


@styled
def return_levels(curves: xr.Dataset) -> Figure:
    """Levels exceeded at a cell once in so many years."""
    figure, axes = one_axes(4.8, 3.1)
    periods = curves["return_period"].values
    ends = [
        line(axes, periods, curves["return_level"].sel(stretch=s).values, s, LOOKS[s])
        for s in DRAWN
    ]
    axes.set_xscale("log")
    axes.set_xlim(periods[0], periods[-1])
    ticks = [2, 5, 10, 20, 50]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("return period (years)")
    axes.set_ylabel(f"return level{_unit(curves)}")
    label_lines(figure, axes, ends)
    return figure


@styled
def spells(curves: xr.Dataset) -> Figure:
    """How often a dry or a wet spell lasts longer than so many days."""
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    region = curves["region"].values[0]
    for axes, kind in zip(figure.subplots(1, 2), ("dry", "wet"), strict=True):
        for stretch in DRAWN:
            counts = curves["spells"].sel(spell=kind, region=region, stretch=stretch).values
            longer = 1 - np.cumsum(counts) / max(counts.sum(), 1e-300)
            days = np.arange(1, SHOWN_SPELL + 1)
            shown = np.where(longer > 1e-6, longer, np.nan)[:SHOWN_SPELL]
            line(axes, days, shown, stretch, LOOKS[stretch])
        axes.set_yscale("log")
        axes.set_xlim(1, SHOWN_SPELL)
        axes.set_xlabel(f"{kind} spell longer than (days)")
        axes.set_ylabel("share of spells")
    _named(figure)
    return figure


def _named(figure: Figure) -> None:
    """The names of the lines, once, above all panels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    texts = {"reference": "reference", "first": "first years", "last": "last years"}
    figure.legend(
        handles, [texts[name] for name in labels], loc="outside upper right", ncols=len(labels)
    )


def _unit(curves: xr.Dataset, square: bool = False) -> str:
    unit = str(curves.attrs.get("units", "1"))
    if unit in ("", "1"):
        return ""
    return f" (({unit})²)" if square else f" ({unit})"
