"""From datasets of forecasts, free runs and truth to one labelled dataset of scores.

Two systems that any forecast must beat are added: `persistence`, the last given frame for ever, and
`climatology`, an ensemble of stretches of the training data, evenly spread over it.

Everything is measured variable by variable and system by system, and read in blocks, so that
neither a large ensemble nor a century has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr

from dyngen.metrics.distributions import histogram_quantile
from dyngen.report.event_sums import check_exceedances, fitting
from dyngen.report.forecast_scores import forecast_scores
from dyngen.report.free_run_scores import (
    BLOCKS,
    climate_of,
    free_scores,
    lengths_of,
    reference_scores,
)
from dyngen.report.labels import coordinates, labelled
from dyngen.report.long_runs import extent
from dyngen.report.systems import as_runs, check_forecast, frames_of, readers, variables_of
from dyngen.report.yardstick import yardstick_of

LAGS = (*range(0, 11), 12, 15, 20, 25, 30, 40, 50)
EXCEEDANCES = (0.9, 0.99)
NEIGHBOURHOODS = (1, 3, 5, 9, 17)
OWN = ("truth", "persistence", "climatology")


def evaluate(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    *,
    reference: xr.Dataset,
    initial_frames: xr.Dataset | None = None,
    training: xr.Dataset | None = None,
    free_runs: Mapping[str, xr.Dataset] | None = None,
    area_weights: xr.DataArray | None = None,
    periodic: tuple[bool, bool] = (True, True),
    spacing: tuple[float, float] = (1.0, 1.0),
    lags: tuple[int, ...] = LAGS,
    exceedances: tuple[float, ...] = EXCEEDANCES,
    neighbourhoods: tuple[int, ...] = NEIGHBOURHOODS,
    maxima_block: int | None = None,
    wave_segment: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    memory: int = 256 * 2**20,
) -> xr.Dataset:
    """Score ensemble forecasts and free runs against what came true and its climate.

    The names of the two spatial dimensions are those of ``truth``; other variables of a system,
    such as a sampler's diagnostics, are ignored. The truth may have missing values (NaN): such
    points do not count. A forecast that is missing where there is truth makes the score NaN.

    Args:
        forecasts: by system, (initial, member, lead, y, x), in physical units.
        truth: what came true, (initial, lead, y, x).
        reference: held-out truth, (trajectory or sample, time, y, x) or (time, y, x): free runs
            are compared with it.
        initial_frames: the last given frames, (initial, y, x); without it no `persistence`.
        training: what `climatology` draws from, laid out like the reference, and whose mean at
            every point is what anomalies are taken from, of the truth and of systems alike; None:
            the reference.
        free_runs: by system, (member, time, y, x), of any length.
        area_weights: over the spatial dimensions, or one of them; None: all points count alike.
        periodic: whether y and x wrap around; where not, spectra are taken through a window.
        spacing: distance between rows and between columns, in one unit.
        lags: of the autocorrelations, in steps.
        exceedances: an event is a value above the quantile of the reference, over all its times and
            points, of such a probability. Where places differ, part of the skill in it is that of
            knowing the place: `climatology` shows how much.
        neighbourhoods: sides of the squares of the fractions skill score, in cells, odd; those that
            do not fit are left out.
        maxima_block: steps in a block of which the maximum is taken for return levels, such as a
            year; None: at most 365, and few enough for 20 blocks of each run.
        wave_segment: steps in a segment of the wavenumber-frequency spectra; None: 64, or fewer
            where runs are shorter.
        bootstrap: resamplings of the initial states behind the intervals.
        seed: of the resamplings and of ties among ranks.
        memory: bytes to work in, about.

    Returns: scores by the dimensions of :mod:`dyngen.report.labels`. System `truth` holds the
    truth's own figures over the same windows; names that start with ``reference_`` the reference's;
    names that start with ``free_`` are of the free runs, and those with ``free_end_`` of their last
    fifth.

    Raises:
        ValueError: when a system lacks a variable or a dimension, or its sizes or initial times are
            not those of the truth; for a threshold, neighbourhood, block or segment that cannot be.
    """
    check_exceedances(exceedances)
    free_runs = free_runs or {}
    training = reference if training is None else training
    variables = variables_of(truth)
    for name, dataset in forecasts.items():
        if name in OWN:
            raise ValueError(f"a system cannot be called {name!r}: that one is added here.")
        check_forecast(name, dataset, truth, variables)
    systems = ["truth", *forecasts]
    systems += ["persistence"] if initial_frames is not None else []
    systems += ["climatology"] if forecasts else []
    systems += [name for name in free_runs if name not in systems]

    parts = []
    thresholds_of = []
    for variable in variables:
        target = truth[variable].transpose("initial", "lead", ...)
        space = tuple(map(str, target.dims[2:]))
        runs = as_runs("reference", reference, variable, space)
        free = {
            name: as_runs(f"free run {name!r}", dataset, variable, space)
            for name, dataset in free_runs.items()
        }
        past = as_runs("training", training, variable, space)
        yardstick = yardstick_of(
            runs,
            extent(runs, memory),
            area_weights,
            centre=None if training is reference else extent(past, memory).mean,
            lags=lags,
            periodic=periodic,
            spacing=spacing,
        )
        given = readers(
            {name: data[variable] for name, data in forecasts.items()},
            target,
            None if initial_frames is None else frames_of(initial_frames, variable, space),
            past,
        )
        lengths = lengths_of(
            [runs, *free.values()], yardstick, block=maxima_block, segment=wave_segment
        )
        known = climate_of(runs, yardstick, lengths, blocks=1, memory=memory, skip_missing=True)
        thresholds = histogram_quantile(
            known.statistics.absolute,
            yardstick.absolute_edges,
            torch.tensor(exceedances, dtype=torch.float64),
        )
        widths = fitting(neighbourhoods, yardstick.shape)
        part = forecast_scores(
            given,
            target,
            yardstick,
            thresholds=thresholds,
            widths=widths,
            bootstrap=bootstrap,
            seed=seed,
            memory=memory,
        )
        part |= reference_scores(known, yardstick, seed)
        for name, run in free.items():
            found = climate_of(
                run, yardstick, lengths, blocks=BLOCKS, memory=memory, skip_missing=False
            )
            part |= free_scores(name, found, known, yardstick, seed)
        coords = coordinates(
            target,
            yardstick,
            exceedances=exceedances,
            widths=widths,
            block=lengths.block,
            segment=lengths.segment,
        )
        parts.append(labelled(part, systems, variable, target, coords))
        thresholds_of.append(thresholds.numpy())
    result = xr.concat(parts, dim="variable", join="outer", combine_attrs="override")
    for label, coordinate in truth.coords.items():
        if label in space and coordinate.ndim == 1:
            result = result.assign_coords({label: coordinate})
    timed = [d for d in (*forecasts.values(), truth) if "lead" in d.coords]
    if timed:
        lead = timed[0]["lead"]
        result = result.assign_coords(lead_time=("lead", lead.values, lead.attrs))
    units = [str(truth[v].attrs.get("units", "1")) for v in variables]
    names = [str(truth[v].attrs.get("long_name", v)) for v in variables]
    result = result.assign_coords(
        units=("variable", units),
        long_name=("variable", names),
        threshold=(("variable", "exceedance"), np.stack(thresholds_of)),
    )
    return result.assign_attrs(
        title="Scores of generated dynamics",
        initial_states=int(truth.sizes["initial"]),
        climatology_from="training" if training is not reference else "reference",
        interval="95 % bootstrap over initial states",
        bootstrap_samples=bootstrap,
        seed=seed,
    )
