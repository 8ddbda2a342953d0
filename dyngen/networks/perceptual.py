"""How different two pictures look, by features instead of colours: trained ones, or oriented waves.

Each distance has a name, which becomes part of the name of what is logged: a number from one is
never passed off as a number from another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.networks.renderer import imagenet, load_exactly

VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)  # 0: pooling
TAPS = (1, 6, 11, 20, 29)  # relu1_1, relu2_1, ..., relu5_1, by torchvision's numbers
TAP_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
WAVELENGTH, WIDTH, SIDE = 4.0, 1.8, 9  # of a wavelet in pixels


@runtime_checkable
class PerceptualDistance(Protocol):
    """Pictures (B, 3, H, W) in -1..1, twice, to one number, differentiable in both."""

    name: str

    def __call__(self, first: Tensor, second: Tensor, /) -> Tensor:
        """The mean distance over the batch."""
        ...


class VGGDistance(nn.Module):
    """Mean differences of the features of a VGG-19 at five depths.

    (Johnson et al. 2016, arXiv 1603.08155, with the depths and weights of Wang et al. 2018, arXiv
    1711.11585, as in the renderers before this one.)

    Args:
        weights: A state_dict with the names of torchvision's `vgg19`; its classifier and deeper
            layers are not needed.
        source: Where it comes from, for the error.

    Raises:
        ValueError: If a weight is missing or has another shape.
    """

    name = "vgg19"

    def __init__(self, weights: Mapping[str, Tensor], source: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG19:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        own = self.state_dict()
        deeper = [k for k in weights if k not in own and not k.startswith("features.")]
        deeper += [k for k in weights if k not in own and _number(k) > TAPS[-1]]
        given = {k: v for k, v in weights.items() if k not in deeper}
        load_exactly(self, given, source, "a network like torchvision's vgg19")
        self.requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The weighted mean absolute difference of the features."""
        a, b = imagenet(first), imagenet(second)
        total = a.new_zeros(())
        for number, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if number in TAPS:
                total = total + TAP_WEIGHTS[TAPS.index(number)] * (a - b).abs().mean()
        return total


class WaveDistance(nn.Module):
    """Mean differences of the amplitudes of oriented waves at several scales; nothing is trained.

    At each of J scales, each half as fine as the one before, a picture is filtered by complex
    Gabor wavelets of L directions, which have no mean, and the modulus is averaged over two pixels:
    how much structure there is of that size and direction, wherever exactly its edges lie. It is
    the first layer of a wavelet scattering (Mallat 2012), kept local. A constant added to a picture
    changes nothing.

    Args:
        scales: J, at most as many as the picture can be halved.
        directions: L, over half a turn.
    """

    filters: Tensor

    def __init__(self, scales: int = 4, directions: int = 4) -> None:
        super().__init__()
        self.scales = scales
        self.name = f"waves-j{scales}-l{directions}"
        self.register_buffer("filters", _gabor(directions), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean absolute difference of the amplitudes, summed over scales."""
        total = first.new_zeros(())
        for _ in range(self.scales):
            if min(first.shape[-2:]) <= SIDE // 2:
                break  # too small to be filtered
            total = total + (self._amplitudes(first) - self._amplitudes(second)).abs().mean()
            first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        return total

    def _amplitudes(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) to (3 B, L, H / 2, W / 2)."""
        batch, channels, height, width = pictures.shape
        planes = pictures.reshape(batch * channels, 1, height, width)
        planes = F.pad(planes, (SIDE // 2,) * 4, mode="reflect")
        parts = F.conv2d(planes, self.filters.to(planes.dtype)).unflatten(1, (-1, 2))
        modulus = (parts.square().sum(2) + 1e-8).sqrt()
        return F.avg_pool2d(modulus, 2, ceil_mode=True)


def _gabor(directions: int) -> Tensor:
    """Real and imaginary parts of wavelets (2 L, 1, SIDE, SIDE), of unit norm and without mean."""
    axis = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x.square() + y.square()) / (2 * WIDTH**2))
    window = window / window.sum()
    found = []
    for number in range(directions):
        angle = math.pi * number / directions
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        even = window * (phase.cos() - (window * phase.cos()).sum())
        odd = window * phase.sin()
        found += [even / even.norm(), odd / odd.norm()]
    return torch.stack(found)[:, None].float()


def _number(key: str) -> int:
    part = key.split(".")[1]
    return int(part) if part.isdigit() else -1
