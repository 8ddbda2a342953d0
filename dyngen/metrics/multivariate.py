"""Scores of whole fields at once, which see whether members are right in how points go together.

CRPS looks at each point alone: an ensemble whose members are right everywhere but hang together
wrongly scores as well as a good one. The energy score sees it dimly, the variogram score clearly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyngen.metrics.crps import Estimator, check_ensemble


def energy_score(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    vector_dims: Sequence[int],
    weights: Tensor | None = None,
    estimator: Estimator = "fair",
) -> Tensor:
    """``mean_m |x_m - y| - sum_{m,n} |x_m - x_n| / (2 M^2)``, the CRPS of vectors.

    The norm is ``sqrt(sum_i w_i v_i^2)`` over the points of the vector (Gneiting & Raftery 2007,
    eq. 22; the fair form divides the pairs by ``2 M (M - 1)``). Points whose observation is missing
    are left out; a missing member makes the score NaN.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: the shape of ``ensemble`` without ``member_dim``.
        member_dim: which dimension of ``ensemble`` holds the members.
        vector_dims: dimensions of ``observation`` that make up the vector, such as those of a
            field.
        weights: broadcast against ``observation``; None: all 1. With weights that sum to one the
            norm is a root mean square.
        estimator: ``"fair"`` or ``"biased"``.

    Returns: float64, the dimensions of ``observation`` that are left.
    """
    members, truth, weight = _vectors(
        ensemble, observation, member_dim, vector_dims, weights
    )  # (M, ..., D), (..., D)
    size = len(members)
    root = weight.sqrt()
    scaled = torch.where(root > 0, (members - truth) * root, 0.0)
    error = torch.linalg.vector_norm(scaled, dim=-1).mean(0)
    if size == 1:
        return error
    pairs = _distances(scaled).sum((-2, -1)) / 2
    return error - pairs / (size * (size - 1 if estimator == "fair" else size))


def variogram_score(
    ensemble: Tensor,
    observation: Tensor,
    *,
    member_dim: int,
    vector_dims: Sequence[int],
    order: float = 0.5,
    pair_weights: Tensor | None = None,
) -> Tensor:
    """``sum_ij w_ij (|y_i - y_j|^p - mean_m |x_mi - x_mj|^p)^2`` (Scheuerer & Hamill 2015).

    All pairs of D points: for fields see :func:`lagged_variogram_score`. A missing value makes it
    NaN.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: the shape of ``ensemble`` without ``member_dim``.
        member_dim: which dimension of ``ensemble`` holds the members.
        vector_dims: dimensions of ``observation`` that make up the vector.
        order: p; 0.5 tells ensembles apart best.
        pair_weights: ``(D, D)``; None: all 1.

    Returns: float64, the dimensions of ``observation`` that are left.
    """
    members, truth, _ = _vectors(ensemble, observation, member_dim, vector_dims, None)

    def variogram(values: Tensor) -> Tensor:
        return (values[..., :, None] - values[..., None, :]).abs() ** order

    expected = torch.zeros(*truth.shape, truth.shape[-1], dtype=truth.dtype, device=truth.device)
    for member in members:
        expected += variogram(member) / len(members)
    squares = (variogram(truth) - expected).square()
    if pair_weights is not None:
        squares = squares * pair_weights.double()
    return squares.sum((-2, -1))


def lagged_variogram_score(
    ensemble: Tensor,
    observation: Tensor,
    offsets: Sequence[tuple[int, int]],
    *,
    member_dim: int,
    order: float = 0.5,
    periodic: tuple[bool, bool] = (True, True),
    weights: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
) -> Tensor:
    """Variogram score of fields, over pairs of points that are so many cells apart.

    The mean over pairs, so that offsets can be compared. A pair weighs what the product of its
    points' weights does; one with a missing observation does not count.

    Args:
        ensemble: ``(..., M, ...)``.
        observation: ``(..., H, W)``, the shape of ``ensemble`` without ``member_dim``.
        offsets: (rows, columns) from one point of a pair to the other.
        member_dim: which dimension of ``ensemble`` holds the members; not the last two of the
            fields.
        order: p.
        periodic: whether rows and columns wrap around; if not, pairs across an edge do not count.
        weights: area weights that broadcast against ``observation``.
        stride: only pairs whose first point lies on every so-manieth row and column count, for a
            share of the work.

    Returns: ``(..., len(offsets))`` float64.

    Raises:
        ValueError: when an offset leaves no pair.
    """
    check_ensemble(ensemble, observation, member_dim)
    members = ensemble.movedim(member_dim, 0)
    area = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    area = area.to(observation.device).expand(observation.shape)
    found = []
    for offset in offsets:
        first, second = _pair(observation, offset, periodic, stride)
        if not first.numel():
            raise ValueError(
                f"no two points of a field of {tuple(observation.shape[-2:])} cells are {offset} "
                "apart; choose smaller offsets."
            )
        truth = _power(first.double() - second, order)
        expected = torch.zeros_like(truth)
        for member in members:
            one, other = _pair(member, offset, periodic, stride)
            expected += _power(one.double() - other, order)
        expected /= len(members)
        left, right = _pair(area, offset, periodic, stride)
        weight = left * right * ~truth.isnan()
        squares = torch.where(weight > 0, (truth - expected).square(), 0.0)
        found.append((weight * squares).sum((-2, -1)) / weight.sum((-2, -1)))
    return torch.stack(found, dim=-1)


def _distances(vectors: Tensor) -> Tensor:
    """Norms of the differences between all pairs ``(M, ..., D)``: ``(..., M, M)``.

    By products of matrices, which is several times as fast as pair by pair; about their mean, so
    that vectors which are alike lose no digits.
    """
    centred = (vectors - vectors.mean(0)).movedim(0, -2)
    products = centred @ centred.mT
    squares = products.diagonal(dim1=-2, dim2=-1)
    between = squares[..., :, None] + squares[..., None, :] - 2 * products
    size = len(vectors)
    apart = ~torch.eye(size, dtype=torch.bool, device=vectors.device)
    return torch.where(apart | between.isnan(), between.clamp_min(0), 0.0).sqrt()


def _power(differences: Tensor, order: float) -> Tensor:
    """``|d|^p``; the root in a tenth of the time of a power."""
    size = differences.abs_()
    return size.sqrt_() if order == 0.5 else size.pow_(order)


def _vectors(
    ensemble: Tensor,
    observation: Tensor,
    member_dim: int,
    vector_dims: Sequence[int],
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Members ``(M, ..., D)``, observation ``(..., D)`` and weights alike, float64."""
    check_ensemble(ensemble, observation, member_dim)
    dims = [d % observation.ndim for d in vector_dims]
    if not dims or len(set(dims)) != len(dims):
        raise ValueError(f"vector_dims {tuple(vector_dims)} must name dimensions, each once.")
    kept = [d for d in range(observation.ndim) if d not in dims]
    members = ensemble.movedim(member_dim, 0).double()
    weight = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    weight = weight.to(observation.device).expand(observation.shape) * ~observation.isnan()
    flat = members.permute(0, *(1 + d for d in kept), *(1 + d for d in dims))
    truth = observation.double().permute(*kept, *dims)
    start = len(kept)
    return (
        flat.flatten(1 + start),
        truth.flatten(start),
        weight.permute(*kept, *dims).flatten(start),
    )


def _pair(
    fields: Tensor, offset: tuple[int, int], periodic: tuple[bool, bool], stride: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Fields and themselves moved by the offset, where both are inside, every so-manieth."""
    first, second = fields, fields
    for dim, (step, wraps) in zip((-2, -1), zip(offset, periodic, strict=True), strict=True):
        if wraps:
            second = second.roll(-step, dim)
            continue
        size = max(0, fields.shape[dim] - abs(step))
        first = first.narrow(dim, max(0, -step) if size else 0, size)
        second = second.narrow(dim, max(0, step) if size else 0, size)
    every = (..., slice(None, None, stride[0]), slice(None, None, stride[1]))
    return first[every], second[every]
