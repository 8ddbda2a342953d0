"""The models: losses as the formulas say, a frozen image model, checkpoints that suffice."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tiny_cube import ENERGY, UNET, TinyCube, fit, make
from torch import Tensor, nn

from data_modules.errors import DataError
from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.diffusion.denoiser import Denoiser
from dyngen.diffusion.guidance import value_and_gradient
from dyngen.diffusion.noise import LogUniformNoise
from dyngen.models import ImageDDPM, TimeConsistencyDiscriminator
from dyngen.models.checkpoints import load_model, read_checkpoint
from dyngen.models.cube_module import VALIDATION_SIGMAS, with_errors
from dyngen.models.discriminator import open_image_model, other_histories
from dyngen.networks.discriminators import ForecastEnergy, UNetEnergy
from dyngen.networks.unet import UNet2d

Log = Callable[[Any], dict[str, float]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {"frames": TinyCube().frames[:6]}


def awake(network: nn.Module) -> Any:
    """The network as after some training: no weight at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def image_model(parameterisation: Any = "edm") -> ImageDDPM:
    noise = LogUniformNoise(0.05, 20.0)
    return ImageDDPM(awake(UNet2d(2, 0, (8, 8), 1)), parameterisation, noise)


def discriminator(image_checkpoint: Path, **options: Any) -> TimeConsistencyDiscriminator:
    return TimeConsistencyDiscriminator(
        awake(UNetEnergy(2, 2, (8,), 1)),
        str(image_checkpoint),
        noise=LogUniformNoise(0.05, 20.0),
        **options,
    )


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


# ImageDDPM


def by_hand(model: ImageDDPM, x: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """The network's raw output made into a denoised frame, from the definitions alone."""
    s = column(sigma)
    output = model.denoiser.network(x / (1 + s**2).sqrt(), sigma.log() / 4)
    if kind == "eps":
        return x - s * output
    if kind == "x0":
        return output
    sign = 1 if kind == "edm" else -1
    return x / (1 + s**2) + sign * s / (1 + s**2).sqrt() * output


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "edm": lambda s: (s**2 + 1) / s**2,
    "eps": lambda s: s**-2.0,
    "v": lambda s: (s**2 + 1) / s**2,
    "x0": lambda s: torch.ones_like(s),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_image_loss_is_the_weighted_denoising_error(
    kind: str, batch: dict[str, Tensor], logged: Log
) -> None:
    model = image_model(kind)
    values = logged(model)
    torch.manual_seed(5)
    loss = model.training_step(batch, 0)
    torch.manual_seed(5)
    clean = batch["frames"].reshape(18, 2, 8, 8)  # every frame of a window counts
    sigma = model.noise.sample(18, "cpu")
    noisy = clean + column(sigma) * torch.randn(18, 2, 8, 8)
    error = (by_hand(model, noisy, sigma, kind) - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, (WEIGHTS[kind](sigma) * error).mean())
    assert values["train/loss"] == loss.item()


def test_validation_of_the_image_model_is_by_noise_level(
    batch: dict[str, Tensor], logged: Log
) -> None:
    model = image_model().eval()
    values = logged(model)
    with torch.no_grad():
        model.validation_step(batch, 3)
    clean = batch["frames"][:, -1]
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    weighted = []
    for level in VALIDATION_SIGMAS:
        sigma = torch.full((6,), level)
        error = (by_hand(model, clean + level * eps, sigma, "edm") - clean).square().mean().item()
        assert values[f"denoising_error/sigma_{level:g}"] == pytest.approx(error, rel=1e-5)
        weighted.append(error * (1 + level**-2))
    assert values["validate/loss"] == pytest.approx(sum(weighted) / 8, rel=1e-5)
    before = dict(values)
    model.test_step(batch, 3)
    assert values == pytest.approx(before)


def test_the_image_model_learns(image_checkpoint: Path) -> None:
    """A few dozen steps take it well below the error of its first state."""
    model = make("ImageDDPM", network=UNET, learning_rate=0.01, warmup_steps=1)
    assert isinstance(model, ImageDDPM)
    clean = TinyCube().frames[:, -1]
    noisy = clean + torch.randn_like(clean)

    def error() -> float:
        with torch.no_grad():
            return (model(noisy, torch.tensor(1.0)) - clean).square().mean().item()

    untrained = error()
    assert untrained == pytest.approx((noisy / 2 - clean).square().mean().item())
    fit(model, max_steps=60)
    assert error() < 0.7 * untrained


# The discriminator


def test_without_cross_entropy_no_accuracy_is_told(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    told = {}
    for weight in (1.0, 0.0):
        model = discriminator(image_checkpoint, cross_entropy_weight=weight)
        told[weight] = logged(model)
        model.eval().validation_step(batch, 0)
    assert {name for name in told[1.0] if name not in told[0.0]} == {
        f"accuracy/sigma_{level:g}" for level in VALIDATION_SIGMAS
    }
    assert set(told[0.0]) < set(told[1.0])


def test_infonce_is_the_share_of_the_right_frame_among_those_of_the_batch(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    model = discriminator(
        image_checkpoint,
        cross_entropy_weight=0.0,
        score_matching_weight=0.0,
        contrastive_weight=0.7,
    )
    values = logged(model)
    torch.manual_seed(5)
    loss = model.training_step(batch, 0)
    torch.manual_seed(5)
    history, clean = batch["frames"][:, :2], batch["frames"][:, 2]
    sigma = model.noise.sample(6, "cpu")
    torch.randn_like(clean)
    noise = torch.randn(36, 2, 8, 8).view(6, 6, 2, 8, 8)
    nce = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        likely = torch.stack(
            [
                model.logit(
                    (clean[j] + sigma[i] * noise[i, j])[None], sigma[i : i + 1], history[i : i + 1]
                )
                .double()
                .exp()[0]
                for j in range(6)
            ]
        )
        nce = nce - (likely[i] / likely.sum()).log() / 6
    torch.testing.assert_close(loss, 0.7 * nce.float(), rtol=1e-4, atol=1e-5)
    assert values["train/contrastive"] == pytest.approx(nce.item(), rel=1e-4)


def test_the_discriminators_loss_is_cross_entropy_and_score_matching(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    model = discriminator(image_checkpoint, cross_entropy_weight=0.3, score_matching_weight=2.0)
    values = logged(model)
    torch.manual_seed(5)
    loss = model.training_step(batch, 0)
    torch.manual_seed(5)
    history, clean = batch["frames"][:, :2], batch["frames"][:, 2]
    sigma = model.noise.sample(6, "cpu")
    noisy = (clean + column(sigma) * torch.randn(6, 2, 8, 8)).requires_grad_()
    positive = model.discriminator(noisy, sigma, history)
    (gradient,) = torch.autograd.grad(positive.sum(), noisy)
    others = history[[5, 0, 1, 2, 3, 4]]
    negative = model.discriminator(noisy, sigma, others)
    entropy = nn.functional.binary_cross_entropy_with_logits(
        torch.cat([positive, negative]), torch.tensor([1.0] * 6 + [0.0] * 6)
    )
    denoised = load_model(image_checkpoint)(noisy, sigma)
    guided = denoised + column(sigma**2) * gradient
    weight = column(1 + sigma**-2)
    matching = (weight * (guided - clean).square()).mean()
    per_value = entropy / (2 * 8 * 8)
    torch.testing.assert_close(loss, 0.3 * per_value + 2.0 * matching, rtol=1e-4, atol=1e-5)
    assert values["train/cross_entropy"] == pytest.approx(entropy.item(), rel=1e-4)
    assert values["train/denoising_error"] == pytest.approx(matching.item(), rel=1e-4)
    alone = (weight * (denoised - clean).square()).mean().item()
    assert values["train/denoising_error_image_model"] == pytest.approx(alone, rel=1e-4)


def test_without_score_matching_it_is_the_classifier_of_the_paper(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    model = discriminator(image_checkpoint, score_matching_weight=0.0)
    values = logged(model)
    loss = model.training_step(batch, 0)
    assert set(values) == {"train/loss", "train/cross_entropy"}
    assert values["train/cross_entropy"] == pytest.approx(loss.item())
    assert loss.item() != pytest.approx(math.log(2), abs=1e-3)
    nothing = TimeConsistencyDiscriminator(
        UNetEnergy(2, 2, (8,), 1), str(image_checkpoint), score_matching_weight=0.0
    )
    logged(nothing)
    assert nothing.training_step(batch, 0).item() == pytest.approx(math.log(2))


def test_a_forecast_has_its_square_error_besides(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    torch.manual_seed(1)
    model = TimeConsistencyDiscriminator(
        awake(ForecastEnergy(2, 2, (8,), 1)),
        str(image_checkpoint),
        cross_entropy_weight=0.0,
        forecast_weight=0.7,
    )
    values = logged(model)
    loss = model.training_step(batch, 0)
    history, clean = batch["frames"][:, :2], batch["frames"][:, 2]
    error = (model.discriminator.forecast(history) - clean).square().mean()
    assert values["train/forecast_error"] == pytest.approx(error.item(), rel=1e-5)
    expected = values["train/denoising_error"] + 0.7 * error.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.forecast(history), model.discriminator.forecast(history))
    assert discriminator(image_checkpoint).forecast(history) is None


class Gaussian(nn.Module):
    """The exact denoiser of independent standard normal values."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + column(sigma.expand(len(x))) ** 2)


class Persistence(nn.Module):
    """A discriminator that knows the forecast of a first-order autoregression, and no more."""

    history_length = 1

    def __init__(self, correlation: float) -> None:
        super().__init__()
        self.correlation = nn.Parameter(torch.tensor(correlation))

    def forecast(self, history: Tensor) -> Tensor:
        return self.correlation * history[:, -1]

    def forward(self, x: Tensor, sigma: Tensor, history: Tensor, forecast: Tensor) -> Tensor:
        return 0 * x.flatten(1).sum(1)


@pytest.mark.parametrize("training", [False, True])
def test_with_exact_parts_the_ratio_of_densities_guides_exactly(training: bool) -> None:
    rho = 0.8
    spread = math.sqrt(1 - rho**2)
    model = TimeConsistencyDiscriminator(Persistence(rho), forecast_spread=spread)
    model.denoiser = Gaussian()  # type: ignore[assignment]
    model.train(training)
    history = torch.randn(5, 1, 2, 8, 8)
    sigma = torch.tensor([0.05, 0.3, 1.0, 3.0, 20.0])
    s = column(sigma)
    noisy = rho * history[:, 0] + spread * torch.randn(5, 2, 8, 8) + s * torch.randn(5, 2, 8, 8)
    gain = spread**2 / (spread**2 + s**2)
    exact = rho * history[:, 0] + gain * (noisy - rho * history[:, 0])
    logits, guided = model.guided(noisy, sigma, history, model.denoiser(noisy, sigma))
    torch.testing.assert_close(guided, exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, model.logit(noisy, sigma, history))
    _, slope = value_and_gradient(partial(model.logit, history=history), noisy, sigma)
    denoised = model.denoiser(noisy, sigma)
    by_itself = model.logit_gradient(noisy, sigma, denoised, history)
    torch.testing.assert_close(s**2 * by_itself, s**2 * slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(denoised + s**2 * by_itself, guided)

    def log_ratio(x: Tensor) -> Tensor:
        conditional = torch.distributions.Normal(rho * history[:, 0], (spread**2 + s**2).sqrt())
        alone = torch.distributions.Normal(torch.zeros(()), (1 + s**2).sqrt())
        return (conditional.log_prob(x) - alone.log_prob(x)).sum((1, 2, 3))

    other = noisy + 0.3 * s * torch.randn_like(noisy)
    change = model.logit(other, sigma, history) - model.logit(noisy, sigma, history)
    torch.testing.assert_close(change, log_ratio(other) - log_ratio(noisy), rtol=1e-3, atol=1e-2)


def test_the_ratio_of_densities_fades_below_its_level_and_has_a_spread_for_each_channel() -> None:
    rho, spread, level = 0.7, [0.3, 0.9], 0.5
    model = TimeConsistencyDiscriminator(
        Persistence(rho), forecast_spread=spread, ratio_level=level
    )
    model.denoiser = Gaussian()  # type: ignore[assignment]
    history = torch.randn(4, 1, 2, 8, 8)
    sigma = torch.tensor([0.02, 0.4, 1.0, 30.0])
    s = column(sigma)
    noisy = history[:, 0] + s * torch.randn(4, 2, 8, 8)
    forecast = rho * history[:, 0]
    variance = torch.tensor(spread).view(2, 1, 1) ** 2
    of_forecast = forecast + variance / (variance + s**2) * (noisy - forecast)
    of_images = model.denoiser(noisy, sigma)
    share = s**2 / (s**2 + level**2)
    _, guided = model.guided(noisy, sigma, history, of_images)
    expected = share * of_forecast + (1 - share) * of_images
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)


def test_a_learned_spread_tells_where_the_forecast_is_uncertain(
    image_checkpoint: Path, logged: Log
) -> None:
    torch.manual_seed(0)
    network = ForecastEnergy(2, 2, (8,), 1, spread=0.3, spread_widths=(16,))
    model = TimeConsistencyDiscriminator(
        network, str(image_checkpoint), forecast_spread="learned", learning_rate=1e-2
    )
    values = logged(model)
    optimizer = torch.optim.Adam(network.spreader.parameters(), 1e-2)
    for step in range(150):
        history = torch.randn(16, 2, 2, 8, 8)
        size = torch.where(history[:, :1, 0] > 0, 1.0, 0.1)  # known from the older frame
        clean = history[:, 1] + size * torch.randn(16, 2, 8, 8)
        optimizer.zero_grad()
        model.training_step({"frames": torch.cat([history, clean[:, None]], 1)}, step).backward()
        if step == 0:
            assert all(p.grad is not None for p in network.spreader.parameters())
        optimizer.step()
    forecast = model.forecast(history)
    assert forecast is not None
    told = network.forecast_spread(forecast, history).detach()
    error = (forecast - history[:, 1]).square().mean(1, keepdim=True).sqrt()
    assert error.max() < 0.05  # the forecast is still persistence, whose error is the noise alone
    wide, narrow = size.expand_as(told) == 1.0, size.expand_as(told) == 0.1
    assert told[wide].median() == pytest.approx(1.0, rel=0.15)
    assert told[narrow].median() == pytest.approx(0.1, rel=0.25)
    exact = (math.log(1.0) + math.log(0.1) + 1) / 2
    assert values["train/spread_likelihood"] == pytest.approx(exact, abs=0.3)
    sigma = torch.tensor([0.2]).expand(16)
    noisy = clean + 0.2 * torch.randn_like(clean)
    with torch.no_grad():
        denoised = model.denoiser(noisy, sigma)
    logits, guided = model.eval().guided(noisy, sigma, history, denoised)
    torch.testing.assert_close(logits, model.logit(noisy, sigma, history))
    variance = told**2  # without a trained energy it is a Gaussian with that spread
    assert not network.unet.out.conv.weight.any()
    expected = forecast + variance / (variance + 0.04) * (noisy - forecast)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spread", [None, 0.3, "learned"])
@pytest.mark.parametrize("cross_entropy", [0.0, 1.0])
def test_networks_that_nothing_would_train_are_left_out(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log, spread: Any, cross_entropy: float
) -> None:
    network = awake(ForecastEnergy(2, 2, (8,), 1, spread=0.3, spread_widths=(16,)))
    model = TimeConsistencyDiscriminator(
        network,
        str(image_checkpoint),
        forecast_spread=spread,
        cross_entropy_weight=cross_entropy,
    )
    logged(model)
    model.training_step(batch, 0).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)  # as DDP asks


def test_score_matching_may_see_part_of_the_batch(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    network = awake(ForecastEnergy(2, 2, (8,), 1))
    options: dict[str, Any] = {"forecast_spread": 0.3, "history_noise": 0.0}
    part = TimeConsistencyDiscriminator(
        network, str(image_checkpoint), score_matching_windows=2, **options
    )
    whole = TimeConsistencyDiscriminator(network, str(image_checkpoint), **options)
    values, of_whole = logged(part), logged(whole)
    torch.manual_seed(3)
    part.training_step(batch, 0)
    torch.manual_seed(3)
    whole.training_step({"frames": batch["frames"][:2]}, 0)
    for name in ("denoising_error", "cross_entropy"):
        assert values[f"train/{name}"] == pytest.approx(of_whole[f"train/{name}"], rel=1e-4)
    error = (part.forecast(batch["frames"][:, :2]) - batch["frames"][:, 2]).square().mean()
    assert values["train/forecast_error"] == pytest.approx(error.item(), rel=1e-4)


def test_a_forecast_averaged_over_shifts_is_what_the_rest_is_trained_with(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    network = awake(ForecastEnergy(2, 2, (8,), 1, patch=2, spread=0.3, spread_widths=(16,)))
    shifts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    model = TimeConsistencyDiscriminator(
        network,
        str(image_checkpoint),
        forecast_spread="learned",
        forecast_shifts=[list(shift) for shift in shifts],
        score_matching_windows=2,
    )
    values = logged(model)
    model.training_step(batch, 0)
    history, clean = batch["frames"][:, :2], batch["frames"][:, 2]
    moved = [
        network.forecast(history.roll(s, (-2, -1))).roll((-s[0], -s[1]), (-2, -1)) for s in shifts
    ]
    assert (moved[0] - moved[3]).abs().max() > 1e-3
    mean = torch.stack(moved).mean(0)
    torch.testing.assert_close(model.forecast(history), mean)
    torch.testing.assert_close(model.expectation(history)["forecast"], mean)
    alone = (moved[0] - clean).square().mean().item()
    assert values["train/forecast_error"] == pytest.approx(alone, rel=1e-4)
    spread = network.forecast_spread(mean[:2], history[:2])
    likelihood = (spread.log() + ((mean - clean)[:2] / spread).square() / 2).mean().item()
    assert values["train/spread_likelihood"] == pytest.approx(likelihood, rel=1e-4)


def test_a_history_may_end_with_a_forecast_of_its_own(image_checkpoint: Path, logged: Log) -> None:
    """In about a fourth of the windows, and what is trained has no gradient by way of it."""
    frames = torch.randn(400, 4, 2, 8, 8)
    network = awake(ForecastEnergy(2, 2, (8,), 1))
    model = TimeConsistencyDiscriminator(network, str(image_checkpoint), history_forecast=0.25)
    history = model._forecast_history({"frames": frames}, frames[:, 1:3])
    assert not history.requires_grad
    torch.testing.assert_close(history[:, 0], frames[:, 1])
    with torch.no_grad():
        forecast = network.forecast(frames[:, :2])
    own = (history[:, 1] - forecast).abs().amax((1, 2, 3)) < 1e-4
    torch.testing.assert_close(history[~own, 1], frames[~own, 2])
    assert own.float().mean() == pytest.approx(0.25, abs=0.07)

    always = TimeConsistencyDiscriminator(
        network, str(image_checkpoint), history_forecast=1.0, score_matching_windows=2
    )
    values = logged(always)
    always.training_step({"frames": frames}, 0)
    after = network.forecast(torch.stack([frames[:, 1], forecast], 1))
    error = (after - frames[:, 3]).square().mean().item()
    assert values["train/forecast_error"] == pytest.approx(error, rel=1e-4)
    with pytest.raises(ValueError, match=r"one more before for history_forecast, .* to 4\."):
        always.training_step({"frames": frames[:, :3]}, 0)


@pytest.mark.parametrize("energy", [UNetEnergy, ForecastEnergy])
def test_features_of_the_image_model_are_seen_and_differentiated(
    image_checkpoint: Path, batch: dict[str, Tensor], logged: Log, energy: Any
) -> None:
    """The gradient in the frame, by way of the frozen network too, is that of differences."""
    network = awake(energy(2, 2, (8,), 1, feature_channels=8))
    model = TimeConsistencyDiscriminator(network, str(image_checkpoint)).double().eval()
    assert model.denoiser is not None
    x, history = batch["frames"][:2, 2].double(), batch["frames"][:2, :2].double()
    sigma = torch.tensor([0.3, 2.0]).double()
    inside = model.denoiser.network
    scaled = x * column(1 + sigma**2).rsqrt()
    features = inside.features(scaled, sigma.log() / 4)
    of_network = inside.out(features)  # patches of 1: nothing else is between
    torch.testing.assert_close(of_network, inside(scaled, sigma.log() / 4))
    logits = model.logit(x, sigma, history)
    torch.testing.assert_close(logits, network(x, sigma, history, features=features))
    assert (network(x, sigma, history, features=features + 0.1) - logits).abs().min() > 1e-6
    gradient = model.logit_gradient(x, sigma, model.denoiser(x, sigma), history)
    towards = torch.randn_like(x)
    ahead, behind = (model.logit(x + step * towards, sigma, history) for step in (1e-5, -1e-5))
    slope = (gradient * towards).flatten(1).sum(1)
    torch.testing.assert_close(slope, (ahead - behind).detach() / 2e-5, rtol=1e-5, atol=1e-6)

    logged(model.float().train())
    model.training_step(batch, 0).backward()
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert all(p.grad is not None for p in network.unet.parameters())


def test_features_that_the_image_model_has_not_get_a_sentence(image_checkpoint: Path) -> None:
    network = UNetEnergy(2, 2, (8,), 1, feature_channels=4)
    with pytest.raises(ValueError, match=r"takes 4 channels .* which has 8; set feature_channels"):
        TimeConsistencyDiscriminator(network, str(image_checkpoint))
    model = TimeConsistencyDiscriminator(network)
    with pytest.raises(ValueError, match=r"an? Identity, has none; set feature_channels to 0"):
        model._adopt(Denoiser(nn.Identity()), {})


def test_score_matching_leaves_the_forecast_alone(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    model = TimeConsistencyDiscriminator(
        awake(ForecastEnergy(2, 2, (8,), 1)), str(image_checkpoint), forecast_weight=0.0
    )
    logged(model)
    model.training_step(batch, 0).backward()
    energy, forecaster = model.discriminator.unet, model.discriminator.forecaster
    assert all(not p.grad.any() for p in forecaster.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in energy.parameters())


def test_score_matching_trains_the_gradient(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    """Without cross-entropy every gradient comes through the guidance, twice differentiated."""
    model = discriminator(image_checkpoint, cross_entropy_weight=0.0)
    logged(model)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model.training_step(batch, 0)

    weight = model.discriminator.unet.out.conv.weight
    loss().backward()
    assert weight.grad is not None
    direction = torch.randn_like(weight)
    slope = (weight.grad * direction).sum().item()
    values = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            weight.add_(step * direction)
            values.append(loss().item())
            weight.sub_(step * direction)
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.02)
    assert all(p.grad is None for p in model.denoiser.parameters())


def test_validation_of_the_discriminator_is_by_noise_level(
    batch: dict[str, Tensor], image_checkpoint: Path, logged: Log
) -> None:
    model = discriminator(image_checkpoint).eval()

    class Conditional(nn.Module):
        def denoise(self, noisy: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
            return 0.9 * history[:, -1]

    model._reference = [Conditional()]
    values = logged(model)
    with torch.inference_mode():  # as Lightning validates
        model.validation_step(batch, 2)
    history, clean = batch["frames"][:, :2], batch["frames"][:, 2]
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    image = load_model(image_checkpoint)
    total = 0.0
    for level in VALIDATION_SIGMAS:
        name, sigma = f"sigma_{level:g}", torch.full((6,), level)
        noisy = (clean + level * eps).requires_grad_()
        positive = model.logit(noisy, sigma, history)
        negative = model.logit(noisy, sigma, history.roll(1, 0))
        (gradient,) = torch.autograd.grad(positive.sum(), noisy)
        right = (positive > 0).sum() + (negative <= 0).sum()
        assert values[f"accuracy/{name}"] == pytest.approx(right.item() / 12)
        denoised = image(noisy, sigma)
        error = (denoised + level**2 * gradient - clean).square().mean().item()
        assert values[f"denoising_error/{name}"] == pytest.approx(error, rel=1e-4)
        alone = (denoised - clean).square().mean().item()
        assert values[f"denoising_error_image_model/{name}"] == pytest.approx(alone, rel=1e-4)
        reference = (0.9 * history[:, -1] - clean).square().mean().item()
        assert values[f"denoising_error_reference/{name}"] == pytest.approx(reference, rel=1e-4)
        total += (1 + level**-2) * error / 8
    assert values["validate/loss"] == pytest.approx(total, rel=1e-4)


def test_negatives_keep_the_marginals_of_both_slots() -> None:
    history = torch.arange(5.0).view(5, 1, 1, 1, 1)
    other = other_histories(history)
    assert sorted(other.flatten().tolist()) == [0, 1, 2, 3, 4]
    assert bool((other != history).all())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_leaves_the_image_model_as_it_was(image_checkpoint: Path, precision: Any) -> None:
    model = make(
        "TimeConsistencyDiscriminator",
        discriminator=ENERGY,
        image_model=str(image_checkpoint),
        warmup_steps=1,
    )
    assert isinstance(model, TimeConsistencyDiscriminator)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    modes: list[bool] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, model: Any, *rest: Any) -> None:
            modes.append(model.discriminator.training and not model.denoiser.training)

    fit(model, precision=precision, callbacks=[Watch()], num_sanity_val_steps=1)
    changed = {name for name in first if not torch.equal(first[name], model.state_dict()[name])}
    assert modes == [True] * 3
    assert changed
    assert all(name.startswith("discriminator.") for name in changed)
    image = load_model(image_checkpoint)
    x = torch.randn(2, 2, 8, 8)
    assert model.denoiser is not None
    assert torch.equal(model.denoiser(x, torch.tensor(0.5)), image(x, torch.tensor(0.5)))


# Checkpoints


def test_a_checkpoint_of_the_image_model_suffices(image_checkpoint: Path) -> None:
    model = load_model(image_checkpoint)
    assert isinstance(model, ImageDDPM)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.cube is not None
    assert model.cube["normalisation"] == {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
    assert list(model.cube["variables"]) == ["u", "v"]
    trained = make("ImageDDPM", network=UNET, learning_rate=0.01, warmup_steps=1)
    fit(trained)  # the same seeds give the same weights
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(model(x, torch.tensor(0.5)), trained.eval()(x, torch.tensor(0.5)))


def test_a_checkpoint_of_the_discriminator_holds_the_image_model(
    image_checkpoint: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image.ckpt"
    image.write_bytes(image_checkpoint.read_bytes())
    model = make(
        "TimeConsistencyDiscriminator",
        discriminator=ENERGY,
        image_model=str(image),
        warmup_steps=1,
        noise={
            "class_path": "dyngen.diffusion.noise.LogUniformNoise",
            "init_args": {"sigma_min": 0.1, "sigma_max": 7.0},
        },
    )
    assert isinstance(model, TimeConsistencyDiscriminator)
    fit(model).save_checkpoint(tmp_path / "last.ckpt")
    image.unlink()
    loaded = load_model(tmp_path / "last.ckpt")
    assert isinstance(loaded, TimeConsistencyDiscriminator)
    assert loaded.noise == LogUniformNoise(0.1, 7.0)
    x, sigma, history = torch.randn(2, 2, 8, 8), torch.tensor(0.5), torch.randn(2, 2, 2, 8, 8)
    assert loaded.denoiser is not None
    assert model.denoiser is not None
    assert torch.equal(loaded.denoiser(x, sigma), model.denoiser(x, sigma))
    assert torch.equal(loaded.logit(x, sigma, history), model.logit(x, sigma, history))
    # and trains on from its own checkpoint, image model included, whatever model was given
    again = make(
        "TimeConsistencyDiscriminator", discriminator=ENERGY, image_model=str(image_checkpoint)
    )
    trainer = fit(again, max_steps=4, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 4


def test_a_diffusers_model_lives_in_the_discriminators_checkpoint(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="opens a model that diffusers wrote")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        add_attention=False,
    )
    folder = tmp_path / "unet"
    unet.save_pretrained(folder)
    model = make("TimeConsistencyDiscriminator", discriminator=ENERGY, image_model=str(folder))
    fit(model).save_checkpoint(tmp_path / "last.ckpt")
    folder.rename(tmp_path / "elsewhere")
    loaded = load_model(tmp_path / "last.ckpt")
    assert isinstance(loaded, TimeConsistencyDiscriminator)
    assert isinstance(model, TimeConsistencyDiscriminator)
    assert loaded.denoiser is not None
    assert model.denoiser is not None
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(loaded.denoiser(x, torch.tensor(2.0)), model.denoiser(x, torch.tensor(2.0)))


def test_the_reference_is_not_needed_once_trained(image_checkpoint: Path, tmp_path: Path) -> None:
    """Its path is among the hyperparameters, its weights are in no checkpoint."""
    reference = tmp_path / "reference.ckpt"
    reference.write_bytes(image_checkpoint.read_bytes())
    model = make(
        "TimeConsistencyDiscriminator",
        discriminator=ENERGY,
        image_model=str(image_checkpoint),
        reference=str(reference),
    )
    fit(model, limit_val_batches=0).save_checkpoint(tmp_path / "last.ckpt")
    reference.unlink()
    loaded = load_model(tmp_path / "last.ckpt")
    assert set(loaded.state_dict()) == set(model.state_dict())


def test_averaged_weights_are_those_of_a_checkpoint(tmp_path: Path) -> None:
    """The moving average of Lightning's callback, by hand from the weights after each step."""
    model = make("ImageDDPM", network=UNET, learning_rate=0.01, warmup_steps=1)
    history: list[dict[str, Tensor]] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Any, model: Any, *rest: Any) -> None:
            history.append({name: p.detach().clone() for name, p in model.named_parameters()})

    callbacks = [Record(), ExponentialMovingAverage(decay=0.2)]
    fit(model, max_steps=4, callbacks=callbacks, enable_checkpointing=True,
        default_root_dir=tmp_path).save_checkpoint(tmp_path / "last.ckpt")  # fmt: skip
    expected = history[0]
    for n, weights in enumerate(history[1:], start=1):
        decay = min(0.2, (1 + n) / (10 + n))
        expected = {k: decay * expected[k] + (1 - decay) * weights[k] for k in weights}
    loaded = load_model(tmp_path / "last.ckpt")
    name = "denoiser.network.stem.conv.weight"
    for key, value in loaded.named_parameters():
        torch.testing.assert_close(value, expected[key])
    assert not torch.allclose(expected[name], history[-1][name])


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    model = make("ImageDDPM", network=UNET, learning_rate=0.02, warmup_steps=4)
    rates: list[float] = []

    class Record(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(model, max_steps=12, callbacks=[Record()])
    expected = [
        0.02 * min(1, (k + 1) / 4) * (0.01 + 0.99 * (1 + math.cos(math.pi * k / 12)) / 2)
        for k in range(12)
    ]
    assert rates == pytest.approx(expected)


# Mistakes


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (TinyCube(variables=("u", "w")), DataError, "trained on u, v, but this cube gives u, w"),
        (
            TinyCube(mean=0.2),
            ValueError,
            "image model was trained on 'u' with mean 0 .* this training split has 0.2",
        ),
    ],
)
def test_an_image_model_of_another_cube_is_refused(
    image_checkpoint: Path, data: TinyCube, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        fit(discriminator(image_checkpoint), data)


def test_a_checkpoint_of_another_grid_is_refused(
    image_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TinyCube()
    description = other.description() | {"shape": [8, 16]}
    monkeypatch.setattr(other, "description", lambda: description)
    model = make("ImageDDPM", network=UNET)
    with pytest.raises(DataError, match=r"grid with shape \(8, 8\), but this cube has \(8, 16\)"):
        fit(model, other, max_steps=4, ckpt_path=image_checkpoint)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cross_entropy_weight": -1.0}, "must not be negative"),
        ({"cross_entropy_weight": 0.0, "score_matching_weight": 0.0}, "are all 0"),
        ({"forecast_spread": 0.0}, "forecast_spread is 0.0; it must be positive"),
        ({"forecast_spread": [0.1, -1.0]}, r"forecast_spread is \[0.1, -1.0\]"),
        ({"ratio_level": -1.0}, "ratio_level is -1.0; it must not"),
        ({"forecast_spread": "learned"}, "the discriminator has no network for it"),
        ({"forecast_spread": 0.1}, "UNetEnergy has no forecast; leave it out"),
        ({"forecast_shifts": [[0, 0], [1, 1]]}, "forecast_shifts .* UNetEnergy has no forecast"),
        ({"forecast_shifts": []}, "forecast_shifts .* UNetEnergy has no forecast"),
        ({"history_forecast": 0.5}, "history_forecast is 0.5, but UNetEnergy has no forecast"),
        ({"history_forecast": 1.5}, "history_forecast is 1.5; it is a share"),
        ({"score_matching_windows": 1}, "score_matching_windows is 1; it must be 2 or more"),
    ],
)
def test_weights_that_train_nothing(
    image_checkpoint: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        discriminator(image_checkpoint, **options)


def test_batches_that_do_not_fit_get_a_sentence(image_checkpoint: Path, logged: Log) -> None:
    model = discriminator(image_checkpoint)
    logged(model)
    with pytest.raises(ValueError, match=r"windows have 4 frames; set data\.init_args"):
        model.training_step({"frames": torch.zeros(2, 4, 2, 8, 8)}, 0)
    with pytest.raises(ValueError, match="A batch of one window has no other history"):
        model.training_step({"frames": torch.zeros(1, 3, 2, 8, 8)}, 0)
    with pytest.raises(ValueError, match="The discriminator has no image model"):
        fit(TimeConsistencyDiscriminator(UNetEnergy(2, 2, (8,), 1)))


def test_files_that_are_no_image_model_get_a_sentence(
    image_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    with pytest.raises(ValueError, match=r"There is no checkpoint .*model.ckpt"):
        open_image_model(str(path))
    path.write_bytes(image_checkpoint.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"model.ckpt cannot be read as a checkpoint"):
        load_model(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(ValueError, match="holds no 'state_dict'"):
        load_model(path)
    checkpoint = read_checkpoint(image_checkpoint)
    checkpoint["state_dict"].pop("denoiser.network.stem.conv.bias")
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="does not fit ImageDDPM: missing weights"):
        load_model(path)
    checkpoint["hyper_parameters"] = {}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="does not say which model it holds"):
        load_model(path)
    fit(discriminator(image_checkpoint)).save_checkpoint(path)
    with pytest.raises(ValueError, match="does not say which model it holds"):
        load_model(path)
    model = make(
        "TimeConsistencyDiscriminator", discriminator=ENERGY, image_model=str(image_checkpoint)
    )
    fit(model).save_checkpoint(path)
    with pytest.raises(ValueError, match="holds a TimeConsistencyDiscriminator, not an image mod"):
        open_image_model(str(path))


def test_histories_with_errors_are_noisier_by_a_level_of_each_windows_own() -> None:
    history = torch.zeros(4000, 2, 1, 4, 4)
    assert with_errors(history, 0.0) is history
    level = with_errors(history, 0.3).flatten(1).std(dim=1)  # 32 values each
    assert 0.14 < level.mean() < 0.16  # uniform between 0 and 0.3
    assert level.min() < 0.01
    assert 0.27 < level.quantile(0.95) < 0.32
    with pytest.raises(ValueError, match=r"history_noise is -0\.1, .* must not be negative"):
        TimeConsistencyDiscriminator(UNetEnergy(2, 2, (8,), 1), history_noise=-0.1)


def test_errors_shaped_as_the_flow_last_and_add_up() -> None:
    torch.manual_seed(0)
    history = torch.zeros(4000, 3, 1, 2, 2)
    history[:, 2] = torch.randn(4000, 1, 1, 1)  # the change is the same at all places
    history[:, 1] = 5.0
    change = history[:, 2] - history[:, 1]
    errors = with_errors(history, 0.0, 0.4) - history
    assert (errors.flatten(2).diff(dim=2).abs() < 1e-5).all()  # shaped as the change
    values = errors[:, :, 0, 0, 0]
    share = 0.4**2 / 3 * change.square().mean().item()  # of a level drawn between 0 and 0.4
    for frame in range(3):
        assert values[:, frame].square().mean().item() == pytest.approx(
            share * ((frame + 1) + 25 / 26 * frame * (frame + 1)), rel=0.1
        )
    assert torch.equal(with_errors(history[:, :1], 0.0, 0.4), history[:, :1])


def test_an_offset_is_the_same_in_all_frames_and_places_of_a_channel() -> None:
    torch.manual_seed(0)
    history = torch.randn(4000, 2, 3, 4, 4)
    errors = with_errors(history, 0.0, offset=0.3) - history
    each = errors[:, 0, :, 0, 0]
    assert torch.allclose(errors, each[:, None, :, None, None].expand_as(errors), atol=1e-5)
    # A level uniform between 0 and 0.3, by window, times a standard normal, by channel.
    assert each.square().mean().item() == pytest.approx(0.3**2 / 3, rel=0.1)
    assert torch.corrcoef(each.T).fill_diagonal_(0.0).abs().max() < 0.06


def test_a_model_of_ones_own_is_opened_by_its_class_path(
    image_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_models.py").write_text(
        "from dyngen.models import ImageDDPM\n\n\nclass OwnImageModel(ImageDDPM):\n    pass\n"
    )
    checkpoint = read_checkpoint(image_checkpoint)
    checkpoint["hyper_parameters"]["_class_path"] = "own_models.OwnImageModel"
    torch.save(checkpoint, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"which model it holds \('own_models.OwnImageModel'\)"):
        load_model(tmp_path / "own.ckpt")
    monkeypatch.syspath_prepend(tmp_path)
    model = load_model(tmp_path / "own.ckpt")
    assert type(model).__name__ == "OwnImageModel"
    x, sigma = torch.randn(2, 2, 8, 8), torch.tensor([0.5, 2.0])
    torch.testing.assert_close(model(x, sigma), load_model(image_checkpoint)(x, sigma))
