"""Bias, quantiles and histogram distances against numpy, scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dyngen.metrics.bias import (
    bias_map,
    mean_bias,
    quantiles,
    standard_deviation,
    std_ratio,
    tail_bias,
)
from dyngen.metrics.distributions import (
    histogram,
    histogram_quantile,
    histogram_wasserstein,
    wasserstein,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bias_and_std_ratio_undo_a_change_of_units() -> None:
    reference = draw(50, 4, 5)
    values = 1.5 * reference + 0.25
    assert math.isclose(
        mean_bias(values, reference), 0.5 * float(reference.mean()) + 0.25, rel_tol=1e-12
    )
    assert math.isclose(std_ratio(values, reference), 1.5, rel_tol=1e-12)
    torch.testing.assert_close(bias_map(values, reference, dim=0), 0.5 * reference.mean(0) + 0.25)
    far = standard_deviation(reference + 1e6, dim=(0, 2))
    torch.testing.assert_close(far, reference.std((0, 2), correction=0), rtol=1e-8, atol=0)
    weights = torch.rand(4, 1, dtype=torch.float64)
    spread = standard_deviation(reference[0], weights=weights)
    w = weights.expand(4, 5).numpy()
    mean = np.average(reference[0].numpy(), weights=w)
    variance = np.average((reference[0].numpy() - mean) ** 2, weights=w)
    assert math.isclose(spread, math.sqrt(variance), rel_tol=1e-12)


def test_quantiles_are_numpys() -> None:
    values = draw(3, 333)
    probabilities = torch.tensor([0.0, 0.001, 0.05, 0.5, 0.77, 0.999, 1.0])
    theirs = np.quantile(values.numpy(), probabilities.double().numpy())
    np.testing.assert_allclose(quantiles(values, probabilities).numpy(), theirs, rtol=1e-12)
    values[0, 0] = math.nan
    theirs = np.nanquantile(values.numpy(), probabilities.double().numpy())
    np.testing.assert_allclose(quantiles(values, probabilities).numpy(), theirs, rtol=1e-12)
    torch.testing.assert_close(
        tail_bias(2 * draw(99), draw(99), probabilities), quantiles(draw(99), probabilities)
    )


def test_a_histogram_is_numpys_with_the_outside_in_the_outer_bins() -> None:
    values, weights = draw(200, 3), torch.rand(3, dtype=torch.float64)
    edges = torch.linspace(-1.5, 1.5, 14, dtype=torch.float64)
    counts = histogram(values, edges, weights)
    clipped = values.numpy().clip(-1.5, 1.5)
    w = weights.expand(200, 3).numpy()
    theirs, _ = np.histogram(clipped, bins=edges.numpy(), weights=w)
    np.testing.assert_allclose(counts.numpy(), theirs, rtol=1e-12)
    values[0, 0] = math.nan
    assert math.isclose(histogram(values, edges).sum(), 599)
    with pytest.raises(ValueError, match="ascending"):
        histogram(values, edges.flip(0))


def test_quantiles_of_a_fine_histogram_are_those_of_the_values() -> None:
    values = draw(100_000)
    edges = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    probabilities = torch.tensor([0.001, 0.05, 0.5, 0.95, 0.999])
    ours = histogram_quantile(histogram(values, edges), edges, probabilities)
    torch.testing.assert_close(ours, quantiles(values, probabilities), atol=0.01, rtol=0)
    assert histogram_quantile(torch.zeros(4), edges[:5], probabilities).isnan().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_wasserstein_is_scipys(first: int, second: int, seed: int) -> None:
    ours, theirs = draw(first, seed=seed), 2 * draw(second, seed=seed + 1) + 0.5
    expected = stats.wasserstein_distance(ours.numpy(), theirs.numpy())
    assert math.isclose(wasserstein(ours, theirs), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_wasserstein_of_histograms_has_known_values() -> None:
    edges = torch.linspace(0, 4, 5, dtype=torch.float64)
    move = histogram_wasserstein(torch.tensor([1, 0, 0, 0]), torch.tensor([0, 0, 0, 3]), edges)
    assert math.isclose(move, 3.0)
    # F - G changes sign inside the second bin: |1/4 ramp| + a triangle up and one down.
    crossing = histogram_wasserstein(torch.tensor([1, 0, 1]), torch.tensor([0, 2, 0]), edges[:4])
    assert math.isclose(crossing, 0.5 * 0.5 + 2 * (0.5 * 0.5 * 0.5) + 0.5 * 0.5)
    fine = torch.linspace(-8, 10, 8001, dtype=torch.float64)
    values, other = draw(20_000), draw(20_000, seed=1) * 1.3 + 1
    ours = histogram_wasserstein(histogram(values, fine), histogram(other, fine), fine)
    expected = stats.wasserstein_distance(values.numpy(), other.numpy())
    assert math.isclose(ours, expected, abs_tol=0.003)
