"""The script that kills a rollout: what it counts, and what it takes for a difference."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "speedy" / "kills.py"


@pytest.fixture
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(folder: Path, blocks: dict[str, int]) -> Path:
    """Chunks of variables as a rollout lays them out: member, block of time, y, x."""
    for name, count in blocks.items():
        grid = {"configuration": {"chunk_shape": [1, 64, 48, 96]}}
        for block in range(count):
            chunk = folder / name / "c" / "0" / str(block) / "0" / "0"
            chunk.parent.mkdir(parents=True)
            chunk.write_bytes(f"{name} {block}".encode())
        (folder / name / "zarr.json").write_text(json.dumps({"chunk_grid": grid}))
    (folder / "time" / "c").mkdir(parents=True)
    (folder / "time" / "c" / "0").write_bytes(b"times")
    return folder


def test_steps_on_disk_are_those_that_all_variables_have(tmp_path: Path, kills: ModuleType) -> None:
    assert kills.steps_on_disk(tmp_path / "nothing") == 0
    assert kills.steps_on_disk(store(tmp_path / "run", {"pr": 3, "ta": 2})) == 2 * 64


def test_a_run_is_held_against_each_chunk_of_its_twin(tmp_path: Path, kills: ModuleType) -> None:
    run = store(tmp_path / "run", {"pr": 3, "ta": 3})
    twin = store(tmp_path / "twin", {"pr": 2, "ta": 2})
    assert kills.compare(run, twin) == (4, [])
    (run / "ta/c/0/1/0/0").write_bytes(b"another")
    assert kills.compare(run, twin) == (4, ["ta/c/0/1/0/0"])
    (run / "pr/c/0/0/0/0").unlink()
    assert kills.compare(run, twin) == (4, ["pr/c/0/0/0/0", "ta/c/0/1/0/0"])


BLOCKS = """
import json, sys, time
from pathlib import Path

out, salt = Path(sys.argv[1]), sys.argv[2]
grid = {"configuration": {"chunk_shape": [1, 64, 48, 96]}}
(out / "pr").mkdir(parents=True, exist_ok=True)
(out / "unfinished").write_text(json.dumps({"chunk_grid": grid}))
(out / "unfinished").replace(out / "pr" / "zarr.json")
for block in range(10):
    chunk = out / "pr" / "c" / "0" / str(block) / "0" / "0"
    if not chunk.exists():
        time.sleep(0.1)
        chunk.parent.mkdir(parents=True)
        (out / "unfinished").write_text(f"{salt} {block}")
        (out / "unfinished").replace(chunk)
"""


@pytest.mark.parametrize(("together", "salt"), [(True, "same"), (False, "same"), (True, "other")])
def test_kills_fall_within_the_run_and_its_twin_is_left_alone(
    tmp_path: Path,
    kills: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    together: bool,
    salt: str,
) -> None:
    run, twin = tmp_path / "run", tmp_path / "twin"

    def command(out: Path, options: list[str]) -> list[str]:
        assert options[-1] == "--steps=640"
        return [sys.executable, "-c", BLOCKS, str(out), "same" if out == run else salt]

    monkeypatch.setattr(kills, "_command", command)
    monkeypatch.setattr(kills, "LATER", 0.05)
    monkeypatch.setattr(kills, "POLL", 0.01)
    words = ["kills.py", str(run), str(twin), "--kills", "3", "--within", "640"]
    words += ["--together"] if together else []
    monkeypatch.setattr(sys, "argv", [*words, "--", "--config", "rollout.yaml"])
    kills.main()
    told = json.loads(capsys.readouterr().out)
    assert len(told["killed_after_steps"]) == 3
    assert all(0 <= step < 640 for step in told["killed_after_steps"])
    assert told["chunks_compared"] == 10
    assert told["bytes_equal"] is (salt == "same")
    assert len(told["chunks_that_differ"]) == (0 if salt == "same" else 10)
