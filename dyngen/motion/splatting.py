"""Softmax splatting: forward warping with importance (Niklaus & Liu 2020, arXiv 2003.05534).

Every pixel p carries its values to p + flow(p) and shares them among the four pixels around that
place by the bilinear kernel b. Where several pixels land, the mode says how they are mixed:

- ``sum``: ``sum_p b v``;
- ``average``: ``sum_p b v / sum_p b``;
- ``linear``: ``sum_p b z v / sum_p b z``;
- ``softmax``: ``sum_p b exp(z) v / sum_p b exp(z)``.

Kernels for the CPU are compiled by numba (the extra ``fast``) and for CUDA by Triton. Where that is
not installed, and for derivatives of derivatives, the formulas are taken in torch.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MODES = ("sum", "average", "linear", "softmax")
KERNELS = {"cpu": "dyngen.motion.splatting_cpu", "cuda": "dyngen.motion.splatting_gpu"}
REACH = 30.0  # of the exponent of what touches a place with no weight, whose derivative counts
SNAP = 2.0**-20  # nearer than this to a pixel's centre is at it: no holes filled by rounding errors


class Splat(NamedTuple):
    """What has landed where.

    Attributes:
        values: ``(..., C, H, W)`` like the values splatted; 0 where nothing has landed.
        coverage: ``(..., 1, H, W)``, ``sum_p b``: 0 is a hole, 1 what a translation gives, and
            more where pixels overlap. It has the dtype of the flow.
    """

    values: Tensor
    coverage: Tensor


def splat(
    values: Tensor,
    flow: Tensor,
    importance: Tensor | None = None,
    mode: str = "softmax",
    *,
    deterministic: bool | None = None,
) -> Splat:
    """Carry values along a flow, mixing what overlaps by importance.

    Differentiable, twice if need be, in values, flow and importance. The arithmetic is in float32,
    or in float64 where an argument is. ``softmax`` takes a largest importance from the exponent, at
    each place if need be, so that neither its range nor a constant added to it matters.

    Args:
        values: ``(..., C, H, W)``, of any floating dtype. Memory in the channels-last format needs
            no copy; the result is in that format.
        flow: ``(..., 2, H, W)``, displacement in pixels along x and y. What leaves the image is
            lost; a pixel whose flow is infinite or NaN lands nowhere.
        importance: ``(..., 1, H, W)``, z above; for ``linear`` it must not be negative.
        mode: ``sum``, ``average``, ``linear`` or ``softmax``.
        deterministic: whether results on a GPU must be the same, bit by bit, from run to run; on
            the CPU they always are. None asks ``torch.are_deterministic_algorithms_enabled()``.

    Raises: ValueError if the mode is unknown, if importance is given for ``sum`` or ``average`` or
        missing for the others, if shapes, dtypes or devices do not fit, or if a result cannot be
        made deterministic.
    """
    _check(values, flow, importance, mode)
    *batch, _, height, width = values.shape
    images = math.prod(batch)
    dtype = _arithmetic(values, flow, importance)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    tensors = [
        x.reshape(images, x.shape[-3], height, width).to(dtype)
        for x in (values, flow, importance)
        if x is not None
    ]
    kernels = _kernels(values.device.type) if values.numel() else None
    if kernels is not None:
        landed, coverage = _Splat.apply(mode, deterministic, kernels, *tensors)
    else:
        _check_determinism(values, deterministic)
        landed, coverage = _formulas(mode, *tensors)
    return Splat(
        landed.reshape(values.shape).to(values.dtype),
        coverage.reshape(*batch, 1, height, width).to(flow.dtype),
    )


def motion_importance(displacement: Tensor) -> Tensor:
    """Mean over time of the length of a motion, ``(B, T, 2, H, W)`` in pixels to ``(B, 1, H, W)``.

    As importance it lets what moves hide what does not (Li et al. 2024, arXiv 2309.07906, section
    5): the background seldom moves more than what is in front of it.
    """
    total = displacement.new_zeros(displacement[:, 0, 0].shape)
    for frame in displacement.unbind(1):  # one at a time, which stays in the cache
        square = frame[:, 0].square() + frame[:, 1].square()
        moves = square > 0  # elsewhere the root has no derivative
        total = total + torch.where(moves, torch.where(moves, square, 1.0).sqrt(), 0.0)
    return (total / displacement.shape[1])[:, None]


class _Splat(torch.autograd.Function):
    """A splat by compiled kernels, of ``(B, C, H, W)``, ``(B, 2, H, W)`` and ``(B, 1, H, W)``."""

    @staticmethod
    def forward(
        ctx: Any, mode: str, deterministic: bool, kernels: ModuleType, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values like those given, in the channels-last format, and coverage ``(B, 1, H, W)``."""
        ctx.settings = (MODES.index(mode), SNAP, REACH)
        ctx.mode, ctx.kernels = mode, kernels
        landed = kernels.forward(
            *_arrays(kernels, *tensors), *ctx.settings, deterministic=deterministic
        )
        values = landed[0].permute(0, 3, 1, 2)
        ctx.save_for_backward(*tensors, values, *landed[1:])
        return values, landed[1][:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, values, coverage, total, largest = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # they are to be differentiated again
            leaves = [x for x, need in zip(tensors, needed, strict=True) if need]
            results = _formulas(ctx.mode, *tensors)
            derived = iter(
                torch.autograd.grad(
                    results, leaves, gradients, create_graph=True, allow_unused=True
                )
            )
            return None, None, None, *(next(derived) if need else None for need in needed)
        of_values, of_flow, of_importance = ctx.kernels.backward(
            *_arrays(ctx.kernels, *tensors),
            (values.permute(0, 2, 3, 1), coverage, total, largest),
            _pixels_first(gradients[0], ctx.kernels),
            gradients[1][:, 0].contiguous(),
            (needed[0], any(needed[1:])),
            *ctx.settings,
        )
        derivatives = (of_values.permute(0, 3, 1, 2), of_flow, of_importance[:, None])
        return (
            None,
            None,
            None,
            *(x if need else None for x, need in zip(derivatives, needed, strict=False)),
        )


def _arrays(
    kernels: ModuleType, values: Tensor, flow: Tensor, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels take them; an importance that is not read is left undefined."""
    if importance is None:
        importance = torch.empty_like(flow[:, :1])
    return _pixels_first(values, kernels), flow.contiguous(), importance[:, 0].contiguous()


def _pixels_first(values: Tensor, kernels: ModuleType) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H, W, C)``, contiguous."""
    last = values.permute(0, 2, 3, 1)
    if last.is_contiguous() or not values.is_contiguous():
        return last.contiguous()
    return cast(Tensor, kernels.channels_last(values))


@functools.cache
def _kernels(device: str) -> ModuleType | None:
    """The kernels for a kind of device; None if there are none, or nothing to compile them."""
    if device not in KERNELS:
        return None
    try:
        return importlib.import_module(KERNELS[device])
    except ImportError as error:
        log.info("splatting on %s goes a slower way (%s); see the extra 'fast'", device, error)
        return None


def _formulas(
    mode: str, values: Tensor, flow: Tensor, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as :class:`_Splat`, by operations of torch, each of which has its derivative."""
    batch, channels, height, width = values.shape
    places = batch * height * width
    target, share = _land(flow)

    def add(entries: Tensor) -> Tensor:  # (4, pixels, c) -> (places, c)
        empty = entries.new_zeros(places + 1, entries.shape[2])
        return empty.index_add(0, target, entries.flatten(0, 1))[:-1]

    def at_target(landed: Tensor) -> Tensor:  # (places,) -> (4, pixels)
        return torch.cat([landed, landed.new_ones(1)]).index_select(0, target).view_as(share)

    coverage = add(share[..., None])
    weight, total = share, coverage
    if importance is not None:
        z = importance.reshape(-1).expand_as(share)
        if mode == "softmax":
            with torch.no_grad():
                landed = z.clamp(min=torch.finfo(z.dtype).min).masked_fill(share == 0, -torch.inf)
                largest = z.new_full((places + 1,), -torch.inf)
                largest.scatter_reduce_(0, target, landed.flatten(), "amax")
                largest.masked_fill_(largest == -torch.inf, torch.inf)  # a hole is not filled
            z = torch.exp((z - at_target(largest[:-1])).clamp(max=REACH))
        weight = share * z
        total = add(weight[..., None])
    if mode != "sum":
        weight = weight / at_target(torch.where(total == 0, 1.0, total)[:, 0])
    rows = values.permute(0, 2, 3, 1).reshape(places, channels)
    mixed = add(weight[..., None] * rows)

    def as_image(landed: Tensor) -> Tensor:  # (places, c) -> (B, c, H, W)
        return landed.view(batch, height, width, landed.shape[1]).permute(0, 3, 1, 2)

    return as_image(mixed), as_image(coverage)


def _land(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixels of ``(B, 2, H, W)`` land, and the share b of each of the four places.

    Returns: ``(4 B H W,)``, the number of a place, B H W for one outside; and ``(4, B H W)``.
    """
    batch, _, height, width = flow.shape
    image = torch.arange(batch, device=flow.device)[:, None, None] * (height * width)
    columns = _between(flow[:, 0] + torch.arange(width, device=flow.device), width)
    rows = _between(flow[:, 1] + torch.arange(height, device=flow.device)[:, None], height)
    targets, shares = [], []
    for row, down in rows:
        for column, across in columns:
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = image + row.long() * width + column.long()
            targets.append(torch.where(inside, place, batch * height * width).view(-1))
            shares.append((down * across).reshape(-1))
    return torch.cat(targets), torch.stack(shares)


def _between(position: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two pixels of a row, of ``size``, that a position lies between, and the share of each."""
    position = torch.nan_to_num(position, nan=-2.0).clamp(-2, size + 1)
    fixed = position.detach()
    nearest = fixed.round()
    position = position + torch.where((nearest - fixed).abs() < SNAP, nearest - fixed, 0.0)
    first = position.detach().floor()
    return (first, 1 - (position - first)), (first + 1, position - first)


def _arithmetic(*tensors: Tensor | None) -> torch.dtype:
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


def _check(values: Tensor, flow: Tensor, importance: Tensor | None, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}.")
    if (importance is not None) != (mode in ("linear", "softmax")):
        wants = "needs an importance" if importance is None else "takes no importance"
        raise ValueError(f"mode {mode!r} {wants}; give it with 'linear' and 'softmax' alone.")
    if values.ndim < 3:
        raise ValueError(f"values must be (..., C, H, W), not of shape {tuple(values.shape)}.")
    *batch, _, height, width = values.shape
    for name, tensor, channels in (("flow", flow, 2), ("importance", importance, 1)):
        if tensor is not None and tuple(tensor.shape) != (*batch, channels, height, width):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; for values of shape "
                f"{tuple(values.shape)} it must be {(*batch, channels, height, width)}."
            )
    for name, tensor in (("values", values), ("flow", flow), ("importance", importance)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating, not {tensor.dtype}; convert it first.")
        if tensor is not None and tensor.device != values.device:
            raise ValueError(
                f"{name} is on {tensor.device} and values on {values.device}; move one of them."
            )


def _check_determinism(values: Tensor, deterministic: bool) -> None:
    if not deterministic or values.device.type == "cpu":
        return
    if not torch.are_deterministic_algorithms_enabled():
        raise ValueError(
            f"Without kernels for {values.device} splatting is deterministic only if all of torch "
            "is: install triton, or call torch.use_deterministic_algorithms(True)."
        )
