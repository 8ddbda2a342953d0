"""Fréchet and kernel distances against scipy, torchmetrics and closed forms."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from dyngen.metrics.frechet import (
    FrechetDistance,
    KernelDistance,
    Moments,
    covariance,
    frechet_distance,
    kernel_distance,
    kernel_distance_of_subsets,
    merge,
    moments,
    sampling_floor,
    score_name,
    trace_of_root,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(samples: int, features: int, seed: int) -> torch.Tensor:
    return draw(samples, features, seed=seed) @ draw(features, features, seed=seed + 100)


def exact(mean: torch.Tensor, matrix: torch.Tensor, count: float = 1e12) -> Moments:
    """Moments of so many samples that the covariance is the matrix."""
    return Moments(torch.tensor(count, dtype=torch.float64), mean, matrix * (count - 1))


class Flat(nn.Module):
    """The pixels as they are; `num_features` is for torchmetrics."""

    name = "flat"

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = self.num_features = dimension

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("features", [1, 3, 40])
def test_it_equals_scipys_square_root(features: int) -> None:
    one, two = correlated(300, features, 0), correlated(250, features, 1) + 0.3
    found = frechet_distance(moments(one), moments(two)).distance
    a, b = one.numpy(), two.numpy()
    ca, cb = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = np.real(linalg.sqrtm(ca @ cb))
    peer = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert math.isclose(found, peer, rel_tol=1e-9)


def test_it_equals_torchmetrics_with_the_same_features() -> None:
    real, fake = draw(120, 3, 2, 2), 1.3 * draw(90, 3, 2, 2, seed=1) + 0.2
    theirs = FrechetInceptionDistance(feature=Flat(12), input_img_size=(3, 2, 2))
    ours = FrechetDistance(Flat(12), kind="FID")
    for part in range(0, 120, 40):
        for metric in (theirs, ours):
            metric.update(real[part : part + 40], real=True)
            metric.update(fake[part : part + 30], real=False)
    assert math.isclose(ours.compute(), theirs.compute(), rel_tol=1e-9)
    assert ours.name == "FID_flat"


def test_gaussians_whose_distance_is_known() -> None:
    """Covariances that commute: sum (sqrt a - sqrt b)^2; and a two-by-two pair that does not."""
    a, b = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 9.0, 0.25])
    shift = torch.tensor([0.0, 2.0, 1.0]).double()
    rotation = torch.linalg.qr(draw(3, 3)).Q
    one = exact(torch.zeros(3).double(), rotation @ torch.diag(a.double()) @ rotation.T)
    two = exact(shift, rotation @ torch.diag(b.double()) @ rotation.T)
    found = frechet_distance(one, two)
    assert math.isclose(found.mean_part, 5.0)
    assert math.isclose(found.covariance_part, 1.0 + 4.0 + 0.25, rel_tol=1e-12)
    assert found.ranks == (2, 3)
    # tr sqrt(M) of a 2 x 2 matrix is sqrt(tr M + 2 sqrt(det M)).
    p = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    q = torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    product = p @ q
    trace = math.sqrt(float(product.trace() + 2 * torch.linalg.det(product).sqrt()))
    assert math.isclose(trace_of_root(p, q)[0], trace, rel_tol=1e-12)


def test_fewer_samples_than_features_are_handled_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A problem of 4 features, turned into 50: same distance, rank 4, and a warning."""
    one, two = correlated(30, 4, 0), correlated(30, 4, 1) + 1
    plane = torch.linalg.qr(draw(50, 4)).Q
    small = frechet_distance(moments(one), moments(two))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        large = frechet_distance(moments(one @ plane.T), moments(two @ plane.T), name="FVD_x")
    assert math.isclose(large.distance, small.distance, rel_tol=1e-9)
    assert large.ranks == (4, 4)
    message = caplog.records[0].getMessage()
    assert message.startswith("FVD_x: 30 samples are few for 50 features (ranks 4 and 4)")
    assert f"{float(large.floor):.3g}" in message
    constant = moments(torch.ones(5, 3))
    assert float(frechet_distance(constant, constant).distance) == 0
    same = moments(one @ plane.T)
    assert 0 <= float(frechet_distance(same, same).distance) < 1e-12 * float(same.scatter.trace())


def test_the_floor_is_the_mean_distance_of_samples_of_one_law() -> None:
    basis = torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.5, 0.2, 0.1]).double())
    found = torch.stack(
        [
            frechet_distance(
                moments(draw(400, 6, seed=2 * i) @ basis),
                moments(draw(250, 6, seed=2 * i + 1) @ basis),
            ).distance
            for i in range(150)
        ]
    )
    expected = float(sampling_floor(basis @ basis, 400, 250))
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 0.06 * expected
    assert abs(float(found.mean()) - expected) < 4 * error


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=4),
    offset=st.floats(-1e4, 1e4),
    seed=st.integers(0, 1000),
)
def test_moments_do_not_depend_on_the_batches(cuts: list[int], offset: float, seed: int) -> None:
    features = correlated(60, 5, seed) + offset
    whole = moments(features)
    edges = [0, *sorted(cuts), 60]
    parts = moments(features[:0])
    for low, high in itertools.pairwise(edges):
        parts = merge(parts, moments(features[low:high]))
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.scatter, whole.scatter, rtol=1e-8, atol=1e-6)
    expected = torch.from_numpy(np.cov(features.numpy().T))
    torch.testing.assert_close(covariance(whole), expected, rtol=1e-8, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(-20, 20).filter(lambda a: abs(a) > 1e-2),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_invariances(scale: float, shift: float, seed: int) -> None:
    """Order of samples, rotation of features and sides change nothing; units scale by a square."""
    one, two = correlated(40, 4, seed), correlated(30, 4, seed + 1)
    distance = frechet_distance(moments(one), moments(two)).distance
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(draw(4, 4, seed=seed)).Q
    for a, b, factor in (
        (one[order], two, 1.0),
        (two, one, 1.0),
        (one @ rotation, two @ rotation, 1.0),
        (scale * one + shift, scale * two + shift, scale**2),
    ):
        changed = frechet_distance(moments(a), moments(b)).distance
        assert math.isclose(changed, factor * distance, rel_tol=1e-6)


def test_kernel_distance_equals_the_definition_and_torchmetrics() -> None:
    one, two = draw(20, 6), 0.5 * draw(20, 6, seed=1) + 0.4

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 6 + 1) ** 3

    def mean_of_pairs(sample: torch.Tensor) -> float:
        values = [kernel(a, b) for i, a in enumerate(sample) for j, b in enumerate(sample) if i - j]
        return sum(values) / len(values)

    between = sum(kernel(a, b) for a in one for b in two) / 400
    expected = mean_of_pairs(one) + mean_of_pairs(two) - 2 * between
    assert math.isclose(kernel_distance(one, two), expected, rel_tol=1e-9)
    assert math.isclose(kernel_distance(one, two), poly_mmd(one, two), rel_tol=1e-9)


def test_kernel_distance_is_unbiased_at_any_size() -> None:
    found = torch.stack(
        [kernel_distance(draw(8, 4, seed=2 * i), draw(5, 4, seed=2 * i + 1)) for i in range(2000)]
    )
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(len(found))
    assert float(found.min()) < 0


def test_subsets_have_the_mean_of_the_whole_and_are_repeatable() -> None:
    one, two = draw(300, 4), draw(400, 4, seed=1) + 0.5

    def subsets(seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        found = kernel_distance_of_subsets(one, two, subset_size=100, generator=generator)
        return float(found.distance), float(found.spread)

    mean, spread = subsets(0)
    assert spread > 0
    assert abs(mean - float(kernel_distance(one, two))) < 4 * spread / math.sqrt(100)
    assert subsets(0) == (mean, spread) != subsets(1)


def test_streaming_metrics_merge_like_one() -> None:
    real, fake = draw(60, 5, seed=3), draw(50, 5, seed=4) + 0.5
    whole = FrechetDistance(Flat(5))
    whole.update(real, real=True)
    whole.update(fake, real=False)
    parts = [FrechetDistance(Flat(5)) for _ in range(3)]
    for i, part in enumerate(parts[:2]):  # the third sees nothing
        part.update(real[30 * i : 30 * i + 30], real=True)
        part.update(fake[25 * i : 25 * i + 25], real=False)
    states = iter([[p.real for p in parts], [p.generated for p in parts]])
    parts[0].sync(dist_sync_fn=lambda *_, **__: next(states), distributed_available=lambda: True)
    torch.testing.assert_close(parts[0].real, whole.real, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts[0].generated, whole.generated, rtol=1e-10, atol=1e-10)
    parts[0].unsync()
    parts[0].merge_state(parts[1])
    assert math.isclose(parts[0].compute(), whole.compute(), rel_tol=1e-9)
    whole.reset()
    whole.update(real[:1], real=True)
    with pytest.raises(ValueError, match="at least 2 samples; there are 0"):
        whole.compute()


def test_the_streaming_kernel_distance_is_that_of_all_samples() -> None:
    real, fake = draw(60, 5, seed=3), draw(50, 5, seed=4) + 0.5
    metric = KernelDistance(Flat(5), subsets=20, subset_size=20)
    for i in range(2):
        metric.update(real[30 * i : 30 * i + 30], real=True)
        metric.update(fake[25 * i : 25 * i + 25], real=False)
    found = metric.compute()
    expected = kernel_distance_of_subsets(
        fake, real, subsets=20, subset_size=20, generator=torch.Generator().manual_seed(0)
    )
    assert tuple(map(float, found)) == tuple(map(float, expected))
    assert metric.name == "KID_flat"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="not 3 and 4"):
        frechet_distance(moments(draw(9, 3)), moments(draw(9, 4)))
    with pytest.raises(ValueError, match="1 of 9 samples have features that are not finite"):
        moments(torch.where(torch.arange(9)[:, None] == 4, torch.nan, draw(9, 3)))
    with pytest.raises(ValueError, match="at least 2 samples"):
        kernel_distance(draw(1, 3), draw(5, 3))
    with pytest.raises(ValueError, match="needs a name"):
        score_name("FID", nn.Identity())
    metric = FrechetDistance(Flat(5))
    with pytest.raises(ValueError, match="gives 4 features per sample, not dimension = 5"):
        metric.update(draw(6, 4), real=True)
