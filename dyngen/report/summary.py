"""The scores as plain numbers: what goes into summary.json, the table and the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

Summary = dict[str, Any]

SCALARS = {
    "std_ratio": "std_ratio",
    "log_spectral_distance_db": "log_spectral_distance_db",
    "increment_std_ratio": "increment_std_ratio",
    "increment_wasserstein": "increment_wasserstein",
    "rank_distance_from_flat": "rank_distance_from_flat",
    "rank_p_value": "rank_p_value",
    "wave_distance_db": "wave_distance_db",
}
BY_LEAD = (
    "crps",
    "crps_ratio",
    "crps_biased",
    "energy_score",
    "variogram_score",
    "rmse",
    "mean_absolute_error",
    "spread_skill",
    "bias",
)
OF_EVENTS = (
    "brier",
    "brier_fair",
    "brier_skill",
    "brier_reliability",
    "brier_resolution",
    "brier_uncertainty",
    "roc_area",
    "threshold_weighted_crps",
)
OF_FREE_RUN = (
    "steps",
    "members",
    "bias",
    "std_ratio",
    "log_spectral_distance_db",
    "end_bias",
    "end_std_ratio",
    "end_log_spectral_distance_db",
    "mean_drift",
    "std_drift",
    "increment_std_ratio",
    "increment_wasserstein",
    "value_wasserstein",
    "wave_distance_db",
)


def summarise(scores: xr.Dataset) -> Summary:
    """Scores as nested dictionaries of numbers that JSON can hold.

    One variable gives, by system (``guided``, ..., ``persistence``, ``climatology``)::

        crps, energy_score, rmse, spread_skill, bias, ...      {system: {lead: value}}
        autocorrelation                                        {system: {lag: value}}
        time_variogram_score                                   {system: {separation: value}}
        spread_skill_by_scale                                  {system: {band: {lead: value}}}
        std_ratio, log_spectral_distance_db, ...               {system: value}
        tail_bias                                              {system: {probability: value}}
        events                                                 {exceedance: {figure: ...}}
        return_level                                           {system: {period: value}}
        free_run                                               {system: {figure: value}}

    ``crps_ratio`` is over the CRPS of the first system. An exceedance ("0.9") has its
    ``threshold`` in the units of the variable, ``event_frequency``
    {lead: value}, ``brier``, ``roc_area``, ``threshold_weighted_crps`` and others as
    {system: {lead: value}}, and ``fractions_skill`` as {system: {cells: {lead: value}}}.
    ``return_level`` has the ``reference`` too; its periods are in blocks of
    ``return_level_block_steps``.
    Leads and lags are steps, written as strings ("1", "2", ...) because JSON has no other keys.
    ``autocorrelation`` has also ``truth``, over the same windows as the forecasts, and
    ``reference``, of all held-out truth; a free run has ``autocorrelation`` and ``tail_bias`` too,
    and its figures ``end_*`` are of its last fifth. What a system has not, or what is not a finite
    number, is None, and a system without any value of a score is left out of it.

    Several variables give ``{"variables": {name: the above}}``; :func:`by_variable` reads both.

    Args:
        scores: what :func:`~dyngen.report.evaluate.evaluate` returns.
    """
    of = {str(v): _of_variable(scores.sel(variable=v)) for v in scores["variable"].values}
    return next(iter(of.values())) if len(of) == 1 else {"variables": of}


def by_variable(summary: Mapping[str, Any], name: str = "") -> dict[str, Summary]:
    """The summary of each variable; a single one is called ``name``."""
    return dict(summary["variables"]) if "variables" in summary else {name: dict(summary)}


def _of_variable(scores: xr.Dataset) -> Summary:
    summary: Summary = {score: _curves(scores, score, "lead") for score in BY_LEAD}
    summary["autocorrelation"] = _curves(scores, "autocorrelation", "lag")
    if "reference_autocorrelation" in scores:
        summary["autocorrelation"]["reference"] = _curve(scores["reference_autocorrelation"], "lag")
    for key, score in SCALARS.items():
        summary[key] = _numbers(scores, score)
    summary["tail_bias"] = _curves(scores, "tail_bias", "probability")
    summary["time_variogram_score"] = _curves(scores, "time_variogram_score", "time_separation")
    summary["spread_skill_by_scale"] = _surfaces(scores, "spread_skill_by_scale", "band")
    if "exceedance" in scores.dims:
        events = [(str(e), scores.sel(exceedance=e)) for e in scores["exceedance"].values]
        summary["events"] = {name: _of_event(one) for name, one in events}
    if "reference_return_level" in scores:
        own = _curve(scores["reference_return_level"], "return_period")
        levels = _curves(scores, "free_return_level", "return_period")
        summary["return_level"] = {"reference": own} | levels
        steps = scores["return_period"].attrs["block_steps"]
        summary["return_level_block_steps"] = int(steps)
    free = {key: _numbers(scores, f"free_{key}") for key in OF_FREE_RUN}
    autocorrelation = _curves(scores, "free_autocorrelation", "lag")
    tail = _curves(scores, "free_tail_bias", "probability")
    summary["free_run"] = {
        system: {key: of[system] for key, of in free.items() if system in of}
        | {"autocorrelation": autocorrelation.get(system), "tail_bias": tail.get(system)}
        for system in free["steps"]
    }
    return summary


def _of_event(scores: xr.Dataset) -> Summary:
    """Figures of one threshold."""
    found: Summary = {"threshold": _number(float(scores["threshold"]))}
    if "event_frequency" in scores:
        found["event_frequency"] = _curve(scores["event_frequency"], "lead")
    found |= {score: _curves(scores, score, "lead") for score in OF_EVENTS}
    return found | {"fractions_skill": _surfaces(scores, "fractions_skill", "neighbourhood")}


def _surfaces(
    scores: xr.Dataset, score: str, dim: str
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Curves by lead at each point of another dimension."""
    if score not in scores:
        return {}
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for at in scores[dim].values:
        for system, curve in _curves(scores.sel({dim: at}), score, "lead").items():
            found.setdefault(system, {})[str(at)] = curve
    return found


def _curves(scores: xr.Dataset, score: str, dim: str) -> dict[str, dict[str, float | None]]:
    if score not in scores:
        return {}
    return {
        str(system): _curve(scores[score].sel(system=system), dim)
        for system in scores["system"].values
        if bool(scores[score].sel(system=system).notnull().any())
    }


def _curve(values: xr.DataArray, dim: str) -> dict[str, float | None]:
    """Points up to the last that is known: lags no forecast is long enough for are not listed."""
    known = np.flatnonzero(values.notnull().values)
    last = known[-1] + 1 if len(known) else 0
    points = zip(values[dim].values[:last], values.values[:last], strict=True)
    return {str(key): _number(value) for key, value in points}


def _numbers(scores: xr.Dataset, score: str) -> dict[str, float | None]:
    if score not in scores:
        return {}
    return {
        str(system): _number(value)
        for system, value in zip(scores["system"].values, scores[score].values, strict=True)
        if not np.isnan(value)
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
