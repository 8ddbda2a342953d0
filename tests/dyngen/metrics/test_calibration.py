"""Calibration of ensembles whose calibration is known."""

import math

import pytest
import torch
from scipy import stats

from dyngen.metrics.calibration import (
    distance_from_flat,
    flatness_p_value,
    rank_histogram,
    reduced_chi_square,
    spread_skill,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("members", [2, 5, 20])
def test_an_ensemble_from_the_law_of_the_observation_has_ratio_one(members: int) -> None:
    ensemble, observation = draw(50_000, members), draw(50_000, seed=1)
    result = spread_skill(ensemble, observation, member_dim=1)
    assert abs(float(result.ratio) - 1) < 0.015
    assert abs(float(result.spread) - 1) < 0.015
    assert abs(float(result.skill) - math.sqrt(1 + 1 / members)) < 0.015


def test_it_equals_the_definition_with_weights_and_missing_observations() -> None:
    ensemble, observation = draw(3, 6, 4, 5), draw(3, 4, 5, seed=1)
    observation[1, 2, 3] = math.nan
    area = torch.rand(4, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    result = spread_skill(ensemble, observation, member_dim=1, weights=area, dim=(1, 2))
    for i in range(3):
        there = ~observation[i].isnan()
        w = area.expand(4, 5)[there]
        variance = (w * ensemble[i].var(0)[there]).sum() / w.sum()
        error = (w * (ensemble[i].mean(0) - observation[i])[there] ** 2).sum() / w.sum()
        torch.testing.assert_close(result.spread[i], variance.sqrt())
        torch.testing.assert_close(result.skill[i], error.sqrt())
        torch.testing.assert_close(result.ratio[i], (7 / 6 * variance / error).sqrt())


def test_a_single_member_has_no_spread() -> None:
    result = spread_skill(draw(1, 5), draw(5, seed=1), member_dim=0)
    assert bool(result.ratio.isnan())
    assert float(result.skill) > 0


def test_ranks_equal_those_counted_one_by_one() -> None:
    ensemble, observation = draw(5, 3, 40), draw(3, 40, seed=1)
    observation[2, 7] = math.nan
    ensemble[3, 1, 4] = math.nan
    counts = rank_histogram(ensemble, observation, member_dim=0, dim=1)
    expected = torch.zeros(3, 6, dtype=torch.int64)
    for i in range(3):
        for j in range(40):
            if not observation[i, j].isnan() and not ensemble[:, i, j].isnan().any():
                expected[i, int((ensemble[:, i, j] < observation[i, j]).sum())] += 1
    assert counts.tolist() == expected.tolist()
    total = rank_histogram(ensemble, observation, member_dim=0)
    assert total.tolist() == expected.sum(0).tolist()


def test_ties_are_broken_evenly_and_repeatably() -> None:
    def ranks(seed: int) -> torch.Tensor:
        ensemble, observation = torch.zeros(4, 50_000), torch.zeros(50_000)
        ensemble[0] = -1.0
        generator = torch.Generator().manual_seed(seed)
        return rank_histogram(ensemble, observation, member_dim=0, generator=generator)

    counts = ranks(0)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    assert counts.tolist() == ranks(0).tolist()
    assert counts.tolist() != ranks(1).tolist()


def test_flatness_is_scipys_and_tells_a_flat_histogram_from_a_narrow_ensemble() -> None:
    observation = draw(20_000, seed=1)
    flat = rank_histogram(draw(9, 20_000), observation, member_dim=0)
    narrow = rank_histogram(0.5 * draw(9, 20_000), observation, member_dim=0)
    for counts in (flat, narrow):
        theirs = stats.chisquare(counts.numpy()).statistic / 9
        assert math.isclose(reduced_chi_square(counts), theirs, rel_tol=1e-12)
        distance = stats.entropy(counts.numpy(), [1] * 10)
        assert math.isclose(distance_from_flat(counts), distance, rel_tol=1e-9, abs_tol=1e-12)
    assert reduced_chi_square(flat) < 3 < 100 < reduced_chi_square(narrow)
    one_rank = torch.tensor([0, 0, 8, 0])
    assert math.isclose(distance_from_flat(one_rank), math.log(4), rel_tol=1e-12)


@pytest.mark.parametrize("common", [0.0, 0.95])
def test_p_values_of_a_calibrated_ensemble_are_uniform_however_points_hang_together(
    common: float,
) -> None:
    """Not so the table of chi-square, which takes points for independent."""
    generator = torch.Generator().manual_seed(0)
    found, table = [], []
    for trial in range(200):
        shared = draw(24, 6, 1, seed=2 * trial)
        own = draw(24, 6, 40, seed=2 * trial + 1)
        everyone = math.sqrt(common) * shared + math.sqrt(1 - common) * own
        counts = rank_histogram(everyone[:, 1:], everyone[:, 0], member_dim=1, dim=(1,))
        found.append(float(flatness_p_value(counts, draws=200, generator=generator)))
        table.append(stats.chisquare(counts.sum(0).numpy()).pvalue)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert (stats.kstest(table, "uniform").pvalue < 1e-6) == (common > 0)


def test_p_values_of_a_narrow_ensemble_are_small() -> None:
    ensemble, observation = 0.4 * draw(20, 7, 30), draw(20, 30, seed=1)
    counts = rank_histogram(ensemble, observation, member_dim=1, dim=(1,))
    assert float(flatness_p_value(counts, draws=999)) == 1 / 1000
    assert bool(flatness_p_value(torch.zeros(3, 5)).isnan())
    assert bool(flatness_p_value(counts[:1]).isnan())
    # Two samples that depart alike: one in two draws of signs leaves them so.
    same = torch.tensor([[9, 1, 2], [9, 1, 2]])
    assert math.isclose(flatness_p_value(same, draws=5000), 0.5, abs_tol=0.04)
