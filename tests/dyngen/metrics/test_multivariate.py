"""Energy and variogram scores against scoringrules and by what they must see."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyngen.metrics.crps import crps_ensemble
from dyngen.metrics.multivariate import energy_score, lagged_variogram_score, variogram_score


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("estimator", "theirs"), [("fair", "fair"), ("biased", "nrg")])
def test_the_energy_score_is_scoringrules(estimator: str, theirs: str) -> None:
    ensemble, observation = draw(4, 7, 2, 3), draw(4, 2, 3, seed=1)
    found = energy_score(
        ensemble,
        observation,
        member_dim=1,
        vector_dims=(1, 2),
        estimator=estimator,  # type: ignore[arg-type]
    )
    peer = scoringrules.es_ensemble(
        observation.flatten(1).numpy(), ensemble.flatten(2).numpy(), estimator=theirs
    )
    np.testing.assert_allclose(found.numpy(), peer, rtol=1e-12)


def test_of_one_point_it_is_the_crps_and_of_one_member_the_error() -> None:
    ensemble, observation = draw(6, 5, 1), draw(5, 1, seed=1)
    crps = crps_ensemble(ensemble, observation, member_dim=0)[:, 0]
    found = energy_score(ensemble, observation, member_dim=0, vector_dims=(-1,))
    torch.testing.assert_close(found, crps)
    one = energy_score(draw(1, 5, 4), draw(5, 4, seed=1), member_dim=0, vector_dims=(-1,))
    error = torch.linalg.vector_norm(draw(1, 5, 4)[0] - draw(5, 4, seed=1), dim=-1)
    torch.testing.assert_close(one, error)


def test_weights_and_missing_observations() -> None:
    ensemble, observation = draw(5, 3, 6), draw(3, 6, seed=1)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scaled = energy_score(
        ensemble * weights.sqrt(), observation * weights.sqrt(), member_dim=0, vector_dims=(1,)
    )
    found = energy_score(ensemble, observation, member_dim=0, vector_dims=(1,), weights=weights)
    torch.testing.assert_close(found, scaled)
    gap = observation.clone()
    gap[1, 4] = math.nan
    found = energy_score(ensemble, gap, member_dim=0, vector_dims=(1,))
    kept = [0, 1, 2, 3, 5]
    rest = energy_score(
        ensemble[:, 1:2, kept], observation[1:2, kept], member_dim=0, vector_dims=(1,)
    )
    torch.testing.assert_close(found[1:2], rest)
    ensemble[2, 0, 0] = math.nan
    told = energy_score(ensemble, gap, member_dim=0, vector_dims=(1,))
    assert told.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_the_variogram_score_is_scoringrules(order: float) -> None:
    ensemble, observation = draw(4, 7, 5), draw(4, 5, seed=1)
    found = variogram_score(ensemble, observation, member_dim=1, vector_dims=(1,), order=order)
    peer = scoringrules.vs_ensemble(observation.numpy(), ensemble.numpy(), p=order)
    np.testing.assert_allclose(found.numpy(), peer, rtol=1e-10)
    pairs = torch.rand(5, 5, dtype=torch.float64)
    found = variogram_score(
        ensemble, observation, member_dim=1, vector_dims=(1,), order=order, pair_weights=pairs
    )
    peer = scoringrules.vs_ensemble(
        observation.numpy(), ensemble.numpy(), w=pairs.expand(4, 5, 5).numpy(), p=order
    )
    np.testing.assert_allclose(found.numpy(), peer, rtol=1e-10)


def test_lagged_pairs_are_those_of_the_whole_score() -> None:
    """With weights that are one for pairs of the offset, by brute force."""
    ensemble, observation = draw(6, 4, 5), draw(4, 5, seed=1)
    rows, columns = np.divmod(np.arange(20), 5)
    for offset, wraps in (((0, 1), True), ((1, 2), True), ((2, -1), False), ((-1, 0), False)):
        pairs = torch.zeros(20, 20, dtype=torch.float64)
        for i in range(20):
            y, x = rows[i] + offset[0], columns[i] + offset[1]
            if wraps or (0 <= y < 4 and 0 <= x < 5):
                pairs[i, (y % 4) * 5 + x % 5] = 1
        whole = variogram_score(
            ensemble, observation, member_dim=0, vector_dims=(0, 1), pair_weights=pairs
        )
        found = lagged_variogram_score(
            ensemble, observation, [offset], member_dim=0, periodic=(wraps, wraps)
        )
        assert math.isclose(found[0], whole / pairs.sum(), rel_tol=1e-12)
    with pytest.raises(ValueError, match=r"no two points .* \(0, 5\) apart"):
        lagged_variogram_score(
            ensemble, observation, [(0, 5)], member_dim=0, periodic=(False, False)
        )


def test_missing_observations_and_area_in_lagged_pairs() -> None:
    ensemble, observation = draw(6, 3, 4, 5), draw(3, 4, 5, seed=1)
    area = torch.rand(4, 1, dtype=torch.float64) + 0.1
    gap = observation.clone()
    gap[1, 2, 3] = math.nan
    found = lagged_variogram_score(ensemble, gap, [(1, 0)], member_dim=0, weights=area)[1, 0]
    truth = (gap[1].roll(-1, 0) - gap[1]).abs().sqrt()
    expected = (ensemble[:, 1].roll(-1, 1) - ensemble[:, 1]).abs().sqrt().mean(0)
    there = ~truth.isnan()
    weight = (area * area.roll(-1, 0)).expand(4, 5)[there]
    squares = (truth - expected).square()[there]
    assert math.isclose(found, (weight * squares).sum() / weight.sum(), rel_tol=1e-12)


def test_every_third_pair_is_a_third_of_the_pairs() -> None:
    ensemble, observation = draw(6, 2, 7, 9), draw(2, 7, 9, seed=1)
    area = torch.rand(7, 9, dtype=torch.float64)
    found = lagged_variogram_score(
        ensemble, observation, [(1, 2)], member_dim=0, weights=area, stride=(2, 3)
    )[:, 0]
    for i in range(2):
        total, weight = 0.0, 0.0
        for y in range(0, 7, 2):
            for x in range(0, 9, 3):
                there = ((y + 1) % 7, (x + 2) % 9)
                w = float(area[y, x] * area[there])
                truth = abs(observation[i, y, x] - observation[(i, *there)]) ** 0.5
                members = (ensemble[:, i, y, x] - ensemble[(slice(None), i, *there)]).abs() ** 0.5
                total += w * float(truth - members.mean()) ** 2
                weight += w
        assert math.isclose(found[i], total / weight, rel_tol=1e-12)


def test_members_that_are_alike_lose_no_digits() -> None:
    common = 1e4 + draw(3, 50)
    ensemble = common + 1e-3 * draw(5, 3, 50, seed=1)
    found = energy_score(ensemble, common, member_dim=0, vector_dims=(1,))
    peer = scoringrules.es_ensemble(
        common.numpy(), ensemble.movedim(0, 1).numpy(), estimator="fair"
    )
    np.testing.assert_allclose(found.numpy(), peer, rtol=1e-6)
    same = energy_score(common.expand(4, 3, 50), common, member_dim=0, vector_dims=(1,))
    assert same.tolist() == [0, 0, 0]


def test_both_prefer_members_that_hang_together_as_the_truth_does() -> None:
    """Same law at every point, but one ensemble has no correlation between neighbours."""
    points = 3_000
    common = 0.9

    def law(seed: int, *shape: int) -> torch.Tensor:
        shared = draw(*shape, 1, seed=seed)
        own = draw(*shape, 4, seed=seed + 1)
        return math.sqrt(common) * shared + math.sqrt(1 - common) * own

    observation, right = law(0, points), law(2, 8, points)
    wrong = draw(8, points, 4, seed=4)
    scores = {
        name: [
            score(ensemble, observation, member_dim=0, vector_dims=(1,)).mean()
            for ensemble in (right, wrong)
        ]
        for name, score in (("energy", energy_score), ("variogram", variogram_score))
    }
    crps = [crps_ensemble(e, observation, member_dim=0).mean() for e in (right, wrong)]
    assert math.isclose(crps[0], crps[1], rel_tol=0.05)  # each point alone cannot tell
    assert scores["energy"][1] > 1.02 * scores["energy"][0]
    assert scores["variogram"][1] > 1.5 * scores["variogram"][0]


@settings(max_examples=25, deadline=None)
@given(
    members=st.integers(1, 6),
    scale=st.floats(-20, 20).filter(lambda a: abs(a) > 1e-2),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_invariances(members: int, scale: float, shift: float, seed: int) -> None:
    """Order of members and of points does not matter; units scale; batches are independent."""
    ensemble, observation = draw(members, 4, 5, seed=seed), draw(4, 5, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    order, places = torch.randperm(members, generator=generator), torch.randperm(5)
    for score, power in ((energy_score, 1.0), (variogram_score, 1.0)):
        plain = score(ensemble, observation, member_dim=0, vector_dims=(1,))
        changed = score(
            scale * ensemble[order][..., places] + shift,
            scale * observation[..., places] + shift,
            member_dim=0,
            vector_dims=(1,),
        )
        torch.testing.assert_close(changed, abs(scale) ** power * plain, rtol=1e-6, atol=1e-9)
        first = score(ensemble[:, :1], observation[:1], member_dim=0, vector_dims=(1,))
        torch.testing.assert_close(first, plain[:1])
