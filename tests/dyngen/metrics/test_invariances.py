"""What no score may depend on: the order of members, units, and how a sample is cut into batches.

Each score is one line of a table, with what an affine change of units `x -> a x + b` does to it:
the power of `a` that it grows by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dyngen.metrics.bias import mean_bias, quantiles, std_ratio
from dyngen.metrics.calibration import distance_from_flat, rank_histogram, spread_skill
from dyngen.metrics.crps import crps_ensemble
from dyngen.metrics.distributions import wasserstein
from dyngen.metrics.events import brier_score, event_counts, roc_curve, threshold_weighted_crps
from dyngen.metrics.multivariate import energy_score, lagged_variogram_score, variogram_score
from dyngen.metrics.scales import fractions_skill, spread_skill_by_scale
from dyngen.metrics.spectra import isotropic_spectrum, log_spectral_distance
from dyngen.metrics.temporal import autocorrelation
from dyngen.metrics.waves import wave_spectrum

Score = Callable[[Tensor, Tensor, Tensor], Tensor]  # ensemble (M, N, H, W), truth, threshold


@dataclass(frozen=True)
class Case:
    """A score, the power of the scale that it grows by, and whether it is a mean over cases."""

    score: Score
    power: float
    mean: bool = False


PROBABILITIES = torch.tensor([0.1, 0.5, 0.9])
CASES = {
    "crps": Case(lambda e, y, _: crps_ensemble(e, y, member_dim=0).mean((1, 2)), 1, True),
    "crps, biased": Case(
        lambda e, y, _: crps_ensemble(e, y, member_dim=0, estimator="biased").mean((1, 2)), 1, True
    ),
    "threshold-weighted crps": Case(
        lambda e, y, t: threshold_weighted_crps(e, y, t, member_dim=0).mean((1, 2)), 1, True
    ),
    "energy score": Case(
        lambda e, y, _: energy_score(e, y, member_dim=0, vector_dims=(1, 2)), 1, True
    ),
    "variogram score": Case(
        lambda e, y, _: variogram_score(e, y, member_dim=0, vector_dims=(1, 2)), 1, True
    ),
    "lagged variogram score": Case(
        lambda e, y, _: lagged_variogram_score(e, y, [(0, 1), (1, 0)], member_dim=0), 1, True
    ),
    "spread": Case(lambda e, y, _: spread_skill(e, y, member_dim=0).spread, 1),
    "skill": Case(lambda e, y, _: spread_skill(e, y, member_dim=0).skill, 1),
    "spread-skill ratio": Case(lambda e, y, _: spread_skill(e, y, member_dim=0).ratio, 0),
    "spread-skill ratio by scale": Case(
        lambda e, y, _: spread_skill_by_scale(e, y, member_dim=0).ratio[..., 1:], 0
    ),
    "rank histogram": Case(lambda e, y, _: rank_histogram(e, y, member_dim=0).double(), 0),
    "distance from flat": Case(
        lambda e, y, _: distance_from_flat(rank_histogram(e, y, member_dim=0)), 0
    ),
    "Brier score": Case(lambda e, y, t: brier_score(event_counts(e, y, t, member_dim=0)).score, 0),
    "ROC area": Case(lambda e, y, t: roc_curve(event_counts(e, y, t, member_dim=0)).area, 0),
    "fractions skill": Case(
        lambda e, y, t: fractions_skill(e, y, t, [1, 3], member_dim=0).score, 0
    ),
    "bias": Case(lambda e, y, _: mean_bias(e, y), 1),
    "std ratio": Case(lambda e, y, _: std_ratio(e, y), 0),
    "difference of quantiles": Case(
        lambda e, y, _: quantiles(e, PROBABILITIES) - quantiles(y, PROBABILITIES), 1
    ),
    "Wasserstein distance": Case(lambda e, y, _: wasserstein(e, y), 1),
    "autocorrelation": Case(lambda e, y, _: autocorrelation(e, [1, 2], time_dim=1), 0),
    "log-spectral distance": Case(
        lambda e, y, _: log_spectral_distance(
            _power(isotropic_spectrum(e)), _power(isotropic_spectrum(y))
        ),
        0,
    ),
    "wavenumber-frequency power": Case(
        lambda e, y, _: wave_spectrum(e.movedim(1, -2), segment=4).power.mean((0, 1))[..., 1:, :], 2
    ),
}


def _power(spectrum: Tensor) -> Tensor:
    """Mean power but of the mean."""
    return spectrum.flatten(0, -2).mean(0)[1:]


def sample(seed: int, members: int = 5, cases: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    signal = torch.randn(cases, 6, 6, generator=draw, dtype=torch.float64)
    noise = torch.randn(members + 1, cases, 6, 6, generator=draw, dtype=torch.float64)
    both = signal + 0.7 * noise
    return both[1:], both[0], torch.tensor(0.4, dtype=torch.float64)


seeds = st.integers(0, 2**16)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds, order=st.permutations(range(5)))
def test_members_have_no_order(name: str, seed: int, order: list[int]) -> None:
    ensemble, truth, threshold = sample(seed)
    score = CASES[name].score
    expected = score(ensemble, truth, threshold)
    torch.testing.assert_close(score(ensemble[order], truth, threshold), expected)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_units_change_a_score_by_their_power_alone(
    name: str, seed: int, scale: float, shift: float
) -> None:
    ensemble, truth, threshold = sample(seed)
    case = CASES[name]

    def changed(values: Tensor) -> Tensor:
        return scale * (values + shift)

    expected = case.score(ensemble, truth, threshold) * scale**case.power
    found = case.score(changed(ensemble), changed(truth), changed(threshold))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * scale**case.power)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.mean])
@settings(max_examples=5, deadline=None)
@given(seed=seeds, cut=st.integers(1, 7))
def test_a_mean_over_cases_is_that_of_its_batches(name: str, seed: int, cut: int) -> None:
    ensemble, truth, threshold = sample(seed)
    score = CASES[name].score
    whole = score(ensemble, truth, threshold)
    parts = [
        score(ensemble[:, part], truth[part], threshold) for part in (slice(cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert len(whole) == 8


@settings(max_examples=20, deadline=None)
@given(seed=seeds, cut=st.integers(1, 7))
def test_tables_and_histograms_add_up_over_batches(seed: int, cut: int) -> None:
    ensemble, truth, threshold = sample(seed)
    batches = [(ensemble[:, part], truth[part]) for part in (slice(cut), slice(cut, None))]
    ranks = sum(rank_histogram(e, y, member_dim=0) for e, y in batches)
    assert torch.equal(torch.as_tensor(ranks), rank_histogram(ensemble, truth, member_dim=0))
    counts = sum(event_counts(e, y, threshold, member_dim=0) for e, y in batches)
    torch.testing.assert_close(counts, event_counts(ensemble, truth, threshold, member_dim=0))
    errors = [fractions_skill(e, y, threshold, [3], member_dim=0) for e, y in batches]
    whole = fractions_skill(ensemble, truth, threshold, [3], member_dim=0)
    for field in ("error", "reference"):
        total = sum(getattr(part, field).sum() for part in errors)
        torch.testing.assert_close(total, getattr(whole, field).sum())
