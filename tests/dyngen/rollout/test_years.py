"""Rollouts of years: as many steps as the calendar has, at its dates, under its seasons."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import calendar_world
import cftime
import numpy as np
import pytest
import toy_world
from test_store import tree

from dyngen.rollout import open_rollout

SCRIPT = str(Path(calendar_world.__file__))


@pytest.mark.parametrize(
    ("calendar", "hours", "years", "steps"),
    [
        ("noleap", 24, 2, 730),
        ("360_day", 24, 2, 720),
        ("standard", 24, 3, 365 + 366 + 365),  # from some day of 2003 until that of 2006
        ("standard", 120, 1, 74),  # 366 days in steps of five, the last of which is cut
    ],
)
def test_steps_dates_and_seasons_follow_the_calendar(
    tmp_path: Path, calendar: str, hours: int, years: int, steps: int
) -> None:
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", calendar, hours=hours)
    calendar_world.roll_out(cube, tmp_path / "years.zarr", years=years)
    data = open_rollout(tmp_path / "years.zarr")
    assert data["u"].dims == ("member", "time", "lat", "lon")  # one initial state
    assert data.sizes["time"] == steps
    assert data.sizes["member"] == 2
    dates = data["time"].values
    if calendar == "standard":
        start = data["initial_time"].values.astype("M8[s]")
        assert dates.dtype.kind == "M"
        year = dates.astype("M8[Y]")
        passed = (dates - year) / ((year + 1).astype(dates.dtype) - year)
    else:
        start = data["initial_time"].values.item()
        length = {"noleap": 365, "360_day": 360}[calendar]
        assert all(isinstance(date, cftime.datetime) for date in dates)
        assert dates[0].calendar == calendar
        last = cftime.datetime(start.year + years, start.month, start.day, calendar=calendar)
        assert dates[-1] == last
        passed = np.array([(d.dayofyr - 1 + d.hour / 24) / length for d in dates])
    assert dates[0] - start == np.timedelta64(hours, "h")
    assert (np.diff(dates) == dates[1] - dates[0]).all()
    statistics = calendar_world.data_of(cube).statistics
    # The model's frames are its two channels of forcing, of unit variance over a year.
    for channel, (name, season) in enumerate((("u", np.cos), ("v", np.sin))):
        forcing = np.sqrt(2) * season(2 * np.pi * passed)
        expected = forcing * statistics.std[channel] + statistics.mean[channel]
        for member in range(2):
            frames = data[name][member].values
            np.testing.assert_allclose(
                frames, np.broadcast_to(expected[:, None, None], frames.shape), atol=1e-4
            )


def test_only_whole_intervals_are_kept(tmp_path: Path) -> None:
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "noleap")
    calendar_world.roll_out(cube, tmp_path / "years.zarr", years=1, every=30)
    data = open_rollout(tmp_path / "years.zarr")
    assert data.sizes["time"] == 13  # 365 days and the rest of the thirteenth interval
    assert (np.diff(data["time"].values) == data["lead"].values[0]).all()


def test_years_that_cannot_be_counted_are_told(tmp_path: Path) -> None:
    numbers = calendar_world.write_cube(tmp_path / "numbers.zarr", None)
    with pytest.raises(ValueError, match=r"of .*numbers\.zarr are numbers without a calendar"):
        calendar_world.roll_out(numbers, tmp_path / "out.zarr", years=2)
    dated = calendar_world.write_cube(tmp_path / "dated.zarr", "noleap")
    with pytest.raises(ValueError, match="steps = 10 and years = 2 were both given"):
        calendar_world.roll_out(dated, tmp_path / "out.zarr", years=2, steps=10)
    with pytest.raises(ValueError, match="years of a rollout must be at least 1, not 0"):
        calendar_world.roll_out(dated, tmp_path / "out.zarr", years=0)
    assert not (tmp_path / "out.zarr").exists()


def started(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False)


def test_killed_in_the_middle_of_a_write_and_resumed_it_has_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL when a chunk, and when a restart file, is written but not yet in its place."""
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "noleap")
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    calendar_world.roll_out(cube, whole, years=1)
    for operation in (25, 9):
        done = started(cube, killed, 1, 0.0, operation)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert list(killed.rglob("*.partial"))
        assert open_rollout(killed).attrs["dyngen_complete"] == 0
    calendar_world.roll_out(cube, killed, years=1)
    timings = ".cost.json"
    assert {n: d for n, d in tree(killed).items() if n != timings} == {
        n: d for n, d in tree(whole).items() if n != timings
    }


def test_more_years_extend_it(tmp_path: Path) -> None:
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "360_day")
    calendar_world.roll_out(cube, tmp_path / "once.zarr", years=2)
    for years in (1, 2):
        calendar_world.roll_out(cube, tmp_path / "twice.zarr", years=years)
    once, twice = (tree(tmp_path / f"{name}.zarr") for name in ("once", "twice"))
    assert {n: d for n, d in once.items() if n != ".cost.json"} == {
        n: d for n, d in twice.items() if n != ".cost.json"
    }


def test_how_fast_years_pass_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cube = calendar_world.write_cube(tmp_path / "cube.zarr", "noleap")
    with caplog.at_level("INFO"):
        calendar_world.roll_out(cube, tmp_path / "years.zarr", years=1)
    assert "years = 1 from 2003-" in caplog.text
    assert "are 365 steps" in caplog.text
    assert "simulated years per day" in caplog.text


def peak_memory(path: Path, steps: int) -> int:
    """Resident memory (KiB) at the most, of a process that rolls out so many steps."""
    program = (
        "import resource, sys, torch, toy_world, pathlib;"
        "torch.set_num_threads(1);"
        "size = 64;"
        "toy_world.histories.__defaults__ = (3, 2, 2, size);"
        "toy_world.write(pathlib.Path(sys.argv[1]), initials=1, members=2, steps=int(sys.argv[2]),"
        " field=toy_world.field(1, size), block_steps=20, batch_size=2);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(steps)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(toy_world.__file__).parent)},
    )
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    """Ten times the steps, whose frames are 130 MB more, take no more memory."""
    short, long = (peak_memory(tmp_path / f"{n}.zarr", n) for n in (200, 2000))
    assert long - short < 24 * 1024
