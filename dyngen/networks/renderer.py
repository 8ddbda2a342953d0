"""The two networks of the renderer: features of the start frame, and a picture made of them.

Between them the features are splatted along the motion (Li et al. 2024, arXiv 2309.07906, section
5), which belongs to neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.networks.layers import Boundary, Conv2d, ResidualBlock, zero_

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures of ImageNet, in 0..1
STAGES = ("layer1", "layer2", "layer3", "layer4")


class FeaturePyramid(nn.Module):
    """Features of a picture at several scales: its colours, and the stages of a ResNet-34.

    Level 0, at full resolution, are the colours and the features of two convolutions; level 1 is
    the first convolution of the residual network, level 2 its first stage, and so on, each half as
    large as the one before. (He et al. 2015, arXiv 1512.03385.) The names of weights are those of
    torchvision's `resnet34`, whose weights :meth:`load_residual` takes.

    Args:
        widths: Features at each level, finest first; 32, 64, 64, 128, 256, 512 for a ResNet-34.
        blocks: Residual blocks of each stage, one number less than two fewer than widths: 3, 4, 6,
            3 for a ResNet-34.

    Raises:
        ValueError: If there are no widths, or the numbers of widths and blocks do not fit.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 64, 64, 128, 256), blocks: Sequence[int] = (3, 4, 6)
    ) -> None:
        super().__init__()
        levels = check_levels(widths, blocks)
        self.widths = (3 + widths[0], *widths[1:])
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(widths[0], widths[0], 3, padding=1),
            nn.ReLU(),
        )
        residual = nn.ModuleDict()
        if levels > 1:
            residual["conv1"] = nn.Conv2d(3, widths[1], 7, stride=2, padding=3, bias=False)
            residual["bn1"] = nn.BatchNorm2d(widths[1])
        for number, (name, count) in enumerate(zip(STAGES, blocks, strict=False)):
            before, width = widths[number + 1], widths[number + 2]
            stride = 1 if number == 0 else 2  # before the first stage a pooling halves
            stage = [BasicBlock(before, width, stride)]
            stage += [BasicBlock(width, width) for _ in range(count - 1)]
            residual[name] = nn.Sequential(*stage)
        self.residual = residual

    def forward(self, image: Tensor) -> list[Tensor]:
        """A picture (B, 3, H, W) in -1..1 to its features (B, C, H / 2^l, W / 2^l), rounded up."""
        features = [torch.cat([image, self.stem(image)], 1)]
        x, residual = imagenet(image), self.residual
        for level in range(1, len(self.widths)):
            if level == 1:
                x = F.relu(residual["bn1"](residual["conv1"](x)))
            else:
                if level == 2:
                    x = F.max_pool2d(x, 3, 2, 1)
                x = residual[STAGES[level - 2]](x)
            features.append(x)
        return features

    def load_residual(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take the weights of a ResNet, by torchvision's names.

        Args:
            weights: A state_dict. Its classifier, and stages beyond those here, are not needed.
            source: Where it comes from, for the error.

        Raises:
            ValueError: If a weight is missing, superfluous, or of another shape.
        """
        spare = ("fc.", *(f"{name}." for name in STAGES if name not in self.residual))
        given = {k: v for k, v in weights.items() if not k.startswith(spare)}
        load_exactly(self.residual, given, source, "a ResNet like torchvision's resnet34")


class BasicBlock(nn.Module):
    """The residual block of a ResNet-34, with torchvision's names."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.downsample(x))


class SynthesisDecoder(nn.Module):
    """A picture made of splatted features, from the coarsest level to the finest.

    Where nothing has landed the features are 0 and so is the coverage, which is given too: what is
    to be seen there comes from coarser levels, whose holes are smaller. What comes out is added to
    a first guess, and is nothing before training.

    Args:
        features: Channels of the features at each level, finest first.
        widths: Channels of the decoder at each level.
        blocks: Residual blocks per level.
    """

    def __init__(self, features: Sequence[int], widths: Sequence[int], blocks: int = 1) -> None:
        super().__init__()
        edges: tuple[Boundary, Boundary] = ("zero", "zero")
        below = (*widths[1:], 0)
        self.joins = nn.ModuleList(
            Conv2d(given + 1 + coarser, width, 3, edges)
            for given, coarser, width in zip(features, below, widths, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width, width, 0, edges) for _ in range(blocks)))
            for width in widths
        )
        self.last = zero_(Conv2d(widths[0], 3, 3, edges))

    def forward(
        self, features: Sequence[Tensor], coverage: Sequence[Tensor], guess: Tensor
    ) -> Tensor:
        """Pictures (N, 3, H, W).

        Args:
            features: (N, C_l, H_l, W_l), finest first.
            coverage: (N, 1, H_l, W_l), how much has landed where.
            guess: (N, 3, H, W), what is corrected.
        """
        h: Tensor | None = None
        for level in reversed(range(len(features))):
            given = [features[level], coverage[level].clamp(max=1)]
            if h is not None:
                size = features[level].shape[-2:]
                given.append(F.interpolate(h, size, mode="bilinear", align_corners=False))
            h = self.blocks[level](self.joins[level](torch.cat(given, 1)))
        assert h is not None
        return guess + self.last(F.silu(h))


def check_levels(widths: Sequence[int], blocks: Sequence[int]) -> int:
    """How many levels there are; ValueError if widths and blocks are not those of a pyramid."""
    levels = len(widths)
    if not 1 <= levels <= 2 + len(STAGES) or len(blocks) != max(levels - 2, 0):
        raise ValueError(
            f"widths is {list(widths)} and blocks {list(blocks)}; give 1 to {2 + len(STAGES)} "
            "widths, and for each after the second a number of blocks."
        )
    return levels


def imagenet(image: Tensor) -> Tensor:
    """A picture in -1..1 as the networks trained on ImageNet expect it."""
    mean, std = (image.new_tensor(x)[:, None, None] for x in (MEAN, STD))
    return ((image + 1) / 2 - mean) / std


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str, kind: str) -> None:
    """Load weights of which none may be missing, superfluous, or of another shape.

    Args:
        module: What takes them.
        weights: By name.
        source: Where they come from, for the error.
        kind: What they should be the weights of, for the error.

    Raises:
        ValueError: If they do not fit, naming the first that does not.
    """
    own = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    faults = [f"has no '{k}'" for k in own if k not in given]
    faults += [f"has a '{k}', which is not part of it" for k in given if k not in own]
    faults += [
        f"has a '{k}' of shape {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in given and given[k].shape != own[k].shape
    ]
    if faults:
        raise ValueError(
            f"{source} {faults[0]}; give the state_dict of {kind}, with widths and blocks to match."
        )
    module.load_state_dict(given, strict=False)
