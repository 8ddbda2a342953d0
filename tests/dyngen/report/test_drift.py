"""Drift of long runs: series whose trend, cycle and spells are known."""

import json
import math
from pathlib import Path

import cftime
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from dyngen.drift import drift
from dyngen.report.drift_page import distance_rows, number
from dyngen.report.drift_scores import (
    MapLaw,
    drift_curves,
    drift_scores,
    long_spell,
    mean_spell,
    student_quantile,
    trend,
    within_spread,
)
from dyngen.report.drift_sums import (
    DRY,
    WET,
    Ruler,
    Spells,
    month_means,
    ruler_of,
    whole_years,
    year_sums,
)

LATITUDE = np.array([-75.0, -45.0, -15.0, 15.0, 45.0, 75.0])
AREA = np.cos(np.deg2rad(LATITUDE))


def world(
    years: int, seed: int = 0, *, per_year: float = 0.0, start: int = 2001, noise: float = 1.0
) -> xr.DataArray:
    """White noise on 6 x 8 cells around 10, a cycle of amplitude 3 in the north, a trend."""
    time = xr.date_range(f"{start}-01-01", f"{start + years - 1}-12-31", freq="D")
    rng = np.random.default_rng(seed)
    values = 10 + noise * rng.standard_normal((1, len(time), 6, 8))
    phase = 2 * np.pi * (time.day_of_year.to_numpy() - 1) / 365.25
    north = (LATITUDE > 0)[None, None, :, None]
    values += 3 * np.cos(phase)[None, :, None, None] * north
    values += per_year * (time.year.to_numpy() - start)[None, :, None, None]
    return xr.DataArray(
        values.astype(np.float32),
        dims=("member", "time", "lat", "lon"),
        coords={
            "time": time,
            "lat": ("lat", LATITUDE, {"units": "degrees_north"}),
            "lon": ("lon", np.arange(8) * 45.0, {"units": "degrees_east"}),
        },
        name="pr",
        attrs={"units": "mm day-1"},
    )


def ruler(reference: xr.DataArray, wet: float | None = None) -> Ruler:
    return ruler_of(reference, AREA, LATITUDE, wet)


def test_trend_is_that_of_a_line_and_its_error_that_of_independent_years() -> None:
    rng = np.random.default_rng(0)
    exact = trend(2 + 0.25 * np.arange(20.0))
    assert exact.slope == pytest.approx(0.25)
    assert exact.standard_error == pytest.approx(0, abs=1e-9)
    series = rng.standard_normal((400, 30))
    found = [trend(values) for values in series]
    spread = np.std([one.slope for one in found])
    told = math.sqrt(np.mean([one.standard_error**2 for one in found]))
    assert spread == pytest.approx((30 * (30**2 - 1) / 12) ** -0.5, rel=0.1)
    assert told == pytest.approx(spread, rel=0.25)


def test_trend_is_less_certain_where_years_resemble_each_other() -> None:
    rng = np.random.default_rng(1)
    walk = np.zeros((300, 60))
    for year in range(1, 60):
        walk[:, year] = 0.7 * walk[:, year - 1] + rng.standard_normal(300)
    white = rng.standard_normal((300, 60)) * walk.std()
    errors = {
        name: np.mean([trend(v).standard_error for v in values])
        for name, values in (("walk", walk), ("white", white))
    }
    spread = np.std([trend(values).slope for values in walk])
    assert errors["walk"] > 1.5 * errors["white"]
    assert errors["walk"] == pytest.approx(spread, rel=0.35)


def test_trend_wants_three_years() -> None:
    with pytest.raises(ValueError, match="three years or more, not 2"):
        trend(np.array([1.0, 2.0]))


@pytest.mark.parametrize("freedom", [5, 9, 28, 200])
def test_quantiles_of_student_are_those_of_scipy(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(
        scipy.stats.t.ppf(0.975, freedom), rel=2e-3
    )


def test_a_perfect_run_is_within_the_spread_over_19_of_20_parts_of_the_area() -> None:
    rng = np.random.default_rng(2)
    cells = 20_000
    reference, run = rng.normal(5, 2, (20, cells)), rng.normal(5, 2, (10, cells))
    law = MapLaw(reference.mean(0), reference.var(0, ddof=1), 20)
    assert within_spread(run.mean(0), 10, law).mean() == pytest.approx(0.95, abs=0.006)
    # Off by three times the standard error of the difference: what Student's law leaves of it.
    off = 3 * 2 * math.sqrt(1 / 10 + 1 / 20)
    bound = student_quantile(0.975, 19)
    left = scipy.stats.nct.cdf(bound, 19, 3) - scipy.stats.nct.cdf(-bound, 19, 3)
    assert within_spread(run.mean(0) + off, 10, law).mean() == pytest.approx(left, abs=0.01)


def test_whole_years_leaves_out_what_is_cut() -> None:
    run = world(4).isel(time=slice(100, -20))
    assert [year for year, _ in whole_years(run)] == [2002, 2003]
    months = whole_years(run)[0][1]
    assert [s.stop - s.start for s in months] == [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


def test_years_of_360_days_are_whole() -> None:
    dates = [
        cftime.Datetime360Day(2000 + d // 360, d % 360 // 30 + 1, d % 30 + 1) for d in range(1000)
    ]
    run = xr.DataArray(np.zeros((1, 1000, 1, 1)), dims=("member", "time", "y", "x"), name="pr")
    found = whole_years(run.assign_coords(time=dates))
    assert [year for year, _ in found] == [2000, 2001]
    assert {s.stop - s.start for s in found[1][1]} == {30}


def test_runs_without_years_are_refused() -> None:
    run = world(2)
    with pytest.raises(ValueError, match="'pr' has 1 whole calendar years"):
        whole_years(run.isel(time=slice(0, 500)))
    with pytest.raises(ValueError, match="no dates"):
        whole_years(run.assign_coords(time=np.arange(run.sizes["time"])))


def test_sums_are_those_of_xarray() -> None:
    run = world(4, seed=3)
    measure = ruler(run)
    sums = year_sums(run, measure, block_years=2)
    weights = xr.DataArray(AREA, dims="lat")
    yearly = run.weighted(weights).mean(("lat", "lon")).groupby("time.year").mean()
    np.testing.assert_allclose(sums.annual, yearly.transpose("member", "year"), rtol=1e-6)
    np.testing.assert_array_equal(sums.edges, [0, 2, 4])
    maps = run.groupby("time.year").mean().isel(year=slice(2, 4)).sum("year")
    np.testing.assert_allclose(sums.map_sum[:, 1], maps, rtol=1e-6)
    months = run.isel(member=0).groupby("time.month").mean()
    # Februaries differ in length: a mean of months of years, not of days.
    np.testing.assert_allclose(month_means(run), months, atol=0.02)
    tropics = run.sel(lat=[-15.0, 15.0]).mean(("lat", "lon"))
    march = tropics.sel(time=(tropics.time.dt.year == 2002) & (tropics.time.dt.month == 3)).mean()
    region = measure.regions.index("tropics")
    assert sums.month[0, 1, 2, region] == pytest.approx(float(march), rel=1e-6)
    # Parseval: the power at all zonal wavenumbers is the mean square.
    np.testing.assert_allclose(sums.spectrum.sum(-1), sums.variance, rtol=1e-5)


def test_a_known_trend_is_found_with_its_error() -> None:
    reference, run = world(8, seed=4), world(12, seed=5, per_year=0.05)
    measure = ruler(reference)
    found = drift_scores(year_sums(run, measure, 4), year_sums(reference, measure, 4), measure)
    line = found["trend"]
    assert abs(line["per_century"] - 5) < 3 * line["standard_error"] + 1e-3
    assert line["percent_per_century"] == pytest.approx(50, rel=0.02)
    assert found["map"]["within_spread_fraction"]["last"] < 0.05
    assert found["map"]["last_within_spread_of_first_fraction"] < 0.05
    assert found["map"]["rms"]["last"] == pytest.approx(0.05 * 9.5, rel=0.05)
    assert found["zonal_mean_rms"]["last"] > 10 * max(found["zonal_mean_rms"]["reference_blocks"])


def test_a_run_of_the_same_world_does_not_drift() -> None:
    reference, run = world(12, seed=6), world(12, seed=7)
    measure = ruler(reference)
    found = drift_scores(year_sums(run, measure, 6), year_sums(reference, measure, 6), measure)
    assert abs(found["trend"]["per_century"]) < 4 * found["trend"]["standard_error"]
    assert found["map"]["within_spread_fraction"]["last"] > 0.8
    assert np.mean(found["map"]["within_spread_fraction"]["reference_blocks"]) > 0.85
    assert found["variance_ratio"]["last"] == pytest.approx(1, abs=0.03)
    assert found["return_level_ratio"]["last"] == pytest.approx(1, abs=0.03)
    assert found["missing_values"] == 0


def test_a_known_cycle_and_variance_are_found_again() -> None:
    reference, run = world(4, seed=8), world(4, seed=9, noise=2.0)
    flat = run - 3 * xr.zeros_like(run)
    north = (run["lat"] > 0) & xr.ones_like(run, dtype=bool)
    phase = 2 * np.pi * (run["time"].dt.dayofyear - 1) / 365.25
    flat = flat - north * 3 * np.cos(phase)  # the run has no seasons
    flat = flat.transpose(*run.dims).assign_attrs(run.attrs).rename("pr")
    measure = ruler(reference)
    sums = year_sums(flat, measure, 2), year_sums(reference, measure, 2)
    found = drift_scores(*sums, measure)
    cycles = found["seasonal_cycle_rms"]
    assert cycles["northern polar"]["last"] == pytest.approx(3 / math.sqrt(2), rel=0.08)
    assert cycles["southern polar"]["last"] < 0.1
    # Noise of variance 4, and half the northern half's missing cycle: 4 + 9 / 4.
    assert found["variance_ratio"]["last"] == pytest.approx(4 + 9 / 4, rel=0.05)
    curves = drift_curves(*sums, measure, reference)
    drawn = curves["seasonal_cycle"].sel(region="northern polar", variable="pr")
    assert float(drawn.sel(stretch="reference", month=1)) == pytest.approx(13, abs=0.2)
    assert float(drawn.sel(stretch="last", month=1)) == pytest.approx(10, abs=0.2)
    assert len(distance_rows(found | {"units": "1"})) == 4 + len(measure.regions)


def test_spells_are_counted_where_they_end() -> None:
    days = np.array([0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1], dtype=float)
    frames = np.stack([days, 1 - days], axis=-1).reshape(1, -1, 1, 2)
    area = np.array([[0.25, 0.75]])
    measure = Ruler(area, ("all",), np.zeros(1, int), np.zeros((12, 1, 2)), 0.5)
    whole, pieces = Spells(1, 1, measure), Spells(1, 1, measure)
    whole.see(0, frames)
    for start in range(0, len(days), 3):
        pieces.see(0, frames[:, start : start + 3])
    np.testing.assert_array_equal(whole.counted, pieces.counted)
    counted = whole.counted[0, 0, :, 0]
    expected = np.zeros_like(counted)
    # Of the first cell: wet 3, dry 2, wet 1, dry 4; its beginning and its end do not count.
    expected[WET, [2, 0]] += 0.25
    expected[DRY, [1, 3]] += 0.25
    expected[DRY, [2, 0]] += 0.75  # the second is its mirror image
    expected[WET, [1, 3]] += 0.75
    np.testing.assert_allclose(counted, expected)


def test_spells_of_a_chain_have_its_lengths() -> None:
    """Of a Markov chain that stays dry with probability 0.9: geometric, of mean 10."""
    rng = np.random.default_rng(10)
    state = np.zeros((1, 3000, 4, 5))
    for day in range(1, 3000):
        stay = np.where(state[:, day - 1] > 0, 0.6, 0.9)
        state[:, day] = np.where(
            rng.random((1, 4, 5)) < stay, state[:, day - 1], 1 - state[:, day - 1]
        )
    measure = Ruler(np.full((4, 5), 0.05), ("all",), np.zeros(4, int), np.zeros((12, 4, 5)), 1.0)
    spells = Spells(1, 1, measure)
    spells.see(0, state)
    dry, wet = spells.counted[0, 0, :, 0]
    assert mean_spell(dry) == pytest.approx(10, rel=0.07)
    assert mean_spell(wet) == pytest.approx(2.5, rel=0.07)
    assert long_spell(dry) == pytest.approx(math.ceil(math.log(0.05) / math.log(0.9)), abs=3)


def test_the_report_is_written_and_says_what_the_scores_say(tmp_path: Path) -> None:
    def stored(name: str, run: xr.DataArray) -> str:
        run.isel(member=0).to_dataset().to_zarr(tmp_path / name, consolidated=False)
        return str(tmp_path / name)

    reference = stored("reference.zarr", world(6, seed=11) - 8)
    drift(
        stored("run.zarr", world(6, seed=12, per_year=0.2) - 8),
        reference,
        tmp_path / "out",
        block_years=2,
    )
    told = json.loads((tmp_path / "out" / "drift.json").read_text())["variables"]["pr"]
    assert told["trend"]["per_century"] == pytest.approx(20, abs=2)
    assert told["mean_dry_spell_days"]["first"] > 1
    page = (tmp_path / "out" / "drift.html").read_text()
    assert number(told["trend"]["per_century"]) in page
    assert "pr-maps" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    with xr.open_dataset(tmp_path / "out" / "drift.nc") as curves:
        assert curves.sizes["year"] == 6
        assert curves["mean_map"].dims[-2:] == ("lat", "lon")


def test_forecasts_by_lead_are_refused(tmp_path: Path) -> None:
    world(2, seed=13).isel(member=0).to_dataset().to_zarr(tmp_path / "cube.zarr")
    forecast = xr.Dataset(
        {"pr": (("initial", "lead", "lat", "lon"), np.zeros((1, 3, 6, 8), np.float32))},
        {
            "initial_time": ("initial", np.array(["2001-01-01"], "datetime64[ns]")),
            "lead": ("lead", np.array([1, 2, 3]), {"units": "days"}),
            "lat": LATITUDE,
            "lon": np.arange(8) * 45.0,
        },
    )
    forecast.to_zarr(tmp_path / "forecast.zarr")
    with pytest.raises(ValueError, match="free run"):
        drift(str(tmp_path / "forecast.zarr"), str(tmp_path / "cube.zarr"), tmp_path / "out")
