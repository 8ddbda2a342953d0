"""Networks: what their design promises about symmetry, boundaries, scale and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyngen.networks.discriminators import (
    EncoderDiscriminator,
    ForecastEnergy,
    UNetEnergy,
)
from dyngen.networks.layers import Attention2d, Conv2d, NoiseEmbedding, normalisation, pad
from dyngen.networks.unet import UNet2d

SIGMA = torch.tensor([0.1, 3.0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def awake(network: nn.Module, seed: int = 0) -> Any:
    """The network with no weight at zero, as after some training, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise / math.sqrt(fan))
    return network.double().eval()


def frames(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def roll(x: Tensor, y: int, right: int) -> Tensor:
    return x.roll((y, right), (-2, -1))


# U-Net


@pytest.mark.parametrize(
    ("patch", "widths", "attention"), [(1, (8, 8, 8), ()), (2, (8, 8), (1,)), (4, (8,), (0,))]
)
def test_a_periodic_unet_moves_with_its_input(
    patch: int, widths: Sequence[int], attention: Sequence[int]
) -> None:
    """By whole cells of the coarsest level exactly; by less it cannot, for it halves."""
    network = awake(UNet2d(2, 1, widths, 1, attention, patch=patch))
    x, context, label = frames(2, 2, 16, 24), frames(2, 1, 16, 24, seed=2), SIGMA.log().double() / 4
    here = network(x, label, context)
    assert network.factor == 4
    for shift in [(4, 0), (-8, 12), (0, 4)]:
        there = network(roll(x, *shift), label, roll(context, *shift))
        torch.testing.assert_close(there, roll(here, *shift), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(network(roll(x, 1, 0), label, roll(context, 1, 0)), roll(here, 1, 0))


@pytest.mark.parametrize("ends", ["reflect", "zero"])
def test_an_axis_that_ends_moves_along_the_other_only(ends: str) -> None:
    network = awake(UNet2d(1, 0, (8, 8), 1, boundary=(ends, "periodic")))
    x, label = frames(1, 1, 8, 12), torch.zeros(1).double()
    here = network(x, label)
    torch.testing.assert_close(network(roll(x, 0, 6), label), roll(here, 0, 6))
    assert not torch.allclose(network(roll(x, 2, 0), label), roll(here, 2, 0), atol=1e-3)


def test_the_output_depends_on_frame_context_and_label_and_starts_at_zero() -> None:
    network = UNet2d(2, 3, (8, 16), 1)
    x, context, label = frames(2, 2, 8, 8).float(), frames(2, 3, 8, 8).float(), torch.zeros(2)
    assert torch.equal(network(x, label, context), torch.zeros_like(x))
    network = awake(network)
    x, context, label = x.double(), context.double(), label.double()
    out = network(x, label, context)
    assert out.shape == x.shape
    for change in [
        network(x + 1, label, context),
        network(x, label + 0.1, context),
        network(x, label, context.flip(1)),
    ]:
        assert (change - out).abs().max() > 1e-3


def test_features_are_what_the_last_layer_sees_with_patches_unfolded() -> None:
    network = awake(UNet2d(1, 1, (10, 8), 1, patch=2))
    x, context, label = frames(3, 1, 8, 8), frames(3, 1, 8, 8, seed=2), torch.zeros(3).double()
    seen: list[Tensor] = []
    network.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x, label, context)
    features = network.features(x, label, context)
    assert features.shape == (3, network.feature_channels, 8, 8) == (3, 2, 8, 8)
    folded = features.reshape(3, 2, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 8, 4, 4)
    torch.testing.assert_close(folded, seen[0][:, :8])


def test_samples_of_a_batch_do_not_mix() -> None:
    network = awake(UNet2d(1, 0, (8, 8), 1, attention=(1,)))
    x, label = frames(3, 1, 8, 8), frames(3)
    alone = torch.cat([network(x[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, label), alone)


@pytest.mark.parametrize(("channels", "context", "patch"), [(1, 0, 1), (3, 2, 1), (2, 1, 2)])
def test_parameters_are_as_many_as_the_layers_have(channels: int, context: int, patch: int) -> None:
    a, b, e, blocks = 8, 12, 16, 2

    def conv(i: int, o: int, kernel: int = 3) -> int:
        return i * o * kernel**2 + o

    def residual(i: int, o: int) -> int:
        skip = conv(i, o, 1) if i != o else 0
        return 2 * i + conv(i, o) + (e + 1) * 2 * o + 2 * o + conv(o, o) + skip

    expected = (
        (32 + 1) * e
        + (e + 1) * e  # the embedding of the noise label
        + conv((channels + context) * patch**2, a)
        + 2 * residual(a, a)
        + conv(a, a)  # to the coarse level
        + residual(a, b)
        + residual(b, b)
        + residual(b, b)  # middle
        + 2 * residual(2 * b, b)
        + conv(b, b)  # to the fine level
        + residual(a + b, a)
        + residual(2 * a, a)
        + 2 * a
        + conv(a, channels * patch**2)
    )
    network = UNet2d(channels, context, (a, b), blocks, embedding=e, patch=patch)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(
    ("make", "shape", "sentence"),
    [
        (lambda: UNet2d(1, 0, (4, 4, 4)), (10, 12), "Frames of 10 x 12 cells do not fold 2 times"),
        (lambda: UNet2d(1, 0, (4, 4), patch=2), (8, 9), "pad them to multiples of 4"),
        (
            lambda: UNet2d(1, 0, (4, 4), boundary=("reflect", "periodic")),
            (2, 8),
            "shrink to one cell, which has no reflection",
        ),
        (
            lambda: UNet2d(1, boundary=("periodic",)),
            (8, 8),
            r"boundary is \['periodic'\]; give two",
        ),
        (lambda: UNet2d(1, boundary=("wrap", "zero")), (8, 8), r"give two of \['periodic', 'refl"),
        (lambda: UNet2d(1, widths=()), (8, 8), r"widths is \[\] and patch is 1"),
        (lambda: UNet2d(1, widths=(6,), attention=(0,)), (8, 8), "6 channels cannot be shared out"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(
    make: Callable[[], nn.Module], shape: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()(torch.zeros(1, 1, *shape), torch.zeros(1))


def test_the_smallest_frames_that_fold_are_taken() -> None:
    for boundary in ("periodic", "zero"):
        network = UNet2d(1, 0, (4, 4, 4), boundary=(boundary, boundary))
        assert network(torch.zeros(1, 1, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)
    network = UNet2d(1, 0, (4, 4), boundary=("reflect", "reflect"))
    assert network(torch.zeros(1, 1, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)


# Layers


@pytest.mark.parametrize("y", ["periodic", "reflect", "zero"])
@pytest.mark.parametrize("x", ["periodic", "reflect", "zero"])
def test_padding_is_numpys_axis_by_axis(y: Any, x: Any) -> None:
    modes: dict[str, Any] = {"periodic": "wrap", "reflect": "reflect", "zero": "constant"}
    field = frames(2, 3, 4, 5)
    by_axis = np.pad(field.numpy(), ((0, 0), (0, 0), (0, 0), (2, 2)), mode=modes[x])
    expected = np.pad(by_axis, ((0, 0), (0, 0), (2, 2), (0, 0)), mode=modes[y])
    np.testing.assert_array_equal(pad(field, 2, (y, x)).numpy(), expected)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_periodic_convolution_is_a_circular_sum(kernel: int) -> None:
    layer = Conv2d(1, 1, kernel).double()
    field = frames(1, 1, 6, 7)
    expected = layer.conv.bias.view(1, 1, 1, 1).expand_as(field).clone()  # type: ignore[union-attr]
    reach = kernel // 2
    for i in range(kernel):
        for j in range(kernel):
            expected = expected + layer.conv.weight[0, 0, i, j] * roll(field, reach - i, reach - j)
    torch.testing.assert_close(layer(field), expected)


def test_attention_is_that_of_torch() -> None:
    layer = awake(Attention2d(8, heads=2))
    x = frames(2, 8, 3, 4)
    q, k, v = (
        layer.qkv(layer.norm(x)).flatten(2).unflatten(1, (3, 2, 4)).transpose(-1, -2).unbind(1)
    )
    fused = nn.functional.scaled_dot_product_attention(q, k, v)
    expected = x + layer.out(fused.transpose(-1, -2).reshape(2, 8, 3, 4))
    torch.testing.assert_close(layer(x), expected)


def test_groups_divide_the_channels_with_at_least_four_in_each() -> None:
    groups = {c: normalisation(c).num_groups for c in (3, 6, 8, 16, 32, 48, 96)}
    assert groups == {3: 1, 6: 1, 8: 2, 16: 4, 32: 8, 48: 8, 96: 8}


def test_the_embedding_tells_noise_levels_apart() -> None:
    """Features of neighbours on a fine grid differ, those of the whole range do not alias."""
    embedding = NoiseEmbedding(8)
    label = torch.linspace(math.log(0.002) / 4, math.log(80) / 4, 200)
    angle = label[:, None] * embedding.frequencies
    features = torch.cat([angle.sin(), angle.cos()], 1)
    distance = torch.cdist(features, features)
    assert distance.diagonal(1).min() > 0.05
    far = (label[:, None] - label).abs() > 0.1
    assert distance[far].min() > 0.5


# Discriminators

NETWORKS: dict[str, Callable[..., Any]] = {
    "energy": lambda **options: UNetEnergy(2, 3, (8, 8), 1, **options),
    "forecast": lambda **options: ForecastEnergy(2, 3, (8, 8), 1, **options),
    "encoder": lambda **options: EncoderDiscriminator(2, 3, (8, 8), 1, **options),
}


@pytest.fixture(params=NETWORKS)
def discriminator(request: pytest.FixtureRequest) -> Any:
    return awake(NETWORKS[request.param]())


@pytest.fixture
def sample() -> tuple[Tensor, Tensor, Tensor]:
    x = frames(4, 2, 8, 8)
    sigma = torch.tensor([0.05, 0.4, 2.0, 30.0]).double()
    return x * (1 + sigma**2).sqrt().view(-1, 1, 1, 1), sigma, frames(4, 3, 2, 8, 8, seed=3)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_discriminator_knows_nothing(name: str) -> None:
    """Logit 0 and guidance 0, so that guided sampling starts as the image model's own."""
    x = torch.randn(3, 2, 8, 8, requires_grad=True)
    logit = NETWORKS[name]()(x, torch.tensor(0.3), torch.randn(3, 3, 2, 8, 8))
    assert logit.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(logit.sum(), x)
    assert gradient.abs().max() == 0


def test_a_logit_is_of_its_own_sample_and_of_all_that_it_is_given(
    discriminator: Any, sample: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, sigma, history = sample
    logits = discriminator(x, sigma, history)
    assert logits.shape == (4,)
    assert discriminator.history_length == 3
    alone = [discriminator(x[i : i + 1], sigma[i : i + 1], history[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(logits, torch.cat(alone))
    one = discriminator(x, sigma[1], history)
    torch.testing.assert_close(one[1], logits[1])
    for frame in range(3):
        changed = history.clone()
        changed[:, frame] += 0.5
        assert (discriminator(x, sigma, changed) - logits).abs().min() > 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_a_periodic_logit_stays_when_everything_moves(name: str) -> None:
    network = awake(NETWORKS[name]())
    x, history, sigma = frames(2, 2, 8, 8), frames(2, 3, 2, 8, 8), SIGMA.double()
    moved = network(roll(x, 4, 2), sigma, roll(history, 4, 2))
    torch.testing.assert_close(moved, network(x, sigma, history))
    ends = awake(NETWORKS[name](boundary=("zero", "zero")))
    moved = ends(roll(x, 4, 2), sigma, roll(history, 4, 2))
    assert not torch.allclose(moved, ends(x, sigma, history))


def test_guidance_of_the_energy_is_c_out_times_f_and_its_transposed_jacobian(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    """``sigma^2 grad l = c_out (f + J^T c_in x)``, J by autograd of the U-Net alone."""
    network = awake(UNetEnergy(2, 3, (8, 8), 1, sigma_data=0.5))
    x, sigma, history = sample
    columns = sigma.view(-1, 1, 1, 1)
    scaled = x * (columns**2 + 0.25).rsqrt()
    f, pull = torch.func.vjp(
        lambda s: network.unet(s, sigma.log() / 4, history.flatten(1, 2)), scaled
    )
    expected = columns * (columns**2 + 0.25).rsqrt() * (f + pull(scaled)[0])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf, sigma, history).sum(), leaf)
    torch.testing.assert_close(columns**2 * gradient, expected)


def test_the_offset_is_a_part_of_the_logit_that_the_frame_does_not_touch(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    network = awake(UNetEnergy(2, 3, (8, 8), 1))
    x, sigma, history = sample
    offset = network.offset(sigma, history)
    torch.testing.assert_close(network(0 * x, sigma, history), offset)
    assert offset.std() > 0


def test_an_innovation_is_all_that_the_forecast_energy_sees_of_the_frame(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Guidance c_out (f + J^T c_in (x - m)), the Jacobian of f in x by way of d."""
    network = awake(ForecastEnergy(2, 3, (8, 8), 1, sigma_data=0.5, spread=0.3))
    x, sigma, history = sample
    columns = sigma.view(-1, 1, 1, 1)
    expected = network.forecast(history)
    before = history[:, :2].flatten(1, 2)
    change = network.forecaster(history[:, 2], torch.zeros(4).double(), before)
    torch.testing.assert_close(expected, history[:, 2] + change)
    beside = torch.cat([history.flatten(1, 2), expected], dim=1)
    c_in, c_d = (columns**2 + 0.25).rsqrt(), (columns**2 + 0.09).rsqrt()
    f, pull = torch.func.vjp(
        lambda d: network.unet(d, sigma.log() / 4, beside), c_d * (x - expected)
    )
    guidance = columns * c_in * (f + c_d * pull(x - expected)[0])
    leaf = x.clone().requires_grad_()
    logits = network(leaf, sigma, history)
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    torch.testing.assert_close(columns**2 * gradient, guidance)
    torch.testing.assert_close(network(expected, sigma, history), network.offset(sigma, history))
    torch.testing.assert_close(network(x, sigma, history, forecast=expected), logits)
    elsewhere = network(x, sigma, history, forecast=expected + 1)
    assert (elsewhere - logits).abs().min() > 1e-6


def test_a_forecast_energy_of_one_past_frame_has_no_other_context() -> None:
    network = awake(ForecastEnergy(1, 1, (8, 8), 1))
    x, history = frames(2, 1, 8, 8), frames(2, 1, 1, 8, 8)
    assert network.forecast(history).shape == (2, 1, 8, 8)
    assert network(x, SIGMA.double(), history).shape == (2,)


def test_guidance_of_the_energy_has_one_scale_at_every_noise_level() -> None:
    """In units of c_out, from sigma 0.01 to 80: neither vanishing nor exploding."""
    network = awake(UNetEnergy(1, 2, (8, 8), 1))
    clean, eps, history = frames(8, 1, 8, 8), frames(8, 1, 8, 8, seed=2), frames(8, 2, 1, 8, 8)
    sizes = []
    for sigma in torch.logspace(-2, math.log10(80), 9).double():
        x = (clean + sigma * eps).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x, sigma, history).sum(), x)
        c_out = sigma / (1 + sigma**2).sqrt()
        sizes.append((sigma**2 * gradient / c_out).square().mean().sqrt().item())
    assert max(sizes) / min(sizes) < 3
    assert min(sizes) > 0.1


@pytest.mark.parametrize("attention", [(), (1,)])
def test_the_gradient_itself_can_be_trained(attention: Sequence[int]) -> None:
    """Score matching differentiates twice: against finite differences along a direction."""
    network = awake(UNetEnergy(1, 1, (8, 8), 1, attention=attention))
    x, history, target = frames(2, 1, 4, 4), frames(2, 1, 1, 4, 4), frames(2, 1, 4, 4, seed=5)
    sigma = SIGMA.double()

    def loss() -> Tensor:
        leaf = x.clone().requires_grad_()
        logits = network(leaf, sigma, history)
        (gradient,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
        return (sigma.view(-1, 1, 1, 1) ** 2 * gradient - target).square().mean()

    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    directions = [torch.randn_like(p) for p in parameters]
    slope = sum(
        ((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None),
        0.0,
    )
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)
        values.append(loss().item())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(step * d)
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 3.0, 40.0])
def test_bfloat16_gives_gradients_that_can_be_used(sigma: float) -> None:
    """Under autocast the guidance is off by about one percent, the rounding of bfloat16."""
    network = awake(UNetEnergy(1, 2, (16, 16), 1, attention=(1,))).float()
    x = (frames(8, 1, 16, 16) * math.sqrt(1 + sigma**2)).float()
    history, level = frames(8, 2, 1, 16, 16).float(), torch.tensor(sigma)

    def guidance() -> Tensor:
        leaf = x.clone().requires_grad_()
        logits = network(leaf, level, history)
        assert logits.dtype == torch.float32
        (gradient,) = torch.autograd.grad(logits.sum(), leaf)
        return gradient

    single = guidance()
    with torch.autocast("cpu", torch.bfloat16):
        half = guidance()
    assert half.dtype == torch.float32
    error = (half - single).norm() / single.norm()
    assert 0 < error < 0.03


def test_an_encoder_takes_frames_of_any_size() -> None:
    network = EncoderDiscriminator(1, 1, (4, 4, 4), 1, boundary=("zero", "periodic"))
    for height, width in [(7, 9), (8, 8), (5, 4)]:
        x, history = torch.zeros(2, 1, height, width), torch.zeros(2, 1, 1, height, width)
        assert network(x, torch.tensor(1.0), history).shape == (2,)


def test_an_energy_refuses_frames_that_do_not_fold() -> None:
    with pytest.raises(ValueError, match="Frames of 7 x 8 cells do not fold"):
        UNetEnergy(1, 1, (4, 4))(torch.zeros(2, 1, 7, 8), SIGMA, torch.zeros(2, 1, 1, 7, 8))
