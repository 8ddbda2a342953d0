"""Consistency in time: autocorrelation by lag, increments, and drift over a long run.

Sums can be added up over blocks and members before they are divided, so that a run that does not
fit in memory gives the same figures as one that does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyngen.metrics.averages import weighted_sums


def autocorrelation(
    series: Tensor,
    lags: Sequence[int],
    *,
    time_dim: int,
    mean: Tensor | float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Correlation of frames that are ``lag`` steps apart, over all points and times.

        r(l) = sum a'(t) a'(t + l) / sqrt(sum a'(t)^2  sum a'(t + l)^2),   a' = a - mean

    summed over times, points and every other dimension: between -1 and 1 whatever the sample.

    Args:
        series: any shape, with time along ``time_dim``.
        lags: in steps; a lag as long as the series or longer gives NaN.
        time_dim: which dimension is time.
        mean: what anomalies are taken from; broadcasts against ``series``. None: its mean over
            time at every point. Short series want the climatological mean of a longer one.
        weights: area weights that broadcast against ``series``.

    Returns: ``(len(lags),)`` float64.
    """
    if mean is None:
        mean = series.mean(time_dim, keepdim=True, dtype=torch.float64)
    anomalies = (series.double() - mean).movedim(time_dim, 0)
    if weights is not None:
        weights = weights.double().expand(series.shape).movedim(time_dim, 0)
    sums = torch.stack([lag_sums(anomalies, lag, weights).reshape(3, -1).sum(1) for lag in lags])
    return correlation(sums)


def lag_sums(
    anomalies: Tensor,
    lag: int,
    weights: Tensor | None = None,
    *,
    dim: Sequence[int] | None = None,
) -> Tensor:
    """``sum a(t) a(t + l)``, ``sum a(t)^2`` and ``sum a(t + l)^2``, to be added up over blocks.

    Args:
        anomalies: ``(T, ...)``.
        lag: in steps.
        weights: of the shape of ``anomalies``; a pair counts by the product of its weights' roots.
        dim: dimensions to sum over, time (0) among them; None: all.

    Returns: ``(3, *kept)`` float64, of zeros when the series is not longer than the lag.
    """
    length = len(anomalies)
    dims = tuple(range(anomalies.ndim)) if dim is None else tuple(dim)
    pairs = max(length - lag, 0)
    first, later = anomalies[:pairs], anomalies[length - pairs :]
    pair = None if weights is None else (weights[:pairs] * weights[length - pairs :]).sqrt()
    products = (first.double() * later, first.double().square(), later.double().square())
    return torch.stack([weighted_sums(product, pair, dims)[0] for product in products])


def correlation(sums: Tensor) -> Tensor:
    """Lagged correlation from sums ``(..., 3)`` as in :func:`lag_sums`; NaN where all are 0."""
    return sums[..., 0] / (sums[..., 1] * sums[..., 2]).sqrt()


def increments(series: Tensor, *, time_dim: int) -> Tensor:
    """``x(t + 1) - x(t)``: the shape of ``series``, one shorter along ``time_dim``."""
    return series.diff(dim=time_dim)


def block_means(values: Tensor, blocks: int) -> Tensor:
    """Means over ``blocks`` consecutive stretches of the first dimension, of lengths as even as
    they can be: the course of a figure over a long run.

    Args: values ``(T, ...)``, NaN skipped. Returns: ``(blocks, ...)`` float64.

    Raises:
        ValueError: when there are more blocks than values.
    """
    if not 1 <= blocks <= len(values):
        raise ValueError(f"{len(values)} values cannot be divided into {blocks} blocks.")
    parts = values.double().tensor_split(blocks)
    return torch.stack([part.nanmean(dim=0) for part in parts])


def drift(values: Tensor, *, steps: Tensor | None = None) -> Tensor:
    """Slope of a straight line through ``values`` by least squares, per step: ``(...)`` float64.

    Args:
        values: ``(T, ...)``.
        steps: ``(T,)``; None: 0, 1, ..., T - 1.

    Raises:
        ValueError: when there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("a drift needs at least two values.")
    steps = torch.arange(len(values)) if steps is None else steps
    centred = steps.double() - steps.double().mean()
    return torch.tensordot(centred, values.double(), dims=1) / centred.square().sum()
