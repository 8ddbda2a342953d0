"""Static fields and the calendar reach every model, in training and along a rollout."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_cube import fit
from torch import Tensor

from data_modules.climate_cube import ClimateCubeDataModule, field_arguments
from data_modules.transforms import Transform
from dyngen.diffusion.noise import edm_sigmas
from dyngen.models import ImageDDPM, TimeConsistencyDiscriminator, VideoDiffusion
from dyngen.models.cube_module import frame_context
from dyngen.models.discriminator import check_normalisation
from dyngen.networks.discriminators import EncoderDiscriminator, ForecastEnergy, UNetEnergy
from dyngen.networks.layers import Conv2d, pad
from dyngen.networks.unet import UNet2d
from dyngen.networks.video_unet import VideoUNet
from dyngen.rollout import Field, open_rollout, rollout, write_rollout
from dyngen.rollout.sampling import Sampling, frame_sampler

EDGES = ("pole", "periodic")
CONTEXT = 4  # land, latitude, and cosine and sine of the day of the year


@pytest.fixture
def data(tmp_path: Path) -> ClimateCubeDataModule:
    """Two years of daily rain, whose mean follows the season."""
    generator = np.random.default_rng(0)
    season = 1 + 0.8 * np.cos(2 * np.pi * np.arange(730) / 365)
    rain = season[:, None, None] * generator.gamma(0.5, 2, (730, 8, 8))
    dataset = xr.Dataset(
        {
            "pr": (("time", "lat", "lon"), rain.astype(np.float32), {"units": "mm day-1"}),
            "land": (("lat", "lon"), generator.integers(0, 2, (8, 8))),
        },
        {
            "time": xr.date_range("2001-01-01", periods=730, calendar="noleap", use_cftime=True),
            "lat": ("lat", np.linspace(-78.75, 78.75, 8), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(8) * 45.0, {"units": "degrees_east"}),
        },
    )
    dataset.to_zarr(tmp_path / "rain.zarr", consolidated=False)
    return ClimateCubeDataModule(
        tmp_path / "rain.zarr",
        ["pr"],
        window_length=3,
        batch_size=16,
        static=["land", "latitude"],
        forcing=["day_of_year"],
        seasonal=1,
        transforms={"pr": Transform("log", scale=0.5, lower=0.0)},
    )


def unet(**options: Any) -> UNet2d:
    return UNet2d(1, widths=(8, 8), blocks=1, boundary=EDGES, **options)


def energy(**options: Any) -> UNetEnergy:
    return UNetEnergy(1, 2, widths=(8,), blocks=1, boundary=EDGES, **options)


def heeds(function: Any, context: Tensor) -> bool:
    """Whether another context makes another output."""
    with torch.no_grad():
        return not torch.equal(function(context), function(context + 1))


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """A network whose last layer, which starts at zero, does something."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_networks_heed_their_context() -> None:
    x, sigma, history = torch.randn(2, 1, 8, 8), torch.ones(2), torch.randn(2, 2, 1, 8, 8)
    context = torch.randn(2, CONTEXT, 8, 8)
    image = awake(unet(context_channels=CONTEXT))
    assert heeds(lambda c: image(x, sigma, c), context)
    for kind in (UNetEnergy, ForecastEnergy, EncoderDiscriminator):
        network = awake(kind(1, 2, (8,), 1, context_channels=CONTEXT))  # type: ignore[arg-type]
        assert heeds(lambda c, n=network: n(x, sigma, history, c), context)
    blocks = awake(VideoUNet(1, 2, 3, widths=(8,), blocks=1, context_channels=CONTEXT))
    noisy, context = torch.randn(2, 3, 1, 8, 8), torch.randn(2, 3, CONTEXT, 8, 8)
    assert heeds(lambda c: blocks(noisy, sigma, history, c), context)
    with pytest.raises(ValueError, match="takes 4 channels of context, but is given 0; set its"):
        image(x, sigma)


def test_batches_become_context(data: ClimateCubeDataModule) -> None:
    batch = next(iter(data.train_dataloader()))
    context = frame_context(unet(context_channels=CONTEXT), batch)
    assert context is not None
    assert context.shape == (16, 3, CONTEXT, 8, 8)
    assert torch.equal(context[3, 1, :2], batch["static"])
    assert (context[3, 1, 2] == batch["forcing"][3, 1, 0]).all()
    assert frame_context(unet(), batch) is None
    with pytest.raises(ValueError, match="takes 7 channels of context, but static and forcing of"):
        frame_context(unet(context_channels=7), batch)
    still = frame_context(unet(context_channels=2), {k: batch[k] for k in ("frames", "static")})
    assert still is not None
    assert torch.equal(still[15, 2], batch["static"])


def trained(kind: str, data: ClimateCubeDataModule, tmp_path: Path) -> Any:
    """A model of each kind after three steps, with everything that depends on place and date."""
    torch.manual_seed(0)
    if kind == "video":
        network = VideoUNet(1, 1, 2, widths=(8,), blocks=1, context_channels=CONTEXT)
        model: Any = VideoDiffusion(network, area_weighted=True)
    else:
        image = ImageDDPM(unet(context_channels=CONTEXT), area_weighted=True)
        if kind == "image":
            model = image
        else:
            fit(image, data)
            model = TimeConsistencyDiscriminator(
                energy(context_channels=CONTEXT if kind == "guided" else 0), area_weighted=True
            )
            model._adopt(image.denoiser, {"cube": image.cube})
    trainer = fit(model, data)
    trainer.validate(model, data, verbose=False)
    assert math.isfinite(trainer.callback_metrics["validate/loss"])
    return model.eval()


@pytest.mark.parametrize("kind", ["image", "guided", "guided by a still discriminator", "video"])
def test_models_train_and_roll_out_with_the_calendar(
    kind: str, data: ClimateCubeDataModule, tmp_path: Path
) -> None:
    model = trained(kind, data, tmp_path)
    awake(model)
    assert model.cube["conditioning"]["channels"] == CONTEXT
    sampler = frame_sampler(model, Sampling(steps=2, sigma_max=2.0))
    histories, times = data.initial_states("test", 2, sampler.history_length, leads=0)
    along = data.along(times[:, -1])
    conditioning = along.context(getattr(sampler, "frames", 1))
    options: dict[str, Any] = {"members": 2, "steps": 6, "seed": 0, "denormalise": along}
    frames = rollout(sampler, histories, conditioning=conditioning, **options).frames
    assert frames.shape == (2, 2, 6, 1, 8, 8)
    assert (frames >= 0).all()  # physical: rain, at the date of each frame
    half_a_year = np.array(
        [t.replace(year=t.year + 1, month=1 + (t.month + 5) % 12, day=1) for t in times[:, -1]]
    )
    other = data.along(half_a_year)
    later = rollout(
        sampler,
        histories,
        conditioning=other.context(getattr(sampler, "frames", 1)),
        **(options | {"denormalise": along}),
    ).frames
    assert not torch.equal(frames, later)

    field = Field(initial_times=times[:, -1], **field_arguments(data.description()))
    path = tmp_path / "rollout.zarr"
    write_rollout(
        path, sampler, histories, field, conditioning=conditioning, settings={}, every=2, **options
    )
    written = open_rollout(path)["pr"]
    np.testing.assert_allclose(written.values, frames[:, :, 1::2, 0], rtol=1e-5, atol=1e-6)


def test_units_are_those_of_each_date(data: ClimateCubeDataModule) -> None:
    """Anomalies of zero are the climatology, whatever the blocks in which they are written."""

    class Still:
        history_length, block_length, diagnostic_names = 1, 1, ()

        def __call__(self, history: Tensor, noise: Any, **_: Tensor) -> tuple[Tensor, dict]:
            return torch.zeros_like(history), {}

        def description(self) -> dict[str, Any]:
            return {}

    histories, times = data.initial_states("test", 3, 1, leads=0)
    along = data.along(times[:, -1])
    sampler: Any = Still()
    options: dict[str, Any] = {"members": 2, "steps": 400, "seed": 0, "denormalise": along}
    frames = rollout(sampler, histories, batch_size=2, **options).frames
    for initial, start in enumerate(times[:, -1]):
        dates = xr.date_range(start, periods=401, calendar="noleap", use_cftime=True).values[1:]
        normal = data.normalisation.denormalise(torch.zeros(400, 1, 8, 8), dates)
        torch.testing.assert_close(frames[initial, 0], normal)
    every = rollout(sampler, histories, every=5, **options).frames
    assert torch.equal(every, frames[:, :, 4::5])


def test_a_network_that_sees_nothing_of_it_is_pointed_out(
    data: ClimateCubeDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fit(ImageDDPM(unet()), data)
    assert "give static fields or forcing (4 channels), but the network of ImageDDPM" in caplog.text


def test_errors_count_by_area(data: ClimateCubeDataModule) -> None:
    model = ImageDDPM(unet(), area_weighted=True)
    model.cube = data.description()
    error = torch.randn(3, 1, 8, 8)
    weights = torch.cos(torch.deg2rad(torch.linspace(-78.75, 78.75, 8)))
    expected = (error.square().mean(dim=(1, 3)) * weights / weights.sum()).sum(dim=1)
    torch.testing.assert_close(model.mean_square(error), expected)
    model.area_weighted = False
    torch.testing.assert_close(model.mean_square(error), error.square().mean(dim=(1, 2, 3)))


def test_beyond_a_pole_lies_the_meridian_opposite() -> None:
    """A field that is smooth on the sphere stays smooth over the poles, and only so."""
    latitude = torch.deg2rad(torch.linspace(-85, 85, 18))[:, None]
    longitude = torch.deg2rad(torch.arange(0, 360, 10.0))[None]
    x = latitude.cos() * longitude.cos() + 0.5 * latitude.cos() * longitude.sin()
    padded = pad(x[None, None], 2, EDGES)[0, 0]
    beyond = torch.deg2rad(torch.tensor([-105.0, -95.0]))[:, None]
    around = torch.deg2rad(torch.arange(-20, 380, 10.0))[None]
    true = beyond.cos() * around.cos() + 0.5 * beyond.cos() * around.sin()
    torch.testing.assert_close(padded[:2], true, atol=1e-5, rtol=1e-5)
    reflected = pad(x[None, None], 2, ("reflect", "periodic"))[0, 0]
    assert (reflected[:2] - true).abs().max() > 0.1
    # Turning the globe turns the output.
    torch.manual_seed(0)
    layer = Conv2d(1, 2, 3, EDGES)
    turned = layer(x[None, None].roll(7, -1))
    torch.testing.assert_close(turned, layer(x[None, None]).roll(7, -1), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="7 columns have no meridian opposite"):
        pad(torch.zeros(1, 1, 4, 7), 1, EDGES)
    with pytest.raises(ValueError, match="pole is for y alone, with periodic for x"):
        UNet2d(1, boundary=("pole", "reflect"))


def test_samplers_start_where_they_did() -> None:
    """A model without context samples as before, given one or not."""
    torch.manual_seed(0)
    model = awake(ImageDDPM(unet()))
    sigmas = edm_sigmas(2, 0.02, 2.0)
    assert len(sigmas) == 3
    sampler = frame_sampler(model, Sampling(steps=2, sigma_max=2.0))
    history = torch.randn(2, 1, 1, 8, 8)

    def extra(initials: list[int], step: int) -> dict[str, Tensor]:
        return {"context": torch.randn(len(initials), CONTEXT, 8, 8)}

    options: dict[str, Any] = {"members": 2, "steps": 3, "seed": 0}
    plain = rollout(sampler, history, **options).frames
    assert torch.equal(rollout(sampler, history, conditioning=extra, **options).frames, plain)


@pytest.mark.parametrize(
    "other",
    [
        {"seasonal": 2},
        {"seasonal": 0},
        {"standardise": "pixel"},
        {"standardise": "season"},
        {"transforms": {}},
    ],
)
def test_an_image_model_of_other_frames_is_refused(
    data: ClimateCubeDataModule, other: dict[str, Any]
) -> None:
    options: dict[str, Any] = {
        "seasonal": 1,
        "transforms": {"pr": Transform("log", scale=0.5, lower=0.0)},
    }
    same = ClimateCubeDataModule(data.path, ["pr"], **options)
    check_normalisation(data.description(), same.description())
    changed = ClimateCubeDataModule(data.path, ["pr"], **options | other)
    for pair in ((data, changed), (changed, data)):
        with pytest.raises(ValueError, match="was trained on frames that were normalised in ano"):
            check_normalisation(*(each.description() for each in pair))
