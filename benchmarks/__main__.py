"""Run every benchmark, or those named, and write benchmarks/results.json.

    python -m benchmarks [streaming training_step ...]

Each file here has a function `run` that gives entries with ours, a peer and a limit in one unit,
medians of runs taken in turn. Entries of benchmarks that are not run stay as they are.
"""

import importlib
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dyngen.report.provenance import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def main(names: list[str]) -> None:
    """Run benchmarks by name, one after another; what is done is written at once."""
    console = Console()
    every = sorted(path.stem for path in HERE.glob("[a-z]*.py"))
    unknown = set(names) - set(every)
    if unknown:
        sys.exit(f"there is no benchmark {sorted(unknown)}; there are {', '.join(every)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    table = Table("name", "ours", "peer", "ratio", "limit", "ratio", "unit", box=None)
    for name in names or every:
        started = time.perf_counter()
        console.print(f"{name} ...")
        entries = importlib.import_module(f"benchmarks.{name}").run()
        for entry in entries:
            entry["machine"] = machine()
            entry["command"] = f"python -m benchmarks {name}"
            numbers = ("ours", "peer", "ratio_to_peer", "limit", "ratio_to_limit")
            shown = ["–" if entry[key] is None else f"{entry[key]:.3g}" for key in numbers]
            table.add_row(entry["name"], *shown, entry["unit"])
        fresh = {entry["name"] for entry in entries}
        results = [entry for entry in results if entry["name"] not in fresh] + entries
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        console.print(f"{name}: {time.perf_counter() - started:.0f} s")
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
