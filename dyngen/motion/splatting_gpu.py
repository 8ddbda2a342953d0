"""Softmax splatting on a GPU, compiled by Triton: the same gather as on the CPU.

Pixels are put in the order of the square between four places that they land in; a program then
writes a few places, each from the two runs of that order that reach it. Without a need of
determinism the order within a square is that of an atomic counter, which spares a sort. No values
are added by atomic operations.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

SUM, LINEAR, SOFTMAX = tl.constexpr(0), tl.constexpr(2), tl.constexpr(3)  # of `splatting.MODES`
PLACES, PIXELS, CHANNELS = 16, 8, 64  # that a program holds at a time


def forward(
    values: Tensor,
    flow: Tensor,
    importance: Tensor,
    mode: int,
    snap: float,
    reach: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What lands where; see :func:`dyngen.motion.splatting_cpu.forward`."""
    _, height, width, channels = values.shape
    covered, total, largest = (torch.empty_like(importance) for _ in range(3))
    landed = torch.empty_like(values), covered, total, largest
    with torch.cuda.device_of(values):
        order, start = _sorted(flow, snap, deterministic)
        _gather[(triton.cdiv(importance.numel(), PLACES),)](
            values,
            flow,
            importance,
            order,
            start,
            *landed,
            importance.numel(),
            height,
            width,
            channels,
            snap,
            mode,
            PLACES,
            _block(channels),
        )
    return landed


def backward(
    values: Tensor,
    flow: Tensor,
    importance: Tensor,
    landed: tuple[Tensor, Tensor, Tensor, Tensor],
    of_values: Tensor,
    of_coverage: Tensor,
    wanted: tuple[bool, bool],
    mode: int,
    snap: float,
    reach: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in values, flow and importance; see :mod:`dyngen.motion.splatting_cpu`."""
    _, height, width, channels = values.shape
    out, _, total, largest = landed
    common = torch.zeros_like(total)
    if mode != SUM.value and wanted[1]:
        common = torch.linalg.vecdot(of_values, out)
    derivatives = (torch.empty_like(values), torch.empty_like(flow), torch.empty_like(importance))
    with torch.cuda.device_of(values):
        _derive[(triton.cdiv(importance.numel(), PIXELS),)](
            values,
            flow,
            importance,
            total,
            largest,
            of_values,
            of_coverage,
            common,
            *derivatives,
            importance.numel(),
            height,
            width,
            channels,
            snap,
            reach,
            mode,
            *wanted,
            PIXELS,
            _block(channels),
        )
    return derivatives


def channels_last(images: Tensor) -> Tensor:
    """``(B, C, H, W)`` contiguous to ``(B, H, W, C)`` contiguous."""
    return images.permute(0, 2, 3, 1).contiguous()


def _block(channels: int) -> int:
    return min(CHANNELS, triton.next_power_of_2(channels))


def _sorted(flow: Tensor, snap: float, deterministic: bool) -> tuple[Tensor, Tensor]:
    """Pixels of all images in the order of their square, and where each square begins.

    The squares are numbered by image, row and column, from the row above and the column left of an
    image on; the last number is that of what leaves.

    Returns: int32 ``(B H W,)`` and ``(squares + 1,)``.
    """
    batch, _, height, width = flow.shape
    pixels, squares = batch * height * width, batch * (height + 1) * (width + 1)
    counts = torch.zeros(squares + 1, dtype=torch.int32, device=flow.device)
    square, rank = (torch.empty_like(counts[:1].expand(pixels)).contiguous() for _ in range(2))
    _count[(triton.cdiv(pixels, 256),)](
        flow, counts, square, rank, pixels, height, width, squares, snap, 256
    )
    start = torch.zeros(squares + 2, dtype=torch.int32, device=flow.device)
    torch.cumsum(counts, 0, out=start[1:])
    if deterministic:
        return torch.sort(square, stable=True).indices.int(), start
    order = torch.empty_like(square)
    place = start.index_select(0, square) + rank
    numbers = torch.arange(pixels, dtype=torch.int32, device=flow.device)
    return order.scatter_(0, place.long(), numbers), start


@triton.jit
def _place(pixel, shift, snap):  # type: ignore[no-untyped-def]
    """Where a pixel lands along an axis; what is very near a centre is at it."""
    place = pixel + shift
    nearest = tl.floor(place + snap)
    return tl.where(tl.abs(place - nearest) < snap, nearest, place)


@triton.jit
def _landing(flow, pixel, mask, height, width, snap):  # type: ignore[no-untyped-def]
    """Where pixels land, and whether any of the four places around is in their image."""
    image = pixel // (height * width)
    row, column = pixel // width % height, pixel % width
    at = (image * 2 * height + row) * width + column
    x = _place(column, tl.load(flow + at, mask, 0.0), snap)
    y = _place(row, tl.load(flow + at + height * width, mask, 0.0), snap)
    left, top = tl.floor(x), tl.floor(y)
    inside = mask & (left >= -1) & (left < width) & (top >= -1) & (top < height)
    return image, x, y, inside


@triton.jit
def _count(  # type: ignore[no-untyped-def]
    flow, counts, squares, ranks, pixels, height, width, outside, snap, BLOCK: tl.constexpr
):
    """The square of each pixel, how many have it, and the pixel's number among them."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    image, x, y, inside = _landing(flow, pixel, mask, height, width, snap)
    down = tl.where(inside, tl.floor(y), 0).to(tl.int64) + 1
    across = tl.where(inside, tl.floor(x), 0).to(tl.int64) + 1
    square = (image * (height + 1) + down) * (width + 1) + across
    square = tl.where(inside, square, outside)
    tl.store(squares + pixel, square.to(tl.int32), mask)
    tl.store(ranks + pixel, tl.atomic_add(counts + square, 1, mask), mask)


@triton.jit
def _run(start, square, side, width, valid):  # type: ignore[no-untyped-def]
    """Where in the order begins what lands above places (or below), and how much it is."""
    first = start + square + side * (width + 1)
    begin = tl.load(first, valid, 0)
    return begin, tl.load(first + 2, valid, 0) - begin


@triton.jit
def _reach(  # type: ignore[no-untyped-def]
    flow, importance, order, slot, row, column, mask, height, width, snap, mode: tl.constexpr
):
    """The pixels in slots of the order, their shares of places, and their importances."""
    pixel = tl.load(order + slot, mask, 0).to(tl.int64)
    _, x, y, _ = _landing(flow, pixel, mask, height, width, snap)
    share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
    share = tl.where(mask, share, 0.0)
    z = share
    if mode >= LINEAR:
        z = tl.load(importance + pixel, mask, 0.0)
    return pixel, share, z


@triton.jit
def _weight(share, z, highest, mode: tl.constexpr):  # type: ignore[no-untyped-def]
    weight = share
    if mode == LINEAR:
        weight = share * z
    if mode == SOFTMAX:
        weight = tl.where(share > 0, share * tl.exp(z - highest), 0.0)
    return weight


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    values,
    flow,
    importance,
    order,
    start,
    out,
    coverage,
    total,
    largest,
    places,
    height,
    width,
    channels,
    snap,
    mode: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Fill ``PLACES`` places: first the largest importance, then the weights, then the values."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    valid = place < places
    image, row, column = place // (height * width), place // width % height, place % width
    square = (image * (height + 1) + row) * (width + 1) + column
    covered = tl.zeros([PLACES], flow.dtype.element_ty)
    summed = tl.zeros([PLACES], flow.dtype.element_ty)
    highest = tl.full([PLACES], -float("inf"), flow.dtype.element_ty)
    for side in tl.static_range(2):
        begin, count = _run(start, square, side, width, valid)
        for k in range(tl.max(count, 0)):
            _, share, z = _reach(
                flow,
                importance,
                order,
                begin + k,
                row,
                column,
                k < count,
                height,
                width,
                snap,
                mode,
            )
            covered += share
            highest = tl.where(share > 0, tl.maximum(highest, z), highest)
    highest = tl.where(highest == -float("inf"), float("inf"), highest)
    for side in tl.static_range(2):
        begin, count = _run(start, square, side, width, valid)
        for k in range(tl.max(count, 0)):
            _, share, z = _reach(
                flow,
                importance,
                order,
                begin + k,
                row,
                column,
                k < count,
                height,
                width,
                snap,
                mode,
            )
            summed += _weight(share, z, highest, mode)
    summed = tl.where(summed == 0, 1.0, summed)
    if mode == SUM:
        summed = tl.full([PLACES], 1.0, flow.dtype.element_ty)
    tl.store(coverage + place, covered, valid)
    tl.store(total + place, summed, valid)
    tl.store(largest + place, highest, valid)
    for block in range(0, channels, CHANNELS):
        channel = block + tl.arange(0, CHANNELS)
        mixed = tl.zeros([PLACES, CHANNELS], values.dtype.element_ty)
        for side in tl.static_range(2):
            begin, count = _run(start, square, side, width, valid)
            for k in range(tl.max(count, 0)):
                pixel, share, z = _reach(
                    flow,
                    importance,
                    order,
                    begin + k,
                    row,
                    column,
                    k < count,
                    height,
                    width,
                    snap,
                    mode,
                )
                weight = _weight(share, z, highest, mode) / summed
                mask = (weight != 0)[:, None] & (channel < channels)[None, :]
                at = pixel[:, None] * channels + channel[None, :]
                mixed += weight[:, None] * tl.load(values + at, mask, 0.0)
        mask = valid[:, None] & (channel < channels)[None, :]
        tl.store(out + place[:, None] * channels + channel[None, :], mixed, mask)


@triton.jit
def _derive(  # type: ignore[no-untyped-def]
    values,
    flow,
    importance,
    total,
    largest,
    of_out,
    of_coverage,
    common,
    of_values,
    of_flow,
    of_importance,
    pixels,
    height,
    width,
    channels,
    snap,
    reach,
    mode: tl.constexpr,
    values_wanted: tl.constexpr,
    flow_wanted: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Fill the derivatives in ``PIXELS`` pixels, from the four places that each reaches."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    image, x, y, inside = _landing(flow, pixel, valid, height, width, snap)
    left, top = tl.floor(x), tl.floor(y)
    right, below = tl.arange(0, 4)[None, :] % 2, tl.arange(0, 4)[None, :] // 2
    column = tl.where(inside, left, 0).to(tl.int64)[:, None] + right
    row = tl.where(inside, top, 0).to(tl.int64)[:, None] + below
    there = (column >= 0) & (column < width) & (row >= 0) & (row < height) & inside[:, None]
    place = (image[:, None] * height + row) * width + column  # (PIXELS, 4)
    across, down = (x - left)[:, None], (y - top)[:, None]
    across = tl.where(there, tl.where(right == 1, across, 1 - across), 0.0)
    down = tl.where(there, tl.where(below == 1, down, 1 - down), 0.0)
    divided = tl.where(there, 1.0 / tl.load(total + place, there, 1.0), 0.0)
    factor = divided
    if mode >= LINEAR:
        z = tl.load(importance + pixel, valid, 0.0)[:, None]
        if mode == LINEAR:
            factor = divided * z
        else:
            exponent = z - tl.load(largest + place, there, float("inf"))
            factor = divided * tl.exp(tl.minimum(exponent, reach))
    inner = -tl.load(common + place, there, 0.0)
    for block in range(0, channels, CHANNELS):
        channel = block + tl.arange(0, CHANNELS)
        near = channel < channels
        at = place[:, :, None] * channels + channel[None, None, :]
        upstream = tl.load(of_out + at, there[:, :, None] & near[None, None, :], 0.0)
        at = pixel[:, None] * channels + channel[None, :]
        mask = valid[:, None] & near[None, :]
        if flow_wanted:
            value = tl.load(values + at, mask, 0.0)
            inner += tl.sum(upstream * value[:, None, :], 2)
        if values_wanted:
            weight = across * down * factor
            tl.store(of_values + at, tl.sum(upstream * weight[:, :, None], 1), mask)
    if flow_wanted:
        of_share = factor * inner + tl.load(of_coverage + place, there, 0.0)
        of_x = tl.sum(tl.where(right == 1, of_share, -of_share) * down, 1)
        of_y = tl.sum(tl.where(below == 1, of_share, -of_share) * across, 1)
        at = pixel + image * height * width  # of the two planes of the flow
        tl.store(of_flow + at, of_x, valid)
        tl.store(of_flow + at + height * width, of_y, valid)
        of_z = tl.zeros_like(of_x)
        if mode == LINEAR:
            of_z = tl.sum(across * down * inner * divided, 1)
        if mode == SOFTMAX:
            of_z = tl.sum(across * down * inner * factor, 1)
        tl.store(of_importance + pixel, of_z, valid)
