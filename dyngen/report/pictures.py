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
    """All figures by name, in the order of a report, and a GIF; of the first variable.

    Fields are those of the first initial state, and of each system's first member.

    Args:
        scores: As `evaluate` returns them.
        truth: What came true, (initial, lead, y, x).
        forecasts: System -> (initial, member, lead, y, x).
        reference: Held-out truth, (run, time, y, x).
        free_runs: System -> (member, time, y, x).
    """
    name = str(scores["variable"].values[0])
    units = str(truth[name].attrs.get("units", "1"))
    label = f"{truth[name].attrs.get('long_name', name)}{'' if units == '1' else f' ({units})'}"
    fields = {"truth": truth[name][0]}
    for system, data in forecasts.items():
        fields[system] = data[name].isel(initial=0, member=0).load()
    figures = {"fields": field_panels(fields, label=label)}
    figures |= score_figures(scores, name)
    if free_runs:
        row = reference.sizes[truth[name].dims[-2]] // 2
        slices = {"truth": reference[name][0, :SLICE_STEPS, row]}
        for system, data in free_runs.items():
            slices[f"{system} from the start"] = data[name][0, :SLICE_STEPS, row].load()
            if data.sizes["time"] >= 2 * SLICE_STEPS:
                slices[f"{system} at the end"] = data[name][0, -SLICE_STEPS:, row].load()
        figures["slices"] = hovmoller(slices, label=label)
    moving = {system: np.asarray(data.values) for system, data in fields.items()}
    return figures, animation_gif(moving)
