"""An exponential moving average of the weights that also works in short runs."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class ExponentialMovingAverage(WeightAveraging):
    """Lightning's weight averaging with a decay that warms up: `min(decay, (1 + n) / (10 + n))`.

    A constant decay would keep a short run's average near its initial weights. Validation, test
    and the checkpoint's `state_dict` use the average; training goes on from the current weights,
    which the checkpoint keeps as `current_model_state`.

    Args:
        decay: Decay per optimiser step once warmed up.
    """

    def __init__(self, decay: float = 0.999) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = float(count)
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
            else:
                torch._foreach_copy_(averaged, current)

        super().__init__(device=None, multi_avg_fn=average)
