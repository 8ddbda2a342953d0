"""`dyngen drift`: whether a long run stays where it began, and how far the truth itself strays."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_modules.axes import is_latitude
from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.sources import open_one
from data_modules.truth import Truth
from dyngen.evaluation import common_variables, fitting
from dyngen.report.drift_page import HEADINGS, distance_rows, trend_rows, write_drift_page
from dyngen.report.drift_scores import drift_curves, drift_scores
from dyngen.report.drift_sums import Ruler, ruler_of, year_sums
from dyngen.report.provenance import machine
from dyngen.rollout import RolloutError, open_rollout

log = logging.getLogger(__name__)

RAIN_UNITS = {  # how much one millimetre a day is
    **dict.fromkeys(("mm day-1", "mm d-1", "mm/day", "mm/d", "mm day^-1", "kg m-2 day-1"), 1.0),
    **dict.fromkeys(("kg m-2 s-1", "mm s-1", "kg m**-2 s**-1", "kg/m2/s", "mm/s"), 1 / 86400),
    **dict.fromkeys(("m s-1", "m/s of water equivalent"), 1e-3 / 86400),
}


def drift(
    rollout: str,
    reference: str,
    out: Path = Path("drift"),
    variables: list[str] | None = None,
    block_years: int = 10,
    wet_day: float = 1.0,
) -> None:
    """Hold a long run's first and last years against a reference and against each other.

    Writes `drift.json` (every number), `drift.nc` (what is drawn, for xarray) and `drift.html`.
    Both are read once, month by month: memory does not grow with the length of the run.

    Args:
        rollout: A free run of any origin, (member, time, y, x) with dates: Zarr or NetCDF.
        reference: What it is held against: a cube with dates, as long as can be had.
        out: Folder to write to.
        variables: Which variables; by default all that both have.
        block_years: Years at the beginning and at the end that are compared.
        wet_day: The least rain of a wet day in mm, for variables whose unit is one of rain.

    Raises:
        ValueError: If the two do not fit together, or either has less than two whole years.
    """
    if block_years < 1:
        raise ValueError(f"block_years is {block_years}; compare one year or more.")
    with _opened(rollout) as run, open_one(reference, chunks={}) as cube:
        names = common_variables({rollout: run}, reference, variables)
        data = ClimateCubeDataModule(reference, variables=names)
        held, told = fitting(rollout, run, data), fitting(reference, cube, data)
        for place, dataset in ((rollout, held), (reference, told)):
            if "time" not in dataset.dims:
                raise ValueError(
                    f"{place} holds forecasts by lead; drift is told of a free run, from one "
                    "initial state, along its time."
                )
        scores: dict[str, dict[str, Any]] = {}
        curves = []
        for name in track(names, "reading", transient=True):
            ruler = _ruler(told[name], data, wet_day)
            ours = year_sums(held[name], ruler, block_years)
            theirs = year_sums(told[name], ruler, block_years)
            scores[name] = {
                "units": str(data.cube.variables[name].get("units", "1")),
                **drift_scores(ours, theirs, ruler),
            }
            curves.append(drift_curves(ours, theirs, ruler, told[name]))
        provenance = {
            "rollout": rollout,
            "reference": reference,
            "blocks of years": scores[names[0]]["block_years"],
            "blocks of years of the reference": scores[names[0]]["reference_block_years"],
            "machine": machine(),
        }
    labelled = xr.concat(curves, "variable", join="outer", combine_attrs="drop_conflicts")
    _write(out, scores, labelled, provenance)
    console = Console()
    for name, found in scores.items():
        for caption, headings, rows in (
            (f"{name}: what moved", ("", "value"), trend_rows(found)),
            (f"{name}: beside the reference", HEADINGS, distance_rows(found)),
        ):
            table = Table(*headings, title=caption, title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    console.print(f"scores  {out / 'drift.json'}\nreport  {out / 'drift.html'}", soft_wrap=True)


def _opened(rollout: str) -> xr.Dataset:
    """A rollout of this library, perhaps unfinished, or one of any other origin."""
    try:
        return open_rollout(rollout)
    except RolloutError:
        return open_one(rollout, chunks={})


def _ruler(reference: xr.DataArray, data: ClimateCubeDataModule, wet_day: float) -> Ruler:
    rows = data.cube.dims[0]
    latitude = None
    if rows in data.cube.coords:
        _, values, attrs = data.cube.coords[rows]
        latitude = values if is_latitude(rows, attrs) else None
    unit = RAIN_UNITS.get(str(reference.attrs.get("units", "")))
    return ruler_of(
        reference,
        Truth(data).area_weights.to_numpy(),
        latitude,
        None if unit is None else wet_day * unit,
    )


def _write(
    out: Path,
    scores: dict[str, dict[str, Any]],
    curves: xr.Dataset,
    provenance: dict[str, Any],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "drift.nc.partial"
    curves.to_netcdf(partial, engine="h5netcdf")
    partial.replace(out / "drift.nc")
    partial = out / "drift.json.partial"
    partial.write_text(
        json.dumps(_plain({"variables": scores, "provenance": provenance}), indent=1)
    )
    partial.replace(out / "drift.json")
    write_drift_page(out / "drift.html", scores, curves, provenance)


def _plain(value: Any) -> Any:
    """With None for what is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
