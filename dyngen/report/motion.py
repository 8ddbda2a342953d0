"""How sampled motion compares with real motion: spectra, amplitudes, space, and what moves.

Everything is a function of spectral volumes ``(B, K, 4, H, W)`` in pixels, whose channels are the
real and imaginary parts along x and along y and whose term k is an amplitude (see
``dyngen.motion.spectral_volume``). Scores are plain numbers, so that they go into a JSON file;
figures are drawn from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dyngen.metrics.distributions import histogram, histogram_wasserstein
from dyngen.metrics.spectra import log_spectral_distance
from dyngen.report.style import INK, label_ends, looks, one_axes, styled

AMPLITUDES = torch.linspace(-2, 2, 41, dtype=torch.float64)  # edges, log10 of pixels
DISTANCES = (1, 2, 4, 8, 16, 32)  # pixels
STILL = 1e-2  # pixels; less is not seen, and a network that samples never says exactly 0


def motion_scores(
    sampled: Tensor, real: Tensor, mask: Tensor | None = None, distances: Sequence[int] = DISTANCES
) -> dict[str, Any]:
    """Sampled motion against real motion of the same pictures.

    Args:
        sampled: ``(N, K, 4, H, W)``; several samples of each picture may be among them.
        real: ``(B, K, 4, H, W)``.
        mask: what can move in each picture sampled from, ``(N, H, W)`` boolean.
        distances: in pixels, at which correlations are taken, as far as pictures reach.

    Returns: numbers and lists by name: ``power_spectrum`` by term for ``sampled`` and ``real``, and
        their distance in dB; ``amplitude_histogram`` by term over ``amplitude_edges``, and the
        distance by term in decades; ``spatial_correlation`` by term and distance, and
        ``frequency_coherence`` by term, each with its mean absolute error; and, with a mask, the
        ``mask_agreement`` of what is sampled.
    """
    reach = [d for d in distances if d < min(real.shape[-2:])]
    power = {"sampled": power_spectrum(sampled), "real": power_spectrum(real)}
    histograms = {"sampled": amplitude_histogram(sampled), "real": amplitude_histogram(real)}
    correlation = {
        "sampled": spatial_correlation(sampled, reach),
        "real": spatial_correlation(real, reach),
    }
    coherence = {"sampled": frequency_coherence(sampled), "real": frequency_coherence(real)}
    scores: dict[str, Any] = {
        "power_spectrum": {name: value.tolist() for name, value in power.items()},
        "power_spectrum_distance_db": spectral_distance(power["sampled"], power["real"]),
        "amplitude_edges": AMPLITUDES.tolist(),
        "amplitude_histogram": {name: value.tolist() for name, value in histograms.items()},
        "amplitude_distance": amplitude_distance(histograms["sampled"], histograms["real"]),
        "moving_share": {
            name: moving_share(value) for name, value in (("sampled", sampled), ("real", real))
        },
        "correlation_distances": reach,
        "spatial_correlation": {name: value.tolist() for name, value in correlation.items()},
        "spatial_correlation_error": _error(correlation["sampled"], correlation["real"]),
        "frequency_coherence": {name: value.tolist() for name, value in coherence.items()},
        "frequency_coherence_error": _error(coherence["sampled"], coherence["real"]),
    }
    if mask is not None:
        scores["mask_agreement"] = mask_agreement(sampled, mask)
    return scores


def reconstruction_error(reconstructed: Tensor, volume: Tensor) -> float:
    """Mean absolute error of normalised volumes, as the paper's 0.024 and 0.018 (section 4.2).

    Args: both ``(B, K, 4, H, W)``, normalised.
    """
    return float((reconstructed.double() - volume.double()).abs().mean())


def power_spectrum(volume: Tensor) -> Tensor:
    """Mean square displacement of each term: ``(B, K, 4, H, W)`` to ``(K,)`` float64, px².

    A term k > 0 of amplitude S oscillates with a mean square of ``|S|² / 2``, so that the sum over
    terms is the mean square displacement of the motion (Parseval).
    """
    square = volume.double().square().sum(2).mean((0, 2, 3))
    square[1:] /= 2
    return square


def spectral_distance(power: Tensor, real: Tensor) -> float:
    """Root mean square over the terms k > 0 of the ratio of two spectra ``(K,)`` in dB."""
    return float(log_spectral_distance(power, real, floor=0.0))


def amplitude(volume: Tensor) -> Tensor:
    """``|S|`` of both axes together, ``(B, K, 4, H, W)`` to ``(B, K, H, W)`` in pixels."""
    return volume.square().sum(2).sqrt()


def amplitude_histogram(volume: Tensor) -> Tensor:
    """Share of moving pixels by amplitude, for each term: ``(K, bins)`` float64, rows sum to 1.

    The bins are even in the logarithm, between ``AMPLITUDES``; the first and the last take what is
    beyond. Pixels whose amplitude is below ``STILL`` do not move and are left out; a term in which
    nothing moves has zeros.
    """
    rows = []
    for values in amplitude(volume).transpose(0, 1).flatten(1):
        counts = histogram(values[values >= STILL].double().log10(), AMPLITUDES)
        rows.append(counts / counts.sum().clamp(min=1))
    return torch.stack(rows)


def amplitude_distance(sampled: Tensor, real: Tensor) -> list[float]:
    """Wasserstein-1 distance of two histograms ``(K, bins)``, by term, in decades of amplitude.

    1 is as if all amplitudes were ten times too large. Where nothing moves in one of them it is
    infinite, and 0 where nothing moves in either.
    """
    distances = []
    for ours, theirs in zip(sampled, real, strict=True):
        some = [bool(counts.sum() > 0) for counts in (ours, theirs)]
        if all(some):
            distances.append(float(histogram_wasserstein(ours, theirs, AMPLITUDES)))
        else:
            distances.append(math.inf if any(some) else 0.0)
    return distances


def moving_share(volume: Tensor) -> list[float]:
    """Share of pixels that move, by term: ``(B, K, 4, H, W)`` to K numbers in 0..1."""
    return (amplitude(volume) >= STILL).double().mean((0, 2, 3)).tolist()


def spatial_correlation(volume: Tensor, distances: Sequence[int] = DISTANCES) -> Tensor:
    """How alike motions are some pixels apart: ``(K, distances)`` float64, 1 being the same.

    ``Re sum S(p)^* S(p + d) / sqrt(sum |S(p)|^2 sum |S(p + d)|^2)`` over all pictures, along x and
    along y together; NaN for a term in which nothing moves. Phases count: things that sway out of
    step are not alike.

    Args:
        volume: ``(B, K, 4, H, W)``.
        distances: d in pixels, shorter than the sides.

    Raises: ValueError if a distance is not.
    """
    if any(not 0 <= d < min(volume.shape[-2:]) for d in distances):
        raise ValueError(
            f"distances are {list(distances)}; each must be shorter than the sides of pictures of "
            f"{volume.shape[-2]} x {volume.shape[-1]} pixels."
        )
    field = volume.double().transpose(0, 1)  # (K, B, 4, H, W)
    columns = []
    for d in distances:
        both, first, second = (torch.zeros(len(field), dtype=torch.float64) for _ in range(3))
        for axis in (-2, -1):
            here = field.narrow(axis, 0, field.shape[axis] - d).flatten(1)
            there = field.narrow(axis, d, field.shape[axis] - d).flatten(1)
            both += (here * there).sum(1).cpu()
            first += here.square().sum(1).cpu()
            second += there.square().sum(1).cpu()
        columns.append(both / (first * second).sqrt())
    return torch.stack(columns, 1)


def frequency_coherence(volume: Tensor) -> Tensor:
    """How much each term but the mean knows of the next: ``(B, K, 4, H, W)`` to ``(K - 2,)``.

    ``|sum_p S_k^* S_{k+1}| / sqrt(sum |S_k|^2 sum |S_{k+1}|^2)`` of each clip, the mean over clips
    in which both move; float64, NaN where there are none. What sways at a frequency between two
    terms is in both, with one shape and a fixed phase between them; terms that are sampled without
    knowing of each other have no such phase.
    """
    parts = volume[:, 1:].double().unflatten(2, (2, 2)).transpose(0, 1)  # (K - 1, B, axis, re im)
    field = torch.complex(parts[:, :, :, 0], parts[:, :, :, 1]).flatten(2)  # (K - 1, B, pixels)
    size = field.abs().square().sum(2).sqrt()
    both = (field[:-1].conj() * field[1:]).sum(2).abs()
    return (both / (size[:-1] * size[1:])).nanmean(1)  # 0 / 0 where nothing moves


def motion_map(volume: Tensor) -> Tensor:
    """Root mean square of what changes in a displacement: ``(B, K, 4, H, W)`` to ``(B, H, W)``.

    In pixels; the mean, which does not change, does not count.
    """
    return (volume[:, 1:].square().sum((1, 2)) / 2).sqrt()


def mask_agreement(volume: Tensor, mask: Tensor) -> dict[str, float]:
    """Whether what moves is what can move.

    Args:
        volume: ``(B, K, 4, H, W)``.
        mask: ``(B, H, W)`` boolean.

    Returns: means over the pictures that have something of both kinds: ``area_under_curve``, how
        often a pixel of the mask moves more than one outside (1 is always, 0.5 is chance), and
        ``intersection_over_union`` of the mask with as many of the pixels that move most.
        Both NaN if there is no such picture.
    """
    areas, unions = [], []
    for motion, where in zip(motion_map(volume).flatten(1), mask.flatten(1).bool(), strict=True):
        count = int(where.sum())
        if 0 < count < len(where):
            areas.append(area_under_curve(motion, where))
            moving = torch.zeros_like(where)
            moving[motion.topk(count).indices] = True
            unions.append(int((moving & where).sum()) / int((moving | where).sum()))
    return {
        "area_under_curve": float(np.mean(areas)) if areas else math.nan,
        "intersection_over_union": float(np.mean(unions)) if unions else math.nan,
    }


def area_under_curve(score: Tensor, positive: Tensor) -> float:
    """The chance that a positive has a higher score than a negative, ties counting half.

    Args: score ``(N,)``; positive ``(N,)`` boolean, some of both.
    """
    _, number, counts = score.double().unique(return_inverse=True, return_counts=True)
    below = counts.cumsum(0) - counts
    rank = (below + (counts + 1) / 2)[number]  # from 1 on, shared among ties
    many = int(positive.sum())
    above = float(rank[positive].sum()) - many * (many + 1) / 2
    return above / (many * (len(score) - many))


def _error(sampled: Tensor, real: Tensor) -> float:
    """Mean absolute difference of two sets of correlations, where both are known."""
    difference = (sampled - real).abs()
    return float(difference.nanmean())


# Figures


@styled
def spectrum_figure(
    spectra: Mapping[str, Sequence[float]], frequencies: Sequence[float] | None = None
) -> Figure:
    """Mean square displacement by frequency.

    Args:
        spectra: power by term of each system; ``real`` is drawn as the truth.
        frequencies: of the terms in hertz; by default terms are numbered.
    """
    figure, axes = one_axes()
    ends = []
    look = looks("truth" if name == "real" else name for name in spectra)
    for name, values in spectra.items():
        style = look["truth" if name == "real" else name]
        x = np.arange(len(values)) if frequencies is None else np.asarray(frequencies)
        power = np.asarray(values)[1:]  # the mean has no frequency
        axes.plot(x[1:], power, color=style.colour, linestyle=style.dashes, linewidth=style.width)
        ends.append((name, float(power[-1]), style.colour))
    axes.set_yscale("log")
    axes.set_xlabel("term" if frequencies is None else "frequency (Hz)")
    axes.set_ylabel("mean square displacement (px²)")
    label_ends(axes, ends)
    return figure


@styled
def amplitude_figure(
    histograms: Mapping[str, Sequence[Sequence[float]]],
    edges: Sequence[float],
    terms: Sequence[int] | None = None,
) -> Figure:
    """Distributions of amplitude, a panel for each of some terms.

    Args:
        histograms: shares by term and bin of each system, as `motion_scores` gives them.
        edges: of the bins, log10 of pixels.
        terms: which; by default four, evenly spread.
    """
    count = len(next(iter(histograms.values())))
    chosen = list(terms or np.unique(np.linspace(min(1, count - 1), count - 1, 4).round()))
    figure = Figure(figsize=(1.7 * len(chosen) + 0.6, 2.4), layout="constrained")
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    look = looks("truth" if name == "real" else name for name in histograms)
    for axes, term in zip(panels, chosen, strict=True):
        for name, rows in histograms.items():
            style = look["truth" if name == "real" else name]
            axes.stairs(rows[int(term)], 10 ** np.asarray(edges), color=style.colour, label=name)
        axes.set_xscale("log")
        axes.set_title(f"term {int(term)}", color=INK)
        axes.set_xlabel("amplitude (px)")
    panels[0].set_ylabel("share of moving pixels")
    panels[0].legend()
    return figure


@styled
def correlation_figure(
    correlations: Mapping[str, Sequence[Sequence[float]]], distances: Sequence[int]
) -> Figure:
    """Correlation by distance, the mean over the terms but that of the mean.

    Args:
        correlations: by term and distance of each system.
        distances: in pixels.
    """
    figure, axes = one_axes()
    look = looks("truth" if name == "real" else name for name in correlations)
    ends = []
    for name, rows in correlations.items():
        style = look["truth" if name == "real" else name]
        values = np.nanmean(np.asarray(rows, dtype=float)[1:], axis=0)
        axes.plot(distances, values, color=style.colour, linestyle=style.dashes)
        ends.append((name, float(values[-1]), style.colour))
    axes.set_xscale("log", base=2)
    axes.set_xlabel("distance (px)")
    axes.set_ylabel("correlation of motion")
    label_ends(axes, ends)
    return figure
