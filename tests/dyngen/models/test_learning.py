"""Trained parts approach what exact parts do, in the world where that is known."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.slow
def test_a_trained_pair_approaches_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute or two of training, on the draws that the exact parts are given too.

    Unguided sampling, which is right but for the history, is as far off as climatology.
    """
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("exact_guidance")
    trained = benchmark.train(image_steps=300, discriminator_steps=450)
    world, model = trained.world, trained.model
    ours = benchmark.measure(world, model.denoiser, model.logit)
    exact = benchmark.measure(world, world.denoise, world.logit)
    unguided = benchmark.measure(world, world.denoise, world.logit, scale=0.0)
    assert ours["crps"][0] < 1.03 * exact["crps"][0]
    assert ours["mean_error"][0] < 0.2
    assert ours["spread"][0] == pytest.approx(exact["spread"][0], rel=0.05)
    assert ours["correlation"][0] == pytest.approx(exact["correlation"][0], abs=0.02)
    climatology, closed = world.climatology_crps().item(), world.expected_crps(1).item()
    assert exact["crps"][0] == pytest.approx(closed, abs=3 * exact["crps"][1])
    assert unguided["crps"][0] > closed + 0.8 * (climatology - closed)
