"""Rollouts in blocks of frames, in a world where all is known: AR(1) fields."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.samplers import heun
from dyngen.rollout import ConditionalFrameSampler, FrameNoise, Sampling, frame_sampler, rollout
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

SIZE = 4


class ExactBlocks:
    """AR(1) fields with the exact denoiser of the next n frames, given the last one.

    Given the frame h, those at leads i and j are Gaussian with means ``a^i h`` and covariance
    ``(a^|i-j| - a^(i+j)) C``; modes are independent, so that per mode the denoiser is a product
    with an n x n matrix.
    """

    def __init__(self, coefficient: float, frames: int, *, history_length: int = 1) -> None:
        self.fields = AutoregressiveFields(power_law_spectrum(SIZE, SIZE, slope=1.5), coefficient)
        self.history_length, self.block_length = history_length, frames
        lead = torch.arange(1.0, frames + 1, dtype=torch.float64)
        self.decay = coefficient**lead  # (n,)
        distance = (lead[:, None] - lead).abs()
        self.covariance = coefficient**distance - coefficient ** (lead[:, None] + lead)  # (n, n)

    def denoiser(self, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        mean = self.decay[:, None, None, None] * history[:, -1:]
        power = self.fields.spectrum[..., None, None]  # (C, H, W, 1, 1)
        prior = power * self.covariance  # (C, H, W, n, n)
        noise = float(sigma) ** 2 * torch.eye(self.block_length).double()
        gain = prior @ torch.linalg.inv(prior + noise)
        modes = torch.fft.fft2(x.double() - mean)
        filtered = torch.einsum("cyxij,bjcyx->bicyx", gain.to(modes.dtype), modes)
        return (mean + torch.fft.ifft2(filtered).real).to(x.dtype)


def sampler(
    model: ExactBlocks, steps: int = 4, sigma_max: float = 20.0, overlap: int = 0
) -> ConditionalFrameSampler:
    return ConditionalFrameSampler(
        model.denoiser,
        edm_sigmas(steps, sigma_min=0.02, sigma_max=sigma_max),
        history_length=model.history_length,
        frames=model.block_length,
        overlap=overlap,
    )


def start(model: ExactBlocks, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return model.fields.simulate(count, model.history_length, generator=generator)


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_a_rollout_in_blocks_is_the_loop_over_blocks(overlap: int) -> None:
    """Each block from the last frame and noise of its own first step; the last is cut short."""
    model = ExactBlocks(0.8, 3, history_length=2)
    histories, steps = start(model, 2), 7
    drawn = sampler(model, overlap=overlap)
    assert drawn.block_length == 3 - overlap
    ensemble = rollout(drawn, histories, members=2, steps=steps, seed=5, batch_size=3)
    assert ensemble.frames.shape == (2, 2, steps, 1, SIZE, SIZE)
    sigmas = drawn.sigmas
    for initial, member in [(0, 0), (0, 1), (1, 1)]:
        frames = histories[initial]
        while len(frames) < 2 + steps:
            noise = FrameNoise(5, [(initial, member)], len(frames) - 2)
            history = frames[None, -2:]

            def denoise(x: Tensor, sigma: Tensor, history: Tensor = history) -> Tensor:
                return model.denoiser(x, sigma, history)

            level = sigmas[0].float()
            last = torch.stack([frames[-1]] * 3)[None]
            estimate = denoise(last + level * noise(last), level)
            block = heun(denoise, estimate + level * noise(last), sigmas)
            frames = torch.cat([frames, block[0, : 3 - overlap]])
        expected = frames[2 : 2 + steps]
        torch.testing.assert_close(ensemble.frames[initial, member], expected)
    evaluations = 2 * 4 - 1 + 1  # heun's, and one for the estimate
    assert bool((ensemble.diagnostics["denoiser_evaluations"] == evaluations).all())


@pytest.mark.parametrize(("frames", "overlap", "steps"), [(3, 0, 3), (3, 0, 6), (3, 1, 4)])
def test_blocks_of_an_exact_denoiser_have_the_law_of_the_process(
    frames: int, overlap: int, steps: int
) -> None:
    """Means and covariances at all pairs of leads, within a block and across, by 3 errors."""
    model = ExactBlocks(0.8, frames)
    count, last = 3000, start(model, 1)
    drawn = sampler(model, steps=40, overlap=overlap)
    ensemble = rollout(drawn, last, members=count, steps=steps, seed=1, batch_size=count)
    made, last = ensemble.frames[0].double(), last[0, -1].double()

    def check(values: Tensor, expected: float) -> None:
        error = values.std().item() / math.sqrt(count)
        assert error < 0.01
        assert abs(values.mean().item() - expected) < 3 * error

    decay = 0.8 ** torch.arange(1.0, steps + 1).double()
    modes = torch.fft.fft2(made - decay[:, None, None, None] * last, norm="ortho")
    modes = modes / model.fields.spectrum.sqrt()
    for i in range(steps):
        check((made[:, i] * last).sum((1, 2, 3)) / last.square().sum(), 0.8 ** (i + 1))
        for j in range(i, steps):
            products = (modes[:, i] * modes[:, j].conj()).real.mean((1, 2, 3))
            check(products, 0.8 ** (j - i) - 0.8 ** (i + j + 2))


def test_a_low_first_noise_level_does_not_shrink_the_mean_of_a_block() -> None:
    """The response to the history is linear: a^lead h. Noise alone as a start gives less."""
    model = ExactBlocks(0.9, 3)
    history = start(model, 3)
    drawn = sampler(model, steps=64, sigma_max=4.0)

    def noise() -> FrameNoise:
        return FrameNoise(4, [(0, 0), (0, 1), (1, 0)], 0)

    response = drawn(history, noise())[0] - drawn(torch.zeros_like(history), noise())[0]
    expected = model.decay[:, None, None, None] * history
    gap = (response - expected).square().mean((0, 2, 3, 4)) / expected.square().mean((0, 2, 3, 4))
    spread = model.covariance.trace().sqrt()  # of what the frames of a block have in common
    assert gap.sqrt().max() < spread / 4.0 / 3


def test_settings_reach_a_model_of_blocks() -> None:
    model = ExactBlocks(0.8, 4, history_length=2)
    drawn = frame_sampler(model, Sampling(steps=3, sigma_max=5.0, overlap=1))
    assert isinstance(drawn, ConditionalFrameSampler)
    assert (drawn.history_length, drawn.frames, drawn.block_length) == (2, 4, 3)
    assert drawn.description()["overlap"] == 1
    one: Any = SimpleNamespace(denoiser=model.fields.denoise_given, history_length=2)
    assert frame_sampler(one, Sampling()).block_length == 1


def test_an_overlap_that_cannot_be_is_refused() -> None:
    model = ExactBlocks(0.8, 3)
    for overlap in (-1, 3):
        with pytest.raises(ValueError, match=f"overlap = {overlap} must lie between 0 and 2"):
            frame_sampler(model, Sampling(overlap=overlap))
    image = SimpleNamespace(denoiser=model.fields.denoise)
    with pytest.raises(ValueError, match="makes one frame at a time, which cannot overlap"):
        frame_sampler(image, Sampling(overlap=1))
