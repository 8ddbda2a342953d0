"""A cube may be many times larger than memory: the limit is set, and training goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

SIZE, CHUNK, SHARD = 64, 64, 1024  # cells, frames, frames: chunks of a MiB, shards of 16 MiB
ROOT = Path(__file__).parents[2]

CHILD = """
import json, resource, sys, threading
threading.stack_size(2**19)
import dask, torch
from lightning import LightningModule, Trainer
from data_modules import statistics
from data_modules.climate_cube import ClimateCubeDataModule

torch.set_num_threads(1)
path, limit, span, buffer, steps = sys.argv[1], *map(int, sys.argv[2:])
statistics.SPAN_BYTES = span
dask.config.set(num_workers=2)

class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
    def training_step(self, batch, _):
        return (batch["frames"][:, -1] - self.weight * batch["frames"][:, 0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def used(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

torch.zeros(4, requires_grad=True).square().mean().backward()
data = ClimateCubeDataModule(path, batch_size=16, shuffle_buffer=buffer, in_memory=False)
before = used("VmData")
total = before + limit if limit > 0 else -limit
resource.setrlimit(resource.RLIMIT_DATA, (total, total))
model = Tiny()
Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False).fit(model, datamodule=data)
try:
    bytearray(total)
    enforced = False
except MemoryError:
    enforced = True
print(json.dumps({"before": before, "limit": total, "enforced": enforced,
                  "weight": model.weight.item(), "peak": used("VmHWM"),
                  "cube": data.cube.frame_bytes * len(data.cube.times)}))
"""


def large_cube(path: Path, frames: int) -> Path:
    """A cube of many times the same shard, which is on disk but once."""
    array = zarr.create_group(path).create_array(
        "u",
        shape=(frames, SIZE, SIZE),
        chunks=(CHUNK, SIZE, SIZE),
        shards=(SHARD, SIZE, SIZE),
        dtype="float32",
        dimension_names=("time", "y", "x"),
    )
    field = np.random.default_rng(0).random((CHUNK, SIZE, SIZE)).astype(np.float32).round(1)
    array[:SHARD] = np.tile(field, (SHARD // CHUNK, 1, 1))
    first = path / "u" / "c" / "0" / "0" / "0"
    for shard in range(1, frames // SHARD):
        link = path / "u" / "c" / str(shard) / "0" / "0"
        link.parent.mkdir(parents=True)
        os.link(first, link)
    return path


def train(path: Path, *arguments: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are set as Linux does")
def test_what_is_needed_does_not_depend_on_the_size_of_the_cube(tmp_path: Path) -> None:
    frames, allowed = 60 * SHARD, 48 * 2**20
    result = train(large_cube(tmp_path / "cube.zarr", frames), allowed, 2**20, 4, 20)
    assert result["enforced"]
    assert result["cube"] >= 20 * allowed
    assert 0 < abs(result["weight"]) < 1  # it took steps


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are set as Linux does")
def test_a_cube_twenty_times_larger_than_the_limit_of_the_process_trains(tmp_path: Path) -> None:
    limit = 768 * 2**20  # all that the process may have, its own code's data included
    frames = 984 * SHARD
    result = train(large_cube(tmp_path / "cube.zarr", frames), -limit, 2**24, 32, 100)
    assert result["enforced"]
    assert result["cube"] >= 20 * limit
    assert 0 < abs(result["weight"]) < 1  # it took steps
