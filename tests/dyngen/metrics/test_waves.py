"""Wavenumber-frequency spectra of waves that are known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from dyngen.metrics.waves import (
    background,
    log_wave_distance,
    symmetric_and_antisymmetric,
    wave_spectrum,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(k: int, cycles: int, segment: int = 32, length: int = 64, size: int = 16) -> torch.Tensor:
    """cos(k x - w t), towards larger x for positive k."""
    time = torch.arange(length, dtype=torch.float64)[:, None]
    x = torch.arange(size, dtype=torch.float64) / size
    return torch.cos(2 * math.pi * (k * x - cycles / segment * time))


@pytest.mark.parametrize(("k", "cycles"), [(3, 4), (-2, 7), (5, 9)])
def test_a_wave_is_found_where_it_is_and_has_its_variance(k: int, cycles: int) -> None:
    found = wave_spectrum(wave(k, cycles), segment=32, taper=0.0)
    place = np.unravel_index(int(found.power.argmax()), found.power.shape)
    assert math.isclose(found.frequency[place[0]], cycles / 32)
    assert float(found.wavenumber[place[1]]) == k
    # A straight line through whole waves is not quite flat, so that a little is taken away.
    assert math.isclose(found.power.max(), 0.5, rel_tol=0.12)
    assert float(found.power.max() / found.power.sum()) > 0.9


def test_a_standing_wave_is_two_that_travel() -> None:
    standing = wave(3, 4) + wave(-3, 4)
    found = wave_spectrum(standing, segment=32)
    row = found.power[4]
    east, west = (float(row[found.wavenumber == k]) for k in (3, -3))
    assert math.isclose(east, west, rel_tol=1e-9)
    assert east + west > 0.8 * float(found.power.sum())


def test_power_sums_to_the_variance_of_white_noise() -> None:
    found = wave_spectrum(draw(40, 256, 16), segment=64)
    total = float(found.power.sum((-2, -1)).mean())
    # Mean and trend take two of 64 degrees of freedom away.
    assert math.isclose(total, 1 - 2 / 64, rel_tol=0.02)
    assert found.power.shape == (40, 33, 16)
    assert found.wavenumber.tolist() == list(range(-7, 9))


def test_time_alone_is_scipys_spectrum() -> None:
    """One wavenumber: segments that do not overlap, detrended and tapered alike."""
    series = draw(96)
    fields = series[:, None].expand(96, 4)
    found = wave_spectrum(fields, segment=32, overlap=0, taper=0.25)
    window = signal.windows.tukey(64, 0.5)[1::2]  # half a step off the ends, as ours is
    _, theirs = signal.welch(
        series.numpy(), fs=1.0, window=window, nperseg=32, noverlap=0, detrend="linear",
        scaling="density",
    )  # fmt: skip
    ours = found.power[:, found.wavenumber == 0][:, 0] * 32
    assert math.isclose(found.power.sum(), float(ours.sum()) / 32, rel_tol=1e-9)
    np.testing.assert_allclose(ours.numpy()[2:], theirs[2:], rtol=0.15, atol=0.02)


def test_a_trend_is_no_wave() -> None:
    trend = torch.linspace(0, 100, 64).double()[:, None] + 7
    found = wave_spectrum(trend + wave(3, 4), segment=32)
    plain = wave_spectrum(wave(3, 4), segment=32)
    torch.testing.assert_close(found.power, plain.power, rtol=0, atol=1e-9)


def test_segments_with_gaps_are_left_out() -> None:
    fields = draw(2, 96, 8)
    fields[0, 70, 3] = math.nan
    found = wave_spectrum(fields, segment=32, overlap=0)
    first = wave_spectrum(fields[0, :64], segment=32, overlap=0)
    torch.testing.assert_close(found.power[0], first.power)
    fields[1] = math.nan
    assert bool(wave_spectrum(fields, segment=32).power[1].isnan().all())


def test_units_scale_by_their_square_and_batches_are_independent() -> None:
    fields = draw(3, 64, 8)
    found = wave_spectrum(fields, segment=32)
    torch.testing.assert_close(wave_spectrum(5 * fields - 3, segment=32).power, 25 * found.power)
    torch.testing.assert_close(wave_spectrum(fields[1], segment=32).power, found.power[1])
    mirrored = wave_spectrum(fields.flip(-1), segment=32)
    place = [int((found.wavenumber == -k).nonzero()) for k in found.wavenumber[:-1].tolist()]
    torch.testing.assert_close(mirrored.power[..., :-1], found.power[..., place])


def test_the_background_is_smooth_and_keeps_its_sum() -> None:
    power = draw(9, 12).square()
    smooth = background(power, 1)
    expected = ndimage.convolve1d(power.numpy(), [0.25, 0.5, 0.25], axis=0, mode="nearest")
    expected = ndimage.convolve1d(expected, [0.25, 0.5, 0.25], axis=1, mode="nearest")
    np.testing.assert_allclose(smooth.numpy(), expected)
    assert math.isclose(background(power, 10).sum(), power.sum(), rel_tol=1e-9)
    assert float(background(power, 10).std()) < 0.5 * float(power.std())


def test_the_distance_is_in_decibels_and_leaves_out_what_does_not_vary() -> None:
    power = wave_spectrum(draw(6, 64, 8), segment=16).power
    reference = power.mean(0)
    assert float(log_wave_distance(reference, reference)) == 0
    assert math.isclose(log_wave_distance(2 * reference, reference), 10 * math.log10(2))
    changed = reference.clone()
    changed[0] *= 50
    changed[:, 3] *= 50  # wavenumbers -3, ..., 4
    assert float(log_wave_distance(changed, reference)) == 0
    changed[2, 5] *= 10
    assert math.isclose(log_wave_distance(changed, reference), 10 / math.sqrt(8 * 7))
    assert log_wave_distance(power, reference).shape == (6,)


def test_parts_about_the_equator_add_up() -> None:
    field = draw(5, 6, 8)
    even, odd = symmetric_and_antisymmetric(field, latitude_dim=1)
    torch.testing.assert_close(even + odd, field)
    torch.testing.assert_close(even, even.flip(1))
    torch.testing.assert_close(odd, -odd.flip(1))


def test_what_cannot_be_cut_is_refused() -> None:
    for segment, overlap in ((65, None), (1, None), (32, 32)):
        with pytest.raises(ValueError, match="64 steps cannot be cut into segments"):
            wave_spectrum(draw(64, 8), segment=segment, overlap=overlap)
    with pytest.raises(ValueError, match=r"taper is 0\.7"):
        wave_spectrum(draw(64, 8), segment=32, taper=0.7)
