"""What each cell is to be shifted by at each step, so that a free run has the mean it should have.

A quantile map makes the mean of one step right that begins at true frames (see `calibration`). A
free run begins at frames of its own, which differ from true ones in more than their cells, and what
its mean is then off by is known only from running. No formula says which shift takes that back:
each scale remembers it for another time. Stochastic approximation needs none (Robbins and Monro
1951, doi:10.1214/aoms/1177729586): several members run freely, the shift of each cell follows what
they are off by, slowly enough for them to keep up, and its mean over the later steps is taken
(Polyak and Juditsky 1992, doi:10.1137/0330046). It ends where the mean of a free run is right,
whatever the memory of each scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPIN_UP, FAST = 20, 300  # steps
RATES = (0.0, 0.004, 0.002)  # before, until and after these
LARGEST = 0.5  # standard deviations


@dataclass
class Settling:
    """Shifts that are being learned.

    Args:
        shift: (C, H, W), in the units of normalised frames.
        total: Sum of the shifts that will be averaged.
        step: Steps so far.
        steps: Steps in all; the last two thirds are averaged.
    """

    shift: Tensor
    total: Tensor
    step: int
    steps: int

    @classmethod
    def start(cls, shape: tuple[int, ...], steps: int) -> Settling:
        """Before the first step.

        Raises:
            ValueError: If there are too few steps to settle.
        """
        if steps <= 2 * SPIN_UP:
            raise ValueError(f"{steps} steps are too few to settle; give some hundreds.")
        return cls(torch.zeros(shape), torch.zeros(shape, dtype=torch.float64), 0, steps)

    def follow(self, error: Tensor) -> None:
        """One step on.

        Args:
            error: (C, H, W) mean over members of the frames, shifted, less what it should be.
        """
        rate = RATES[(self.step >= SPIN_UP) + (self.step >= FAST)]
        self.shift = (self.shift - rate * error).clamp(-LARGEST, LARGEST)
        if 3 * self.step >= self.steps:
            self.total += self.shift
        self.step += 1

    @property
    def settled(self) -> Tensor:
        """Mean shift of the last two thirds of the steps.

        Raises:
            ValueError: While there is none yet.
        """
        first = -(-self.steps // 3)
        if self.step <= first:
            raise ValueError(f"after {self.step} of {self.steps} steps nothing has settled yet.")
        return (self.total / (self.step - first)).float()
