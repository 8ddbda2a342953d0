"""Splits: disjoint, in order, and refused in one sentence when they make no sense."""

import re

import numpy as np
import pytest
import xarray as xr

from data_modules.cube import open_cube
from data_modules.errors import DataError
from data_modules.splits import make_splits
from data_modules.windows import Windows


def test_default_is_by_trajectory(make_cube):
    splits = make_splits(open_cube(make_cube()))
    assert {n: s.trajectories for n, s in splits.items()} == {
        "train": (0, 6),
        "validate": (6, 7),
        "test": (7, 8),
    }
    assert all(split.runs == ((0, 20),) for split in splits.values())


def test_default_is_by_time_without_trajectories(make_cube):
    splits = make_splits(open_cube(make_cube(squeeze=True, frames=80)))
    assert {n: s.runs for n, s in splits.items()} == {
        "train": ((0, 60),),
        "validate": ((60, 70),),
        "test": ((70, 80),),
    }


def test_time_ranges_stand_for_whole_years_and_months(make_cube):
    times = xr.date_range("2001-11-01", "2003-02-28", freq="D")
    cube = open_cube(make_cube(trajectories=2, frames=len(times), times=times))
    splits = make_splits(cube, {"train": ["2001", 2001], "test": ["2002-02", "2002-03-05"]})
    shown = {n: cube.times[s.runs[0][0] : s.runs[0][1]] for n, s in splits.items()}
    assert shown["train"][[0, -1]].tolist() == times.values[[0, 60]].tolist()
    assert str(shown["test"][0])[:10] == "2002-02-01"
    assert str(shown["test"][-1])[:10] == "2002-03-05"
    assert all(split.trajectories == (0, 2) for split in splits.values())


def test_time_ranges_in_a_calendar_of_360_days(make_cube):
    times = xr.date_range("2001-01-01", periods=720, freq="D", calendar="360_day", use_cftime=True)
    cube = open_cube(make_cube(trajectories=1, frames=720, times=times))
    splits = make_splits(cube, {"train": ["2001", "2001"], "test": ["2002-02", "2002-02"]})
    assert splits["train"].runs == ((0, 360),)
    assert splits["test"].runs == ((390, 420),)


def test_ranges_of_numbers_and_of_trajectories(make_cube):
    cube = open_cube(make_cube())
    by_time = make_splits(cube, {"train": [0, 4.5], "test": [5, 100]}, "time")
    assert (by_time["train"].runs, by_time["test"].runs) == (((0, 10),), ((10, 20),))
    by_trajectory = make_splits(cube, {"train": [2, 7], "test": [0, 1]}, "trajectory")
    assert by_trajectory["train"].trajectories == (2, 8)


def test_no_window_crosses_a_split_a_trajectory_or_a_gap(make_cube):
    times = np.r_[0:9, 20:33, 40:58]
    cube = open_cube(make_cube(trajectories=2, frames=len(times), times=times.astype(float)))
    splits = make_splits(cube, split_by="time")
    seen: dict[str, set[tuple[int, int]]] = {}
    for name, split in splits.items():
        windows = Windows(split, 3, spacing=2)
        seen[name] = set()
        for i in range(len(windows)):
            trajectory, start = windows.locate(i)
            frames = range(len(times))[windows.frames(start)]
            assert np.diff(times[frames]).tolist() == [2, 2]
            seen[name] |= {(trajectory, frame) for frame in frames}
    assert all(seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validate"]
    assert not seen["validate"] & seen["test"]


@pytest.mark.parametrize(
    ("splits", "split_by", "sentence"),
    [
        ({"training": 0.5}, None, "'training' is no split; splits can be train, validate, test"),
        ({"test": 0.5}, None, "There is no 'train' split"),
        ({"train": 0.5, "test": [1, 2]}, None, "splits mixes fractions and ranges"),
        ({"train": 0.8, "test": 0.4}, None, "must not be negative nor add up to more than 1"),
        ({"train": 0.99, "test": 0.01}, None, "The split 'test' is empty: 0.01 of 8 trajectories"),
        ({"train": [0, 5], "test": [6, 7]}, None, "set split_by to 'time' or 'trajectory'"),
        ({"train": [0, 5], "test": [4, 9]}, "time", "The splits 'train' and 'test' overlap"),
        (
            {"train": [50, 60]},
            "time",
            "The split 'train' from 50 to 60 is empty; the cube goes from",
        ),
        ({"train": ["a", "b"]}, None, "The split 'train' is ['a', 'b'], which are no times of"),
        ({"train": [0, 8]}, "trajectory", "has trajectories 0 to 7"),
        ({"train": [3, 2]}, "trajectory", "The split 'train' from 3 to 2 is empty"),
        ({"train": "2001"}, None, "The split 'train' is '2001'; give a fraction or [first, last]"),
    ],
)
def test_splits_that_make_no_sense(make_cube, splits, split_by, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        make_splits(open_cube(make_cube()), splits, split_by)


def test_dates_that_are_none(make_cube):
    cube = open_cube(make_cube(times=xr.date_range("2001-01-01", periods=20)))
    with pytest.raises(DataError, match="which are no times of"):
        make_splits(cube, {"train": ["first", "last"]})
    with pytest.raises(DataError, match="is empty; the cube goes from 2001-01-01"):
        make_splits(cube, {"train": ["1999", "2000"]})


def test_no_trajectories_to_split_by(make_cube):
    cube = open_cube(make_cube(squeeze=True))
    with pytest.raises(DataError, match="has no trajectories to split by; set split_by to 'time'"):
        make_splits(cube, split_by="trajectory")
