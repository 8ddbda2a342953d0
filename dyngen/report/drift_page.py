"""The page of a drift report: what changed over a long run, in tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dyngen.report.drift_figures import drift_figures
from dyngen.report.html import page_figure, page_table, write_page

HEADINGS = ("", "first years", "last years", "blocks of the reference")

CAPTIONS = {
    "annual_means": (
        "Year by year",
        "The mean over everything. Shaded is twice the reference's standard deviation from year to "
        "year; the straight line is the trend.",
    ),
    "maps": (
        "Maps",
        "The reference's mean, and what the run's last years are off it and off its first years. "
        "Dots: off by more than the years of the reference, drawn at random, would be 19 times in "
        "20. A perfect run has dots over a twentieth of the area.",
    ),
    "seasonal_cycle": (
        "The year",
        "Monthly means by region. Shaded is the range of the reference's blocks of years.",
    ),
    "zonal_mean": (
        "From pole to pole",
        "Zonal means, and the same less the reference's. Shaded as above.",
    ),
    "variance": (
        "Variance",
        "Mean square of the departures from the reference's monthly means, year by year.",
    ),
    "spectrum": (
        "Spectrum",
        "Power of these departures by zonal wavenumber, mean over all rows by area, and its ratio "
        "to the reference's.",
    ),
    "return_levels": (
        "Return levels",
        "The value exceeded at a cell once in so many years, by an extreme value law fitted to "
        "yearly maxima (L-moments). First and last are stretches as long as the reference, or half "
        "the run.",
    ),
    "spells": (
        "Dry and wet spells",
        "Share of the spells at a cell that last longer than so many days, weighted by area. A wet "
        "day has 1 mm or more.",
    ),
}
WIDE = {"annual_means", "maps", "seasonal_cycle", "variance", "zonal_mean", "spectrum", "spells"}


def write_drift_page(
    path: Path,
    scores: Mapping[str, Mapping[str, Any]],
    curves: xr.Dataset,
    provenance: Mapping[str, Any],
) -> None:
    """Write `drift.html`.

    Args:
        path: of the file.
        scores: by variable, as `drift_scores` gives them.
        curves: as `drift_curves` gives them, of all variables.
        provenance: shown at the end.
    """
    tables, figures = "", ""
    for name, found in scores.items():
        one = curves.sel(variable=name, drop=True)
        one.attrs["units"] = found["units"]
        units = "" if found["units"] in ("", "1") else f" ({found['units']})"
        tables += page_table(f"{name}: what moved", ("", "value"), trend_rows(found))
        tables += page_table(f"{name}: beside the reference", HEADINGS, distance_rows(found))
        for kind, figure in drift_figures(one).items():
            heading, text = CAPTIONS[kind]
            figures += page_figure(
                f"{name}-{kind}", figure, f"{heading}: {name}{units}", text, wide=kind in WIDE
            )
    first = next(iter(scores.values()))
    write_page(
        path,
        title="Does it drift?",
        measured=f"{first['years']} whole years, {first['members']} member"
        f"{'s' if first['members'] > 1 else ''}, beside {first['reference_years']} years of the "
        f"reference; first and last years are {first['block_years'][0]} each",
        tables=tables,
        figures=figures,
        provenance=provenance,
    )


def trend_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Trend, means and maps of one variable as texts."""
    units, mean, maps = found["units"], found["mean"], found["map"]["within_spread_fraction"]
    rows = [
        ["mean of the reference", f"{number(mean['reference'])} {units}"],
        ["mean of the run", f"{number(mean['run'])} {units}"],
        [
            "standard deviation from year to year (run, reference)",
            f"{number(mean['run_year_to_year_std'])}, "
            f"{number(mean['reference_year_to_year_std'])} {units}",
        ],
    ]
    if found["trend"]:
        line = found["trend"]
        rows.append(
            [
                "trend per century",
                f"{number(line['per_century'])} ± {number(line['standard_error'])} {units} "
                f"({line['percent_per_century']:.3f} ± {line['percent_standard_error']:.3f} %)",
            ]
        )
    own = ", ".join(f"{one:.3f}" for one in maps["reference_blocks"]) or "–"
    return [
        *rows,
        ["area where the last years' map is within the reference's spread", f"{maps['last']:.3f}"],
        ["the same of the first years", f"{maps['first']:.3f}"],
        ["the same of blocks of the reference, held against the rest of it", own],
        [
            "area where the last years are within that spread of the first",
            f"{found['map']['last_within_spread_of_first_fraction']:.3f}",
        ],
        ["values that are missing", f"{found['missing_values']}"],
    ]


def distance_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Distances of the first and last years, and the range of the reference's blocks."""
    units = found["units"]
    named: list[tuple[str, Mapping[str, Any]]] = [
        (f"mean map, root-mean-square difference ({units})", found["map"]["rms"]),
        (f"zonal mean, root-mean-square difference ({units})", found["zonal_mean_rms"]),
        *(
            (f"seasonal cycle, root-mean-square difference, {region} ({units})", values)
            for region, values in found["seasonal_cycle_rms"].items()
        ),
        ("variance, ratio", found["variance_ratio"]),
        ("spectrum, distance (dB)", found["spectrum_db"]),
    ]
    if "return_level_ratio" in found:
        years = found["return_level_ratio"]["period_years"]
        named.append((f"level that returns in {years:g} years, ratio", found["return_level_ratio"]))
    for kind in ("dry", "wet"):
        if f"mean_{kind}_spell_days" in found:
            named.append((f"mean {kind} spell (days)", found[f"mean_{kind}_spell_days"]))
            text = f"{kind} spell that one in twenty exceeds (days)"
            named.append((text, found[f"long_{kind}_spell_days"]))
    return [
        [name, number(one["first"]), number(one["last"]), _range(one["reference_blocks"])]
        for name, one in named
    ]


def number(value: float | None) -> str:
    """Four digits, whatever the size."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def _range(values: Sequence[float]) -> str:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return f"{number(min(known))} to {number(max(known))}" if known else "–"
