"""What the models of motion share: clips instead of a cube, and their spectral volumes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dyngen.models.cube_module import CubeModule
from dyngen.models.optimisers import Optimiser
from dyngen.motion.spectral_volume import spectral_volume


class MotionModule(CubeModule):
    """A model of motion, which remembers what clips it was trained on as others do their cube.

    Args:
        terms: K, the lowest terms of the spectral volume.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Weight decay.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).
    """

    def __init__(
        self,
        terms: int,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__(learning_rate, warmup_steps, weight_decay, optimiser=optimiser)
        self.terms = terms

    @property
    def frames(self) -> int:
        """T, the frames of the clips trained on, which is the period of a volume's lowest term.

        Raises:
            ValueError: If the model has neither been trained nor met any data.
        """
        if self.cube is None:
            raise ValueError(
                "The model does not know how long clips are; train it, or load a checkpoint."
            )
        return int(self.cube["frames"])

    def meet_cube(self) -> None:
        """Take the clips' description from the data module, or check it against the checkpoint's.

        Raises:
            ValueError: If clips have another number of frames than those trained on.
        """
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        if not hasattr(datamodule, "description"):
            return
        description = datamodule.description()
        if self.cube is not None:
            check_clips(self.cube, description)
        else:
            self.cube = description

    def volume(self, displacement: Tensor) -> Tensor:
        """Spectral volumes (B, K, 4, H, W) of displacements (B, T, 2, H, W), both in pixels."""
        with torch.autocast(displacement.device.type, enabled=False):  # sums over many frames
            return spectral_volume(displacement, self.terms)


def check_clips(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse clips that a model was not trained for.

    Args:
        saved: Description of the clips that the model was trained on.
        current: Description of the clips at hand.

    Raises:
        ValueError: If they have another number of frames, for then every term of a spectral volume
            has another frequency.
    """
    if saved["frames"] != current["frames"]:
        raise ValueError(
            f"The model was trained on clips of {saved['frames']} frames, but this data has "
            f"{current['frames']}; use clips of as many, or train again."
        )
