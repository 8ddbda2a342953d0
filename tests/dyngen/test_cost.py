"""Costs are counted as torch's own counter does, and survive a resumption."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyngen.callbacks.cost import Operations, TrainingCost, rollout_cost
from dyngen.report.cost_table import HEADINGS, cost_table
from dyngen.rollout import Sampling, Written, frame_sampler


def test_operations_are_those_of_the_products() -> None:
    with Operations() as counter:
        torch.randn(3, 5) @ torch.randn(5, 7)
    assert counter.total == 2 * 3 * 5 * 7


def test_operations_agree_with_torchs_counter_forwards_and_backwards() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.randn(5, 2, 8, 8)
    with Operations() as ours:
        network(x).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        network(x).sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


def test_a_gradient_inside_a_forward_pass_is_counted() -> None:
    network = nn.Conv2d(1, 1, 3, padding=1)

    def energy_gradient(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(network(x).square().sum(), x, create_graph=True)[0]

    with Operations() as forward:
        network(torch.randn(1, 1, 8, 8))
    with Operations() as both:
        energy_gradient(torch.randn(1, 1, 8, 8)).sum().backward()
    assert both.total >= 3 * forward.total


def test_training_is_added_up_over_resumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr("dyngen.callbacks.cost.time.perf_counter", lambda: next(clock))
    network, batch = nn.Linear(4, 4), {"frames": torch.randn(8, 4)}
    none: Any = None

    def step(cost: TrainingCost) -> None:
        cost.on_train_batch_start(none, none, batch, 0)
        network(batch["frames"]).sum().backward()
        cost.on_train_batch_end(none, none, none, batch, 0)

    first = TrainingCost()
    step(first)
    second = TrainingCost()
    second.load_state_dict(first.state_dict())
    step(second)
    found = second.state_dict()
    assert (found["seconds"], found["steps"], found["batch_size"]) == (5.0, 2, 8)
    assert found["flops"] == 2 * found["flops_per_step"] > 0


class Image(nn.Module):
    """A denoiser of frames with one convolution; 10 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.denoiser = lambda x, sigma: self.layer(x)


def test_the_cost_of_a_frame_is_that_of_its_evaluations() -> None:
    model = Image()
    sampler = frame_sampler(model, Sampling(steps=7, sigma_max=2.0, sampler="ddim"))
    written = Written(frames=20, seconds=5.0, diagnostics={})
    history = torch.zeros(2, 1, 1, 8, 8)
    cost = rollout_cost(model, sampler, history, written, {}, torch.device("cpu"))
    assert cost["parameters"] == 10
    assert cost["seconds_per_frame"] == 0.25
    assert cost["flops_per_frame"] == cost["evaluations_per_frame"] * 2 * 9 * 64
    row = cost_table({"image": cost})[0]
    assert dict(zip(HEADINGS, row, strict=True))["seconds / frame"] == "0.25"
    assert "–" in row
