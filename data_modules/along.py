"""What depends on the calendar along a rollout: its forcing, and the way back to physical units.

A rollout knows steps; the world knows dates. The description of the cube in a model's checkpoint
and the times of the initial states are all that is needed to go from one to the other, however far
beyond the cube's end and in whatever calendar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.calendars import as_numbers
from data_modules.conditioning import context_maps, forcing_at
from data_modules.normalisation import Normalisation


class Along:
    """The calendar of a rollout.

    Args:
        description: Of the cube that the model was trained on, as `description()` of its data
            module gives it.
        initial_times: (N,) times of the initial states: dates, or numbers of the cube's kind.
        calendar: That of the initial times; by default that of the description.
    """

    def __init__(
        self, description: Mapping[str, Any], initial_times: np.ndarray, calendar: str | None = None
    ) -> None:
        self.normalisation = Normalisation(**description["normalisation"])
        self.calendar = calendar or description["time"]["calendar"]
        self.step: float = description["time"]["step"]
        self.shape = tuple(description["shape"])
        self.conditioning: Mapping[str, Any] = description.get("conditioning") or {}
        self.initial = as_numbers(np.asarray(initial_times))

    def times(self, initials: Sequence[int], steps: Sequence[int]) -> np.ndarray:
        """Times (initials, steps) as numbers; step 0 is the first frame after the initial one."""
        return self.initial[list(initials)][:, None] + (np.asarray(steps) + 1) * self.step

    def denormalise(self, x: Tensor) -> Tensor:
        """Physical units of frames (..., C, H, W), where these do not depend on the time.

        Raises:
            DataError: If they do.
        """
        return self.normalisation.denormalise(x)

    __call__ = denormalise

    def at(self, x: Tensor, initials: Sequence[int], steps: Sequence[int]) -> Tensor:
        """Physical units of frames (initials, members, steps, C, H, W)."""
        times = self.times(initials, steps)[:, None]
        return self.normalisation.denormalise(x, np.broadcast_to(times, x.shape[:3]))

    def context(self, frames: int = 1) -> Callable[[list[int], int], dict[str, Tensor]] | None:
        """What a rollout gives its sampler besides the history; None where there is nothing.

        Args:
            frames: How many frames the model denoises together.

        Returns:
            (initial of each row, step) -> `context` (B, C, H, W), or (B, frames, C, H, W) for
            several frames.
        """
        if not self.conditioning:
            return None
        static, series = self.conditioning["fields"], self.conditioning["series"]

        def given(initials: list[int], step: int) -> dict[str, Tensor]:
            times = self.times(initials, range(step, step + frames))
            forcing = forcing_at(series, times, self.calendar) if series else None
            if forcing is None:
                forcing = torch.zeros(*times.shape, 0)
            maps = context_maps(static, forcing, self.shape)
            assert maps is not None
            return {"context": maps if frames > 1 else maps[:, 0]}

        return given
