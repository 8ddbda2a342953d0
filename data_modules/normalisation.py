"""From physical units to unit variance and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalisation:
    """Standardise each channel: `(x - mean) / std`.

    Args:
        mean: Mean of each channel in physical units.
        std: Standard deviation of each channel, positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    def normalise(self, x: Tensor) -> Tensor:
        """Normalised (..., C, H, W) from physical units."""
        return (x - self.mean.to(x.device)) / self.std.to(x.device)

    def denormalise(self, x: Tensor) -> Tensor:
        """Physical units from normalised (..., C, H, W)."""
        return x * self.std.to(x.device) + self.mean.to(x.device)
