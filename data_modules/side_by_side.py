"""Tasks done by several processes, whose results come in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """`work(task)` for each task, in order; few results are waiting at any time.

    Args:
        work: A function of a module, or a partial of one: it is sent to the processes.
        tasks: What to do; they are asked for as they are needed.
        workers: Processes; with 1 this one does the work.
    """
    if workers <= 1:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(workers, _processes(work), _one_thread)
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """How many processes can work at once here."""
    given: Any = getattr(os, "sched_getaffinity", None)
    return len(given(0)) if given else os.cpu_count() or 1


def _processes(work: Callable[..., Any]) -> BaseContext:
    """Processes that are no copies of this one, whose threads a copy would find half-way.

    Where there is a fork server, it imports what they need once for all of them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(work, "func", work).__module__])
    return context


def _one_thread() -> None:
    """Each process has one core."""
    import torch

    torch.set_num_threads(1)
