"""What frames and windows are compared by: feature extractors, each with a name of its own.

An extractor is any callable ``samples -> features (B, D)`` with a ``name``, which becomes part of
the name of every score it is used in: a number from one is never passed off as a number from
another. Frames are ``(B, C, H, W)``, windows ``(B, T, C, H, W)``, normalised, without missing
values. Those here:

- :class:`ScatteringFrames` and :class:`ScatteringWindows`: wavelet scattering (Mallat 2012;
  Bruna & Mallat 2013, arXiv 1203.1513) by kymatio. Nothing is trained, so that they are the default
  for scientific fields.
- :class:`TorchScriptFeatures`: a network that others trained (Inception, I3D), from a path or URL.
- :class:`EncoderFeatures`: a layer of a model's own denoiser.
- anything else, by class path: :func:`extractor_from`.

**Channels.** Scattering treats each channel by itself and joins the features, so that C channels
give C times as many; what channels have to do with each other is seen in the covariance of their
features. A network of n input channels gets a field of n channels as it is; one channel is
repeated n times; of any other number each is repeated n times and passed alone, and the features
are joined. A model's own encoder gets all channels, as in training.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import os
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

FLOOR = 1e-4
"""Amplitudes below a ten-thousandth of a field's standard deviation are alike, in logarithms."""

POINTS_AT_ONCE = 2**18


@runtime_checkable
class FeatureExtractor(Protocol):
    """Samples to features ``(B, D)``; with ``standardise = True`` in units of the real spread."""

    name: str

    def __call__(self, samples: Tensor, /) -> Tensor:
        """Features ``(B, D)``."""
        ...


# Wavelet scattering


class ScatteringFrames(nn.Module):
    """Spatial scattering of frames, averaged over space.

    Per channel: the mean; the logarithm of each first-order coefficient, the mean modulus of the
    wavelet transform at a scale and angle; and of each second-order one over its first-order
    parent, which tells how the structures of one scale are gathered by a larger one. Features are
    measured in standard deviations of the real ones, as their units have nothing in common.

    Args:
        channels: C of the frames.
        scales: J, wavelets of 1, 2, ..., ``2^(J - 1)`` grid cells; ``2^J`` is at most half of
            either side.
        angles: L, over half a turn.
        boundary: for rows and columns, ``periodic`` or what is not, which is mirrored.
    """

    standardise = True

    def __init__(
        self,
        channels: int = 1,
        scales: int = 3,
        angles: int = 4,
        boundary: Sequence[str] = ("periodic", "periodic"),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.space = _SpatialScattering(scales, angles, boundary)
        self.name = self.space.name
        pairs = scales * (scales - 1) // 2 * angles**2
        self.dimension = channels * (1 + scales * angles + pairs)

    def forward(self, frames: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, D)``.

        Raises:
            ValueError: for another shape, or frames too small for the scales.
        """
        _check_shape(frames, 4, self.channels, self.name)
        mean, first, second = self.space(frames.flatten(0, 1), order=2)
        features = torch.cat(
            [
                mean[:, None],
                (first.mean((-2, -1)) + FLOOR).log(),
                _relative(second.mean((-2, -1)), first.mean((-2, -1)), self.space.parents),
            ],
            dim=1,
        )
        return features.reshape(len(frames), -1)


class ScatteringWindows(nn.Module):
    """Scattering of windows of frames in space and time, averaged over both.

    Per channel, all but the first and the last in logarithms:

    - the mean, and how much it and the amplitude change from the first half to the second;
    - first-order spatial scattering, averaged over time;
    - temporal scattering of the field at every point, first and second order: flicker, freezing,
      speed;
    - temporal scattering of the spatial coefficients at each scale, averaged over angles: how fast
      structures form and go;
    - asymmetry in time at steps s = 1, 2, 4, ..., with a the anomaly from the window's mean:
      ``sum (|a(t + s)| - |a(t)|) d / sum (|a(t + s)| + |a(t)|) d``, ``d = |a(t + s) - a(t)|``.
      A modulus averaged over time is the same for a film played backwards; this changes sign.

    Args:
        channels: C of the windows.
        length: T, frames in a window, at least 8.
        scales: as in :class:`ScatteringFrames`.
        angles: likewise.
        boundary: likewise.

    Raises:
        ValueError: for a shorter window.
    """

    standardise = True

    def __init__(
        self,
        channels: int = 1,
        length: int = 16,
        scales: int = 3,
        angles: int = 4,
        boundary: Sequence[str] = ("periodic", "periodic"),
    ) -> None:
        super().__init__()
        if length < 8:
            raise ValueError(f"length is {length}; temporal scattering needs at least 8 frames.")
        self.channels, self.length = channels, length
        self.space = _SpatialScattering(scales, angles, boundary)
        self.time = _TemporalScattering(length, math.floor(math.log2(length)) - 1)
        self.steps = [2**i for i in range(self.time.scales)]
        self.name = f"{self.space.name}-t{self.time.scales}"
        per_channel = 3 + scales * angles + (1 + scales) * self.time.paths + len(self.steps)
        self.dimension = channels * per_channel

    def forward(self, windows: Tensor) -> Tensor:
        """``(B, T, C, H, W) -> (B, D)``.

        Raises:
            ValueError: for another shape or length, or frames too small for the scales.
        """
        _check_shape(windows, 5, self.channels, self.name)
        if windows.shape[1] != self.length:
            raise ValueError(
                f"{self.name} was made for windows of {self.length} frames, not of "
                f"{windows.shape[1]}."
            )
        series = windows.float().transpose(1, 2).flatten(0, 1)  # (B C, T, H, W)
        features = torch.cat([self._of_series(part) for part in _chunks(series)])
        return features.reshape(len(windows), -1)

    def _of_series(self, series: Tensor) -> Tensor:
        runs, length = series.shape[:2]
        mean, first, _ = self.space(series.flatten(0, 1), order=1)
        mean = mean.reshape(runs, length)
        first = first.reshape(runs, length, self.space.scales, -1, *first.shape[-2:])
        early, late = slice(0, length // 2), slice(length - length // 2, length)
        amplitude = series.flatten(2).std(2) + FLOOR
        growth = (amplitude[:, late].mean(1) / amplitude[:, early].mean(1)).log()
        by_scale = first.mean(3).permute(0, 2, 3, 4, 1).flatten(2, 3)  # (runs, J, points, T)
        return torch.cat(
            [
                mean.mean(1, keepdim=True),
                (mean[:, late].mean(1) - mean[:, early].mean(1))[:, None],
                growth[:, None],
                (first.mean((1, 4, 5)) + FLOOR).log().flatten(1),
                self.time(series.flatten(2).transpose(1, 2)),
                self.time(by_scale).flatten(1),
                time_asymmetry(series, self.steps),
            ],
            dim=1,
        )


def time_asymmetry(series: Tensor, steps: Sequence[int]) -> Tensor:
    """How much larger anomalies are after large changes than before them.

    As in :class:`ScatteringWindows`; between -1 and 1, zero for reversible processes, Gaussian ones
    among them, and of the other sign for the series played backwards.

    Args: ``(R, T, ...)``. Returns: ``(R, len(steps))``.
    """
    anomaly = series.flatten(2)
    anomaly = anomaly - anomaly.mean((1, 2), keepdim=True)
    size = anomaly.abs()
    found = []
    for step in steps:
        change = (anomaly[:, step:] - anomaly[:, :-step]).abs()
        before, after = size[:, :-step], size[:, step:]
        scale = ((after + before) * change).sum((1, 2))
        found.append(((after - before) * change).sum((1, 2)) / scale.clamp_min(1e-30))
    return torch.stack(found, dim=1)


class _SpatialScattering(nn.Module):
    """kymatio's scattering of ``(N, H, W)`` with edges that wrap around or are mirrored."""

    def __init__(self, scales: int, angles: int, boundary: Sequence[str]) -> None:
        super().__init__()
        if len(boundary) != 2:
            raise ValueError(f"boundary is {boundary!r}; it must name those of rows and columns.")
        if scales < 1 or angles < 1:
            raise ValueError(f"there are {scales} scales and {angles} angles; there must be some.")
        self.scales, self.angles = scales, angles
        self.modes = ["circular" if edge == "periodic" else "reflect" for edge in boundary]
        mirrored = "".join(a for a, mode in zip("yx", self.modes, strict=True) if mode == "reflect")
        self.name = f"scattering-j{scales}-l{angles}" + (f"-mirror-{mirrored}" if mirrored else "")
        paths = [(j, a) for j in range(scales) for a in range(angles)]
        self.parents = [
            i for i, (j, _) in enumerate(paths) for _ in range((scales - 1 - j) * angles)
        ]
        self.transforms: dict[tuple[int, int, int], nn.Module] = {}  # filters, not weights
        _kymatio("scattering2d", "ScatteringTorch2D")

    def forward(self, fields: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``(N,)``, first order ``(N, J L, h, w)`` and second, empty with ``order=1``."""
        fields = fields.float()
        height, width = fields.shape[-2:]
        transform = self._transform(height, width, order).to(fields.device)
        padded = self._pad(fields, transform)
        found = torch.cat([transform(part) for part in _chunks(padded)])
        count = self.scales * self.angles
        # Rounding can leave a modulus slightly below zero.
        found = found[:, 1:].clamp_min(0)
        return fields.mean((-2, -1)), found[:, :count], found[:, count:]

    def _transform(self, height: int, width: int, order: int) -> Any:
        if 2 ** (self.scales + 1) > min(height, width):
            raise ValueError(
                f"frames of {height} x {width} cells are too small for {self.scales} scales of "
                f"scattering; use at most {int(math.log2(max(min(height, width), 1))) - 1}."
            )
        key = height, width, order
        if key not in self.transforms:
            make = _kymatio("scattering2d", "ScatteringTorch2D")
            self.transforms[key] = make(
                J=self.scales, shape=(height, width), L=self.angles, max_order=order, pre_pad=True
            )
        return self.transforms[key]

    def _pad(self, fields: Tensor, transform: Any) -> Tensor:
        """To the size that kymatio would pad to, but with the right boundaries."""
        height, width = fields.shape[-2:]
        tall, wide = transform._M_padded - height, transform._N_padded - width
        padded = fields[:, None]
        padded = F.pad(padded, (0, 0, tall // 2, tall - tall // 2), mode=self.modes[0])
        padded = F.pad(padded, (wide // 2, wide - wide // 2, 0, 0), mode=self.modes[1])
        return padded[:, 0].contiguous()


class _TemporalScattering(nn.Module):
    """kymatio's scattering of series ``(..., points, T)``, averaged over points and time."""

    def __init__(self, length: int, scales: int) -> None:
        super().__init__()
        self.scales = scales
        make = _kymatio("scattering1d", "ScatteringTorch1D")
        with warnings.catch_warnings():
            # Windows are short, and their mirrored ends the same for real and generated ones.
            warnings.filterwarnings("ignore", message="Signal support is too small")
            self.transform = make(J=scales, shape=length, Q=1)
        meta = self.transform.meta()
        first = [n for n, order in zip(meta["n"], meta["order"], strict=True) if order == 1]
        second = [n for n, order in zip(meta["n"], meta["order"], strict=True) if order == 2]
        numbers = [n[0] for n in first]
        self.parents = [numbers.index(n[0]) for n in second]
        self.first = len(first)
        self.paths = len(first) + len(second)

    def forward(self, series: Tensor) -> Tensor:
        """``(..., points, T) -> (..., paths)``."""
        coefficients = self.transform(series.contiguous())  # (..., points, paths, t)
        found = coefficients.mean((-3, -1))[..., 1:].clamp_min(0)
        first, second = found[..., : self.first], found[..., self.first :]
        return torch.cat([(first + FLOOR).log(), _relative(second, first, self.parents)], dim=-1)


def _relative(second: Tensor, first: Tensor, parents: Sequence[int]) -> Tensor:
    """Logarithm of second-order coefficients over that of the first order they come from."""
    return ((second + FLOOR) / (first[..., list(parents)] + FLOOR)).log()


def _chunks(series: Tensor) -> tuple[Tensor, ...]:
    """Parts of the first dimension, so that the paths of all do not have to fit in memory."""
    return series.split(max(1, POINTS_AT_ONCE // math.prod(series.shape[1:])))


def _kymatio(part: str, name: str) -> Callable[..., Any]:
    # kymatio.torch also imports its scattering in three dimensions, which new scipy breaks.
    return getattr(importlib.import_module(f"kymatio.{part}.frontend.torch_frontend"), name)


# Networks


class TorchScriptFeatures(nn.Module):
    """A network that others trained, as a TorchScript file: Inception for frames, I3D for windows.

    The file is checked before it is loaded, for loading it may run what is in it. Windows are
    handed over as ``(B, C, T, H, W)``, as I3D takes them, and what comes back beyond ``(B, D)`` is
    averaged over the other dimensions.

    Args:
        location: a path, or a URL, whose file is kept in ``cache``.
        sha256: of the file, in hexadecimals. A URL must have one.
        name: None: the file's name and the first digits of its checksum.
        channels: n, input channels of the network; see the module for fields of another number.
        size: (height, width) that frames are resized to, bilinear with antialiasing; None: as they
            are.
        value_range: values of the fields that become the ends of ``network_range``.
        network_range: what the network was trained with; values beyond are clipped.
        arguments: further arguments of the network, such as ``{"return_features": True}``.
        cache: folder for downloads; None: ``features`` in torch's own.
        dynamic_textures: whether it was trained on dynamic textures, whose FVD is a DTFVD.

    Raises:
        ValueError: when the checksum is wrong, or a URL has none.
        FileNotFoundError: when there is no such file.
    """

    def __init__(
        self,
        location: str | Path,
        sha256: str | None = None,
        name: str | None = None,
        channels: int = 3,
        size: tuple[int, int] | None = None,
        value_range: tuple[float, float] | None = None,
        network_range: tuple[float, float] = (-1.0, 1.0),
        arguments: Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        dynamic_textures: bool = False,
    ) -> None:
        super().__init__()
        path = fetch(str(location), sha256, cache)
        digest = sha256 or _sha256(path)
        stem = Path(urlsplit(str(location)).path).stem
        self.name = name or f"{stem}-{digest[:8].lower()}"
        self.network = torch.jit.load(str(path), map_location="cpu").eval()
        self.channels, self.size = channels, size
        self.value_range, self.network_range = value_range, network_range
        self.arguments = dict(arguments or {})
        self.dynamic_textures = dynamic_textures

    def forward(self, samples: Tensor) -> Tensor:
        """``(B, C, H, W)`` or ``(B, T, C, H, W)`` to ``(B, D)``.

        Raises:
            ValueError: for another number of dimensions.
        """
        if samples.ndim not in (4, 5):
            raise ValueError(
                f"{self.name} takes frames (B, C, H, W) or windows (B, T, C, H, W), not "
                f"{tuple(samples.shape)}."
            )
        samples = self._scaled(samples.float())
        if self.size is not None:
            flat = samples.flatten(0, -4)
            flat = F.interpolate(flat, self.size, mode="bilinear", antialias=True)
            samples = flat.reshape(*samples.shape[:-2], *self.size)
        channel = samples.ndim - 3
        parts = for_channels(samples, self.channels, channel)
        found = []
        for part in parts:
            inputs = part.transpose(1, 2) if part.ndim == 5 else part
            with torch.no_grad():
                features = self.network(inputs.contiguous(), **self.arguments)
            found.append(features.flatten(2).mean(2) if features.ndim > 2 else features)
        return torch.cat(found, dim=1)

    def _scaled(self, samples: Tensor) -> Tensor:
        if self.value_range is None:
            return samples
        low, high = self.value_range
        start, end = self.network_range
        scaled = start + (samples - low) * ((end - start) / (high - low))
        return scaled.clamp(min(start, end), max(start, end))


def for_channels(samples: Tensor, channels: int, dim: int) -> list[Tensor]:
    """Inputs of a network of n channels for fields of any number, as the module says.

    Args:
        samples: with their channels along ``dim``.
        channels: n.
        dim: of the channels.

    Returns: one input, or one per channel of the fields.
    """
    if samples.shape[dim] == channels:
        return [samples]
    return [part.repeat_interleave(channels, dim) for part in samples.split(1, dim)]


class EncoderFeatures(nn.Module):
    """What a layer of a model's own denoiser makes of frames, averaged over space.

    As in Baranchuk et al. (2022, arXiv 2112.03126), a denoiser's inner layers describe an image.
    Frames are passed without noise, at a low noise level, so that features are repeatable.

    Args:
        denoiser: called as ``denoiser(frames, sigma)``.
        layer: name of a submodule whose output is ``(B, D, h, w)``; the middle of a U-Net.
        sigma: the noise level said.
        name: None: the layer and the first digits of a checksum of the weights.

    Raises:
        ValueError: when there is no such layer.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        layer: str = "network.middle.1",
        sigma: float = 0.1,
        name: str | None = None,
    ) -> None:
        super().__init__()
        layers = dict(denoiser.named_modules())
        if layer not in layers:
            raise ValueError(
                f"the denoiser has no layer {layer!r}; it has {', '.join(list(layers)[1:12])}, ..."
            )
        self.denoiser, self.layer, self.sigma = denoiser, layer, sigma
        self.name = name or f"encoder-{layer}-sigma{sigma:g}-{_weights_digest(denoiser)}"

    def forward(self, frames: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, D)``."""
        found: list[Tensor] = []
        hook = self.denoiser.get_submodule(self.layer).register_forward_hook(
            lambda _module, _inputs, output: found.append(output)
        )
        try:
            with torch.no_grad():
                self.denoiser(frames, frames.new_full((len(frames),), self.sigma))
        finally:
            hook.remove()
        return found[-1].flatten(2).mean(2)


# Any extractor


def extractor_from(class_path: str, init_args: Mapping[str, Any] | None = None) -> FeatureExtractor:
    """An extractor of any class, ours or another's, by its class path and arguments.

    Raises:
        ValueError: when there is no such class, or what it makes has no name or is not callable.
    """
    module, _, attribute = class_path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), attribute)(**(init_args or {}))
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        if isinstance(error, ValueError) and module:
            raise
        raise ValueError(f"there is no feature extractor {class_path!r}: {error}.") from error
    if not callable(made) or not isinstance(getattr(made, "name", None), str):
        raise ValueError(
            f"{class_path} is no feature extractor: it must be callable and have a name."
        )
    return made


def feature_dimension(extractor: Callable[[Tensor], Tensor], shape: Sequence[int]) -> int:
    """How many features a sample of this shape has, found by trying.

    Args:
        extractor: any.
        shape: of a sample, ``(C, H, W)`` or ``(T, C, H, W)``.
    """
    with torch.no_grad():
        return extractor(torch.zeros(1, *shape)).shape[1]


# Files


def fetch(location: str, sha256: str | None = None, cache: str | Path | None = None) -> Path:
    """The file of a path or URL on this disk, its checksum made sure of.

    Args:
        location: a path, or ``http``, ``https`` or ``file`` URL.
        sha256: of the file; a URL must have one.
        cache: folder for downloads; None: ``features`` in torch's own.

    Raises:
        ValueError: when the checksum is wrong, or a URL has none.
        FileNotFoundError: when a path is no file.
    """
    if urlsplit(location).scheme not in ("http", "https", "file"):
        path = Path(location)
        if not path.is_file():
            raise FileNotFoundError(f"there is no feature network {location}.")
        if sha256 is not None:
            _check(path, sha256, location)
        return path
    if sha256 is None:
        raise ValueError(f"give the sha256 of {location}: what it holds is run when it is loaded.")
    folder = Path(torch.hub.get_dir()) / "features" if cache is None else Path(cache)
    path = folder / f"{sha256[:16].lower()}-{Path(urlsplit(location).path).name}"
    if path.is_file() and _sha256(path) == sha256.lower():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s to %s", location, path)
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(location, timeout=60) as page:
            while block := page.read(2**20):
                file.write(block)
        _check(Path(partial), sha256, location)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def _check(path: Path, sha256: str, location: str) -> None:
    found = _sha256(path)
    if found != sha256.lower():
        raise ValueError(
            f"{location} has the checksum {found}, not {sha256}; it is not loaded. Get the file "
            "again, or correct its sha256."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


def _check_shape(samples: Tensor, dims: int, channels: int, name: str) -> None:
    if samples.ndim != dims or samples.shape[-3] != channels:
        wanted = "(B, T, C, H, W)" if dims == 5 else "(B, C, H, W)"
        raise ValueError(
            f"{name} takes {wanted} with {channels} channels, not {tuple(samples.shape)}."
        )
