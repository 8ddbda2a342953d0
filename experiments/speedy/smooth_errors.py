"""Errors of large scale on the past frames that a discriminator is trained with.

White noise on the history (`history_noise`) teaches a model to mend what varies from cell to cell;
of an error that is the same over thousands of kilometres it holds next to nothing. In a free run
of the climate cube such errors of surface pressure added up, to a third of a standard deviation of
the global mean and twice the variance within sixty days. With errors of that kind in training there
is something that leads back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback
from torch import Tensor


class SmoothErrors(Callback):
    """Adds a smooth random field to all past frames of each window in training, the same to all.

    Args:
        largest: Largest standard deviation of the field, in those of the frames; that of a window
            and a channel is drawn between 0 and this.
        cells: Rows and columns of white noise that the field is interpolated from. To it a constant
            and a mean of each row are added, of the same size.
    """

    def __init__(self, largest: float = 0.5, cells: tuple[int, int] = (4, 8)) -> None:
        self.largest, self.cells = largest, cells

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Disturb the past frames in place; the present one stays as it is."""
        frames: Tensor = batch["frames"]
        frames[:, :-1] += self.errors(frames)[:, None]

    def errors(self, frames: Tensor) -> Tensor:
        """(B, C, H, W), periodic along rows, for frames (B, T, C, H, W)."""
        batch, _, channels, height, width = frames.shape
        rows, columns = self.cells

        def noise(y: int, x: int) -> Tensor:
            return torch.randn(batch, channels, y, x, device=frames.device, dtype=frames.dtype)

        coarse = noise(rows, columns) + noise(rows, 1) + noise(1, 1)
        # Two cells more on either side: as far as bicubic interpolation sees.
        ring = torch.cat([coarse[..., -2:], coarse, coarse[..., :2]], dim=-1)
        cell = width // columns
        size = (height, (columns + 4) * cell)
        smooth = F.interpolate(ring, size=size, mode="bicubic")[..., 2 * cell : 2 * cell + width]
        level = self.largest * torch.rand(batch, channels, 1, 1, device=frames.device)
        return level * smooth / 3**0.5
