"""Time-consistency discriminators: networks `(x_sigma, sigma, history) -> logit`.

The logit estimates `log p(h | x_sigma) - log p(h)` (Hess et al. 2025, arXiv 2505.09089), so that
`sigma^2 grad_x logit` turns an unconditional denoiser into one conditioned on the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.networks.layers import Conv2d, NoiseEmbedding, ResidualBlock, check_boundary, zero_
from dyngen.networks.unet import UNet2d

OFFSET_WIDTH = 16


class UNetEnergy(nn.Module):
    """A U-Net's output paired with its input: `l = <c_in x, f> / sigma + b`.

    Its guidance `sigma^2 grad l = c_out (f + J^T c_in x)`, with `c_out = sigma c_in`, has the form
    and scale of the output term of a preconditioned denoiser (Karras et al. 2022, equation 7) at
    every noise level: neither vanishing nor exploding, whatever the logit itself does. The offset b
    is what guidance cannot see, and so what score matching leaves open.

    Args:
        channels: Channels of a frame.
        history_length: Number of past frames k.
        widths: Feature channels of the U-Net at each resolution, finest first.
        blocks: Residual blocks per resolution.
        attention: Resolutions with self-attention.
        boundary: Boundary of the y and x axes.
        dropout: Dropout probability inside residual blocks.
        sigma_data: Standard deviation of the frames.
        patch: Side of the patches folded into channels (see UNet2d).
        embedding: Width of the noise embedding.
        context_channels: Channels of static fields and forcing given beside the frame.
        feature_channels: Channels of the frozen image model's features at the noisy frame that are
            given beside it (see `UNet2d.features`); 0 is none of them.
    """

    def __init__(
        self,
        channels: int,
        history_length: int = 2,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        attention: Sequence[int] = (),
        boundary: Sequence[str] = ("periodic", "periodic"),
        dropout: float = 0.0,
        sigma_data: float = 1.0,
        patch: int = 1,
        embedding: int = 128,
        context_channels: int = 0,
        feature_channels: int = 0,
    ) -> None:
        super().__init__()
        self.history_length, self.context_channels = history_length, context_channels
        self.sigma_data, self.feature_channels = sigma_data, feature_channels
        self.unet = UNet2d(
            channels,
            history_length * channels + context_channels + feature_channels,
            widths,
            blocks,
            attention,
            boundary,
            dropout,
            embedding,
            patch,
        )
        edges = check_boundary(boundary)
        self.history_features = nn.Sequential(
            Conv2d(history_length * channels, OFFSET_WIDTH, 3, edges),
            nn.SiLU(),
            Conv2d(OFFSET_WIDTH, OFFSET_WIDTH, 3, edges),
            nn.SiLU(),
        )
        self.offset_of = nn.Sequential(
            nn.Linear(OFFSET_WIDTH + embedding, 4 * OFFSET_WIDTH),
            nn.SiLU(),
            zero_(nn.Linear(4 * OFFSET_WIDTH, 1)),
        )

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Logits (B,) of noisy frames x (B, C, H, W) at sigma (B,), history (B, k, C, H, W).

        Args:
            context: Static fields and forcing of the frame (B, context_channels, H, W).
            features: The image model's features at x (B, feature_channels, H, W).
        """
        sigma = sigma.to(x.dtype).expand(len(x))
        scaled = x * (sigma**2 + self.sigma_data**2).rsqrt()[:, None, None, None]
        beside = [history.flatten(1, 2), *(e for e in (context, features) if e is not None)]
        f = self.unet(scaled, sigma.log() / 4, torch.cat(beside, dim=1)).to(x.dtype)
        energy = (scaled * f).flatten(1).sum(dim=1) / sigma
        return energy + self.offset(sigma, history)

    def offset(self, sigma: Tensor, history: Tensor) -> Tensor:
        """b(h, sigma) (B,): the part of the logit that does not depend on the frame."""
        features = self.history_features(history.flatten(1, 2)).mean(dim=(-2, -1))
        embedding = self.unet.embedding(sigma.to(history.dtype).expand(len(history)).log() / 4)
        both = torch.cat([features, embedding], dim=1)
        return cast(Tensor, self.offset_of(both)[:, 0].to(history.dtype))


class ForecastEnergy(UNetEnergy):
    """An energy of how far a frame is from the forecast of its history.

    `l = <c_in (x - m), f(d, m, h, sigma)> / sigma + n b(h, sigma)` for frames of n values, with the
    forecast `m(h)` of a U-Net of its own and `d = (x - m) / sqrt(sigma^2 + spread^2)`. As in a
    Kalman filter what counts is the innovation `x - m`: of size sigma where the history determines
    the frame, so that neither the network's output nor what its gradient adds up grows at low
    noise. In `UNetEnergy`, which pairs f with x itself, the same gradient is the small difference
    of large terms. The forecast is trained by its own square error besides (see
    `TimeConsistencyDiscriminator`), and computed once for all noise levels of a frame.

    Args:
        channels: Channels of a frame.
        history_length: Number of past frames k.
        widths: Feature channels of both U-Nets at each resolution, finest first.
        blocks: Residual blocks per resolution.
        attention: Resolutions with self-attention.
        boundary: Boundary of the y and x axes.
        dropout: Dropout probability inside residual blocks.
        sigma_data: Standard deviation of the frames.
        patch: Side of the patches folded into channels (see UNet2d).
        embedding: Width of the noise embedding.
        context_channels: Channels of static fields and forcing given beside the frame.
        feature_channels: Channels of the frozen image model's features at the noisy frame that are
            given beside it (see `UNet2d.features`); 0 is none of them.
        forecast_widths: Feature channels of the forecast's U-Net, if they differ.
        spread: Error of the forecast to be expected, in standard deviations of the frames: the
            noise level below which it outweighs the noise.
        spread_widths: Feature channels of a third U-Net, which learns the spread of each value
            where and when it differs; it begins from `spread`. None: it is the same everywhere.
    """

    def __init__(
        self,
        channels: int,
        history_length: int = 2,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        attention: Sequence[int] = (),
        boundary: Sequence[str] = ("periodic", "periodic"),
        dropout: float = 0.0,
        sigma_data: float = 1.0,
        patch: int = 1,
        embedding: int = 128,
        context_channels: int = 0,
        forecast_widths: Sequence[int] | None = None,
        spread: float = 0.1,
        spread_widths: Sequence[int] | None = None,
        feature_channels: int = 0,
    ) -> None:
        super().__init__(
            channels,
            history_length,
            widths,
            blocks,
            attention,
            boundary,
            dropout,
            sigma_data,
            patch,
            embedding,
            context_channels + channels,
            feature_channels,
        )
        self.context_channels, self.spread = context_channels, spread
        self.forecaster = UNet2d(
            channels,
            (history_length - 1) * channels + context_channels,
            forecast_widths or widths,
            blocks,
            attention,
            boundary,
            dropout,
            embedding,
            patch,
        )
        self.spreader = (
            None
            if spread_widths is None
            else UNet2d(
                channels,
                history_length * channels + context_channels,
                spread_widths,
                blocks,
                (),
                boundary,
                dropout,
                embedding,
                patch,
            )
        )

    def forecast(self, history: Tensor, context: Tensor | None = None) -> Tensor:
        """The frame (B, C, H, W) that is to be expected after a history (B, k, C, H, W)."""
        *before, last = history.unbind(1)
        beside = [*before, *([] if context is None else [context])]
        label = last.new_zeros(len(last))
        change = self.forecaster(last, label, torch.cat(beside, dim=1) if beside else None)
        return last + cast(Tensor, change.to(last.dtype))

    def forecast_spread(
        self, forecast: Tensor, history: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The standard deviation (B, C, H, W) to be expected of a forecast's error.

        Where nothing learns it, it is `spread` throughout. Gradients stop at the forecast.
        """
        if self.spreader is None:
            return forecast.new_full((), self.spread).expand_as(forecast)
        beside = [history.flatten(1, 2), *([] if context is None else [context])]
        label = forecast.new_zeros(len(forecast))
        logarithm = self.spreader(forecast.detach(), label, torch.cat(beside, dim=1))
        # Bounded, so that one wild value at the first steps cannot outweigh all others.
        return self.spread * cast(Tensor, logarithm.to(forecast.dtype)).clamp(-4.0, 4.0).exp()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None = None,
        features: Tensor | None = None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> Tensor:
        """Logits (B,) of noisy frames x (B, C, H, W) at sigma (B,), history (B, k, C, H, W).

        Args:
            context: Static fields and forcing of the frame (B, context_channels, H, W).
            features: The image model's features at x (B, feature_channels, H, W).
            forecast: What `forecast` gives for history and context, if it is known already.
            spread: Likewise what `forecast_spread` gives; the logit does not train it.
        """
        sigma = sigma.to(x.dtype).expand(len(x))
        expected = self.forecast(history, context) if forecast is None else forecast
        if spread is None:
            spread = self.forecast_spread(expected, history, context)
        innovation = x - expected
        shape = (-1, 1, 1, 1)
        given = (e for e in (context, features) if e is not None)
        beside = [history.flatten(1, 2), expected, *given]
        f = self.unet(
            innovation * (sigma.view(shape) ** 2 + spread.detach() ** 2).rsqrt(),
            sigma.log() / 4,
            torch.cat(beside, dim=1),
        ).to(x.dtype)
        scaled = innovation * (sigma**2 + self.sigma_data**2).rsqrt().view(shape)
        return (scaled * f).flatten(1).sum(dim=1) / sigma + self.offset(sigma, history)

    def offset(self, sigma: Tensor, history: Tensor) -> Tensor:
        """n b(h, sigma) (B,): a log-likelihood ratio grows with the number n of values."""
        return super().offset(sigma, history) * history[0, 0].numel()


class EncoderDiscriminator(nn.Module):
    """A plain convolutional encoder of the noisy frame and its history, pooled to one logit.

    Args:
        channels: Channels of a frame.
        history_length: Number of past frames k.
        widths: Feature channels at each resolution, finest first; each next one halves.
        blocks: Residual blocks per resolution.
        boundary: Boundary of the y and x axes.
        dropout: Dropout probability inside residual blocks.
        sigma_data: Standard deviation of the frames.
        embedding: Width of the noise embedding.
        context_channels: Channels of static fields and forcing given beside the frame.
    """

    def __init__(
        self,
        channels: int,
        history_length: int = 2,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        boundary: Sequence[str] = ("periodic", "periodic"),
        dropout: float = 0.0,
        sigma_data: float = 1.0,
        embedding: int = 128,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        edges = check_boundary(boundary)
        self.history_length, self.context_channels = history_length, context_channels
        self.sigma_data = sigma_data
        self.embedding = NoiseEmbedding(embedding)
        inputs = channels * (history_length + 1) + context_channels
        self.stem = Conv2d(inputs, widths[0], 3, edges)
        self.blocks, self.shrink = nn.ModuleList(), nn.ModuleList()
        now = widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.blocks.append(ResidualBlock(now, width, embedding, edges, dropout))
                now = width
            last = level == len(widths) - 1
            self.shrink.append(nn.Identity() if last else Conv2d(now, now, 3, edges, stride=2))
        self.blocks_per_level = blocks
        self.out = cast(nn.Linear, zero_(nn.Linear(now, 1)))

    def forward(
        self, x: Tensor, sigma: Tensor, history: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Logits (B,) of noisy frames x (B, C, H, W) at sigma (B,), history (B, k, C, H, W).

        Args:
            context: Static fields and forcing of the frame (B, context_channels, H, W).
        """
        sigma = sigma.to(x.dtype).expand(len(x))
        scaled = x * (sigma**2 + self.sigma_data**2).rsqrt()[:, None, None, None]
        embedding = self.embedding(sigma.log() / 4)
        beside = [history.flatten(1, 2), *([] if context is None else [context])]
        h = self.stem(torch.cat([scaled, *beside], dim=1))
        for index, block in enumerate(self.blocks):
            h = block(h, embedding)
            if (index + 1) % self.blocks_per_level == 0:
                h = self.shrink[index // self.blocks_per_level](h)
        return cast(Tensor, self.out(F.silu(h).mean(dim=(-2, -1)))[:, 0].to(x.dtype))
