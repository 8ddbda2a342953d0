"""What each system cost, as a table of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADINGS = (
    "system",
    "parameters",
    "training",
    "training FLOPs",
    "of the image model",
    "evaluations / frame",
    "FLOPs / frame",
    "seconds / frame",
)


def cost_table(costs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row of text under `HEADINGS` for each system; a dash for what is not known.

    Args:
        costs: by system, as `dyngen.callbacks.cost.rollout_cost` gives them.
    """
    rows = []
    for system, cost in costs.items():
        training = cost.get("training") or {}
        image = cost.get("image_model_training") or {}
        rows.append(
            [
                system,
                _number(cost.get("parameters")),
                _seconds(training.get("seconds")),
                _number(training.get("flops")),
                _number(image.get("flops")),
                _number(cost.get("evaluations_per_frame")),
                _number(cost.get("flops_per_frame")),
                _number(cost.get("seconds_per_frame")),
            ]
        )
    return rows


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _number(value: float | None) -> str:
    """Three digits and the SI prefix."""
    if value is None:
        return "–"
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if prefix == "k" else size
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g}"
