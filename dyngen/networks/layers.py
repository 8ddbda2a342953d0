"""Building blocks of the networks: convolutions that know boundaries, embeddings, blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Boundary = Literal["periodic", "reflect", "zero", "pole"]
PAD_MODES = {"reflect": "reflect", "zero": "constant"}
BOUNDARIES = ("periodic", *PAD_MODES, "pole")


def check_boundary(boundary: Sequence[str]) -> tuple[Boundary, Boundary]:
    """Return `boundary` as a (y, x) pair, or raise ValueError with the names allowed."""
    if len(boundary) != 2 or any(mode not in BOUNDARIES for mode in boundary):
        raise ValueError(
            f"boundary is {list(boundary)}; give two of {list(BOUNDARIES)}, for y and for x."
        )
    if boundary[1] == "pole" or (boundary[0] == "pole" and boundary[1] != "periodic"):
        raise ValueError(
            f"boundary is {list(boundary)}; pole is for y alone, with periodic for x: beyond a "
            "pole lies the meridian opposite."
        )
    return cast(tuple[Boundary, Boundary], tuple(boundary))


def pad(x: Tensor, width: int, boundary: tuple[Boundary, Boundary]) -> Tensor:
    """Pad the last two axes of `x` (B, C, H, W) by `width` cells, each as its boundary says.

    Longitude on a sphere is periodic while latitude ends: the modes may differ by axis.
    """
    for axis, mode in zip((-2, -1), boundary, strict=True):  # y first: a pole needs whole circles
        if mode == "periodic":  # as F.pad(mode="circular") does, and faster on a CPU
            last = x.narrow(axis, x.shape[axis] - width, width)
            x = torch.cat([last, x, x.narrow(axis, 0, width)], dim=axis)
        elif mode == "pole":
            x = _over_the_poles(x, width)
        else:
            sides = (width, width, 0, 0) if axis == -1 else (0, 0, width, width)
            x = F.pad(x, sides, mode=PAD_MODES[mode])
    return x


def _over_the_poles(x: Tensor, width: int) -> Tensor:
    """`x` (B, C, H, W) with rows beyond both poles: the nearest ones, half way around the globe.

    Rows are cells on either side of a pole, so that the first row beyond it is the last one before.

    Raises:
        ValueError: If there is no meridian opposite, the number of columns being odd.
    """
    if x.shape[-1] % 2:
        raise ValueError(
            f"{x.shape[-1]} columns have no meridian opposite, which lies beyond a pole; give the "
            "network fewer widths, a grid with more factors of 2, or reflect for y."
        )
    opposite = x.roll(x.shape[-1] // 2, dims=-1)
    north, south = opposite[..., :width, :].flip(-2), opposite[..., -width:, :].flip(-2)
    return torch.cat([north, x, south], dim=-2)


class Conv2d(nn.Module):
    """A convolution that keeps the size of its input and pads each axis by its own boundary.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel: Odd kernel size.
        boundary: Padding of the y and x axes.
        stride: 2 halves the resolution.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        boundary: tuple[Boundary, Boundary] = ("periodic", "periodic"),
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride)
        self.boundary = boundary
        self.width = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.width:
            x = pad(x, self.width, self.boundary)
        return cast(Tensor, self.conv(x))


def zero_(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, so that a block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def normalisation(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 channels or more in a group where the width allows."""
    groups = next(g for g in (8, 4, 2, 1) if (channels % g == 0 and channels // g >= 4) or g == 1)
    return nn.GroupNorm(groups, channels)


class NoiseEmbedding(nn.Module):
    """Random-free Fourier features of a noise label, then a two-layer perceptron.

    The label is `log(sigma) / 4` (Karras et al. 2022, table 1), a number within about [-2, 2]
    over all useful noise levels; frequencies from 1/4 to 4 turns per unit resolve it without
    aliasing.

    Args:
        width: Size of the embedding.
        features: Number of sine and cosine features.
    """

    frequencies: Tensor

    def __init__(self, width: int, features: int = 32) -> None:
        super().__init__()
        frequencies = 2 * math.pi * torch.logspace(-2, 2, features // 2, base=2.0)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.perceptron = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, label: Tensor) -> Tensor:
        """Map labels (B,) to embeddings (B, width)."""
        angle = label[:, None].to(self.frequencies.dtype) * self.frequencies
        return cast(Tensor, self.perceptron(torch.cat([angle.sin(), angle.cos()], dim=1)))


class ResidualBlock(nn.Module):
    """Two convolutions around a shift and scale by the noise embedding (Dhariwal & Nichol 2021).

    Without an embedding it is a plain residual block.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        embedding: Width of the noise embedding; 0 for none.
        boundary: Padding of the y and x axes.
        dropout: Probability of dropping a feature before the second convolution.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        boundary: tuple[Boundary, Boundary],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = normalisation(channels_in)
        self.conv1 = Conv2d(channels_in, channels_out, 3, boundary)
        self.modulation = nn.Linear(embedding, 2 * channels_out) if embedding else None
        self.norm2 = normalisation(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = cast(Conv2d, zero_(Conv2d(channels_out, channels_out, 3, boundary)))
        self.skip = (
            nn.Identity() if channels_in == channels_out else Conv2d(channels_in, channels_out, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.modulation is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, scale + 1)
        return cast(Tensor, self.skip(x) + self.conv2(self.dropout(F.silu(h))))


class Attention2d(nn.Module):
    """Self-attention over all cells of a feature map, with a residual connection.

    Args:
        channels: Channels of the input, divisible by `heads`.
        heads: Number of attention heads.

    Raises:
        ValueError: If the channels cannot be shared out to the heads.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"{channels} channels cannot be shared out to {heads} attention heads; give the "
                f"levels with attention a width that is a multiple of {heads}."
            )
        self.heads = heads
        self.norm = normalisation(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = cast(nn.Conv2d, zero_(nn.Conv2d(channels, channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=1)
        # Written out, not F.scaled_dot_product_attention: a guided sampler and score matching
        # differentiate twice, which the fused kernels do not offer.
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        h = (weights @ v).transpose(-1, -2).reshape(b, c, height, width)
        return cast(Tensor, x + self.out(h))
