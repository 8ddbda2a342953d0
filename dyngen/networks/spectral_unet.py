"""The U-Net that denoises spectral volumes, one frequency at a time or all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.networks.layers import Conv2d, ResidualBlock, check_boundary, zero_
from dyngen.networks.unet import UNet2d
from dyngen.networks.video_unet import TimeAttention

Coordination = Literal["independent", "coordinated", "volume"]


class SpectralUNet(nn.Module):
    """A `UNet2d` of the K terms of a spectral volume (Li et al. 2024, arXiv 2309.07906, section 4).

    The start image is shrunk, encoded, and concatenated to the noisy input; terms are told apart by
    an embedding that is added to that of the noise. How the K terms know of each other:

    - `independent`: they do not; each is an image of its own, `(B K) C H W`.
    - `coordinated`: the same, and after each layer every cell attends to itself in all K terms,
      `(B H W) K C`, with weights that know how far apart frequencies are. It is the attention over
      time of `VideoUNet`, over frequency. :meth:`coordinate` adds it to a network that is
      independent, and changes nothing before it is trained.
    - `volume`: the terms are the channels of one image, `B (K C) H W`.

    Args:
        terms: K, the terms of a volume.
        channels: C, channels of each term.
        coordination: One of the above.
        widths: Feature channels at each resolution, finest first.
        blocks: Residual blocks per resolution.
        attention: Resolutions with self-attention in space.
        boundary: Boundary of the y and x axes.
        dropout: Dropout probability inside residual blocks.
        patch: Side of the patches folded into channels (see `UNet2d`).
        embedding: Width of the embeddings of noise and frequency.
        image_channels: Channels that the start image is encoded into.
        image_patch: Side of the patches of the start image, after it is shrunk, that go with one
            cell of the input.
        heads: Heads of the attention over frequencies.

    Raises:
        ValueError: For a coordination that does not exist, no terms, or what `UNet2d` refuses.
    """

    def __init__(
        self,
        terms: int = 16,
        channels: int = 4,
        coordination: Coordination = "independent",
        widths: Sequence[int] = (64, 96, 128),
        blocks: int = 1,
        attention: Sequence[int] = (),
        boundary: Sequence[str] = ("zero", "zero"),
        dropout: float = 0.0,
        patch: int = 1,
        embedding: int = 128,
        image_channels: int = 16,
        image_patch: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if coordination not in get_args(Coordination):
            raise ValueError(
                f"coordination is '{coordination}'; choose one of "
                f"{', '.join(get_args(Coordination))}."
            )
        if terms < 1:
            raise ValueError(f"terms is {terms}; a spectral volume has at least one.")
        self.terms, self.channels = terms, channels
        self.coordination: Coordination = "volume" if coordination == "volume" else "independent"
        self.image_encoder = ImageEncoder(image_channels, image_patch, boundary)
        self.no_image = nn.Parameter(torch.zeros(image_channels, 1, 1))
        together = terms if coordination == "volume" else 1
        self.unet = UNet2d(
            together * channels,
            image_channels,
            widths,
            blocks,
            attention,
            boundary,
            dropout,
            embedding,
            patch,
        )
        if coordination != "volume":
            self.frequency = nn.Parameter(torch.zeros(terms, embedding))
        if coordination == "coordinated":
            self.coordinate(heads)

    def coordinate(self, heads: int = 4) -> None:
        """Interleave attention over the terms, which at first changes nothing.

        There is one after the first convolution, after each residual block, and before the last
        convolution, with an output of its own: through the last layers of a network that is frozen,
        and has learnt to make little of what noise hides, the others hardly get.

        Raises:
            ValueError: If the network is not independent, or widths are no multiples of heads.
        """
        if self.coordination != "independent":
            raise ValueError(
                f"A network whose terms are '{self.coordination}' cannot be coordinated; give the "
                "checkpoint of an independent one."
            )
        unet, terms = self.unet, self.terms
        first, last = unet.stem.conv.out_channels, unet.out.conv.in_channels
        for stage in unet.stages():
            width = cast(ResidualBlock, stage[0]).norm2.num_channels
            stage[1] = nn.Sequential(stage[1], attention_over_terms(width, terms, heads))
        unet.stem = nn.Sequential(unet.stem, attention_over_terms(first, terms, heads))  # type: ignore[assignment]
        unet.out = CoordinatedOutput(unet.out, attention_over_terms(last, terms, heads))  # type: ignore[assignment]
        self.coordination = "coordinated"

    def attention_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that :meth:`coordinate` adds."""
        for module in self.modules():
            if isinstance(module, TimeAttention):
                yield from module.parameters()
            elif isinstance(module, CoordinatedOutput):
                yield from module.beside.parameters()

    def encode_image(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """What the network sees of start images.

        Args:
            image: (B, 3, H, W) in -1..1.
            size: Rows and columns of the input that it goes with.

        Returns:
            (B, image_channels, *size).
        """
        features: Tensor = self.image_encoder(image, size)
        return features

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        context: Tensor | None = None,
        dropped: Tensor | None = None,
        term: Tensor | None = None,
    ) -> Tensor:
        """Map noisy terms and their noise labels to an output of their shape.

        Args:
            x: Scaled noisy terms (B, n, C, H, W); n is K, or any number when terms are independent.
            label: Noise labels (B,).
            context: Encoded start images (B, image_channels, H, W); None for none.
            dropped: Of which samples the image is to be ignored (B,), boolean.
            term: Which terms these are, integers (B, n); by default all in order.

        Raises:
            ValueError: If there are not K terms where they depend on each other, or for sizes that
                do not fit the U-Net.
        """
        batch, count, _, height, width = x.shape
        if self.coordination != "independent" and (count != self.terms or term is not None):
            raise ValueError(
                f"{count} terms do not fit a network that denoises {self.terms} together; give all "
                "in order."
            )
        seen = self.no_image.expand(batch, -1, height, width)
        if context is not None:
            ignored = (
                torch.zeros(batch, dtype=torch.bool, device=x.device)
                if dropped is None
                else dropped
            )
            seen = torch.where(ignored[:, None, None, None], seen, context)
        if self.coordination == "volume":
            out: Tensor = self.unet(x.flatten(1, 2), label, seen)
            return out.reshape(x.shape)
        if term is None and count != self.terms:
            raise ValueError(
                f"There are {count} terms, not {self.terms}; say with `term` which ones they are."
            )
        offset = self.frequency.expand(batch, -1, -1) if term is None else self.frequency[term]
        out = self.unet(
            x.flatten(0, 1),
            label.repeat_interleave(count),
            seen.repeat_interleave(count, 0),
            offset.flatten(0, 1),
        )
        return out.reshape(x.shape)


class CoordinatedOutput(nn.Module):
    """A last convolution, and what attention over the terms adds to it: at first nothing.

    Args:
        output: The convolution.
        attention: Over the terms, of the convolution's input.
    """

    def __init__(self, output: Conv2d, attention: TimeAttention) -> None:
        super().__init__()
        self.output, self.attention = output, attention
        conv = output.conv
        beside = Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size[0], output.boundary)
        self.beside = zero_(beside)
        attention.out.reset_parameters()  # two zeros in a row would hardly learn

    def forward(self, x: Tensor) -> Tensor:
        """Features (B K, channels, H, W) to the output of the network."""
        return cast(Tensor, self.output(x) + self.beside(self.attention(x)))


def attention_over_terms(channels: int, terms: int, heads: int) -> TimeAttention:
    """Attention (B K, channels, H, W) over K terms whose heads look near and far.

    The bias by distance starts at 0 for the first head and falls the faster the later the head
    (Press et al. 2021, arXiv 2108.12409): learning it from 0 takes longer than all the rest.
    """
    attention = TimeAttention(channels, terms, heads)
    distance = torch.arange(1.0 - terms, terms).abs()
    slope = torch.tensor([0.0, *(4.0 ** (head - 1) for head in range(heads - 1))])
    with torch.no_grad():
        attention.bias.copy_(-slope[:, None] * distance)
    return attention


class ImageEncoder(nn.Module):
    """Shrinks a start image by averaging, folds its patches into channels, and encodes them.

    Args:
        channels: Of the output.
        patch: Side of the patches.
        boundary: Boundary of the y and x axes.
        width: Feature channels.
    """

    def __init__(self, channels: int, patch: int, boundary: Sequence[str], width: int = 48) -> None:
        super().__init__()
        edges = check_boundary(boundary)
        self.patch = patch
        self.layers = nn.Sequential(
            Conv2d(3 * patch**2, width, 3, edges),
            ResidualBlock(width, width, 0, edges),
            ResidualBlock(width, width, 0, edges),
            Conv2d(width, channels, 1),
        )

    def forward(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Images (B, 3, H, W) to features (B, channels, *size)."""
        shrunk = F.adaptive_avg_pool2d(image, (self.patch * size[0], self.patch * size[1]))
        features: Tensor = self.layers(F.pixel_unshuffle(shrunk, self.patch))
        return features
