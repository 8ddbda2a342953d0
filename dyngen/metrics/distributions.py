"""Distributions of values from histograms, which can be filled block by block.

A histogram has B bins between ``edges`` and takes what lies outside into its first and last bin,
so that nothing is lost. Two histograms over the same edges give quantiles and distances without
the values being kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyngen.metrics.averages import present


def histogram(values: Tensor, edges: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weight of the values in each bin; NaN values do not count.

    Args:
        values: any shape.
        edges: ``(B + 1,)`` evenly spaced, ascending.
        weights: broadcasts against ``values``; None: counts.

    Returns: ``(B,)`` float64.

    Raises:
        ValueError: when the edges do not ascend.
    """
    if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise ValueError("edges must be one ascending row of at least two numbers.")
    bins = len(edges) - 1
    weight = present(values, weights).flatten()
    # Bins by arithmetic rather than a search: several times as fast, for evenly spaced edges.
    scaled = (values.flatten().double() - edges[0]) * (bins / (edges[-1] - edges[0]))
    index = scaled.nan_to_num(0.0).clamp_(0, bins - 1).long()
    return torch.bincount(index, weights=weight, minlength=bins)


def histogram_quantile(counts: Tensor, edges: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles of a histogram, linear within a bin.

    Args: counts ``(B,)``; edges ``(B + 1,)``; probabilities ``(Q,)``. Returns: ``(Q,)`` float64.
    """
    if not bool(counts.sum() > 0):
        return torch.full_like(probabilities, torch.nan, dtype=torch.float64)
    cumulative = counts.double().cumsum(0) / counts.double().sum()
    cumulative = torch.cat([torch.zeros_like(cumulative[:1]), cumulative])
    wanted = probabilities.double().clamp(0, 1)
    right = torch.searchsorted(cumulative, wanted).clamp(1, len(counts))
    low, high = cumulative[right - 1], cumulative[right]
    part = torch.where(high > low, (wanted - low) / (high - low), 0.0)
    return edges[right - 1] + part * (edges[right] - edges[right - 1])


def histogram_wasserstein(counts: Tensor, other: Tensor, edges: Tensor) -> Tensor:
    """Wasserstein-1 distance of two histograms, ``integral |F - G|``, in the units of the edges.

    Args: counts ``(B,)`` and other ``(B,)`` over edges ``(B + 1,)``. Returns: 0-d float64.
    """
    first = counts.double() / counts.double().sum()
    second = other.double() / other.double().sum()
    between = (first - second).cumsum(0)
    # F - G is linear within a bin: the integral of its absolute value, bin by bin, exactly.
    left = torch.cat([torch.zeros_like(between[:1]), between[:-1]])
    crossing = left * between < 0
    size = left.abs() + between.abs()
    area = torch.where(
        crossing, (left.square() + between.square()) / (2 * size.clamp_min(1e-300)), size / 2
    )
    return (area * edges.diff()).sum()


def wasserstein(values: Tensor, other: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples, flattened: 0-d float64; NaN values do not count."""
    first = values[~values.isnan()].double().sort().values
    second = other[~other.isnan()].double().sort().values
    points = torch.cat([first, second]).sort().values
    below_first = torch.searchsorted(first, points[:-1], right=True).double() / len(first)
    below_second = torch.searchsorted(second, points[:-1], right=True).double() / len(second)
    return ((below_first - below_second).abs() * points.diff()).sum()
