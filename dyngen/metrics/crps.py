"""Continuous ranked probability score of an ensemble, the score by which dyngen is judged.

For members ``x_1..x_M`` and an observation y (Gneiting & Raftery 2007, doi
10.1198/016214506000001437; the fair form: Ferro 2014, doi 10.1002/qj.2270)

    CRPS = mean_m |x_m - y| - sum_{m,n} |x_m - x_n| / (2 M^2)          biased
    CRPS = mean_m |x_m - y| - sum_{m,n} |x_m - x_n| / (2 M (M - 1))    fair

The fair form is, on average, what an endless ensemble from the same law would score. The sum over
pairs is ``2 sum_i (2 i - M - 1) x_(i)`` over the sorted members, so that it costs a sort.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from dyngen.metrics.averages import present, weighted_sums

Estimator = Literal["fair", "biased"]


def crps_ensemble(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    estimator: Estimator = "fair",
    missing: Literal["propagate", "omit"] = "propagate",
) -> Tensor:
    """CRPS at every point, in the units of the variable; lower is better.

    One member has no pair: both forms are then the absolute error.

    Args:
        ensemble: ``(..., M, ...)`` with the members along ``member_dim``.
        observation: the shape of ``ensemble`` without ``member_dim``; nothing is broadcast.
        member_dim: which dimension of ``ensemble`` holds the members.
        estimator: ``"fair"`` or ``"biased"``.
        missing: what a NaN among the members does. ``"propagate"``: the score there is NaN;
            ``"omit"``: it is the score of the other members. A NaN observation gives NaN.

    Returns: float64, like ``observation``.

    Raises:
        ValueError: when the shapes do not fit or an option is unknown.
    """
    check_ensemble(ensemble, observation, member_dim)
    if estimator not in ("fair", "biased"):
        raise ValueError(f"estimator is {estimator!r}; it must be 'fair' or 'biased'.")
    if missing not in ("propagate", "omit"):
        raise ValueError(f"missing is {missing!r}; it must be 'propagate' or 'omit'.")
    # Relative to the observation, so that a large common offset (pressure, kelvin) costs no digits.
    members = (ensemble - observation.unsqueeze(member_dim)).movedim(member_dim, 0)
    if missing == "omit":
        return _crps_of_present(members, estimator)
    size = len(members)
    if size == 1:
        return members[0].abs().double()
    members = members.sort(dim=0).values
    pairs = size * (size - 1) if estimator == "fair" else size * size
    score = torch.zeros(observation.shape, dtype=torch.float64, device=observation.device)
    for rank, member in enumerate(members):
        score.add_(member.abs(), alpha=1 / size)
        score.add_(member, alpha=-(2 * rank + 1 - size) / pairs)
    return score


class EnsembleCRPS(Metric):
    """Area-weighted mean CRPS over batches, by lead time.

    Points whose observation is missing are left out; a missing member where there is an observation
    makes the score of that lead NaN.

    Args:
        leads: L, the number of lead times scored apart.
        estimator: as in :func:`crps_ensemble`.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    total: Tensor
    weight: Tensor

    def __init__(self, leads: int = 1, estimator: Estimator = "fair", **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.estimator = estimator
        zeros = torch.zeros(leads, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("weight", zeros.clone(), dist_reduce_fx="sum")

    def update(
        self, ensemble: Tensor, observation: Tensor, area_weights: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            ensemble: ``(B, M, L, ...)``.
            observation: ``(B, L, ...)``.
            area_weights: broadcasts against the trailing dimensions of ``observation``.
        """
        leads = len(self.total)
        if observation.ndim < 2 or observation.shape[1] != leads:
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}; its second dimension must be "
                f"the {leads} leads."
            )
        score = crps_ensemble(ensemble, observation, member_dim=1, estimator=self.estimator)
        weights = present(observation, area_weights)
        over = tuple(d for d in range(score.ndim) if d != 1)
        total, weight = weighted_sums(score, weights, over)
        self.total += total
        self.weight += weight

    def compute(self) -> Tensor:
        """Mean CRPS by lead: ``(L,)`` float64."""
        return self.total / self.weight


def check_ensemble(ensemble: Tensor, observation: Tensor, member_dim: int) -> None:
    """Refuse an observation that is not the ensemble's shape without its member dimension.

    Raises:
        ValueError: when the shapes do not fit, or there are no members.
    """
    if not -ensemble.ndim <= member_dim < ensemble.ndim:
        raise ValueError(f"member_dim {member_dim} is not among {ensemble.ndim} dimensions.")
    shape = list(ensemble.shape)
    members = shape.pop(member_dim)
    if members == 0 or shape != list(observation.shape):
        raise ValueError(
            f"an ensemble of shape {tuple(ensemble.shape)} with members along dimension "
            f"{member_dim} does not fit an observation of shape {tuple(observation.shape)}."
        )


def _crps_of_present(members: Tensor, estimator: Estimator) -> Tensor:
    """CRPS against 0 of the members (M, ...) that are not NaN; NaN where none is left."""
    members = members.sort(dim=0).values  # NaN last
    there = ~members.isnan()
    count = there.sum(dim=0).double()
    pairs = count * (count - 1) if estimator == "fair" else count * count
    error = torch.zeros_like(count)
    spread = torch.zeros_like(count)
    for rank, member in enumerate(members):
        value = torch.where(there[rank], member.double(), 0.0)
        error += value.abs()
        spread += (2 * rank + 1 - count) * value
    return error / count - torch.where(count > 1, spread / pairs, 0.0)
