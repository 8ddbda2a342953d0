"""A rollout on disk: what is in it, and that kills, full disks and extensions leave it whole."""

import dataclasses
import errno
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_world
import xarray as xr
import zarr

from dyngen.rollout.ensemble import rollout
from dyngen.rollout.field import Field
from dyngen.rollout.processes import Processes
from dyngen.rollout.store import RolloutError, open_rollout


def tree(path: Path) -> dict[str, str]:
    """Digest of every file under a directory."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "rollout.zarr"
    toy_world.write(path)
    return path


def test_many_initial_states_are_a_cf_dataset_in_physical_units(uninterrupted: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xr.open_zarr(uninterrupted, decode_timedelta=True)
    assert data.t2m.dims == ("initial", "member", "lead", "latitude", "longitude")
    assert dict(data.sizes) == {
        "initial": 3,
        "member": 5,
        "lead": 10,
        "latitude": 4,
        "longitude": 5,
    }
    assert data.t2m.dtype == np.float32
    assert data.t2m.attrs["units"] == "K"
    assert data.pr.attrs["units"] == "mm/day"
    assert data.attrs["dyngen_complete"] == 1
    assert data.lead.attrs["standard_name"] == "forecast_period"
    assert data.initial_time.attrs["standard_name"] == "forecast_reference_time"
    assert data.time.attrs["standard_name"] == "time"
    assert data.member.attrs["standard_name"] == "realization"
    np.testing.assert_array_equal(data.latitude, [-60, -20, 20, 60])
    assert data.lead.values[0] == np.timedelta64(1, "D")
    assert data.time.values[1, 2] == np.datetime64("2001-02-03")
    memory = rollout(
        toy_world.LinearSampler(),
        toy_world.histories(),
        members=5,
        steps=10,
        seed=1,
        denormalise=toy_world.to_physical,
    )
    for channel, name in enumerate(("t2m", "pr")):
        np.testing.assert_array_equal(data[name].values, memory.frames[:, :, :, channel].numpy())
    np.testing.assert_allclose(data.spread, memory.diagnostics["spread"], rtol=1e-6)
    assert data.spread.dims == ("initial", "member", "lead")
    assert "unstored" not in data


def test_settings_and_provenance_are_attributes(uninterrupted: Path) -> None:
    attributes = open_rollout(uninterrupted).attrs
    settings = json.loads(attributes["dyngen_settings"])
    assert settings["seed"] == 1
    assert settings["checkpoint"] == "abc"
    assert settings["sampler"]["coefficient"] == 0.9
    assert json.loads(attributes["dyngen_provenance"]) == {"config": {"made": "for a test"}}


def test_it_can_be_copied_to_netcdf_whatever_the_attributes_of_the_cube(tmp_path: Path) -> None:
    odd = {"parameters": {"dt": 0.1}, "levels": [1, 2], "cyclic": True, "nothing": None}
    toy = toy_world.field()
    variables = {name: {**attrs, **odd} for name, attrs in toy.variables.items()}
    field = dataclasses.replace(toy, variables=variables, attributes=odd)
    toy_world.write(tmp_path / "odd.zarr", steps=2, field=field)
    open_rollout(tmp_path / "odd.zarr").to_netcdf(tmp_path / "odd.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "odd.nc", engine="h5netcdf", decode_timedelta=True) as copied:
        for attributes in (copied.attrs, copied.pr.attrs):
            assert json.loads(attributes["parameters"]) == {"dt": 0.1}
            assert list(attributes["levels"]) == [1, 2]
            assert attributes["cyclic"] == "true"


def test_it_can_be_copied_to_netcdf(uninterrupted: Path, tmp_path: Path) -> None:
    open_rollout(uninterrupted).to_netcdf(tmp_path / "rollout.nc", engine="h5netcdf")
    with xr.open_dataset(
        tmp_path / "rollout.nc", engine="h5netcdf", decode_timedelta=True
    ) as copied:
        np.testing.assert_array_equal(copied.pr, open_rollout(uninterrupted).pr)


def test_one_initial_state_is_a_series_in_time(tmp_path: Path) -> None:
    toy_world.write(tmp_path / "free.zarr", initials=1, steps=12, every=3, block_steps=6)
    data = open_rollout(tmp_path / "free.zarr")
    assert data.pr.dims == ("member", "time", "latitude", "longitude")
    assert list(data.time.values.astype("M8[D]").astype(str)) == [
        "2001-01-04",
        "2001-01-07",
        "2001-01-10",
        "2001-01-13",
    ]
    assert data.lead.dims == ("time",)
    assert data.lead.values[-1] == np.timedelta64(12, "D")
    assert data.initial_time.values == np.datetime64("2001-01-01")


@pytest.mark.parametrize("initials", [1, 2])
def test_other_calendars_and_no_calendar(tmp_path: Path, initials: int) -> None:
    cftime = pytest.importorskip("cftime")
    toy = toy_world.field(initials)
    common: dict[str, Any] = {"variables": toy.variables, "dims": toy.dims, "shape": toy.shape}
    dates = np.array([cftime.DatetimeNoLeap(2000 + i, 2, 27, 12) for i in range(initials)])
    noleap = Field(**common, initial_times=dates, step=np.timedelta64(1, "D"))
    numbers = Field(
        **common,
        initial_times=np.arange(float(initials)),
        step=0.25,
        time_attributes={"units": "turnover_time"},
    )
    for name, field in (("noleap", noleap), ("numbers", numbers)):
        toy_world.write_rollout(
            tmp_path / name,
            toy_world.LinearSampler(),
            toy_world.histories(initials),
            field,
            members=1,
            steps=4,
            seed=0,
            settings={},
        )
    first = open_rollout(tmp_path / "noleap").time.values.reshape(initials, 4)[0]
    assert first[2] == cftime.DatetimeNoLeap(2000, 3, 2, 12)  # no 29th of February
    data = open_rollout(tmp_path / "numbers")
    np.testing.assert_allclose(data.lead, [0.25, 0.5, 0.75, 1.0])
    assert data.time.attrs["units"] == "turnover_time"


def test_a_rollout_beyond_nanosecond_dates(tmp_path: Path) -> None:
    toy = toy_world.field(1)
    field = dataclasses.replace(toy, step=np.timedelta64(1000, "D"))
    toy_world.write(tmp_path / "long.zarr", initials=1, members=1, steps=110, field=field)
    assert open_rollout(tmp_path / "long.zarr").time.values[-1] == np.datetime64("2302-03-05")


def killed_run(path: Path, delay: float) -> bool:
    """Start writing in another process and kill it after `delay` seconds; whether it was alive."""
    with subprocess.Popen(
        [sys.executable, str(Path(toy_world.__file__)), str(path), "pause=0.005"],
        stderr=subprocess.PIPE,
    ) as process:
        while not path.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        message = process.stderr.read().decode()
    assert process.returncode in (0, -signal.SIGKILL), message
    return process.returncode != 0


def test_killed_and_resumed_it_has_the_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.zarr"
    clock = random.Random(0)
    kills = sum(killed_run(path, clock.uniform(0, 0.25)) for _ in range(3))
    assert kills >= 2
    toy_world.write(path)
    assert tree(path) == tree(uninterrupted)


class Killed(BaseException):
    """Not a KeyboardInterrupt, which in a thread of zarr's would end its event loop."""


def kill_at_replacement(number: int, patch: pytest.MonkeyPatch) -> None:
    """Have the number-th replacement of a file by its new version fail as a kill would."""
    original = Path.replace
    count = 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        return original(self, target)

    patch.setattr(Path, "replace", replace)


def test_killed_in_the_middle_of_any_write_it_has_the_same_bytes(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at a file operation is what is left when each operation in turn fails."""
    path = tmp_path / "rollout.zarr"
    kills = 0
    for operation in range(1, 40, 3):
        with monkeypatch.context() as patch:
            kill_at_replacement(operation, patch)
            try:
                toy_world.write(path)
            except Killed:
                kills += 1
    assert kills > 5
    toy_world.write(path)
    assert tree(path) == tree(uninterrupted)


def test_leftovers_of_a_killed_write_are_removed(uninterrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    toy_world.write(path, sampler=(half := toy_world.LinearSampler()), steps=4)
    assert half.calls > 0
    (path / "t2m/c/0/0/0/0/0.0123abcd.partial").write_bytes(b"half a chunk")
    (path / ".restart/slab-00000-00000.npz.partial").write_bytes(b"half a state")
    toy_world.write(path)
    assert tree(path) == tree(uninterrupted)


def test_a_finished_rollout_is_left_alone(
    uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {file: file.stat().st_mtime_ns for file in uninterrupted.rglob("*")}
    sampler = toy_world.LinearSampler()
    with caplog.at_level("INFO"):
        written = toy_world.write(uninterrupted, sampler=sampler)
    assert "is finished: it holds all of its 10 steps" in caplog.text
    assert sampler.calls == 0
    assert written.frames == 0
    assert before == {file: file.stat().st_mtime_ns for file in uninterrupted.rglob("*")}


@pytest.mark.parametrize("first", [2, 4, 7])
def test_asked_for_more_steps_it_is_extended_to_the_same_bytes(
    uninterrupted: Path, tmp_path: Path, first: int
) -> None:
    path = tmp_path / "rollout.zarr"
    toy_world.write(path, steps=first)
    assert open_rollout(path).sizes["lead"] == first
    toy_world.write(path)
    assert tree(path) == tree(uninterrupted)


def test_an_interrupted_extension_is_repeated(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rollout.zarr"
    toy_world.write(path, steps=7)
    with monkeypatch.context() as patch:
        kill_at_replacement(5, patch)
        with pytest.raises(Killed):
            toy_world.write(path)
    assert open_rollout(path).sizes["lead"] == 7  # still the rollout it was
    assert np.isfinite(open_rollout(path).t2m).all()
    toy_world.write(path)
    assert tree(path) == tree(uninterrupted)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed = 1, not 2"),
        ({"members": 6}, "members = 5, not 6"),
        ({"initials": 2}, "initial"),
        ({"settings": {"checkpoint": "xyz"}}, 'checkpoint = "abc", not "xyz"'),
        ({"settings": {}}, 'checkpoint = "abc", not null'),
        ({"sampler": toy_world.LinearSampler(0.8)}, "sampler.coefficient = 0.9, not 0.8"),
        ({"every": 2}, "every = 1, not 2"),
    ],
)
def test_other_settings_are_refused_by_name(
    uninterrupted: Path, change: dict[str, Any], named: str
) -> None:
    before = tree(uninterrupted)
    with pytest.raises(RolloutError, match=named) as refusal:
        toy_world.write(uninterrupted, **change)
    assert "write to another path" in str(refusal.value)
    assert tree(uninterrupted) == before


def test_a_resumed_rollout_keeps_its_chunks(uninterrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    toy_world.write(path, steps=4)
    toy_world.write(path, batch_size=3, block_steps=5)
    assert tree(path) == tree(uninterrupted)


def test_what_is_no_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="not a rollout: it does not exist"):
        open_rollout(tmp_path / "nothing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RolloutError, match=r"not a rollout: it has no zarr\.json"):
        toy_world.write(tmp_path / "empty")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(RolloutError, match="choose another path"):
        toy_world.write(tmp_path / "other.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr/zarr.json").write_text("{")
    with pytest.raises(RolloutError, match=r"zarr\.json cannot be read"):
        open_rollout(tmp_path / "broken.zarr")


def test_a_damaged_restart_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    toy_world.write(path, steps=4)
    (path / ".restart/slab-00001-00000.npz").write_bytes(b"not a state")
    with pytest.raises(RolloutError, match=r"slab-00001-00000\.npz cannot be read"):
        toy_world.write(path)
    (path / ".restart/slab-00001-00000.npz").unlink()
    toy_world.write(path)
    assert open_rollout(path).attrs["dyngen_complete"] == 1


def stop_after(path: Path, calls: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Start a rollout and interrupt it at some call of its sampler."""

    class Interrupted(toy_world.LinearSampler):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if self.calls == calls:
                raise KeyboardInterrupt
            return super().__call__(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        toy_world.write(path, sampler=Interrupted(), **changes)


def test_an_unfinished_rollout_is_recognised_and_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rollout.zarr"
    stop_after(path, 26, monkeypatch)  # 6 slabs of 4 steps, and 2 steps of the next block
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = xr.open_zarr(path, decode_timedelta=True)
    assert whole.attrs["dyngen_complete"] == 0
    assert np.isnan(whole.t2m.values[:, :, 4:]).all()
    reached = open_rollout(path)
    assert reached.sizes["lead"] == 4
    assert np.isfinite(reached.t2m).all()
    assert "is unfinished: its members have reached step 4 of 10" in caplog.text
    with pytest.raises(RolloutError, match="was started for 10 steps"):
        toy_world.write(path, steps=6)


def fill_the_disk_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    """Have every flush to the disk but the first few fail for want of space."""
    original = os.fsync
    left = calls

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    patch.setattr(os, "fsync", full)


def test_a_full_disk_loses_nothing(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rollout.zarr"
    for calls in (1, 30, 77):
        with monkeypatch.context() as patch:
            fill_the_disk_after(calls, patch)
            with pytest.raises(RolloutError, match="The disk is full") as error:
                toy_world.write(path)
        assert "of 10 steps of every member and nothing of it is lost" in str(error.value)
        assert "run the same command again" in str(error.value)
    toy_world.write(path)
    assert tree(path) == tree(uninterrupted)


def test_a_file_size_limit_is_met_with_the_same_sentence(tmp_path: Path) -> None:
    """The system itself refuses the write, with no function of ours replaced."""
    path = tmp_path / "rollout.zarr"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    toy_world.write(path, steps=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, limits[1]))
    try:
        with pytest.raises(RolloutError, match="The disk is full"):
            toy_world.write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_rollout(path).sizes["lead"] == 1
    toy_world.write(path)
    assert open_rollout(path).sizes["lead"] == 10


def test_ranks_write_one_rollout_without_locks(uninterrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    for rank in range(3):
        assert open_rollout(path).attrs["dyngen_complete"] == 0 if rank else True
        toy_world.write(path, processes=Processes(rank, 3))
    assert tree(path) == tree(uninterrupted)


def test_frames_are_bfloat16_safe(tmp_path: Path) -> None:
    class Half(toy_world.LinearSampler):
        def __call__(self, history: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            frames, figures = super().__call__(history, *args, **kwargs)
            return frames.bfloat16().to(history.dtype), figures

    toy_world.write(tmp_path / "half.zarr", sampler=Half())
    assert np.isfinite(open_rollout(tmp_path / "half.zarr").t2m).all()
