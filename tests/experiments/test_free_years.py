"""Free years against a cube: its own climate is within its spread, a shifted one is not."""

import numpy as np
import pytest
import xarray as xr

from experiments.speedy.years import of_months, of_variable

ROWS, COLUMNS, SKIP = 12, 24, 5


def days(generator: np.random.Generator, *leading: int) -> np.ndarray:
    """Years that differ: a constant of each year and cell, and noise."""
    constant = generator.normal(size=(*leading, 1, ROWS, COLUMNS))
    return 3 + constant + generator.normal(size=(*leading, 365, ROWS, COLUMNS))


@pytest.fixture
def cube() -> xr.DataArray:
    years = days(np.random.default_rng(0), 20).reshape(-1, ROWS, COLUMNS)
    time = xr.date_range("2001-01-01", periods=len(years), calendar="noleap", use_cftime=True)
    lat = np.linspace(-80, 80, ROWS)
    return xr.DataArray(years, {"time": time, "lat": lat}, ("time", "lat", "lon"))


def test_its_own_climate_is_within_its_spread_at_95_percent_of_the_area(cube: xr.DataArray) -> None:
    run = days(np.random.default_rng(1), 8, 2)
    run = np.concatenate([np.full((8, 2, SKIP, ROWS, COLUMNS), 99.0), run], 2)  # does not count
    found = of_variable(run, cube, SKIP)
    assert found["years"] == 16
    assert found["within_spread_fraction"] == pytest.approx(0.95, abs=0.03)
    assert found["global_mean_error"] == pytest.approx(0, abs=0.05)
    assert found["daily_variance_ratio"] == pytest.approx(1, abs=0.05)
    assert found["annual_std_ratio"] == pytest.approx(1, abs=0.05)
    shifted = of_variable(run + 2, cube, SKIP)
    assert shifted["within_spread_fraction"] < 0.01
    assert shifted["global_mean_error"] == pytest.approx(2 + found["global_mean_error"])


def test_rows_count_by_their_area(cube: xr.DataArray) -> None:
    run = days(np.random.default_rng(1), 16, 1)
    run[..., -1, :] += 9  # the row nearest to a pole
    weights = np.cos(np.deg2rad(cube["lat"].values))
    found = of_variable(run, cube, 0)["global_mean_error"]
    assert found == pytest.approx(9 * weights[-1] / weights.sum(), abs=0.05)


def test_each_month_has_its_own_spread(cube: xr.DataArray) -> None:
    generator = np.random.default_rng(2)
    lead = np.arange(365 + SKIP)
    starts = [f"{2001 + i}-{1 + i % 12:02d}-01" for i in range(60)]
    time = np.stack(
        [xr.date_range(s, periods=len(lead), calendar="noleap", use_cftime=True) for s in starts]
    )
    months = np.vectorize(lambda date: date.month)(time)
    # Constants of each year, as in the cube, but in July they are three times as large.
    constant = generator.normal(size=(60, 1, ROWS, COLUMNS))
    values = constant * np.where(months == 7, 3, 1)[:, :, None, None]
    values = values + generator.normal(size=values.shape)
    run = xr.DataArray(
        values[:, None],
        {"time": (("initial", "lead"), time)},
        ("initial", "member", "lead", "lat", "lon"),
    )
    found = of_months(run, cube, SKIP)
    for zone in ("south", "between", "north"):
        assert found[zone][6] == pytest.approx(3, rel=0.15)
        rest = np.delete(found[zone], 6)
        np.testing.assert_allclose(rest, 1, rtol=0.15)
