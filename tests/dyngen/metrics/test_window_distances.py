"""Distances of windows and along films, against laws that are known."""

import logging
import math

import pytest
import torch
from torch import nn

from dyngen.metrics.frechet import frechet_distance, moments
from dyngen.metrics.windows import (
    SlidingFrechet,
    WindowFrechet,
    cut_windows,
    sliding_frechet,
    window_kind,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Ends(nn.Module):
    """First and last value of a window at one point: two features with a known law."""

    name = "ends"
    dimension = 2

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.stack([windows[:, 0, 0, 0, 0], windows[:, -1, 0, 0, 0]], dim=1)


class Textures(Ends):
    dynamic_textures = True


class Pixels(nn.Module):
    name = "pixels"

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.flatten(1)


def test_windows_are_cut_film_by_film() -> None:
    films = torch.arange(2 * 10).reshape(2, 10, 1)
    found = cut_windows(films, 4)
    assert found.squeeze(-1).tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [10, 11, 12, 13],
        [14, 15, 16, 17],
    ]
    assert cut_windows(films, 4, 3).squeeze(-1)[:, 0].tolist() == [0, 3, 6, 10, 13, 16]
    assert len(cut_windows(films, 10)) == 2
    with pytest.raises(ValueError, match="films of 10 frames hold no window of 16"):
        cut_windows(films, 16)


def test_names_tell_length_and_features() -> None:
    assert [window_kind(n) for n in (16, 32)] == ["FVD", "FVD-32"]
    assert [window_kind(n, True) for n in (16, 32)] == ["DTFVD", "DTFVD-32"]
    assert WindowFrechet(Ends()).name == "FVD_ends"
    assert WindowFrechet(Textures(), 32).name == "DTFVD-32_ends"
    assert SlidingFrechet(Pixels()).name == "sliding-FID-30_pixels"
    assert SlidingFrechet(Textures(), window=16).name == "sliding-DTFVD_ends"


def test_the_distance_of_two_kinds_of_memory_is_the_closed_form() -> None:
    """Ends of a window: covariances [[1, r], [r, 1]], which commute, with eigenvalues 1 +- r."""

    def films(memory: float, seed: int) -> torch.Tensor:
        noise = draw(60_000, 2, seed=seed)
        last = memory * noise[:, :1] + math.sqrt(1 - memory**2) * noise[:, 1:]
        return torch.cat([noise[:, :1], last], dim=1).reshape(-1, 2, 1, 1, 1)

    metric = WindowFrechet(Ends(), length=2)
    for part in films(0.9, 0).split(25_000):
        metric.update(part, real=True)
    metric.update(films(0.0, 1), real=False)
    expected = (1 - math.sqrt(1.9)) ** 2 + (1 - math.sqrt(0.1)) ** 2
    assert math.isclose(metric.compute(), expected, rel_tol=0.03)


def test_a_film_that_drifts_scores_the_square_of_its_drift() -> None:
    """Mean 0.1 t at time t against 0: windows of 3 frames from t have mean 0.1 (t + 1)."""
    drifting = draw(4_000, 12, 1, 1, 1)
    drifting += 0.1 * torch.arange(12).reshape(1, 12, 1, 1, 1)
    real = draw(4_000, 12, 1, 1, 1, seed=1)
    metric = SlidingFrechet(Pixels(), frames=3)
    for part in range(0, 4_000, 1_000):
        metric.update(drifting[part : part + 1_000], real=False)
        metric.update(real[part : part + 1_000], real=True)
    curve = metric.compute()
    assert curve.start.tolist() == list(range(10))
    # The spread within a window adds 0.01 * 2 / 3 to the variance, (sqrt(1.0067) - 1)^2 to FID.
    expected = (0.1 * (torch.arange(10) + 1.0)).double().square()
    torch.testing.assert_close(curve.distance, expected, rtol=0.1, atol=5e-3)
    stationary = SlidingFrechet(Pixels(), frames=3, everywhere=True)
    stationary.update(drifting, real=False)
    stationary.update(real[:, :5], real=True)  # shorter: all its times are one law
    torch.testing.assert_close(stationary.compute().distance, expected, rtol=0.1, atol=5e-3)


def test_windows_slide_by_their_stride_and_equal_single_distances() -> None:
    generated, real = draw(30, 9, 1, 2, 2), draw(40, 9, 1, 2, 2, seed=1)
    metric = SlidingFrechet(Ends(), window=4, stride=2)
    metric.update(generated, real=False)
    metric.update(real, real=True)
    curve = metric.compute()
    assert curve.start.tolist() == [0, 2, 4]
    for start, distance in zip(curve.start.tolist(), curve.distance, strict=True):
        sides = [moments(Ends()(x[:, start : start + 4])) for x in (generated, real)]
        assert math.isclose(distance, frechet_distance(*sides).distance, rel_tol=1e-10)


def test_standardised_features_have_no_units() -> None:
    generated, real = draw(50, 6, 3), draw(60, 6, 3, seed=1) + 0.3
    plain = sliding_frechet(generated, real, length=2, standardise=True)
    units = torch.tensor([1.0, 4.0, 0.2]).double()
    other = sliding_frechet(units * generated + 5, units * real + 5, length=2, standardise=True)
    torch.testing.assert_close(other.distance, plain.distance)
    apart = sliding_frechet(units * generated, units * real, length=2)
    assert float((apart.distance - plain.distance).abs().min()) > 0.1


def test_few_samples_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        curve = sliding_frechet(draw(3, 8, 20), draw(3, 8, 20, seed=1), length=4, name="sFID")
    assert [r.getMessage()[:36] for r in caplog.records] == ["sFID: 12 samples are few for 20 feat"]
    assert len(curve.distance) == 5
    assert bool((curve.floor > 1).all())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="generated films have 5 times and real ones 6"):
        sliding_frechet(draw(9, 5, 2), draw(9, 6, 2))
    with pytest.raises(ValueError, match="with the same D"):
        sliding_frechet(draw(9, 5, 2), draw(9, 5, 3))
