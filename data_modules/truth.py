"""What a cube says came true, in physical units: what rollouts are scored against.

Nothing is read until it is asked for, chunk by chunk, so that the reference may be larger than
memory; missing values stay NaN, whatever the models were given in their place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import cftime
import dask
import dask.array
import numpy as np
import xarray as xr

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.errors import DataError

Place = tuple[int, int]  # trajectory, number of a frame

SAME_TIME = 1e-3  # of a step


class Truth:
    """Frames of a cube as labelled, lazy datasets.

    Frames are `frame_stride` of the data module apart and cropped as its batches are.

    Args:
        data: Says which cube, variables, splits and crop.
    """

    def __init__(self, data: ClimateCubeDataModule) -> None:
        self._data = data
        known = len(data.cube.variables)
        self._cube = replace(data.cube, refuse_missing=False, fill_values=(None,) * known)

    @property
    def space(self) -> tuple[str, str]:
        """Names of the spatial dimensions, rows first."""
        return self._cube.dims

    @property
    def periodic(self) -> tuple[bool, bool]:
        """Whether rows and columns wrap around."""
        uncropped = [n == m for n, m in zip(self._cube.shape, self._data.shape, strict=True)]
        edges = [edge == "periodic" for edge in self._cube.boundary]
        return edges[0] and uncropped[0], edges[1] and uncropped[1]

    @property
    def area_weights(self) -> xr.DataArray:
        """Weights of the rows, of mean 1."""
        return xr.DataArray(self._data.area_weights.numpy(), dims=self.space[0])

    def runs(self, split: str, at_least: int = 1, frames: int = 20_000) -> xr.Dataset:
        """Runs of a split, (run, time, y, x), cut to the shortest, and to so many frames in all.

        Args:
            split: Name of the split.
            at_least: Runs shorter than this are left out where others are longer.
            frames: The most frames, of all runs together; runs are then left out evenly.
        """
        chosen = self._data.split(split)
        stride = self._data.frame_stride
        pieces = [
            (trajectory, start, -(-(stop - start) // stride))
            for trajectory in range(*chosen.trajectories)
            for start, stop in chosen.runs
        ]
        least = min(max(length for _, _, length in pieces), at_least)
        pieces = [piece for piece in pieces if piece[2] >= least]
        length = min(length for _, _, length in pieces)
        keep = max(1, min(len(pieces), frames // length))
        pieces = [pieces[i * len(pieces) // keep] for i in range(keep)]
        length = min(length, frames)
        return self._dataset(
            [self._frames(trajectory, start, length) for trajectory, start, _ in pieces],
            ("run", "time"),
        )

    def after(self, places: Sequence[Place], leads: Sequence[int]) -> xr.Dataset:
        """What came true, (initial, lead, y, x), so many frames after each place.

        Args:
            places: Trajectory and number of the frame of each initial state.
            leads: Steps after it, rising and equally far apart.

        Raises:
            DataError: If the cube ends before, or has a gap there.
        """
        self._check_within(places, max(leads))
        every = leads[1] - leads[0] if len(leads) > 1 else 1
        stride = self._data.frame_stride
        frames = [
            self._frames(trajectory, frame + leads[0] * stride, len(leads), every * stride)
            for trajectory, frame in places
        ]
        return self._dataset(frames, ("initial", "lead"), places)

    def read_after(self, places: Sequence[Place], lead: int) -> np.ndarray:
        """What came true so many steps after each place, (N, C, H, W), in memory.

        For thousands of places: each chunk of the cube is read once, however many of them it holds.

        Raises:
            DataError: As `after`.
        """
        self._check_within(places, lead)
        rows, columns = self._data.crop_slices
        found = np.empty((len(places), len(self._cube.variables), *self._data.shape), np.float32)
        steps, per_chunk = lead * self._data.frame_stride, self._cube.chunks[1]
        of_chunk = defaultdict(list)
        for number, (trajectory, frame) in enumerate(places):
            of_chunk[trajectory, (frame + steps) // per_chunk].append(number)
        for (trajectory, _), numbers in of_chunk.items():
            frames = np.array([places[number][1] + steps for number in numbers])
            span = slice(frames.min(), frames.max() + 1)
            values = self._cube.read(slice(trajectory, trajectory + 1), span)[0]
            found[numbers] = values[frames - span.start][:, :, rows, columns]
        return found

    def at(self, places: Sequence[Place]) -> xr.Dataset:
        """Frames at places, (initial, y, x)."""
        frames = [self._frames(trajectory, frame, 1) for trajectory, frame in places]
        return self._dataset(frames, ("initial", "lead"), places).isel(lead=0)

    def places(self, times: np.ndarray, trajectories: np.ndarray | None = None) -> list[Place]:
        """Where in the cube these times are.

        Args:
            times: (N,) datetime64, cftime dates or numbers.
            trajectories: (N,) their trajectories, in a cube that has several.

        Raises:
            DataError: If a time is not in the cube, or the trajectory is not known.
        """
        cube = self._cube
        if trajectories is None:
            if cube.trajectories > 1:
                raise DataError(
                    f"{cube.path} has {cube.trajectories} trajectories, and the rollout does not "
                    "say which its initial states are of: give it a coordinate "
                    "initial_trajectory(initial)."
                )
            trajectories = np.zeros(len(times), dtype=np.int64)
        bad = [t for t in trajectories.tolist() if not 0 <= t < cube.trajectories]
        if bad:
            raise DataError(
                f"The rollout starts from trajectory {bad[0]}, but {cube.path} has trajectories 0 "
                f"to {cube.trajectories - 1}."
            )
        numbers = self._numbers(times)
        nearest = np.searchsorted(cube.time_numbers, numbers - SAME_TIME * cube.step)
        nearest = nearest.clip(max=len(cube.time_numbers) - 1)
        off = np.abs(cube.time_numbers[nearest] - numbers) > SAME_TIME * cube.step
        if off.any():
            raise DataError(
                f"{cube.path} has no frame at time {times[int(np.argmax(off))]}, where a rollout "
                f"starts; its times go from {cube.times[0]} to {cube.times[-1]}."
            )
        return list(zip(trajectories.tolist(), nearest.tolist(), strict=True))

    def _numbers(self, times: np.ndarray) -> np.ndarray:
        """Times as the cube's own numbers."""
        cube = self._cube
        if (cube.calendar is not None) != (times.dtype.kind in "MO"):
            kinds = {True: "dates", False: "numbers"}
            raise DataError(
                f"The times of {cube.path} are {kinds[cube.calendar is not None]}, those of the "
                f"rollout {kinds[times.dtype.kind in 'MO']}; give both the same."
            )
        if times.dtype.kind == "M":
            if cube.times.dtype.kind == "O":  # a calendar that datetime64 does not know
                dates = times.astype("datetime64[s]").astype(object)
                times = np.array(
                    [cftime.datetime(*d.timetuple()[:6], calendar=cube.calendar) for d in dates]
                )
            else:
                return times.astype("datetime64[us]").astype(np.int64) / 1e6
        if times.dtype.kind == "O":
            units = "seconds since 1970-01-01"
            return np.asarray(cftime.date2num(times, units, calendar=times[0].calendar), float)
        return times.astype(np.float64)

    def _check_within(self, places: Sequence[Place], leads: int) -> None:
        cube, steps = self._cube, leads * self._data.frame_stride
        runs = cube.runs()
        for _, frame in places:
            stop = next(stop for start, stop in runs if start <= frame < stop)
            if frame + steps >= stop:
                reason = "ends" if stop == len(cube.times) else "has a gap"
                raise DataError(
                    f"A rollout of {leads} steps from time {cube.times[frame]} cannot be verified: "
                    f"{cube.path} {reason} after {cube.times[stop - 1]}."
                )

    def _frames(self, trajectory: int, start: int, count: int, step: int = 0) -> dask.array.Array:
        """Lazy frames (count, C, H, W), a step of numbers apart; the data module's by default."""
        step = step or self._data.frame_stride
        per_block = max(1, self._cube.chunks[1] // step)
        crop = self._data.crop_slices
        shape = (len(self._cube.variables), *self._data.shape)

        def read(first: int, n: int) -> np.ndarray:
            frames = slice(first, first + (n - 1) * step + 1, step)
            values = self._cube.read(slice(trajectory, trajectory + 1), frames)[0]
            return values[:, :, crop[0], crop[1]]

        blocks, done = [], 0
        while done < count:  # blocks end where the chunks on disk do
            first = start + done * step
            into = (first % self._cube.chunks[1]) // step
            n = min(count - done, max(1, per_block - into))
            lazy = dask.delayed(read, pure=False)(first, n)
            blocks.append(dask.array.from_delayed(lazy, (n, *shape), np.float32))
            done += n
        return dask.array.concatenate(blocks)

    def _dataset(
        self,
        frames: list[dask.array.Array],
        dims: tuple[str, str],
        places: Sequence[Place] | None = None,
    ) -> xr.Dataset:
        """Frames (count, C, H, W) each as a dataset with the cube's own names."""
        together = dask.array.stack(frames)
        data = {
            name: ((*dims, *self.space), together[:, :, channel], dict(attributes))
            for channel, (name, attributes) in enumerate(self._cube.variables.items())
        }
        crop = dict(zip(self.space, self._data.crop_slices, strict=True))
        coords = {
            name: (on, values[tuple(crop[dim] for dim in on)], dict(attributes))
            for name, (on, values, attributes) in self._cube.coords.items()
        }
        result = xr.Dataset(data, coords)
        if places is not None:
            times = self._cube.times[[frame for _, frame in places]]
            result = result.assign_coords(initial_time=(dims[0], times))
        return result
