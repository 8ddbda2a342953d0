"""Everything that is said of rollouts: scores, feature distances, figures, and the files of them.

What `RolloutEvaluation` does after it has rolled out, and `dyngen evaluate` with rollouts of
anyone, is here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dyngen.report.distance_figures import distance_figures
from dyngen.report.evaluate import evaluate
from dyngen.report.feature_distances import Features, feature_distances
from dyngen.report.html import write_report
from dyngen.report.pictures import draw
from dyngen.report.summary import summarise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """What rollouts are held against, in physical units; all may be lazy.

    Args:
        truth: what came true, (initial, lead, y, x).
        initial_frames: the last given frames, (initial, y, x).
        reference: held-out truth, (run, time, y, x).
        training: likewise, what climatology is drawn from.
        area_weights: over the rows.
        periodic: whether rows and columns wrap around.
    """

    truth: xr.Dataset
    initial_frames: xr.Dataset
    reference: xr.Dataset
    training: xr.Dataset
    area_weights: xr.DataArray
    periodic: tuple[bool, bool]


@dataclass(frozen=True)
class Assessment:
    """Scores and distances as labelled datasets, as plain numbers, and as pictures."""

    scores: xr.Dataset
    distances: xr.Dataset | None
    summary: dict[str, Any]
    figures: dict[str, Figure]
    animation: bytes


def assess(
    forecasts: Mapping[str, xr.Dataset],
    free_runs: Mapping[str, xr.Dataset],
    world: World,
    *,
    features: Features | None = Features(),  # noqa: B008 (frozen)
    costs: Mapping[str, dict[str, Any] | None] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Assessment:
    """Score forecasts and free runs, and draw what there is to see.

    Args:
        forecasts: by system, (initial, member, lead, y, x).
        free_runs: by system, (member, time, y, x).
        world: what they are held against.
        features: what frames and films are compared by; None: no such distances.
        costs: by system, what its model cost to train and its frames to sample, where known.
        bootstrap: resamplings of the initial states behind intervals.
        seed: of whatever is drawn at random.

    Raises:
        ValueError: where a system does not fit the world, saying how.
    """
    scores = evaluate(
        forecasts,
        world.truth,
        reference=world.reference,
        training=world.training,
        initial_frames=world.initial_frames,
        free_runs=free_runs,
        area_weights=world.area_weights,
        periodic=world.periodic,
        bootstrap=bootstrap,
        seed=seed,
    )
    summary = summarise(scores)
    figures, animation = draw(scores, world.truth, forecasts, world.reference, free_runs)
    distances = None
    if features is not None:
        distances = feature_distances(
            forecasts,
            world.truth,
            reference=world.reference,
            initial_frames=world.initial_frames,
            free_runs=free_runs,
            periodic=world.periodic,
            features=features,
            seed=seed,
        )
        summary["feature_distances"] = summarise_distances(distances)
        figures |= distance_figures(distances)
    summary["costs"] = {name: cost for name, cost in (costs or {}).items() if cost}
    return Assessment(scores, distances, summary, figures, animation)


def summarise_distances(distances: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Name -> system -> number, or the curve by lead or first step; None where not finite."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in distances.items():
        of: dict[str, Any] = {}
        for system in map(str, distances["system"].values):
            one = values.sel(system=system)
            if not bool(one.notnull().any()):
                continue
            if not one.ndim:
                of[system] = _number(float(one))
            else:
                points = zip(one[one.dims[0]].values.tolist(), one.values.tolist(), strict=True)
                of[system] = {str(at): _number(v) for at, v in points if not np.isnan(v)}
        found[str(name)] = of
    return found


def write_assessment(
    folder: Path, assessment: Assessment, provenance: Mapping[str, Any], title: str | None = None
) -> None:
    """Write `scores.nc`, `summary.json` and `report.html`, each replaced at once.

    `scores.nc` has the feature distances in a group of their own, `feature_distances`.

    Args:
        folder: made if it is not there.
        assessment: what to write.
        provenance: shown at the end of the page.
        title: of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scores.nc"
    partial = path.with_name(f"{path.name}.partial")
    assessment.scores.to_netcdf(partial, engine="h5netcdf")
    if assessment.distances is not None:
        assessment.distances.to_netcdf(
            partial, engine="h5netcdf", mode="a", group="feature_distances"
        )
    partial.replace(path)
    path = folder / "summary.json"
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(assessment.summary, indent=2))
    partial.replace(path)
    write_report(
        folder / "report.html",
        assessment.scores,
        assessment.summary,
        assessment.figures,
        assessment.animation,
        provenance,
        **({"title": title} if title else {}),
    )
    log.info("scores in %s, report in %s", path, folder / "report.html")


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
