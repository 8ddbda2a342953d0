"""From physical units to unit variance and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.calendars import as_numbers, year_fraction
from data_modules.errors import DataError
from data_modules.transforms import Transform

Times = np.ndarray | Tensor

LEAST_STD = 0.1  # of the channel's: a pixel where it almost never rains is not blown up further
LEAST_VARIANCE = 0.15  # of the pixel's: rare rain in a dry season is not blown up either


class Normalisation:
    """Standardise each channel: `(f(x) - mean - cycle) / std`.

    The transform f, the seasonal cycle and a mean and standard deviation of each pixel are there
    where they were asked for. `description()["normalisation"]` of a data module has these
    arguments.

    Args:
        mean: Mean of each channel after its transform.
        std: Standard deviation of what is left of each channel, positive.
        transforms: For each channel the arguments of a `Transform`, or None.
        cycle: Coefficients (1 + 2 K, C, H, W) of what is subtracted beside the mean at each pixel:
            a constant, then cosine and sine of each harmonic of the year.
        calendar: That in which the harmonics count the year.
        pixel_std: Standard deviations (C, H, W) in place of `std`.
        variance: Coefficients like those of the cycle, of the variance at each pixel, in place of
            both; it is at least 0.15 of the pixel's own, and a standard deviation at least a tenth
            of the channel's `std`.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        transforms: Sequence[Mapping[str, Any] | None] | None = None,
        cycle: Tensor | None = None,
        calendar: str | None = None,
        pixel_std: Tensor | None = None,
        variance: Tensor | None = None,
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        channel_std = torch.tensor(std, dtype=torch.float32)[:, None, None]
        self.std = channel_std if pixel_std is None else pixel_std.float()
        self.transforms = [None if t is None else Transform(**t) for t in transforms or ()]
        self.cycle, self.calendar, self.variance = cycle, calendar, variance

    @property
    def is_plain(self) -> bool:
        """Whether it is no more than a mean and a standard deviation of each channel."""
        fields = self.cycle is not None or self.variance is not None or self.std[0].numel() > 1
        return not any(self.transforms) and not fields

    @property
    def is_seasonal(self) -> bool:
        """Whether it depends on the time of the year."""
        return any(one is not None and len(one) > 1 for one in (self.cycle, self.variance))

    def normalise(self, x: Tensor, times: Times | None = None) -> Tensor:
        """Normalised (..., C, H, W) from physical units.

        Args:
            x: (..., C, H, W).
            times: (...) the time of each frame, where there is a seasonal cycle: dates, or
                seconds since 1970-01-01 in the calendar.

        Values at a `lower` with a `spread` are lowered by noise that the time of a frame decides.

        Raises:
            DataError: If times are needed and not given.
        """
        physical = x
        for channel, transform in enumerate(self.transforms):
            if transform is not None:
                x = _with(x, channel, transform.forward(x[..., channel, :, :]))
        x = (x - self._centre(x, times)) / self._spread(x, times)
        for channel, transform in enumerate(self.transforms):
            if transform is not None and transform.lower is not None and transform.spread:
                least = physical[..., channel, :, :] <= transform.lower
                noise = transform.spread * _half_normal(least.shape, times, channel).to(x)
                x = _with(x, channel, x[..., channel, :, :] - least * noise)
        return x

    def denormalise(self, x: Tensor, times: Times | None = None) -> Tensor:
        """Physical units from normalised (..., C, H, W); arguments as for `normalise`.

        Raises:
            DataError: If times are needed and not given.
        """
        x = x * self._spread(x, times) + self._centre(x, times)
        for channel, transform in enumerate(self.transforms):
            if transform is not None:
                x = _with(x, channel, transform.inverse(x[..., channel, :, :]))
        return x

    def normal_values(self) -> Tensor | None:
        """What anomalies of channels with a transform are anomalies from, in normalised units.

        Returns:
            Coefficients (1 + 2 K, C, H, W) as those of the cycle, 0 in channels without a
            transform; None where no channel has one, there is no cycle of the year, or the spread
            has one too.
        """
        curved = [each is not None for each in self.transforms]
        if self.cycle is None or len(self.cycle) == 1 or self.variance is not None:
            return None
        if not any(curved):
            return None
        values = self.cycle / self.std
        values[0] += self.mean.expand_as(values[0]) / self.std
        return values * torch.tensor(curved)[:, None, None]

    def _centre(self, x: Tensor, times: Times | None) -> Tensor:
        """What is subtracted: broadcasts against (..., C, H, W)."""
        mean = self.mean.to(x.device)
        if self.cycle is None:
            return mean
        return mean + self._at(self.cycle.to(x.device), times)

    def _spread(self, x: Tensor, times: Times | None) -> Tensor:
        """What is divided by: broadcasts against (..., C, H, W)."""
        std = self.std.to(x.device)
        if self.variance is None:
            return std
        variance = self.variance.to(x.device)
        least = torch.maximum(LEAST_VARIANCE * variance[0], (LEAST_STD * std).square())
        return torch.maximum(self._at(variance, times), least).sqrt()

    def _at(self, waves: Tensor, times: Times | None) -> Tensor:
        """Sum (..., C, H, W) at the times of waves (1 + 2 K, C, H, W) of the year."""
        if len(waves) == 1:
            return waves[0]
        if times is None:
            raise DataError(
                "Anomalies against a seasonal cycle are made of frames and their times; give times."
            )
        basis = seasonal_basis(_seconds(times), str(self.calendar), (len(waves) - 1) // 2)
        return torch.einsum("...b,bchw->...chw", torch.from_numpy(basis).to(waves), waves)


def seasonal_basis(seconds: np.ndarray, calendar: str, harmonics: int) -> np.ndarray:
    """A constant, and cosine and sine of each harmonic of the year: (..., 1 + 2 harmonics).

    Args:
        seconds: (...) since 1970-01-01 in the calendar.
        calendar: A CF calendar.
        harmonics: Number of harmonics.
    """
    angle = 2 * np.pi * year_fraction(seconds, calendar)
    waves = [f(k * angle) for k in range(1, harmonics + 1) for f in (np.cos, np.sin)]
    return np.stack([np.ones_like(angle), *waves], axis=-1)


def _half_normal(shape: Sequence[int], times: Times | None, channel: int) -> Tensor:
    """Noise (..., H, W), the same at the same time; without times it is the same for all frames."""
    frames = [0] if times is None else _seconds(times).ravel().tolist()
    generator, draws = torch.Generator(), {}
    for frame in set(frames):
        # Python mixes the bits of a tuple of numbers, in the same way in each process.
        generator.manual_seed(hash((frame, channel)))
        draws[frame] = torch.randn(shape[-2:], generator=generator).abs()
    noise = torch.stack([draws[frame] for frame in frames])
    return noise[0].expand(shape) if times is None else noise.view(*np.shape(times), *shape[-2:])


def _seconds(times: Times) -> np.ndarray:
    return times.cpu().numpy() if isinstance(times, Tensor) else as_numbers(np.asarray(times))


def _with(x: Tensor, channel: int, values: Tensor) -> Tensor:
    """A copy with other values of one channel."""
    x = x.clone()
    x[..., channel, :, :] = values
    return x
