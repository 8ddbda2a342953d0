"""Frames with the right distribution in each cell: a quantile map after each step of a rollout.

A rollout's climate is what its steps leave unchanged, and a step that is off by little is off
at each step: a mean that is wrong by b settles where what is forgotten per step makes up for it,
at ``b / (1 - rho)`` for anomalies that keep a fraction rho of themselves. What is wrong can be read
from forecasts of one step, which begin at true frames: if these give each cell the distribution of
what came true, then the true climate is what the rollout leaves unchanged, cell by cell. A quantile
map (Panofsky and Brier 1958; Maraun 2016, doi:10.1007/s40641-016-0050-x) of forecasts to what came
true, applied to each frame before it becomes history, makes it so. Unlike the correction of a long
run's mean, it needs to know nothing of how errors spread from step to step.

Anomalies are mapped, but of a variable with a transform the values, anomalies and what is normal
at that time of the year: rain has an upper end in millimetres, and where the rainy season begins
within days, anomalies of a month have another spread on each side of that. Quantiles of them all
together let it rain too much where it is wet already.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from dyngen.rollout.frame_sampler import Diagnostics, FrameSampler
from dyngen.rollout.randomness import FrameNoise
from dyngen.rollout.store import plain, replace_arrays

CELLS = 2**14  # sorted at a time
MONTHS = 12


@dataclass(frozen=True)
class QuantileMap:
    """A rising, piecewise linear function of each cell's values, of slope 1 beyond its knots.

    Args:
        source: (K, C, H, W) quantiles of the forecasts, rising along K.
        target: (K, C, H, W) those of what came true.

    Raises:
        ValueError: If they are not of one shape, or have fewer than two quantiles.
    """

    source: Tensor
    target: Tensor

    def __post_init__(self) -> None:
        if self.source.shape != self.target.shape or self.source.ndim != 4 or len(self.source) < 2:
            raise ValueError(
                f"Quantiles of shape {tuple(self.source.shape)} are mapped to quantiles of shape "
                f"{tuple(self.target.shape)}; give both (K, C, H, W), with K of two or more."
            )

    @classmethod
    def fit(cls, forecasts: Tensor, truths: Tensor, knots: int = 32) -> QuantileMap:
        """The map of forecasts to what came true.

        A knot is the mean of one of so many parts of the sorted values, so that a mean is estimated
        from all of them; the parts are small at both ends, where tails are.

        Args:
            forecasts: (N, C, H, W), in the units of the rollout's frames.
            truths: (N, C, H, W), in any order.
            knots: K.

        Raises:
            ValueError: If there are fewer frames than knots.
        """
        if min(len(forecasts), len(truths)) < knots:
            raise ValueError(
                f"{len(forecasts)} forecasts and {len(truths)} frames that came true have no "
                f"{knots} quantiles; give more, or ask for fewer knots."
            )
        return cls(_quantiles(forecasts, knots), _quantiles(truths, knots))

    def __call__(self, x: Tensor) -> Tensor:
        """Frames (..., C, H, W) with each cell's values mapped."""
        source, target = (q.to(x).movedim(0, -1).contiguous() for q in (self.source, self.target))
        values = x.reshape(-1, *source.shape[:3]).movedim(0, -1).contiguous()  # (C, H, W, N)
        after = torch.searchsorted(source, values).clamp(1, source.shape[-1] - 1)
        low, high = source.gather(-1, after - 1), source.gather(-1, after)
        begin, end = target.gather(-1, after - 1), target.gather(-1, after)
        within = values.clamp(source[..., :1], source[..., -1:])
        share = (within - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)
        mapped = torch.lerp(begin, end, share.clamp(0, 1)) + (values - within)
        return mapped.movedim(-1, 0).reshape(x.shape)


@dataclass(frozen=True)
class Seasons:
    """Quantile maps around the year, each for the middle of its season, linear between them.

    Args:
        maps: Those of phases 0, 1 / S, 2 / S, ... of the year; one is for all of it.
    """

    maps: Sequence[QuantileMap]

    @classmethod
    def fit(
        cls,
        forecasts: Tensor,
        truths: Tensor,
        phases: Tensor | None = None,
        knots: int = 32,
        progress: bool = False,
    ) -> Seasons:
        """The maps of forecasts to what came true.

        Args:
            forecasts: (N, C, H, W).
            truths: (N, C, H, W), of the same times.
            phases: (N,) of the year, from 0 to 1: twelve maps, each of the frames that are no more
                than a twelfth away. None: one map.
            knots: Of each.
            progress: Show how far it is.

        Raises:
            ValueError: If there are fewer frames than knots, of all or at a time of the year.
        """
        if phases is None:
            return cls([QuantileMap.fit(forecasts, truths, knots)])
        months = torch.arange(MONTHS) / MONTHS
        near = ((phases - months[:, None] + 0.5) % 1 - 0.5).abs() <= 1 / MONTHS
        fewest = int(near.sum(1).min())
        if fewest < knots:
            raise ValueError(
                f"At one time of the year {fewest} of {len(forecasts)} forecasts are within a "
                f"month, too few for {knots} knots; give forecasts of all seasons, or fewer knots."
            )
        shown = track(near, "fitting", transient=True, disable=not progress)
        return cls([QuantileMap.fit(forecasts[one], truths[one], knots) for one in shown])

    def at(self, phase: float) -> QuantileMap:
        """The map of a time of the year, of phase 0 to 1."""
        count = len(self.maps)
        if count == 1:
            return self.maps[0]
        before = int(phase * count)
        a, b, share = self.maps[before % count], self.maps[(before + 1) % count], phase * count % 1
        return QuantileMap(
            torch.lerp(a.source, b.source, share), torch.lerp(a.target, b.target, share)
        )

    def shifted(self, shift: Tensor) -> Seasons:
        """Maps to values higher by (C, H, W)."""
        return Seasons([QuantileMap(one.source, one.target + shift) for one in self.maps])


@dataclass(frozen=True)
class Calibration:
    """A quantile map, and what it was fitted to: it fits no other.

    Args:
        path: Its file.
        seasons: The maps, of normalised frames.
        weights: Digest of the model's weights.
        sampler: Description of the frame sampler.
        channel: Number of the channel of the context that is the cosine of the time of the year,
            before its sine; None where there is none, and one map.
        normal: (1 + 2 K, C, H, W) a constant, then cosine and sine of harmonics of the year: what
            is added to normalised frames before the map and subtracted after it; None for nothing.
    """

    path: str
    seasons: Seasons
    weights: str
    sampler: Mapping[str, Any]
    channel: int | None = None
    normal: Tensor | None = None

    @property
    def digest(self) -> str:
        """Of the map."""
        digest = hashlib.sha256(str(self.channel).encode())
        for values in self._arrays().values():
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def write(self) -> None:
        """Write the file, whole or not at all."""
        known = {"weights": self.weights, "sampler": self.sampler, "channel": self.channel}
        told = np.array(json.dumps(known))
        replace_arrays(Path(self.path), **self._arrays(), fitted_to=told)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Quantiles of forecasts, and of what came true, (S, K, C, H, W) each; what is normal."""
        maps = self.seasons.maps
        tensors = {
            "source": torch.stack([one.source for one in maps]),
            "target": torch.stack([one.target for one in maps]),
        }
        if self.normal is not None:
            tensors["normal"] = self.normal
        return {name: values.to(torch.float32).numpy() for name, values in tensors.items()}

    def check(self, weights: str, sampler: Mapping[str, Any]) -> None:
        """Refuse another model or other sampling.

        Raises:
            ValueError: If either is other than what the map was fitted to.
        """
        again = "forecast one step and calibrate again (dyngen calibrate --help), or leave it out."
        if weights != self.weights:
            raise ValueError(f"{self.path} was fitted to forecasts of another model: {again}")
        now, before = plain(sampler), self.sampler
        for key in sorted(now.keys() | before.keys()):
            if now.get(key) != before.get(key):
                raise ValueError(
                    f"{self.path} was fitted to forecasts with {key} = {before.get(key)}, not "
                    f"{now.get(key)}: {again}"
                )


def read_calibration(path: str) -> Calibration:
    """A calibration from its file.

    Raises:
        ValueError: If the file is not there, or not one of a calibration.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            known = json.loads(str(file["fitted_to"]))
            source, target = (torch.from_numpy(file[name]) for name in ("source", "target"))
            maps = [QuantileMap(*each) for each in zip(source, target, strict=True)]
            normal = torch.from_numpy(file["normal"]) if "normal" in file else None
            return Calibration(path, Seasons(maps), **known, normal=normal)
    except FileNotFoundError:
        raise ValueError(
            f"calibration {path} does not exist: make it with dyngen calibrate."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a calibration of dyngen calibrate ({error}): make it anew."
        ) from error


class CalibratedFrameSampler:
    """A frame sampler whose frames go through a quantile map, and then become history.

    Args:
        sampler: what samples the frames.
        calibration: the maps.
    """

    def __init__(self, sampler: FrameSampler, calibration: Calibration) -> None:
        self.sampler = sampler
        self.calibration = calibration
        self.history_length = sampler.history_length
        self.block_length = sampler.block_length
        self.frames: int = getattr(sampler, "frames", 1)  # of the context, in blocks that overlap
        self.diagnostic_names = sampler.diagnostic_names

    def __call__(
        self, history: Tensor, noise: FrameNoise, **conditioning: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        """The next frames, mapped; as the sampler's."""
        frames, figures = self.sampler(history, noise, **conditioning)
        seasons, channel = self.calibration.seasons, self.calibration.channel
        normal = self.calibration.normal
        if channel is None:
            return seasons.at(0.0)(frames), figures
        context = conditioning["context"]
        context = context[:, None] if context.ndim == 4 else context
        waves = context[:, : self.block_length, channel : channel + 2, 0, 0].double()
        phases = torch.atan2(waves[..., 1], waves[..., 0]) / math.tau % 1
        mapped = torch.empty_like(frames)
        for phase in phases.unique().tolist():
            of_phase = phases == phase
            level = 0.0 if normal is None else normal_at(normal.to(frames), phase)
            mapped[of_phase] = seasons.at(phase)(frames[of_phase] + level) - level
        return mapped, figures

    def description(self) -> dict[str, Any]:
        """The sampler's settings, and which map."""
        return {**self.sampler.description(), "calibration": self.calibration.digest}


def normal_at(normal: Tensor, phase: float) -> Tensor:
    """(C, H, W) what is normal at a phase of 0 to 1 of the year; see `Calibration`."""
    angles = math.tau * phase * torch.arange(1, 1 + len(normal) // 2)
    waves = torch.stack([angles.cos(), angles.sin()], 1).flatten()
    basis = torch.cat([torch.ones(1), waves]).to(normal)
    return torch.einsum("b,bchw->chw", basis, normal)


def _quantiles(frames: Tensor, knots: int) -> Tensor:
    """Means (knots, C, H, W) of parts of the sorted values of frames (N, C, H, W).

    They end at shares sin^2 (pi k / 2 K) of the values, as Chebyshev's points do of a line.
    """
    count, ranks = len(frames), torch.arange(1, knots)
    ends = (count * torch.sin(math.pi / 2 * ranks / knots) ** 2).round().long()
    ends = torch.minimum(torch.maximum(ends, ranks), count - knots + ranks)
    parts = [
        torch.stack([part.mean(0) for part in cells.sort(0).values.tensor_split(ends)])
        for cells in frames.flatten(1).split(CELLS, 1)
    ]
    return torch.cat(parts, 1).view(knots, *frames.shape[1:])
