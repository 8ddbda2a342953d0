"""Is an ensemble as wide as it is wrong? Spread-skill ratio and rank histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dyngen.metrics.averages import present, weighted_mean
from dyngen.metrics.crps import check_ensemble


class SpreadSkill(NamedTuple):
    """``spread``, ``skill`` and ``ratio = sqrt((M + 1) / M) spread / skill``; 1 is calibrated."""

    spread: Tensor
    skill: Tensor
    ratio: Tensor


def spread_skill(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    weights: Tensor | None = None,
    dim: int | Sequence[int] | None = None,
) -> SpreadSkill:
    """Spread of the members beside the error of their mean (Fortin et al. 2014).

    With the unbiased variance over members, ``spread = sqrt(mean var_m)``, and
    ``skill = sqrt(mean (mean_m x_m - y)^2)``. If members and observation are drawn from one law,
    the expected square of the skill is (M + 1) / M times that of the spread (doi
    10.1175/JHM-D-14-0008.1, eq. 15): hence the factor in the ratio. Points whose observation is
    missing are left out.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: the shape of ``ensemble`` without ``member_dim``.
        member_dim: which dimension of ``ensemble`` holds the members.
        weights: area weights that broadcast against ``observation``.
        dim: dimensions of ``observation`` to average over; None: all.

    Returns: float64 tensors; spread and ratio are NaN for a single member.
    """
    check_ensemble(ensemble, observation, member_dim)
    weights = present(observation, weights)
    variance, error = variance_and_error(ensemble, observation, member_dim=member_dim)
    spread = weighted_mean(variance, weights, dim).sqrt()
    skill = weighted_mean(error.square(), weights, dim).sqrt()
    return SpreadSkill(spread, skill, spread_skill_ratio(spread, skill, ensemble.shape[member_dim]))


def variance_and_error(
    ensemble: Tensor, observation: Tensor, *, member_dim: int
) -> tuple[Tensor, Tensor]:
    """Unbiased variance of the members and error of their mean at every point, float64."""
    anomalies = (ensemble - observation.unsqueeze(member_dim)).movedim(member_dim, 0)
    size = len(anomalies)
    error = anomalies.mean(dim=0, dtype=torch.float64)
    square = torch.zeros_like(error)
    for member in anomalies:
        square += (member.double() - error).square()
    return square / (size - 1) if size > 1 else torch.full_like(error, math.nan), error


def spread_skill_ratio(spread: Tensor, skill: Tensor, members: int) -> Tensor:
    """``sqrt((M + 1) / M) spread / skill``."""
    return math.sqrt((members + 1) / members) * spread / skill


def rank_histogram(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    generator: torch.Generator | None = None,
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    """How often the observation takes each rank among the members (Hamill 2001).

    Rank 0 is below all members, rank M above all. A tie (dry pixels, say) is broken at random,
    evenly among the ranks it could be. Points where the observation or a member is missing do not
    count.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: the shape of ``ensemble`` without ``member_dim``.
        member_dim: which dimension of ``ensemble`` holds the members.
        generator: CPU generator for ties; None: the global one.
        dim: dimensions of ``observation`` to count over; None: all.

    Returns: counts ``(*kept, M + 1)`` int64.
    """
    check_ensemble(ensemble, observation, member_dim)
    members = ensemble.movedim(member_dim, 0)
    size = len(members)
    below = torch.zeros(observation.shape, dtype=torch.int64, device=observation.device)
    ties = torch.zeros_like(below)
    missing = observation.isnan()
    for member in members:
        below += member < observation
        ties += member == observation
        missing |= member.isnan()
    uniform = torch.rand(observation.shape, generator=generator, dtype=torch.float64)
    rank = below + (uniform.to(below.device) * (ties + 1)).long().clamp(max=ties)
    rank = torch.where(missing, size + 1, rank)  # a column of its own, dropped below
    dims = range(rank.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    counted = [d % rank.ndim for d in dims]
    kept = [d for d in range(rank.ndim) if d not in counted]
    flat = rank.permute(*kept, *counted).reshape(math.prod(rank.shape[d] for d in kept), -1)
    counts = torch.zeros(len(flat), size + 2, dtype=torch.int64, device=rank.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    return counts[:, :-1].reshape(*(rank.shape[d] for d in kept), size + 1)


def flatness_p_value(
    counts: Tensor, *, draws: int = 2000, generator: torch.Generator | None = None
) -> Tensor:
    """Probability that a calibrated ensemble has a rank histogram as far from flat as this one.

    The table of chi-square holds for independent points alone, and neighbours are not. So whole
    samples are taken for independent (initial states, say) whatever goes on within them: departures
    of their histograms from flat keep or change their sign at random, together for all ranks, and
    the square of the sum is found anew each time (a wild cluster bootstrap: Cameron, Gelbach &
    Miller 2008, doi 10.1162/rest.90.3.414). With few samples, less than ten or so, it is careful:
    it rejects less often than it could.

    Args:
        counts: ``(N, R)`` a rank histogram of each sample.
        draws: of signs; the least p-value is ``1 / (draws + 1)``.
        generator: CPU generator; None: the global one.

    Returns: 0-d float64; NaN for a single sample, or without any count.
    """
    counts = counts.double()
    samples, ranks = counts.shape
    if samples < 2 or not bool(counts.sum() > 0):
        return torch.tensor(torch.nan, dtype=torch.float64)
    departures = counts - counts.sum(1, keepdim=True) / ranks
    signs = 2 * torch.randint(2, (draws, samples), generator=generator).double() - 1
    drawn = (signs.to(counts.device) @ departures).square().sum(1)
    found = departures.sum(0).square().sum()
    # As far from flat but for rounding counts as as far.
    return ((drawn >= found * (1 - 1e-9)).sum() + 1).double() / (draws + 1)


def reduced_chi_square(counts: Tensor) -> Tensor:
    """``sum_r (n_r - n / R)^2 / (n / R) / (R - 1)`` over the last dimension; about 1 if flat.

    Neighbouring points have like ranks, so that this exceeds 1 for calibrated fields too; compare
    it between ensembles, not with a table, or take :func:`flatness_p_value`.

    Args: counts ``(..., R)``. Returns: ``(...)`` float64.
    """
    counts = counts.double()
    ranks = counts.shape[-1]
    expected = counts.sum(-1, keepdim=True) / ranks
    return ((counts - expected).square() / expected).sum(-1) / (ranks - 1)


def distance_from_flat(counts: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the rank frequencies from flat ones, in nats; 0 is flat.

    ``sum_r p_r log(R p_r)``; whatever the sample, at most log R.

    Args: counts or frequencies ``(..., R)``. Returns: ``(...)`` float64.
    """
    frequency = counts.double() / counts.sum(-1, keepdim=True)
    return torch.xlogy(frequency, frequency * counts.shape[-1]).sum(-1)
