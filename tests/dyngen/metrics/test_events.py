"""Scores of exceeding a threshold against scoringrules, the definitions and closed forms."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dyngen.metrics.crps import crps_ensemble
from dyngen.metrics.events import (
    EventScores,
    brier_score,
    event_counts,
    reliability_diagram,
    roc_curve,
    threshold_weighted_crps,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signal_and_noise(members: int, points: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A calibrated ensemble: the share of variance that can be foreseen, and the rest."""
    signal = math.sqrt(share) * draw(points)
    ensemble = signal + math.sqrt(1 - share) * draw(members, points, seed=1)
    return ensemble, signal + math.sqrt(1 - share) * draw(points, seed=2)


def test_counts_and_brier_equal_the_definition_and_scoringrules() -> None:
    ensemble, observation = draw(8, 3, 50), draw(3, 50, seed=1)
    observation[1, 4] = math.nan
    ensemble[2, 0, 7] = math.nan
    area = torch.rand(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    counts = event_counts(ensemble, observation, 0.4, member_dim=0, weights=area, dim=1)
    assert counts.shape == (3, 9, 2)
    found = brier_score(counts)
    for i in range(3):
        there = ~(observation[i].isnan() | ensemble[:, i].isnan().any(0))
        probability = (ensemble[:, i] > 0.4).double().mean(0)[there].numpy()
        event = (observation[i] > 0.4).double()[there].numpy()
        weight = area[there].numpy()
        peer = scoringrules.brier_score(event, probability)
        assert math.isclose(found.score[i], np.average(peer, weights=weight), rel_tol=1e-12)
        noise = probability * (1 - probability) / 7
        fair = np.average(peer - noise, weights=weight)
        assert math.isclose(found.fair[i], fair, rel_tol=1e-12)
        rate = np.average(event, weights=weight)
        assert math.isclose(found.uncertainty[i], rate * (1 - rate), rel_tol=1e-12)


def test_the_fair_score_of_a_small_ensemble_is_that_of_the_law() -> None:
    """P(x > t) of N(0, 1) against its own draws: p (1 - p), whatever M; the plain one has more."""
    p = stats.norm.sf(0.8)
    ensemble, observation = draw(3, 200_000), draw(200_000, seed=1)
    found = brier_score(event_counts(ensemble, observation, 0.8, member_dim=0))
    assert math.isclose(found.fair, p * (1 - p), rel_tol=0.02)
    assert math.isclose(found.score, p * (1 - p) * (1 + 1 / 3), rel_tol=0.02)


def test_a_calibrated_ensemble_is_reliable_and_a_narrow_one_is_not() -> None:
    ensemble, observation = signal_and_noise(20, 100_000, 0.7)
    found = brier_score(event_counts(ensemble, observation, 0.5, member_dim=0))
    mean = ensemble.mean(0)
    narrow = mean + 0.3 * (ensemble - mean)
    sharp = brier_score(event_counts(narrow, observation, 0.5, member_dim=0))
    assert float(found.reliability) < 0.1 * float(sharp.reliability)
    assert float(found.resolution) > 0.05
    assert float(found.skill) > float(sharp.skill) > 0
    diagram = reliability_diagram(event_counts(ensemble, observation, 0.5, member_dim=0))
    assert math.isclose(diagram.share.sum(), 1)
    # With 20 members the extremes of probability are a little less extreme in truth.
    torch.testing.assert_close(diagram.frequency, diagram.probability, rtol=0, atol=0.06)


def test_the_area_under_the_roc_is_the_chance_of_the_right_order() -> None:
    """Two Gaussians a unit apart: Phi(1 / sqrt 2); and the Mann-Whitney count of pairs."""
    event = (torch.arange(100_000) % 2).double()
    forecast = draw(100_000) + event
    levels = torch.linspace(-4, 5, 400).double()
    ensemble = (forecast > levels[:, None]).double()  # the number above says how large it is
    roc = roc_curve(event_counts(ensemble, event, 0.5, member_dim=0))
    assert math.isclose(roc.area, stats.norm.cdf(1 / math.sqrt(2)), rel_tol=0.01)
    assert roc.hit_rate[[0, -1]].tolist() == roc.false_alarm_rate[[0, -1]].tolist() == [0, 1]
    few, truth = draw(6, 60), draw(60, seed=4)
    above, came = (few > 0).sum(0), truth > 0
    pairs = [(a > b).item() + 0.5 * (a == b).item() for a in above[came] for b in above[~came]]
    area = roc_curve(event_counts(few, truth, 0.0, member_dim=0)).area
    assert math.isclose(area, sum(pairs) / len(pairs), rel_tol=1e-12)


def test_threshold_weighted_crps_is_scoringrules_and_the_integral_of_brier_scores() -> None:
    ensemble, observation = draw(30, 9), draw(30, seed=1)
    for estimator, theirs in (("fair", "fair"), ("biased", "nrg")):
        found = threshold_weighted_crps(
            ensemble,
            observation,
            0.3,
            member_dim=1,
            estimator=estimator,  # type: ignore[arg-type]
        )
        peer = scoringrules.twcrps_ensemble(
            observation.numpy(), ensemble.numpy(), a=0.3, estimator=theirs
        )
        np.testing.assert_allclose(found.numpy(), peer, rtol=1e-9, atol=1e-12)
    levels = torch.arange(0.3, 6, 0.002).double() + 0.001
    probability = (ensemble[..., None] > levels).double().mean(1)
    brier = (probability - (observation[:, None] > levels).double()).square()
    expected = brier.sum(-1) * 0.002
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    low = threshold_weighted_crps(ensemble, observation, -1e6, member_dim=-1)
    torch.testing.assert_close(low, crps_ensemble(ensemble, observation, member_dim=-1))


def test_a_threshold_may_differ_from_point_to_point() -> None:
    ensemble, observation = draw(5, 4, 6), draw(4, 6, seed=1)
    local = torch.linspace(-1, 1, 6).double()
    whole = event_counts(ensemble, observation, local, member_dim=0)
    parts = sum(
        event_counts(ensemble[..., i], observation[:, i], float(local[i]), member_dim=0)
        for i in range(6)
    )
    torch.testing.assert_close(whole, parts)
    scores = threshold_weighted_crps(ensemble, observation, local, member_dim=0)
    for i in range(6):
        one = threshold_weighted_crps(
            ensemble[..., i], observation[:, i], float(local[i]), member_dim=0
        )
        torch.testing.assert_close(scores[:, i], one)


@settings(max_examples=25, deadline=None)
@given(
    members=st.integers(1, 7),
    scale=st.floats(0.1, 50),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_invariances(members: int, scale: float, shift: float, seed: int) -> None:
    """Order of members does not matter, nor do units, nor how points come in batches."""
    ensemble, observation = draw(members, 30, seed=seed), draw(30, seed=seed + 1)
    counts = event_counts(ensemble, observation, 0.25, member_dim=0)
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    again = event_counts(
        scale * ensemble[order] + shift,
        scale * observation + shift,
        scale * 0.25 + shift,
        member_dim=0,
    )
    torch.testing.assert_close(again, counts)
    parts = event_counts(ensemble[:, :11], observation[:11], 0.25, member_dim=0)
    parts = parts + event_counts(ensemble[:, 11:], observation[11:], 0.25, member_dim=0)
    torch.testing.assert_close(parts, counts)
    torch.testing.assert_close(
        threshold_weighted_crps(
            scale * ensemble[order] + shift,
            scale * observation + shift,
            scale * 0.25 + shift,
            member_dim=0,
        ),
        scale * threshold_weighted_crps(ensemble, observation, 0.25, member_dim=0),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_streaming_table_is_that_of_all_batches() -> None:
    ensemble, observation = draw(10, 4, 3, 6, 5), draw(10, 3, 6, 5, seed=1)
    area = torch.rand(6, 1, dtype=torch.float64)
    metric = EventScores(4, [0.0, 1.0], leads=3)
    for part in (slice(0, 3), slice(3, 10)):
        metric.update(ensemble[part], observation[part], area)
    found = metric.compute()
    assert found.shape == (2, 3, 5, 2)
    for i, threshold in enumerate((0.0, 1.0)):
        expected = event_counts(
            ensemble, observation, threshold, member_dim=1, weights=area, dim=(0, 2, 3)
        )
        torch.testing.assert_close(found[i], expected)
    assert brier_score(found).score.shape == (2, 3)
    with pytest.raises(ValueError, match="4 members and 3 leads"):
        metric.update(ensemble[:, :3], observation)


def test_neighbouring_probabilities_are_taken_together() -> None:
    ensemble, observation = signal_and_noise(20, 3000, 0.6)
    counts = event_counts(ensemble, observation, 0.5, member_dim=0)
    found = reliability_diagram(counts, 5)
    above = (ensemble > 0.5).sum(0)
    for group in range(5):
        inside = (above * 5 // 21) == group
        came = (observation[inside] > 0.5).double().mean()
        assert math.isclose(found.frequency[group], came, rel_tol=1e-12)
        assert math.isclose(found.probability[group], above[inside].double().mean() / 20)
        assert math.isclose(found.share[group], inside.double().mean())
    for plain in (reliability_diagram(counts, 21), reliability_diagram(counts, 40)):
        torch.testing.assert_close(
            plain.frequency, reliability_diagram(counts).frequency, equal_nan=True
        )
