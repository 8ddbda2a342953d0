"""That the benchmark of the climate experiment still fits its configurations."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import xarray as xr

from dyngen.rollout import frame_sampler

ROOT = Path(__file__).parents[2]


def test_a_frame_of_the_experiment_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    benchmark = importlib.import_module("benchmarks.century")
    monkeypatch.setattr(benchmark, "FRAMES", 2)
    model = benchmark.build()
    assert model.discriminator.spreader is not None  # as the experiment has it, `learned`
    sampler = frame_sampler(model, benchmark.sampling())
    assert sampler.sigmas[0].item() == pytest.approx(20)
    benchmark._roll_out(sampler, 1, torch.device("cpu"), tmp_path / "run.zarr")
    with xr.open_zarr(tmp_path / "run.zarr") as written:
        assert dict(written.sizes) == {"member": 1, "time": 2, "lat": 48, "lon": 96}
