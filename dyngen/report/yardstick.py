"""What the figures of one variable are measured with, the same for every system."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.spectra import isotropic_spectrum, shells

FINE, COARSE = 2000, 200  # bins to compute with, bins to keep
ABSOLUTE = 2**16  # bins of values as they are, from which thresholds and quantiles are read
SPREAD = 1100  # points of a field, about, where all of them would be too many


@dataclass(frozen=True)
class Extent:
    """Mean at every point, and the range of values and increments of a run.

    ``mean`` is (H, W), NaN where nothing was ever observed; ``lowest`` and ``highest`` are
    anomalies from it, ``least`` and ``most`` are not.
    """

    mean: Tensor
    lowest: float
    highest: float
    least: float
    most: float
    largest_increment: float


@dataclass(frozen=True)
class Yardstick:
    """What the figures of one variable are measured with.

    Args:
        centre: ``(H, W)`` climatological mean, from which anomalies are taken.
        area: ``(H, W)`` area weights.
        lags: for autocorrelations, in steps.
        value_edges: bin edges for values, as anomalies.
        increment_edges: bin edges for increments.
        absolute_edges: bin edges for values as they are.
        periodic, spacing: of the grid, as in :func:`~dyngen.metrics.spectra.isotropic_spectrum`.
    """

    centre: Tensor
    area: Tensor
    lags: tuple[int, ...]
    value_edges: Tensor
    increment_edges: Tensor
    absolute_edges: Tensor
    periodic: tuple[bool, bool]
    spacing: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.centre.shape[0], self.centre.shape[1]

    @property
    def complete(self) -> int:
        """The last wavenumber whose shell holds all directions."""
        return shells(*self.shape, self.spacing)[1]

    @property
    def stride(self) -> tuple[int, int]:
        """Every so-manieth row and column, for scores that make do with a spread of points."""
        step = 1
        while math.prod(-(-n // step) for n in self.shape) > SPREAD:
            step += 1
        return min(step, self.shape[0]), min(step, self.shape[1])

    @property
    def every(self) -> tuple[slice, slice]:
        """Index of that spread of points."""
        return slice(None, None, self.stride[0]), slice(None, None, self.stride[1])

    def spectrum(self, fields: Tensor) -> Tensor:
        """Isotropic spectra ``(..., K)`` of ``(..., H, W)``."""
        return isotropic_spectrum(fields, periodic=self.periodic, spacing=self.spacing)


def yardstick_of(
    reference: xr.DataArray,
    known: Extent,
    area_weights: xr.DataArray | None,
    *,
    centre: Tensor | None = None,
    lags: tuple[int, ...],
    periodic: tuple[bool, bool],
    spacing: tuple[float, float],
) -> Yardstick:
    """The yardstick that a reference makes.

    Args:
        reference: (run, time, y, x).
        known: its extent.
        area_weights: over the spatial dimensions, or one of them; None: all points count alike.
        centre: ``(H, W)`` a climatological mean that does not come from the reference. About its
            own mean the reference varies less than anything else does, the less the fewer its runs.
            None: its own.
        lags, periodic, spacing: as they are to be.

    Raises:
        ValueError: when the area weights are not of the grid.
    """
    space = reference.dims[2:]
    shape = reference.shape[2:]
    area = torch.ones(shape, dtype=torch.float64)
    if area_weights is not None:
        unknown = set(area_weights.dims) - set(space)
        if unknown or any(area_weights.sizes[d] != reference.sizes[d] for d in area_weights.dims):
            raise ValueError(
                f"area_weights have dimensions {dict(area_weights.sizes)}; the grid has "
                f"{dict(zip(space, shape, strict=True))}."
            )
        given = area_weights.transpose(*(d for d in space if d in area_weights.dims)).to_numpy()
        sizes = [n if d in area_weights.dims else 1 for d, n in zip(space, shape, strict=True)]
        area = torch.tensor(given, dtype=torch.float64).reshape(sizes).expand(shape)
    largest = 2 * known.largest_increment or 1.0
    return Yardstick(
        centre=known.mean if centre is None else torch.where(centre.isnan(), known.mean, centre),
        area=torch.where(known.mean.isnan(), 0.0, area),
        lags=tuple(lags),
        value_edges=_edges(known.lowest, known.highest, FINE),
        increment_edges=torch.linspace(-largest, largest, FINE + 1, dtype=torch.float64),
        absolute_edges=_edges(known.least, known.most, ABSOLUTE),
        periodic=periodic,
        spacing=spacing,
    )


def _edges(lowest: float, highest: float, bins: int) -> Tensor:
    """Twice as wide as what was seen, as generated values may lie beyond."""
    margin = 0.5 * (highest - lowest) or 1.0
    return torch.linspace(lowest - margin, highest + margin, bins + 1, dtype=torch.float64)
