"""What is given beside the frames: static fields of the grid, and series that force the world."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_modules.cube import Cube
from data_modules.errors import DataError
from data_modules.splits import Split


@dataclass(frozen=True)
class Conditioning:
    """Standardised static fields and forcing series.

    Args:
        static: (C_s, H, W), or None.
        forcing: (trajectories or 1, frames, C_f), or None.
    """

    static: Tensor | None = None
    forcing: Tensor | None = None

    def of(self, trajectory: Tensor, number: Tensor) -> dict[str, Tensor]:
        """What a batch holds beside frames, by trajectory and frame numbers (B, T)."""
        batch = {}
        if self.static is not None:
            batch["static"] = self.static
        if self.forcing is not None:
            row = trajectory if len(self.forcing) > 1 else torch.zeros_like(trajectory)
            batch["forcing"] = self.forcing[row, number]
        return batch


def read_conditioning(
    cube: Cube, static: Sequence[str], forcing: Sequence[str], train: Split
) -> Conditioning:
    """Read and standardise; forcing by its mean and spread over the training split.

    Raises:
        DataError: If a variable is missing, has other dimensions, or has missing values.
    """
    return Conditioning(
        torch.stack([_static(cube, name) for name in static]) if static else None,
        _side_by_side([_forcing(cube, name, train) for name in forcing]) if forcing else None,
    )


def _side_by_side(series: list[Tensor]) -> Tensor:
    """(trajectories or 1, frames, C_f); a series that all trajectories share is repeated."""
    return torch.stack(torch.broadcast_tensors(*series), dim=-1)


def _static(cube: Cube, name: str) -> Tensor:
    array = _variable(cube, name, set(cube.dims), "static").transpose(*cube.dims)
    values = array.values.astype(np.float64)
    return _standardised(values, values, cube, name)


def _forcing(cube: Cube, name: str, train: Split) -> Tensor:
    """(trajectories or 1, frames) of one series."""
    array = _variable(cube, name, {cube.time_dim, cube.trajectory_dim}, "forcing")
    values = array.transpose(..., cube.time_dim).values.astype(np.float64)
    values = np.atleast_2d(values)
    seen = values[slice(*train.trajectories)] if len(values) > 1 else values
    seen = np.concatenate([seen[:, a:b] for a, b in train.runs], axis=1)
    return _standardised(values, seen, cube, name)


def _variable(cube: Cube, name: str, dims: set[str | None], argument: str) -> xr.DataArray:
    if name not in cube.dataset.variables:
        known = list(map(str, cube.dataset.variables))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise DataError(f"{cube.path} has no variable '{name}'{hint}; correct {argument}.")
    array = cube.dataset[name]
    complete = set(array.dims) == dims if argument == "static" else cube.time_dim in array.dims
    if not set(array.dims) <= dims or not complete:
        raise DataError(
            f"Variable '{name}' of {cube.path} has dimensions {', '.join(map(str, array.dims))}, "
            f"so that it cannot be {argument}; remove it from {argument}."
        )
    return array


def _standardised(values: np.ndarray, seen: np.ndarray, cube: Cube, name: str) -> Tensor:
    if not np.isfinite(values).all():
        raise DataError(f"Variable '{name}' of {cube.path} has missing values; repair the cube.")
    spread = seen.std()
    return torch.from_numpy((values - seen.mean()) / (spread if spread else 1.0)).float()
