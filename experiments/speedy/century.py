"""The figures of a century, from what a rollout, its kills and its drift report left on disk.

    python experiments/speedy/century.py RUN.zarr DRIFT_FOLDER KILLS.json OUT_FOLDER

RUN.zarr is the rollout, DRIFT_FOLDER what `dyngen drift` wrote, KILLS.json what `kills.py` printed.
OUT_FOLDER gets `century.json` and the figures of the report as PNG; as long as there is no report,
the figures of drift are null.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import xarray as xr

from dyngen.report.drift_figures import drift_figures
from dyngen.report.provenance import machine
from dyngen.rollout import open_rollout

DAYS = 365.2425
COMMAND = (
    "dyngen rollout --config experiments/speedy/rollout.yaml --sampling.calibration null "
    "--split train --initial_states 7200 --steps 1 --batch_size 16 "
    "--normalised true --out day.zarr; "
    "dyngen calibrate day.zarr --reference $DYNGEN_CUBE --out $DYNGEN_RUN/calibration.npz; "
    "dyngen settle --config experiments/speedy/settle.yaml; "
    "python experiments/speedy/kills.py century.zarr twin.zarr --kills {kills} --within {within} "
    "--together -- --config experiments/speedy/rollout.yaml > kills.json; "
    "dyngen rollout --config experiments/speedy/rollout.yaml --out century.zarr; "
    "dyngen drift century.zarr --reference $DYNGEN_CUBE --out drift; "
    "python experiments/speedy/century.py century.zarr drift kills.json docs/results/speedy"
)
DRAWN = {
    "pr": ("annual_means", "maps", "seasonal_cycle", "zonal_mean", "spells", "return_levels"),
    "ta": ("annual_means", "maps"),
    "ps": ("annual_means", "maps"),
}


def century(run: Path, drift: Path, kills: Path) -> dict[str, Any]:
    """The figures, as they are; those of drift are None as long as there is no report on it.

    `complete` says whether all steps that were asked for are there.
    """
    cost = json.loads((run / ".cost.json").read_text()) if (run / ".cost.json").exists() else {}
    killed = json.loads(kills.read_text())
    rollout = open_rollout(run)
    settings = json.loads(rollout.attrs["dyngen_settings"])
    seconds = cost.get("seconds_per_frame")
    return {
        "steps": rollout.sizes["time"],
        "steps_asked_for": json.loads(rollout.attrs["dyngen_layout"])["steps"],
        "complete": bool(rollout.attrs["dyngen_complete"]),
        "members": rollout.sizes["member"],
        "kills": len(killed["killed_after_steps"]),
        "killed_after_steps": killed["killed_after_steps"],
        "bytes_equal": killed["bytes_equal"],
        "bytes_compared": f"all {killed['chunks_compared']} chunks of the first "
        f"{killed['steps_compared']} steps, within which all kills lie, with those of an "
        "uninterrupted run of as many",
        **_of_drift(drift / "drift.json"),
        "years_per_day": None if seconds is None else 86400 / DAYS / seconds,
        "machine": cost.get("machine") or machine(),
        "sampling": settings["sampler"],
        "command": COMMAND.format(
            kills=len(killed["killed_after_steps"]), within=killed["steps_compared"]
        ),
    }


def _of_drift(report: Path) -> dict[str, Any]:
    if not report.exists():
        return {"drift_percent_per_century": None, "map_within_spread_fraction": None}
    told = json.loads(report.read_text())["variables"]
    rain = told["pr"]
    line, within = rain["trend"] or {}, rain["map"]["within_spread_fraction"]
    return {
        "missing_values": {name: found["missing_values"] for name, found in told.items()},
        "whole_years": rain["years"],
        "block_years": rain["block_years"],
        "drift_percent_per_century": line.get("percent_per_century"),
        "drift_standard_error_percent": line.get("percent_standard_error"),
        "map_within_spread_fraction": within["last"],
        "map_within_spread_fraction_of_first_years": within["first"],
        "map_within_spread_fraction_of_reference_blocks": within["reference_blocks"],
        "map_last_within_spread_of_first_fraction": rain["map"][
            "last_within_spread_of_first_fraction"
        ],
        "map_within_spread_fraction_by_variable": {
            name: found["map"]["within_spread_fraction"]["last"] for name, found in told.items()
        },
        "mean_precipitation_mm_per_day": rain["mean"],
    }


def main() -> None:
    run, drift, kills, out = map(Path, sys.argv[1:5])
    out.mkdir(parents=True, exist_ok=True)
    (out / "century.json").write_text(json.dumps(century(run, drift, kills), indent=1) + "\n")
    if not (drift / "drift.json").exists():
        return
    told = json.loads((drift / "drift.json").read_text())["variables"]
    with xr.open_dataset(drift / "drift.nc") as curves:
        for variable, names in DRAWN.items():
            one = curves.sel(variable=variable, drop=True)
            one.attrs["units"] = told[variable]["units"]
            figures = drift_figures(one)
            for name in names:
                if name in figures:
                    figures[name].savefig(out / f"{variable}_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
