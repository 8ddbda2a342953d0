"""Latent diffusion of motion: losses by hand, what is frozen, checkpoints, samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tiny_cube import fit, make
from tiny_motion import AUTOENCODER, HEIGHT, TERMS, WIDTH, TinyMotion, spectral_unet
from torch import Tensor

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.diffusion.guidance import Term
from dyngen.models import SpectralLDM
from dyngen.models.checkpoints import load_model
from dyngen.models.cube_module import VALIDATION_SIGMAS
from dyngen.models.spectral_ldm import seeded_noise
from dyngen.motion.loops import loop_closure

Log = Callable[[Any], dict[str, float]]
KINDS = ["independent", "coordinated", "volume"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data() -> TinyMotion:
    return TinyMotion()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory, data: TinyMotion) -> Path:
    """Of one term more than the latent diffusion uses."""
    path = tmp_path_factory.mktemp("autoencoder") / "last.ckpt"
    more = TinyMotion(terms=TERMS + 1)
    model = make("MotionAutoencoder", network=AUTOENCODER, terms=TERMS + 1, warmup_steps=1,
                 learning_rate=0.01)  # fmt: skip
    fit(model, more, max_steps=30, limit_val_batches=0).save_checkpoint(path)
    return path


def ldm(**options: Any) -> SpectralLDM:
    model = make("SpectralLDM", **{"warmup_steps": 1, "learning_rate": 0.01} | options)
    assert isinstance(model, SpectralLDM)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: TinyMotion, autoencoder: Path) -> Path:
    path = tmp_path_factory.mktemp("base") / "last.ckpt"
    model = ldm(network=spectral_unet(), autoencoder=str(autoencoder))
    fit(model, data, max_steps=10, limit_val_batches=0).save_checkpoint(path)
    return path


def awake(kind: str, autoencoder: Path, **options: Any) -> SpectralLDM:
    """A model as after some training: no weight of the network at zero."""
    model = ldm(network=spectral_unet(kind), autoencoder=str(autoencoder), **options)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


# Training


@pytest.mark.parametrize("kind", ["coordinated", "volume"])
def test_the_loss_is_the_weighted_denoising_error_of_whole_volumes(
    kind: str, data: TinyMotion, autoencoder: Path, logged: Log
) -> None:
    model = awake(kind, autoencoder, image_dropout=0.5)
    values = logged(model)
    torch.manual_seed(5)
    loss = model.training_step(data.batch(), 0)
    torch.manual_seed(5)
    clean = model.latents.encode(model.volume(data.displacement))
    assert clean.shape == (8, TERMS, 4, 4, 8)
    sigma = model.noise.sample(8, "cpu")
    noisy = clean + column(sigma) * torch.randn_like(clean)
    hidden = torch.rand(8) < 0.5
    assert 0 < hidden.sum() < 8
    scale = (1 + column(sigma) ** 2).rsqrt()
    context = model.network.encode_image(data.batch()["image"], (4, 8))
    context[hidden] = model.network.no_image
    output = model.network(scale * noisy, sigma.log() / 4, context)
    denoised = scale**2 * noisy + column(sigma) * scale * output
    weight = column(1 + sigma**-2)
    expected = (weight * (denoised - clean).square()).mean()
    torch.testing.assert_close(loss, expected)
    assert values["train/loss"] == loss.item()


def test_the_first_stage_sees_some_terms_each_at_its_own_level(
    data: TinyMotion, autoencoder: Path, logged: Log
) -> None:
    model = awake("independent", autoencoder, slices=2, image_dropout=0.0)
    logged(model)
    torch.manual_seed(5)
    loss = model.training_step(data.batch(), 0)
    torch.manual_seed(5)
    latents = model.latents.encode(model.volume(data.displacement))
    terms = torch.rand(8, TERMS).argsort(1)[:, :2]
    sigma = model.noise.sample(16, "cpu").view(8, 2)
    noise = torch.randn(8, 2, 4, 4, 8)
    image, total = data.batch()["image"], 0.0
    for clip in range(8):
        for n, k in enumerate(terms[clip].tolist()):
            s, clean = sigma[clip, n], latents[clip, k]
            noisy = clean + s * noise[clip, n]
            everything = torch.zeros(1, TERMS, 4, 4, 8)
            everything[0, k] = noisy
            denoised = model(everything, s, image[clip : clip + 1])[0, k]
            total += ((1 + s**-2) * (denoised - clean).square().mean()).item() / 16
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_images_are_hidden_as_often_as_told(data: TinyMotion, autoencoder: Path) -> None:
    model = awake("volume", autoencoder, image_dropout=0.3)
    seen: list[Tensor] = []

    def watch(x: Tensor, label: Tensor, **conditioning: Tensor) -> Tensor:
        seen.append(conditioning["dropped"])
        return x

    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    model.network.forward = watch  # type: ignore[method-assign,assignment]
    for _ in range(60):
        model.training_step(data.batch(), 0)
    share = torch.cat(seen).float().mean().item()
    assert share == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 480))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_second_stage_trains_attention_alone(
    data: TinyMotion, base: Path, precision: Any
) -> None:
    model = ldm(base=str(base))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    noisy, sigma, image = torch.randn(2, TERMS, 4, 4, 8), torch.tensor(0.7), torch.rand(2, 3, 8, 16)
    before = load_model(base)(noisy, sigma, image)
    torch.testing.assert_close(model(noisy, sigma, image), before)
    modes: list[tuple[bool, bool]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, model: Any, *rest: Any) -> None:
            modes.append((model.denoiser.training, model.autoencoder.training))

    fit(model, data, precision=precision, callbacks=[Watch()], num_sanity_val_steps=1)
    assert modes == [(False, False)] * 3
    attention = {id(p) for p in model.network.attention_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in attention}
    changed = {name for name, value in model.state_dict().items() if not value.equal(first[name])}
    assert changed
    assert changed <= names
    with torch.no_grad():
        assert not torch.allclose(model(noisy, sigma, image), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind: str, data: TinyMotion, autoencoder: Path, logged: Log) -> None:
    model = ldm(network=spectral_unet(kind), autoencoder=str(autoencoder), slices=3)
    values = logged(model)

    def measured() -> list[float]:
        with torch.no_grad():
            model.eval().validation_step(data.batch(), 0)
        return [values[name] for name in ("validate/loss", "denoising_error/sigma_5")]

    loss, error = measured()
    latents = model.latents.encode(model.volume(data.displacement))
    # At first and at high noise it knows no better than to say 0.
    assert error == pytest.approx(latents.square().mean().item(), rel=0.05)
    fit(model.train(), data, max_steps=40, limit_val_batches=0)
    after, error_after = measured()
    assert after < 0.95 * loss
    assert error_after < 0.9 * error


@torch.no_grad()
def test_reconstruction_is_through_noise_network_and_decoder(
    data: TinyMotion, autoencoder: Path, logged: Log
) -> None:
    model = awake("coordinated", autoencoder).eval()
    values = logged(model)
    model.test_step(data.batch(), 3)
    volume = model.volume(data.displacement)
    clean, image = model.latents.encode(volume), data.batch()["image"]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for level in VALIDATION_SIGMAS:
        denoised = model(clean + level * noise, torch.tensor(level), image)
        error = (denoised - clean).square().mean().item()
        assert values[f"denoising_error/sigma_{level:g}"] == pytest.approx(error, rel=1e-4)
        total += error * (1 + level**-2) / len(VALIDATION_SIGMAS)
        decoded = model.latents.normalise(model.latents.decode(denoised))
        off = (decoded - model.latents.normalise(volume)).abs().mean().item()
        assert values[f"reconstruction_error/sigma_{level:g}"] == pytest.approx(off, rel=1e-4)
    assert values["validate/loss"] == pytest.approx(total, rel=1e-4)


# Checkpoints


def test_a_checkpoint_needs_neither_autoencoder_nor_base(
    data: TinyMotion, autoencoder: Path, tmp_path: Path
) -> None:
    """And is trained on from itself, with averaged weights, while the files are there."""
    mine, first = tmp_path / "autoencoder.ckpt", tmp_path / "base.ckpt"
    mine.write_bytes(autoencoder.read_bytes())
    stage = ldm(network=spectral_unet(), autoencoder=str(mine), parameterisation="v")
    fit(stage, data, limit_val_batches=0).save_checkpoint(first)
    options: dict[str, Any] = {"base": str(first), "heads": 2}
    options["noise"] = {
        "class_path": "dyngen.diffusion.noise.LogUniformNoise",
        "init_args": {"sigma_min": 0.1, "sigma_max": 7.0},
    }
    model = ldm(**options)
    folder: Any = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer = fit(model, data, callbacks=[ExponentialMovingAverage(0.5)], **folder)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = fit(ldm(**options), data, max_steps=5, callbacks=[ExponentialMovingAverage(0.5)],
                ckpt_path=tmp_path / "last.ckpt", **folder)  # fmt: skip
    assert again.global_step == 5
    mine.unlink()
    first.unlink()
    for _ in range(2):  # as often as one likes
        loaded = load_model(tmp_path / "last.ckpt")
        assert isinstance(loaded, SpectralLDM)
        assert (loaded.terms, loaded.frames) == (TERMS, 15)
        assert loaded.network.coordination == "coordinated"
        assert loaded.denoiser is not None
        assert loaded.denoiser.parameterisation == "v"
        image = data.batch()["image"][:2]
        torch.testing.assert_close(
            loaded.sample(image, steps=2), model.eval().sample(image, steps=2)
        )
        assert not any(p.requires_grad for p in loaded.parameters())


def test_files_of_the_wrong_kind_are_refused(
    autoencoder: Path, base: Path, data: TinyMotion, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds a MotionAutoencoder; as the base of latent diff"):
        SpectralLDM(base=str(autoencoder))
    with pytest.raises(ValueError, match="holds a SpectralLDM; as the autoencoder of latent"):
        SpectralLDM(model_network(), autoencoder=str(base))
    with pytest.raises(ValueError, match=r"There is no checkpoint .*nowhere\.ckpt"):
        fit(SpectralLDM(model_network(), autoencoder=str(tmp_path / "nowhere.ckpt")), data)
    with pytest.raises(ValueError, match="A base brings its own network and autoencoder"):
        SpectralLDM(model_network(), base=str(base))
    with pytest.raises(ValueError, match="The latent diffusion has no network; set"):
        fit(SpectralLDM(), data)
    with pytest.raises(ValueError, match="The latent diffusion has no autoencoder; set"):
        fit(SpectralLDM(model_network()), data)
    with pytest.raises(ValueError, match="has 3 channels and the autoencoder's latents 4"):
        SpectralLDM(model_network(channels=3), autoencoder=str(autoencoder))
    with pytest.raises(ValueError, match="The autoencoder knows 4 terms, not 5"):
        SpectralLDM(model_network(terms=5), autoencoder=str(autoencoder))
    with pytest.raises(ValueError, match="image_dropout is 1"):
        SpectralLDM(image_dropout=1.0)
    with pytest.raises(ValueError, match="slices is 0"):
        SpectralLDM(slices=0)


def model_network(**options: Any) -> Any:
    from dyngen.networks.spectral_unet import SpectralUNet

    return SpectralUNet(**spectral_unet(**options)["init_args"])


def test_a_volume_network_is_no_base(data: TinyMotion, autoencoder: Path, tmp_path: Path) -> None:
    model = ldm(network=spectral_unet("volume"), autoencoder=str(autoencoder))
    fit(model, data, max_steps=1, limit_val_batches=0).save_checkpoint(tmp_path / "volume.ckpt")
    with pytest.raises(ValueError, match="whose terms are 'volume' cannot be coordinated"):
        SpectralLDM(base=str(tmp_path / "volume.ckpt"))


def test_other_clips_than_the_autoencoders_are_refused(autoencoder: Path) -> None:
    model = ldm(network=spectral_unet(), autoencoder=str(autoencoder))
    with pytest.raises(ValueError, match="clips of 15 frames, but this data has 9"):
        fit(model, TinyMotion(frames=9))


# Samples


def latents_as_volumes(model: SpectralLDM) -> SpectralLDM:
    """The model with samples as they are before they are decoded."""
    model.decode = lambda latents: latents  # type: ignore[method-assign]
    return model


def test_samples_are_of_the_right_law(autoencoder: Path) -> None:
    """What is not trained denoises standard normal latents exactly, whatever their image."""
    model = latents_as_volumes(ldm(network=spectral_unet(), autoencoder=str(autoencoder)))
    image = torch.rand(16, 3, HEIGHT, WIDTH)
    for options in (
        {"sampler": "heun", "steps": 40},
        {"sampler": "ddim", "eta": 1.0, "steps": 150},
    ):
        latents = model.sample(image, **options)  # type: ignore[arg-type]
        assert latents.shape == (16, TERMS, 4, 4, 8)
        count = latents.numel()
        assert latents.mean().item() == pytest.approx(0, abs=3 / math.sqrt(count))
        # Beside the sampling error, steps of a size leave the variance a little off.
        assert latents.var().item() == pytest.approx(1, abs=3 * math.sqrt(2 / count) + 0.03)


def test_a_sample_is_its_own_whatever_the_batch(autoencoder: Path, data: TinyMotion) -> None:
    model = awake("coordinated", autoencoder).eval()
    image = data.batch()["image"][:3]
    options: dict[str, Any] = {"steps": 3, "sampler": "ddpm"}
    volumes = model.sample(image, 7, **options)
    assert volumes.shape == (3, TERMS, 4, HEIGHT, WIDTH)
    assert volumes[:, 0, 1::2].abs().max() == 0
    torch.testing.assert_close(model.sample(image[:2], 7, **options), volumes[:2])
    third = model.sample(image[2:], seeded_noise(7, 1, first=2), **options)
    torch.testing.assert_close(third, volumes[2:])
    assert not torch.allclose(model.sample(image, 8, **options), volumes)
    same = model.sample(image[:1].repeat(2, 1, 1, 1), 7, **options)
    assert not torch.allclose(same[0], same[1])


def test_guidance_without_a_classifier_is_the_formula(autoencoder: Path, data: TinyMotion) -> None:
    model = latents_as_volumes(awake("coordinated", autoencoder).eval())
    image, start = data.batch()["image"][:2], torch.randn(2, TERMS, 4, 4, 8)
    one = {"steps": 1, "sigma_max": 3.0, "noise": lambda like: start}
    sampled = model.sample(image, guidance_scale=1.75, **one)  # type: ignore[arg-type]
    with torch.no_grad():
        seen, unseen = (model(3 * start, torch.tensor(3.0), i) for i in (image, None))
    torch.testing.assert_close(sampled, 2.75 * seen - 1.75 * unseen)
    plain = model.sample(image, guidance_scale=0.0, **one)  # type: ignore[arg-type]
    torch.testing.assert_close(plain, seen)
    assert not torch.allclose(plain, sampled, atol=1e-3)


def test_motions_close_when_asked_to(autoencoder: Path, data: TinyMotion) -> None:
    model = ldm(network=spectral_unet(), autoencoder=str(autoencoder)).eval()
    model.cube = data.description()
    image = data.batch()["image"][:4]
    options: dict[str, Any] = {"steps": 30, "sampler": "self_recurrent_ddim", "guidance_scale": 0.0}

    def energy(terms: list[Term]) -> float:
        return loop_closure(model.sample(image, terms=terms, **options), 15).mean().item()

    free, little, much = (
        energy([model.loop_term(image, scale=scale)] if scale else []) for scale in (0, 300, 3000)
    )
    assert much < little < free
    assert much < 0.8 * free


def test_images_that_do_not_fit_get_a_sentence(autoencoder: Path) -> None:
    model = ldm(network=spectral_unet(), autoencoder=str(autoencoder))
    with pytest.raises(ValueError, match="9 x 16 pixels are no multiple of 2"):
        model.sample(torch.zeros(1, 3, 9, 16), steps=1)
    with pytest.raises(ValueError, match="Unknown sampler 'euler'; choose one of heun"):
        model.sample(torch.zeros(1, 3, 8, 16), sampler="euler")
