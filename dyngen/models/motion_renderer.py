"""The renderer: the frames of a motion from its start frame, by features splatted along it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyngen.metrics.pictures import psnr, ssim
from dyngen.models.cube_module import CubeModule
from dyngen.models.optimisers import Optimiser
from dyngen.motion.holes import fill_holes, splat_frames
from dyngen.motion.splatting import motion_importance, splat
from dyngen.networks.layers import zero_
from dyngen.networks.perceptual import PerceptualDistance, VGGDistance, WaveDistance
from dyngen.networks.renderer import FeaturePyramid, SynthesisDecoder, check_levels

AT_ONCE = 8  # frames rendered together


class MotionRenderer(CubeModule):
    """Multi-scale features of a start frame, carried along a motion (Li et al. 2024, section 5).

    Features of a ResNet-34 are splatted at each scale with the flow of that scale, and a decoder
    makes a frame of what has landed, filling holes; it corrects the start frame's own colours,
    splatted and filled in. Where pixels overlap, those that move most on average are in front
    (arXiv 2309.07906). It is trained on pairs of a start frame and another one, with the flow
    between them, by the mean absolute difference of colours and a perceptual distance.

    Args:
        widths: Features at each level, the finest first, in the pyramid and in the decoder; those
            of a ResNet-34 are 64, 64, 128, 256, 512 after the first, less where levels are fewer.
        blocks: Residual blocks of each stage of the ResNet; there are two fewer than widths.
        scales: Levels at which features are splatted; None for all. With fewer, coarser levels get
            averages of the last one that is; 1 is the ablation that splats at full size alone.
        importance: What decides who is in front: `motion`, the mean length of the displacement, or
            `learned`, a layer that sees the start frame's features and that length.
        encoder_weights: A file with the state_dict of torchvision's `resnet34`, for a run that
            begins; without, the ResNet is trained from scratch with the rest.
        perceptual_weights: A file with the state_dict of torchvision's `vgg19`; without, the
            perceptual distance is one of oriented waves, for which nothing is trained.
        perceptual_weight: Weight of the perceptual distance beside that of colours.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Weight decay.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).

    Raises:
        ValueError: If the widths, blocks and scales do not fit together.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 64, 128, 256),
        blocks: Sequence[int] = (3, 4, 6),
        scales: int | None = None,
        importance: Literal["motion", "learned"] = "motion",
        encoder_weights: str | None = None,
        perceptual_weights: str | None = None,
        perceptual_weight: float = 1.0,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__(learning_rate, warmup_steps, weight_decay, optimiser=optimiser)
        self.save_hyperparameters()
        levels = check_levels(widths, blocks)
        self.scales = levels if scales is None else scales
        if not 1 <= self.scales <= levels:
            raise ValueError(f"scales is {scales}; there are levels for 1 to {levels}.")
        if importance not in ("motion", "learned"):
            raise ValueError(f"importance is '{importance}'; choose 'motion' or 'learned'.")
        if encoder_weights is not None and self.scales == 1:
            raise ValueError("With scales = 1 there is no ResNet that could take encoder_weights.")
        self.pyramid = FeaturePyramid(widths[: self.scales], blocks[: max(self.scales - 2, 0)])
        carried = self.pyramid.widths
        features = [carried[min(level, self.scales - 1)] for level in range(levels)]
        self.decoder = SynthesisDecoder(features, widths)
        self.importance = (
            zero_(nn.Conv2d(carried[0] + 1, 1, 3, padding=1)) if importance == "learned" else None
        )
        self.encoder_weights = encoder_weights
        self.perceptual_weights = perceptual_weights
        self.perceptual_weight = perceptual_weight
        # In a tuple it is no part of the model: its weights are neither trained nor saved.
        self._distance: tuple[PerceptualDistance | None] = (None,)

    def setup(self, stage: str) -> None:
        """Read the weights that a run begins with; those of a checkpoint come after them.

        Raises:
            ValueError: If a file is missing or holds something else.
        """
        if stage == "fit" and self.encoder_weights is not None:
            self.pyramid.load_residual(read_weights(self.encoder_weights), self.encoder_weights)

    def meet_cube(self) -> None:
        """Take the clips' description; a renderer is not bound to clips of one size or length."""
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        if self.cube is None and hasattr(datamodule, "description"):
            self.cube = datamodule.description()

    def distance(self) -> PerceptualDistance:
        """The perceptual distance that is trained on, on this model's device.

        Raises:
            ValueError: If its weights' file is missing or holds something else.
        """
        if self._distance[0] is None:
            path = self.perceptual_weights
            made = WaveDistance() if path is None else VGGDistance(read_weights(path), path)
            self._distance = (made,)
        distance = self._distance[0]
        assert isinstance(distance, nn.Module)
        return distance.to(self.device)

    # Training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean absolute and perceptual difference of rendered frames from the true ones."""
        frame = self(batch["image"], batch["flow"], _motion(batch))
        distance = self.distance()
        error = (frame - batch["frame"]).abs().mean()
        perceptual = distance(frame, batch["frame"])
        loss = error + self.perceptual_weight * perceptual
        self.log("train/l1", error, prog_bar=True)
        self.log(f"train/perceptual_{distance.name}", perceptual)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log how near rendered frames are to the true ones, and those of what needs no network.

        Beside the model's: of the start frame repeated, and of its colours splatted and filled in.
        """
        image, truth, flow = batch["image"], batch["frame"], batch["flow"]
        motion = _motion(batch)
        distance = self.distance()
        rendered = self(image, flow, motion).clamp(-1, 1)
        others = {
            "repeat_first_frame/": image,
            "direct_splatting/": splat_frames(image, flow[:, None], motion)[:, 0],
        }
        for system, frame in {"": rendered, **others}.items():
            self.log(f"{system}psnr", psnr(frame, truth).mean(), prog_bar=not system)
            self.log(f"{system}ssim", ssim(frame, truth).mean())
            self.log(f"{system}perceptual_{distance.name}", distance(frame, truth))
        error = (rendered - truth).abs().mean()
        loss = error + self.perceptual_weight * distance(rendered, truth)
        self.log("validate/loss", loss)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same figures as in validation, on the test split."""
        self.validation_step(batch, batch_idx)

    # Rendering

    def forward(self, image: Tensor, flow: Tensor, motion: Tensor) -> Tensor:
        """One frame of each motion, not clamped.

        Args:
            image: Start frames (B, 3, H, W) in -1..1.
            flow: The displacement from it to the frame, (B, 2, H, W) in pixels.
            motion: The mean length of the whole motion's displacement, (B, 1, H, W) in pixels.

        Returns:
            (B, 3, H, W).
        """
        features = self.pyramid(image)
        return self._decode(features, flow, self._importance(features, motion))

    @torch.no_grad()
    def render(self, image: Tensor, displacement: Tensor, motion: Tensor | None = None) -> Tensor:
        """The frames of a motion.

        Args:
            image: Start frames (B, 3, H, W) in -1..1.
            displacement: (B, T, 2, H, W) in pixels, from the start frame to each frame.
            motion: As in `forward`; None takes it from the displacement.

        Returns:
            (B, T, 3, H, W) in -1..1.
        """
        features = self.pyramid(image)
        z = self._importance(
            features, motion_importance(displacement) if motion is None else motion
        )
        parts = []
        for part in displacement.split(AT_ONCE, dim=1):
            count = part.shape[1]
            repeated = [x.repeat_interleave(count, 0) for x in (*features, z)]
            frames = self._decode(repeated[:-1], part.flatten(0, 1), repeated[-1])
            parts.append(frames.clamp(-1, 1).unflatten(0, (-1, count)))
        return torch.cat(parts, 1)

    def _importance(self, features: Sequence[Tensor], motion: Tensor) -> Tensor:
        """z of the softmax, (B, 1, H, W), whatever its constant."""
        if self.importance is None:
            return motion
        z: Tensor = self.importance(torch.cat([features[0], motion], 1))
        return z

    def _decode(self, features: Sequence[Tensor], flow: Tensor, importance: Tensor) -> Tensor:
        """Frames (B, 3, H, W) of the features of start frames, carried by the flow."""
        landed, coverage = [], []
        for level in features:
            size = level.shape[-2:]
            z = F.adaptive_avg_pool2d(importance, (size[0], size[1]))
            there = splat(level, resize_flow(flow, size), z)
            landed.append(there.values)
            coverage.append(there.coverage)
        guess = fill_holes(landed[0][:, :3], coverage[0])
        while len(landed) < len(self.decoder.joins):
            landed.append(F.avg_pool2d(landed[-1], 2, ceil_mode=True))
            coverage.append(F.avg_pool2d(coverage[-1], 2, ceil_mode=True))
        frame: Tensor = self.decoder(landed, coverage, guess)
        return frame


def resize_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    """A flow (B, 2, H, W) averaged to a smaller size (h, w), in pixels of that size."""
    height, width = flow.shape[-2:]
    ratio = flow.new_tensor([size[1] / width, size[0] / height])
    return F.adaptive_avg_pool2d(flow, (size[0], size[1])) * ratio[:, None, None]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state_dict from a file, with `weights_only=True`: nothing in it is executed.

    Raises:
        ValueError: If there is no such file or it holds no state_dict, naming it.
    """
    if not Path(path).is_file():
        raise ValueError(f"There are no weights {path}; give the path of a file, or leave it out.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}); save a state_dict with "
            "torch.save."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise ValueError(f"{path} holds no state_dict; save one with torch.save.")
    return weights


def _motion(batch: dict[str, Tensor]) -> Tensor:
    """The mean length of the displacement, over the clip if the batch has it: (B, 1, H, W)."""
    return motion_importance(batch.get("displacement", batch["flow"][:, None]))
