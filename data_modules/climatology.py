"""A smooth seasonal cycle at each pixel, fitted in one pass over the training split; two with that
of its variance.

Least squares on a few harmonics of the year: what a pass collects are the normal equations, a small
sum at each pixel that pieces of the cube add to, in whatever order, on whatever scheduler dask has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, cast

import dask
import numpy as np
import torch
from torch import Tensor

from data_modules.cube import Cube
from data_modules.errors import DataError
from data_modules.normalisation import LEAST_STD, seasonal_basis
from data_modules.splits import Split
from data_modules.statistics import SPAN_BYTES
from data_modules.transforms import Transform
from data_modules.windows import Span, Windows, chunked_spans

logger = logging.getLogger(__name__)

MOST_OF_VARIANCE = 3  # harmonics: squares are known less well than values
WELL_POSED = 0.02  # least eigenvalue of the normal matrix; it is 1/2 for whole years
TOGETHER = 4  # pieces whose sums are added up before they are kept


@dataclass(frozen=True)
class Climatology:
    """What is normal at each pixel, after the transforms.

    Args:
        cycle: (1 + 2 K, C, H, W) beside the channel's mean; see `Normalisation`.
        std: Standard deviation of the anomalies of each channel.
        pixel_std: (C, H, W) that of each pixel, at least a tenth of the channel's.
        variance: (1 + 2 K, C, H, W) a cycle of the variance at each pixel, where it was asked for;
            see `Normalisation`.
    """

    cycle: Tensor
    std: list[float]
    pixel_std: Tensor
    variance: Tensor | None = None


def fit_climatology(
    cube: Cube,
    split: Split,
    mean: Sequence[float],
    transforms: Sequence[Transform | None],
    harmonics: Sequence[int | None],
    variance: bool = False,
) -> Climatology:
    """Read a split once and fit a mean and harmonics of the year at each pixel.

    Args:
        cube: The cube.
        split: Usually the training split.
        mean: Mean of each channel after its transform, which stays apart.
        transforms: Of each channel.
        harmonics: Of each channel; 0 fits a mean of each pixel, None leaves a channel alone.
        variance: Read it once more, and fit these harmonics, no more than three of them, to the
            squares of what is left.

    Raises:
        DataError: If times have no calendar, or cover too little of the year.
    """
    most = max(h or 0 for h in harmonics)
    if most and cube.calendar is None:
        raise DataError(
            f"{cube.path} has times without a calendar, so that there is no seasonal cycle to "
            "subtract; set seasonal to 0."
        )
    logger.info("fitting a climatology of %s over %d frames", cube.path, split.frames)
    sums = _collect(cube, split, partial(_sums, cube, mean, transforms, most))
    matrix, products, squares, count = sums
    _require_well_posed(cube, split, matrix, count)
    cycle = _fitted(sums, harmonics)
    # |x - B c|^2 = |x|^2 - 2 c.Bx + c.A c, for any c, also one that fits fewer terms.
    fitted = np.einsum(
        "bcp,bdcp,dcp->cp",
        cycle,
        np.broadcast_to(matrix, (*matrix.shape[:2], *products.shape[1:])),
        cycle,
    )
    left = np.maximum(squares - 2 * (cycle * products).sum(axis=0) + fitted, 0)
    std = np.sqrt(left.sum(axis=-1) / np.broadcast_to(count, left.shape).sum(axis=-1))
    pixel = np.sqrt(left / np.maximum(count, 1))
    pixel = np.maximum(pixel, LEAST_STD * std[:, None])

    def fields(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.reshape(-1, len(std), *cube.shape)).float()

    spread = None
    if variance:
        again = _collect(cube, split, partial(_sums, cube, mean, transforms, most, cycle=cycle))
        few = [None if order is None else min(order, MOST_OF_VARIANCE) for order in harmonics]
        spread = fields(_fitted(again, few)[: 1 + 2 * MOST_OF_VARIANCE])
    return Climatology(fields(cycle), std.tolist(), fields(pixel)[0], spread)


# The normal matrix (b, b, C, P) or, without missing values, (b, b, 1, 1); products with the basis
# (b, C, P); sums of squares (C, P); counts (C, P) or (1, 1).
_Sums = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _collect(cube: Cube, split: Split, sums: Callable[[Span], _Sums]) -> _Sums:
    """The sums of all spans of a split, added up."""
    frames = max(SPAN_BYTES // cube.frame_bytes, 1)
    # As parts of the function cube and cycle are left alone: dask computes what it finds in
    # arguments.
    one, add = dask.delayed(sums), dask.delayed(_total)
    parts: list[Any] = [one(span) for span in chunked_spans(Windows(split, 1), cube.chunks, frames)]
    while len(parts) > 1:  # a tree, so that few of the sums are in memory together
        parts = [add(parts[i : i + TOGETHER]) for i in range(0, len(parts), TOGETHER)]
    return cast(_Sums, dask.compute(*parts)[0])


def _fitted(sums: _Sums, harmonics: Sequence[int | None]) -> np.ndarray:
    """Coefficients (b, C, P) by least squares, 0 where a channel has no such harmonic."""
    matrix, products, _, _ = sums
    cycle = np.zeros_like(products)
    for channel, order in enumerate(harmonics):
        if order is not None:
            terms = 1 + 2 * order
            some = matrix[:terms, :terms, min(channel, matrix.shape[2] - 1)]
            cycle[:terms, channel] = _solve(some, products[:terms, channel])
    return cycle


def _sums(
    cube: Cube,
    mean: Sequence[float],
    transforms: Sequence[Transform | None],
    harmonics: int,
    span: Span,
    cycle: np.ndarray | None = None,
) -> _Sums:
    """Sums over the values of a span or, given a cycle (b, C, P), over squares of what is left."""
    read = cube.read(slice(*span.trajectories), slice(*span.frames))
    numbers = cube.time_numbers[slice(*span.frames)]
    basis = seasonal_basis(numbers, cube.calendar or "standard", harmonics)
    basis = np.tile(basis, (len(read), 1))  # (trajectories times frames, b)
    values = read.reshape(len(basis), len(mean), -1).astype(np.float64)
    for channel, transform in enumerate(transforms):
        if transform is not None:
            values[:, channel] = transform.forward(torch.from_numpy(values[:, channel])).numpy()
        values[:, channel] -= mean[channel]
    if cycle is not None:
        values = np.square(values - np.einsum("tb,bcp->tcp", basis, cycle))
    present = np.isfinite(values)
    outer = basis[:, :, None] * basis[:, None, :]
    if present.all():
        matrix, count = outer.sum(axis=0)[:, :, None, None], np.full((1, 1), float(len(basis)))
    else:
        values[~present] = 0.0
        matrix = np.einsum("tbd,tcp->bdcp", outer, present)
        count = present.sum(axis=0).astype(np.float64)
    return matrix, np.einsum("tb,tcp->bcp", basis, values), np.square(values).sum(axis=0), count


def _total(parts: Sequence[_Sums]) -> _Sums:
    return reduce(lambda a, b: cast(_Sums, tuple(x + y for x, y in zip(a, b, strict=True))), parts)


def _require_well_posed(cube: Cube, split: Split, matrix: np.ndarray, count: np.ndarray) -> None:
    overall = matrix.max(axis=(2, 3)) / max(float(count.max()), 1.0)
    if np.linalg.eigvalsh(overall).min() < WELL_POSED:
        raise DataError(
            f"The split '{split.name}' of {cube.path} covers too little of the year for its "
            "seasonal cycle to be fitted; give it whole years, or set seasonal to fewer harmonics."
        )


def _solve(matrix: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Coefficients (b, P) from normal matrices (b, b, 1) or (b, b, P) and products (b, P)."""
    if matrix.shape[-1] == 1:
        return np.asarray(np.linalg.solve(matrix[..., 0], products))
    inverse = np.linalg.pinv(matrix.transpose(2, 0, 1), hermitian=True)  # (P, b, b)
    return np.asarray(np.einsum("pbd,dp->bp", inverse, products))
