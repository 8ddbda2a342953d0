"""Which frames are for training, for validation and for testing.

A split is a set of trajectories and a list of runs of consecutive frames. Runs end at the edges of
the split and at gaps in time, and a window lies within one run of one trajectory, so that no window
crosses a split, a trajectory or a gap.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_modules.cube import Cube
from data_modules.errors import DataError

SplitBy = Literal["trajectory", "time"]
NAMES = ("train", "validate", "test")
FRACTIONS = {"train": 0.75, "validate": 0.125, "test": 0.125}


@dataclass(frozen=True)
class Split:
    """The frames of one split.

    Args:
        name: train, validate or test.
        trajectories: Numbers [start, stop) of its trajectories.
        runs: Consecutive frames [start, stop), the same for each of its trajectories.
    """

    name: str
    trajectories: tuple[int, int]
    runs: tuple[tuple[int, int], ...]

    @property
    def frames(self) -> int:
        """Number of frames of all its trajectories."""
        first, stop = self.trajectories
        return (stop - first) * sum(b - a for a, b in self.runs)


def make_splits(
    cube: Cube, splits: Mapping[str, Any] | None = None, split_by: SplitBy | None = None
) -> dict[str, Split]:
    """Divide a cube into splits.

    Args:
        cube: The cube.
        splits: For each name either a fraction, taken in order, or [first, last], both included:
            times when splitting by time (a year or month stands for all of it), numbers of
            trajectories else. Default: 0.75, 0.125 and 0.125.
        split_by: "trajectory" or "time"; by default by trajectory where there are several and no
            times are given.

    Raises:
        DataError: If a split is unknown, empty, overlaps another or is not within the cube, or may
            be of either kind.
    """
    splits = dict(FRACTIONS if splits is None else splits)
    for name in splits:
        if name not in NAMES:
            raise DataError(f"'{name}' is no split; splits can be {', '.join(NAMES)}.")
    if "train" not in splits:
        raise DataError("There is no 'train' split; add one, statistics are computed over it.")
    ranges = [name for name, value in splits.items() if not isinstance(value, int | float)]
    if ranges and len(ranges) < len(splits):
        raise DataError(
            f"splits mixes fractions and ranges ({splits}); give either fractions or [first, last] "
            "for all."
        )
    numbers = all(
        isinstance(value, list | tuple) and all(isinstance(end, int | float) for end in value)
        for value in splits.values()
    )
    if split_by is None and numbers and cube.trajectories > 1 and cube.calendar is None:
        raise DataError(
            f"splits ({splits}) may be times or numbers of trajectories of {cube.path}, whose "
            "times are numbers too; set split_by to 'time' or 'trajectory'."
        )
    if split_by is None:
        split_by = "trajectory" if cube.trajectories > 1 and not ranges else "time"
    if split_by == "trajectory" and cube.trajectory_dim is None:
        raise DataError(
            f"{cube.path} has no trajectories to split by; set split_by to 'time', or name the "
            "dimension with trajectory_dim."
        )
    size = cube.trajectories if split_by == "trajectory" else len(cube.times)
    if ranges:
        bounds = {name: _range(cube, split_by, name, value) for name, value in splits.items()}
    else:
        bounds = _fractions(splits, size, split_by)
    _refuse_overlap(bounds)
    if split_by == "trajectory":
        return {name: Split(name, (a, b), tuple(cube.runs())) for name, (a, b) in bounds.items()}
    every = (0, cube.trajectories)
    return {name: Split(name, every, _within(cube.runs(), a, b)) for name, (a, b) in bounds.items()}


def _fractions(
    splits: Mapping[str, float], size: int, split_by: SplitBy
) -> dict[str, tuple[int, int]]:
    if any(value < 0 for value in splits.values()) or sum(splits.values()) > 1 + 1e-9:
        raise DataError(
            f"The fractions of splits ({splits}) must not be negative nor add up to more than 1."
        )
    edges = np.round(np.cumsum([0.0, *splits.values()]) * size).astype(int).tolist()
    bounds = dict(zip(splits, itertools.pairwise(edges), strict=True))
    for name, (a, b) in bounds.items():
        if a == b and splits[name] > 0:
            units = "trajectories" if split_by == "trajectory" else "frames"
            other = "; set split_by to 'time'" if split_by == "trajectory" else ""
            raise DataError(
                f"The split '{name}' is empty: {splits[name]:g} of {size} {units} is less than "
                f"one{other}, or make it larger."
            )
    return {name: pair for name, pair in bounds.items() if pair[0] < pair[1]}


def _range(cube: Cube, split_by: SplitBy, name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DataError(f"The split '{name}' is {value!r}; give a fraction or [first, last].")
    if split_by == "trajectory":
        if not all(isinstance(v, int) and 0 <= v < cube.trajectories for v in value):
            raise DataError(
                f"The split '{name}' is {list(value)}, but {cube.path} has trajectories 0 to "
                f"{cube.trajectories - 1}."
            )
        start, stop = value[0], value[1] + 1
    else:
        start, stop = _time_range(cube, name, value)
    if start >= stop:
        last = cube.trajectories - 1 if split_by == "trajectory" else cube.times[-1]
        first = 0 if split_by == "trajectory" else cube.times[0]
        raise DataError(
            f"The split '{name}' from {value[0]} to {value[1]} is empty; the cube goes from "
            f"{first} to {last}."
        )
    return start, stop


def _time_range(cube: Cube, name: str, value: Any) -> tuple[int, int]:
    try:
        if cube.calendar is None:
            first, last = map(float, value)
            stop = np.searchsorted(cube.time_numbers, last, side="right")
            return int(np.searchsorted(cube.time_numbers, first)), int(stop)
        # The index reads "1990" or "1990-05" as the whole year or month, in any calendar.
        index = xr.Dataset(coords={"time": cube.times}).indexes["time"]
        found = index.slice_indexer(str(value[0]), str(value[1]))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"The split '{name}' is {list(value)}, which are no times of {cube.path}; give times "
            f"between {cube.times[0]} and {cube.times[-1]}."
        ) from error
    return int(found.start or 0), int(len(index) if found.stop is None else found.stop)


def _refuse_overlap(bounds: Mapping[str, tuple[int, int]]) -> None:
    ordered = sorted(bounds.items(), key=lambda item: item[1])
    for (one, (_, stop)), (other, (start, _)) in itertools.pairwise(ordered):
        if start < stop:
            raise DataError(f"The splits '{one}' and '{other}' overlap; make them disjoint.")


def _within(runs: list[tuple[int, int]], start: int, stop: int) -> tuple[tuple[int, int], ...]:
    cut = [(max(a, start), min(b, stop)) for a, b in runs]
    return tuple((a, b) for a, b in cut if a < b)
