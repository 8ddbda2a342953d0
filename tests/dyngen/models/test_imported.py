"""Image models from elsewhere: what comes through the door is what diffusers itself computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.noise import ddpm_sigmas, edm_sigmas, training_sigmas
from dyngen.diffusion.samplers import ddpm, heun
from dyngen.models.discriminator import open_image_model
from dyngen.models.imported import (
    denoiser_from_config,
    denoiser_from_folder,
    denoiser_from_state_dict,
    range_of_frames,
)
from dyngen.networks.unet import UNet2d

STEPS = 40


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="opens models that diffusers wrote")


@pytest.fixture(scope="module")
def unet(diffusers: Any) -> Any:
    """A tiny network of random weights, of size enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_unet(diffusers)


def make_unet(diffusers: Any, **settings: Any) -> Any:
    return diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 2,
            "out_channels": 2,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
            "attention_head_dim": 4,
        }
        | settings
    ).eval()


@pytest.fixture
def pipeline(diffusers: Any, unet: Any, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Scheduler options -> a pipeline's folder and its scheduler."""

    def save(kind: str = "DDPMScheduler", **options: Any) -> tuple[Path, Any]:
        scheduler = getattr(diffusers, kind)(STEPS, **options)
        folder = tmp_path / "pipeline"
        diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
        return folder, scheduler

    return save


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "scaled_linear"])
def test_the_denoised_estimate_is_that_of_diffusers(
    pipeline: Callable[..., tuple[Path, Any]], unet: Any, prediction: str, schedule: str
) -> None:
    folder, scheduler = pipeline(
        prediction_type=prediction, beta_schedule=schedule, clip_sample=False, beta_end=0.15
    )
    denoiser, _ = denoiser_from_folder(folder)
    levels = training_sigmas(scheduler.betas)
    for timestep in (0, 7, STEPS - 1):
        x = (levels[timestep] ** 2 + 1).sqrt().float() * noise(3, 2, 8, 8)
        x_t = x / (1 + levels[timestep] ** 2).sqrt().float()
        with torch.no_grad():
            output = unet(x_t, timestep).sample
            expected = scheduler.step(output, timestep, x_t).pred_original_sample
            ours = denoiser(x, levels[timestep])
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-4 * scale)


def test_sampled_images_are_those_of_the_pipeline(
    pipeline: Callable[..., tuple[Path, Any]], unet: Any
) -> None:
    """Every step of ancestral sampling with the same noise, which both draw in the same order."""
    folder, scheduler = pipeline(clip_sample=False, beta_end=0.2)
    denoiser, _ = denoiser_from_folder(folder)
    start = noise(2, 2, 8, 8, seed=1)
    generator = torch.Generator().manual_seed(2)
    x = start
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            x = scheduler.step(unet(x, timestep).sample, timestep, x, generator=generator)[0]
    sigmas = ddpm_sigmas(scheduler.betas)
    again = torch.Generator().manual_seed(2)
    ours = ddpm(
        denoiser,
        (1 + sigmas[0] ** 2).sqrt().float() * start,
        sigmas,
        noise=lambda like: torch.randn(like.shape, generator=again),
    )
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3 * x.abs().max().item())


def test_it_is_rebuilt_from_its_description_alone(
    pipeline: Callable[..., tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, _ = pipeline(prediction_type="v_prediction")
    (folder / "dyngen.json").write_text('{"scale": 0.5, "offset": [0.1, -0.2]}')
    denoiser, source = denoiser_from_folder(folder)
    torch.save({"source": source, "weights": denoiser.state_dict()}, tmp_path / "model.pt")
    folder.rename(tmp_path / "elsewhere")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    rebuilt = denoiser_from_config(saved["source"])
    x, sigma = noise(2, 2, 8, 8), torch.tensor([0.3, 1.0])
    assert not torch.equal(rebuilt(x, sigma), denoiser(x, sigma))
    rebuilt.load_state_dict(saved["weights"])
    assert torch.equal(rebuilt.eval()(x, sigma), denoiser(x, sigma))


def test_a_bare_unet_folder_is_that_of_ho_et_al(
    diffusers: Any, unet: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet.save_pretrained(tmp_path)
    denoiser, source = denoiser_from_folder(tmp_path)
    assert "has no scheduler_config.json; it is taken to predict the noise" in caplog.text
    assert source["parameterisation"] == "eps"
    betas = diffusers.DDPMScheduler(1000).betas.double()
    torch.testing.assert_close(torch.tensor(source["betas"]).double(), betas, rtol=1e-5, atol=0)
    level = training_sigmas(betas)[500]
    x = 3 * noise(2, 2, 8, 8)
    with torch.no_grad():
        eps = unet(x / (1 + level**2).sqrt().float(), 500).sample
        ours = denoiser(x, level)
    torch.testing.assert_close(ours, x - level.float() * eps, rtol=1e-3, atol=1e-3)


def test_the_unet_inside_a_pipeline_finds_its_scheduler(
    pipeline: Callable[..., tuple[Path, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = pipeline("DDIMScheduler", prediction_type="sample")
    _, source = denoiser_from_folder(folder / "unet")
    assert source == {**denoiser_from_folder(folder)[1], "path": "unet"}
    assert source["parameterisation"] == "x0"
    assert not caplog.records


def test_a_model_of_another_range_is_the_same_model_after_an_affine_map(
    pipeline: Callable[..., tuple[Path, Any]],
) -> None:
    """Sampling through the map is mapping the samples, in distribution and draw by draw."""
    folder, _ = pipeline(beta_end=0.2)
    inner, _ = denoiser_from_folder(folder)
    (folder / "dyngen.json").write_text('{"scale": 0.4, "offset": [0.3, -0.1]}')
    outer, _ = denoiser_from_folder(folder)
    offset = torch.tensor([0.3, -0.1]).view(2, 1, 1)
    sigmas = edm_sigmas(6, 0.01, 2.0)
    eps = noise(2, 2, 8, 8)
    theirs = heun(inner, 2.0 * eps, sigmas)
    ours = heun(outer, (2.0 * eps - offset) / 0.4, sigmas / 0.4)
    torch.testing.assert_close(0.4 * ours + offset, theirs, rtol=1e-4, atol=1e-4)
    sigma = torch.tensor([0.5])
    assert outer.loss_weight(sigma) == pytest.approx(0.16 * inner.loss_weight(0.4 * sigma).item())


def test_the_range_of_physical_values() -> None:
    scale, offset = range_of_frames(low=250.0, high=310.0, mean=288.0, std=15.0)
    for physical, seen in [(250.0, -1.0), (310.0, 1.0), (280.0, 0.0)]:
        frame = (physical - 288.0) / 15.0
        assert scale * frame + offset == pytest.approx(seen)
    with pytest.raises(ValueError, match="low must be below high"):
        range_of_frames(1.0, 1.0, 0.0, 1.0)


def test_a_learned_variance_is_left_out(diffusers: Any, tmp_path: Path) -> None:
    wide = make_unet(diffusers, out_channels=4)
    wide.save_pretrained(tmp_path)
    denoiser, _ = denoiser_from_folder(tmp_path)
    x = noise(1, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            denoiser.network(x, torch.tensor([4.0])), wide(x, 4).sample[:, :2]
        )


def test_a_table_of_timesteps_is_looked_up(diffusers: Any, tmp_path: Path) -> None:
    table = make_unet(diffusers, time_embedding_type="learned", num_train_timesteps=1000)
    table.save_pretrained(tmp_path)
    denoiser, _ = denoiser_from_folder(tmp_path)
    x = noise(1, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(denoiser.network(x, torch.tensor([3.6])), table(x, 4).sample)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel; only"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type is fourier"),
        ("unet/config.json", {"num_class_embeds": 10}, "class-conditional"),
        ("unet/config.json", {"out_channels": 3}, "2 channels go in and 3 come out"),
        ("unet/config.json", {"layers_per_block": 2}, r"unet.* fit its config.json"),
        ("unet/config.json", {"block_out_channels": [8, 24]}, r"unet.* fit its config.json"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "flow"},
            "prediction_type is 'flow'; only epsilon",
        ),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "not strictly between 0 and 1",
        ),
        ("dyngen.json", {"skale": 2.0}, r"dyngen.json has unknown keys \['skale'\]"),
        ("dyngen.json", {"scale": -2.0}, "scale is -2.0; it must be a positive number"),
    ],
)
def test_a_model_that_does_not_fit_gets_a_sentence(
    pipeline: Callable[..., tuple[Path, Any]], file: str, changes: dict[str, Any], sentence: str
) -> None:
    folder, _ = pipeline()
    (folder / "dyngen.json").write_text("{}")
    edit(folder / file, **changes)
    with pytest.raises(ValueError, match=sentence) as caught:
        denoiser_from_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_gets_a_sentence(
    pipeline: Callable[..., tuple[Path, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"There is no .*config.json, the configuration of a diff"):
        denoiser_from_folder(tmp_path)
    folder, _ = pipeline()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "EDMEuler"}')
    with pytest.raises(ValueError, match="describes a EDMEuler, which has no betas"):
        denoiser_from_folder(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        denoiser_from_folder(folder)


def test_cut_or_lost_weights_get_a_sentence(pipeline: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = pipeline()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"unet holds no weights that fit its config.json"):
        denoiser_from_folder(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"unet holds no weights that fit its config.json"):
        denoiser_from_folder(folder)


def test_without_diffusers_there_is_a_sentence(
    pipeline: Callable[..., tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = pipeline()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"diffusers is not installed; run `pip install 'dyngen"):
        denoiser_from_folder(folder)


# State dictionaries

ARGUMENTS: dict[str, Any] = {"channels": 2, "widths": [8, 8], "blocks": 1}


@pytest.fixture
def network() -> UNet2d:
    torch.manual_seed(1)
    network = UNet2d(**ARGUMENTS).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "denoiser.network."])
def test_a_state_dict_and_its_arguments_are_an_image_model(
    network: UNet2d, tmp_path: Path, suffix: str, prefix: str
) -> None:
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    path = tmp_path / f"image{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": weights, "epoch": 3} if prefix else weights, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    (tmp_path / "image.json").write_text(json.dumps({"network": ARGUMENTS}))
    denoiser, source = open_image_model(str(path))
    x, sigma = noise(2, 2, 8, 8), torch.tensor([0.3, 5.0])
    s = sigma.view(-1, 1, 1, 1)
    output = network(x * (1 + s**2).rsqrt(), sigma.log() / 4)
    expected = x / (1 + s**2) + s * (1 + s**2).rsqrt() * output
    torch.testing.assert_close(denoiser(x, sigma), expected)
    rebuilt = denoiser_from_config(source)
    rebuilt.load_state_dict(denoiser.state_dict())
    assert torch.equal(rebuilt(x, sigma), denoiser(x, sigma))


def test_a_state_dict_of_a_ddpm_is_labelled_by_timesteps(network: UNet2d, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "image.pt")
    betas = [0.01, 0.1, 0.4]
    settings = {"network": ARGUMENTS, "parameterisation": "eps", "betas": betas}
    denoiser, _ = denoiser_from_state_dict(tmp_path / "image.pt", settings)
    level = training_sigmas(torch.tensor(betas))[1]
    x = noise(1, 2, 8, 8)
    expected = x - level.float() * network(x / (1 + level**2).sqrt().float(), torch.tensor([1.0]))
    torch.testing.assert_close(denoiser(x, level), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"have keys \[\]; they need 'network'"),
        ({"network": ARGUMENTS, "sigma": 1}, r"have keys \['network', 'sigma'\]"),
        ({"network": ARGUMENTS | {"blocks": 2}}, r"image.pt does not fit .*missing \['down"),
        ({"network": ARGUMENTS | {"widths": [16, 16]}}, "does not fit .*weights of other shapes"),
        ({"network": ARGUMENTS | {"depth": 3}}, "cannot be made of"),
        ({"network": ARGUMENTS, "parameterisation": "epsilon"}, "parameterisation is 'epsilon'"),
        ({"network": {"class_path": "dyngen.networks.UNet9"}}, "no network class 'dyngen.networks"),
        ({"network": {"class_path": "UNet2d"}}, "no network class 'UNet2d'"),
        ({"network": {"class_path": "subprocess.Popen"}}, "is not a torch.nn.Module"),
    ],
)
def test_settings_that_do_not_fit_get_a_sentence(
    network: UNet2d, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    torch.save(network.state_dict(), tmp_path / "image.pt")
    with pytest.raises(ValueError, match=sentence) as caught:
        denoiser_from_state_dict(tmp_path / "image.pt", settings)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_state_dict_get_a_sentence(network: UNet2d, tmp_path: Path) -> None:
    path = tmp_path / "image.pt"
    with pytest.raises(ValueError, match=r"There is no .*image.json, the settings of the network"):
        denoiser_from_state_dict(path)
    settings = {"network": ARGUMENTS}
    with pytest.raises(ValueError, match=r"There is no file .*image.pt"):
        denoiser_from_state_dict(path, settings)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"image.pt holds no state_dict"):
        denoiser_from_state_dict(path, settings)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"image.pt cannot be read as a state_dict"):
        denoiser_from_state_dict(path, settings)
    with pytest.raises(ValueError, match="names no network"):
        denoiser_from_config({"path": "image.pt"})
