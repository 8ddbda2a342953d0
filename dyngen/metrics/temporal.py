"""Consistency in time: autocorrelation by lag, increments, and drift over a long run.

Sums can be added up over blocks and members before they are divided, so that a run that does not
fit in memory gives the same figures as one that does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
        weights = weights.reshape(1, len(weights), -1)
    return correlation(lag_sums(anomalies.reshape(1, len(anomalies), -1), lags, weights)[0])


def lag_sums(
    anomalies: Tensor, lags: Sequence[int], weights: Tensor | None = None, *, counted: int = 0
) -> Tensor:
    """``sum a(t) a(t + l)``, ``sum a(t)^2`` and ``sum a(t + l)^2``, to be added up over blocks.

    Args:
        anomalies: ``(R, T, P)``: series of points.
        lags: in steps.
        weights: like ``anomalies``; a pair counts by the root of the product of its weights, and a
            value of weight zero not at all, even if it is NaN. None: all 1.
        counted: how many of the first frames have been the later ones of a pair in another block.
            A block that starts with the last ``max(lags)`` frames of the one before, all of them
            counted, adds the pairs that the two share, each once.

    Returns: ``(R, len(lags), 3)`` float64, zero where no frames are that far apart.
    """
    length = anomalies.shape[1]
    anomalies = anomalies.double()
    if weights is None:
        squares = anomalies.square().sum(-1)
    else:
        root = weights.double().sqrt()
        anomalies = torch.where(root > 0, anomalies, 0.0)
        squares = anomalies.square() * root
        anomalies = anomalies * root
    sums = anomalies.new_zeros(len(anomalies), len(lags), 3)
    for i, lag in enumerate(lags):
        start = max(counted, lag)
        if start >= length:
            continue
        first, later = slice(start - lag, length - lag), slice(start, length)
        sums[:, i, 0] = torch.einsum("rtp,rtp->r", anomalies[:, first], anomalies[:, later])
        if weights is None:
            sums[:, i, 1] = squares[:, first].sum(1)
            sums[:, i, 2] = squares[:, later].sum(1)
        else:
            sums[:, i, 1] = torch.einsum("rtp,rtp->r", squares[:, first], root[:, later])
            sums[:, i, 2] = torch.einsum("rtp,rtp->r", root[:, first], squares[:, later])
    return sums


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
