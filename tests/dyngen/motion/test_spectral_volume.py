"""Spectral volumes against torch's FFT, sums of cosines, and what Parseval says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dyngen.motion import spectral_volume as sv


def any_volume(terms: int, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn(batch, terms, 4, 3, 5, generator=generator, dtype=torch.float64)
    volume[:, 0, 1::2] = 0  # the mean has no imaginary part
    return volume


def any_motion(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, 2, 3, 5, generator=generator, dtype=torch.float64)


def test_the_convention_is_a_sum_of_cosines() -> None:
    """Four numbers told apart: a pixel that sways 3 px along x and 2 px along y, out of phase."""
    frames, k = 20, 3
    t = torch.arange(1, frames + 1, dtype=torch.float64)
    motion = torch.zeros(1, frames, 2, 1, 1, dtype=torch.float64)
    motion[0, :, 0, 0, 0] = 0.5 + 3 * torch.cos(2 * math.pi * k * t / frames)
    motion[0, :, 1, 0, 0] = 2 * torch.sin(2 * math.pi * k * t / frames)
    expected = torch.zeros(1, 5, 4, 1, 1, dtype=torch.float64)
    expected[0, 0, 0] = 0.5  # real x
    expected[0, k, 0] = 3.0
    expected[0, k, 3] = -2.0  # imaginary y: sin = Re(-i exp)
    torch.testing.assert_close(sv.spectral_volume(motion, 5), expected)


@pytest.mark.parametrize("frames", [48, 49])
@pytest.mark.parametrize("terms", [4, 8, 16, 24])
def test_it_is_the_fourier_transform(frames: int, terms: int) -> None:
    motion = any_motion(frames)
    spectrum = torch.fft.fft(motion.roll(1, 1), dim=1)[:, :terms] * 2 / frames  # frame T is frame 0
    spectrum[:, 0] /= 2
    volume = sv.spectral_volume(motion, terms)
    torch.testing.assert_close(sv.as_complex(volume), spectrum)
    torch.testing.assert_close(sv.as_real(spectrum), volume)


@pytest.mark.parametrize("frames", [47, 48, 149])
@pytest.mark.parametrize("terms", [4, 8, 16, 24])
def test_there_and_back_is_the_identity(frames: int, terms: int) -> None:
    volume = any_volume(terms)
    motion = sv.displacement_frames(volume, frames)
    assert motion.shape == (2, frames, 2, 3, 5)
    torch.testing.assert_close(sv.spectral_volume(motion, terms), volume)
    # And the other way round, for a motion of so many terms.
    again = sv.displacement_frames(sv.spectral_volume(motion, terms), frames)
    torch.testing.assert_close(again, motion)
    torch.testing.assert_close(sv.energy_lost(motion, terms), torch.zeros(2).double())


def test_half_precision_is_read_and_float32_given() -> None:
    motion = any_motion(20)
    volume = sv.spectral_volume(motion.half(), 4)
    assert volume.dtype == torch.float32
    torch.testing.assert_close(volume.double(), sv.spectral_volume(motion, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("frames", [20, 21])
def test_powers_sum_to_the_mean_square(frames: int) -> None:
    motion = any_motion(frames)
    power = sv.temporal_power(motion)
    assert power.shape == (2, frames // 2 + 1)
    torch.testing.assert_close(power.sum(1), motion.square().sum(2).mean((1, 2, 3)))


@pytest.mark.parametrize("terms", [4, 8, 10])
def test_the_energy_lost_is_the_relative_square_error(terms: int) -> None:
    motion = any_motion(20)
    error = motion - sv.displacement_frames(sv.spectral_volume(motion, terms), 20)
    expected = error.square().sum((1, 2, 3, 4)) / motion.square().sum((1, 2, 3, 4))
    torch.testing.assert_close(sv.energy_lost(motion, terms), expected)


def test_no_motion_loses_no_energy() -> None:
    assert sv.energy_lost(torch.zeros(1, 31, 2, 2, 2)).tolist() == [0.0]


def test_slow_motion_lies_on_the_curve_between_the_frames() -> None:
    terms, frames = 4, 9
    volume = any_volume(terms)
    times = sv.frame_times(frames, slow=2)
    assert times.tolist() == [1 + i / 2 for i in range(18)]
    motion = sv.displacement_at(volume, times, frames)
    torch.testing.assert_close(motion[:, ::2], sv.displacement_frames(volume, frames))
    coefficients = sv.as_complex(volume)
    for i in (1, 7, 17):
        expected = sum(
            (coefficients[:, k] * complex(math.cos(a), math.sin(a))).real
            for k in range(terms)
            for a in [2 * math.pi * k * times[i].item() / frames]
        )
        torch.testing.assert_close(motion[:, i], expected)


def test_the_motion_repeats_itself_after_the_period() -> None:
    times = torch.tensor([0.3, 4.7])
    volume = any_volume(3)
    torch.testing.assert_close(
        sv.displacement_at(volume, times + 9, 9),
        sv.displacement_at(volume, times, 9),
        rtol=1e-5,
        atol=1e-5,
    )


def test_velocity_is_the_derivative() -> None:
    volume, step = any_volume(4), 1e-5
    times = torch.tensor([1.0, 2.4, 9.0], dtype=torch.float64)
    ahead, behind = (sv.displacement_at(volume, times + s, 9) for s in (step, -step))
    torch.testing.assert_close(
        sv.velocity_at(volume, times, 9), (ahead - behind) / (2 * step), atol=1e-8, rtol=1e-7
    )


def test_magnification_scales_the_motion_as_a_whole_or_by_term() -> None:
    volume = any_volume(3)
    motion = sv.displacement_frames(volume, 9)
    torch.testing.assert_close(sv.displacement_frames(sv.magnify(volume, 2.5), 9), 2.5 * motion)
    only_second = sv.magnify(volume, torch.tensor([0.0, 0.0, 1.0]))
    assert sv.temporal_power(sv.displacement_frames(only_second, 9))[:, [0, 1]].max() < 1e-20


def test_frequencies_are_in_hertz() -> None:
    assert sv.frequencies(3, period=150, frames_per_second=30).tolist() == pytest.approx(
        [0, 0.2, 0.4]
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 1e2))
def test_normalisations_are_undone_exactly(seed: int, size: float) -> None:
    volume = any_volume(4, seed=seed) * size
    scales = torch.tensor([3.0, 1.0, 0.2, 1e-3])
    for normalisation in (sv.FrequencyAdaptive(scales), sv.ImageSize()):
        normalised = normalisation.normalise(volume)
        torch.testing.assert_close(normalisation.denormalise(normalised), volume)
        assert torch.equal(normalised.sign(), volume.sign())
        some = torch.tensor([[3, 0], [1, 2]])  # the same for terms alone
        clip = torch.arange(2)[:, None]
        of_some = normalisation.normalise(volume[clip, some], some)
        assert torch.equal(of_some, normalised[clip, some])


def test_frequency_adaptive_normalisation_is_the_signed_root() -> None:
    volume = torch.zeros(1, 2, 4, 1, 1)
    volume[0, 1, :, 0, 0] = torch.tensor([0.0, 2.0, -8.0, 0.5])
    normalised = sv.FrequencyAdaptive(torch.tensor([1.0, 2.0])).normalise(volume)
    assert normalised[0, 1].flatten().tolist() == [0.0, 1.0, -2.0, 0.5]


def test_scaling_by_image_size_takes_x_by_width_and_y_by_height() -> None:
    normalised = sv.ImageSize().normalise(torch.ones(1, 1, 4, 2, 5))
    assert normalised[0, 0, :, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5])


def test_the_scales_live_in_the_state() -> None:
    state = sv.FrequencyAdaptive(torch.tensor([0.5, 4.0])).state_dict()
    loaded = sv.FrequencyAdaptive(2)
    loaded.load_state_dict(state)
    assert loaded.scales.tolist() == [0.5, 4.0]


@pytest.mark.parametrize("q", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_streamed_quantiles_are_those_of_all_values_together(q: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([10.0, 0.3, 1e-3])[:, None, None, None]
    batches = [torch.randn(2, 3, 4, 16, 20, generator=generator) * scale for _ in range(3)]
    one, other = sv.StreamingQuantiles(3), sv.StreamingQuantiles(3)
    one.update(batches[0])
    one.update(torch.zeros_like(batches[0]))  # where nothing moves
    for batch in batches[1:]:
        other.update(batch)
    one.merge(other)
    every = torch.cat(batches).abs().transpose(0, 1).flatten(1)
    torch.testing.assert_close(one.quantile(q), every.quantile(q, 1), rtol=0.01, atol=0)


def test_the_quantile_is_the_one_the_normalisation_wants() -> None:
    """After it 95 of 100 values lie between -1 and 1, in every term."""
    generator = torch.Generator().manual_seed(2)
    volume = torch.randn(4, 3, 4, 20, 20, generator=generator) * torch.tensor(
        [10.0, 0.3, 1e-3]
    ).view(3, 1, 1, 1)
    quantiles = sv.StreamingQuantiles(3)
    quantiles.update(volume)
    normalised = sv.FrequencyAdaptive(quantiles.quantile()).normalise(volume)
    inside = (normalised.abs() <= 1).float().mean((0, 2, 3, 4))
    torch.testing.assert_close(inside, torch.full((3,), 0.95), atol=2e-3, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"A displacement must be \(B, T, 2, H, W\)"):
        sv.spectral_volume(torch.zeros(2, 9, 3, 4, 4), 2)
    with pytest.raises(ValueError, match="16 terms cannot be told from 30 frames; use between 1"):
        sv.spectral_volume(torch.zeros(1, 30, 2, 4, 4))
    with pytest.raises(ValueError, match="cannot be told from 6 frames"):
        sv.displacement_frames(any_volume(4), 6)
    with pytest.raises(ValueError, match=r"A spectral volume must be \(B, K, 4, H, W\)"):
        sv.displacement_frames(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"scales\[1\] is 0"):
        sv.FrequencyAdaptive(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="3 terms and the normalisation 2 scales"):
        sv.FrequencyAdaptive(2).normalise(any_volume(3))
    with pytest.raises(ValueError, match="factor has 2 elements"):
        sv.magnify(any_volume(3), torch.ones(2))
    with pytest.raises(ValueError, match="slow must be positive"):
        sv.frame_times(9, 0)
    quantiles = sv.StreamingQuantiles(3)
    quantiles.update(sv.magnify(any_volume(3), torch.tensor([1.0, 0.0, 1.0])))
    with pytest.raises(ValueError, match="Term 1 has no motion"):
        quantiles.quantile()
    with pytest.raises(ValueError, match="not finite"):
        quantiles.update(any_volume(3) / 0)
    with pytest.raises(ValueError, match="2 terms, not 3"):
        quantiles.update(any_volume(2))
    with pytest.raises(ValueError, match="q must lie"):
        quantiles.quantile(1.5)
