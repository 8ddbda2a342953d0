"""Scores of events: how well an ensemble forecasts that a threshold is exceeded, and where.

Brier score and its parts, ROC, reliability, the CRPS of the tail and the fractions skill score all
follow from sums over points that are kept apart by initial state and lead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dyngen.metrics.averages import weighted_sums
from dyngen.metrics.events import (
    brier_score,
    event_counts,
    reliability_diagram,
    roc_curve,
    threshold_weighted_crps,
)
from dyngen.metrics.scales import fractions_skill
from dyngen.report.forecast_sums import ForecastSums, Sums, Values
from dyngen.report.yardstick import Yardstick

POINTS = 11  # of a reliability diagram, at most


def event_sums(
    ensemble: Tensor,
    truth: Tensor,
    yardstick: Yardstick,
    *,
    thresholds: Tensor,
    widths: Sequence[int],
) -> Sums:
    """Sums of the scores of events, for some initial states.

    Points where the truth is missing do not count; a forecast that is missing where there is truth
    makes the sums of its initial state and lead NaN.

    Args:
        ensemble: ``(I, M, L, H, W)``.
        truth: ``(I, L, H, W)``.
        yardstick: what to measure with.
        thresholds: ``(Q,)``; an event is a value above one.
        widths: ``N`` sides of neighbourhoods in cells.

    Returns: ``event_counts`` ``(I, Q, L, M + 1, 2)``, ``tail_crps`` ``(I, Q, L)``, and
    ``fractions_error`` and ``fractions_reference`` ``(I, Q, L, N)``.
    """
    weights = ~truth.isnan() * yardstick.area
    highest = torch.maximum(ensemble.amax(1), truth)  # NaN where something is missing
    broken = (highest.isnan() & (weights > 0)).any(-1).any(-1)
    parts: dict[str, list[Tensor]] = {}
    for threshold in thresholds.tolist():
        fractions = fractions_skill(
            ensemble,
            truth,
            threshold,
            widths,
            member_dim=1,
            periodic=yardstick.periodic,
            weights=yardstick.area,
            dim=(2, 3),
        )
        found = {
            "event_counts": event_counts(
                ensemble, truth, threshold, member_dim=1, weights=yardstick.area, dim=(2, 3)
            ),
            "tail_crps": _tail_crps(ensemble, truth, threshold, weights, highest),
            "fractions_error": fractions.error,
            "fractions_reference": fractions.reference,
        }
        for name, part in found.items():
            shaped = broken.reshape(*broken.shape, *[1] * (part.ndim - 2))
            parts.setdefault(name, []).append(torch.where(shaped, torch.nan, part))
    return {name: torch.stack(part, dim=1) for name, part in parts.items()}


def event_frequency_sums(
    ensemble: Tensor, truth: Tensor, yardstick: Yardstick, *, thresholds: Tensor
) -> Sums:
    """How often the event came: ``event_frequency`` ``(I, Q, L, 2)``, sums of events and weights.

    Args: as in :func:`event_sums`; the ensemble does not matter.
    """
    weights = ~truth.isnan() * yardstick.area
    total = weights.sum((-2, -1))
    came = [((truth > t) * weights).sum((-2, -1)) for t in thresholds.tolist()]
    return {"event_frequency": torch.stack([torch.stack([c, total], -1) for c in came], dim=1)}


def event_scores(sums: ForecastSums, counts: Tensor) -> Values:
    """Scores of resamplings of the initial states, by threshold and lead.

    Args:
        sums: with those of :func:`event_sums` among the further ones.
        counts: ``(B, I)`` how often each initial state is in each resampling.

    Returns: by name, dimensions after the first (exceedance, lead, neighbourhood) and values.
    """
    further = sums.further
    weight = torch.tensordot(counts, sums.by_initial["weight"], dims=1)  # (B, L)
    tail = torch.tensordot(counts, further["tail_crps"], dims=1) / weight[:, None]
    error, reference = (
        torch.tensordot(counts, further[f"fractions_{part}"], dims=1)
        for part in ("error", "reference")
    )
    by_lead = ("exceedance", "lead")
    return {
        "threshold_weighted_crps": (by_lead, tail),
        "fractions_skill": ((*by_lead, "neighbourhood"), 1 - error / reference),
        **{
            name: (by_lead, values)
            for name, values in _by_event(further["event_counts"], counts, _numbers).items()
        },
    }


def event_diagrams(sums: ForecastSums, counts: Tensor) -> Values:
    """Reliability diagrams and ROC curves of resamplings, all leads together.

    Args: as in :func:`event_scores`.

    Returns: by name, dimensions after the first (exceedance, then diagram, whose points are at most
    :data:`POINTS` groups of probabilities, or warning, from never to always) and values.
    """
    all_leads = sums.further["event_counts"].sum(2, keepdim=True)
    found = _by_event(all_leads, counts, _diagrams)
    dims = {"roc_false_alarm_rate": "warning", "roc_hit_rate": "warning"}
    return {
        name: (("exceedance", dims.get(name, "diagram")), values[:, :, 0])
        for name, values in found.items()
    }


def _tail_crps(
    ensemble: Tensor, truth: Tensor, threshold: float, weights: Tensor, highest: Tensor
) -> Tensor:
    """Sums over points of the CRPS above a threshold: (I, L).

    Where neither members nor truth are above, it is zero and need not be computed: most of a field
    if the threshold is high.
    """
    above = (highest > threshold) & (weights > 0)
    score = torch.zeros(truth.shape, dtype=torch.float64)
    score[above] = threshold_weighted_crps(
        ensemble.movedim(1, 0)[:, above], truth[above], threshold, member_dim=0
    )
    return weighted_sums(score, weights, (-2, -1))[0]


def _by_event(
    table: Tensor, counts: Tensor, figures: Callable[[Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Figures (B, Q, L, ...) of resampled tables, one event and lead at a time to save memory.

    Args: table (I, Q, L, M + 1, 2); counts (B, I); figures of (B, M + 1, 2).
    """
    rows = []
    for q in range(table.shape[1]):
        leads = [
            figures(torch.tensordot(counts, table[:, q, lead], dims=1))
            for lead in range(table.shape[2])
        ]
        rows.append({name: torch.stack([of[name] for of in leads], 1) for name in leads[0]})
    return {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}


def _numbers(table: Tensor) -> dict[str, Tensor]:
    """Of tables (B, M + 1, 2), (B,) each."""
    brier = brier_score(table)
    return {
        "brier": brier.score,
        "brier_fair": brier.fair,
        "brier_skill": brier.skill,
        "brier_reliability": brier.reliability,
        "brier_resolution": brier.resolution,
        "brier_uncertainty": brier.uncertainty,
        "roc_area": roc_curve(table).area,
    }


def _diagrams(table: Tensor) -> dict[str, Tensor]:
    """Of tables (B, M + 1, 2), (B, points) each."""
    reliability = reliability_diagram(table, POINTS)
    roc = roc_curve(table)
    return {
        "reliability_probability": reliability.probability.expand(reliability.share.shape),
        "reliability_frequency": reliability.frequency,
        "reliability_share": reliability.share,
        "roc_false_alarm_rate": roc.false_alarm_rate,
        "roc_hit_rate": roc.hit_rate,
    }


def fitting(widths: Sequence[int], shape: tuple[int, int]) -> tuple[int, ...]:
    """Those of the widths that fit a field, always odd, the smallest being a single cell.

    Raises:
        ValueError: for a width that is even or not positive.
    """
    for width in widths:
        if width < 1 or width % 2 == 0:
            raise ValueError(f"a neighbourhood of {width} cells has no centre; give odd widths.")
    return tuple(sorted({1, *(w for w in widths if w <= min(shape))}))


def check_exceedances(exceedances: Sequence[float]) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: when one is not between 0 and 1.
    """
    for probability in exceedances:
        if not 0 < probability < 1 or math.isnan(probability):
            raise ValueError(
                f"exceedances has {probability}; each must be a probability between 0 and 1."
            )
