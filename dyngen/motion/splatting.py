"""Softmax splatting: forward warping with importance (Niklaus & Liu 2020, arXiv 2003.05534).

Every pixel p carries its values to p + flow(p) and shares them among the four pixels around that
place by the bilinear kernel b. Where several pixels land, the mode says how they are mixed:

- ``sum``: ``sum_p b v``;
- ``average``: ``sum_p b v / sum_p b``;
- ``linear``: ``sum_p b z v / sum_p b z``;
- ``softmax``: ``sum_p b exp(z) v / sum_p b exp(z)``.

A splat is a sparse matrix, four entries to a pixel, times a matrix of pixels by channels. The
entries are sorted by where they land, so that the product is a gather: it runs in parallel and in
a fixed order, and nothing larger than the result is written. On a GPU the entries are added with
atomic operations instead, unless a deterministic result is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

MODES = ("sum", "average", "linear", "softmax")
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
    or in float64 where an argument is. ``softmax`` takes the largest importance at each place from
    the exponent, so that neither its range nor a constant added to it matters.

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
        missing for the others, or if shapes, dtypes or devices do not fit.
    """
    _check(values, flow, importance, mode)
    *batch, height, width = (*values.shape[:-3], *values.shape[-2:])
    images = math.prod(batch)
    dtype = _arithmetic(values, flow, importance)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    links, share = _land(
        flow.reshape(images, 2, height, width).to(dtype),
        in_order=deterministic or values.device.type == "cpu",
    )

    ones = share.new_ones(links.sources, 1)
    coverage = _mix(ones, share, links)
    weight = share
    if importance is not None:
        weight = weight * _relative_importance(importance.to(dtype).reshape(-1), share, links, mode)
    if mode != "sum":
        total = coverage if importance is None else _mix(ones, weight, links)
        total = total[:, 0].index_select(0, links.target)
        weight = weight / torch.where(total == 0, 1.0, total)
    mixed = _mix(_pixels_first(values, images).to(dtype), weight, links)

    def as_image(landed: Tensor) -> Tensor:  # (targets, c) -> (..., c, H, W)
        image = landed.view(images, *_canvas(height, width), landed.shape[1])[:, :height, :width]
        return image.permute(0, 3, 1, 2).reshape(*batch, landed.shape[1], height, width)

    return Splat(as_image(mixed.to(values.dtype)), as_image(coverage.to(flow.dtype)))


def motion_importance(displacement: Tensor) -> Tensor:
    """Mean over time of the length of a motion, ``(B, T, 2, H, W)`` in pixels to ``(B, 1, H, W)``.

    As importance it lets what moves hide what does not (Li et al. 2024, arXiv 2309.07906, section
    5): the background seldom moves more than what is in front of it.
    """
    return torch.linalg.vector_norm(displacement, dim=2).mean(1, keepdim=True)


@dataclass(frozen=True)
class _Links:
    """The places of the entries of a sparse matrix of targets by sources.

    Attributes:
        source, target: ``(E,)`` integers, the column and row of each entry.
        sources, targets: how many columns and rows there are.
        offsets: ``(targets + 1,)``, where the entries of each row begin, if they are sorted by row;
            None if they are not.
    """

    source: Tensor
    target: Tensor
    sources: int
    targets: int
    offsets: Tensor | None = None


class _Mix(torch.autograd.Function):
    """``out[t] = sum over the entries e of row t of weight[e] * rows[source[e]]``.

    Its derivatives are made of itself, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, links: _Links) -> Tensor:
        """``(sources, C)`` and ``(E,)`` to ``(targets, C)``."""
        ctx.save_for_backward(rows, weight)
        ctx.links = links
        if links.offsets is not None and rows.numel():  # a matrix without columns is refused
            return functional.embedding_bag(
                links.source,
                rows,
                links.offsets,
                mode="sum",
                per_sample_weights=weight,
                include_last_offset=True,
            )
        mixed = rows.new_zeros(links.targets, rows.shape[1])
        for source, target, part in zip(*_in_parts(links, weight), strict=True):
            mixed.index_add_(0, target, rows.index_select(0, source) * part[:, None])
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        links = ctx.links
        gradient = gradients[0].contiguous()
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            transposed, order = _transpose(links)
            of_rows = _mix(
                gradient, weight if order is None else weight.index_select(0, order), transposed
            )
        if ctx.needs_input_grad[1]:
            dots = [
                (gradient.index_select(0, target) * rows.index_select(0, source)).sum(1)
                for source, target, _ in zip(*_in_parts(links, weight), strict=True)
            ]
            of_weight = torch.cat(dots)
        return of_rows, of_weight, None


def _mix(rows: Tensor, weight: Tensor, links: _Links) -> Tensor:
    return cast(Tensor, _Mix.apply(rows, weight, links))


def _in_parts(links: _Links, weight: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Sources, targets and weights in parts, so that what is made of each stays in the cache."""
    size = max(1, len(weight) if weight.device.type != "cpu" else 4096)
    return links.source.split(size), links.target.split(size), weight.split(size)


def _sort(links: _Links) -> tuple[_Links, Tensor]:
    """The entries sorted by target, and the order ``(E,)`` that sorts them."""
    target, order = torch.sort(links.target, stable=True)
    offsets = torch.zeros(links.targets + 1, dtype=torch.int64, device=target.device)
    offsets.scatter_add_(0, target.long() + 1, torch.ones_like(target, dtype=torch.int64))
    offsets = offsets.cumsum(0).to(target.dtype)
    source = links.source.index_select(0, order)
    return _Links(source, target, links.sources, links.targets, offsets), order


def _transpose(links: _Links) -> tuple[_Links, Tensor | None]:
    """The transposed matrix, sorted if this one is, and the order ``(E,)`` of its entries."""
    transposed = _Links(links.target, links.source, links.targets, links.sources)
    return (transposed, None) if links.offsets is None else _sort(transposed)


def _land(flow: Tensor, in_order: bool) -> tuple[_Links, Tensor]:
    """The entries of the splat of a flow ``(B, 2, H, W)``, and each one's share b ``(4BHW,)``.

    The targets are pixels of a canvas of at least 2 by 2 pixels.
    """
    batch, _, height, width = flow.shape
    rows, columns = _canvas(height, width)
    pixels = batch * height * width
    integer = torch.int64 if 4 * batch * rows * columns >= 2**31 else torch.int32
    left, across = _shares(flow[:, 0] + torch.arange(width, device=flow.device), width)
    top, down = _shares(flow[:, 1] + torch.arange(height, device=flow.device)[:, None], height)
    share = (down[:, None] * across[None]).view(-1)  # (2, 2, B, H, W) flat

    image = torch.arange(batch, device=flow.device, dtype=integer) * (rows * columns)
    corner = image[:, None, None] + top.to(integer) * columns + left.to(integer)
    steps = torch.tensor([0, 1, columns, columns + 1], device=flow.device, dtype=integer)
    target = (steps[:, None] + corner.view(1, -1)).view(-1)
    source = torch.arange(pixels, device=flow.device, dtype=integer).repeat(4)
    links = _Links(source, target, pixels, batch * rows * columns)
    if not in_order:
        return links, share
    links, order = _sort(links)
    return links, share.index_select(0, order)


def _canvas(height: int, width: int) -> tuple[int, int]:
    return max(height, 2), max(width, 2)


def _shares(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Between which two pixels of a row a position lies, and the share of each.

    Args:
        position: ``(B, H, W)``, pixel 0 at 0.
        size: the pixels of the row.

    Returns: the first of the two pixels ``(B, H, W)``, floating, at most ``size - 2`` unless that
        is negative; and the shares ``(2, B, H, W)``, which fall to 0 within a pixel of the ends.
    """
    position = torch.nan_to_num(position, nan=-2.0).clamp(-2, size + 1)
    fixed = position.detach()
    nearest = fixed.round()
    position = position + torch.where((nearest - fixed).abs() < SNAP, nearest - fixed, 0.0)
    first = position.detach().floor().clamp(0, max(size - 2, 0))
    beyond = position - first  # between 0 and 1, unless it is at the ends
    near = torch.where(beyond < 0, 1 + beyond, 1 - beyond)
    far = torch.where(beyond > 1, 2 - beyond, beyond)
    return first, torch.stack([near, far]).clamp(min=0)


def _relative_importance(importance: Tensor, share: Tensor, links: _Links, mode: str) -> Tensor:
    """z, or exp(z - the largest z at the same target), of every entry: ``(E,)``.

    Args:
        importance: ``(sources,)``.
        share: ``(E,)``, b; an entry without share has no say in which z is largest.
    """
    importance = importance.index_select(0, links.source)
    if mode == "linear":
        return importance
    with torch.no_grad():
        landed = importance.masked_fill(share == 0, -torch.inf)
        if links.offsets is not None:
            largest = torch.segment_reduce(landed, "max", offsets=links.offsets)
        else:
            largest = landed.new_full((links.targets,), -torch.inf)
            largest.scatter_reduce_(0, links.target.long(), landed, "amax")
        largest = largest.clamp(min=torch.finfo(largest.dtype).min).index_select(0, links.target)
    return torch.exp((importance - largest).clamp(max=REACH))


def _pixels_first(values: Tensor, images: int) -> Tensor:
    """``(..., C, H, W)`` as rows ``(pixels of all images, C)``, contiguous."""
    channels, height, width = values.shape[-3:]
    last = values.movedim(-3, -1)
    if last.is_contiguous():
        return last.reshape(images * height * width, channels)
    return cast(Tensor, _Transpose.apply(values.reshape(images, channels, height * width)))


class _Transpose(torch.autograd.Function):
    """``(images, C, pixels)`` to ``(images pixels, C)`` contiguous, several times as fast as torch.

    Torch transposes one matrix fast and many slowly, so it is given one at a time.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        count, channels, pixels = images.shape
        ctx.shape = (count, pixels, channels)
        rows = images.new_empty(count, pixels, channels)
        for matrix, image in zip(rows, images, strict=True):
            matrix.copy_(image.t())
        return rows.view(count * pixels, channels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].view(ctx.shape).transpose(1, 2)


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
