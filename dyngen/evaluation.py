"""`dyngen evaluate`: any rollouts, ours or others', against a cube of what came true."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.sources import open_one
from data_modules.truth import Place, Truth
from dyngen.callbacks.cost import read_cost
from dyngen.callbacks.terminal import score_tables
from dyngen.callbacks.world import world_of
from dyngen.report.assessment import assess, write_assessment
from dyngen.report.feature_distances import Features
from dyngen.report.provenance import machine
from dyngen.rollout.foreign import NotARollout, as_rollout
from dyngen.rollout.store import check_units

log = logging.getLogger(__name__)

OWN_LEADS, OWN_STATES = 10, 16  # windows of the reference itself, where nothing was forecast


def evaluate_rollouts(
    rollouts: list[str],
    reference: str,
    out: Path = Path("evaluation"),
    variables: list[str] | None = None,
    split: str = "test",
    splits: dict[str, Any] | None = None,
    features: Features | None = Features(),  # noqa: B008 (frozen)
    bootstrap: int = 1000,
    seed: int = 0,
) -> None:
    """Score rollouts against a reference and write `scores.nc`, `summary.json` and `report.html`.

    A rollout is a Zarr or NetCDF of any origin. With dimensions of initial time and lead it is a
    forecast, and scored against what came true; with one of time alone it is a free run, and its
    climate is compared. Dimensions are known by their CF attributes or usual names; without one of
    members it has one member. Several rollouts stand side by side in one report.

    Args:
        rollouts: Paths or URLs, each perhaps as `name=path`; the name is else that of the file.
        reference: Cube of what came true: Zarr or NetCDF.
        out: Folder to write to.
        variables: Which variables; by default all that every rollout and the reference have.
        split: Part of the reference that free runs are compared with and anomalies are taken from.
        splits: Of the reference, as of the data module; `train` is what climatology is drawn from.
        features: What frames and films are compared by, for FID, KID and FVD; null: nothing.
        bootstrap: Resamplings of the initial states behind the intervals.
        seed: Of whatever is drawn at random.

    Raises:
        ValueError: If rollouts and reference do not fit together, naming what does not.
    """
    named = _named(rollouts)
    with ExitStack() as files:
        opened = {place: files.enter_context(open_one(place, chunks={})) for _, place in named}
        data = ClimateCubeDataModule(
            reference, variables=common_variables(opened, reference, variables), splits=splits
        )
        forecasts: dict[str, xr.Dataset] = {}
        free_runs: dict[str, xr.Dataset] = {}
        for name, place in named:
            run = fitting(place, opened[place], data)
            kind, of_kind = (
                ("free run", free_runs) if "time" in run.dims else ("forecast", forecasts)
            )
            if name in of_kind:
                raise ValueError(
                    f"two rollouts are a {kind} called {name!r}; tell them apart as first=PATH "
                    "second=PATH."
                )
            of_kind[name] = run
        places, leads = verification(forecasts, dict(named), data, split)
        if leads[0] > 1:
            log.info("Leads are %d frames of %s apart; so are lags.", leads[0], reference)
        assessment = assess(
            forecasts,
            free_runs,
            world_of(data, split, places, leads),
            features=features,
            costs={name: read_cost(place) for name, place in reversed(named)},
            bootstrap=bootstrap,
            seed=seed,
        )
    provenance = {
        "rollouts": {f"{name} ({i})": place for i, (name, place) in enumerate(named, 1)},
        "reference": reference,
        "split": split,
        "seed": seed,
        "machine": machine(),
    }
    write_assessment(out, assessment, provenance)
    console = Console()
    for table in score_tables(assessment.summary):
        console.print(table)
    console.print(f"scores  {out / 'summary.json'}\nreport  {out / 'report.html'}", soft_wrap=True)


def compare_rollouts(
    rollouts: list[str],
    reference: str,
    out: Path = Path("comparison"),
    variables: list[str] | None = None,
    split: str = "test",
    splits: dict[str, Any] | None = None,
    features: Features | None = Features(),  # noqa: B008 (frozen)
    bootstrap: int = 1000,
    seed: int = 0,
) -> None:
    """Score two or more rollouts from the same initial states, and say who is ahead.

    As `evaluate_rollouts`. Systems are scored over the same resamplings of the initial states, so
    that the ratio of each one's CRPS to the first one's has an interval: where that excludes 1, one
    of them is ahead.

    Args:
        rollouts: Paths or URLs, each perhaps as `name=path`. A forecast and a free run of one
            system may have the same name.
        reference: Cube of what came true: Zarr or NetCDF.
        out: Folder to write to.
        variables: Which variables; by default all that every rollout and the reference have.
        split: Part of the reference that free runs are compared with and anomalies are taken from.
        splits: Of the reference, as of the data module; `train` is what climatology is drawn from.
        features: What frames and films are compared by, for FID, KID and FVD; null: nothing.
        bootstrap: Resamplings of the initial states behind the intervals.
        seed: Of whatever is drawn at random.

    Raises:
        ValueError: If there are fewer than two, or they do not fit together.
    """
    if len(rollouts) < 2:
        raise ValueError("dyngen compare needs two rollouts or more; to score one, use evaluate.")
    evaluate_rollouts(rollouts, reference, out, variables, split, splits, features, bootstrap, seed)


def _named(rollouts: list[str]) -> list[tuple[str, str]]:
    """Name and place of each rollout."""
    if not rollouts:
        raise ValueError("name a rollout to evaluate: dyngen evaluate ROLLOUT --reference CUBE.")
    found = []
    for given in rollouts:
        name, equals, place = given.partition("=")
        if not equals or "/" in name or ":" in name:
            name, place = Path(given.rstrip("/")).stem, given
        found.append((name, place))
    return found


def common_variables(
    opened: dict[str, xr.Dataset], reference: str, wanted: list[str] | None
) -> list[str]:
    """Variables that all have, in the order of the reference."""
    with open_one(reference) as cube:
        known = [str(name) for name, data in cube.data_vars.items() if data.ndim >= 3]
    for name in wanted or ():
        for system, dataset in opened.items():
            if name not in dataset:
                raise ValueError(
                    f"rollout {system!r} has no variable {name!r}; it has "
                    f"{', '.join(map(str, dataset.data_vars)) or 'none'}."
                )
    common = [name for name in known if all(name in dataset for dataset in opened.values())]
    if not common:
        has = "; ".join(f"{s}: {', '.join(map(str, d.data_vars))}" for s, d in opened.items())
        raise ValueError(
            f"{reference} and the rollouts have no variable in common ({reference}: "
            f"{', '.join(known) or 'none'}; {has}); rename them alike."
        )
    return wanted or common


def fitting(
    place: str, dataset: xr.Dataset, data: ClimateCubeDataModule, normalised: bool = False
) -> xr.Dataset:
    """A rollout with this library's dimensions and the reference's grid and units.

    With `normalised` it is in normalised units, and else refused if it is.
    """
    check_units(place, dataset.attrs, normalised)
    cube = data.cube
    try:
        rollout = as_rollout(dataset, list(cube.variables), cube.dims)
    except NotARollout as error:
        raise ValueError(f"{place}: {error}") from error
    for variable, attributes in cube.variables.items():
        units = rollout[variable].attrs.get("units")
        if not normalised and units is not None and units != attributes.get("units", units):
            raise ValueError(
                f"variable {variable!r} of {place} is in {units!r}, that of {cube.path} in "
                f"{attributes['units']!r}; convert one of them."
            )
    for dim, size in zip(cube.dims, data.shape, strict=True):
        if rollout.sizes[dim] != size:
            raise ValueError(
                f"{place} has {rollout.sizes[dim]} points along {dim!r} where {cube.path} has "
                f"{size}; bring them to one grid."
            )
        if dim not in rollout.coords or dim not in cube.coords:
            continue
        ours, theirs = cube.coords[dim][1], rollout[dim].values.astype(np.float64)
        nearly = 1e-3 * float(np.abs(np.diff(ours)).min()) if len(ours) > 1 else 1e-3
        if np.allclose(theirs[::-1], ours, atol=nearly) and size > 1:
            rollout = rollout.isel({dim: slice(None, None, -1)})
        elif not np.allclose(theirs, ours, atol=nearly):
            raise ValueError(
                f"{dim!r} of {place} goes from {theirs[0]:g} to {theirs[-1]:g}, that of "
                f"{cube.path} from {ours[0]:g} to {ours[-1]:g}; bring them to one grid."
            )
    return rollout


def verification(
    forecasts: dict[str, xr.Dataset],
    named: dict[str, str],
    data: ClimateCubeDataModule,
    split: str,
) -> tuple[list[Place], list[int]]:
    """Places in the reference where all forecasts start, and their leads in its frames."""
    if not forecasts:
        ahead = min(OWN_LEADS, Truth(data).runs(split).sizes["time"] - 1)
        return data.initial_places(split, OWN_STATES, 1, ahead), list(range(1, ahead + 1))
    places: list[Place] = []
    leads: list[int] = []
    for name, dataset in forecasts.items():
        trajectories = None
        if "initial_trajectory" in dataset.coords:
            trajectories = dataset["initial_trajectory"].values
        here = Truth(data).places(dataset["initial_time"].values, trajectories)
        steps = _steps(dataset, data, named[name])
        if places and (here != places or steps != leads):
            raise ValueError(
                f"rollouts {next(iter(forecasts))!r} and {name!r} start at other times or have "
                "other leads; compare rollouts from the same initial states."
            )
        places, leads = here, steps
    return places, leads


def _steps(dataset: xr.Dataset, data: ClimateCubeDataModule, place: str) -> list[int]:
    """Leads in frames of the reference."""
    if "lead" not in dataset.coords:
        return list(range(1, dataset.sizes["lead"] + 1))
    values = dataset["lead"].values
    if values.dtype.kind == "m":
        numbers = values / np.timedelta64(1, "s")
    elif data.cube.calendar is not None:
        units = str(dataset["lead"].attrs.get("units", ""))
        seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(units[:1].lower())
        if seconds is None:
            raise ValueError(
                f"leads of {place} are numbers without units, and the reference has dates: give "
                "the coordinate units such as 'days'."
            )
        numbers = values.astype(np.float64) * seconds
    else:
        numbers = values.astype(np.float64)
    steps = numbers / data.cube.step
    whole = np.round(steps).astype(int)
    even = set(np.diff(whole, prepend=0).tolist()) == {int(whole[0])}
    if np.abs(steps - whole).max() > 1e-2 or whole[0] < 1 or not even:
        raise ValueError(
            f"the leads of {place}, {values[0]} to {values[-1]}, are not evenly spaced frames of "
            f"the reference from its first on, which are {data.cube.step:g} apart; select those "
            "that are."
        )
    return [int(step) for step in whole]
