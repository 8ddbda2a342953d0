"""Spectra of fields whose spectra are known."""

import math

import numpy as np
import pytest
import torch

from dyngen.metrics.spectra import isotropic_spectrum, log_spectral_distance, shells


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(8, 8), (9, 8), (8, 7), (7, 15), (16, 6)])
def test_shells_add_up_to_the_mean_square(shape: tuple[int, int]) -> None:
    fields = draw(3, *shape) + 2
    spectrum = isotropic_spectrum(fields)
    torch.testing.assert_close(spectrum.sum(-1), fields.square().mean((-2, -1)))
    torch.testing.assert_close(spectrum[:, 0], fields.mean((-2, -1)).square())
    assert spectrum.shape[-1] == len(shells(*shape)[0])


@pytest.mark.parametrize(("ky", "kx"), [(0, 1), (3, 0), (2, 2), (3, 4), (8, 0)])
def test_a_wave_is_in_its_shell(ky: int, kx: int) -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    wave = 3 * torch.cos(2 * math.pi * (ky * y + kx * x) / 16)
    spectrum = isotropic_spectrum(wave)
    expected = torch.zeros_like(spectrum)
    expected[math.floor(math.hypot(ky, kx) + 0.5)] = wave.double().square().mean()
    torch.testing.assert_close(spectrum, expected, atol=1e-9, rtol=1e-6)


def test_it_equals_a_sum_over_all_modes_by_hand() -> None:
    field = draw(6, 10)
    modes = np.abs(np.fft.fft2(field.numpy())) ** 2 / 60**2
    ky, kx = np.fft.fftfreq(6) * 10, np.fft.fftfreq(10) * 10  # waves per longer side
    expected = np.zeros(len(shells(6, 10)[0]))
    for i in range(6):
        for j in range(10):
            expected[int(np.floor(np.hypot(ky[i], kx[j]) + 0.5))] += modes[i, j]
    np.testing.assert_allclose(isotropic_spectrum(field).numpy(), expected, atol=1e-14)


def test_wavenumbers_follow_the_spacing() -> None:
    wavenumbers, complete = shells(8, 32)
    assert complete == 16
    assert wavenumbers[-1] == math.floor(math.hypot(16, 16) + 0.5)
    assert shells(8, 32, spacing=(4.0, 1.0))[1] == 4  # rows resolve four waves per 32 units
    y = torch.arange(8.0)[:, None].expand(8, 32)
    wave = torch.cos(2 * math.pi * y / 8)
    assert int(isotropic_spectrum(wave, spacing=(4.0, 1.0)).argmax()) == 1
    assert int(isotropic_spectrum(wave).argmax()) == 4


def test_a_window_keeps_white_noise_and_stops_leakage() -> None:
    noise = draw(400, 32, 32)
    box = isotropic_spectrum(noise).mean(0)
    window = isotropic_spectrum(noise, periodic=(False, False)).mean(0)
    torch.testing.assert_close(window[3:16], box[3:16], rtol=0.05, atol=0)
    y = torch.arange(64.0)[:, None].expand(64, 64)
    slow = torch.cos(2 * math.pi * 2.5 * y / 64)  # does not close: leaks without a window
    leaking = isotropic_spectrum(slow)
    closed = isotropic_spectrum(slow, periodic=(False, True))
    assert float(closed[10:].sum() / closed.sum()) < 1e-5 < float(leaking[10:].sum())


def test_a_missing_value_is_told() -> None:
    fields = draw(2, 8, 8)
    fields[1, 2, 3] = math.nan
    assert isotropic_spectrum(fields).isnan().any(-1).tolist() == [False, True]


def test_distance_in_decibels() -> None:
    reference = 1 / torch.arange(1.0, 20.0) ** 2
    assert float(log_spectral_distance(reference, reference)) == 0
    assert math.isclose(
        log_spectral_distance(2 * reference, reference), 10 * math.log10(2), rel_tol=1e-6
    )
    louder = reference.clone()
    louder[4:8] *= 10  # four of eighteen shells by 10 dB
    assert math.isclose(
        log_spectral_distance(louder, reference), 10 * math.sqrt(4 / 18), rel_tol=1e-6
    )
    assert math.isclose(log_spectral_distance(louder, reference, last=4), 5.0, rel_tol=1e-6)
    both = torch.stack([reference, 100 * reference])
    assert log_spectral_distance(both, reference).tolist() == pytest.approx([0, 20], rel=1e-6)


def test_shells_with_nothing_but_rounding_do_not_count() -> None:
    reference = torch.tensor([5.0, 1.0, 0.1, 1e-15])
    other = torch.tensor([7.0, 1.0, 0.1, 1e-9])
    assert float(log_spectral_distance(other, reference)) == 0
    assert float(log_spectral_distance(other, reference, floor=0.0)) > 30
