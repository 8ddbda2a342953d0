"""The U-Net of spectral volumes: which terms, samples and images know of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyngen.diffusion.denoiser import Denoiser
from dyngen.networks.spectral_unet import Coordination, SpectralUNet, attention_over_terms
from dyngen.networks.unet import UNet2d

TERMS, CHANNELS = 3, 2
LABEL = torch.tensor([0.1, -0.4])


def unet(coordination: Coordination, awake: bool = True, **options: Any) -> SpectralUNet:
    """A small network, as after some training: no weight at zero."""
    torch.manual_seed(0)
    network = SpectralUNet(
        TERMS, CHANNELS, coordination, (8, 8), image_channels=3, embedding=16, **options
    )
    return stir(network) if awake else network


def stir(network: SpectralUNet) -> SpectralUNet:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, TERMS, CHANNELS, 4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def context() -> Tensor:
    return torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(2))


def changed(network: SpectralUNet, x: Tensor, context: Tensor) -> Tensor:
    """Which terms of which samples (B, K) notice that term 1 of sample 0 has changed."""
    other = x.clone()
    other[0, 1] += 1
    with torch.no_grad():
        difference = network(other, LABEL, context) - network(x, LABEL, context)
    return difference.abs().amax((2, 3, 4)) > 1e-6


def test_independent_terms_do_not_know_of_each_other(x: Tensor, context: Tensor) -> None:
    noticed = changed(unet("independent"), x, context)
    assert noticed.tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize("coordination", ["coordinated", "volume"])
def test_other_terms_do_and_samples_do_not(
    coordination: Coordination, x: Tensor, context: Tensor
) -> None:
    assert changed(unet(coordination), x, context).tolist() == [[True] * 3, [False] * 3]


@torch.no_grad()
def test_terms_are_the_same_one_by_one_and_told_apart(x: Tensor, context: Tensor) -> None:
    network = unet("independent")
    together = network(x, LABEL, context)
    for k in (2, 0):
        alone = network(x[:, [k]], LABEL, context, term=torch.full((2, 1), k))
        torch.testing.assert_close(alone, together[:, [k]])
    mistaken = network(x[:, [2]], LABEL, context, term=torch.ones(2, 1, dtype=torch.int64))
    assert not torch.allclose(mistaken, together[:, [2]], atol=1e-4)


@torch.no_grad()
def test_attention_changes_nothing_before_it_is_trained(x: Tensor, context: Tensor) -> None:
    network = unet("independent")
    before, weights = network(x, LABEL, context), set(network.parameters())
    network.coordinate()
    torch.testing.assert_close(network(x, LABEL, context), before)
    added = set(network.attention_parameters())
    assert set(network.parameters()) == weights | added
    assert not weights & added
    # As many as the U-Net has layers: the first, two on the way down, one in the middle, two up,
    # the last.
    assert len([p for p in added if p.shape == (4, 2 * TERMS - 1)]) == 7
    for parameter in added:
        parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(network(x, LABEL, context), before, atol=1e-3)


@torch.no_grad()
def test_heads_look_near_and_far() -> None:
    attention = attention_over_terms(8, 16, 4)
    x = torch.zeros(16, 8, 1, 1)  # keys and queries do not differ: the bias alone decides
    values = torch.eye(16)
    weights = attention.bias[:, attention.distance].softmax(-1)  # (heads, query, key)
    assert attention(x).shape == x.shape
    torch.testing.assert_close(weights[0], torch.full((16, 16), 1 / 16))
    off = (torch.arange(16)[:, None] - torch.arange(16)).abs().float()
    reach = (weights * off).sum(-1).mean(-1).tolist()
    assert reach[0] > 1.5 * reach[1] > 3 * reach[2] > 6 * reach[3]
    torch.testing.assert_close(weights[3], values, atol=0.05, rtol=0)


def test_a_volume_is_an_image_of_many_channels(x: Tensor, context: Tensor) -> None:
    network = unet("volume")
    assert isinstance(network.unet, UNet2d)
    expected = network.unet(x.reshape(2, TERMS * CHANNELS, 4, 8), LABEL, context)
    torch.testing.assert_close(network(x, LABEL, context).flatten(1, 2), expected)


@torch.no_grad()
@pytest.mark.parametrize("coordination", ["independent", "coordinated", "volume"])
def test_an_image_that_is_dropped_is_no_image(
    coordination: Coordination, x: Tensor, context: Tensor
) -> None:
    network = unet(coordination)
    seen, unseen = network(x, LABEL, context), network(x, LABEL)
    half = network(x, LABEL, context, dropped=torch.tensor([True, False]))
    torch.testing.assert_close(half[0], unseen[0])
    torch.testing.assert_close(half[1], seen[1])
    assert not torch.allclose(seen, unseen, atol=1e-3)


@torch.no_grad()
def test_images_are_shrunk_by_averaging() -> None:
    network = unet("independent", image_patch=2)
    small = torch.rand(1, 3, 8, 16)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    features = network.encode_image(small, (4, 8))
    assert features.shape == (1, 3, 4, 8)
    torch.testing.assert_close(network.encode_image(large, (4, 8)), features)
    assert not torch.allclose(network.encode_image(small.flip(1), (4, 8)), features, atol=1e-3)


@pytest.mark.parametrize("coordination", ["independent", "coordinated", "volume"])
def test_every_weight_has_a_part_in_it(coordination: Coordination, x: Tensor) -> None:
    network = unet(coordination)
    context = network.encode_image(torch.rand(2, 3, 8, 16), (4, 8))
    network(x, LABEL, context, dropped=torch.tensor([True, False])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_mistakes_get_a_sentence(x: Tensor) -> None:
    name: Any = "together"
    with pytest.raises(ValueError, match="coordination is 'together'; choose one of independent"):
        unet(name)
    with pytest.raises(ValueError, match="terms is 0"):
        SpectralUNet(0)
    with pytest.raises(ValueError, match="whose terms are 'volume' cannot be coordinated"):
        unet("volume").coordinate()
    with pytest.raises(ValueError, match="2 terms do not fit a network that denoises 3 together"):
        unet("coordinated")(x[:, :2], LABEL)
    with pytest.raises(ValueError, match="There are 2 terms, not 3; say with `term`"):
        unet("independent")(x[:, :2], LABEL)
    with pytest.raises(ValueError, match="8 channels cannot be shared out to 3 heads"):
        unet("coordinated", heads=3)


@pytest.mark.slow
def test_attention_on_a_frozen_network_learns_what_terms_know_of_each_other() -> None:
    """Terms that are one field, up to sign: with eight looks at it noise counts a third as much.

    The field is Gaussian, so that the best errors with and without coordination are known.
    """
    torch.manual_seed(0)
    terms, size = 8, 8
    k = torch.fft.fftfreq(size) * size
    amplitude = 1 / (1 + (k[:, None] ** 2 + k**2).sqrt()) ** 1.5
    amplitude /= amplitude.square().mean().sqrt()
    sign = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1]).view(1, terms, 1, 1, 1)

    def fields(batch: int) -> Tensor:
        white = torch.fft.fft2(torch.randn(batch, 1, 1, size, size))
        return torch.fft.ifft2(white * amplitude).real * sign

    def best(looks: int, sigma: float) -> float:
        noise = sigma**2 / looks
        return (amplitude**2 * noise / (amplitude**2 + noise)).mean().item()

    def train(denoiser: Denoiser, parameters: Iterator[nn.Parameter], steps: int) -> None:
        optimiser = torch.optim.AdamW(parameters, lr=4e-3)
        alone = denoiser.network.coordination == "independent"
        for _ in range(steps):
            clean, term = fields(64 if alone else 8), None
            if alone:
                term = torch.randint(0, terms, (64, 1))
                clean = clean.gather(1, term.view(64, 1, 1, 1, 1).expand(-1, -1, 1, size, size))
            sigma = (1.2 * torch.randn(len(clean)) - 0.2).exp()
            noisy = clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn_like(clean)
            error = (denoiser(noisy, sigma, term=term) - clean).square().flatten(1).mean(1)
            optimiser.zero_grad()
            (denoiser.loss_weight(sigma) * error).mean().backward()
            optimiser.step()

    @torch.no_grad()
    def error(denoiser: Denoiser) -> float:
        clean = fields(128)
        return (
            (denoiser(clean + torch.randn_like(clean), torch.tensor(1.0)) - clean)
            .square()
            .mean()
            .item()
        )

    network = SpectralUNet(terms, 1, widths=(16, 16), image_channels=1, embedding=32)
    denoiser = Denoiser(network)
    train(denoiser, network.parameters(), 150)
    assert best(1, 1.0) < error(denoiser) < 1.15 * best(1, 1.0)
    network.requires_grad_(False)
    network.coordinate()
    train(denoiser, network.attention_parameters(), 120)
    assert best(8, 1.0) < error(denoiser) < 0.6 * best(1, 1.0)
