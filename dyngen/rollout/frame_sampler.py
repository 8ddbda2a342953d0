"""The next frame from the last ones: a diffusion sampler made into one step of a rollout.

A frame sampler is called as ``sampler(history, noise, **conditioning)`` with ``history``
(B, k, C, H, W), normalised, and gives the next n frames (B, n, C, H, W) and figures about them.
`GuidedFrameSampler` is the method of Hess et al. 2025 (arXiv 2505.09089): an unconditional image
model, made conditional by a discriminator's logit. `ConditionalFrameSampler` is what it is compared
with: a denoiser that is given the history itself, of one frame or of a block of frames.

Sampling starts at a finite noise level sigma_max, where the law of the next frame given the history
is ``N(m, sigma_max^2 + s^2)`` with m its mean and s its spread. A start from noise alone leaves m
out, and a deterministic sampler then ends short of m by ``s / sigma_max``: less than a hundredth,
but at each frame, which in a long rollout of a slow process takes away a tenth of the variance.
Where the history counts at the first noise level the start is therefore an estimate of m plus
noise: that of the guided denoiser, for the last frame with noise. The error that remains is
``(m - last) (s / sigma_max)^3``, so that sigma_max need be no more than a few s: far fewer noise
levels than from where images begin. A discriminator that has a forecast of the next frame may give
m itself, which spares that estimate. A block starts likewise from the last frame n times over; its
m and s are those of all n frames together.

What counts is the spread of every pattern, not only that of a cell. Noise of sigma_max is white,
and a pattern whose amplitude n cells have in common has up to n times the variance of one of them:
of its variance s^2 the start leaves ``s^2 / (1 + s^2 / sigma_max^2)``. On a globe, where weather is
alike over hundreds of cells, sigma_max is ten and more for a spread of cells below one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dyngen.diffusion.cycle_spinning import Shift, described, spun
from dyngen.diffusion.guidance import discriminator_guidance, guide
from dyngen.diffusion.particles import sample_with_particles
from dyngen.diffusion.samplers import SAMPLERS, check_sigmas
from dyngen.rollout.randomness import FrameNoise

Diagnostics = dict[str, Tensor]  # each (B,)

CLOSED_FORMS = ("value_and_gradient", "gradient")  # of a logit; see dyngen.diffusion.guidance


class FrameSampler(Protocol):
    """What a rollout asks of a model.

    Attributes:
        history_length: k, the frames that it is given.
        block_length: n, the frames that one call gives.
        diagnostic_names: which of its diagnostics are worth storing with the frames.
    """

    history_length: int
    block_length: int
    diagnostic_names: tuple[str, ...]

    def __call__(
        self, history: Tensor, noise: FrameNoise, **conditioning: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        """The next frames (B, n, C, H, W), given (B, k, C, H, W), and diagnostics (B,) each."""
        ...

    def description(self) -> dict[str, Any]:
        """The settings that decide its numbers, to refuse continuing a rollout with others."""
        ...


class GuidedFrameSampler:
    """An image model guided by a time-consistency discriminator, by gradient, particles or both.

    ==========  ==========  =========================================
    scale       particles   what happens
    ==========  ==========  =========================================
    0           1           none: the image model alone
    above 0     1           the logit's gradient steers the sampler
    0           above 1     particles are weighed by the logit
    above 0     above 1     steered particles, weighed to correct it
    ==========  ==========  =========================================

    Args:
        denoiser: ``(x, sigma, **conditioning) -> denoised``, the unconditional image model.
        logit: ``(x, sigma, history, **conditioning) -> (B,)``; None samples unguided. One that has
            a method ``value_and_gradient`` of the same arguments is asked for its own gradient, and
            one with ``gradient(x, sigma, denoised, history, **conditioning)`` for no more than it.
        sigmas: (steps + 1,) noise levels, descending and ending in 0.
        history_length: k, the frames that the logit sees.
        expectation: ``(history, **conditioning) -> mapping``, what the logit's network makes of the
            history, or None. It is computed once for each frame, and handed to the logit by its
            names; ``forecast`` (B, C, H, W) among them is what sampling may start from.
        start: estimate or forecast: what the start from the history is an estimate of m by; see the
            top of this file.
        sampler: a name in `SAMPLERS`; by default heun, and ddim at eta = 1 with particles, which
            need random kernels and so take ddim or ddpm only.
        options: further arguments of the sampler, such as churn or eta.
        scale: w of the gradient; 1 is the principled value.
        interval: noise levels at which the gradient acts.
        particles: P per member.
        threshold: a member's particles are resampled when fewer than threshold * P are effective.
        clip: largest absolute value of a denoised estimate, normalised, or None; not with
            particles.
        autocast: a lower precision (torch.bfloat16) for the networks, or None.
        shifts: of frames, along y and x, that the expectation is the mean over (see `spun`).

    Raises:
        ValueError: for an unknown sampler, one without noise for particles, particles without a
            logit, or noise levels that are not a grid.
    """

    block_length = 1

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        logit: Callable[..., Tensor] | None,
        sigmas: Tensor,
        *,
        history_length: int,
        expectation: Callable[..., Mapping[str, Tensor]] | None = None,
        start: Literal["estimate", "forecast"] = "estimate",
        sampler: str | None = None,
        options: Mapping[str, Any] | None = None,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, math.inf),
        particles: int = 1,
        threshold: float = 0.5,
        clip: float | None = None,
        autocast: torch.dtype | None = None,
        shifts: Sequence[Shift] = ((0, 0),),
    ) -> None:
        check_sigmas(sigmas)
        if history_length < 1 or particles < 1:
            raise ValueError(
                f"history_length = {history_length} and particles = {particles} must be at least 1."
            )
        if particles > 1 and logit is None:
            raise ValueError(
                f"particles = {particles} are weighed by a discriminator and there is none: give "
                "one, or set particles to 1."
            )
        self.denoiser = denoiser
        self.logit = logit
        self.sigmas = sigmas
        self.history_length = history_length
        self.expectation = expectation
        self.start = start
        self.sampler, self.options = _choose_sampler(sampler, options or {}, particles)
        self.scale = scale if logit is not None else 0.0
        self.interval = interval
        self.particles = particles
        self.threshold = threshold
        self.clip = clip
        self.autocast = autocast
        self.shifts = list(shifts)
        self.diagnostic_names: tuple[str, ...] = (
            ("effective_sample_size", "smallest_effective_sample_size") if particles > 1 else ()
        )

    @torch.no_grad()
    def __call__(
        self, history: Tensor, noise: FrameNoise, **conditioning: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        """The next frame.

        Args:
            history: (B, k, C, H, W) normalised, oldest first.
            noise: random numbers of this step, one row per row of the batch.
            conditioning: handed to the denoiser and the logit, each tensor (B, ...).

        Returns:
            frames (B, 1, C, H, W) like the history, and figures (B,): evaluations of the denoiser
            and of the logit per frame, and with particles the effective sample size, its mean and
            its minimum over noise levels.

        Raises:
            ValueError: if the history is not (B, history_length, C, H, W).
        """
        _check_history(history, self.history_length)
        rows, copies = len(history), self.particles
        seen = self._seen(history, conditioning)
        if copies > 1:
            history = history.repeat_interleave(copies, 0)
            conditioning = {k: v.repeat_interleave(copies, 0) for k, v in conditioning.items()}
            seen = {k: v.repeat_interleave(copies, 0) for k, v in seen.items()}
        last = history[:, -1]
        denoiser = _Counted(partial(self.denoiser, **conditioning))
        logit = _Counted(_given(self.logit or _no_logit, history=history, **seen))
        figures: Diagnostics = {}
        with _autocast(self.autocast, last.device):
            if copies > 1:
                frames, sizes = sample_with_particles(
                    denoiser,
                    logit,
                    self.sigmas[0].item() * noise(last),
                    self.sigmas,
                    particles=copies,
                    threshold=self.threshold,
                    eta=self.options["eta"],
                    scale=self.scale,
                    interval=self.interval,
                    noise=noise,
                    uniform=noise.uniform,
                )
                figures["effective_sample_size"] = sizes.mean(0)
                figures["smallest_effective_sample_size"] = sizes.amin(0)
            else:
                guided = guide(denoiser, [discriminator_guidance(logit, self.scale, self.interval)])
                guided = _clipped(guided, self.clip)
                if self.starts_from_history and self.start == "forecast":
                    x = _expected(seen) + self.sigmas[0].item() * noise(last)
                elif self.starts_from_history:
                    x = _near(guided, last, self.sigmas[0], noise)
                else:
                    x = self.sigmas[0].item() * noise(last)
                sampler = SAMPLERS[self.sampler]
                frames = sampler(guided, x, self.sigmas, noise=noise, **self.options)
        for name, function in (("denoiser", denoiser), ("logit", logit)):
            calls = float(function.calls * copies)
            figures[f"{name}_evaluations"] = torch.full((rows,), calls, device=last.device)
        return frames.to(history.dtype)[:, None], figures

    def _seen(self, history: Tensor, conditioning: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the logit is given besides frame and history, the same at all noise levels."""
        if self.expectation is None or (self.scale == 0 and self.particles == 1):
            return conditioning
        with _autocast(self.autocast, history.device):
            expectation = spun(self.expectation, self.shifts)
            return {**conditioning, **expectation(history, **conditioning)}

    @property
    def starts_from_history(self) -> bool:
        """Whether the start is an estimate from the history plus noise; see the top of this file.

        Not with particles: their first weights are those of a start from noise alone.
        """
        acts = self.interval[0] <= self.sigmas[0].item() <= self.interval[1]
        return self.scale != 0 and acts and self.particles == 1

    def description(self) -> dict[str, Any]:
        """Settings that decide the frames, besides the weights of the networks."""
        return {
            "sampler": self.sampler,
            **dict(self.options),
            "guided": self.logit is not None,
            "scale": self.scale,
            "interval": list(self.interval),
            "particles": self.particles,
            "threshold": self.threshold,
            "start": self.start if self.starts_from_history else "noise",
            "sigmas": self.sigmas.tolist(),
            "history_length": self.history_length,
            "clip": self.clip,
            "precision": str(self.autocast or "full"),
            **described(self.shifts),
        }


class ConditionalFrameSampler:
    """A denoiser that is given the history, as a frame sampler.

    With an overlap each call keeps the first ``frames - overlap`` of the frames that it denoised,
    and the next call samples the others anew: frames are then never far from their history, for
    ``frames / (frames - overlap)`` times the cost. The law of a rollout of exact parts is the same.

    Args:
        denoiser: ``(x, sigma, history=..., **conditioning) -> denoised``, history (B, k, C, H, W);
            x is (B, C, H, W) where frames is 1, and (B, frames, C, H, W) where it is more.
        sigmas: (steps + 1,) noise levels, descending and ending in 0.
        history_length: k.
        frames: how many the denoiser makes at a time.
        overlap: how many of them the next call makes anew.
        sampler: a name in `SAMPLERS`.
        options: further arguments of the sampler.
        clip: largest absolute value of a denoised estimate, normalised, or None.
        autocast: a lower precision for the network, or None.
        shifts: of frames, along y and x, that each estimate is the mean over (see `spun`).

    Raises:
        ValueError: for an unknown sampler, noise levels that are not a grid, or an overlap that
            leaves no frame.
    """

    diagnostic_names: tuple[str, ...] = ()

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        sigmas: Tensor,
        *,
        history_length: int,
        frames: int = 1,
        overlap: int = 0,
        sampler: str = "heun",
        options: Mapping[str, Any] | None = None,
        clip: float | None = None,
        autocast: torch.dtype | None = None,
        shifts: Sequence[Shift] = ((0, 0),),
    ) -> None:
        check_sigmas(sigmas)
        if not 0 <= overlap < frames:
            raise ValueError(
                f"overlap = {overlap} must lie between 0 and {frames - 1}: of the {frames} frames "
                "that are denoised together at least one is kept."
            )
        self.denoiser = denoiser
        self.sigmas = sigmas
        self.history_length = history_length
        self.frames = frames
        self.block_length = frames - overlap
        self.sampler, self.options = _choose_sampler(sampler, options or {}, particles=1)
        self.clip = clip
        self.autocast = autocast
        self.shifts = list(shifts)

    @torch.no_grad()
    def __call__(
        self, history: Tensor, noise: FrameNoise, **conditioning: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        """The next frames.

        Args:
            history: (B, k, C, H, W) normalised, oldest first.
            noise: random numbers of this step, one row per row of the batch.
            conditioning: handed to the denoiser, each tensor (B, ...).

        Returns:
            frames (B, block_length, C, H, W) like the history, and the evaluations (B,) of the
            denoiser that each call took.

        Raises:
            ValueError: if the history is not (B, history_length, C, H, W).
        """
        _check_history(history, self.history_length)
        denoiser = _Counted(self.denoiser)
        known = partial(spun(denoiser, self.shifts), history=history, **conditioning)
        clipped = _clipped(known, self.clip)
        last = history[:, -1]
        if self.frames > 1:
            last = last[:, None].expand(-1, self.frames, -1, -1, -1)
        with _autocast(self.autocast, history.device):
            x = _near(clipped, last, self.sigmas[0], noise)
            block = SAMPLERS[self.sampler](clipped, x, self.sigmas, noise=noise, **self.options)
        calls = torch.full((len(x),), float(denoiser.calls), device=x.device)
        block = block.to(history.dtype).reshape(len(x), self.frames, *history.shape[2:])
        return block[:, : self.block_length], {"denoiser_evaluations": calls}

    def description(self) -> dict[str, Any]:
        """Settings that decide the frames, besides the weights of the network."""
        return {
            "sampler": self.sampler,
            **dict(self.options),
            "conditional": True,
            "start": "estimate",
            "sigmas": self.sigmas.tolist(),
            "history_length": self.history_length,
            "frames": self.frames,
            "overlap": self.frames - self.block_length,
            "clip": self.clip,
            "precision": str(self.autocast or "full"),
            **described(self.shifts),
        }


def _near(
    denoiser: Callable[..., Tensor], last: Tensor, sigma: Tensor, noise: FrameNoise
) -> Tensor:
    """The denoiser's estimate of what follows with fresh noise, at noise level sigma.

    Args:
        last: what is taken for it before anything is known: the last frame, or n times that.
    """
    level = sigma.to(last)
    estimate: Tensor = denoiser(last + level * noise(last), level)
    return estimate + level * noise(last)


def _expected(seen: Mapping[str, Tensor]) -> Tensor:
    """The forecast among what the logit is given."""
    if "forecast" not in seen:
        raise ValueError(
            "start: forecast needs a discriminator with a forecast, such as ForecastEnergy; leave "
            "it at estimate."
        )
    return seen["forecast"]


def _clipped(denoiser: Callable[..., Tensor], bound: float | None) -> Callable[..., Tensor]:
    """A denoiser whose estimates stay within the bound (Saharia et al. 2022, arXiv 2205.11487)."""
    if bound is None:
        return denoiser
    return lambda x, sigma: denoiser(x, sigma).clamp(-bound, bound)


class _Counted:
    """A function that counts its calls; closed forms of its gradient stay reachable."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0
        for name in CLOSED_FORMS:
            if hasattr(function, name):
                setattr(self, name, partial(self._call, getattr(function, name)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self.function, *args, **kwargs)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return function(*args, **kwargs)


def _no_logit(x: Tensor, sigma: Tensor, history: Tensor, **conditioning: Tensor) -> Tensor:
    """What an unguided sampler has for a logit; at scale 0 it is not evaluated."""
    return x.new_zeros(len(x))


def _given(logit: Callable[..., Any], **known: Any) -> Callable[..., Any]:
    """The logit as a function of (x, sigma), and closed forms of its gradient if it has any."""
    bound = partial(logit, **known)
    for name in CLOSED_FORMS:
        if hasattr(logit, name):
            setattr(bound, name, partial(getattr(logit, name), **known))
    return bound


def _choose_sampler(
    name: str | None, options: Mapping[str, Any], particles: int
) -> tuple[str, dict[str, Any]]:
    name = name or ("heun" if particles == 1 else "ddim")
    if name not in SAMPLERS:
        raise ValueError(f"Unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    if particles == 1:
        return name, dict(options)
    eta = dict(options).pop("eta", 1.0)
    if name not in {"ddim", "ddpm"} or eta <= 0 or set(options) - {"eta"}:
        raise ValueError(
            f"Particles need a random sampler: choose ddim with eta above 0, or ddpm, not {name} "
            f"with {dict(options)}."
        )
    return "ddim", {"eta": eta}


def _check_history(history: Tensor, length: int) -> None:
    if history.ndim != 5 or history.shape[1] != length:
        raise ValueError(
            f"the history has shape {tuple(history.shape)}; this sampler takes (B, {length}, C, H, "
            "W)."
        )


def _autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
