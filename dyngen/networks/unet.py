"""The two-dimensional U-Net that every image-shaped network of the library is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.networks.layers import (
    Attention2d,
    Conv2d,
    NoiseEmbedding,
    ResidualBlock,
    check_boundary,
    normalisation,
    zero_,
)

Pairs = Iterable[tuple[nn.Module, nn.Module]]  # a residual block and what follows it


class UNet2d(nn.Module):
    """Residual U-Net with noise conditioning (Ronneberger et al. 2015; Ho et al. 2020).

    Args:
        channels: Channels of the noisy frame and of the output.
        context_channels: Channels concatenated to the input (past frames, static fields).
        widths: Feature channels at each resolution, finest first.
        blocks: Residual blocks per resolution, on the way down and on the way up.
        attention: Resolutions (0 is the finest) whose blocks are followed by self-attention.
        boundary: How convolutions see beyond the edge of y and of x: periodic, reflect, zero, or
            for y pole, beyond which lies the meridian opposite.
        dropout: Dropout probability inside residual blocks.
        embedding: Width of the noise embedding.
        patch: Side of the square patches that are folded into channels before the first layer
            and unfolded after the last one: the same frame on a coarser grid, at a fraction of
            the cost (Hoogeboom et al. 2023, arXiv 2301.11093).
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 2,
        attention: Sequence[int] = (),
        boundary: Sequence[str] = ("periodic", "periodic"),
        dropout: float = 0.0,
        embedding: int = 128,
        patch: int = 1,
    ) -> None:
        super().__init__()
        edges = check_boundary(boundary)
        if not widths or patch < 1:
            raise ValueError(
                f"widths is {list(widths)} and patch is {patch}; a U-Net has at least one width, "
                "and a patch at least one cell."
            )
        self.context_channels = context_channels
        self.feature_channels = widths[0] // patch**2
        self.reflects = "reflect" in edges
        self.patch = patch
        self.factor = patch * 2 ** (len(widths) - 1)
        self.embedding = NoiseEmbedding(embedding)
        self.stem = Conv2d((channels + context_channels) * patch**2, widths[0], 3, edges)

        def stage(channels_in: int, channels_out: int, level: int) -> nn.ModuleList:
            block = ResidualBlock(channels_in, channels_out, embedding, edges, dropout)
            attends = level in attention
            return nn.ModuleList([block, Attention2d(channels_out) if attends else nn.Identity()])

        skips = []
        now = widths[0]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(now, width, level))
                now = width
                skips.append(now)
            self.down.append(stages)
            if level < len(widths) - 1:
                self.shrink.append(Conv2d(now, now, 3, edges, stride=2))
        self.middle = stage(now, now, len(widths) - 1)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(now + skips.pop(), width, level))
                now = width
            self.up.append(stages)
            if level > 0:
                self.grow.append(Conv2d(now, now, 3, edges))
        self.norm = normalisation(now)
        self.out = cast(Conv2d, zero_(Conv2d(now, channels * patch**2, 3, edges)))

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        context: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Map a frame and its noise label to an output of the frame's shape.

        Args:
            x: Scaled noisy frames (B, C, H, W).
            label: Noise labels (B,), `log(sigma) / 4`.
            context: Clean frames or fields to condition on (B, C_context, H, W).
            offset: Embedding of what else the frame is of, added to that of the noise (B, width).

        Raises:
            ValueError: If H or W is not a multiple of the U-Net's coarsening, or too small to be
                reflected at the coarsest level, or for context of other channels.
        """
        return F.pixel_shuffle(self.out(self._hidden(x, label, context, offset)), self.patch)

    def features(self, x: Tensor, label: Tensor, context: Tensor | None = None) -> Tensor:
        """What the last layer makes the output of, (B, feature_channels, H, W), patches unfolded.

        The arguments are those of `forward`; channels beyond the last whole one of a patch are
        left out.
        """
        hidden = self._hidden(x, label, context)
        return F.pixel_shuffle(hidden[:, : self.feature_channels * self.patch**2], self.patch)

    def _hidden(
        self,
        x: Tensor,
        label: Tensor,
        context: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Frames of {height} x {width} cells do not fold {len(self.grow)} times after "
                f"patches of {self.patch}; crop or pad them to multiples of {self.factor}, or give "
                "the U-Net fewer widths."
            )
        if self.reflects and min(height, width) == self.factor:
            raise ValueError(
                f"Frames of {height} x {width} cells shrink to one cell, which has no reflection; "
                "give the U-Net fewer widths, or another boundary."
            )
        given = 0 if context is None else context.shape[1]
        if given != self.context_channels:
            raise ValueError(
                f"The network takes {self.context_channels} channels of context, but is given "
                f"{given}; set its context_channels to what static fields and forcing come to."
            )
        if context is not None:
            x = torch.cat([x, context], dim=1)
        embedding = self.embedding(label)
        if offset is not None:
            embedding = embedding + offset
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = []
        for level, stages in enumerate(self.down):
            for block, attend in cast(Pairs, stages):
                h = attend(block(h, embedding))
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        block, attend = self.middle
        h = attend(block(h, embedding))
        for level, stages in enumerate(self.up):
            for block, attend in cast(Pairs, stages):
                h = attend(block(torch.cat([h, skips.pop()], dim=1), embedding))
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return F.silu(self.norm(h))

    def stages(self) -> Iterator[nn.ModuleList]:
        """Each residual block with what follows it, a list of two."""
        for level in [*self.down, *self.up]:
            yield from cast(Iterable[nn.ModuleList], level)
        yield self.middle
