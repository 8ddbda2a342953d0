"""CRPS against scoringrules, brute force, and closed forms."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyngen.metrics.averages import present, weighted_mean, weighted_sums
from dyngen.metrics.crps import EnsembleCRPS, crps_ensemble


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(ensemble: torch.Tensor, observation: torch.Tensor, fair: bool) -> torch.Tensor:
    """From the definition, members last."""
    size = ensemble.shape[-1]
    error = (ensemble - observation[..., None]).abs().mean(-1)
    pairs = (ensemble[..., None] - ensemble[..., None, :]).abs().sum((-1, -2))
    return error - pairs / (2 * size * (size - 1 if fair else size))


@pytest.mark.parametrize(("estimator", "theirs"), [("fair", "fair"), ("biased", "nrg")])
@pytest.mark.parametrize("members", [2, 3, 16, 51])
def test_it_equals_scoringrules_and_the_definition(
    estimator: str, theirs: str, members: int
) -> None:
    ensemble, observation = draw(5, 4, members), draw(5, 4, seed=1)
    ours = crps_ensemble(ensemble, observation, member_dim=-1, estimator=estimator)  # type: ignore[arg-type]
    peer = scoringrules.crps_ensemble(observation.numpy(), ensemble.numpy(), estimator=theirs)
    np.testing.assert_allclose(ours.numpy(), peer, rtol=1e-12, atol=1e-13)
    exact = brute_force(ensemble, observation, estimator == "fair")
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("member_dim", [0, 1, 2, -1, -2])
def test_the_member_dimension_is_the_one_named(member_dim: int) -> None:
    ensemble, observation = draw(3, 4, 7), draw(3, 4, seed=1)
    moved = ensemble.movedim(-1, member_dim)
    torch.testing.assert_close(
        crps_ensemble(moved, observation, member_dim=member_dim),
        crps_ensemble(ensemble, observation, member_dim=-1),
    )


def test_a_gaussian_ensemble_scores_what_a_gaussian_does() -> None:
    """Fair at any size; the biased form is too large by E|x - x'| / (2 M) = 1 / (M sqrt(pi))."""
    members, points = 4, 200_000
    ensemble, observation = draw(members, points), 0.7 * torch.ones(points, dtype=torch.float64)
    closed = float(scoringrules.crps_normal(0.7, 0.0, 1.0))
    fair = crps_ensemble(ensemble, observation, member_dim=0)
    biased = crps_ensemble(ensemble, observation, member_dim=0, estimator="biased")
    error = float(fair.std()) / math.sqrt(points)
    assert abs(float(fair.mean()) - closed) < 4 * error
    excess = 1 / (members * math.sqrt(math.pi))
    assert abs(float(biased.mean()) - closed - excess) < 4 * error
    assert excess > 40 * error  # or the two forms could not be told apart


def test_one_member_scores_its_absolute_error() -> None:
    ensemble, observation = draw(1, 9), draw(9, seed=1)
    for estimator in ("fair", "biased"):
        score = crps_ensemble(ensemble, observation, member_dim=0, estimator=estimator)  # type: ignore[arg-type]
        torch.testing.assert_close(score, (ensemble[0] - observation).abs())


def test_a_large_offset_in_float32_costs_no_digits() -> None:
    quarter = 1 / 1024  # exact at 1e5 in float32
    ensemble = (draw(20, 50) / quarter).round() * quarter
    observation = (draw(50, seed=1) / quarter).round() * quarter
    shifted = crps_ensemble((ensemble + 4096).float(), (observation + 4096).float(), member_dim=0)
    torch.testing.assert_close(
        shifted, crps_ensemble(ensemble, observation, member_dim=0), rtol=1e-5, atol=1e-6
    )


def test_missing_members_are_left_out_only_when_asked() -> None:
    ensemble, observation = draw(6, 8), draw(8, seed=1)
    ensemble[1, :3] = math.nan
    ensemble[4, 2] = math.nan
    ensemble[:, 5] = math.nan
    ensemble[1:, 6] = math.nan
    observation[7] = math.nan
    told = crps_ensemble(ensemble, observation, member_dim=0)
    assert told.isnan().tolist() == [True] * 3 + [False] * 2 + [True] * 3
    for estimator in ("fair", "biased"):
        left = crps_ensemble(
            ensemble,
            observation,
            member_dim=0,
            estimator=estimator,
            missing="omit",  # type: ignore[arg-type]
        )
        for point in range(5):
            there = ensemble[:, point][~ensemble[:, point].isnan()]
            expected = brute_force(there, observation[point], estimator == "fair")
            assert math.isclose(left[point], expected, rel_tol=1e-12)
        assert left[5].isnan()
        assert math.isclose(left[6], abs(float(ensemble[0, 6] - observation[6])), rel_tol=1e-12)
        assert left[7].isnan()


@settings(max_examples=30, deadline=None)
@given(
    members=st.integers(1, 9),
    scale=st.floats(-50, 50).filter(lambda a: abs(a) > 1e-3),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_invariances(members: int, scale: float, shift: float, seed: int) -> None:
    """Order of the members does not matter; a change of units scales the score."""
    ensemble, observation = draw(members, 6, seed=seed), draw(6, seed=seed + 1)
    score = crps_ensemble(ensemble, observation, member_dim=0)
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(crps_ensemble(ensemble[order], observation, member_dim=0), score)
    changed = crps_ensemble(scale * ensemble + shift, scale * observation + shift, member_dim=0)
    torch.testing.assert_close(changed, abs(scale) * score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "observation", "dim"), [((3, 4), (4, 1), 0), ((3, 4), (3,), 0), ((0, 4), (4,), 0)]
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], observation: tuple[int, ...], dim: int
) -> None:
    with pytest.raises(ValueError, match="does not fit an observation"):
        crps_ensemble(torch.zeros(shape), torch.zeros(observation), member_dim=dim)


def test_the_streaming_form_gives_the_weighted_mean_however_it_is_split() -> None:
    ensemble, observation = draw(10, 5, 3, 4, 6), draw(10, 3, 4, 6, seed=1)
    observation[2, 1, 0, 3] = math.nan
    area = torch.rand(4, 1, dtype=torch.float64) + 0.1
    whole, parts = EnsembleCRPS(leads=3), EnsembleCRPS(leads=3)
    whole.update(ensemble, observation, area)
    for part in (slice(0, 1), slice(1, 7), slice(7, 10)):
        parts.update(ensemble[part], observation[part], area)
    torch.testing.assert_close(parts.compute(), whole.compute())
    score = crps_ensemble(ensemble, observation, member_dim=1)
    for lead in range(3):
        weights = area.expand(10, 4, 6)[~score[:, lead].isnan()]
        values = score[:, lead][~score[:, lead].isnan()]
        expected = np.average(values.numpy(), weights=weights.numpy())
        assert math.isclose(whole.compute()[lead], expected, rel_tol=1e-12)


def test_a_missing_forecast_of_something_observed_is_not_skipped() -> None:
    ensemble, observation = draw(2, 5, 3, 4), draw(2, 3, 4, seed=1)
    ensemble[0, 1, 2, 0] = math.nan
    metric = EnsembleCRPS(leads=3)
    metric.update(ensemble, observation)
    assert metric.compute().isnan().tolist() == [False, False, True]


def test_averages_count_by_weight_and_refuse_bad_weights() -> None:
    values = torch.tensor([1.0, 3.0, math.nan])
    assert float(weighted_mean(values, torch.tensor([3.0, 1.0, 0.0]))) == 1.5
    assert bool(weighted_mean(values).isnan())
    assert float(weighted_mean(values, present(values))) == 2.0
    total, weight = weighted_sums(torch.ones(2, 3), torch.tensor([1.0, 2.0, 3.0]), dim=1)
    assert total.tolist() == weight.tolist() == [6.0, 6.0]
    with pytest.raises(ValueError, match="do not fit"):
        weighted_mean(values, torch.ones(2))
    with pytest.raises(ValueError, match="negative"):
        weighted_mean(values, torch.tensor([1.0, -1.0, 1.0]))
