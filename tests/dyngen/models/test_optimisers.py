"""Muon against PyTorch's own, which takes matrices alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dyngen.models.image_ddpm import ImageDDPM
from dyngen.models.optimisers import MuonAdamW, orthogonal
from dyngen.networks.unet import UNet2d


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.SiLU(), nn.Conv2d(16, 24, 3), nn.SiLU(), nn.Conv2d(24, 2, 3)
    )


def train(model: nn.Module, optimiser: Any, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        x = torch.randn(4, 2, 9, 9, generator=torch.Generator().manual_seed(number))
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("shape", [(32, 200), (200, 32), (40, 40)])
@pytest.mark.parametrize("native", [True, False])
def test_the_singular_values_become_alike(
    shape: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dyngen.models.optimisers.computes_bf16", lambda device: native)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    found = orthogonal((u * torch.linspace(0.1, 1, len(s))) @ v)
    along = torch.einsum("mi,mn,in->i", u, found, v)  # on the directions of the matrix given
    assert 0.6 < along.min() < along.max() < 1.3
    assert (found - (u * along) @ v).norm() < (0.1 if native else 1e-3) * found.norm()


def test_kernels_are_trained_as_by_torch_and_all_else_by_adamw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dyngen.models.optimisers.computes_bf16", lambda device: True)  # as torch's
    ours, theirs = network(), network()
    train(ours, MuonAdamW(ours.parameters(), lr=0.01, weight_decay=0.1), 5)
    kernel: Any = theirs[2].weight
    matrix = nn.Parameter(kernel.detach().flatten(1))
    others = [p for p in theirs.parameters() if p is not kernel]
    muon = torch.optim.Muon(
        [matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", eps=1e-7
    )
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))

    class Both:
        def zero_grad(self) -> None:
            theirs.zero_grad()

        def step(self) -> None:
            matrix.grad = kernel.grad.flatten(1)
            muon.step()
            adamw.step()
            kernel.data.copy_(matrix.detach().view_as(kernel))

    train(theirs, Both(), 5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_where_it_was() -> None:
    whole = network()
    train(whole, MuonAdamW(whole.parameters(), lr=0.01), 6)
    part = network()
    optimiser = MuonAdamW(part.parameters(), lr=0.01)
    train(part, optimiser, 3)
    saved = copy.deepcopy((part.state_dict(), optimiser.state_dict()))
    again = network()
    again.load_state_dict(saved[0])
    optimiser = MuonAdamW(again.parameters(), lr=0.5)
    optimiser.load_state_dict(saved[1])
    train(again, optimiser, 3, first=3)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_closure_is_called_once_with_gradients() -> None:
    model = network()
    optimiser = MuonAdamW(model.parameters(), lr=0.01)
    calls = []

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = model(torch.ones(1, 2, 9, 9)).square().mean()
        loss.backward()
        calls.append(loss.item())
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    assert optimiser.step(closure).item() == calls[0]
    assert len(calls) == 1
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)
    assert all(p.grad is not None for p in model.parameters())


def test_models_take_either() -> None:
    assert ImageDDPM(UNet2d(1), optimiser="muon").optimiser == "muon"
    with pytest.raises(ValueError, match="optimiser is 'sgd'; choose adamw or muon"):
        ImageDDPM(UNet2d(1), optimiser="sgd")  # type: ignore[arg-type]
