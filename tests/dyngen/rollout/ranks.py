"""Several processes for a test: forks of this one, which find each other as torchrun's do."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import dask.threaded

WAIT = 600  # seconds


def start(function: Callable[..., None], count: int, *arguments: Any) -> list[Any]:
    """Processes that call the function, with the environment that torchrun gives each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # torch is imported once
    started = []
    for rank in range(count):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
        }
        process = fork.Process(target=_call, args=(function, environment, arguments))
        process.start()
        started.append(process)
    return started


def run_alone(function: Callable[..., None], *arguments: Any) -> int:
    """Exit status of a single such process, which belongs to no others."""
    process = multiprocessing.get_context("fork").Process(
        target=_call, args=(function, {}, arguments)
    )
    process.start()
    process.join(WAIT)
    return int(process.exitcode)


def run(function: Callable[..., None], count: int, *arguments: Any) -> list[int]:
    """Exit statuses of the processes: 0, or 1 when the function raised."""
    processes = start(function, count, *arguments)
    for process in processes:
        process.join(WAIT)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in processes]


def _call(function: Callable[..., None], environment: dict[str, Any], arguments: Any) -> None:
    dask.threaded.default_pool = None  # its threads are not in a fork
    os.environ.update({name: str(value) for name, value in environment.items()})
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # nothing of pytest's own is run at the end of a fork
