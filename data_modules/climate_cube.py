"""Windows of a data cube for training, and everything a rollout needs to know about the cube."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from data_modules.along import Along
from data_modules.axes import is_latitude, listed, nearest
from data_modules.blocks import Block, read_block
from data_modules.calendars import as_numbers, show
from data_modules.climatology import Climatology, fit_climatology
from data_modules.conditioning import Conditioning, forcing_at, read_conditioning
from data_modules.cube import Cube, open_cube
from data_modules.errors import DataError
from data_modules.loader import Batch, WindowLoader
from data_modules.normalisation import Normalisation
from data_modules.splits import Split, SplitBy, make_splits
from data_modules.statistics import Statistics, compute_statistics
from data_modules.transforms import Transform
from data_modules.windows import Windows, chunked_spans, whole_spans

logger = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**30
GOLDEN = (5**0.5 - 1) / 2


class ClimateCubeDataModule(LightningDataModule):
    """Windows of consecutive frames from any cube that xarray opens.

    A batch is a dictionary: `frames (B, T, C, H, W)`, float32, normalised; `time (B, T)`, float64:
    seconds since 1970-01-01 in the cube's calendar where times are dates, else the cube's own
    numbers; and, where asked for, `static (C_s, H, W)` and `forcing (B, T, C_f)`. No window crosses
    a split, a trajectory or a gap in time.

    Args:
        path: A Zarr group or a NetCDF file, on disk or behind a URL (`s3://`, `gs://`, `https://`);
            a pattern such as `pr_*.nc` or a list of paths is joined by coordinates.
        variables: Names of the variables, which become the channels in this order; by default all
            that have dimensions of time and space. Each level of a variable with levels is a
            channel, such as `ta_850`, and can be named alone.
        window_length: Frames in a window.
        window_stride: Frames of the cube from the start of a window to that of the next.
        frame_stride: Frames of the cube from one frame of a window to the next.
        splits: For each of `train`, `validate` and `test` a fraction, taken in this order, or
            `[first, last]`, both included: times (`["1990", "2004"]`), or numbers of trajectories.
            Default: 0.75, 0.125 and 0.125.
        split_by: Split by `trajectory` or by `time`; by default by trajectory where there are
            several and no times are given.
        batch_size: Windows in a batch.
        num_workers: Processes that read ahead when the split is not held in memory.
        in_memory: Hold the splits in memory; by default when that of training has less than 1 GiB.
        shuffle_buffer: MiB of frames that are read and shuffled together when not in memory; three
            such buffers are held at most, and one more by each worker.
        crop: Rows and columns of a crop: random in training, central else.
        static: Names of variables over space alone, standardised, in each batch as `static`;
            besides `latitude` (its sine) and `longitude` (cosine and sine).
        forcing: Names of variables over time alone, standardised, in each batch as `forcing`;
            besides `day_of_year` and `time_of_day` (cosine and sine), which follow the calendar.
        time_dim: Name of the dimension of time; found by its attributes or name by default.
        trajectory_dim: Name of the dimension of independent trajectories; likewise.
        spatial_dims: Names of the two dimensions in space, rows first; likewise.
        boundary: For rows and columns `periodic`, `pole`, `reflect` or `zero`; by default as the
            coordinates say: `periodic` for longitudes around the globe, then `pole` for latitudes
            that reach both poles, and `reflect` else.
        missing: `refuse` missing values, or `fill` them.
        fill_value: What to fill with, in physical units, for all variables or by name; by default
            the mean over the training split.
        seed: Names the shuffling.
        storage_options: For the file system of a URL, as fsspec takes them: credentials, an
            endpoint, or for public data `{"anon": true}` (S3) and `{"token": "anon"}` (Google).
        transforms: By variable or channel, what is done before standardising, such as
            `{pr: {kind: log, scale: 1.0, lower: 0.0}}`; see `Transform`.
        seasonal: Harmonics of the year whose cycle is subtracted at each pixel, for all variables
            or by name: frames are then anomalies. 0 leaves the cycle in.
        standardise: Divide by one standard deviation for each `variable`, or at each `pixel`, where
            the mean of the pixel is subtracted too, or at each pixel and time of the year
            (`season`), of the harmonics of `seasonal`, but no more than three.

    Raises:
        DataError: From `setup`, if the cube cannot be used as asked.
    """

    def __init__(
        self,
        path: str | Path | list[str],
        variables: list[str] | None = None,
        window_length: int = 2,
        window_stride: int = 1,
        frame_stride: int = 1,
        splits: dict[str, Any] | None = None,
        split_by: SplitBy | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        in_memory: bool | None = None,
        shuffle_buffer: int = 128,
        crop: tuple[int, int] | None = None,
        static: list[str] | None = None,
        forcing: list[str] | None = None,
        time_dim: str | None = None,
        trajectory_dim: str | None = None,
        spatial_dims: tuple[str, str] | None = None,
        boundary: tuple[str, str] | None = None,
        missing: Literal["refuse", "fill"] = "refuse",
        fill_value: float | dict[str, float] | None = None,
        seed: int = 0,
        storage_options: dict[str, Any] | None = None,
        transforms: dict[str, Transform] | None = None,
        seasonal: int | dict[str, int] = 0,
        standardise: Literal["variable", "pixel", "season"] = "variable",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; make it 1 or more.")
        if standardise not in ("variable", "pixel", "season"):
            raise DataError(
                f"standardise is '{standardise}'; it can be 'variable', 'pixel' or 'season'."
            )
        self._paths, self.variables = path, variables
        self.path = str(path) if isinstance(path, str | Path) else ", ".join(map(str, path))
        self.window_length, self.window_stride = window_length, window_stride
        self.frame_stride = frame_stride
        self._splits, self._split_by = splits, split_by
        self.batch_size, self.num_workers = batch_size, num_workers
        self._in_memory, self.shuffle_buffer = in_memory, shuffle_buffer
        self._crop, self.seed = crop, seed
        self._static, self._forcing = static or [], forcing or []
        self._transforms, self._seasonal = transforms or {}, seasonal
        self._standardise = standardise
        self._opening: dict[str, Any] = {
            "time_dim": time_dim,
            "trajectory_dim": trajectory_dim,
            "spatial_dims": spatial_dims,
            "boundary": boundary,
            "missing": missing,
            "fill_value": fill_value,
            "storage_options": storage_options,
        }
        self._cube: Cube | None = None
        self._statistics: Statistics | None = None
        self._climatology: Climatology | None = None
        self._normalisation: Normalisation | None = None
        self._conditioning: Conditioning | None = None
        self._blocks: dict[str, Block] = {}
        self.splits: dict[str, Split] = {}

    def setup(self, stage: str | None = None) -> None:
        """Open the cube and make the splits; the fields are read when they are first needed.

        Raises:
            DataError: If the cube cannot be used as asked.
        """
        if self._cube is not None:
            return
        cube = open_cube(self._paths, self.variables, **self._opening)
        by_pixel = bool(self._seasonal) or self._standardise != "variable"
        _check_names(cube, "transforms", self._transforms)
        if isinstance(self._seasonal, dict):
            _check_names(cube, "seasonal", self._seasonal)
        if self._crop is not None:
            _check_crop(cube, self._crop, bool(self._static), by_pixel)
        _tell_gaps(cube)
        self.splits = make_splits(cube, self._splits, self._split_by)
        for split in self.splits.values():
            Windows(split, self.window_length, self.window_stride, self.frame_stride)
        self._conditioning = read_conditioning(
            cube, self._static, self._forcing, self.splits["train"]
        )
        self._cube = cube

    @property
    def cube(self) -> Cube:
        """What the cube on disk holds."""
        self.setup()
        assert self._cube is not None
        return self._cube

    @property
    def statistics(self) -> Statistics:
        """Statistics over the training split: restored from a checkpoint, or computed once."""
        if self._statistics is None:
            self._statistics = compute_statistics(
                self.cube, self.splits["train"], self.transforms if any(self.transforms) else ()
            )
        return self._statistics

    @property
    def transforms(self) -> list[Transform | None]:
        """What is done to each channel before it is standardised."""
        return _by_channel(self.cube, self._transforms, None)

    @property
    def climatology(self) -> Climatology | None:
        """What is normal at each pixel, where it is subtracted: restored, or fitted once."""
        harmonics = self._harmonics()
        if self._climatology is None and any(h is not None for h in harmonics):
            self._climatology = fit_climatology(
                self.cube,
                self.splits["train"],
                self.statistics.mean,
                self.transforms,
                harmonics,
                variance=self._standardise == "season",
            )
        return self._climatology

    def _harmonics(self) -> list[int | None]:
        """Of each channel; 0 for a mean of each pixel, None for no climatology."""
        if isinstance(self._seasonal, dict):
            wanted: list[int] = _by_channel(self.cube, self._seasonal, 0)
        else:
            wanted = [self._seasonal] * len(self.cube.variables)
        if any(h < 0 for h in wanted):
            raise DataError(f"seasonal is {self._seasonal}; give 0 or more harmonics.")
        if self._standardise == "season" and not any(wanted):
            raise DataError(
                "standardise is 'season', but seasonal is 0: no variance follows the year; give "
                "seasonal harmonics, or standardise by 'pixel'."
            )
        return [h or (None if self._standardise == "variable" else 0) for h in wanted]

    @property
    def normalisation(self) -> Normalisation:
        """From physical units to unit variance over the training split, and back."""
        if self._normalisation is None:
            self._normalisation = Normalisation(**self._normalising())
        return self._normalisation

    def _normalising(self) -> dict[str, Any]:
        """The arguments of the normalisation, no more of them than are used."""
        known, climatology = self.statistics, self.climatology
        given: dict[str, Any] = {"mean": known.mean, "std": known.std}
        if any(self.transforms):
            given["transforms"] = [None if t is None else t.state() for t in self.transforms]
        if climatology is not None:
            given |= {
                "std": climatology.std,
                "cycle": climatology.cycle,
                "calendar": self.cube.calendar,
            }
            if self._standardise == "pixel":
                given["pixel_std"] = climatology.pixel_std
            if climatology.variance is not None:
                given["variance"] = climatology.variance
        return given

    @property
    def in_memory(self) -> bool:
        """Whether the splits are held in memory."""
        if self._in_memory is not None:
            return self._in_memory
        return self.cube.frame_bytes * self.split("train").frames < IN_MEMORY_BYTES

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the frames in a batch."""
        return self.cube.shape if self._crop is None else (self._crop[0], self._crop[1])

    @property
    def area_weights(self) -> Tensor:
        """Weights (H,) of the rows, of mean 1: cosine of latitude, or 1 without latitudes."""
        rows = self.cube.dims[0]
        if rows in self.cube.coords:
            _, values, attrs = self.cube.coords[rows]
            if is_latitude(rows, attrs):
                weights = torch.from_numpy(np.cos(np.deg2rad(values[self.crop_slices[0]]))).float()
                return weights / weights.mean()
        return torch.ones(self.shape[0])

    def split(self, name: str) -> Split:
        """A split by its name.

        Raises:
            DataError: If there is no such split.
        """
        self.setup()
        if name not in self.splits:
            raise DataError(
                f"There is no split '{name}'; there are {', '.join(self.splits)}: add it to splits."
            )
        return self.splits[name]

    def description(self) -> dict[str, Any]:
        """Variables, grid, time and normalisation as plain values that any checkpoint can hold.

        Keys: `variables` (name -> attributes, in the order of channels), `dims` (rows, columns),
        `shape` (H, W), `coords` (name -> `dims`, `values` as a tensor, `attributes`), `boundary`
        (dimension -> periodic, pole, reflect or zero), `area_weights` (H,), `normalisation` (`mean`
        and `std`, lists by channel), `time` (`step` between frames of a window, its `unit`: seconds
        where times are dates, `calendar`, `attributes`) and `attributes` of the cube. With
        transforms or a climatology `normalisation` has them too, and with static fields or forcing
        there is `conditioning`: what `Along` needs to follow the calendar in a rollout.
        """
        return self.outline() | {"normalisation": self._normalising()}

    def outline(self) -> dict[str, Any]:
        """The description without `normalisation`, for which the cube has to be read."""
        cube, centre = self.cube, self.crop_slices
        assert self._conditioning is not None
        conditioning = self._conditioning.description()
        slices = dict(zip(cube.dims, centre, strict=True))
        edges = zip(cube.dims, cube.boundary, cube.shape, self.shape, strict=True)
        return {
            "variables": {name: dict(attrs) for name, attrs in cube.variables.items()},
            "dims": list(cube.dims),
            "shape": list(self.shape),
            "coords": {
                name: {
                    "dims": list(dims),
                    "values": torch.from_numpy(values[tuple(slices[dim] for dim in dims)].copy()),
                    "attributes": dict(attrs),
                }
                for name, (dims, values, attrs) in cube.coords.items()
            },
            "boundary": {
                dim: edge if size == kept or edge not in ("periodic", "pole") else "reflect"
                for dim, edge, size, kept in edges
            },
            "area_weights": self.area_weights,
            "time": {
                "step": cube.step * self.frame_stride,
                "unit": "seconds" if cube.calendar else str(cube.time_attributes.get("units", "1")),
                "calendar": cube.calendar,
                "attributes": dict(cube.time_attributes),
            },
            "attributes": dict(cube.attributes),
        } | ({"conditioning": conditioning} if conditioning else {})

    def forcing_at(self, times: np.ndarray) -> Tensor:
        """Forcing (..., C_f) at any times, also beyond the cube's end where the calendar gives it.

        Args:
            times: (...) datetime64, cftime dates, or numbers of the cube's kind.

        Raises:
            DataError: If there is no forcing, or a series is not known at one of the times.
        """
        calendar = str(self.cube.calendar)
        assert self._conditioning is not None
        if not self._conditioning.series:
            raise DataError("There is no forcing; name some, such as forcing: [day_of_year].")
        return forcing_at(self._conditioning.series, as_numbers(np.asarray(times)), calendar)

    def along(self, initial_times: np.ndarray) -> Along:
        """The calendar of a rollout from these times: its forcing, and the way back to units."""
        return Along(self.description(), initial_times)

    def state_dict(self) -> dict[str, Any]:
        """Statistics, so that a checkpoint holds them and the cube is not read through again."""
        state = {"variables": list(self.cube.variables), "statistics": self.statistics.state()}
        climatology = self.climatology
        if climatology is not None:
            state["climatology"] = vars(climatology)
        return state | self._asked()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the statistics from a checkpoint.

        Raises:
            DataError: If the checkpoint is of other variables, or they were transformed otherwise.
        """
        _check_variables(state_dict["variables"], list(self.cube.variables))
        now = self._asked()
        for key in ("transforms", "seasonal", "standardise"):
            if state_dict.get(key) != now.get(key):
                raise DataError(
                    f"The checkpoint was trained with {key} {state_dict.get(key)}, but now it is "
                    f"{now.get(key)}; set data.init_args.{key} as it was, or train again."
                )
        statistics = Statistics(**state_dict["statistics"])
        if statistics != self._statistics:
            self._statistics, self._normalisation, self._climatology = statistics, None, None
            self._blocks.clear()
        if "climatology" in state_dict and self._climatology is None:
            self._climatology = Climatology(**state_dict["climatology"])

    def _asked(self) -> dict[str, Any]:
        """How values are transformed, where that is not the default."""
        asked: dict[str, Any] = {}
        if any(self.transforms):
            asked["transforms"] = [None if t is None else t.state() for t in self.transforms]
        harmonics = self._harmonics()
        if any(harmonics):
            asked["seasonal"] = [h or 0 for h in harmonics]
        if self._standardise != "variable":
            asked["standardise"] = self._standardise
        return asked

    def train_dataloader(self) -> WindowLoader:
        """Shuffled windows of the training split, in full batches."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> WindowLoader | list[Any]:
        """All windows of the validation split, scattered; nothing without such a split."""
        self.setup()
        return self._loader("validate", scatter=True) if "validate" in self.splits else []

    def test_dataloader(self) -> WindowLoader:
        """All windows of the test split, always in the same scattered order."""
        return self._loader("test", scatter=True)

    def predict_dataloader(self) -> WindowLoader:
        """All windows of the test split in order."""
        return self._loader("test")

    def read_window(self, split: str, index: int, length: int) -> tuple[Tensor, np.ndarray]:
        """Normalised frames (length, C, H, W) and their times (length,).

        Args:
            split: Name of the split.
            index: Number of the window among all windows of this length in the split, by trajectory
                and then by time.
            length: Frames in the window.

        Raises:
            DataError: If there is no such window.
        """
        windows = Windows(self.split(split), length, 1, self.frame_stride)
        if not 0 <= index < len(windows):
            raise DataError(
                f"There is no window {index} of {length} frames in the split '{split}'; it has "
                f"{len(windows)}."
            )
        return self._read(windows, *windows.locate(index))

    def initial_states(
        self, split: str, count: int, history: int, leads: int
    ) -> tuple[Tensor, np.ndarray]:
        """Frames to start rollouts from, of windows that hold what verifies them too.

        They are spread evenly over the trajectories of a split and over their time, always the
        same.

        Args:
            split: Name of the split.
            count: Number of initial states N.
            history: Frames up to and including the initial state.
            leads: Frames that there must be after it; they are not read.

        Returns:
            Normalised frames (N, history, C, H, W) and their times (N, history): datetime64,
            cftime dates or numbers.

        Raises:
            DataError: If there are not so many windows of that length.
        """
        windows = Windows(self.split(split), history + leads, 1, self.frame_stride)
        places = self._places(windows, count, history, leads)
        begun = Windows(self.split(split), history, 1, self.frame_stride)
        parts = [self._read(begun, *place) for place in places]
        return torch.stack([frames for frames, _ in parts]), np.stack([times for _, times in parts])

    def initial_places(
        self, split: str, count: int, history: int, leads: int
    ) -> list[tuple[int, int]]:
        """Where `initial_states` finds its initial states: (trajectory, number of the frame).

        Raises:
            DataError: As `initial_states`.
        """
        windows = Windows(self.split(split), history + leads, 1, self.frame_stride)
        before = (history - 1) * self.frame_stride
        return [(t, start + before) for t, start in self._places(windows, count, history, leads)]

    def sample_frames(self, split: str, count: int) -> Tensor:
        """Normalised frames (count, C, H, W) spread evenly over a split, always the same.

        Raises:
            DataError: If the split has fewer frames.
        """
        return self.initial_states(split, count, history=1, leads=0)[0][:, 0]

    def run_count(self, split: str) -> int:
        """Number of runs of a split: its trajectories, times the pieces between gaps in time."""
        first, stop = self.split(split).trajectories
        return (stop - first) * len(self.split(split).runs)

    def read_run(self, split: str, index: int) -> tuple[Tensor, np.ndarray]:
        """All normalised frames (T, C, H, W) of one run without a gap, and their times (T,).

        Frames are `frame_stride` apart, as in windows. Runs are numbered by trajectory, then by
        time.

        Raises:
            DataError: If there is no such run.
        """
        if not 0 <= index < self.run_count(split):
            raise DataError(
                f"There is no run {index} in the split '{split}'; it has {self.run_count(split)}."
            )
        chosen = self.split(split)
        trajectory, run = divmod(index, len(chosen.runs))
        start, stop = chosen.runs[run]
        windows = Windows(chosen, -(-(stop - start) // self.frame_stride), 1, self.frame_stride)
        return self._read(windows, chosen.trajectories[0] + trajectory, start)

    def _loader(self, name: str, shuffle: bool = False, scatter: bool = False) -> WindowLoader:
        split, cube = self.split(name), self.cube
        windows = Windows(split, self.window_length, self.window_stride, self.frame_stride)
        group_frames = max(self.shuffle_buffer * 2**20 // cube.frame_bytes, 1)
        if self.in_memory:
            spans = whole_spans(windows)
        else:
            # At least four spans are shuffled together, unless chunks are larger than that.
            spans = chunked_spans(windows, cube.chunks, group_frames // 4)
        return WindowLoader(
            spans,
            partial(self._resident, name)
            if self.in_memory
            else partial(read_block, cube, self.normalisation),
            self._batch,
            self.batch_size,
            shuffle=shuffle,
            scatter=scatter,
            seed=self.seed,
            resident=self.in_memory,
            group_frames=group_frames,
            frame_bytes=cube.frame_bytes,
            offsets=tuple(  # type: ignore[arg-type]
                full - kept + 1 for full, kept in zip(cube.shape, self.shape, strict=True)
            ),
            workers=self.num_workers,
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self.trainer.world_size if self.trainer else 1,
        )

    def _resident(self, name: str, _: Any = None) -> Block:
        """The frames of a split, which stay in memory."""
        if name not in self._blocks:
            spans = whole_spans(Windows(self.split(name), 1))
            self._blocks[name] = read_block(self.cube, self.normalisation, spans)
        return self._blocks[name]

    def _batch(self, block: Block, positions: Tensor, offsets: np.ndarray) -> Batch:
        index = block.index(positions, self.window_length, self.frame_stride)
        if self._crop is None:
            frames = block.frames[index]
        else:
            rows, columns = self.shape
            pieces = [
                block.frames[i, :, y : y + rows, x : x + columns]
                for i, (y, x) in zip(index, offsets.tolist(), strict=True)
            ]
            frames = torch.stack(pieces)
        number = block.number[index]
        batch = {"frames": frames, "time": torch.from_numpy(self.cube.time_numbers)[number]}
        assert self._conditioning is not None
        return batch | self._conditioning.of(block.trajectory[index], number)

    def _places(
        self, windows: Windows, count: int, history: int, leads: int
    ) -> list[tuple[int, int]]:
        if not 1 <= count <= len(windows):
            raise DataError(
                f"{count} initial states of {history} + {leads} frames were asked for, but the "
                f"split '{windows.split.name}' has {len(windows)} such windows; ask for fewer or "
                "shorter ones."
            )
        return _spread(windows, count)

    def _read(self, windows: Windows, trajectory: int, start: int) -> tuple[Tensor, np.ndarray]:
        frames = windows.frames(start)
        split, (rows, columns) = windows.split, self.crop_slices
        if self.in_memory:
            first = 0
            for low, high in split.runs:
                if low <= start < high:
                    row = trajectory - split.trajectories[0]
                    first += row * (high - low) + start - low
                    break
                first += (split.trajectories[1] - split.trajectories[0]) * (high - low)
            shifted = slice(first, first + windows.extent, windows.spacing)
            values = self._resident(split.name).frames[shifted]
        else:
            read = self.cube.read(slice(trajectory, trajectory + 1), frames)
            normalised = self.normalisation.normalise(
                torch.from_numpy(read[0]), self.cube.time_numbers[frames]
            )
            values = normalised.nan_to_num_(nan=0.0)
        return values[:, :, rows, columns].clone(), self.cube.times[frames]

    @property
    def crop_slices(self) -> tuple[slice, slice]:
        """Rows and columns of the central crop, or all."""
        pairs = zip(self.cube.shape, self.shape, strict=True)
        rows, columns = (slice((n - m) // 2, (n - m) // 2 + m) for n, m in pairs)
        return rows, columns


def check_compatible(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse a cube that a model was not trained for.

    Args:
        saved: Description of the cube that the model was trained on.
        current: Description, or outline, of the cube at hand.

    Raises:
        DataError: If variables, units, grid, time step or conditioning differ, saying how.
    """
    _check_variables(list(saved["variables"]), list(current["variables"]))
    for name, attrs in saved["variables"].items():
        before, now = (str(d.get("units")) for d in (attrs, current["variables"][name]))
        if before != now:
            raise DataError(
                f"The checkpoint was trained on '{name}' in {before}, but this cube has it in "
                f"{now}; convert the cube, or correct its attribute units."
            )
    for key in ("dims", "shape"):
        if list(saved[key]) != list(current[key]):
            raise DataError(
                f"The checkpoint was trained on a grid with {key} {tuple(saved[key])}, but this "
                f"cube has {tuple(current[key])}; use a cube on the same grid, or train again."
            )
    steps = [(d["time"]["step"], d["time"]["unit"]) for d in (saved, current) if "time" in d]
    same_unit = len(steps) == 2 and steps[0][1] == steps[1][1]
    if same_unit and abs(steps[0][0] - steps[1][0]) > 0.05 * steps[0][0]:
        raise DataError(
            f"The checkpoint was trained on frames {steps[0][0]:g} {steps[0][1]} apart, but those "
            f"of this cube are {steps[1][0]:g} {steps[1][1]} apart; set frame_stride, or train "
            "again."
        )
    beside = [d["conditioning"] for d in (saved, current) if d.get("conditioning")]
    for key in ("static", "forcing"):
        if len(beside) == 2 and beside[0][key] != beside[1][key]:
            raise DataError(
                f"The checkpoint was trained with {key} {listed(beside[0][key])}, but this cube is "
                f"read with {listed(beside[1][key])}; set data.init_args.{key} to "
                f"[{listed(beside[0][key])}], or train again."
            )
    for name in saved["dims"]:
        both = [d["coords"][name]["values"] for d in (saved, current) if name in d["coords"]]
        if len(both) == 2 and not torch.allclose(both[0], both[1], rtol=1e-5, atol=1e-5):
            raise DataError(
                f"The checkpoint was trained on a grid whose '{name}' goes from "
                f"{both[0][0]:g} to {both[0][-1]:g}, but this cube's goes from {both[1][0]:g} to "
                f"{both[1][-1]:g}; use a cube on the same grid, or train again."
            )


def field_arguments(description: dict[str, Any]) -> dict[str, Any]:
    """What a rollout's field is built from, but for its initial times.

    Args:
        description: As `ClimateCubeDataModule.description` gives it, perhaps from a checkpoint.

    Returns:
        `variables`, `dims`, `shape`, `coords` (name -> (dimensions, values, attributes)), `step`
        (timedelta64 where times are dates, else a number), `time_attributes`, `attributes`.
    """
    time = description["time"]
    dates = time["calendar"] is not None
    milliseconds = round(time["step"] * 1000)
    step = np.timedelta64(milliseconds, "ms") if milliseconds % 1000 else None
    whole = np.timedelta64(milliseconds // 1000, "s")
    return {
        "variables": description["variables"],
        "dims": tuple(description["dims"]),
        "shape": tuple(description["shape"]),
        "coords": {
            name: (tuple(coord["dims"]), coord["values"].numpy(), coord["attributes"])
            for name, coord in description["coords"].items()
        },
        "step": (whole if step is None else step) if dates else time["step"],
        "time_attributes": time["attributes"],
        "attributes": description["attributes"],
    }


def _check_variables(saved: Sequence[str], current: Sequence[str]) -> None:
    if list(saved) != list(current):
        raise DataError(
            f"The checkpoint was trained on {', '.join(saved)}, but this cube gives "
            f"{', '.join(current)}; set data.init_args.variables to [{', '.join(saved)}], or train "
            "again."
        )


def _tell_gaps(cube: Cube) -> None:
    runs = cube.runs()
    if len(runs) > 1:
        logger.warning(
            "%s has %d gaps in time, the first between %s and %s; no window crosses one",
            cube.path,
            len(runs) - 1,
            show(cube.times[runs[0][1] - 1]),
            show(cube.times[runs[1][0]]),
        )


def _check_names(cube: Cube, argument: str, names: Iterable[str]) -> None:
    known = [*cube.variables, *(channel.variable for channel in cube.channels)]
    for name in names:
        if name not in known:
            raise DataError(
                f"{argument} names '{name}'{nearest(name, known)}, which is not among the "
                f"variables {listed(cube.variables)}."
            )


def _by_channel(cube: Cube, given: Mapping[str, Any], default: Any) -> list[Any]:
    """What is given for each channel, by its own name or by that of its variable."""
    pairs = zip(cube.variables, cube.channels, strict=True)
    return [given.get(name, given.get(channel.variable, default)) for name, channel in pairs]


def _check_crop(cube: Cube, crop: tuple[int, int], static: bool, by_pixel: bool) -> None:
    if len(crop) != 2 or any(not 1 <= c <= n for c, n in zip(crop, cube.shape, strict=False)):
        raise DataError(
            f"crop is {tuple(crop)}, but frames of {cube.path} have {cube.shape} rows and columns."
        )
    if static:
        raise DataError("Static fields cannot be cropped with the frames; drop crop or static.")
    if by_pixel:
        raise DataError(
            "What is normal at each pixel cannot be cropped with the frames; drop crop, or "
            "seasonal and standardise."
        )


def _spread(windows: Windows, count: int) -> list[tuple[int, int]]:
    """Trajectory and first frame of `count` different windows, evenly spread.

    Trajectories get equal shares; within each, windows are equally spaced, and from trajectory to
    trajectory the places are shifted by the golden ratio, so that together they cover all times.
    """
    starts = windows.starts
    first, stop = windows.split.trajectories
    edges = np.arange(stop - first + 1) * count // (stop - first)
    places = []
    for row, share in enumerate(np.diff(edges)):
        shift = (0.5 + row * GOLDEN) % 1
        within = ((np.arange(share) + shift) * len(starts) / max(share, 1)).astype(int)
        places += [(first + row, int(starts[i])) for i in within]
    return places
