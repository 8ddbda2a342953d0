"""Scores of whole fields against scoringrules and brute force, with gaps and area weights."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from yardsticks import draw, with_gaps, yardstick

from dyngen.metrics.multivariate import lagged_variogram_score
from dyngen.metrics.scales import spread_skill_by_scale
from dyngen.report.field_sums import (
    bands_of,
    field_scores,
    field_sums,
    separations_of,
    time_separations_of,
)
from dyngen.report.forecast_sums import forecast_sums


def scores_of(ensemble: torch.Tensor, truth: torch.Tensor, **grid: object) -> dict:
    sums = forecast_sums(
        lambda b: ensemble[b],
        lambda b: truth[b, None],
        yardstick(*truth.shape[-2:], **grid),  # type: ignore[arg-type]
        blocks=[slice(0, 1), slice(1, len(truth))],
        measures=[field_sums],
    )
    found = field_scores(sums, torch.ones(1, len(truth), dtype=torch.float64))
    return {name: values[0].numpy() for name, (_, values) in found.items()}


def test_the_energy_score_is_scoringrules_of_weighted_vectors() -> None:
    ensemble, truth, area = with_gaps(3, 5, 2, 4, 6)
    found = scores_of(ensemble, truth, area=area)["energy_score"]
    for lead in range(2):
        each = []
        for i in range(3):
            there = ~truth[i, lead].isnan() & (area > 0)
            root = (area[there] / area[there].sum()).sqrt()
            each.append(
                scoringrules.es_ensemble(
                    (truth[i, lead][there] * root).numpy(),
                    (ensemble[i, :, lead][:, there] * root).numpy(),
                    estimator="fair",
                )
            )
        assert math.isclose(found[lead], np.mean(each), rel_tol=1e-10)


def test_a_field_without_any_truth_does_not_count() -> None:
    ensemble, truth = draw(3, 4, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    gone = truth.clone()
    gone[1, 0] = math.nan
    found, rest = scores_of(ensemble, gone), scores_of(ensemble[[0, 2]], truth[[0, 2]])
    for name in ("energy_score", "variogram_score", "spread_skill_by_scale"):
        np.testing.assert_allclose(found[name][0], rest[name][0])


def test_variograms_in_space_and_time_by_brute_force() -> None:
    ensemble, truth, area = with_gaps(2, 3, 3, 4, 5)
    found = scores_of(ensemble, truth, area=area, periodic=(False, True))
    by_separation = np.zeros((3, 2, 2))  # lead, separation, sum and count
    pairs = lambda a, b: (a - b).abs().sqrt()  # noqa: E731
    for i in range(2):
        for lead in range(3):
            for s, separation in enumerate((1, 2)):
                for dy, dx in ((0, separation), (separation, 0)):
                    total, weight = 0.0, 0.0
                    for y in range(4 - dy):
                        for x in range(5):
                            one, other = (y, x), (y + dy, (x + dx) % 5)
                            w = float(area[one] * area[other])
                            seen = pairs(truth[(i, lead, *one)], truth[(i, lead, *other)])
                            if w == 0 or bool(seen.isnan()):
                                continue
                            members = pairs(
                                ensemble[(i, slice(None), lead, *one)],
                                ensemble[(i, slice(None), lead, *other)],
                            )
                            total += w * float(seen - members.mean()) ** 2
                            weight += w
                    if weight:
                        by_separation[lead, s] += total / weight, 1
    expected = by_separation[..., 0] / by_separation[..., 1]
    np.testing.assert_allclose(found["variogram_score_by_separation"], expected)
    np.testing.assert_allclose(found["variogram_score"], expected.mean(1))
    for s, separation in enumerate((1, 2)):
        each = []
        for i in range(2):
            seen = pairs(truth[i, separation:], truth[i, :-separation])
            members = pairs(ensemble[i, :, separation:], ensemble[i, :, :-separation]).mean(0)
            there = ~seen.isnan() & (area > 0)
            squares = (seen - members).square()[there]
            each.append(np.average(squares, weights=area.expand(seen.shape)[there]))
        assert math.isclose(found["time_variogram_score"][s], np.mean(each), rel_tol=1e-10)


def test_scales_are_those_of_the_whole_when_nothing_is_missing() -> None:
    ensemble, truth = draw(3, 4, 2, 8, 8), draw(3, 2, 8, 8, seed=1)
    found = scores_of(ensemble, truth)["spread_skill_by_scale"]
    whole = spread_skill_by_scale(ensemble[:, :, 1], truth[:, 1], member_dim=1)
    for band, (low, high) in enumerate(bands_of(yardstick(8, 8))):
        spread, skill = (
            part[low : high + 1].square().sum() for part in (whole.spread, whole.skill)
        )
        assert math.isclose(found[1, band], math.sqrt(5 / 4 * spread / skill), rel_tol=1e-10)


def test_one_member_has_errors_and_no_spread() -> None:
    found = scores_of(draw(2, 1, 2, 4, 4), draw(2, 2, 4, 4, seed=1))
    assert np.isnan(found["spread_skill_by_scale"]).all()
    assert (found["energy_score"] > 0).all()


def test_large_fields_are_looked_at_at_a_spread_of_points() -> None:
    assert yardstick(32, 32).stride == (1, 1)
    assert yardstick(96, 48).stride == (3, 3)
    assert yardstick(1, 5000).stride == (1, 5)
    ensemble, truth = draw(2, 3, 1, 40, 60), draw(2, 1, 40, 60, seed=1)
    found = scores_of(ensemble, truth)["variogram_score_by_separation"][0]
    for s, separation in enumerate((1, 2, 4, 8)):
        each = lagged_variogram_score(
            ensemble[:, :, 0], truth[:, 0], [(0, separation), (separation, 0)], member_dim=1,
            stride=(2, 2),
        )  # fmt: skip
        assert math.isclose(found[s], each.mean(), rel_tol=1e-10)


@pytest.mark.parametrize(
    ("complete", "bands"),
    [
        (1, [(1, 1)]),
        (4, [(1, 1), (2, 4)]),
        (16, [(1, 1), (2, 3), (4, 7), (8, 16)]),
        (24, [(1, 1), (2, 3), (4, 7), (8, 15), (16, 24)]),
    ],
)
def test_bands_are_octaves_and_none_is_a_remnant(
    complete: int, bands: list[tuple[int, int]]
) -> None:
    assert bands_of(yardstick(2 * complete, 2 * complete)) == bands


def test_only_pairs_that_there_are() -> None:
    assert separations_of(yardstick(6, 30)) == (1, 2)
    assert separations_of(yardstick(6, 30, periodic=(False, True))) == (1, 2, 4)
    assert time_separations_of(1) == ()
    assert time_separations_of(6) == (1, 2, 5)
    single = scores_of(draw(2, 3, 1, 4, 4), draw(2, 1, 4, 4, seed=1))
    assert single["time_variogram_score"].shape == (0,)
