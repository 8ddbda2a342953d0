"""Several processes that write one rollout.

Each takes every n-th slab of the rollout, and no chunk belongs to two slabs, so they write without
locks. What is left to agree on are two moments: the first process prepares the Zarr before the
others open it, and when all have written their last block it marks the rollout complete. Nobody
looks for another's files to learn how far it is: on network file systems those may come into view
a minute late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from dyngen.rollout.store import OtherSettings, RolloutError

PATIENCE = timedelta(days=60)  # in which the last process must have finished
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that write one rollout.

    Without a group nobody waits for anybody: then the process of rank 0 must have prepared the
    rollout before the others start, as when the tasks of a job array write one rollout.

    Args:
        rank: number of this process.
        count: number of all.
        group: of torch.distributed, all of whose processes make the same calls; None for none.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"process {self.rank} of {self.count} cannot be: ranks count from 0 to "
                f"{self.count - 1}."
            )

    @property
    def first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    def after_first(self, work: Callable[[], T]) -> T:
        """Have rank 0 do some work, then all the others; they fail with it if it fails.

        Raises:
            RolloutError: in the others, if it failed in the first; OtherSettings if it was that.
        """
        if self.group is None:
            return work()
        if not self.first:
            problem = self._told(None)
            if problem is not None:
                raise problem
            return work()
        try:
            result = work()
        except BaseException as error:
            kind = OtherSettings if isinstance(error, OtherSettings) else RolloutError
            self._told(kind(str(error) or type(error).__name__))
            raise
        self._told(None)
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, once all have come here; without a group its own.

        Raises:
            RolloutError: if another process has stopped.
        """
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise RolloutError(_lost(self)) from error
        return values

    def _told(self, problem: RolloutError | None) -> RolloutError | None:
        """What rank 0 says."""
        told = [problem]
        try:
            dist.broadcast_object_list(told, src=0, group=self.group)
        except RuntimeError as error:
            raise RolloutError(_lost(self)) from error
        return told[0]


@contextmanager
def together() -> Iterator[Processes]:
    """The processes that torch.distributed has brought together, or this one alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield Processes()
        return
    group = dist.new_group(timeout=PATIENCE, backend="gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group(group)


def _lost(processes: Processes) -> str:
    return (
        f"Process {processes.rank} of {processes.count} has lost the others, one of which has "
        "stopped: see what that said; run the same command again, with any number of processes, "
        "to go on from what is on disk."
    )
