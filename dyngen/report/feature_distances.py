"""Distances of generated frames and films from real ones by their features, as labelled scores.

Of forecasts: FID and KID of their frames, FID by lead, and FVD where they are long enough. Of free
runs: the same, and curves along the run, sliding-window FID and FVD. A distance has the name of its
features in its own, `FVD_scattering-j3-l4-t3`, and beside it `_floor`, what two samples of these
sizes from one law would score on average. System `truth` is real films held against others.

Features see all variables together, each less its mean and over its standard deviation in the
reference. Points that the reference lacks at any time are zero on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.features import ScatteringFrames, ScatteringWindows, extractor_from
from dyngen.metrics.frechet import (
    Kernel,
    feature_scale,
    frechet_distance,
    kernel_distance_of_subsets,
    moments,
    rescaled,
    score_name,
)
from dyngen.metrics.windows import SLIDING_FID_FRAMES, Curve, sliding_frechet, window_kind

Extractor = Callable[[Tensor], Tensor]

WINDOWS_PER_POINT = 64  # of all members, in each point of a curve along a free run
FILMS_PER_LEAD = 32  # fewer make no curve by lead
BATCH = 64


@dataclass(frozen=True)
class Features:
    """What frames and windows are compared by, and how many of them.

    Args:
        frames: `class_path` and `init_args` of an extractor of frames; None: wavelet scattering.
        windows: of extractors of windows, by their length in frames; None: scattering of 16 and 32.
        samples: The most frames of each system, and of the reference, evenly spread; of windows of
            n frames 4 / n as many.

    Raises:
        ValueError: For less than two samples.
    """

    frames: dict[str, Any] | None = None
    windows: dict[int, dict[str, Any]] | None = None
    samples: int = 1000

    def __post_init__(self) -> None:
        if self.samples < 8:
            raise ValueError(f"samples of Features must be at least 8, not {self.samples}.")

    def most(self, length: int) -> int:
        """The most windows of each side; 1 is of frames."""
        return self.samples if length == 1 else max(2, 4 * self.samples // length)

    def extractors(
        self, channels: int, shape: tuple[int, int], periodic: tuple[bool, bool]
    ) -> dict[int, Extractor]:
        """Extractors for fields of this kind by the length of their windows; 1 is of frames.

        Raises:
            ValueError: When one cannot be made.
        """
        boundary = ["periodic" if around else "reflect" for around in periodic]
        scales = min(3, int(math.log2(min(shape))) - 1)
        if (self.frames is None or self.windows is None) and scales < 1:
            raise ValueError(
                f"frames of {shape[0]} x {shape[1]} cells are too small for scattering; give "
                "extractors of your own, or leave the feature distances out."
            )
        found: dict[int, Extractor] = {}
        if self.frames is None:
            found[1] = ScatteringFrames(channels, scales, boundary=boundary)
        else:
            found[1] = extractor_from(**self.frames)
        if self.windows is None:
            for length in (16, 32):
                found[length] = ScatteringWindows(channels, length, scales, boundary=boundary)
        else:
            found |= {int(n): extractor_from(**given) for n, given in self.windows.items()}
        return found


def feature_distances(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset | None,
    *,
    reference: xr.Dataset,
    initial_frames: xr.Dataset | None = None,
    free_runs: Mapping[str, xr.Dataset] | None = None,
    periodic: tuple[bool, bool] = (True, True),
    features: Features = Features(),
    seed: int = 0,
) -> xr.Dataset:
    """Fréchet and kernel distances of forecasts and free runs from the reference.

    Args:
        forecasts: by system, (initial, member, lead, y, x), in physical units.
        truth: what came true, (initial, lead, y, x); None where nothing was forecast.
        reference: held-out truth, (run, time, y, x).
        initial_frames: the last given frames, (initial, y, x); without it no `persistence`.
        free_runs: by system, (member, time, y, x).
        periodic: whether rows and columns wrap around.
        features: the extractors.
        seed: of the subsets of the kernel distance.

    Returns: variables over `system`, and over `lead` or, along free runs, over `start_1` or
    `start_16`, the first step of a window of frames or of windows. Those of free runs start with
    `free_`. The attribute `extractors` lists names.

    Raises:
        ValueError: when a system has missing values, or features cannot be made of these fields.
    """
    films = _Films(reference)
    extractors = features.extractors(len(films.names), films.shape, periodic)
    longest = max(
        [data.sizes["lead"] for data in forecasts.values()]
        + [data.sizes["time"] for data in (free_runs or {}).values()],
        default=0,
    )
    yardsticks = [
        _Yardstick(films, length, extractor, features.most(length))
        for length, extractor in extractors.items()
        if length <= min(films.steps, longest)
    ]
    systems = dict(forecasts)
    if truth is not None:
        systems = {"truth": truth.expand_dims("member", 1), **systems}
        if initial_frames is not None:
            leads = truth.sizes["lead"]
            systems["persistence"] = initial_frames.expand_dims(member=1, lead=leads)
    out: dict[tuple[str, str], tuple[tuple[str, ...], Tensor]] = {}
    starts: dict[str, np.ndarray] = {}
    for system, dataset in systems.items():
        for yard in yardsticks:
            if dataset.sizes["lead"] < yard.length:
                continue
            found = films.of_forecasts(dataset, yard, f"system {system!r}")
            out |= _named(yard, system, found, seed)
            if yard.length == 1 and len(found) >= FILMS_PER_LEAD:
                curve = yard.curve(found, 1, 1, f"{yard.name} by lead")
                out[f"{yard.name}_lead", system] = ("lead",), curve.distance
                out[f"{yard.name}_lead_floor", system] = ("lead",), curve.floor
    for system, dataset in (free_runs or {}).items():
        for yard in yardsticks:
            if dataset.sizes["time"] < max(yard.length, SLIDING_FID_FRAMES):
                continue
            found, apart = films.of_run(dataset, yard, f"free run {system!r}")
            out |= {
                (f"free_{name}", who): value
                for (name, who), value in _named(yard, system, found, seed).items()
            }
            points = SLIDING_FID_FRAMES if yard.length == 1 else WINDOWS_PER_POINT // len(found)
            points = max(points, 1)
            if yard.length > 16 or found.shape[1] < points:
                continue
            kind = f"FID-{points * apart}" if yard.length == 1 else yard.kind
            name = score_name(f"sliding-{kind}", yard.extractor)
            step = max(1, points // 2)
            curve = yard.curve(found, points, step, name)
            axis = f"start_{yard.length}"
            out[f"free_{name}", system] = (axis,), curve.distance
            out[f"free_{name}_floor", system] = (axis,), curve.floor
            known = starts.get(axis, np.empty(0))
            here = curve.start.numpy() * apart + 1
            starts[axis] = here if len(here) > len(known) else known
    order = list(dict.fromkeys([*systems, *(free_runs or {})]))
    return _labelled(out, order, starts, [yard.extractor for yard in yardsticks])


class _Yardstick:
    """The reference's features of frames, or of windows of one length.

    Args:
        films: of the reference.
        length: frames in a window; 1 for frames.
        extractor: of them.
        most: windows of each side.
    """

    def __init__(self, films: _Films, length: int, extractor: Extractor, most: int) -> None:
        self.length, self.extractor, self.most = length, extractor, most
        textures = bool(getattr(extractor, "dynamic_textures", False))
        self.kind = "FID" if length == 1 else window_kind(length, textures)
        self.name = score_name(self.kind, extractor)
        self.real = films.of_reference(self)
        self.moments = moments(self.real)
        self.scale = torch.ones_like(self.moments.mean)
        if getattr(extractor, "standardise", False):
            self.scale = feature_scale(self.moments)

    def distance(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Fréchet distance of features (N, D), and what samples of these sizes score."""
        ours, theirs = (rescaled(m, self.scale) for m in (moments(found), self.moments))
        result = frechet_distance(ours, theirs, name=self.name)
        return result.distance, result.floor

    def kernel(self, found: Tensor, seed: int) -> Kernel:
        """KID of features (N, D)."""
        ours, theirs = (((f - self.moments.mean) / self.scale) for f in (found, self.real))
        return kernel_distance_of_subsets(
            ours,
            theirs,
            subsets=50,
            subset_size=min(200, len(ours), len(theirs)),
            generator=torch.Generator().manual_seed(seed),
        )

    def curve(self, found: Tensor, length: int, stride: int, name: str) -> Curve:
        """Distance along films, from features (films, windows, D)."""
        ours, theirs = (f / self.scale for f in (found, self.real[None]))
        return sliding_frechet(
            ours, theirs, length=length, stride=stride, everywhere=True, name=name
        )


def _named(
    yard: _Yardstick, system: str, found: Tensor, seed: int
) -> dict[tuple[str, str], tuple[tuple[str, ...], Tensor]]:
    """Distances over all films together."""
    together = found.flatten(0, 1)
    if len(together) < 2:
        return {}
    distance, floor = yard.distance(together)
    out: dict[tuple[str, str], tuple[tuple[str, ...], Tensor]] = {
        (yard.name, system): ((), distance),
        (f"{yard.name}_floor", system): ((), floor),
    }
    if yard.length == 1:
        kernel, name = yard.kernel(together, seed), score_name("KID", yard.extractor)
        out[name, system] = (), kernel.distance
        out[f"{name}_spread", system] = (), kernel.spread
    return out


class _Films:
    """Fields as normalised frames (..., C, H, W), with the reference's mean and spread.

    Args:
        reference: (run, time, y, x).
    """

    def __init__(self, reference: xr.Dataset) -> None:
        self.names = [
            name for name, data in reference.data_vars.items() if {"run", "time"} <= set(data.dims)
        ]
        first = reference[self.names[0]]
        self.reference = reference
        self.space = tuple(d for d in first.dims if d not in ("run", "time"))
        self.shape = (first.sizes[self.space[0]], first.sizes[self.space[1]])
        self.steps = first.sizes["time"]
        self.mean, self.std = [], []
        missing = np.zeros(self.shape, dtype=bool)
        for name in self.names:
            data = reference[name].transpose("run", "time", *self.space)
            missing |= data.isnull().any(("run", "time")).to_numpy()
            self.mean.append(float(data.mean(dtype="float64")))
            self.std.append(float(data.std(dtype="float64")) or 1.0)
        self.there = torch.from_numpy(~missing)

    def of_reference(self, yard: _Yardstick) -> Tensor:
        """Features (N, D), evenly spread over the runs and their time."""
        runs, last = self.reference.sizes["run"], self.steps - yard.length
        per_run = min(last + 1, max(1, yard.most // runs))
        starts = np.linspace(0, last, per_run).round().astype(int).tolist()
        keep = max(1, min(runs, yard.most // per_run))
        found = []
        for run in range(keep):
            film = self._read(self.reference.isel(run=run * runs // keep), "the reference")
            found.append(_extract(yard, film, starts))
        return torch.cat(found)

    def of_forecasts(self, dataset: xr.Dataset, yard: _Yardstick, what: str) -> Tensor:
        """Features (films, windows, D) of windows that do not overlap; films left out evenly."""
        starts = list(range(0, dataset.sizes["lead"] - yard.length + 1, yard.length))
        members = dataset.sizes["member"]
        count = dataset.sizes["initial"] * members
        keep = max(1, min(count, yard.most // len(starts)))
        found = []
        for film in (i * count // keep for i in range(keep)):
            frames = dataset.isel(initial=film // members, member=film % members)
            found.append(_extract(yard, self._read(frames, what), starts))
        return torch.stack(found)

    def of_run(self, dataset: xr.Dataset, yard: _Yardstick, what: str) -> tuple[Tensor, int]:
        """Features (members, windows, D), and how many steps the windows are apart."""
        steps, members = dataset.sizes["time"], dataset.sizes["member"]
        apart = max(1, yard.length // 2, -(-steps * members // (4 * yard.most)))
        starts = list(range(0, steps - yard.length + 1, apart))
        found = []
        for member in range(members):
            film = dataset.isel(member=member)
            parts = []
            for first in range(0, len(starts), BATCH):  # a century is read piece by piece
                some = starts[first : first + BATCH]
                piece = film.isel(time=slice(some[0], some[-1] + yard.length))
                shifted = [start - some[0] for start in some]
                parts.append(_extract(yard, self._read(piece, what), shifted))
            found.append(torch.cat(parts))
        return torch.stack(found), apart

    def _read(self, dataset: xr.Dataset, what: str) -> Tensor:
        """Normalised frames (T, C, H, W) of one film."""
        channels = []
        for name, mean, std in zip(self.names, self.mean, self.std, strict=True):
            data = dataset[name]
            axis = next(d for d in data.dims if d not in self.space)
            array = data.transpose(axis, *self.space).to_numpy()
            values = torch.from_numpy(np.ascontiguousarray(array)).float()
            values = torch.where(self.there, (values - mean) / std, 0.0)
            if not bool(values.isfinite().all()):
                raise ValueError(
                    f"variable {name!r} of {what} has values that are missing or not finite: "
                    "features cannot be made of them."
                )
            channels.append(values)
        return torch.stack(channels, dim=1)


def _extract(yard: _Yardstick, film: Tensor, starts: list[int]) -> Tensor:
    """Features (windows, D) of windows of a film (T, C, H, W)."""
    found = []
    with torch.no_grad():
        for first in range(0, len(starts), BATCH):
            some = starts[first : first + BATCH]
            if yard.length == 1:
                samples = film[some]
            else:
                samples = torch.stack([film[s : s + yard.length] for s in some])
            found.append(yard.extractor(samples).double())
    return torch.cat(found)


def _labelled(
    found: Mapping[tuple[str, str], tuple[tuple[str, ...], Tensor]],
    systems: list[str],
    starts: Mapping[str, np.ndarray],
    extractors: list[Extractor],
) -> xr.Dataset:
    """Scores as a dataset; NaN where a system has none, or is shorter."""
    data: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in found):
        of = {system: found[name, system] for system in systems if (name, system) in found}
        dims = next(iter(of.values()))[0]
        length = max((len(values) for _, values in of.values()), default=0) if dims else 0
        values = np.full((len(systems), *([length] if dims else [])), np.nan)
        for system, (_, value) in of.items():
            row: tuple[Any, ...] = (systems.index(system),)
            values[(*row, slice(len(value))) if dims else row] = value.numpy()
        data[name] = ("system", *dims), values
    used = {dim for dims, _ in data.values() for dim in dims}
    coords: dict[str, Any] = {"system": systems}
    for axis, values in starts.items():
        if axis in used:
            about = {"long_name": "first step of a window", "units": "step"}
            coords[axis] = axis, values, about
    result = xr.Dataset(data, coords)
    if "lead" in result.dims:
        result = result.assign_coords(lead=np.arange(1, result.sizes["lead"] + 1))
    names = [str(getattr(extractor, "name", "")) for extractor in extractors]
    return result.assign_attrs(extractors=", ".join(names))
