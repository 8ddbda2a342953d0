"""Scores by name and system as one labelled dataset.

Dimensions, of which each score has some:

==================== ===========================================================================
variable, system     names
lead, lag            steps
rank                 of the truth among the members
wavenumber           waves per longer side, isotropic
bin                  of histograms; ``value`` and ``increment`` are the centres
probability, level   of quantiles
bound                low and high of a 95 % interval
block                a stretch of a free run; ``free_step`` is its middle
exceedance           probability of the quantile of the reference that an event exceeds;
                     ``threshold`` is that quantile in the units of the variable
neighbourhood        sides of squares, in cells
diagram, warning     points of reliability diagrams and ROC curves
band                 octaves of wavenumbers, ``band_low`` to ``band_high``
separation           cells between the points of a pair, along rows or columns
time_separation      steps between the leads of a pair
return_period        in blocks of ``block_steps`` steps (an attribute)
maximum              block maxima, in ascending order
frequency            cycles per step; ``lead_frequency``, of forecasts, is coarser
signed_wavenumber    waves per axis, positive if they move towards larger x
half                 every other run or initial state of the truth, to tell noise by
y, x                 by the names they have in the data
==================== ===========================================================================
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.spectra import shells
from dyngen.report.field_sums import bands_of, separations_of, time_separations_of
from dyngen.report.run_extremes import PERIODS
from dyngen.report.yardstick import Yardstick

Scores = dict[tuple[str, str], tuple[tuple[str, ...], Tensor]]  # (score, system) -> dims, values

PROBABILITIES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
MIDDLE = tuple(round(0.05 * i, 2) for i in range(2, 19))  # 0.1, 0.15, ..., 0.9
LEVELS = (
    *(1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05),
    *MIDDLE,
    *(0.95, 0.98, 0.99, 0.997, 0.999, 0.9997, 0.9999),
)


def labelled(
    found: Scores,
    systems: list[str],
    variable: Hashable,
    target: xr.DataArray,
    coords: dict[str, Any],
) -> xr.Dataset:
    """Scores of one variable as a dataset; NaN where a system has no such score.

    A dimension is as long as the longest system needs it.

    Args:
        found: dimensions and values, by score and system; the system "" means none.
        systems: all of them, in order.
        variable: its name.
        target: what came true, (initial, lead, y, x).
        coords: for the dimensions that are used.
    """
    names = dict(zip(("y", "x"), map(str, target.dims[2:]), strict=True))
    data: dict[str, Any] = {}
    for score in dict.fromkeys(score for score, _ in found):
        of = {system: found[score, system] for system in ["", *systems] if (score, system) in found}
        dims, first = next(iter(of.values()))
        labels = tuple(names.get(d, d) for d in dims)
        if "" in of:
            data[score] = labels, first.double().numpy(), _attributes(score)
            continue
        shape = np.max([value.shape for _, value in of.values()], axis=0).astype(int)
        values = np.full((len(systems), *shape), np.nan)
        for system, (_, value) in of.items():
            rows: tuple[int | slice, ...] = (systems.index(system), *map(slice, value.shape))
            values[rows] = value.double().numpy()
        data[score] = ("system", *labels), values, _attributes(score)
    used = {d for v in data.values() for d in v[0]}
    if "rank" in used:
        ranks = data["rank_histogram"][1].shape[-1]
        coords = coords | {"rank": np.arange(ranks)}
    known = {
        name: value
        for name, value in coords.items()
        if (value[0] if isinstance(value, tuple) else name) in used
    }
    return xr.Dataset(data, {"system": systems, **known}).expand_dims(variable=[str(variable)])


def coordinates(
    target: xr.DataArray,
    yardstick: Yardstick,
    *,
    exceedances: Sequence[float],
    widths: Sequence[int],
    block: int | None,
    segment: int | None,
) -> dict[str, Any]:
    """Coordinates of all dimensions that have some.

    Args:
        target: what came true, (initial, lead, y, x).
        yardstick: what was measured with.
        exceedances: probabilities of the quantiles that events exceed.
        widths: of neighbourhoods.
        block: steps in a block of return levels.
        segment: steps in a segment of wave spectra.
    """
    leads = target.shape[1]
    wavenumbers, complete = shells(*yardstick.shape, yardstick.spacing)
    bands = bands_of(yardstick)
    size = yardstick.shape[1 if yardstick.periodic[1] else 0]
    per_step = {"units": "cycles per step"}
    return {
        "lead": _steps("lead", np.arange(1, leads + 1)),
        "lag": _steps("lag", yardstick.lags),
        "wavenumber": (
            "wavenumber",
            wavenumbers.numpy(),
            {"long_name": "wavenumber", "units": "waves per longer side", "complete_to": complete},
        ),
        "probability": list(PROBABILITIES),
        "level": list(LEVELS),
        "bound": ["low", "high"],
        "exceedance": (
            "exceedance",
            list(exceedances),
            {"long_name": "probability of the quantile of the reference that is exceeded"},
        ),
        "neighbourhood": ("neighbourhood", list(widths), {"units": "cells"}),
        "band": ("band", [f"{a}–{b}" if b > a else f"{a}" for a, b in bands]),
        "band_low": ("band", [a for a, _ in bands], {"units": "waves per longer side"}),
        "band_high": ("band", [b for _, b in bands], {"units": "waves per longer side"}),
        "separation": ("separation", list(separations_of(yardstick)), {"units": "cells"}),
        "time_separation": _steps("time_separation", time_separations_of(leads)),
        "return_period": (
            "return_period",
            list(PERIODS),
            {"units": "blocks", "block_steps": block or 0},
        ),
        "frequency": (
            "frequency",
            torch.fft.rfftfreq(segment or 2, dtype=torch.float64).numpy(),
            {**per_step, "segment_steps": segment or 0},
        ),
        "lead_frequency": (
            "lead_frequency",
            torch.fft.rfftfreq(max(leads, 2), dtype=torch.float64).numpy(),
            per_step,
        ),
        "signed_wavenumber": (
            "signed_wavenumber",
            # As in wave_spectrum: ascending, the Nyquist wavenumber at the positive end.
            np.sort(-np.fft.fftfreq(size, d=1 / size)),
            {"units": "waves per axis", "positive": "towards larger x"},
        ),
    }


def _steps(name: str, values: Sequence[int] | np.ndarray) -> tuple[str, np.ndarray, dict[str, str]]:
    return name, np.asarray(values, dtype=int), {"long_name": name, "units": "step"}


LONG_NAMES = {
    "crps": "fair continuous ranked probability score",
    "crps_ratio": "fair CRPS over that of the first system",
    "crps_biased": "continuous ranked probability score of the members as they are, not fair",
    "energy_score": "fair energy score of fields, by the root-mean-square norm",
    "variogram_score": "variogram score of order 0.5, mean over separations in space",
    "variogram_score_by_separation": "variogram score of order 0.5 of pairs of points",
    "time_variogram_score": "variogram score of order 0.5 of pairs of leads at a point",
    "spread_skill_by_scale": "spread-skill ratio in a band of wavenumbers",
    "rank_p_value": "test of the rank histogram that initial states alone are independent in",
    "rank_p_value_lead": "the same of each lead",
    "threshold_weighted_crps": "fair continuous ranked probability score above a threshold",
    "brier": "Brier score of exceeding a threshold",
    "brier_fair": "Brier score less what the ensemble's size adds",
    "brier_skill": "Brier skill score relative to the frequency of the event",
    "brier_reliability": "reliability part of the Brier score",
    "brier_resolution": "resolution part of the Brier score",
    "brier_uncertainty": "uncertainty part of the Brier score",
    "roc_area": "area under the receiver operating characteristic",
    "roc_hit_rate": "share of events warned of, all leads together",
    "roc_false_alarm_rate": "share of other cases warned of, all leads together",
    "reliability_probability": "mean forecast probability, all leads together",
    "reliability_frequency": "frequency of the event when so forecast, all leads together",
    "reliability_share": "share of forecasts, all leads together",
    "event_frequency": "frequency of the event in the truth",
    "fractions_skill": "fractions skill score",
    "value_quantile": "quantile of values",
    "return_level": "value exceeded on average once in a return period at a point",
    "return_level_bias": "return level less that of the reference",
    "maximum": "area mean of the sorted block maxima",
    "maximum_period": "return period of a sorted block maximum, in blocks",
    "wave_spectrum": "power by wavenumber and frequency of waves along an axis",
    "wave_halves": "the same of either half of the truth",
    "wave_distance_db": "log-spectral distance over wavenumbers and frequencies in dB",
    "reference_wave_distance_db": "the same between the halves of the truth",
    "wave_halves_distance_db": "the same between the halves of the truth",
    "mean_absolute_error": "mean absolute error of the ensemble mean",
    "rmse": "root-mean-square error of the ensemble mean (skill)",
    "bias": "mean error of the ensemble mean",
    "spread": "root-mean variance of the members",
    "spread_skill": "spread-skill ratio with the factor sqrt((M + 1) / M)",
    "std": "standard deviation over initial states, members and points",
    "std_all": "standard deviation over everything",
    "std_ratio": "standard deviation over that of the truth",
    "rank_histogram": "frequency of the truth's rank among the members",
    "rank_chi_square": "reduced chi-square of the rank histogram",
    "rank_distance_from_flat": "Kullback-Leibler divergence of the rank histogram from flat",
    "autocorrelation": "correlation of frames a lag apart, anomalies from climatology",
    "free_autocorrelation": "correlation of frames a lag apart, anomalies from the run's mean",
    "increment_std": "root-mean-square increment from one frame to the next",
    "increment_wasserstein": "Wasserstein-1 distance of the increments from the truth's",
    "log_spectral_distance_db": "log-spectral distance from the truth in dB",
    "log_spectral_distance_db_lead": "log-spectral distance from the truth in dB, by lead",
    "spectrum": "isotropic power spectrum, mean over leads",
    "tail_bias": "quantile less that of the truth",
    "quantile": "quantile of anomalies from climatology",
    "free_mean": "mean over members and points in a stretch of steps",
    "free_std": "standard deviation in a stretch of steps",
}


def _attributes(score: str) -> dict[str, str]:
    plain = score.removesuffix("_interval")
    for name in (score, plain, *(plain.removeprefix(p) for p in ("free_", "reference_"))):
        if name in LONG_NAMES:
            return {"long_name": LONG_NAMES[name]}
    return {}
