"""Kill a rollout at random steps, let it go on each time, and hold its bytes against a twin's.

    python experiments/speedy/kills.py RUN.zarr TWIN.zarr --kills 5 --within 512 -- \\
        --config experiments/speedy/rollout.yaml

What follows `--` are options of `dyngen rollout`. RUN, of `--within` steps, is killed so many times
(SIGKILL, which no program can prepare for) at random steps, started again with the same command
each time, and at last left to end. TWIN is the same run, and nobody disturbs it. Every chunk of
TWIN is compared, byte by byte, with that of RUN, and what came of it is printed as JSON. RUN can
then be gone on with by `dyngen rollout` with more steps. With `--together` both run at a time, else
one after the other.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL = 0.2  # seconds
LATER = 3.0  # seconds at most from the step of a kill to the kill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--within", type=int, default=512, help="steps of both runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="run TWIN beside RUN")
    own, options = _split(sys.argv[1:])
    given = parser.parse_args(own)
    options.append(f"--steps={given.within}")
    undisturbed = _command(given.twin, options)
    beside = subprocess.Popen(undisturbed) if given.together else None
    try:
        killed = kill_at_random(given.run, options, given.kills, given.within, given.seed)
        subprocess.run(_command(given.run, options), check=True)
        if beside is None:
            subprocess.run(undisturbed, check=True)
        elif beside.wait():
            raise SystemExit(f"{given.twin} failed; see what it said.")
    finally:
        if beside is not None:
            beside.terminate()  # which is nothing to one that has ended
    compared, different = compare(given.run, given.twin)
    told = {
        "killed_after_steps": killed,
        "steps_compared": given.within,
        "chunks_compared": compared,
        "chunks_that_differ": different,
        "bytes_equal": compared > 0 and not different,
    }
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


def kill_at_random(run: Path, options: list[str], kills: int, within: int, seed: int) -> list[int]:
    """Start and kill a rollout so many times; the steps that were on disk at each kill."""
    draw = random.Random(seed)
    killed = []
    for step in sorted(draw.sample(range(1, within), kills)):
        process = subprocess.Popen(_command(run, options))
        while process.poll() is None and steps_on_disk(run) < step - block_steps(run):
            time.sleep(POLL)
        time.sleep(draw.random() * LATER)  # somewhere within a block, or while one is written
        if process.poll() is not None:
            raise SystemExit(f"{run} ended by itself before step {step}; see what it said.")
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(steps_on_disk(run))
    return killed


def compare(run: Path, twin: Path) -> tuple[int, list[str]]:
    """How many chunks of the twin there are, and which of them the run does not have."""
    chunks = [file for file in sorted(twin.glob("*/c/**/*")) if file.is_file()]
    fields = [file for file in chunks if len(file.relative_to(twin).parts) > 3]  # not coordinates
    different = []
    for file in fields:
        name = file.relative_to(twin)
        if not (run / name).is_file() or (run / name).read_bytes() != file.read_bytes():
            different.append(str(name))
    return len(fields), different


def block_steps(run: Path) -> int:
    """Steps in a chunk of the first variable, 1 before there is any."""
    for file in sorted(run.glob("*/zarr.json")):
        shape = json.loads(file.read_text()).get("chunk_grid", {}).get("configuration", {})
        if len(shape.get("chunk_shape", ())) == 4:
            return int(shape["chunk_shape"][1])
    return 1


def steps_on_disk(run: Path) -> int:
    """Steps of the blocks of the variable that has the fewest."""
    folders = [folder for folder in run.glob("*") if (folder / "c/0").is_dir()]
    counts = [len(list(folder.glob("c/0/*"))) for folder in folders]
    fields = [count for count in counts if count]
    return min(fields, default=0) * block_steps(run)


def _command(out: Path, options: list[str]) -> list[str]:
    program = "from dyngen.cli import main; main()"
    return [sys.executable, "-c", program, "rollout", *options, f"--out={out}"]


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


if __name__ == "__main__":
    main()
