"""Figures are drawn of whatever scores there are, and show the scores themselves."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dyngen.report.climate_figures import free_waves, quantile_quantile, return_levels
from dyngen.report.evaluate import evaluate
from dyngen.report.event_figures import brier_skill_by_lead, fractions_skill, reliability, roc
from dyngen.report.field_figures import spread_skill_by_scale
from dyngen.report.figures import (
    crps_by_lead,
    field_limits,
    field_panels,
    hovmoller,
    score_figures,
    spectra,
)
from dyngen.report.html import write_report
from dyngen.report.pictures import draw
from dyngen.report.style import looks
from dyngen.report.summary import summarise

OF_FORECASTS = [
    "crps",
    "spread_skill",
    "bias",
    "rank_histogram",
    "spread_skill_by_scale",
    "energy_score",
    "variogram_score",
    "reliability",
    "roc",
    "brier_skill",
    "fractions_skill",
    "autocorrelation",
    "increments",
    "spectrum",
]
OF_FREE_RUNS = [
    "stability",
    "free_autocorrelation",
    "free_spectrum",
    "free_values",
    "quantile_quantile",
    "return_levels",
    "free_waves",
    "free_bias_map",
]


def drawn(figure: Figure) -> np.ndarray:
    figure.set_dpi(40)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def both(data: xr.Dataset) -> xr.Dataset:
    """Two variables in other units, of fewer initial states."""
    data = data.isel(initial=slice(0, 6)) if "initial" in data.dims else data
    return data.assign(temperature=(2 * data["vorticity"] + 290).assign_attrs(units="K"))


@pytest.fixture(scope="module")
def two_variables(world: dict[str, Any]) -> xr.Dataset:
    """Scores of two variables, without free runs."""
    forecasts = {name: both(data) for name, data in world["forecasts"].items()}
    plain = ("truth", "initial_frames", "reference", "training")
    others: dict[str, Any] = {name: both(world[name]) for name in plain}
    return evaluate(forecasts=forecasts, **others, bootstrap=20)


def test_with_free_runs_all_figures_are_drawn(scores: xr.Dataset) -> None:
    figures = score_figures(scores)
    assert list(figures) == [*OF_FORECASTS, *OF_FREE_RUNS]
    for figure in figures.values():
        assert drawn(figure).std() > 5


def test_without_free_runs_those_of_the_forecasts_are(two_variables: xr.Dataset) -> None:
    for name in ("vorticity", "temperature"):
        figures = score_figures(two_variables, name)
        assert list(figures) == [*OF_FORECASTS, "quantile_quantile"]
        for figure in figures.values():
            assert drawn(figure).std() > 5
    label = score_figures(two_variables, "temperature")["crps"].axes[0].get_ylabel()
    assert label == "fair CRPS (K)"
    assert score_figures(two_variables)["crps"].axes[0].get_ylabel() == "fair CRPS (s-1)"


def test_a_report_of_two_variables_has_figures_of_each(
    two_variables: xr.Dataset, world: dict[str, Any], tmp_path: Path
) -> None:
    forecasts = {name: both(data) for name, data in world["forecasts"].items()}
    truth, reference = both(world["truth"]), both(world["reference"])
    figures, gif = draw(two_variables, truth, forecasts, reference, {})
    own = ["fields", *OF_FORECASTS, "quantile_quantile"]
    assert list(figures) == [f"{v}/{n}" for v in ("vorticity", "temperature") for n in own]
    assert figures["temperature/crps"].axes[0].get_ylabel() == "fair CRPS (K)"
    one = two_variables.sel(variable=["vorticity"])
    assert list(draw(one, truth, forecasts, reference, {})[0]) == own
    assert gif.startswith(b"GIF89a")
    some = {name: figures[name] for name in ("vorticity/crps", "temperature/crps")}
    page = write_report(tmp_path / "report.html", two_variables, summarise(two_variables), some)
    text = page.read_text(encoding="utf-8")
    assert "<b>temperature: error of the ensemble</b> Fair continuous ranked" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_lines_are_the_scores(scores: xr.Dataset) -> None:
    one = scores.sel(variable="vorticity")
    axes = crps_by_lead(one).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    systems = {"guided", "unguided", "persistence", "climatology"}
    assert systems <= set(lines)
    for system in systems:
        expected = one["crps"].sel(system=system).values
        np.testing.assert_array_equal(np.asarray(lines[system].get_ydata()), expected)
    names = {text.get_text() for text in axes.texts}
    assert names == systems  # every line carries its name
    upper = {line.get_label(): line for line in spectra(one).axes[0].lines}
    shown = np.asarray(upper["truth"].get_ydata())
    expected = one["spectrum"].sel(system="truth").values[1 : len(shown) + 1]
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("missing", [False, True])
def test_fields_and_slices_are_drawn(world: dict[str, Any], missing: bool) -> None:
    truth = world["truth"]["vorticity"].isel(initial=0)
    guided = world["forecasts"]["guided"]["vorticity"].isel(initial=0, member=0)
    if missing:
        truth = truth.copy()
        truth.values[:, 3] = np.nan
    systems = {"truth": truth, "guided": guided}
    figure = field_panels(systems, leads=(1, 5, 99), label="vorticity")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 4  # two systems at the two leads that there are
    np.testing.assert_array_equal(np.asarray(panels[3].images[0].get_array()), guided[4])
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    assert drawn(figure).std() > 5
    slices = hovmoller({name: data.isel(lat=2) for name, data in systems.items()})
    assert len([axes for axes in slices.axes if axes.images]) == 2
    assert drawn(slices).std() > 5


def test_limits_are_symmetric_around_zero_when_there_are_both_signs() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    low, high, _ = field_limits(values)
    assert low == -high
    assert (np.abs(values) <= high).mean() > 0.99
    low, high, colours = field_limits(values**2)
    assert 0 <= low < high
    assert colours != field_limits(values)[2]
    assert field_limits(np.full(3, np.nan))[:2] == (-1.0, 1.0)
    assert field_limits(np.full(3, 5.0))[:2] == (5.0, 6.0)


def lines_of(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.lines}


def test_diagrams_of_events_are_the_scores(scores: xr.Dataset) -> None:
    one = scores.sel(variable="vorticity")
    figure = reliability(one)
    for axes, event in zip(figure.axes[:2], (0.9, 0.99), strict=True):
        of = one.sel(exceedance=event, system="guided")
        known = (of["reliability_share"] > 0).values
        shown = lines_of(axes)["guided"]
        np.testing.assert_array_equal(shown.get_xdata(), of["reliability_probability"][known])
        np.testing.assert_array_equal(shown.get_ydata(), of["reliability_frequency"][known])
        assert "persistence" not in lines_of(axes)  # a single member forecasts no probability
        threshold = float(one["threshold"].sel(exceedance=event))
        assert axes.get_title(loc="left").endswith(f"> {threshold:.3g} s-1")
    axes = roc(one).axes[1]
    of = one.sel(exceedance=0.99, system="unguided")
    np.testing.assert_array_equal(lines_of(axes)["unguided"].get_ydata(), of["roc_hit_rate"])
    assert {text.get_text().split()[0] for text in axes.texts} == {
        *("guided", "unguided", "persistence", "climatology")
    }
    grid = fractions_skill(one).axes
    assert len(grid) == 6  # two thresholds, squares of 1, 3 and 5 cells
    expected = one["fractions_skill"].sel(system="guided", exceedance=0.99, neighbourhood=3)
    np.testing.assert_array_equal(lines_of(grid[4])["guided"].get_ydata(), expected)
    expected = one["brier_skill"].sel(system="guided", exceedance=0.9)
    shown = lines_of(brier_skill_by_lead(one).axes[0])["guided"]
    np.testing.assert_array_equal(shown.get_ydata(), expected)


def test_maps_of_scales_and_waves_are_the_scores(scores: xr.Dataset) -> None:
    one = scores.sel(variable="vorticity")
    axes = spread_skill_by_scale(one).axes[0]
    ratio = one["spread_skill_by_scale"].sel(system=axes.get_title(loc="left"))
    np.testing.assert_allclose(np.exp(axes.images[0].get_array()), ratio.transpose("band", "lead"))
    figure = free_waves(one)
    shown = figure.axes[1].images[0].get_array()  # the first row: truth, guided, unguided
    power = one["free_wave_spectrum"].sel(system="guided")[1:]
    np.testing.assert_allclose(10 ** (np.asarray(shown) / 10), power)
    ratio = np.asarray(figure.axes[4].images[0].get_array())
    expected = 10 * np.log10(power / one["reference_wave_spectrum"][1:])
    np.testing.assert_allclose(ratio[:, 1:-1], expected[:, 1:-1])


def test_quantiles_and_return_levels_are_the_scores(scores: xr.Dataset) -> None:
    one = scores.sel(variable="vorticity")
    shown = lines_of(quantile_quantile(one).axes[0])["unguided"]
    np.testing.assert_array_equal(shown.get_xdata(), one["reference_value_quantile"])
    expected = one["free_value_quantile"].sel(system="unguided")
    np.testing.assert_array_equal(shown.get_ydata(), expected)
    axes = return_levels(one).axes[0]
    assert axes.get_xlabel() == "return period (blocks of 57 steps)"
    assert axes.get_ylabel() == "return level (s-1)"
    np.testing.assert_array_equal(
        lines_of(axes)["truth"].get_ydata(), one["reference_return_level"]
    )


def test_a_single_threshold_system_and_neighbourhood_are_drawn(world: dict[str, Any]) -> None:
    few = {
        "forecasts": {"guided": world["forecasts"]["guided"].isel(initial=slice(0, 4))},
        "truth": world["truth"].isel(initial=slice(0, 4)),
        "reference": world["reference"].isel(trajectory=[0]),
    }
    scores = evaluate(**few, exceedances=(0.5,), neighbourhoods=(1,), bootstrap=5)
    figures = score_figures(scores)
    assert {"reliability", "roc", "fractions_skill", "spread_skill_by_scale"} <= set(figures)
    for figure in figures.values():
        assert drawn(figure).std() > 5


def test_systems_look_different() -> None:
    names = ["truth", "persistence", "climatology", *(f"system_{i}" for i in range(20))]
    assert len({(look.colour, look.dashes) for look in looks(names).values()}) == len(names)
    assert len(looks(map(str, range(30)))) == 30  # more than there are looks
