"""Extremes: block maxima, the values that return once in so many blocks, and quantile plots.

Return levels follow from a generalised extreme value law fitted by L-moments (Hosking, Wallis &
Wood 1985), which is robust for the few dozen blocks that there are, or from the maxima themselves.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dyngen.metrics.bias import quantiles


class ExtremeValueLaw(NamedTuple):
    """Generalised extreme value law ``F(x) = exp(-(1 - k (x - location) / scale)^(1 / k))``.

    Hosking's sign, which is scipy's: k < 0 has a heavy upper tail, k = 0 is Gumbel's law, k > 0 has
    an upper end. All ``(...)`` float64.
    """

    location: Tensor
    scale: Tensor
    shape: Tensor


def block_maxima(series: Tensor, length: int, *, time_dim: int) -> Tensor:
    """Largest value of each whole block of ``length`` steps, such as a year.

    Missing values are passed over; a block without any value is NaN. What is left over at the end
    does not count.

    Args:
        series: any shape.
        length: steps in a block.
        time_dim: which dimension is time.

    Returns: like ``series``, with the blocks in place of time.

    Raises:
        ValueError: when there is not one whole block.
    """
    moved = series.movedim(time_dim, 0)
    blocks = len(moved) // length if length > 0 else 0
    if blocks < 1:
        raise ValueError(f"{len(moved)} steps hold no block of {length}.")
    shaped = moved[: blocks * length].reshape(blocks, length, *moved.shape[1:])
    largest = torch.where(shaped.isnan(), -math.inf, shaped).amax(1)
    return torch.where(largest == -math.inf, math.nan, largest).movedim(0, time_dim)


def l_moments(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First three L-moments along the first dimension, unbiased (Hosking 1990, eq. 2.8), float64.

    Args: ``(N, ...)``, without missing values. Returns: ``(...)`` each.

    Raises:
        ValueError: for fewer than three samples.
    """
    size = len(samples)
    if size < 3:
        raise ValueError(f"three L-moments need at least 3 samples, not {size}.")
    ordered = samples.double().sort(dim=0).values
    rank = torch.arange(size, dtype=torch.float64, device=samples.device)
    first = rank / (size - 1)
    second = first * (rank - 1) / (size - 2)

    def mean(weight: Tensor) -> Tensor:
        return torch.tensordot(weight / size, ordered, dims=1)

    b0, b1, b2 = mean(torch.ones_like(rank)), mean(first), mean(second)
    return b0, 2 * b1 - b0, 6 * b2 - 6 * b1 + b0


def fit_extreme_value_law(maxima: Tensor) -> ExtremeValueLaw:
    """The law whose first three L-moments are those of the maxima.

    The shape solves ``2 (1 - 3^-k) / (1 - 2^-k) - 3 = t3`` by Newton's method from Hosking's
    approximation.

    Args: ``(N, ...)``, without missing values. Returns: ``(...)`` each.

    Raises:
        ValueError: for fewer than three maxima.
    """
    mean, spread, third = l_moments(maxima)
    skewness = torch.where(spread > 0, third / spread.clamp_min(1e-300), 0.0)
    c = 2 / (3 + skewness) - math.log(2) / math.log(3)
    k = (7.8590 + 2.9554 * c) * c
    for _ in range(8):
        k = k - _skewness_gap(k, skewness)
    small = k.abs() < 1e-7  # there the formulas lose all digits; Gumbel's law is their limit
    safe = torch.where(small, 1.0, k)
    gamma = torch.exp(torch.lgamma(1 + safe))
    scale = torch.where(small, spread / math.log(2), spread * safe / ((1 - 2**-safe) * gamma))
    shift = torch.where(small, EULER, (1 - gamma) / safe)
    location = torch.where(small, mean - scale * EULER, mean - scale * shift)
    return ExtremeValueLaw(location, scale, torch.where(small, 0.0, k))


EULER = 0.5772156649015329


def return_level(law: ExtremeValueLaw, periods: Tensor) -> Tensor:
    """The value exceeded on average once in so many blocks.

    Args:
        law: of block maxima, ``(...)``.
        periods: ``(P,)`` in blocks, more than 1.

    Returns: ``(P, ...)`` float64.

    Raises:
        ValueError: for a period of 1 or less.
    """
    if not bool((periods > 1).all()):
        raise ValueError("return periods must be longer than one block.")
    periods = periods.double().reshape(-1, *[1] * law.shape.ndim)
    reduced = -torch.log(-torch.log1p(-1 / periods))  # of Gumbel's law
    small = law.shape.abs() < 1e-7
    k = torch.where(small, 1.0, law.shape)
    return law.location + law.scale * torch.where(small, reduced, -torch.expm1(-k * reduced) / k)


def empirical_return_levels(maxima: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima in ascending order and the periods they stand for, ``(N + 1) / (N + 1 - rank)``.

    Args: ``(N, ...)``. Returns: periods ``(N,)`` and levels ``(N, ...)``, float64.
    """
    size = len(maxima)
    rank = torch.arange(1, size + 1, dtype=torch.float64, device=maxima.device)
    return (size + 1) / (size + 1 - rank), maxima.double().sort(dim=0).values


def quantile_quantile(values: Tensor, reference: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles of two samples beside each other: ``(Q, 2)`` float64, ``values`` first.

    Missing values do not count; equal laws lie on the diagonal.
    """
    pair = quantiles(values, probabilities), quantiles(reference, probabilities)
    return torch.stack(pair, dim=-1)


def _skewness_gap(k: Tensor, skewness: Tensor) -> Tensor:
    """Newton's step for the shape; the limit where k is zero."""
    small = k.abs() < 1e-6
    safe = torch.where(small, 1e-6, k)
    two, three = 1 - 2**-safe, 1 - 3**-safe
    value = 2 * three / two - 3 - skewness
    slope = 2 * (math.log(3) * 3**-safe * two - math.log(2) * 2**-safe * three) / two.square()
    return value / slope
