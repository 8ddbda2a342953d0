"""Several gloo processes write one rollout: the bytes of one process, whatever their number."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import toy_world
from test_store import tree

from dyngen.launch import _environment, launched, local_device
from dyngen.rollout import OtherSettings, Processes, RolloutError, open_rollout
from dyngen.rollout.layout import usual_batch_size


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "rollout.zarr"
    toy_world.write(path, batch_size=None)
    return path


def write(path: Path, **changes: Any) -> None:
    with launched() as processes:
        assert processes.count == int(os.environ["WORLD_SIZE"])
        toy_world.write(path, **{"batch_size": None} | changes, processes=processes)


def test_two_processes_write_the_bytes_of_one(alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    assert ranks.run(write, 2, path) == [0, 0]
    assert tree(path) == tree(alone)


def slowly(path: Path) -> None:
    write(path, sampler=toy_world.LinearSampler(pause=0.02))


def test_killed_it_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    for count in (2, 3):
        processes = ranks.start(slowly, count, path)
        deadline = time.monotonic() + 120
        wanted = count - 1  # restart files; each time there are some more
        while len(list(path.glob(".restart/*.npz"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert path.exists()
        assert tree(path) != tree(alone)
    toy_world.write(path, batch_size=None)
    assert tree(path) == tree(alone)


def refused(path: Path, told: Path) -> None:
    try:
        write(path, seed=2)
    except OtherSettings as error:
        (told / os.environ["RANK"]).write_text(str(error))


def test_what_the_first_refuses_all_refuse(alone: Path, tmp_path: Path) -> None:
    assert ranks.run(refused, 2, alone, tmp_path) == [0, 0]
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second
    assert "was started with seed = 1, not 2" in first


def one_dies(path: Path, told: Path) -> None:
    try:
        rank = int(os.environ["RANK"])
        write(path, sampler=toy_world.LinearSampler(spoilt=3 if rank == 1 else None))
    except RolloutError as error:
        (told / os.environ["RANK"]).write_text(str(error))
        raise


def test_a_process_that_stops_is_not_waited_for(alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "rollout.zarr"
    assert ranks.run(one_dies, 2, path, tmp_path) == [1, 1]
    assert "is not finite at step" in (tmp_path / "1").read_text()
    assert "has lost the others" in (tmp_path / "0").read_text()
    assert open_rollout(path).attrs["dyngen_complete"] == 0
    toy_world.write(path, batch_size=None)
    assert tree(path) == tree(alone)


def test_more_processes_than_slabs_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        toy_world.write(tmp_path / "a.zarr", steps=4, batch_size=64, processes=Processes(0, 2))
    assert "1 of 2 processes have nothing to do" in caplog.text
    assert "batch_size of at most 7" in caplog.text


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 100, 1000])
@pytest.mark.parametrize("values", [32 * 32, 48 * 96, 721 * 1440])
def test_a_usual_batch_leaves_something_to_share(rows: int, values: int) -> None:
    size = usual_batch_size(rows, values, "cpu")
    assert 1 <= size <= 64
    assert rows == 1 or -(-rows // size) >= 2
    assert usual_batch_size(rows, values, "cuda") == 64


def test_processes_are_known_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert _environment() == (0, 1, "")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE is 4 but RANK and MASTER_ADDR and MASTER_PO"):
        _environment()
    for name, value in (("RANK", "4"), ("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"RANK is 4 and WORLD_SIZE is 4 .* ranks count from 0"):
        _environment()
    monkeypatch.setenv("RANK", "3")
    assert _environment() == (3, 4, "env://")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    slurm = {
        "SLURM_NTASKS": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": "2",
        "SLURM_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NAME": "century",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert _environment() == (0, 1, "")  # the batch script itself, which srun did not start
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert _environment() == (2, 4, "tcp://node7:16234")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="Use `--ntasks-per-node=4` instead"):
        _environment()


def test_ranks_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="process 2 of 2 cannot be"):
        Processes(2, 2)


def test_a_device_that_is_not_there_is_told() -> None:
    assert local_device("cpu", Processes(1, 2)).type == "cpu"
    with pytest.raises(ValueError, match="device abacus cannot be used here"):
        local_device("abacus", Processes())
