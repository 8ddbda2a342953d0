"""The autoencoder of spectral volumes: the loss as the formula says, scales, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tiny_cube import fit, make
from tiny_motion import AUTOENCODER, TERMS, TinyMotion
from torch import Tensor

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.models import MotionAutoencoder
from dyngen.models.checkpoints import load_model
from dyngen.models.motion_autoencoder import gradient_consistency, kl_divergence, some_terms
from dyngen.motion.spectral_volume import ImageSize, spectral_volume
from dyngen.networks.autoencoder import ImageAutoencoder

Log = Callable[[Any], dict[str, float]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data() -> TinyMotion:
    return TinyMotion()


def awake(**options: Any) -> MotionAutoencoder:
    """A model as after some training: no weight at zero, moments and scales of its own."""
    model = MotionAutoencoder(ImageAutoencoder(widths=(8, 8), patch=1), TERMS, **options)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.latent_moments.copy_(torch.tensor([[0.5] * 4, [4.25] * 4]))  # mean 0.5, variance 4
        if model.hparams["normalisation"] == "frequency":
            model.normalisation.get_buffer("scales").copy_(torch.tensor([3.0, 1.0, 0.2]))
    return model


def trained(**options: Any) -> MotionAutoencoder:
    model = make(
        "MotionAutoencoder",
        **{"network": AUTOENCODER, "terms": TERMS, "warmup_steps": 1, "learning_rate": 0.01}
        | options,
    )
    assert isinstance(model, MotionAutoencoder)
    return model


def consistency_by_hand(residual: Tensor) -> float:
    """Pixel by pixel, scale by scale."""
    total = 0.0
    height, width = residual.shape[-2:]
    for step in (1, 2, 4, 8):
        across = [
            (residual[..., y, x + step] - residual[..., y, x]).abs().mean()
            for y in range(0, height, step)
            for x in range(0, width - step, step)
        ]
        down = [
            (residual[..., y + step, x] - residual[..., y, x]).abs().mean()
            for y in range(0, height - step, step)
            for x in range(0, width, step)
        ]
        total += sum(torch.stack(d).mean().item() for d in (across, down) if d)
    return total


def test_gradients_are_consistent_at_four_scales() -> None:
    target = torch.randn(2, 4, 8, 11)
    predicted = target + torch.randn(2, 4, 8, 11)
    value = gradient_consistency(predicted, target).item()
    assert value == pytest.approx(consistency_by_hand(predicted - target), rel=1e-5)
    assert gradient_consistency(target + 3, target).item() == pytest.approx(0, abs=1e-5)


def test_the_divergence_is_that_of_gaussians() -> None:
    mean, log_variance = torch.randn(5), torch.randn(5)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros(5), torch.ones(5))
    )
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_the_loss_is_the_sum_of_three(data: TinyMotion, logged: Log) -> None:
    model = awake(gradient_weight=0.3, divergence_weight=0.01)
    values = logged(model)
    torch.manual_seed(5)
    loss = model.training_step(data.batch(), 0)
    torch.manual_seed(5)
    volume = spectral_volume(data.displacement, TERMS)
    x = volume.sign() * (volume.abs() / torch.tensor([3.0, 1.0, 0.2])[:, None, None, None]).sqrt()
    order = torch.rand(8, TERMS).argsort(1)
    x = torch.stack([clip[k] for clip, ks in zip(x, order, strict=True) for k in ks])
    mean, log_variance = model.network.encode(x)
    decoded = model.network.decode(mean + (log_variance / 2).exp() * torch.randn_like(mean))
    error = (decoded - x).abs().mean()
    consistency = consistency_by_hand(decoded - x)
    divergence = kl_divergence(mean, log_variance).flatten(1).sum(1).mean() / (4 * 8 * 16)
    assert values["train/reconstruction_error"] == pytest.approx(error.item())
    assert values["train/gradient_error"] == pytest.approx(consistency, rel=1e-5)
    assert values["train/divergence"] == pytest.approx(divergence.item())
    expected = error.item() + 0.3 * consistency + 0.01 * divergence.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_weights_are_those_of_the_paper_unless_told() -> None:
    model = MotionAutoencoder()
    assert (model.gradient_weight, model.divergence_weight) == (0.2, 1e-6)
    assert (model.terms, model.latent_channels) == (16, 4)


def test_terms_are_drawn_without_repetition() -> None:
    volume = torch.arange(5.0).expand(400, 5).clone()
    drawn, term = some_terms(volume, 2)
    assert torch.equal(drawn, term.float())
    assert bool((term[:, 0] != term[:, 1]).all())
    counts = term.flatten().bincount(minlength=5)
    assert counts.min() > 110  # 160 each expected, with a standard deviation of 10
    everything, _ = some_terms(volume, 9)
    assert torch.equal(everything.sort(1).values, volume)


def test_latents_and_volumes_keep_their_units(data: TinyMotion) -> None:
    """Latents are the network's own, standardised; volumes are in pixels, with a real mean."""
    model = awake()
    volume = spectral_volume(data.displacement, TERMS)
    latents = model.encode(volume)
    assert latents.shape == (8, TERMS, 4, 4, 8)
    scale = torch.tensor([3.0, 1.0, 0.2])[:, None, None, None]
    slices = volume.sign() * (volume.abs() / scale).sqrt()
    mean, _ = model.network.encode(slices[:, 1])
    torch.testing.assert_close(latents[:, 1], (mean - 0.5) / 2)
    decoded = model.decode(latents)
    raw = model.network.decode(mean)
    torch.testing.assert_close(decoded[:, 1], raw * raw.abs())
    assert decoded[:, 0, 1::2].abs().max() == 0
    assert decoded[:, 0, ::2].abs().max() > 0
    torch.testing.assert_close(model(volume), decoded)


def test_precision_that_is_mixed_does_not_touch_the_transform(data: TinyMotion) -> None:
    model = awake()
    with torch.autocast("cpu", torch.bfloat16):
        volume = model.volume(data.displacement)
    assert torch.equal(volume, spectral_volume(data.displacement, TERMS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: TinyMotion) -> Path:
    path = tmp_path_factory.mktemp("autoencoder") / "last.ckpt"
    callbacks = [ExponentialMovingAverage(decay=0.8)]
    options: Any = {"enable_checkpointing": True, "default_root_dir": path.parent}
    fit(trained(), data, max_steps=80, callbacks=callbacks, **options).save_checkpoint(path)
    return path


def test_a_checkpoint_suffices(checkpoint: Path, data: TinyMotion) -> None:
    model = load_model(checkpoint)
    assert isinstance(model, MotionAutoencoder)
    assert model.frames == 15
    assert model.cube == data.description()
    assert not any(p.requires_grad for p in model.parameters())
    volume = spectral_volume(data.displacement, TERMS)
    # Scales are quantiles of what moves, latents have unit moments, and something was learnt.
    for k, scale in enumerate(model.normalisation.get_buffer("scales").tolist()):
        values = volume[:, k].abs()
        quantile = torch.quantile(values[values > 0], 0.95).item()
        assert scale == pytest.approx(quantile, rel=0.01)
    latents = model.encode(volume)
    assert latents.mean((0, 1, 3, 4)).abs().max() < 0.25
    assert (latents.std((0, 1, 3, 4)) - 1).abs().max() < 0.25
    lost = (model(volume) - volume).square().sum() / volume.square().sum()
    assert lost < 0.5


def test_fewer_terms_are_kept_as_they_are(checkpoint: Path, data: TinyMotion) -> None:
    model: Any = load_model(checkpoint)
    volume = spectral_volume(data.displacement, TERMS)
    whole = model.encode(volume)
    model.keep_terms(2)
    torch.testing.assert_close(model.encode(volume[:, :2]), whole[:, :2])
    with pytest.raises(ValueError, match="knows 2 terms, not 3"):
        model.keep_terms(3)


def test_scaling_by_image_size_is_an_option(data: TinyMotion, tmp_path: Path) -> None:
    model = trained(normalisation="image_size")
    fit(model, data).save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_model(tmp_path / "last.ckpt")
    assert isinstance(loaded, MotionAutoencoder)
    assert isinstance(loaded.normalisation, ImageSize)
    volume = spectral_volume(data.displacement, TERMS)
    normalised = loaded.normalise(volume)
    torch.testing.assert_close(normalised[:, :, 0], volume[:, :, 0] / 16)
    torch.testing.assert_close(normalised[:, :, 3], volume[:, :, 3] / 8)


def test_a_run_that_is_resumed_ends_the_same(data: TinyMotion, tmp_path: Path) -> None:
    whole, first, second = trained(), trained(), trained()
    schedule = torch.optim.lr_scheduler.ConstantLR

    def constant(model: MotionAutoencoder) -> MotionAutoencoder:
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        model.configure_optimizers = lambda: ([optimiser], [schedule(optimiser, 1.0)])  # type: ignore[method-assign]
        return model

    fit(constant(whole), data, max_steps=4)
    fit(constant(first), data, max_steps=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(constant(second), data, max_steps=4, ckpt_path=tmp_path / "half.ckpt")
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_validation_is_of_whole_volumes(data: TinyMotion, logged: Log) -> None:
    model = awake().eval()
    values = logged(model)
    with torch.no_grad():
        model.test_step(data.batch(), 0)
        volume = spectral_volume(data.displacement, TERMS)
        normalised, reconstructed = model.normalise(volume), model.normalise(model(volume))
        # The mean's phase is not part of a volume; the network's own answer to it counts here.
        error = (reconstructed - normalised).abs()
    for k in (1, 2):
        expected = error[:, k].mean().item()
        assert values[f"reconstruction_error/term_{k}"] == pytest.approx(expected, rel=1e-4)
    terms = [values[f"reconstruction_error/term_{k}"] for k in range(TERMS)]
    assert values["reconstruction_error"] == pytest.approx(sum(terms) / TERMS, rel=1e-5)
    lost = (model(volume) - volume).square().sum() / volume.square().sum()
    assert values["energy_lost"] == pytest.approx(lost.item(), rel=1e-4)
    assert values["validate/loss"] > values["reconstruction_error"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"normalisation": "none"}, "normalisation is 'none'; choose 'frequency'"),
        ({"gradient_weight": -1.0}, "must not be negative"),
        ({"slices": 0}, "slices is 0; a step sees at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MotionAutoencoder(**options)


def test_clips_of_another_length_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="clips of 15 frames, but this data has 9"):
        fit(trained(), TinyMotion(frames=9), max_steps=90, ckpt_path=checkpoint)
    with pytest.raises(ValueError, match="does not know how long clips are"):
        _ = MotionAutoencoder().frames


def test_a_term_without_motion_gets_a_sentence() -> None:
    still = TinyMotion()
    still.displacement = torch.rand(8, 1, 2, 8, 16).expand(-1, 15, -1, -1, -1)
    with pytest.raises(ValueError, match="Term 1 has no motion in any clip"):
        fit(trained(), still)


def test_moments_are_followed_over_training(data: TinyMotion) -> None:
    model = trained()
    means: list[Tensor] = []

    class Record(Callback):
        def on_train_batch_end(self, *rest: Any) -> None:
            means.append(model.latent_moments[0].clone())

    seen: list[Tensor] = []
    encode = model.network.encode

    def spy(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = encode(x)
        seen.append(mean.detach().mean((0, 2, 3)))
        return mean, log_variance

    model.network.encode = spy  # type: ignore[method-assign]
    fit(model, data, callbacks=[Record()], limit_val_batches=0)
    for n, mean in enumerate(means, start=1):  # an average over the steps so far
        torch.testing.assert_close(mean, torch.stack(seen[:n]).mean(0))
