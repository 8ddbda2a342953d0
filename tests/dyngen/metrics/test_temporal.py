"""Autocorrelation and drift of processes that have closed forms."""

import math

import numpy as np
import pytest
import torch

from dyngen.metrics.temporal import (
    autocorrelation,
    block_means,
    correlation,
    drift,
    increments,
    lag_sums,
)
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum


def autoregressive(coefficient: float, frames: int = 400) -> torch.Tensor:
    """(4 trajectories, frames, 8, 8) with variance 1."""
    world = AutoregressiveFields(power_law_spectrum(8, 8, slope=1.0), coefficient)
    generator = torch.Generator().manual_seed(3)
    return world.simulate(4, frames, generator=generator, dtype=torch.float64)[:, :, 0]


@pytest.mark.parametrize("coefficient", [0.9, 0.3, -0.5])
def test_an_autoregressive_field_has_geometric_autocorrelation(coefficient: float) -> None:
    series = autoregressive(coefficient)
    lags = [0, 1, 2, 5]
    found = autocorrelation(series, lags, time_dim=1, mean=0.0)
    expected = torch.tensor([coefficient**lag for lag in lags], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_it_equals_numpys_correlation_of_a_single_series() -> None:
    series = torch.tensor(np.random.default_rng(0).standard_normal(50)).cumsum(0)
    mean = float(series.mean())
    for lag, found in enumerate(autocorrelation(series, range(5), time_dim=0).tolist()):
        first, later = series[: 50 - lag] - mean, series[lag:] - mean
        expected = float(
            (first * later).sum() / (first.square().sum() * later.square().sum()).sqrt()
        )
        assert math.isclose(found, expected, rel_tol=1e-12)
    # Where both halves have the series' own mean this is Pearson's coefficient.
    wave = torch.tensor([1.0, -1.0, 2.0, -2.0] * 6)
    pearson = np.corrcoef(wave[:-4].numpy(), wave[4:].numpy())[0, 1]
    assert math.isclose(autocorrelation(wave, [4], time_dim=0)[0], pearson, rel_tol=1e-6)


def test_a_lag_beyond_the_series_is_not_a_number() -> None:
    found = autocorrelation(torch.randn(5, 3), [4, 5, 9], time_dim=0, mean=0.0)
    assert found.isnan().tolist() == [False, True, True]


def test_points_without_weight_do_not_count() -> None:
    series = autoregressive(0.8, frames=30)
    weights = torch.ones(8, 8, dtype=torch.float64)
    weights[:, 5:] = 0
    broken = series.clone()
    broken[..., 5:] = math.nan
    torch.testing.assert_close(
        autocorrelation(broken, [1, 3], time_dim=1, weights=weights),
        autocorrelation(series[..., :5], [1, 3], time_dim=1),
    )


def test_sums_over_blocks_with_an_overlap_add_up() -> None:
    series = autoregressive(0.7, frames=40).flatten(2)
    lags = [0, 1, 3, 12]
    whole = lag_sums(series, lags)
    weights = torch.rand(series.shape, dtype=torch.float64)
    for w in (None, weights):
        parts = torch.zeros_like(whole)
        for start, stop in ((0, 2), (2, 17), (17, 18), (18, 40)):
            old = min(start, max(lags))
            block = slice(start - old, stop)
            parts += lag_sums(
                series[:, block], lags, None if w is None else w[:, block], counted=old
            )
        torch.testing.assert_close(parts, lag_sums(series, lags, w))
    torch.testing.assert_close(
        correlation(whole.sum(0)),
        autocorrelation(series, lags, time_dim=1, mean=0.0),
    )
    equal = lag_sums(series, lags, torch.ones_like(weights))
    torch.testing.assert_close(equal, whole)


def test_increments_of_an_autoregressive_field_have_a_known_width() -> None:
    series = autoregressive(0.9)
    spread = float(increments(series, time_dim=1).std())
    assert math.isclose(spread, math.sqrt(2 * (1 - 0.9)), rel_tol=0.03)


def test_block_means_and_drift() -> None:
    values = torch.arange(10.0)[:, None] * torch.tensor([2.0, -0.5]) + 7
    torch.testing.assert_close(drift(values), torch.tensor([2.0, -0.5], dtype=torch.float64))
    steps = torch.tensor([1.0, 2.0, 10.0])
    torch.testing.assert_close(
        drift(3 * steps, steps=steps), torch.tensor(3.0, dtype=torch.float64)
    )
    assert block_means(torch.arange(7.0), 3).tolist() == [1.0, 3.5, 5.5]
    with pytest.raises(ValueError, match="cannot be divided"):
        block_means(torch.arange(3.0), 4)
    with pytest.raises(ValueError, match="at least two"):
        drift(torch.zeros(1))
