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


def exchange_ranks(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    dim: Sequence[int],
    there: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rank histograms of the observation, and of each member in its place.

    If the observation is one more draw from the law of the members, nothing changes, on average,
    when a member and the observation change places: what :func:`exchange_p_value` tests.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: the shape of ``ensemble`` without ``member_dim``.
        member_dim: which dimension of ``ensemble`` holds the members.
        dim: dimensions of ``observation`` to count over.
        there: which points count, broadcast against ``observation``. None: those whose
            observation and members are all present.
        generator: CPU generator for ties; None: the global one.

    Returns: ``(*kept, M + 1, M + 1)`` int64: who is ranked, the observation first, and its ranks.
    """
    check_ensemble(ensemble, observation, member_dim)
    summed = [d % observation.ndim for d in dim]
    kept = [d for d in range(observation.ndim) if d not in summed]
    shape = [observation.shape[d] for d in kept]

    def flat(values: Tensor) -> Tensor:  # (kept, points)
        return values.permute(*kept, *summed).reshape(math.prod(shape), -1)

    everyone = torch.stack(
        [flat(observation), *(flat(member) for member in ensemble.movedim(member_dim, 0))], dim=1
    )  # (kept, M + 1, points)
    whole = ~everyone.isnan().any(1)
    if there is not None:
        whole &= flat(there.expand(observation.shape))
    size = everyone.shape[1]
    # A tie goes to whoever comes first in an order drawn at random: nobody is favoured.
    order = torch.rand(len(everyone), size, generator=generator, dtype=torch.float64).argsort(1)
    order = order.to(everyone.device)
    shuffled = everyone.take_along_dim(order[..., None], 1)
    at = shuffled.sort(dim=1, stable=True).indices  # who, of the shuffled, has each rank
    who = order[..., None].take_along_dim(at, 1)
    row = torch.arange(len(everyone), device=who.device)[:, None, None]
    rank = torch.arange(size, device=who.device)[:, None]
    cell = (row * size + who) * size + rank
    counts = torch.bincount(
        cell.transpose(1, 2)[whole].flatten(), minlength=len(everyone) * size * size
    )
    return counts.reshape(*shape, size, size)


def exchange_p_value(
    counts: Tensor, *, draws: int = 2000, generator: torch.Generator | None = None
) -> Tensor:
    """Probability that a calibrated ensemble has a rank histogram as far from flat as this one.

    A permutation test: in each sample (an initial state, say) the observation changes places with
    a member drawn at random, or with none, and the reduced chi-square of the histogram of all
    samples is found anew. However strongly points within a sample depend on each other, the test
    is exact as long as the samples do not; the table of chi-square holds for independent points
    alone.

    Args:
        counts: ``(N, M + 1, M + 1)`` from :func:`exchange_ranks`, a row for each sample.
        draws: permutations; the least p-value is ``1 / (draws + 1)``.
        generator: CPU generator; None: the global one.

    Returns: 0-d float64; NaN without any count.
    """
    samples, size = counts.shape[:2]
    if not bool(counts.sum() > 0):
        return torch.tensor(torch.nan, dtype=torch.float64)
    chosen = torch.randint(size, (draws, samples), generator=generator).to(counts.device)
    drawn = torch.zeros(draws, size, dtype=torch.float64, device=counts.device)
    for sample, who in zip(counts.double(), chosen.T, strict=True):
        drawn += sample[who]
    found = reduced_chi_square(counts[:, 0].sum(0))
    # As far from flat but for rounding counts as as far.
    return ((reduced_chi_square(drawn) >= found * (1 - 1e-9)).sum() + 1).double() / (draws + 1)


def reduced_chi_square(counts: Tensor) -> Tensor:
    """``sum_r (n_r - n / R)^2 / (n / R) / (R - 1)`` over the last dimension; about 1 if flat.

    Neighbouring points have like ranks, so that this exceeds 1 for calibrated fields too; compare
    it between ensembles, not with a table, or take :func:`exchange_p_value`.

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
