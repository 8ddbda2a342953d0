"""How well an ensemble forecasts that a threshold is exceeded: Brier, ROC, reliability, tails.

All that these scores need is one table: for each number k of members above the threshold, how often
(by area weight) that was forecast, and how often the event then came. Tables of batches add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from dyngen.metrics.averages import present
from dyngen.metrics.crps import Estimator, check_ensemble, crps_ensemble


class Brier(NamedTuple):
    """``score = reliability - resolution + uncertainty`` (Murphy 1973); lower scores are better.

    ``fair`` is what an endless ensemble from the same law would score on average (Ferro 2014);
    ``skill = 1 - score / uncertainty`` is relative to the frequency of the event.
    """

    score: Tensor
    fair: Tensor
    skill: Tensor
    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor


class Reliability(NamedTuple):
    """A reliability diagram, a point for each probability k / M; NaN where never forecast.

    ``probability`` ``(M + 1,)``; ``frequency`` with which the event then came and ``share`` of the
    forecasts, both ``(..., M + 1)``. In groups of probabilities all three are ``(..., G)``.
    """

    probability: Tensor
    frequency: Tensor
    share: Tensor


class ROC(NamedTuple):
    """Hit rates and false alarm rates ``(..., M + 2)``, from never to always warning, and the area.

    An area of 1 is perfect, 1/2 without skill.
    """

    false_alarm_rate: Tensor
    hit_rate: Tensor
    area: Tensor


def event_counts(
    ensemble: Tensor,
    observation: Tensor,
    threshold: float | Tensor,
    *,
    member_dim: int,
    weights: Tensor | None = None,
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    """Forecasts and events by the number of members above a threshold.

    Points where the observation or a member is missing do not count.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: the shape of ``ensemble`` without ``member_dim``.
        threshold: a number, or a tensor that broadcasts against ``observation`` (a local
            quantile, say). An event is a value above it.
        member_dim: which dimension of ``ensemble`` holds the members.
        weights: area weights that broadcast against ``observation``.
        dim: dimensions of ``observation`` to sum over; None: all.

    Returns: ``(*kept, M + 1, 2)`` float64: weight of the forecasts, and of the events among them.
    """
    check_ensemble(ensemble, observation, member_dim)
    members = ensemble.movedim(member_dim, 0)
    size = len(members)
    above = torch.zeros(observation.shape, dtype=torch.int64, device=observation.device)
    missing = observation.isnan()
    for member in members:
        above += member > threshold
        missing |= member.isnan()
    weight = torch.where(missing, 0.0, present(observation, weights))
    event = weight * (observation > threshold)
    dims = range(above.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    summed = [d % above.ndim for d in dims]
    kept = [d for d in range(above.ndim) if d not in summed]
    shape = [above.shape[d] for d in kept]

    def flat(values: Tensor) -> Tensor:
        return values.permute(*kept, *summed).reshape(*shape, -1)

    counts = weight.new_zeros(*shape, size + 1, 2)
    counts[..., 0].scatter_add_(-1, flat(above), flat(weight))
    counts[..., 1].scatter_add_(-1, flat(above), flat(event))
    return counts


def brier_score(counts: Tensor) -> Brier:
    """Brier score and its parts from :func:`event_counts`.

    Args: ``(..., M + 1, 2)``. Returns: ``(...)`` float64 each; ``fair`` is NaN for one member.
    """
    counts = counts.double()
    forecasts, events = counts[..., 0], counts[..., 1]
    members = counts.shape[-2] - 1
    probability = _probabilities(counts)
    total = forecasts.sum(-1)
    share = forecasts / total[..., None]
    frequency = events.sum(-1) / total
    given = torch.where(forecasts > 0, events / forecasts.clamp_min(1e-300), 0.0)
    reliability = (share * (probability - given).square()).sum(-1)
    resolution = (share * (given - frequency[..., None]).square()).sum(-1)
    uncertainty = frequency * (1 - frequency)
    score = reliability - resolution + uncertainty
    noise = (share * probability * (1 - probability)).sum(-1)
    fair = score - noise / (members - 1) if members > 1 else torch.full_like(score, torch.nan)
    return Brier(score, fair, 1 - score / uncertainty, reliability, resolution, uncertainty)


def reliability_diagram(counts: Tensor, groups: int | None = None) -> Reliability:
    """How often the event came when it was forecast with each probability.

    Args:
        counts: ``(..., M + 1, 2)`` from :func:`event_counts`.
        groups: G, neighbouring probabilities to take together, as many to each as can be, so that
            a large ensemble has no point of a few forecasts only; the probability of a group is
            the mean of those forecast. None, or no fewer than M + 1: each by itself.
    """
    counts = counts.double()
    forecasts, events = counts[..., 0], counts[..., 1]
    probability = _probabilities(counts)
    total = forecasts.sum(-1, keepdim=True)
    size = len(probability)
    if groups is None or groups >= size:
        return Reliability(probability, events / forecasts, forecasts / total)
    group = torch.arange(size, device=counts.device) * groups // size

    def pooled(values: Tensor) -> Tensor:
        return values.new_zeros(*values.shape[:-1], groups).index_add_(-1, group, values)

    forecast = pooled(forecasts)
    return Reliability(
        pooled(forecasts * probability) / forecast, pooled(events) / forecast, forecast / total
    )


def roc_curve(counts: Tensor) -> ROC:
    """Receiver operating characteristic: warn when at least k of the members are above.

    Args: counts ``(..., M + 1, 2)`` from :func:`event_counts`.
    """
    counts = counts.double()
    events = counts[..., 1].flip(-1).cumsum(-1)
    others = (counts[..., 0] - counts[..., 1]).flip(-1).cumsum(-1)
    zero = torch.zeros_like(events[..., :1])
    hits = torch.cat([zero, events / events[..., -1:]], -1)
    alarms = torch.cat([zero, others / others[..., -1:]], -1)
    return ROC(alarms, hits, torch.trapezoid(hits, alarms, dim=-1))


def threshold_weighted_crps(
    ensemble: Tensor,
    observation: Tensor,
    threshold: float | Tensor,
    *,
    member_dim: int,
    estimator: Estimator = "fair",
) -> Tensor:
    """CRPS of the part of the law above a threshold (Gneiting & Ranjan 2011).

    The integral of the Brier score over all higher thresholds, which is the CRPS of ``max(x, t)``
    (Allen et al. 2023, arXiv 2202.12732).

    Args: as in :func:`event_counts` and :func:`~dyngen.metrics.crps.crps_ensemble`.
    Returns: float64, like ``observation``; NaN where something is missing.
    """
    check_ensemble(ensemble, observation, member_dim)
    limit = torch.as_tensor(threshold, dtype=observation.dtype, device=observation.device)
    limit = limit.expand(observation.shape)
    return crps_ensemble(
        torch.maximum(ensemble, limit.unsqueeze(member_dim % ensemble.ndim)),
        torch.maximum(observation, limit),
        member_dim=member_dim,
        estimator=estimator,
    )


class EventScores(Metric):
    """The table of :func:`event_counts` over batches, by threshold and lead time.

    Args:
        members: M.
        thresholds: in the units of the fields.
        leads: L, the number of lead times scored apart.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    counts: Tensor

    def __init__(
        self, members: int, thresholds: Sequence[float], leads: int = 1, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.thresholds = list(thresholds)
        shape = (len(self.thresholds), leads, members + 1, 2)
        self.add_state("counts", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, ensemble: Tensor, observation: Tensor, area_weights: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            ensemble: ``(B, M, L, ...)``.
            observation: ``(B, L, ...)``.
            area_weights: broadcasts against the trailing dimensions of ``observation``.

        Raises:
            ValueError: for another number of members or leads.
        """
        wanted = self.counts.shape[2] - 1, self.counts.shape[1]
        if ensemble.ndim < 3 or tuple(ensemble.shape[1:3]) != wanted:
            raise ValueError(
                f"an ensemble of shape {tuple(ensemble.shape)} has not (B, M, L, ...) with the "
                f"{wanted[0]} members and {wanted[1]} leads that were said."
            )
        over = [d for d in range(observation.ndim) if d != 1]
        for row, threshold in zip(self.counts, self.thresholds, strict=True):
            row += event_counts(
                ensemble, observation, threshold, member_dim=1, weights=area_weights, dim=over
            )

    def compute(self) -> Tensor:
        """Counts ``(thresholds, L, M + 1, 2)``, for the functions of this module."""
        return self.counts.clone()


def _probabilities(counts: Tensor) -> Tensor:
    members = counts.shape[-2] - 1
    return torch.arange(members + 1, dtype=torch.float64, device=counts.device) / members
