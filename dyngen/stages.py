"""Several commands of this library in turn, as one piece of work that can be stopped and resumed.

Every stage is a command that a user could type; it is shown before it runs. A stage that is done
is not repeated, one that was interrupted goes on: training from its last checkpoint, rollouts from
their last block. Stages that do not wait for each other may run side by side, each in a process
with its share of the cores: small networks make better use of one core each than of all together.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_modules.side_by_side import cores
from dyngen.cli import run

STAGES = "stages.json"
COMMAND = (sys.executable, "-c", "from dyngen.cli import main; main()")
MOST_TOGETHER = 4  # stages by default: each holds its data and networks in memory


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: Key of its seconds.
        title: What a reader is told.
        arguments: Command line after `dyngen`.
        done: Whether its result is on disk, when that is more than its having returned.
        folder: What `DYNGEN_RUN` is while it runs; None: as it is.
        after: Names of the stages that it waits for; None: all that come before it.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    done: Callable[[], bool] = lambda: True
    folder: Path | None = None
    after: tuple[str, ...] | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the command line and what its configurations say, to see a change of them.

        As they are when it is first asked for: before the stage runs, not after.
        """
        found = hashlib.sha256()
        for option, word in pairwise(("", *self.arguments)):
            file = Path(word)
            is_read = option == "--config" and file.is_file()
            found.update(file.read_bytes() if is_read else word.encode())
            found.update(b"\0")
        return found.hexdigest()

    def waits(self, before: Iterable[str]) -> set[str]:
        """Names of the stages before it, out of all, that it waits for."""
        return set(before if self.after is None else self.after)


def run_stages(
    out: Path, stages: Sequence[Stage], console: Console, together: int | None = 1
) -> None:
    """Run what is not done yet, in order, and write down the seconds of each.

    What was done by another command line or configuration, or after a stage that is run again, is
    not done: its verb then finds that there is nothing to do, or says what does not fit.

    Args:
        out: Folder for the record, `stages.json`.
        stages: In order.
        console: Where stages are announced.
        together: Stages that may run side by side; 1 runs each in this process, and None takes as
            many as there are cores, at most four, or 1 with a GPU.

    Raises:
        ValueError: If a stage that ran beside others failed, together is below 1, or another
            process runs stages in this folder.
    """
    if together is None:
        together = 1 if torch.cuda.is_available() else min(MOST_TOGETHER, cores())
    if together < 1:
        raise ValueError(f"together = {together} is no number of stages; give 1 or more.")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):  # the system's: it ends with the process
            _run_left(out, stages, console, together)
    except Timeout:
        raise ValueError(
            f"another process is at work in {out}: wait until it is done, or give another folder."
        ) from None


def _run_left(out: Path, stages: Sequence[Stage], console: Console, together: int) -> None:
    """Run what is not done yet."""
    record = read_stages(out)
    left: list[tuple[str, Stage]] = []
    for number, stage in enumerate(stages, 1):
        heading = f"[bold]{number}/{len(stages)} {stage.title}[/]"
        before = record.get(stage.name, {})
        same = before.get("digest", stage.digest) == stage.digest
        names = {other.name for _, other in left}
        if before.get("done") and same and stage.done() and not stage.waits(names) & names:
            console.print(f"{heading}: done before", soft_wrap=True)
        else:
            left.append((heading, stage))
    if together > 1:
        _side_by_side(out, left, console, together)
        return
    for heading, stage in left:
        _announce(heading, stage, console)
        with _folder(stage.folder):
            _timed(out, stage)


def read_stages(out: Path) -> dict[str, dict[str, Any]]:
    """Seconds spent in each stage so far, whether it is done, and the digest of what it was."""
    path = out / STAGES
    return json.loads(path.read_text()) if path.exists() else {}


def seconds_table(seconds: dict[str, float]) -> Table:
    """Stages and their seconds, for a terminal."""
    table = Table("stage", "seconds", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in seconds.items():
        table.add_row(name.replace("_", " "), f"{value:.0f}")
    return table


def _announce(heading: str, stage: Stage, console: Console) -> None:
    console.print(f"\n{heading}\n[dim]$ dyngen {escape(shlex.join(stage.arguments))}[/]")


def _timed(out: Path, stage: Stage) -> None:
    """Run a stage in this process and write down how it went."""
    started, done = time.perf_counter(), False
    try:
        run(stage.arguments)
        done = True
    finally:
        _record(out, stage, time.perf_counter() - started, done)


def _record(out: Path, stage: Stage, seconds: float, done: bool) -> None:
    """Add the seconds of a stage to those of earlier attempts, interrupted or not."""
    record = read_stages(out)
    before = float(record.get(stage.name, {}).get("seconds", 0.0))
    record[stage.name] = {
        "seconds": round(before + seconds, 1),
        "done": done,
        "digest": stage.digest,
    }
    partial = out / f"{STAGES}.partial"
    partial.write_text(json.dumps(record, indent=2))
    partial.replace(out / STAGES)


@dataclass
class _Running:
    """A stage in a process of its own."""

    stage: Stage
    process: subprocess.Popen[str]
    started: float


def _side_by_side(
    out: Path, left: Sequence[tuple[str, Stage]], console: Console, together: int
) -> None:
    """Run stages in processes; what they print comes line by line, with their names before it."""
    left = list(left)
    waits = {
        stage.name: stage.waits(earlier.name for _, earlier in left[:place])
        for place, (_, stage) in enumerate(left)
    }
    width = max((len(stage.name) for _, stage in left), default=0)
    running: dict[str, _Running] = {}
    lines: Queue[tuple[str, str | None]] = Queue()
    before = signal.signal(signal.SIGTERM, _exit)  # as a queue of jobs ends them
    try:
        while left or running:
            undone = {stage.name for _, stage in left} | set(running)
            ready = [(h, s) for h, s in left if not waits[s.name] & undone]
            start = ready[: together - len(running)]
            # One that starts alone stays alone, since all others wait for it.
            threads = max(1, cores() // max(1, len(running) + len(start)))
            for heading, stage in start:
                left.remove((heading, stage))
                _announce(heading, stage, console)
                process = _start(stage, threads, lines)
                running[stage.name] = _Running(stage, process, time.perf_counter())
            name, line = lines.get()
            if line is not None:
                console.print(f"[dim]{name:<{width}} |[/] {escape(line)}", soft_wrap=True)
                continue
            failed = running[name].process.wait() != 0
            ended = running.pop(name)
            _record(out, ended.stage, time.perf_counter() - ended.started, done=not failed)
            if failed:
                raise ValueError(
                    f"'{name}' failed and says why above; once that is mended, the same command "
                    "goes on."
                )
    finally:
        for one in running.values():  # interrupted, or another failed: they go on another time
            one.process.send_signal(signal.SIGINT)
        for one in running.values():
            one.process.wait()
            _record(out, one.stage, time.perf_counter() - one.started, done=False)
        signal.signal(signal.SIGTERM, before)


def _start(
    stage: Stage, threads: int, lines: Queue[tuple[str, str | None]]
) -> subprocess.Popen[str]:
    """The process of a stage, whose lines are put in the queue, and None at its end."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
    if stage.folder is not None:
        environment["DYNGEN_RUN"] = str(stage.folder)
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:  # as in the background of a script: a child would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, *stage.arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # an interruption comes from here, once
        )
    finally:
        if before == signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                lines.put((stage.name, line.rstrip()))
        lines.put((stage.name, None))

    Thread(target=listen, daemon=True).start()
    return process


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _folder(folder: Path | None) -> Iterator[None]:
    """`DYNGEN_RUN` for a while."""
    before = os.environ.get("DYNGEN_RUN")
    if folder is not None:
        os.environ["DYNGEN_RUN"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("DYNGEN_RUN", None)
        else:
            os.environ["DYNGEN_RUN"] = before
