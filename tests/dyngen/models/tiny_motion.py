"""Clips of a few frames, whose motion is that of a sheet that sways where the picture is bright."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from dyngen.motion.spectral_volume import displacement_frames

HEIGHT, WIDTH, FRAMES, TERMS = 8, 16, 15, 3


class TinyMotion(LightningDataModule):
    """Clips with the batch and the description of a real data module.

    Args:
        frames: T.
        clips: Their number.
        terms: Terms that motion has.
    """

    def __init__(self, frames: int = FRAMES, clips: int = 8, terms: int = TERMS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        bright = torch.rand(clips, 1, 2, 4, generator=generator)
        self.image = torch.nn.functional.interpolate(bright, (HEIGHT, WIDTH)).repeat(1, 3, 1, 1)
        size = torch.tensor([2.0, 1.0, 0.25, 0.1])[:terms, None, None, None]
        phase = torch.randn(clips, terms, 4, 1, 1, generator=generator)
        volume = size * phase * self.image[:, None, :1]
        volume[:, 0, 1::2] = 0  # the mean is real
        self.displacement = displacement_frames(volume, frames)
        self.frames = frames

    def description(self) -> dict[str, Any]:
        return {"height": HEIGHT, "width": WIDTH, "frames": self.frames, "fps": 30.0}

    def batch(self) -> dict[str, Tensor]:
        return {"image": 2 * self.image - 1, "displacement": self.displacement}

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        batch = self.batch()
        clips = [{k: v[i] for k, v in batch.items()} for i in range(len(self.image))]
        return DataLoader(clips, batch_size=4)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = loader


AUTOENCODER = {
    "class_path": "dyngen.networks.autoencoder.ImageAutoencoder",
    "init_args": {"widths": [8, 8], "patch": 1},
}


def spectral_unet(coordination: str = "independent", **options: Any) -> dict[str, Any]:
    """The settings of a small network."""
    arguments = {
        "terms": TERMS,
        "coordination": coordination,
        "widths": [8, 8],
        "image_channels": 4,
        "embedding": 16,
    }
    return {
        "class_path": "dyngen.networks.spectral_unet.SpectralUNet",
        "init_args": arguments | options,
    }
