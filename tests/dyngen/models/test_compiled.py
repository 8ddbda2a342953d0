"""That compiled networks sample the frames that eager ones do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyngen.forecast import compile_networks
from dyngen.models import ImageDDPM, TimeConsistencyDiscriminator
from dyngen.networks.discriminators import ForecastEnergy
from dyngen.networks.unet import UNet2d
from dyngen.rollout import Sampling, frame_sampler
from dyngen.rollout.randomness import FrameNoise

CPU = torch.device("cpu")


def awake(network: nn.Module) -> Any:
    """The network as after some training: no weight at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def small() -> TimeConsistencyDiscriminator:
    """A discriminator with a learned spread, beside an image model."""
    torch.manual_seed(0)
    edges = ("pole", "periodic")
    energy = ForecastEnergy(2, 2, (8,), 1, boundary=edges, spread_widths=(8,))
    model = TimeConsistencyDiscriminator(awake(energy), forecast_spread="learned")
    model._adopt(ImageDDPM(awake(UNet2d(2, 0, (8,), 1, boundary=edges))).denoiser, {})
    return model.eval()


def test_a_gradient_is_one_graph_of_both_passes() -> None:
    model = small()
    x, history, sigma = torch.randn(2, 2, 8, 16), torch.randn(2, 2, 2, 8, 16), torch.full((2,), 0.5)
    with torch.no_grad():
        known = (sigma, history, None, *model.expectation(history).values())
        whole = torch.compile(model.learned_gradient, backend="aot_eager", fullgraph=True)
        expected = model.learned_gradient(x, *known)
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(whole(x, *known), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_frames_of_compiled_networks_are_those_of_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config, "freezing", False)  # set back at the end
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, history = small(), torch.randn(2, 2, 2, 8, 16)
    eager = frames(model, history)
    compile_networks(model, CPU)
    torch.testing.assert_close(frames(model, history), eager, rtol=1e-4, atol=1e-4)


def frames(model: Any, history: Tensor) -> Tensor:
    sampler = frame_sampler(model, Sampling(steps=1, sigma_max=3.0, start="forecast"), CPU)
    return sampler(history, FrameNoise(0, [(0, member) for member in range(len(history))], 0))[0]
