"""Mean, standard deviation and extremes of each variable over the training split, in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import dask
import numpy as np
import torch

from data_modules.cube import Cube
from data_modules.errors import DataError
from data_modules.splits import Split
from data_modules.transforms import Transform
from data_modules.windows import Span, Windows, chunked_spans

logger = logging.getLogger(__name__)

SPAN_BYTES = 2**25

# What values of a standard name can be in a unit; far beyond, the unit is another one.
TEMPERATURE = {"K": (100.0, 400.0), "degC": (-150.0, 100.0), "celsius": (-150.0, 100.0)}
PRESSURE = {"Pa": (1e4, 1.3e5), "hPa": (100.0, 1300.0), "mbar": (100.0, 1300.0)}
POSSIBLE = {
    "air_temperature": TEMPERATURE,
    "sea_surface_temperature": TEMPERATURE,
    "surface_air_pressure": PRESSURE,
    "air_pressure_at_mean_sea_level": PRESSURE,
    "air_pressure_at_sea_level": PRESSURE,
}


@dataclass(frozen=True)
class Statistics:
    """Statistics of each channel; missing values are left out.

    Args:
        mean: Mean over trajectories, time and grid points, unweighted, after the transform.
        std: Population standard deviation likewise.
        minimum: Least value in physical units.
        maximum: Greatest value in physical units.
    """

    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]

    def state(self) -> dict[str, Any]:
        """As a dictionary of lists."""
        return asdict(self)


def compute_statistics(
    cube: Cube, split: Split, transforms: Sequence[Transform | None] = ()
) -> Statistics:
    """Read a split once, with dask, by spans of whole chunks, on whatever scheduler dask has.

    Args:
        cube: The cube.
        split: Usually the training split.
        transforms: Of each channel, or none at all.

    Raises:
        DataError: If a variable has missing values that are refused, none at all, one only, or
            values that it cannot have in its units.
    """
    frames = max(SPAN_BYTES // cube.frame_bytes, 1)
    spans = chunked_spans(Windows(split, 1), cube.chunks, frames)
    logger.info("computing statistics of %s over %d frames", cube.path, split.frames)
    # As a part of the function the cube is left alone: dask computes what it finds in arguments.
    moments = dask.delayed(partial(_moments, cube))
    parts = cast(list[np.ndarray], dask.compute(*[moments(span, transforms) for span in spans]))
    count, mean, squares, minimum, maximum = parts[0]
    for part in parts[1:]:
        # Pairwise update of mean and sum of squares (Chan, Golub and LeVeque 1983).
        total = np.maximum(count + part[0], 1)
        delta = part[1] - mean
        mean = mean + delta * part[0] / total
        squares = squares + part[2] + delta**2 * count * part[0] / total
        count = count + part[0]
        minimum, maximum = np.minimum(minimum, part[3]), np.maximum(maximum, part[4])
    for channel, name in enumerate(cube.variables):
        if not count[channel]:
            raise DataError(
                f"Variable '{name}' of {cube.path} has no value at all in the training split; "
                "leave it out of variables."
            )
        if minimum[channel] == maximum[channel]:
            raise DataError(
                f"Variable '{name}' of {cube.path} is {minimum[channel]:g} everywhere in the "
                "training split, so that it cannot be normalised; leave it out of variables."
            )
        _require_possible(cube, name, float(minimum[channel]), float(maximum[channel]))
    std = np.sqrt(squares / count)
    return Statistics(mean.tolist(), std.tolist(), minimum.tolist(), maximum.tolist())


def _require_possible(cube: Cube, name: str, least: float, greatest: float) -> None:
    attrs = cube.variables[name]
    kind, unit = str(attrs.get("standard_name")), str(attrs.get("units"))
    low, high = POSSIBLE.get(kind, {}).get(unit, (-np.inf, np.inf))
    if least < low or greatest > high:
        raise DataError(
            f"Variable '{name}' of {cube.path} has units {unit}, but values from {least:g} to "
            f"{greatest:g}, which are no {kind} in {unit}; correct its units, or its values."
        )


def _moments(cube: Cube, span: Span, transforms: Sequence[Transform | None]) -> np.ndarray:
    """Count, mean, sum of squared deviations, minimum, maximum: (5, C) of a span's values."""
    values = cube.read(slice(*span.trajectories), slice(*span.frames))
    out = np.zeros((5, values.shape[2]))
    out[3], out[4] = np.inf, -np.inf
    for channel in range(values.shape[2]):
        present = values[:, :, channel].astype(np.float64).ravel()
        if not cube.refuse_missing:
            present = present[np.isfinite(present)]
        if present.size:
            extremes = present.min(), present.max()
            if transforms and (transform := transforms[channel]) is not None:
                present = transform.forward(torch.from_numpy(present)).numpy()
            mean = present.mean()
            present -= mean  # in place: what is in memory is one copy of one channel
            out[:, channel] = present.size, mean, np.square(present, out=present).sum(), *extremes
    return out
