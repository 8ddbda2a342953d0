"""Extremes against scipy and laws whose tails are known."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dyngen.metrics.extremes import (
    ExtremeValueLaw,
    block_maxima,
    empirical_return_levels,
    fit_extreme_value_law,
    l_moments,
    quantile_quantile,
    return_level,
)


def sample(shape: float, size: int, seed: int = 0) -> torch.Tensor:
    found = stats.genextreme.rvs(shape, loc=3, scale=2, size=size, random_state=seed)
    return torch.from_numpy(found)


def test_maxima_of_blocks_pass_over_what_is_missing() -> None:
    series = torch.tensor([1.0, 5.0, 2.0, math.nan, 7.0, 3.0, math.nan, math.nan, math.nan, 9.0])
    found = block_maxima(series[None, :, None].expand(2, 10, 3), 3, time_dim=1)
    assert found.shape == (2, 3, 3)
    assert found[0, :2, 0].tolist() == [5.0, 7.0]
    assert bool(found[:, 2].isnan().all())
    with pytest.raises(ValueError, match="10 steps hold no block of 11"):
        block_maxima(series, 11, time_dim=0)


def test_l_moments_equal_their_definition() -> None:
    """Expected order statistics of samples of one, two and three, over all subsets."""
    values = np.random.default_rng(0).normal(size=9)
    found = l_moments(torch.from_numpy(values))
    pairs = [max(p) - min(p) for p in combinations(values, 2)]
    triples = [sorted(t) for t in combinations(values, 3)]
    third = [t[2] - 2 * t[1] + t[0] for t in triples]
    expected = values.mean(), np.mean(pairs) / 2, np.mean(third) / 3
    for ours, exact in zip(found, expected, strict=True):
        assert math.isclose(ours, exact, rel_tol=1e-12)


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.25])
def test_the_fitted_law_is_the_one_that_was_drawn_from(shape: float) -> None:
    law = fit_extreme_value_law(sample(shape, 60_000))
    assert abs(float(law.shape) - shape) < 0.02
    assert abs(float(law.location) - 3) < 0.05
    assert abs(float(law.scale) - 2) < 0.05
    periods = torch.tensor([2.0, 10.0, 100.0])
    found = return_level(law, periods).numpy()
    exact = stats.genextreme.isf(1 / periods.numpy(), shape, loc=3, scale=2)
    np.testing.assert_allclose(found, exact, rtol=0.04)


@pytest.mark.parametrize("shape", [-0.3, -1e-9, 0.0, 1e-9, 0.4])
def test_return_levels_are_scipys(shape: float) -> None:
    law = ExtremeValueLaw(*(torch.tensor(v, dtype=torch.float64) for v in (3.0, 2.0, shape)))
    periods = torch.tensor([1.1, 5.0, 1000.0], dtype=torch.float64)
    exact = stats.genextreme.isf(1 / periods.numpy(), shape, loc=3, scale=2)
    np.testing.assert_allclose(return_level(law, periods).numpy(), exact, rtol=1e-7)
    with pytest.raises(ValueError, match="longer than one block"):
        return_level(law, torch.tensor([1.0]))


@settings(max_examples=30, deadline=None)
@given(shape=st.floats(-0.45, 0.9), seed=st.integers(0, 1000))
def test_the_fit_has_the_l_moments_of_the_sample(shape: float, seed: int) -> None:
    """Closed forms of Hosking et al. (1985) for the law, against those of the sample."""
    values = sample(shape, 40, seed)
    law = fit_extreme_value_law(values)
    mean, spread, third = l_moments(values)
    k = float(law.shape)
    if k == 0:
        return
    gamma = math.gamma(1 + k)
    assert math.isclose(
        mean, float(law.location) + float(law.scale) * (1 - gamma) / k, rel_tol=1e-6
    )
    assert math.isclose(spread, float(law.scale) * (1 - 2**-k) * gamma / k, rel_tol=1e-6)
    ratio = 2 * (1 - 3**-k) / (1 - 2**-k) - 3
    assert math.isclose(third / spread, ratio, rel_tol=1e-4, abs_tol=1e-5)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.05, 50), shift=st.floats(-100, 100), seed=st.integers(0, 500))
def test_invariances(scale: float, shift: float, seed: int) -> None:
    """Units scale the levels, the order of the maxima does not matter, points are independent."""
    values = torch.stack([sample(0.1, 30, seed), sample(-0.1, 30, seed + 1)], dim=1)
    periods = torch.tensor([5.0, 50.0])
    levels = return_level(fit_extreme_value_law(values), periods)
    assert levels.shape == (2, 2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    changed = return_level(fit_extreme_value_law(scale * values[order] + shift), periods)
    torch.testing.assert_close(changed, scale * levels + shift, rtol=1e-7, atol=1e-7)
    alone = return_level(fit_extreme_value_law(values[:, 1]), periods)
    torch.testing.assert_close(alone, levels[:, 1])


def test_a_constant_has_itself_as_return_level() -> None:
    law = fit_extreme_value_law(torch.full((10,), 4.0))
    torch.testing.assert_close(
        return_level(law, torch.tensor([100.0])), torch.tensor([4.0]).double()
    )


def test_empirical_levels_and_quantiles() -> None:
    periods, levels = empirical_return_levels(torch.tensor([3.0, 1.0, 2.0]))
    assert periods.tolist() == pytest.approx([4 / 3, 2, 4])
    assert levels.tolist() == [1.0, 2.0, 3.0]
    values = torch.from_numpy(np.random.default_rng(1).normal(size=5_001))
    probabilities = torch.tensor([0.1, 0.5, 0.999])
    pair = quantile_quantile(2 * values + 1, values, probabilities)
    torch.testing.assert_close(pair[:, 0], 2 * pair[:, 1] + 1)
    np.testing.assert_allclose(
        pair[:, 1].numpy(), np.quantile(values.numpy(), probabilities.double().numpy()), rtol=1e-9
    )
