"""Fréchet distances of films: of windows of 16 or 32 frames, and along their time.

FVD (Unterthiner et al. 2018, arXiv 1812.01717) compares windows of 16 frames, FVD-32 of 32; with
features of a network trained on dynamic textures (Dorkenwald et al. 2021, DTDB) it is called DTFVD.
To see a film decay, the distance is taken in a window that slides along it (Li et al. 2023,
section 6): sliding-window FID over 30 frames, sliding-window DTFVD over 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from dyngen.metrics.frechet import (
    FrechetDistance,
    feature_scale,
    gaussian_distance,
    moments,
    rescaled,
    score_name,
    warn_of_few_samples,
)

SLIDING_FID_FRAMES = 30
SLIDING_DTFVD_FRAMES = 16


class Curve(NamedTuple):
    """A score along the time of films; all ``(S,)``.

    ``start`` is the first frame of each window; ``distance`` and ``floor`` are those of
    :class:`~dyngen.metrics.frechet.Frechet`.
    """

    start: Tensor
    distance: Tensor
    floor: Tensor


def window_kind(length: int, dynamic_textures: bool = False) -> str:
    """``FVD`` for 16 frames, ``FVD-32`` for 32; ``DTFVD`` with dynamic-texture features."""
    kind = "DTFVD" if dynamic_textures else "FVD"
    return kind if length == 16 else f"{kind}-{length}"


def cut_windows(films: Tensor, length: int, stride: int | None = None) -> Tensor:
    """All windows of a length: ``(B, T, ...) -> (B S, length, ...)``, film by film.

    Args:
        films: ``(B, T, ...)``.
        length: frames in a window.
        stride: frames from the start of one to that of the next; None: ``length``, so that no frame
            counts twice.

    Raises:
        ValueError: when the films are shorter than a window.
    """
    return torch.stack(
        [films[:, s : s + length] for s in _starts(films, length, stride)], 1
    ).flatten(0, 1)


class WindowFrechet(FrechetDistance):
    """Fréchet distance of windows (FVD, FVD-32, DTFVD, DTFVD-32), cut from films batch by batch.

    Args:
        extractor: windows ``(B, length, C, H, W)`` -> features, with a name; with
            ``dynamic_textures = True`` the score is called DTFVD.
        length: 16 or 32 in the literature.
        stride: as in :func:`cut_windows`.
        dimension: as in :class:`~dyngen.metrics.frechet.FrechetDistance`.
    """

    def __init__(
        self,
        extractor: Callable[[Tensor], Tensor],
        length: int = 16,
        stride: int | None = None,
        dimension: int | None = None,
        **kwargs: Any,
    ) -> None:
        kind = window_kind(length, bool(getattr(extractor, "dynamic_textures", False)))
        super().__init__(extractor, dimension, kind, **kwargs)
        self.length, self.stride = length, stride

    def update(self, films: Tensor, real: bool) -> None:
        """Add all windows of films ``(B, T, C, H, W)``.

        Raises:
            ValueError: when the films are shorter than a window.
        """
        super().update(cut_windows(films, self.length, self.stride), real)


def sliding_frechet(
    generated: Tensor,
    real: Tensor,
    *,
    length: int = 1,
    stride: int = 1,
    everywhere: bool = False,
    standardise: bool = False,
    name: str = "",
) -> Curve:
    """Fréchet distance in a window that slides along films, from features by time.

    Args:
        generated: ``(N, T, D)``: features of each frame or, with ``length=1``, of each window.
        real: ``(M, T', D)``.
        length: frames in a window, whose features are one sample each.
        stride: from one window to the next.
        everywhere: hold each window against the real films at all their times, as is right where
            the truth is stationary and few films are long; otherwise against the same window of the
            real films, which must be as long.
        standardise: measure features in standard deviations of all real ones.
        name: of the score, for warnings.

    Raises:
        ValueError: when shapes do not fit.
    """
    if generated.ndim != 3 or real.ndim != 3 or generated.shape[2] != real.shape[2]:
        raise ValueError(
            "features must be (films, times, D) with the same D, not "
            f"{tuple(generated.shape)} and {tuple(real.shape)}."
        )
    if not everywhere and generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"generated films have {generated.shape[1]} times and real ones {real.shape[1]}; cut "
            "them alike, or compare with all times of the real ones."
        )
    whole = moments(real.flatten(0, 1))
    scale = feature_scale(whole) if standardise else torch.ones_like(whole.mean)
    starts = _starts(generated, length, stride)
    found = []
    for start in starts:
        window = slice(start, start + length)
        ours = rescaled(moments(generated[:, window].flatten(0, 1)), scale)
        at_once = whole if everywhere else moments(real[:, window].flatten(0, 1))
        theirs = rescaled(at_once, scale)
        found.append(gaussian_distance(ours, theirs))
        if start == 0:  # the others have as many samples
            warn_of_few_samples(found[0], ours, theirs, name)
    return Curve(
        torch.tensor(starts),
        torch.stack([one.distance for one in found]),
        torch.stack([one.floor for one in found]),
    )


class SlidingFrechet(Metric):
    """Sliding-window FID or DTFVD as a curve along films, batch by batch.

    With ``frames=30`` and an extractor of frames it is the sliding-window FID; with an extractor of
    windows, ``window=16``, the sliding-window FVD or DTFVD. Features are kept, not frames.

    Args:
        extractor: of frames ``(B, C, H, W)``, or of windows ``(B, window, C, H, W)``.
        frames: frames that a window's distance is of; with an extractor of windows it is
            ``window``, and this is not used.
        window: length of the extractor's windows; None: it takes frames.
        stride: from one window to the next.
        everywhere: as in :func:`sliding_frechet`.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(
        self,
        extractor: Callable[[Tensor], Tensor],
        frames: int = SLIDING_FID_FRAMES,
        window: int | None = None,
        stride: int = 1,
        everywhere: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        textures = bool(getattr(extractor, "dynamic_textures", False))
        kind = f"FID-{frames}" if window is None else window_kind(window, textures)
        self.name = score_name(f"sliding-{kind}", extractor)
        self.extractor = extractor
        self.frames, self.window, self.stride = frames, window, stride
        self.everywhere = everywhere
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, films: Tensor, real: bool) -> None:
        """Add films ``(B, T, C, H, W)``, all of one length."""
        with torch.no_grad():
            if self.window is None:
                samples = films.flatten(0, 1)
            else:
                samples = cut_windows(films, self.window, self.stride)
            features = self.extractor(samples)
        (self.real if real else self.generated).append(
            features.reshape(len(films), -1, features.shape[1])
        )

    def compute(self) -> Curve:
        """The curve; ``start`` counts frames."""
        of_frames = self.window is None
        curve = sliding_frechet(
            dim_zero_cat(self.generated),
            dim_zero_cat(self.real),
            length=self.frames if of_frames else 1,
            stride=self.stride if of_frames else 1,
            everywhere=self.everywhere,
            standardise=bool(getattr(self.extractor, "standardise", False)),
            name=self.name,
        )
        return curve if of_frames else curve._replace(start=curve.start * self.stride)


def _starts(films: Tensor, length: int, stride: int | None) -> Sequence[int]:
    if length < 1 or films.shape[1] < length:
        raise ValueError(
            f"films of {films.shape[1]} frames hold no window of {length}; take longer films or "
            "shorter windows."
        )
    return range(0, films.shape[1] - length + 1, length if stride is None else stride)
