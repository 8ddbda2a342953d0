"""The figures of an evaluation: curves of the scores, fields, x-t slices, and a short video."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dyngen.report.animation import animation_gif
from dyngen.report.figures import field_panels, hovmoller, score_figures

SLICE_STEPS = 200


def draw(
    scores: xr.Dataset,
    truth: xr.Dataset,
    forecasts: Mapping[str, xr.Dataset],
    reference: xr.Dataset,
    free_runs: Mapping[str, xr.Dataset],
) -> tuple[dict[str, Figure], bytes]:
    """All figures by name, in the order of a report, and a GIF of the first variable.

    Of several variables each has its own figures, called `variable/name`. Fields are those of the
    first initial state, and of each system's first member.

    Args:
        scores: As `evaluate` returns them.
        truth: What came true, (initial, lead, y, x).
        forecasts: System -> (initial, member, lead, y, x).
        reference: Held-out truth, (run, time, y, x).
        free_runs: System -> (member, time, y, x).
    """
    variables = [str(name) for name in scores["variable"].values]
    figures: dict[str, Figure] = {}
    for name in variables:
        own = _of_variable(name, scores, truth, forecasts, reference, free_runs)
        before = f"{name}/" if len(variables) > 1 else ""
        figures |= {f"{before}{told}": figure for told, figure in own.items()}
    fields = _fields(variables[0], truth, forecasts)
    return figures, animation_gif({each: np.asarray(data.values) for each, data in fields.items()})


def _fields(
    name: str, truth: xr.Dataset, forecasts: Mapping[str, xr.Dataset]
) -> dict[str, xr.DataArray]:
    """What came true after the first initial state, and each system's first member."""
    first = {s: data[name].isel(initial=0, member=0).load() for s, data in forecasts.items()}
    return {"truth": truth[name][0], **first}


def _of_variable(
    name: str,
    scores: xr.Dataset,
    truth: xr.Dataset,
    forecasts: Mapping[str, xr.Dataset],
    reference: xr.Dataset,
    free_runs: Mapping[str, xr.Dataset],
) -> dict[str, Figure]:
    units = str(truth[name].attrs.get("units", "1"))
    label = f"{truth[name].attrs.get('long_name', name)}{'' if units == '1' else f' ({units})'}"
    figures = {"fields": field_panels(_fields(name, truth, forecasts), label=label)}
    figures |= score_figures(scores, name)
    if free_runs:
        row = reference.sizes[truth[name].dims[-2]] // 2
        slices = {"truth": reference[name][0, :SLICE_STEPS, row]}
        for system, data in free_runs.items():
            slices[f"{system} from the start"] = data[name][0, :SLICE_STEPS, row].load()
            if data.sizes["time"] >= 2 * SLICE_STEPS:
                slices[f"{system} at the end"] = data[name][0, -SLICE_STEPS:, row].load()
        figures["slices"] = hovmoller(slices, label=label)
    return figures
