"""Averages over an area in which values may be missing.

Every score here is an average over grid points, and the points of a sphere are not worth the same.
Sums are kept in float64. A missing value is NaN; leaving it out is something that a caller asks
for, by way of weights that are zero there (:func:`present`), and never a side effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def present(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weights that are zero where ``values`` is missing: float64, of the shape of ``values``.

    Args:
        values: any shape; NaN where missing.
        weights: area weights that broadcast against ``values``; None: all 1.
    """
    there = (~values.isnan()).double()
    return there if weights is None else there * weights.double()


def weighted_sums(
    values: Tensor, weights: Tensor | None = None, dim: int | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of ``weights * values`` and sum of ``weights``, float64, over ``dim`` (None: all).

    A value of weight zero does not count, even if it is NaN; a NaN of positive weight makes the
    sum NaN.

    Args:
        values: any shape.
        weights: broadcasts against ``values``; None: all 1.
        dim: dimensions to sum over.

    Raises:
        ValueError: when weights do not broadcast to the shape of ``values``, or are negative.
    """
    dims = _dims(values, dim)
    if weights is None:
        count = 1
        for d in dims:
            count *= values.shape[d]
        total = values.sum(dim=dims, dtype=torch.float64) if dims else values.double()
        return total, torch.full_like(total, count)
    weights = _expanded(weights, values)
    counted = torch.where(weights > 0, values.double(), 0.0) * weights
    if not dims:
        return counted, weights.clone()
    return counted.sum(dim=dims), weights.sum(dim=dims)


def weighted_mean(
    values: Tensor, weights: Tensor | None = None, dim: int | Sequence[int] | None = None
) -> Tensor:
    """``sum w v / sum w`` over ``dim``, float64; NaN where no value has a weight.

    Arguments and errors as in :func:`weighted_sums`.
    """
    total, weight = weighted_sums(values, weights, dim)
    return total / weight


def _dims(values: Tensor, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(values.ndim))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def _expanded(weights: Tensor, values: Tensor) -> Tensor:
    try:
        expanded = weights.double().expand(values.shape)
    except RuntimeError:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not fit values of shape "
            f"{tuple(values.shape)}."
        ) from None
    if bool((weights < 0).any()):
        raise ValueError("weights must not be negative.")
    return expanded
