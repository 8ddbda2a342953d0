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
def test_a_matrix_is_turned_by_newton_schulz_iterations(shape: tuple[int, int]) -> None:
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = (u * torch.logspace(-3, 0, len(s))) @ v
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):  # as Jordan et al. write them
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    found = orthogonal(matrix)
    assert (found - x).norm() < 1e-3 * x.norm()
    sizes = torch.linalg.svdvals(orthogonal(u @ v * 3))
    assert 0.6 < sizes.min() < sizes.max() < 1.3
    assert torch.isfinite(orthogonal(torch.zeros(shape))).all()


def test_kernels_are_trained_as_by_torch_and_all_else_by_adamw() -> None:
    ours, theirs, before = network(), network(), network()
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
    both = zip(ours.parameters(), theirs.parameters(), before.parameters(), strict=True)
    for one, other, start in both:  # but for the rounding of bf16
        assert (one - other).norm() < 0.03 * (other - start).norm()


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
