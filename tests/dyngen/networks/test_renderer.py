"""The renderer's networks against torchvision's layout and formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dyngen.networks.perceptual import VGGDistance, WaveDistance
from dyngen.networks.renderer import FeaturePyramid, SynthesisDecoder, imagenet, load_exactly

WIDTHS, BLOCKS = (4, 6, 6, 8), (2, 1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def picture(height: int = 24, width: int = 40) -> Tensor:
    return 2 * torch.rand(2, 3, height, width) - 1


def awake(pyramid: FeaturePyramid) -> FeaturePyramid:
    """With statistics and scales of batch normalisation that are not those of an untrained one."""
    for name, value in pyramid.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value.float()) + 0.5)
    return pyramid.eval()


def test_a_resnet34_has_the_published_number_of_weights() -> None:
    pyramid = FeaturePyramid((32, 64, 64, 128, 256, 512), (3, 4, 6, 3))
    assert sum(p.numel() for p in pyramid.residual.parameters()) == 21_797_672 - 513_000
    names = set(pyramid.residual.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight"} <= names
    assert "layer1.0.downsample.0.weight" not in names
    assert "layer3.5.bn2.bias" in names


def test_features_are_those_of_the_residual_network() -> None:
    """Written out with functions, by the names of the weights."""
    pyramid = awake(FeaturePyramid(WIDTHS, BLOCKS))
    weights = pyramid.residual.state_dict()
    image = picture()

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{k}"][:, None, None]
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def block(x: Tensor, name: str, stride: int, projected: bool) -> Tensor:
        h = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        h = norm(conv(h, f"{name}.conv2"), f"{name}.bn2")
        if projected:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return (h + x).relu()

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    first = norm(conv(x, "conv1", 2), "bn1").relu()
    x = F.max_pool2d(first, 3, 2, 1)
    second = block(block(x, "layer1.0", 1, False), "layer1.1", 1, False)
    third = block(second, "layer2.0", 2, True)
    features = pyramid(image)
    assert [tuple(f.shape[1:]) for f in features] == [
        (7, 24, 40),
        (6, 12, 20),
        (6, 6, 10),
        (8, 3, 5),
    ]
    torch.testing.assert_close(features[0][:, :3], image)
    for ours, expected in zip(features[1:], (first, second, third), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_weights_by_torchvisions_names_are_taken() -> None:
    source, target = awake(FeaturePyramid(WIDTHS, BLOCKS)), FeaturePyramid(WIDTHS, BLOCKS).eval()
    weights = source.residual.state_dict() | {
        "fc.weight": torch.zeros(10, 8),
        "fc.bias": torch.zeros(10),
        "layer3.0.conv1.weight": torch.zeros(1),
    }
    target.load_residual(weights, "resnet.pt")
    image = picture()
    for ours, expected in zip(target(image)[1:], source(image)[1:], strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.bn1.weight": None}, "resnet.pt has no 'layer1.0.bn1.weight'; give the state_d"),
        ({"layer1.2.conv1.weight": torch.zeros(1)}, "has a 'layer1.2.conv1.weight', which is not"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"of shape \(64, 3, 7, 7\) instead of \(6, 3"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Tensor | None], message: str
) -> None:
    pyramid = FeaturePyramid(WIDTHS, BLOCKS)
    weights = pyramid.residual.state_dict() | change
    with pytest.raises(ValueError, match=message):
        pyramid.load_residual({k: v for k, v in weights.items() if v is not None}, "resnet.pt")


@pytest.mark.parametrize(("widths", "blocks"), [((), ()), ((4, 4, 4), ()), ((4,) * 7, (1,) * 5)])
def test_widths_and_blocks_that_do_not_fit_are_refused(
    widths: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="give 1 to 6 widths"):
        FeaturePyramid(widths, blocks)


def test_an_untrained_decoder_leaves_the_guess_as_it_is() -> None:
    decoder = SynthesisDecoder((7, 6), (4, 8))
    guess = picture(9, 15)
    features = [torch.randn(2, 7, 9, 15), torch.randn(2, 6, 5, 8)]
    coverage = [torch.rand(2, 1, 9, 15), torch.rand(2, 1, 5, 8)]
    assert torch.equal(decoder(features, coverage, guess), guess)


def test_coarse_levels_reach_into_holes_of_the_finest() -> None:
    decoder = SynthesisDecoder((7, 6), (4, 8))
    torch.nn.init.normal_(decoder.last.conv.weight)  # type: ignore[union-attr, arg-type]
    coarse = torch.randn(1, 6, 4, 4).requires_grad_()
    features = [torch.zeros(1, 7, 8, 8), coarse]
    coverage = [torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 4, 4)]
    result = decoder(features, coverage, torch.zeros(1, 3, 8, 8))
    (gradient,) = torch.autograd.grad(result[0, :, 4, 4].sum(), coarse)
    assert gradient[0, :, 2, 2].abs().max() > 0


def vgg_weights() -> dict[str, Tensor]:
    """A state_dict as torchvision's vgg19 has it, of small random numbers."""
    widths = [64, 64, 128, 128, *[256] * 4, *[512] * 8]
    numbers = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    weights, before = {}, 3
    for number, width in zip(numbers, widths, strict=True):
        scale = (2 / (9 * before)) ** 0.5
        weights[f"features.{number}.weight"] = scale * torch.randn(width, before, 3, 3)
        weights[f"features.{number}.bias"] = 0.1 * torch.randn(width)
        before = width
    assert sum(w.numel() for w in weights.values()) == 20_024_384  # as published
    return weights | {"classifier.0.weight": torch.zeros(1)}


def test_the_vgg_distance_is_that_of_five_layers() -> None:
    weights = vgg_weights()
    distance = VGGDistance(weights, "vgg.pt")
    first, second = picture(32, 32), picture(32, 32)

    def layers(image: Tensor) -> list[Tensor]:
        x, found = imagenet(image), []
        for number in range(30):
            if f"features.{number}.weight" in weights:
                kernel, bias = (weights[f"features.{number}.{k}"] for k in ("weight", "bias"))
                x = F.conv2d(x, kernel, bias, padding=1).relu()
                if number in (0, 5, 10, 19, 28):
                    found.append(x)
            elif number in (4, 9, 18, 27):
                x = F.max_pool2d(x, 2)
        return found

    shares = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    expected = sum(
        share * (a - b).abs().mean()
        for share, a, b in zip(shares, layers(first), layers(second), strict=True)
    )
    torch.testing.assert_close(distance(first, second), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in distance.parameters())
    del weights["features.28.bias"]
    with pytest.raises(ValueError, match=r"vgg.pt has no 'features.28.bias'"):
        VGGDistance(weights, "vgg.pt")


def test_a_wave_is_seen_by_the_filter_of_its_direction() -> None:
    distance = WaveDistance(scales=1, directions=4)
    x = torch.arange(40.0)
    across = torch.cos(2 * torch.pi * x / 4).expand(1, 3, 32, 40)
    amplitudes = distance._amplitudes(across)[..., 4:-4, 4:-4].mean((0, 2, 3))
    assert amplitudes.argmax() == 0
    assert amplitudes[2] < 1e-3  # the one along the crests, which has no mean
    assert amplitudes[0] > 3 * amplitudes[1]


def test_the_wave_distance_ignores_brightness_and_phase_and_sees_blur() -> None:
    distance = WaveDistance()
    image = picture(64, 64)
    assert distance(image, image) == 0
    assert distance(image, image + 0.3) < 1e-4
    blurred = F.avg_pool2d(image, 5, 1, 2)
    moved = image.roll(1, -1)
    assert distance(image, blurred) > 2 * distance(image, moved)
    assert (image - moved).abs().mean() > (image - blurred).abs().mean()  # colours say otherwise
    leaf = blurred.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(leaf, image), leaf)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_small_pictures_have_fewer_scales() -> None:
    assert torch.isfinite(WaveDistance(scales=6)(picture(16, 16), picture(16, 16)))


def test_weights_are_not_loaded_in_part() -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(ValueError, match="x has no 'bias'; give the state_dict of y"):
        load_exactly(module, {"weight": torch.zeros(2, 2)}, "x", "y")
    assert torch.equal(module.weight, before)
