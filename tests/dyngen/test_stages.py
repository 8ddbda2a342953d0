"""Stages side by side: what waits for what, what fails, and what is written down."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dyngen import stages
from dyngen.stages import Stage, read_stages, run_stages

# In place of `dyngen`: note the start, wait for a file, say something, note the end, and exit.
SCRIPT = """
import os, pathlib, sys, time
name, awaited, status = sys.argv[1:4]
folder = pathlib.Path(os.environ["DYNGEN_RUN"])
with open(folder / "log", "a") as log:
    log.write(f"start {name}\\n")
(folder / name).touch()
started = time.monotonic()
time.sleep(0.2)
while awaited and not (folder / awaited).exists():
    if time.monotonic() - started > 60:
        sys.exit(9)
    time.sleep(0.01)
print(f"\\n[{name}] has {os.environ['OMP_NUM_THREADS']} threads")
with open(folder / "log", "a") as log:
    log.write(f"end {name}\\n")
sys.exit(int(status))
"""


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "COMMAND", (sys.executable, "-c", SCRIPT))
    monkeypatch.setattr(stages, "cores", lambda: 4)


def stage(
    folder: Path, name: str, after: tuple[str, ...] | None = (), awaits: str = "", status: int = 0
) -> Stage:
    return Stage(name, f"Do {name}", (name, awaits, str(status)), folder=folder, after=after)


def run(folder: Path, *todo: Stage, together: int | None = 2) -> tuple[str, list[str]]:
    """What is shown, and the log of starts and ends."""
    shown = StringIO()
    try:
        run_stages(folder, todo, Console(file=shown, width=200), together)
    finally:
        log = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return shown.getvalue(), log


def test_what_does_not_wait_runs_side_by_side_and_what_waits_waits(tmp_path: Path) -> None:
    shown, log = run(
        tmp_path,
        stage(tmp_path, "a", awaits="b"),  # each ends only once the other has begun
        stage(tmp_path, "b", awaits="a"),
        stage(tmp_path, "c", after=("a",)),
        stage(tmp_path, "d", after=None),
    )
    assert log.index("end a") < log.index("start c")
    assert log[-2:] == ["start d", "end d"]
    assert [done["done"] for done in read_stages(tmp_path).values()] == [True] * 4
    assert "a | [a] has 2 threads" in shown
    assert "d | [d] has 4 threads" in shown  # alone
    assert "3/4 Do c" in shown


def test_no_more_run_together_than_was_said(tmp_path: Path) -> None:
    _, log = run(tmp_path, *(stage(tmp_path, name) for name in "abcde"), together=2)
    running = most = 0
    for line in log:
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert most <= 2
    assert len(log) == 10


def test_what_is_done_is_not_repeated_and_may_be_waited_for(tmp_path: Path) -> None:
    first = stage(tmp_path, "a")
    run(tmp_path, first)
    (tmp_path / "log").unlink()
    shown, log = run(tmp_path, first, stage(tmp_path, "b", after=("a", "never listed")))
    assert log == ["start b", "end b"]
    assert "1/2 Do a: done before" in shown


def test_what_was_done_by_another_command_or_configuration_is_done_again(tmp_path: Path) -> None:
    config = tmp_path / "it.yaml"

    def todo(*, status: str = "0") -> tuple[Stage, ...]:
        words = ("a", "", status, "--config", str(config))
        return (
            Stage("a", "Do a", words, folder=tmp_path, after=()),
            stage(tmp_path, "b", after=("a",)),
            stage(tmp_path, "c"),
            stage(tmp_path, "d", after=None),
        )

    for text, status, again in (
        ("one: 1", "0", ["a", "c", "b", "d"]),
        ("one: 1", "0", []),
        ("one: 2", "0", ["a", "b", "d"]),
        ("one: 2", "00", ["a", "b", "d"]),
    ):
        config.write_text(text)
        (tmp_path / "log").unlink(missing_ok=True)
        _, log = run(tmp_path, *todo(status=status), together=2)
        assert sorted(line for line in log if "start" in line) == [
            f"start {name}" for name in sorted(again)
        ]


def test_a_configuration_that_is_changed_while_it_is_used_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ran = tmp_path / "it.yaml", []

    def edited(arguments: tuple[str, ...]) -> None:
        ran.append(arguments)
        config.write_text("one: 2")

    monkeypatch.setattr(stages, "run", edited)
    config.write_text("one: 1")
    for _ in range(3):  # anew each time, as by another command
        run(tmp_path, Stage("a", "Do a", ("fit", "--config", str(config))), together=1)
    assert len(ran) == 2


def test_one_that_fails_stops_the_others_which_go_on_another_time(tmp_path: Path) -> None:
    todo = (
        stage(tmp_path, "a", awaits="never"),
        stage(tmp_path, "b", awaits="a", status=3),
        stage(tmp_path, "c"),
    )
    with pytest.raises(ValueError, match="'b' failed and says why above"):
        run(tmp_path, *todo)
    record = read_stages(tmp_path)
    assert {name: told["done"] for name, told in record.items()} == {"a": False, "b": False}
    before = record["a"]["seconds"]
    (tmp_path / "never").touch()
    run(tmp_path, todo[0])
    again = read_stages(tmp_path)["a"]
    assert again["done"]
    assert again["seconds"] > before > 0


@pytest.fixture
def interruptible(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGINT as in a terminal, or ignored as in the background of a script."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("interruptible", "number", "raised"),
    [
        (signal.default_int_handler, signal.SIGINT, KeyboardInterrupt),
        (signal.default_int_handler, signal.SIGTERM, SystemExit),
        (signal.SIG_IGN, signal.SIGTERM, SystemExit),
    ],
    indirect=["interruptible"],
)
@pytest.mark.usefixtures("interruptible")
def test_an_interruption_reaches_every_stage(
    tmp_path: Path, number: signal.Signals, raised: type[BaseException]
) -> None:
    started, of_interrupt = time.monotonic(), signal.getsignal(signal.SIGINT)
    before = signal.getsignal(signal.SIGTERM)

    def interrupt() -> None:
        while not (tmp_path / "b").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(raised):
        run(tmp_path, *(stage(tmp_path, name, awaits="never") for name in "ab"))
    assert [done["done"] for done in read_stages(tmp_path).values()] == [False, False]
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert not left.stdout
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is of_interrupt
    assert time.monotonic() - started < 50  # nobody waited for a stage to give up


@pytest.mark.parametrize(
    ("gpu", "cores", "processes"), [(False, 4, 2), (False, 1, 0), (True, 4, 0)]
)
def test_by_default_cores_are_shared_and_a_gpu_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, cores: int, processes: int
) -> None:
    here: list[object] = []
    monkeypatch.setattr(stages, "run", here.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(stages, "cores", lambda: cores)
    _, log = run(tmp_path, stage(tmp_path, "a"), stage(tmp_path, "b"), together=None)
    assert len(here) == 2 - processes
    assert len(log) == 2 * processes


def test_less_than_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="together = 0 is no number of stages"):
        run(tmp_path, together=0)


def test_two_at_a_time_in_one_folder_are_refused(tmp_path: Path) -> None:
    first = threading.Thread(
        target=run_stages,
        args=(tmp_path, [stage(tmp_path, "first", awaits="go")], Console(file=StringIO()), 2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)  # which is the main thread's alone
        first.start()
        while not (tmp_path / "first").exists():
            time.sleep(0.01)
        with pytest.raises(ValueError, match="another process is at work in"):
            run(tmp_path, stage(tmp_path, "second"))
        (tmp_path / "go").touch()
        first.join()
    _, log = run(tmp_path, stage(tmp_path, "second"))
    assert log == ["start first", "end first", "start second", "end second"]
