"""Which of several processes this one is, as torchrun, SLURM or the environment say.

`torchrun`, `srun` and whatever else sets RANK and WORLD_SIZE start the same command several times;
here its processes find each other. They have little to say to each other, so gloo on the CPU does,
whatever the frames are sampled on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dyngen.rollout import Processes, together

MEETING = timedelta(minutes=10)  # in which all processes must have started


@contextmanager
def launched() -> Iterator[Processes]:
    """This process among those that were launched together; alone if it was launched alone.

    Raises:
        ValueError: if the environment names processes that do not come, or names them in part.
    """
    there = dist.is_available() and dist.is_initialized()
    rank, count, address = (0, 1, "") if there else _environment()
    if count == 1:
        with together() as processes:
            yield processes
        return
    try:
        dist.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=count, timeout=MEETING
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"process {rank} of {count} did not find the others at {address} ({reason}): start "
            "all of them with torchrun or srun, or unset WORLD_SIZE to work alone."
        ) from error
    try:
        with together() as processes:
            yield processes
    finally:
        dist.destroy_process_group()


def local_device(name: str, processes: Processes) -> torch.device:
    """The device of that name for this process: each on a machine gets a GPU of its own.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, ..., or `auto` for a GPU where there is one.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda" and processes.count > 1:
            place = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", processes.rank))
            name = f"cuda:{int(place) % max(torch.cuda.device_count(), 1)}"
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name} cannot be used here ({reason}); give cpu.") from error
    return device


def _environment() -> tuple[int, int, str]:
    """Rank, number of processes, and where they meet."""
    given = os.environ
    if "WORLD_SIZE" in given:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not given.get(name)]
        if given["WORLD_SIZE"] == "1":
            return 0, 1, ""
        if missing:
            raise ValueError(
                f"WORLD_SIZE is {given['WORLD_SIZE']} but {' and '.join(missing)} not set in the "
                "environment: start with torchrun, or unset WORLD_SIZE to work alone."
            )
        return _rank(given["RANK"], given["WORLD_SIZE"]), int(given["WORLD_SIZE"]), "env://"
    # A batch script without srun has SLURM's variables too, but is one process.
    if int(given.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in given:
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        if not SLURMEnvironment.detect():  # an interactive shell
            return 0, 1, ""
        try:
            slurm = SLURMEnvironment()
        except RuntimeError as error:  # of variables that Lightning does not support
            raise ValueError(" ".join(str(error).split())) from error
        address = f"tcp://{slurm.main_address}:{slurm.main_port}"
        return slurm.global_rank(), slurm.world_size(), address
    return 0, 1, ""


def _rank(rank: str, count: str) -> int:
    if not (rank.isdigit() and count.isdigit() and int(rank) < int(count)):
        raise ValueError(
            f"RANK is {rank} and WORLD_SIZE is {count} in the environment: ranks count from 0 to "
            "WORLD_SIZE - 1."
        )
    return int(rank)
