"""The script that kills a rollout: what it counts, and what it takes for a difference."""

import importlib.util
import json
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
