"""What a contest of many systems came to: a row for each, where lines would be a thicket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from dyngen.report.style import COLOURS, INK, styled

MANY = 10  # systems that lines by lead still tell apart
TICKS = (0.7, 1, 1.5, 2, 3, 5, 10, 20)


@styled
def rows_by_system(systems: Mapping[str, Any]) -> Figure:
    """CRPS over that of the first system, with 95 % intervals, and spread-skill; the best on top.

    Args:
        systems: By name, what `dyngen contest` writes as JSON: `crps_ratio`, `crps_ratio_interval`
            and `spread_skill`, each by lead. The first lead and the last are shown; systems that
            are compared with none are left out.
    """
    first, *_, last = next(iter(systems.values()))["crps"]
    compared = [name for name, of in systems.items() if "crps_ratio" in of]
    names = sorted(compared, key=lambda name: systems[name]["crps_ratio"][last], reverse=True)
    figure = Figure(figsize=(7.6, 1.0 + 0.21 * len(names)), layout="constrained")
    ratio, calibration = figure.subplots(1, 2, sharey=True)
    for axes in (ratio, calibration):
        axes.axvline(1, color=INK, linewidth=0.8)
    for lead, colour, shift in zip((first, last), COLOURS, (0.15, -0.15), strict=False):
        for row, name in enumerate(names):
            of = systems[name]
            value, ends = of["crps_ratio"][lead], of.get("crps_ratio_interval", {})
            low, high = (ends.get(end, {}).get(lead, value) for end in ("low", "high"))
            ratio.plot([low, high], [row + shift] * 2, color=colour, linewidth=1.2)
            label = f"lead {lead}" if not row else None
            ratio.plot(value, row + shift, "o", color=colour, markersize=3.5, label=label)
            spread = of.get("spread_skill", {}).get(lead)
            if spread is not None:
                calibration.plot(spread, row + shift, "o", color=colour, markersize=3.5)
    ratio.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ratio.set_xscale("log")
    ratio.set_xticks(TICKS)
    ratio.xaxis.set_major_formatter(ScalarFormatter())
    ratio.xaxis.set_minor_formatter(NullFormatter())
    ratio.set_xlabel(f"CRPS over that of {next(iter(systems)).replace('_', ' ')}")
    calibration.set_xlabel("spread / skill")
    ratio.legend(loc="lower right")
    return figure
