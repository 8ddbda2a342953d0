"""Scores of motion: closed forms, brute force, and answers that are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dyngen.motion.spectral_volume import displacement_frames, temporal_power
from dyngen.report.motion import (
    AMPLITUDES,
    amplitude_distance,
    amplitude_figure,
    amplitude_histogram,
    area_under_curve,
    correlation_figure,
    frequency_coherence,
    mask_agreement,
    motion_map,
    motion_scores,
    moving_share,
    power_spectrum,
    reconstruction_error,
    spatial_correlation,
    spectral_distance,
    spectrum_figure,
)


def volumes(batch: int = 3, terms: int = 4, height: int = 6, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(batch, terms, 4, height, width, generator=generator)
    volume[:, 0, 1::2] = 0  # the mean is real
    return volume


def test_the_spectrum_is_that_of_the_frames() -> None:
    volume = volumes().double()
    frames = displacement_frames(volume, 15)
    power = temporal_power(frames).mean(0)
    torch.testing.assert_close(power_spectrum(volume), power[:4])
    assert power_spectrum(volume).sum().item() == pytest.approx(
        frames.square().sum(2).mean().item()
    )


def test_spectra_twice_as_large_are_three_decibels_apart() -> None:
    power = torch.tensor([9.0, 4.0, 1.0, 0.01])
    other = torch.tensor([1.0, 8.0, 2.0, 0.02])  # the mean does not count
    assert spectral_distance(other, power) == pytest.approx(10 * math.log10(2))
    assert spectral_distance(power, power) == 0


def test_errors_are_mean_and_absolute() -> None:
    volume = torch.zeros(1, 1, 4, 1, 2)
    other = torch.tensor([1.0, -3.0]).expand(1, 1, 4, 1, 2)
    assert reconstruction_error(other, volume) == 2


def test_histograms_are_of_moving_pixels_in_decades() -> None:
    volume = torch.zeros(1, 2, 4, 1, 5)
    volume[0, 0, 0] = torch.tensor([3.0, 0.0, 30.0, 3.0, 0.0])
    volume[0, 0, 3] = torch.tensor([4.0, 0.0, 40.0, 4.0, 5e-3])  # amplitudes 5, 0, 50, 5, .005
    shares = amplitude_histogram(volume)
    assert shares.shape == (2, 40)
    centre = (AMPLITUDES[:-1] + AMPLITUDES[1:]) / 2
    found = {round(c.item(), 2): s.item() for c, s in zip(centre, shares[0], strict=True) if s}
    assert found == pytest.approx({0.65: 2 / 3, 1.65: 1 / 3})
    assert shares[1].sum() == 0
    assert moving_share(volume) == [0.6, 0.0]


def test_motion_ten_times_as_large_is_a_decade_off() -> None:
    volume = volumes(4, 2, 16, 16)
    mine, tenfold = amplitude_histogram(volume), amplitude_histogram(10 * volume)
    assert amplitude_distance(tenfold, mine) == pytest.approx([1, 1], abs=0.02)
    assert amplitude_distance(mine, mine) == [0, 0]
    nothing = torch.zeros_like(mine)
    assert amplitude_distance(nothing, mine) == [math.inf] * 2
    assert amplitude_distance(nothing, nothing) == [0, 0]


def test_correlation_is_that_of_pairs_of_pixels() -> None:
    volume, distances = volumes(2, 2), (0, 1, 4)
    measured = spatial_correlation(volume, distances)
    for k in range(2):
        for column, d in enumerate(distances):
            pairs = [
                (volume[b, k, :, y, x], volume[b, k, :, y + dy, x + dx])
                for b in range(2)
                for dy, dx in ((d, 0), (0, d))
                for y in range(6 - dy)
                for x in range(9 - dx)
            ]
            both = sum((p * q).sum().item() for p, q in pairs)
            sizes = [sum(pair[i].square().sum().item() for pair in pairs) for i in (0, 1)]
            expected = both / math.sqrt(sizes[0] * sizes[1])
            assert measured[k, column].item() == pytest.approx(expected, abs=1e-6)
    assert measured[:, 0].tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="shorter than the sides of pictures of 6 x 9"):
        spatial_correlation(volume, (6,))


def test_correlation_falls_as_it_is_made_to() -> None:
    """A wave along x of wavelength 8, in quadrature: cos along x and 1 along y, of equal weight."""
    x = 2 * math.pi * torch.arange(64) / 8
    volume = torch.zeros(1, 1, 4, 64, 64)
    volume[0, 0, 0], volume[0, 0, 1] = x.cos(), x.sin()
    measured = spatial_correlation(volume, (1, 2, 4))[0]
    expected = [(1 + math.cos(2 * math.pi * d / 8)) / 2 for d in (1, 2, 4)]
    assert measured.tolist() == pytest.approx(expected, abs=1e-6)


def test_terms_cohere_that_have_a_phase_between_them() -> None:
    """The same shape turned by any angle coheres fully, independent shapes hardly."""
    volume = volumes(5, 4, 40, 40)
    angle = torch.linspace(0, 6, 5).view(5, 1, 1)
    for axis in (0, 2):
        real, imaginary = volume[:, 1, axis], volume[:, 1, axis + 1]
        volume[:, 2, axis] = 3 * (angle.cos() * real - angle.sin() * imaginary)
        volume[:, 2, axis + 1] = 3 * (angle.sin() * real + angle.cos() * imaginary)
    first, second = frequency_coherence(volume).tolist()
    assert first == pytest.approx(1)
    # Of n complex pixels the coherence by chance is sqrt(pi / n) / 2 on average.
    assert second == pytest.approx(math.sqrt(math.pi / 3200) / 2, abs=0.015)
    volume[1:, 3] = 0  # clips in which nothing moves do not count
    alone = frequency_coherence(volume[:1])[1].item()
    assert frequency_coherence(volume)[1].item() == pytest.approx(alone)


def test_the_area_under_the_curve_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(0, 6, (40,), generator=generator).float()  # with ties
    positive = torch.rand(40, generator=generator) < 0.3
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in score[positive].tolist()
        for n in score[~positive].tolist()
    ]
    assert area_under_curve(score, positive) == pytest.approx(sum(wins) / len(wins))


def test_what_moves_is_held_against_what_can() -> None:
    mask = torch.zeros(3, 6, 9, dtype=torch.bool)
    mask[:2, 2:4, :4] = True  # the third picture has nothing that can move
    volume = 0.1 * volumes()
    volume[:, 0] = 50  # an offset is no motion
    moving = volume.clone()
    moving[:, 1:] += 3 * mask[:, None, None]
    perfect = {"area_under_curve": 1.0, "intersection_over_union": 1.0}
    assert mask_agreement(moving, mask) == perfect
    inside_out = volume.clone()
    inside_out[:, 1:] += 3 * ~mask[:, None, None]
    wrong = mask_agreement(inside_out, mask)
    assert wrong["area_under_curve"] == wrong["intersection_over_union"] == 0
    # Half of the mask moves, and as much outside of it.
    half = torch.zeros_like(mask)
    half[:2, 2:4, 2:6] = True
    shifted = volume.clone()
    shifted[:, 1:] += 3 * half[:, None, None]
    assert mask_agreement(shifted, mask)["intersection_over_union"] == pytest.approx(1 / 3)
    assert math.isnan(mask_agreement(volume[2:], mask[2:])["area_under_curve"])


def test_the_map_of_motion_is_what_changes_in_the_frames() -> None:
    volume = volumes()
    frames = displacement_frames(volume, 15)
    change = (frames - frames.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(motion_map(volume), change)


def test_motion_like_the_real_one_scores_better_than_other_motion() -> None:
    real = volumes(16, 3, 40, 40)
    real = torch.nn.functional.avg_pool2d(real.flatten(0, 1), 5, 1, 2).view_as(real)
    alike, other = real.flip(0), 3 * volumes(16, 3, 40, 40)
    good, bad = motion_scores(alike, real), motion_scores(other, real)
    for name in (
        "power_spectrum_distance_db",
        "spatial_correlation_error",
        "frequency_coherence_error",
    ):
        assert good[name] < 1e-6 < bad[name]
    assert max(good["amplitude_distance"]) < 1e-6 < min(bad["amplitude_distance"])
    assert good["correlation_distances"] == [1, 2, 4, 8, 16, 32]
    assert "mask_agreement" not in good
    mask = torch.rand(16, 40, 40) > 0.5
    assert motion_scores(alike, real, mask)["mask_agreement"]["area_under_curve"] == pytest.approx(
        0.5, abs=0.02
    )


def test_figures_show_what_they_are_given() -> None:
    scores = motion_scores(volumes(2, 6, 34, 40), volumes(3, 6, 34, 40))
    spectrum = spectrum_figure(scores["power_spectrum"], [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    lines = {tuple(np.asarray(line.get_ydata())) for line in spectrum.axes[0].lines}
    assert lines == {tuple(v[1:]) for v in scores["power_spectrum"].values()}
    assert np.asarray(spectrum.axes[0].lines[0].get_xdata())[0] == 0.5
    histograms = amplitude_figure(scores["amplitude_histogram"], scores["amplitude_edges"])
    assert [axes.get_title(loc="left") for axes in histograms.axes] == [
        f"term {k}" for k in (1, 2, 4, 5)
    ]
    correlation = correlation_figure(scores["spatial_correlation"], scores["correlation_distances"])
    assert {text.get_text() for text in correlation.axes[0].texts} == {"sampled", "real"}
