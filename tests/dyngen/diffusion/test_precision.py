"""bf16 where there is any, and single precision where a CPU would only imitate it."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dyngen.diffusion.denoiser import Denoiser
from dyngen.diffusion.precision import computes_bf16, tell_of_single_precision
from dyngen.experiment import ExperimentCLI
from dyngen.networks.unet import UNet2d
from dyngen.rollout.sampling import Sampling, frame_sampler

CPU = torch.device("cpu")
CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPUINFO.exists(), reason="Linux tells of x86 there"
)
def test_a_cpu_without_avx_512_has_no_bf16() -> None:
    instructions = CPUINFO.read_text().split()
    assert computes_bf16(CPU) == ({"avx512vl", "avx512bw", "avx512dq"} <= set(instructions))
    assert computes_bf16(torch.device("cuda"))


def supported(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: answer)


@pytest.mark.parametrize("native", [True, False])
def test_frames_are_sampled_in_what_the_cpu_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, native: bool
) -> None:
    class Model(nn.Module):
        denoiser = Denoiser(UNet2d(1, 0, (8,), 1))

    supported(monkeypatch, native)
    tell_of_single_precision.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            sampler: Any = frame_sampler(Model(), Sampling(steps=2, precision="bf16"))
    told = ["this CPU has no bf16 convolutions" in m for m in caplog.messages]
    assert told == ([] if native else [True])  # once
    assert sampler.description()["precision"] == ("torch.bfloat16" if native else "full")
    on_gpu: Any = frame_sampler(Model(), Sampling(steps=2, precision="bf16"), torch.device("cuda"))
    assert on_gpu.description()["precision"] == "torch.bfloat16"


@pytest.mark.parametrize(
    ("asked", "native", "used"),
    [
        ("bf16-mixed", True, "bf16-mixed"),
        ("bf16-mixed", False, "32-true"),
        ("64-true", False, "64-true"),
    ],
)
def test_training_is_in_what_the_cpu_computes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, native: bool, used: str
) -> None:
    supported(monkeypatch, native)
    monkeypatch.setattr(ExperimentCLI, "_run_subcommand", lambda self, subcommand: None)
    root = Path(__file__).parents[3]
    cli = ExperimentCLI(
        [
            "fit",
            "--config",
            str(root / "experiments/turbulence/image.yaml"),
            f"--trainer.precision={asked}",
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    assert cli.trainer.precision == used
    assert cli.config["fit"].trainer.precision == asked  # which is what a run is continued with
