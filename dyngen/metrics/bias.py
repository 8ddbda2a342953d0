"""Systematic error: of the mean, of the variability, and of the tails."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyngen.metrics.averages import weighted_mean


def mean_bias(
    values: Tensor,
    reference: Tensor,
    *,
    weights: Tensor | None = None,
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    """Mean of ``values`` less mean of ``reference`` over ``dim``, float64.

    Args:
        values: any shape.
        reference: need not have the shape of ``values``, only the same dimensions left over.
        weights: broadcasts against both.
        dim: dimensions to average over; None: all.
    """
    return weighted_mean(values, weights, dim) - weighted_mean(reference, weights, dim)


def bias_map(values: Tensor, reference: Tensor, *, dim: int | Sequence[int]) -> Tensor:
    """Mean over ``dim`` (samples, times, members) at every point, less the reference's, float64."""
    dims = dim if isinstance(dim, int) else tuple(dim)
    return values.mean(dims, dtype=torch.float64) - reference.mean(dims, dtype=torch.float64)


def standard_deviation(
    values: Tensor,
    *,
    weights: Tensor | None = None,
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    """``sqrt(mean (v - mean v)^2)`` over ``dim``, in two passes, float64.

    Arguments as in :func:`mean_bias`.
    """
    dims = tuple(range(values.ndim)) if dim is None else dim
    centre = weighted_mean(values, weights, dims)
    for d in sorted([d % values.ndim for d in ([dims] if isinstance(dims, int) else dims)]):
        centre = centre.unsqueeze(d)
    return weighted_mean((values.double() - centre).square(), weights, dims).sqrt()


def std_ratio(
    values: Tensor,
    reference: Tensor,
    *,
    weights: Tensor | None = None,
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    """Standard deviation of ``values`` over that of ``reference``; 1 is right, below 1 is smooth.

    Arguments as in :func:`mean_bias`.
    """
    ours = standard_deviation(values, weights=weights, dim=dim)
    return ours / standard_deviation(reference, weights=weights, dim=dim)


def quantiles(values: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles of all present values, linear between order statistics: ``(Q,)`` float64.

    Unlike `torch.quantile` it takes any number of values.
    """
    there = values[~values.isnan()].double().sort().values
    if not len(there):
        return torch.full(probabilities.shape, torch.nan, dtype=torch.float64)
    position = probabilities.double() * (len(there) - 1)
    low = position.floor().long()
    high = position.ceil().long()
    return torch.lerp(there[low], there[high], position - low)


def tail_bias(values: Tensor, reference: Tensor, probabilities: Tensor) -> Tensor:
    """Difference of quantiles, ``values`` less ``reference``, in their units: ``(Q,)`` float64."""
    return quantiles(values, probabilities) - quantiles(reference, probabilities)
