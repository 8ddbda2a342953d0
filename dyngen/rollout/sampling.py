"""How frames are sampled, as settings, and the frame sampler that a trained model makes of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dyngen.diffusion.cycle_spinning import check_shifts
from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.precision import computes_bf16, tell_of_single_precision
from dyngen.rollout.calibration import CalibratedFrameSampler, read_calibration
from dyngen.rollout.frame_sampler import ConditionalFrameSampler, FrameSampler, GuidedFrameSampler

GUIDED_SIGMA_MAX, SIGMA_MAX = 4.0, 40.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sampling:
    """Settings of a frame sampler.

    Args:
        sampler: heun, ddim, ddpm or dpm_solver_pp_2m; by default dpm_solver_pp_2m, and ddim with
            particles, which need a random sampler.
        steps: Noise levels visited per frame.
        sigma_min: The smallest noise level.
        sigma_max: The largest noise level, where sampling starts; by default 4 with guidance, as
            it starts from the guided estimate of the next frame, and 40 without, in units of the
            data's standard deviation.
        rho: Curvature of the noise levels between (Karras et al. 2022, equation 5).
        start: What a guided frame starts from, with noise of sigma_max: the guided estimate of the
            last frame, or the discriminator's own forecast (`ForecastEnergy`), which spares one
            evaluation. A model trained without `history_offset` then lets the mean of a run of
            hundreds of frames wander.
        scale: Guidance scale w; 1 is the principled value, 0 samples the image model alone.
        interval: Noise levels at which the discriminator's gradient acts.
        particles: Particles per member, weighed by the discriminator; 1 is none.
        threshold: Resample a member's particles when fewer than this fraction are effective.
        overlap: Frames at the end of each block that the next block samples anew; only models that
            denoise blocks of several frames have any.
        clip: Largest absolute value of a denoised estimate, in standard deviations of the data; a
            little above what occurs. It keeps a rare excursion from feeding on itself.
        options: Further arguments of the sampler, such as `churn` for heun or `eta` for ddim.
        shifts: Shifts of frames, in cells along y and x, to average over what the networks say of
            the history: the guided forecast, once for each frame, or each estimate of a model that
            is given the history. A U-Net that folds patches says another thing of a frame that is
            moved by less than a patch; along periodic axes [[0, 0], [1, 1]] makes up for most of it
            (cycle spinning; see `dyngen.diffusion.cycle_spinning`).
        precision: Of the networks: full, or bf16 where the device has it.
        calibration: File of `dyngen calibrate`, a quantile map that each frame goes through before
            it becomes history (see `dyngen.rollout.calibration`); by default none.

    Raises:
        ValueError: For noise levels that are not positive and ascending, or no steps.
    """

    sampler: str | None = None
    steps: int = 10
    sigma_min: float = 0.02
    sigma_max: float | None = None
    rho: float = 7.0
    start: Literal["estimate", "forecast"] = "estimate"
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    particles: int = 1
    threshold: float = 0.5
    overlap: int = 0
    clip: float | None = None
    options: dict[str, float] = field(default_factory=dict)
    shifts: list[list[int]] = field(default_factory=lambda: [[0, 0]])
    precision: Literal["full", "bf16"] = "full"
    calibration: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.sigma_min < (self.sigma_max or GUIDED_SIGMA_MAX):
            raise ValueError(
                f"steps = {self.steps}, sigma_min = {self.sigma_min} and sigma_max = "
                f"{self.sigma_max} are no noise levels: give at least one step and "
                "0 < sigma_min < sigma_max."
            )


def frame_sampler(model: Any, sampling: Sampling, device: torch.device = CPU) -> FrameSampler:
    """The frame sampler of a trained model, calibrated if the settings say so.

    Args:
        model: Anything with a `denoiser`. With a `logit` and a `history_length` it is guided by
            that logit, which is handed what the model's `expectation`, if it has one, makes of the
            history, or by its `logit_gradient` where no more is needed; with a `history_length`
            alone its denoiser is given the history, and makes `block_length` frames at a time, or
            one where there is no such attribute; without both, frames follow from nothing: an
            image model alone.
        sampling: The settings.
        device: Where frames are to be sampled: on a CPU that has no bf16 its networks are computed
            in full precision.

    Raises:
        ValueError: For settings that this model cannot sample with, or a calibration of other ones.
    """
    sampler = _uncalibrated(model, sampling, device)
    if sampling.calibration is None:
        return sampler
    made = read_calibration(sampling.calibration)
    made.check(weights_digest(model), sampler.description())
    return CalibratedFrameSampler(sampler, made)


def _uncalibrated(model: Any, sampling: Sampling, device: torch.device) -> FrameSampler:
    """The frame sampler of a trained model; see `frame_sampler`."""
    precision = torch.bfloat16 if sampling.precision == "bf16" else None
    if precision is not None and not computes_bf16(device):
        tell_of_single_precision()
        precision = None
    shifts = check_shifts(sampling.shifts, model)
    name = sampling.sampler or ("dpm_solver_pp_2m" if sampling.particles == 1 else None)
    logit = getattr(model, "logit", None)
    history = getattr(model, "history_length", None)
    guided = logit is not None and sampling.scale > 0
    sigma_max = sampling.sigma_max or (GUIDED_SIGMA_MAX if guided else SIGMA_MAX)
    sigmas = edm_sigmas(sampling.steps, sampling.sigma_min, sigma_max, sampling.rho)
    if logit is None and history is not None:
        if sampling.particles > 1 or sampling.scale not in (0, 1):
            raise ValueError(
                f"A {type(model).__name__} is given the history itself: scale {sampling.scale} and "
                f"particles {sampling.particles} do not apply, leave them at 1."
            )
        return ConditionalFrameSampler(
            _denoiser_of(model),
            sigmas,
            history_length=history,
            frames=getattr(model, "block_length", 1),
            overlap=sampling.overlap,
            sampler=name or "ddim",
            options=sampling.options,
            clip=sampling.clip,
            autocast=precision,
            shifts=shifts,
        )
    if sampling.overlap:
        raise ValueError(
            f"A {type(model).__name__} makes one frame at a time, which cannot overlap: leave "
            f"overlap at 0, not {sampling.overlap}."
        )
    return GuidedFrameSampler(
        _denoiser_of(model),
        _logit_of(model),
        sigmas,
        history_length=history or 1,
        expectation=getattr(model, "expectation", None),
        start=sampling.start,
        sampler=name,
        options=sampling.options,
        scale=sampling.scale,
        interval=sampling.interval,
        particles=sampling.particles,
        threshold=sampling.threshold,
        clip=sampling.clip,
        autocast=precision,
        shifts=shifts,
    )


def _denoiser_of(model: Any) -> Callable[..., Tensor]:
    """The model's denoiser; one whose network takes no context is not handed any."""
    denoiser: Callable[..., Tensor] = model.denoiser
    if getattr(getattr(denoiser, "network", None), "context_channels", 0):
        return denoiser

    def without_context(x: Tensor, sigma: Tensor, **conditioning: Tensor) -> Tensor:
        conditioning.pop("context", None)
        return denoiser(x, sigma, **conditioning)

    return without_context


def _logit_of(model: Any) -> Callable[..., Tensor] | None:
    """The model's logit, with its gradient beside it where the model knows that by itself."""
    logit: Callable[..., Tensor] | None = getattr(model, "logit", None)
    if logit is None or not hasattr(model, "logit_gradient"):
        return logit
    known = partial(logit)  # which can be given an attribute, as a method cannot
    known.gradient = model.logit_gradient  # type: ignore[attr-defined]
    return known


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, to refuse continuing a rollout with others."""
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
