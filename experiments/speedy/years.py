"""How near the climate of free years is to the cube's, from a rollout of a year from many states.

    python experiments/speedy/years.py RUN.zarr CUBE.zarr [--skip 30]

The first days of each run, which still know their initial state, are left out, and 365 are counted
as a year. Printed as JSON, for each variable: the share of the area where the mean of these years
is within the spread of the cube's annual means (as `dyngen drift` has it of the last years of a
run), the error of the global mean, and the variance of days and the standard deviation of years
over those of the cube.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import xarray as xr

from dyngen.report.drift_scores import MapLaw, within_spread
from dyngen.rollout import open_rollout

DAYS = 365
MONTHS = range(1, 13)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("cube")
    parser.add_argument("--skip", type=int, default=30, help="days of each run that do not count")
    given = parser.parse_args()
    run, cube = open_rollout(given.run), xr.open_zarr(given.cube)
    if run.sizes.get("lead", 0) < given.skip + DAYS:
        raise SystemExit(
            f"{given.run} has {run.sizes.get('lead', 0)} days from each of several states; "
            f"{given.skip + DAYS} are needed."
        )
    found = {
        str(name): of_variable(run[name].values, cube[name], given.skip)
        | {"monthly_std_ratio": of_months(run[name], cube[name], given.skip)}
        for name in run.data_vars
    }
    print(json.dumps(found, indent=1))


def of_variable(days: np.ndarray, cube: xr.DataArray, skip: int) -> dict[str, Any]:
    """Scores of days (initial, member, lead, y, x)."""
    days = days[:, :, skip : skip + DAYS].reshape(-1, DAYS, *days.shape[-2:])
    years, truth = days.mean(1), cube.groupby("time.year").mean().values
    rows = np.cos(np.deg2rad(cube["lat"].values))[:, None]
    area = np.broadcast_to(rows / (rows.sum() * days.shape[-1]), days.shape[-2:])

    def over(field: np.ndarray) -> float:
        return float((area * field).sum())

    law = MapLaw(truth.mean(0), truth.var(0, ddof=1), len(truth))
    seen = cube.isel(time=slice(0, len(cube.time) // DAYS * DAYS)).values
    return {
        "years": len(years),
        "within_spread_fraction": over(within_spread(years.mean(0), len(years), law)),
        "global_mean_error": over(years.mean(0) - truth.mean(0)),
        "daily_variance_ratio": over(days.var((0, 1))) / over(seen.var(0)),
        "annual_std_ratio": (over(years.var(0, ddof=1)) / over(truth.var(0, ddof=1))) ** 0.5,
    }


def of_months(run: xr.DataArray, cube: xr.DataArray, skip: int) -> dict[str, list[float]]:
    """Spread of each month's means over that of the cube, by zone."""
    own = run.isel(member=0, lead=slice(skip, skip + DAYS))
    months = own["time"].dt.month.values
    means = [
        [days[of == m].mean(0) for m in MONTHS] for days, of in zip(own.values, months, strict=True)
    ]
    months, years, values = cube["time"].dt.month.values, cube["time"].dt.year.values, cube.values
    truth = [
        [values[(years == year) & (months == m)].mean(0) for m in MONTHS]
        for year in np.unique(years)
    ]
    mine, theirs = (np.var(each, axis=0, ddof=1) for each in (means, truth))  # (12, y, x)
    return {
        name: [
            round(float((mine[m, rows].sum() / theirs[m, rows].sum()) ** 0.5), 2) for m in range(12)
        ]
        for name, rows in zones(cube["lat"].values).items()
    }


def zones(lat: np.ndarray) -> dict[str, np.ndarray]:
    """Which rows are south of 20 S, between, and north of 20 N."""
    return {"south": lat < -20, "between": abs(lat) <= 20, "north": lat > 20}


if __name__ == "__main__":
    main()
