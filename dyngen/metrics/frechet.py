"""Fréchet and kernel distances between two sets of features: the arithmetic that FID, FVD, DTFVD
and KID share, whatever network or transform the features come from.

The Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) is that of two Gaussians with the means
and covariances of the features, squared,

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)).

The trace of the root is the sum of the singular values of ``C1^(1/2) C2^(1/2)``. It is taken from
the eigenvectors of both covariances, those with eigenvalues of mere rounding left out: no matrix
is squared or inverted, so that covariances without full rank, which any sample smaller than the
number of features has, are as good as others. Moments are summed about the running mean in
float64, batch by batch, and two sets of moments merge into one (Chan, Golub & LeVeque 1983).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

logger = logging.getLogger(__name__)

SAMPLES_PER_FEATURE = 2
"""With fewer samples per feature a distance comes with a warning."""


class Moments(NamedTuple):
    """Of features: number of samples (0-d), mean ``(D,)``, scatter about it ``(D, D)``; float64."""

    samples: Tensor
    mean: Tensor
    scatter: Tensor


class Frechet(NamedTuple):
    """A Fréchet distance and how far it can be trusted; all 0-d.

    ``distance = mean_part + covariance_part``. ``floor`` is what two samples of these sizes from
    one and the same Gaussian law would score on average (see :func:`sampling_floor`). The ranks are
    those of the covariances, at most the number of features and at most samples less one.
    """

    distance: Tensor
    mean_part: Tensor
    covariance_part: Tensor
    floor: Tensor
    ranks: tuple[int, int]


class Kernel(NamedTuple):
    """A kernel distance: mean and standard deviation over subsets, 0-d float64."""

    distance: Tensor
    spread: Tensor


# Moments


def moments(features: Tensor) -> Moments:
    """Moments of a batch of features ``(N, D)``; without samples all are zero.

    The scatter is ``sum (f - mean)(f - mean)^T``.

    Raises:
        ValueError: when features are not ``(N, D)``, or not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be (samples, dimensions), not {tuple(features.shape)}.")
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(features)} samples have features that are not finite.")
    values = features.detach().double()
    count = values.new_tensor(float(len(values)))
    mean = values.sum(0) / count.clamp_min(1)
    centred = values - mean
    return Moments(count, mean, centred.T @ centred)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of both samples together.

    Raises:
        ValueError: when the numbers of features differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"moments of {len(first.mean)} and {len(second.mean)} features cannot be merged."
        )
    count = first.samples + second.samples
    share = second.samples / count.clamp_min(1)
    between = second.mean - first.mean
    scatter = first.scatter + second.scatter
    scatter = scatter + first.samples * share * torch.outer(between, between)
    return Moments(count, first.mean + share * between, scatter)


def covariance(of: Moments) -> Tensor:
    """Unbiased covariance ``(D, D)``.

    Raises:
        ValueError: when there are fewer than two samples.
    """
    if float(of.samples) < 2:
        raise ValueError(f"a covariance needs at least 2 samples; there are {int(of.samples)}.")
    return of.scatter / (of.samples - 1)


def feature_scale(of: Moments) -> Tensor:
    """Standard deviation of each feature ``(D,)``, in units of which others can be measured.

    A feature that is constant, as the mean of a field that is conserved, counts as if it varied by
    a hundredth of what the most variable one does.
    """
    spread = covariance(of).diagonal().clamp_min(0).sqrt()
    floor = 0.01 * spread.max()
    return spread.clamp_min(floor) if float(floor) > 0 else torch.ones_like(spread)


def rescaled(of: Moments, scale: Tensor) -> Moments:
    """Moments of the features divided by ``scale (D,)``."""
    return Moments(of.samples, of.mean / scale, of.scatter / torch.outer(scale, scale))


# Fréchet


def frechet_distance(first: Moments, second: Moments, *, name: str = "") -> Frechet:
    """Squared Fréchet distance of the Gaussians that have these moments.

    Logs a warning, with the numbers, when there are fewer than two samples per feature.

    Args:
        first: of one sample.
        second: of the other, with as many features.
        name: what the warning calls the distance.

    Raises:
        ValueError: when the numbers of features differ, or a sample has fewer than two.
    """
    result = gaussian_distance(first, second)
    warn_of_few_samples(result, first, second, name)
    return result


def gaussian_distance(first: Moments, second: Moments) -> Frechet:
    """:func:`frechet_distance` without its warning."""
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"a Fréchet distance needs the same features on both sides, not {len(first.mean)} "
            f"and {len(second.mean)}."
        )
    one, two = covariance(first), covariance(second)
    root_trace, ranks = trace_of_root(one, two)
    mean_part = (first.mean - second.mean).square().sum()
    covariance_part = (one.trace() + two.trace() - 2 * root_trace).clamp_min(0)
    degrees = float(first.samples + second.samples) - 2
    within = (first.scatter + second.scatter) / degrees
    floor = sampling_floor(within, float(first.samples), float(second.samples))
    return Frechet(mean_part + covariance_part, mean_part, covariance_part, floor, ranks)


def warn_of_few_samples(result: Frechet, first: Moments, second: Moments, name: str = "") -> None:
    """Log a warning when one side has fewer than two samples per feature."""
    fewest, dimension = int(min(first.samples, second.samples)), len(first.mean)
    if fewest < SAMPLES_PER_FEATURE * dimension:
        logger.warning(
            "%s: %d samples are few for %d features (ranks %d and %d); samples of these sizes from "
            "one law would score about %.3g, the distance is %.3g.",
            name or "Fréchet distance",
            fewest,
            dimension,
            *result.ranks,
            float(result.floor),
            float(result.distance),
        )


def trace_of_root(first: Tensor, second: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """``tr (C1^(1/2) C2 C1^(1/2))^(1/2)`` of two covariances, and the ranks of both.

    Args: ``(D, D)`` each, symmetric and positive semi-definite but for rounding.
    """
    one, two = _root_columns(first), _root_columns(second)
    ranks = one.shape[1], two.shape[1]
    if not min(ranks):
        return first.new_zeros((), dtype=torch.float64), ranks
    return torch.linalg.svdvals(one.T @ two).sum(), ranks


def _root_columns(matrix: Tensor) -> Tensor:
    """``R (D, rank)`` with ``R R^T = C``; eigenvalues that are rounding errors are left out."""
    matrix = matrix.double()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    least = len(matrix) * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
    kept = values > least
    return vectors[:, kept] * values[kept].sqrt()


def sampling_floor(covariance: Tensor, first: float, second: float) -> Tensor:
    """Expected Fréchet distance of two samples of one Gaussian law, to first order in 1 / N.

    With ``l`` the eigenvalues of the covariance,

        (1 / N1 + 1 / N2) (5/4 sum_i l_i + 1/2 sum_ij l_i l_j / (l_i + l_j)):

    the mean contributes its variance, and the covariances their error in the metric of Bures,
    ``1/2 sum_ij E_ij^2 / (l_i + l_j)``, with Wishart errors E. Where there are fewer samples than
    features it is less than what one gets.

    Args:
        covariance: ``(D, D)``.
        first: N1, how many samples.
        second: N2.
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)
    sums = values[:, None] + values
    pairs = torch.where(sums > 0, torch.outer(values, values) / sums, 0.0).sum()
    return (1 / first + 1 / second) * (1.25 * values.sum() + 0.5 * pairs)


# Kernel


def kernel_distance(
    first: Tensor, second: Tensor, *, degree: int = 3, gamma: float | None = None, offset: float = 1
) -> Tensor:
    """Unbiased squared maximum mean discrepancy with the kernel ``(gamma x.y + offset)^degree``.

    With its defaults it is the KID (Binkowski et al. 2018, arXiv 1801.01401). Unbiased, it can be
    negative, and is zero on average for two samples of one law, whatever their size.

    Args:
        first: features ``(N, D)``.
        second: features ``(M, D)``.
        degree: of the polynomial.
        gamma: None: 1 / D.
        offset: the constant in the polynomial.

    Returns: 0-d float64.

    Raises:
        ValueError: when the numbers of features differ, or a sample has fewer than two.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features must be (N, D) and (M, D), not {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"a kernel distance needs at least 2 samples on each side, not {len(first)} and "
            f"{len(second)}."
        )
    x, y = first.double(), second.double()
    scale = 1 / x.shape[1] if gamma is None else gamma

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (scale * (a @ b.T) + offset) ** degree

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def kernel_distance_of_subsets(
    first: Tensor,
    second: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> Kernel:
    """KID over random subsets of both samples, as it is usually reported.

    The spread tells how much a distance from ``subset_size`` samples varies, so that it is wider
    than the uncertainty of the mean. When a sample is smaller than two subsets they have half as
    many samples as the smaller one, or they would hardly differ.

    Args:
        first: features ``(N, D)``.
        second: features ``(M, D)``.
        subsets: how many.
        subset_size: samples of each side in a subset, drawn without replacement.
        generator: CPU generator; None: the global one.

    Raises:
        ValueError: as :func:`kernel_distance`, and for fewer than one subset.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            f"there must be at least 1 subset of at least 2 samples, not {subsets} of "
            f"{subset_size}."
        )
    size = max(2, min(subset_size, len(first) // 2, len(second) // 2))
    found = []
    for _ in range(subsets):
        parts = [
            sample[torch.randperm(len(sample), generator=generator)[:size].to(sample.device)]
            for sample in (first, second)
        ]
        found.append(kernel_distance(*parts))
    distances = torch.stack(found)
    spread = distances.std() if subsets > 1 else distances.new_full((), torch.nan)
    return Kernel(distances.mean(), spread)


# Streaming


class FrechetDistance(Metric):
    """Fréchet distance of generated samples from real ones, by features, batch by batch.

    Moments are all that is kept, whatever the number of samples, and processes merge theirs. The
    features of an extractor with ``standardise = True`` are measured in standard deviations of the
    real ones.

    Args:
        extractor: samples -> features ``(N, D)``, with a ``name``; see `dyngen.metrics.features`.
        dimension: D; None: ``extractor.dimension``.
        kind: what the distance is called, before the name of its extractor.

    Raises:
        ValueError: when the extractor has no name, or the dimension is not known.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    real: Tensor
    generated: Tensor

    def __init__(
        self,
        extractor: Callable[[Tensor], Tensor],
        dimension: int | None = None,
        kind: str = "FD",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.extractor = extractor
        self.name = score_name(kind, extractor)
        size = getattr(extractor, "dimension", None) if dimension is None else dimension
        if not isinstance(size, int):
            raise ValueError(f"{self.name}: give dimension, the number of features per sample.")
        # Counts, means and scatters in one state, as they can be merged only together.
        empty = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        self.add_state("real", empty, dist_reduce_fx=_merge_packed)
        self.add_state("generated", empty.clone(), dist_reduce_fx=_merge_packed)

    def update(self, samples: Tensor, real: bool) -> None:
        """Add samples, in the shape that the extractor takes.

        Raises:
            ValueError: when the extractor gives another number of features than was said.
        """
        batch = moments(self.features(samples))
        side = self.real if real else self.generated
        if len(batch.mean) != len(side) - 1:
            raise ValueError(
                f"{self.name}: the extractor gives {len(batch.mean)} features per sample, not "
                f"dimension = {len(side) - 1}."
            )
        merged = _packed(merge(_unpacked(side), batch))
        if real:
            self.real = merged
        else:
            self.generated = merged

    def features(self, samples: Tensor) -> Tensor:
        """Features ``(N, D)`` of samples, without gradients."""
        with torch.no_grad():
            return self.extractor(samples)

    def result(self) -> Frechet:
        """The distance with its parts, ranks and floor; of this process alone."""
        generated, real = _unpacked(self.generated), _unpacked(self.real)
        if getattr(self.extractor, "standardise", False):
            scale = feature_scale(real)
            generated, real = rescaled(generated, scale), rescaled(real, scale)
        return frechet_distance(generated, real, name=self.name)

    def compute(self) -> Tensor:
        """The distance, 0-d float64."""
        return self.result().distance


class KernelDistance(Metric):
    """Unbiased kernel distance (KID) of generated samples from real ones, with its spread.

    All features are kept, in the precision of the extractor; they are measured as in
    :class:`FrechetDistance`.

    Args:
        extractor: as in :class:`FrechetDistance`.
        subsets: as in :func:`kernel_distance_of_subsets`.
        subset_size: likewise.
        seed: of the subsets.
        kind: as in :class:`FrechetDistance`.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(
        self,
        extractor: Callable[[Tensor], Tensor],
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        kind: str = "KID",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.extractor = extractor
        self.name = score_name(kind, extractor)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, samples: Tensor, real: bool) -> None:
        """Add samples, in the shape that the extractor takes."""
        with torch.no_grad():
            features = self.extractor(samples)
        (self.real if real else self.generated).append(features)

    def compute(self) -> Kernel:
        """Mean over subsets and their standard deviation."""
        generated, real = dim_zero_cat(self.generated), dim_zero_cat(self.real)
        if getattr(self.extractor, "standardise", False):
            scale = feature_scale(moments(real))
            centre = real.double().mean(0)
            generated, real = (generated - centre) / scale, (real - centre) / scale
        return kernel_distance_of_subsets(
            generated,
            real,
            subsets=self.subsets,
            subset_size=self.subset_size,
            generator=torch.Generator().manual_seed(self.seed),
        )


def score_name(kind: str, extractor: object) -> str:
    """``FID_scattering-j3-l4``: the kind of score and the extractor it comes from.

    Raises:
        ValueError: when the extractor has no name: its numbers could be taken for another's.
    """
    name = getattr(extractor, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"the feature extractor {type(extractor).__name__} needs a name: it becomes part of "
            f"the name of its {kind}."
        )
    return f"{kind}_{name}"


def _packed(of: Moments) -> Tensor:
    """``[[samples, mean], [0, scatter]]``."""
    size = len(of.mean) + 1
    matrix = of.mean.new_zeros(size, size)
    matrix[0, 0], matrix[0, 1:], matrix[1:, 1:] = of.samples, of.mean, of.scatter
    return matrix


def _unpacked(matrix: Tensor) -> Moments:
    return Moments(matrix[0, 0], matrix[0, 1:], matrix[1:, 1:])


def _merge_packed(stacked: Tensor) -> Tensor:
    """Moments of several processes ``(P, D + 1, D + 1)`` as one."""
    merged = _unpacked(stacked[0])
    for other in stacked[1:]:
        merged = merge(merged, _unpacked(other))
    return _packed(merged)
