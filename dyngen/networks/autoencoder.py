"""The variational autoencoder of images that are fields, such as slices of a spectral volume."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.networks.layers import Conv2d, ResidualBlock, check_boundary, zero_

LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE = -30.0, 20.0


class ImageAutoencoder(nn.Module):
    """Encoder and decoder of residual blocks, with a Gaussian of few channels between them.

    (Kingma & Welling 2013, arXiv 1312.6114; Rombach et al. 2022, arXiv 2112.10752, section 3.1.)
    What the blocks add to is neither normalised nor bent on the way through, so that the amplitude
    of a field, in which fields differ much more than pictures do, is not lost on it.

    Args:
        channels: Channels of an image.
        latent_channels: Channels of a latent.
        widths: Feature channels at each resolution, finest first; each next one halves.
        blocks: Residual blocks per resolution, in the encoder and in the decoder.
        boundary: How convolutions see beyond the edge of y and of x: periodic, reflect or zero.
        patch: Side of the square patches that are folded into channels before the first layer and
            unfolded after the last one (see `UNet2d`).

    Raises:
        ValueError: If there is no width or the patch has no cell.
    """

    def __init__(
        self,
        channels: int = 4,
        latent_channels: int = 4,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        boundary: Sequence[str] = ("zero", "zero"),
        patch: int = 2,
    ) -> None:
        super().__init__()
        edges = check_boundary(boundary)
        if not widths or patch < 1:
            raise ValueError(
                f"widths is {list(widths)} and patch is {patch}; an autoencoder has at least one "
                "width, and a patch at least one cell."
            )
        self.latent_channels = latent_channels
        self.patch = patch
        self.factor = patch * 2 ** (len(widths) - 1)

        def stage(channels_in: int, channels_out: int) -> list[nn.Module]:
            ends = [channels_in, *[channels_out] * blocks]
            return [ResidualBlock(a, b, 0, edges) for a, b in pairwise(ends)]

        now = widths[0]
        down: list[nn.Module] = [Conv2d(channels * patch**2, now, 3, edges)]
        for level, width in enumerate(widths):
            down += stage(now, width)
            now = width
            if level < len(widths) - 1:
                down.append(Conv2d(now, now, 3, edges, stride=2))
        down.append(Conv2d(now, 2 * latent_channels, 3, edges))
        self.encoder = nn.Sequential(*down)

        up: list[nn.Module] = [Conv2d(latent_channels, now, 3, edges)]
        for level, width in reversed(list(enumerate(widths))):
            up += stage(now, width)
            now = width
            if level > 0:
                up += [nn.Upsample(scale_factor=2.0, mode="nearest"), Conv2d(now, now, 3, edges)]
        last = cast(Conv2d, zero_(Conv2d(now, channels * patch**2, 3, edges)))
        self.decoder = nn.Sequential(*up, last)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents of images.

        Args:
            x: Images (N, C, H, W).

        Returns:
            Two tensors (N, C_latent, H / factor, W / factor), in at least single precision.

        Raises:
            ValueError: If H or W is not a multiple of the factor.
        """
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Fields of {height} x {width} pixels are no multiple of {self.factor}, which the "
                "autoencoder shrinks them by; crop them to one, or give it fewer widths."
            )
        mean, log_variance = self.encoder(F.pixel_unshuffle(x, self.patch)).to(x.dtype).chunk(2, 1)
        return mean, log_variance.clamp(LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) of latents (N, C_latent, H / factor, W / factor)."""
        return F.pixel_shuffle(self.decoder(latents), self.patch).to(latents.dtype)
