"""A U-Net in space and time: it denoises a block of frames together, given the frames before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from dyngen.networks.layers import NoiseEmbedding, ResidualBlock, normalisation, zero_
from dyngen.networks.unet import UNet2d


class VideoUNet(nn.Module):
    """A `UNet2d` of each frame with attention over time between (Ho et al. 2022, arXiv 2204.03458).

    Space and time are factorised: convolutions see one frame, and after each residual block every
    cell attends to itself in all n frames, with weights that know how far apart frames are. Past
    frames come in as channels beside each noisy frame (Voleti et al. 2022, arXiv 2205.09853), so
    that none of them costs a pass of its own, and frames are told apart by their lead, which is
    added to the noise embedding. A block of one frame has no time to attend to: it is a `UNet2d`
    with the history as context, at that cost.

    Args:
        channels: Channels of a frame.
        history_length: Number of past frames k.
        block_length: Number of frames n that are denoised together.
        widths: Feature channels at each resolution, finest first.
        blocks: Residual blocks per resolution.
        attention: Resolutions with self-attention in space.
        boundary: Boundary of the y and x axes.
        dropout: Dropout probability inside residual blocks.
        patch: Side of the patches folded into channels (see `UNet2d`).
        embedding: Width of the noise embedding.
        heads: Heads of the attention over time.
        context_channels: Channels of static fields and forcing given beside each frame.

    Raises:
        ValueError: For lengths below 1, or what `UNet2d` refuses.
    """

    def __init__(
        self,
        channels: int,
        history_length: int = 2,
        block_length: int = 1,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        attention: Sequence[int] = (),
        boundary: Sequence[str] = ("periodic", "periodic"),
        dropout: float = 0.0,
        patch: int = 1,
        embedding: int = 128,
        heads: int = 4,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        if history_length < 1 or block_length < 1:
            raise ValueError(
                f"history_length is {history_length} and block_length is {block_length}; a video "
                "network is given at least one frame and makes at least one."
            )
        self.history_length, self.block_length = history_length, block_length
        self.context_channels = context_channels
        past = history_length * channels + context_channels
        self.unet = UNet2d(
            channels, past, widths, blocks, attention, boundary, dropout, embedding, patch
        )
        if block_length > 1:
            self.unet.embedding = _FrameEmbedding(embedding, block_length)
            for stage in _stages(self.unet):
                width = cast(ResidualBlock, stage[0]).norm2.num_channels
                stage[1] = nn.Sequential(stage[1], TimeAttention(width, block_length, heads))

    def forward(
        self, x: Tensor, label: Tensor, history: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Map noisy blocks and their noise labels to an output of the blocks' shape.

        Args:
            x: Scaled noisy frames (B, n, C, H, W), or (B, C, H, W) where n is 1.
            label: Noise labels (B,), one for all frames of a block.
            history: Clean past frames (B, k, C, H, W), oldest first.
            context: Static fields and forcing of each frame (B, n, context_channels, H, W), or
                without the n where it is 1.

        Raises:
            ValueError: If there are not n frames or not k past ones, or for frames whose size does
                not fit the U-Net.
        """
        frames = x[:, None] if x.ndim == 4 else x
        if (frames.shape[1], history.shape[1]) != (self.block_length, self.history_length):
            raise ValueError(
                f"{frames.shape[1]} noisy frames and {history.shape[1]} past ones do not fit a "
                f"network with block_length {self.block_length} and history_length "
                f"{self.history_length}; give as many, or train one of these lengths."
            )
        beside = history.repeat_interleave(self.block_length, 0).flatten(1, 2)  # (B n, k C, H, W)
        if context is not None:
            context = context.reshape(len(beside), -1, *context.shape[-2:])
            beside = torch.cat([beside, context], dim=1)
        out: Tensor = self.unet(frames.flatten(0, 1), label, beside)
        return out.reshape(x.shape)


class TimeAttention(nn.Module):
    """Self-attention of each cell over the frames of its block, with a residual connection.

    A bias for each head and each distance in time is added to the logits (Raffel et al. 2020,
    arXiv 1910.10683, section 2.1): what counts is how far apart two frames are and which is first.

    Args:
        channels: Channels of the input, divisible by `heads`.
        frames: Frames n of a block.
        heads: Number of attention heads.

    Raises:
        ValueError: If the channels cannot be shared out to the heads.
    """

    distance: Tensor

    def __init__(self, channels: int, frames: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"{channels} channels cannot be shared out to {heads} heads of attention over "
                f"time; give widths that are multiples of {heads}."
            )
        self.frames, self.heads = frames, heads
        self.norm = normalisation(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * frames - 1))
        self.out = cast(nn.Conv2d, zero_(nn.Conv2d(channels, channels, 1)))
        time = torch.arange(frames)
        distance = time[None] - time[:, None] + frames - 1  # from the query to the key
        self.register_buffer("distance", distance, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Frames (B n, channels, H, W), those of a block one after the other, to the same."""
        qkv = rearrange(
            self.qkv(self.norm(x)),
            "(b t) (three h c) y x -> three b h y x t c",
            three=3,
            t=self.frames,
            h=self.heads,
        )
        q, k, v = qkv.unbind(0)
        bias = self.bias[:, None, None, self.distance]  # (heads, 1, 1, n, n)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        h = rearrange(logits.softmax(dim=-1).to(v.dtype) @ v, "b h y x t c -> (b t) (h c) y x")
        return cast(Tensor, x + self.out(h))


class _FrameEmbedding(NoiseEmbedding):
    """The noise embedding of each frame of a block, told apart by lead: (B,) -> (B n, width)."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__(width)
        self.lead = nn.Parameter(torch.zeros(frames, width))

    def forward(self, label: Tensor) -> Tensor:
        return (super().forward(label)[:, None] + self.lead).flatten(0, 1)


def _stages(unet: UNet2d) -> Iterator[nn.ModuleList]:
    """Each residual block of a U-Net with what follows it."""
    for level in [*unet.down, *unet.up]:
        yield from cast(nn.ModuleList, level)  # type: ignore[misc]
    yield unet.middle
