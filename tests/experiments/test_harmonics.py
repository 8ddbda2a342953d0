"""How many harmonics a seasonal cycle needs, against a cycle that is known."""

import numpy as np
import pytest
import xarray as xr

from experiments.speedy.harmonics import left_by

ROWS, COLUMNS, YEARS = 6, 8, 12


def test_harmonics_that_are_there_are_found_and_no_more() -> None:
    generator = np.random.default_rng(0)
    time = xr.date_range("2001-01-01", periods=365 * YEARS, calendar="noleap", use_cftime=True)
    angle = 2 * np.pi * np.arange(365) / 365
    # In each cell a fourth harmonic of its own phase, in noise of unit variance.
    phase = generator.uniform(0, 2 * np.pi, (ROWS, COLUMNS))
    cycle = 5 * np.cos(angle)[:, None, None] + 2**0.5 * np.cos(4 * angle[:, None, None] + phase)
    values = np.tile(cycle, (YEARS, 1, 1)) + generator.normal(size=(365 * YEARS, ROWS, COLUMNS))
    lat = np.linspace(-75, 75, ROWS)
    days = xr.DataArray(values, {"time": time, "lat": lat}, ("time", "lat", "lon"))
    found = left_by(days, 2008)  # eight years, and four that are held out
    for season in found.values():
        assert set(season) == {"south", "between", "north"}
        for share in season.values():
            assert share[1] == 1
            assert share[2] == pytest.approx(1, abs=0.02)
            assert share[3] == pytest.approx(1, abs=0.02)
            assert share[4] == pytest.approx(0.5, abs=0.06)  # 1 of 1 + 1
            # On years it has not seen, a fit of p coefficients to n days is worse by p / n.
            worse = share[24] / share[4] - 1
            assert worse == pytest.approx(40 / (8 * 365), abs=0.01)
