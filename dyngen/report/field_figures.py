"""Figures of fields as wholes: energy and variogram scores, and spread against skill by scale."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dyngen.report.drawing import curves, finished, systems_with, unit_of
from dyngen.report.style import INK, looks, one_axes, styled

TICKS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the ratio, on the colour bar


@styled
def energy_by_lead(scores: xr.Dataset) -> Figure:
    """Fair energy score of fields by lead with 95 % intervals."""
    figure, axes = one_axes()
    curves(axes, scores, "energy_score", "lead")
    axes.set_ylim(0, None)
    axes.set_ylabel(f"fair energy score{unit_of(scores)}")
    return finished(figure, axes, scores, "energy_score", "lead")


@styled
def variogram_by_lead(scores: xr.Dataset) -> Figure:
    """Variogram score of order 1/2 by lead with 95 % intervals."""
    figure, axes = one_axes()
    curves(axes, scores, "variogram_score", "lead")
    axes.set_ylim(0, None)
    axes.set_ylabel(f"variogram score{unit_of(scores)}")
    return finished(figure, axes, scores, "variogram_score", "lead")


@styled
def spread_skill_by_scale(scores: xr.Dataset) -> Figure:
    """Spread-skill ratio by lead and band of wavenumbers, a panel per system; white is 1."""
    ratio = scores["spread_skill_by_scale"]
    systems = systems_with(scores, "spread_skill_by_scale")
    bands, leads = [str(b) for b in ratio["band"].values], ratio["lead"].values
    columns = min(2, len(systems))
    rows = -(-len(systems) // columns)
    height = max(1.0, 0.22 * len(bands)) + 0.3
    figure = Figure(figsize=(2.2 * columns + 1.3, height * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    panels = grid.ravel()
    for spare in panels[len(systems) :]:
        spare.set_visible(False)
    look = looks(scores["system"].values)
    limit = np.log(TICKS[-1])
    for axes, system in zip(panels, systems, strict=False):
        values = ratio.sel(system=system).transpose("band", "lead").values
        with np.errstate(divide="ignore", invalid="ignore"):
            image = axes.imshow(
                np.ma.masked_invalid(np.log(values)),
                vmin=-limit,
                vmax=limit,
                cmap="RdBu_r",
                aspect="auto",
                origin="lower",
                interpolation="nearest",
                extent=(leads[0] - 0.5, leads[-1] + 0.5, -0.5, len(bands) - 0.5),
            )
        axes.set_title(system, color=look[system].colour)
        axes.set_yticks(range(len(bands)), bands)
        axes.set_xticks(_some(leads))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    for column in range(columns):
        lowest = (len(systems) - 1 - column) // columns
        grid[lowest, column].set_xlabel("lead (steps)")
        grid[lowest, column].tick_params(labelbottom=True)
    for row in grid:
        row[0].set_ylabel("wavenumber")
    bar = figure.colorbar(image, ax=list(panels), extend="both", aspect=22, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_ticks(np.log(TICKS).tolist(), labels=[f"{t:g}" for t in TICKS])
    bar.ax.axhline(0, color=INK, linewidth=0.8)
    bar.set_label("spread / skill")
    return figure


def _some(leads: np.ndarray) -> list[int]:
    """First, last, and a few leads between."""
    places = np.unique(np.linspace(0, len(leads) - 1, min(len(leads), 4)).round().astype(int))
    return [int(lead) for lead in leads[places]]
