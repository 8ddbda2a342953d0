"""Wavenumber-frequency spectra of runs, and of forecasts that are long enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyngen.metrics.waves import wave_spectrum
from dyngen.report.forecast_sums import Sums
from dyngen.report.yardstick import Yardstick

SEGMENT = 64  # steps, where runs are as long
LEAST = 16  # steps in a segment; shorter runs or forecasts have no such spectrum
ROWS = 16  # lines along which waves are looked at, at most, evenly spread


def segment_length(steps: Sequence[int], wanted: int = SEGMENT) -> int | None:
    """Steps in a segment: what is wanted, or a power of two where a run is shorter; or None."""
    shortest = min(steps)
    if shortest >= wanted:
        return wanted
    length = 1 << (shortest.bit_length() - 1)
    return length if length >= LEAST else None


def wave_lines(yardstick: Yardstick) -> tuple[Tensor, Tensor, bool] | None:
    """Along which lines waves are looked at.

    Rows if they close upon themselves, as circles of latitude do, or else columns if those do; of
    the ones without a gap, a fixed spread.

    Returns: their indices and their area weights, and whether they are columns; None when there
    is none.
    """
    if not any(yardstick.periodic):
        return None
    columns = not yardstick.periodic[1]
    area = yardstick.area.T if columns else yardstick.area
    whole = (area > 0).all(1).nonzero()[:, 0]
    if not len(whole):
        return None
    kept = min(len(whole), ROWS)
    lines = whole[torch.arange(kept) * len(whole) // kept]
    weights = area[lines].sum(1)
    return lines, weights / weights.sum(), columns


class WaveSums:
    """Spectra of half-overlapping segments, summed as a run goes by.

    Args:
        runs: how many will be seen.
        segment: steps in a segment.
        yardstick: which lines are looked at.
        skip_missing: whether segments with a NaN are left out, or make the spectrum NaN.

    Raises:
        ValueError: when no line closes upon itself.
    """

    def __init__(
        self, runs: int, segment: int, yardstick: Yardstick, *, skip_missing: bool
    ) -> None:
        lines = wave_lines(yardstick)
        if lines is None:
            raise ValueError("waves need an axis that is periodic and lines without a gap.")
        self.lines, self.weights, self.columns = lines
        self.segment, self.skip_missing = segment, skip_missing
        size = yardstick.shape[0 if self.columns else 1]
        shape = (runs, segment // 2 + 1, size)
        self._power = torch.zeros(shape, dtype=torch.float64)
        self._count = torch.zeros(runs, dtype=torch.float64)

    def __call__(self, runs: slice, start: int, frames: Tensor, old: int) -> None:
        """See frames (R, T, H, W), the first ``old`` of which were seen before ``start``.

        There must be ``segment - 1`` old ones, or as many as there were.
        """
        half = self.segment // 2
        origin, end = start - old, start + frames.shape[1] - old
        first = max(0, -(-(start + 1 - self.segment) // half))
        for begin in range(first * half, end - self.segment + 1, half):
            cut = frames[:, begin - origin : begin - origin + self.segment]
            power = line_spectra(cut, self.lines, self.weights, self.columns)
            whole = ~power.isnan().any(-1).any(-1) | (not self.skip_missing)
            self._power[runs] += torch.where(whole[:, None, None], power, 0.0)
            self._count[runs] += whole

    def power(self, runs: slice = slice(None)) -> Tensor:
        """Mean over segments and runs: ``(F, X)``; NaN when there is none."""
        return self._power[runs].sum(0) / self._count[runs].sum()


def wave_sums(ensemble: Tensor, truth: Tensor, yardstick: Yardstick) -> Sums:
    """Spectra of forecasts from the first to the last lead.

    Args:
        ensemble: ``(I, M, L, H, W)``.
        truth: ``(I, L, H, W)``; initial states where it has gaps on the lines do not count.
        yardstick: what to measure with.

    Returns: ``waves`` ``(I, F, X)``, mean over members, and ``wave_count`` ``(I,)``.
    """
    found = wave_lines(yardstick)
    assert found is not None
    lines, weights, columns = found
    whole = ~_along(truth, lines, columns).isnan().flatten(1).any(1)
    power = torch.stack(
        [line_spectra(member, lines, weights, columns) for member in ensemble.unbind(1)]
    ).mean(0)
    return {"waves": torch.where(whole[:, None, None], power, 0.0), "wave_count": whole.double()}


def line_spectra(frames: Tensor, lines: Tensor, weights: Tensor, columns: bool) -> Tensor:
    """Spectra of one segment: ``(R, T, H, W) -> (R, F, X)``, the weighted mean over lines."""
    cut = _along(frames, lines, columns)
    power = wave_spectrum(cut, segment=cut.shape[-2], overlap=0).power  # (R, lines, F, X)
    return torch.einsum("rlfx,l->rfx", power, weights)


def _along(frames: Tensor, lines: Tensor, columns: bool) -> Tensor:
    """(R, T, H, W) -> (R, lines, T, X)."""
    turned = frames.transpose(-2, -1) if columns else frames
    return turned[..., lines, :].transpose(1, 2)
