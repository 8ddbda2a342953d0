"""The video model: its loss as the formula says, learning, checkpoints, and rollouts from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cube import ENERGY, TinyCube, fit, make
from torch import Tensor, nn

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.diffusion.noise import LogUniformNoise
from dyngen.models import VideoDiffusion
from dyngen.models.checkpoints import load_model
from dyngen.models.cube_module import VALIDATION_SIGMAS
from dyngen.networks.video_unet import VideoUNet
from dyngen.rollout import Sampling, frame_sampler, rollout

Log = Callable[[Any], dict[str, float]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """The network as after some training: no weight at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def network(n: int, k: int = 2) -> dict[str, Any]:
    """The network of a block of n frames, as a configuration names it."""
    sizes = {"channels": 2, "history_length": k, "block_length": n, "widths": [8, 8], "blocks": 1}
    return {"class_path": "dyngen.networks.video_unet.VideoUNet", "init_args": sizes}


def model(n: int, **options: Any) -> VideoDiffusion:
    noise = LogUniformNoise(0.05, 20.0)
    return VideoDiffusion(awake(VideoUNet(2, 2, n, (8, 8), 1)), noise=noise, **options)


def made(n: int, **options: Any) -> VideoDiffusion:
    """A model as the command line makes it."""
    video = make("VideoDiffusion", network=network(n), **options)
    assert isinstance(video, VideoDiffusion)
    return video


def windows(n: int) -> dict[str, Tensor]:
    return {"frames": TinyCube(2 + n).frames[:6]}


def by_hand(video: VideoDiffusion, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
    """The network's output made into denoised frames, from the definition of EDM alone."""
    s = sigma.view(-1, 1, 1, 1, 1)
    output = video.denoiser.network(x / (1 + s**2).sqrt(), sigma.log() / 4, history)
    return x / (1 + s**2) + s / (1 + s**2).sqrt() * output


@pytest.mark.parametrize("n", [1, 3])
def test_the_loss_is_the_weighted_error_of_whole_blocks(n: int, logged: Log) -> None:
    video = model(n)
    values = logged(video)
    torch.manual_seed(5)
    loss = video.training_step(windows(n), 0)
    torch.manual_seed(5)
    history, clean = windows(n)["frames"][:, :2], windows(n)["frames"][:, 2:]
    assert clean.shape == (6, n, 2, 8, 8)
    sigma = video.noise.sample(6, "cpu")  # one for all frames of a block
    s = sigma.view(-1, 1, 1, 1, 1)
    denoised = by_hand(video, clean + s * torch.randn(6, n, 2, 8, 8), sigma, history)
    expected = ((1 + s**-2) * (denoised - clean).square()).mean()
    torch.testing.assert_close(loss, expected)
    assert values["train/loss"] == loss.item()


def test_noise_on_the_history_is_of_training_alone(logged: Log) -> None:
    """With a level for each window, between nothing and what was asked for."""
    video = model(3, history_noise=0.4)
    values = logged(video)
    seen: list[Tensor] = []
    video.denoiser.network.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["history"]), with_kwargs=True
    )
    batch = {"frames": TinyCube(5).frames}
    history = batch["frames"][:, :2]
    video.training_step(batch, 0)
    levels = (seen.pop() - history).flatten(1).std(1)
    assert bool((levels > 0).all())
    assert levels.max() < 0.45
    assert 0.1 < levels.mean() < 0.3
    assert levels.std() > 0.05
    with torch.no_grad():
        video.validation_step(batch, 0)
    assert all(torch.equal(given, history) for given in seen)
    assert len(seen) == len(VALIDATION_SIGMAS)
    assert values["validate/loss"] > 0
    with pytest.raises(ValueError, match=r"history_noise is -0\.1; it must not be negative"):
        model(1, history_noise=-0.1)


@pytest.mark.parametrize("n", [1, 3])
def test_validation_is_by_noise_level(n: int, logged: Log) -> None:
    video = model(n).eval()
    values = logged(video)
    with torch.inference_mode():  # as Lightning validates
        video.validation_step(windows(n), 3)
    history, clean = windows(n)["frames"][:, :2], windows(n)["frames"][:, 2:]
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for level in VALIDATION_SIGMAS:
        denoised = by_hand(video, clean + level * eps, torch.full((6,), level), history)
        error = (denoised - clean).square().mean().item()
        assert values[f"denoising_error/sigma_{level:g}"] == pytest.approx(error, rel=1e-4)
        total += (1 + level**-2) * error / len(VALIDATION_SIGMAS)
    assert values["validate/loss"] == pytest.approx(total, rel=1e-4)
    before = dict(values)
    video.test_step(windows(n), 3)
    assert values == pytest.approx(before)


@pytest.mark.parametrize("n", [1, 3])
def test_it_learns_from_the_history(n: int) -> None:
    """Below what is left when the noisy frames alone are known, where noise hides them."""
    video = made(n, learning_rate=0.01, warmup_steps=1)
    frames = TinyCube(2 + n).frames
    history, clean = frames[:, :2], frames[:, 2:]
    noisy = clean + 5 * torch.randn_like(clean)

    def error() -> float:
        with torch.no_grad():
            return (video(noisy, torch.tensor(5.0), history) - clean).square().mean().item()

    untrained = error()
    assert untrained == pytest.approx((noisy / 26 - clean).square().mean().item(), rel=1e-5)
    fit(video, TinyCube(2 + n), max_steps=24)
    assert error() < 0.7 * untrained


def test_it_is_a_reference_for_the_discriminator(
    image_checkpoint: Path, tmp_path: Path, logged: Log
) -> None:
    """Which logs the conditional model's denoising error beside its own, on the same noise."""
    video = made(1, learning_rate=0.01, warmup_steps=1)
    fit(video).save_checkpoint(tmp_path / "video.ckpt")
    discriminator: Any = make(
        "TimeConsistencyDiscriminator",
        discriminator=ENERGY,
        image_model=str(image_checkpoint),
        reference=str(tmp_path / "video.ckpt"),
    ).eval()
    theirs, ours = logged(discriminator), logged(video.eval())
    discriminator.validation_step(windows(1), 2)
    with torch.no_grad():
        video.validation_step(windows(1), 2)
    for level in VALIDATION_SIGMAS:
        reference = theirs[f"denoising_error_reference/sigma_{level:g}"]
        assert reference == pytest.approx(ours[f"denoising_error/sigma_{level:g}"], rel=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_a_checkpoint_rolls_out_as_the_model_it_was(n: int, tmp_path: Path) -> None:
    video = made(n, learning_rate=0.01, warmup_steps=1)
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    averaging = [ExponentialMovingAverage(decay=0.5)]
    trainer = fit(video, TinyCube(2 + n), callbacks=averaging, **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_model(tmp_path / "last.ckpt")
    assert isinstance(loaded, VideoDiffusion)
    assert (loaded.history_length, loaded.block_length) == (2, n)
    assert loaded.cube is not None
    sampler = frame_sampler(loaded, Sampling(steps=3, sigma_max=2.0))
    assert sampler.block_length == n
    histories = TinyCube(2).frames[:2]
    frames = rollout(sampler, histories, members=2, steps=5, seed=1).frames
    again = rollout(sampler, histories, members=2, steps=5, seed=1, batch_size=3).frames
    assert frames.shape == (2, 2, 5, 2, 8, 8)
    torch.testing.assert_close(frames, again, rtol=1e-4, atol=1e-5)
    assert (frames[:, 0] - frames[:, 1]).abs().max() > 0.01


def test_windows_of_another_length_get_a_sentence(logged: Log) -> None:
    video = model(3)
    logged(video)
    with pytest.raises(ValueError, match=r"a block of 3, but windows have 3 frames; set data\.ini"):
        video.training_step(windows(1), 0)


def test_guidance_does_not_apply() -> None:
    for settings in (Sampling(scale=2.0), Sampling(particles=4)):
        with pytest.raises(ValueError, match="VideoDiffusion is given the history itself"):
            frame_sampler(model(1), settings)
