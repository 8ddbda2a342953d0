"""How much of a cube's days is the seasonal cycle, by the number of harmonics that it is given.

    PYTHONPATH=. python experiments/speedy/harmonics.py CUBE.zarr [--trained 2002]

At each cell a cycle is fitted to the years up to the last that models are trained on, and taken off
the days after them, which it has not seen. Printed as JSON, for each variable and zone, in July to
September and in December to February: the mean over area of what variance is left, over that of one
harmonic. Where more harmonics leave less, `seasonal` has too few of them: what comes back each year
is then taken for weather that may come or not.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import xarray as xr

from data_modules.calendars import as_numbers
from data_modules.normalisation import seasonal_basis
from experiments.speedy.years import zones

HARMONICS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
SEASONS = {"july to september": (7, 8, 9), "december to february": (12, 1, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cube")
    parser.add_argument("--trained", type=int, default=2002, help="last year of the fit")
    given = parser.parse_args()
    cube = xr.open_zarr(given.cube)
    print(json.dumps({str(name): left_by(cube[name], given.trained) for name in cube}, indent=1))


def left_by(days: xr.DataArray, trained: int) -> dict[str, dict[str, dict[int, float]]]:
    """Variance that is left of (time, lat, lon) after cycles of 1, 2, ... harmonics."""
    seconds, seen = as_numbers(days["time"].values), (days["time"].dt.year <= trained).values
    months, lat = days["time"].dt.month.values, days["lat"].values
    rows_of, rows = zones(lat), np.cos(np.deg2rad(lat))
    values = days.values.reshape(len(days), -1).astype(np.float64)
    found: dict[str, dict[str, dict[int, float]]] = {s: {z: {} for z in rows_of} for s in SEASONS}
    least: dict[str, np.ndarray] = {}
    for count in HARMONICS:
        basis = seasonal_basis(seconds, days["time"].dt.calendar, count)
        cycle = np.linalg.lstsq(basis[seen], values[seen], rcond=None)[0]
        errors = np.square(values - basis @ cycle).reshape(days.shape)
        for season, of_it in SEASONS.items():
            left = errors[np.isin(months, of_it) & ~seen].mean(0)
            share = left / np.maximum(least.setdefault(season, left), np.finfo(np.float64).tiny)
            for zone, inside in rows_of.items():
                mean = np.average(share[inside].mean(-1), weights=rows[inside])
                found[season][zone][count] = round(float(mean), 3)
    return found


if __name__ == "__main__":
    main()
