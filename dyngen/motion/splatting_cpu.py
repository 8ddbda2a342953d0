"""Softmax splatting on the CPU, compiled by numba: a gather over the places where pixels land.

Pixels are sorted by the square between four places that they land in (a counting sort), so that
what reaches a place lies in two runs of that order. Each place is then written once, its channels
one after another, and nothing is added up by two threads: the result is the same, bit by bit,
whatever their number. A thread takes a strip of the rows of all images.

Indices are unsigned where much depends on it: numba would look whether others are negative.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numba import njit
from torch import Tensor

SUM, _, LINEAR, SOFTMAX = range(4)  # the order of `splatting.MODES`


def forward(
    values: Tensor,
    flow: Tensor,
    importance: Tensor,
    mode: int,
    snap: float,
    reach: float,
    deterministic: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What lands where; all tensors are contiguous and have one dtype, float32 or float64.

    Args:
        values: ``(B, H, W, C)``.
        flow: ``(B, 2, H, W)``.
        importance: ``(B, H, W)``, read in the modes that have one.
        mode: its place in ``splatting.MODES``.
        snap, reach: as in ``splatting``.
        deterministic: it always is.

    Returns: values ``(B, H, W, C)``; and ``(B, H, W)`` each: coverage, the total weight that the
        values were divided by, and the importance that was taken from the exponent.
    """
    covered, total, largest = (torch.empty_like(importance) for _ in range(3))
    landed = torch.empty_like(values), covered, total, largest
    _in_strips(_gather, (values, flow, importance, *landed), mode, snap, reach)
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
    """Derivatives in values, flow and importance, like each.

    Args:
        values, flow, importance, landed, mode, snap, reach: what :func:`forward` took and gave.
        of_values, of_coverage: derivatives in the first two of its results, contiguous.
        wanted: whether that in the values is wanted, and whether those in flow and importance are;
            others are left undefined.
    """
    out, _, total, largest = landed
    derivatives = tuple(torch.empty_like(x) for x in (values, flow, importance))
    common = torch.zeros_like(total)
    if mode != SUM and wanted[1]:
        _in_strips(_dot, (of_values, out, common))
    tensors = (values, flow, importance, total, largest, of_values, of_coverage, common)
    _in_strips(_derive, (*tensors, *derivatives), *wanted, mode, snap, reach)
    return cast(tuple[Tensor, Tensor, Tensor], derivatives)


def channels_last(images: Tensor) -> Tensor:
    """``(B, C, H, W)`` contiguous to ``(B, H, W, C)`` contiguous."""
    batch, channels, height, width = images.shape
    result = images.new_empty(batch, height, width, channels)
    _in_strips(_transpose, (result, images))
    return result


def _in_strips(kernel: Callable[..., None], tensors: tuple[Tensor, ...], *settings: Any) -> None:
    """Call ``kernel(first, last, *tensors, *settings)`` on strips of the rows of all images."""
    rows = tensors[0].shape[0] * tensors[0].shape[1]
    count = max(1, min(torch.get_num_threads(), rows))
    edges = [rows * strip // count for strip in range(count + 1)]
    dtype = tensors[0].detach().numpy().dtype.type
    numbers = [dtype(x) if isinstance(x, float) else x for x in settings]
    arguments = [*(x.detach().numpy() for x in tensors), *numbers]
    strips = iter(list(itertools.pairwise(edges)))  # each thread takes the next
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for strip in strips:
                kernel(*strip, *arguments)
        except BaseException as error:  # such as no memory; a thread would keep it to itself
            failures.append(error)

    _in_threads(run, count)
    if failures:
        raise failures[0]


def _in_threads(run: Callable[[], None], count: int) -> None:
    """Call ``run()`` on up to ``count`` threads at once, this one among them.

    On those of torch where they are of OpenMP: they wait for their next work for some milliseconds
    without sleeping, and others that were started beside them would get half of a core each.
    Elsewhere, and in a fork, which OpenMP's threads do not survive, on threads that live as long
    as the call.
    """
    if count == 1:
        run()
    elif _parallel is not None and os.getpid() == _PROCESS:
        _parallel(_CALLED(lambda _: run()), None, count, 0)
    else:
        threads = [threading.Thread(target=run) for _ in range(count - 1)]
        for thread in threads:
            thread.start()
        run()
        for thread in threads:
            thread.join()


_CALLED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _find_parallel() -> Callable[..., None] | None:
    """The entry to OpenMP that torch was linked with, under the name that GNU and LLVM give it."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    parallel.argtypes = _CALLED, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    parallel.restype = None
    return cast(Callable[..., None], parallel)


_parallel, _PROCESS = _find_parallel(), os.getpid()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on the first call and kept on disk; sums may be reordered, NaN is respected."""
    flags = {"contract", "reassoc", "nsz"}
    decorate = njit(nogil=True, cache=True, fastmath=flags, error_model="numpy")
    return cast(Callable[..., Any], decorate(function))


@_compiled
def _place(pixel, shift, snap):  # type: ignore[no-untyped-def]
    """Where a pixel lands along an axis; what is very near a centre is at it."""
    place = pixel + shift
    nearest = np.floor(place + snap)
    return nearest if abs(place - nearest) < snap else place


@_compiled
def _sort(flow, top, bottom, snap, start, source, x, y):  # type: ignore[no-untyped-def]
    """Sort by square the pixels of an image that reach the rows ``top`` to ``bottom - 1``.

    The squares between four places are numbered row by row, from the row above ``top`` and the
    column left of the image on.

    Args:
        flow: ``(2, H, W)``.
        start: ``(squares + 1,)``, filled with where each square begins in the following.
        source, x, y: ``(H W,)``, filled with pixels and where they land.
    """
    _, height, width = flow.shape
    real = flow.dtype.type
    square = np.empty((height, width), np.int32)
    start[:] = 0
    for row in range(height):
        for column in range(width):
            across = np.floor(_place(real(column), flow[0, row, column], snap))
            down = np.floor(_place(real(row), flow[1, row, column], snap))
            number = -1
            if across >= -1 and across < width and top - 1 <= down and down < bottom:
                number = (int(down) - top + 1) * (width + 1) + int(across) + 1
                start[number + 1] += 1
            square[row, column] = number
    before = 0
    for number in range(1, len(start)):  # start[n + 1] becomes where the next of n goes
        before, start[number] = before + start[number], before
    for row in range(height):
        for column in range(width):
            number = square[row, column]
            if number >= 0:
                slot = start[number + 1]
                start[number + 1] = slot + 1
                source[slot] = row * width + column
                x[slot] = _place(real(column), flow[0, row, column], snap)
                y[slot] = _place(real(row), flow[1, row, column], snap)


@_compiled
def _gather(  # type: ignore[no-untyped-def]
    first, last, values, flow, importance, out, coverage, total, largest, mode, snap, reach
):
    """Fill the rows ``first`` to ``last - 1`` of all images; see :func:`forward`."""
    _, height, width, channels = values.shape
    real, pixels = flow.dtype.type, height * width
    zero, one = real(0), real(1)
    source = np.empty(pixels, np.uint32)
    x, y = np.empty(pixels, flow.dtype), np.empty(pixels, flow.dtype)
    factor = np.empty(pixels, flow.dtype)
    end = np.empty(width + 1, np.int64)  # of what reaches a place of a row, in the following
    near = np.empty(2 * pixels + 3 * width, np.uint32)
    weight = np.empty(2 * pixels + 3 * width, flow.dtype)
    for image in range(first // height, (last + height - 1) // height):
        top, bottom = max(0, first - image * height), min(height, last - image * height)
        start = np.empty((bottom - top + 1) * (width + 1) + 1, np.int32)
        _sort(flow[image], top, bottom, snap, start, source, x, y)
        z = importance[image].reshape(pixels)
        highest, one_highest = zero, True
        if mode == SOFTMAX:
            highest = z.max()
            one_highest = highest - z.min() <= reach  # false where one is infinite or NaN
        for slot in range(start[-1]):
            factor[slot] = one
            if mode == LINEAR:
                factor[slot] = z[source[slot]]
            elif mode == SOFTMAX and one_highest:
                factor[slot] = np.exp(z[source[slot]] - highest)
        carried = values[image].reshape(pixels, channels)
        for row in range(top, bottom):
            end[0] = 0
            for column in range(width):
                begin = end[column]
                last_of, covered, summed = begin, zero, zero
                for side in range(2):  # what lands above the place, and what lands below
                    square = (row - top + side) * (width + 1) + column
                    end_of_run = np.uint64(start[np.uint64(square + 2)])
                    for slot in range(np.uint64(start[np.uint64(square)]), end_of_run):
                        share = one - abs(x[slot] - real(column))
                        share *= one - abs(y[slot] - real(row))
                        if share > zero:
                            near[last_of], weight[last_of] = source[slot], share * factor[slot]
                            covered += share
                            summed += weight[last_of]
                            last_of += 1
                if not one_highest:
                    highest, summed = _weigh_apart(weight, z, near, begin, last_of)
                if mode == SUM or summed == zero:
                    summed = one
                for k in range(begin, last_of):
                    weight[k] /= summed
                while (last_of - begin) % 4:
                    near[last_of], weight[last_of] = near[begin], zero
                    last_of += 1
                end[column + 1] = last_of
                coverage[image, row, column] = covered
                total[image, row, column] = summed
                largest[image, row, column] = highest
            _add(out[image, row], end, near, weight, carried)


@_compiled
def _add(out, end, source, weight, values):  # type: ignore[no-untyped-def]
    """``out[t] = sum over k < end[t + 1] of weight[k] values[source[k]]`` from ``end[t]`` on.

    Four terms at a time.
    """
    columns, channels = out.shape
    for column in range(columns):
        t = np.uint64(column)
        if end[t] == end[t + np.uint64(1)]:
            for c in range(channels):
                out[t, c] = 0
        for k in range(end[t], end[t + np.uint64(1)], 4):
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            p0, p1 = np.uint64(source[k]), np.uint64(source[k + 1])
            p2, p3 = np.uint64(source[k + 2]), np.uint64(source[k + 3])
            if k == end[t]:
                for c in range(channels):
                    out[t, c] = (w0 * values[p0, c] + w1 * values[p1, c]) + (
                        w2 * values[p2, c] + w3 * values[p3, c]
                    )
            else:
                for c in range(channels):
                    out[t, c] += (w0 * values[p0, c] + w1 * values[p1, c]) + (
                        w2 * values[p2, c] + w3 * values[p3, c]
                    )


@_compiled
def _weigh_apart(weight, z, near, first, last):  # type: ignore[no-untyped-def]
    """Multiply by exponentials of importances too far apart for one maximum to serve them all.

    Returns: the largest, infinite where nothing lands; and the sum.
    """
    highest, summed = z.dtype.type(np.finfo(z.dtype).min), z.dtype.type(0)
    if first == last:
        highest = z.dtype.type(np.inf)
    for k in range(first, last):
        highest = max(highest, z[near[k]])
    for k in range(first, last):
        weight[k] *= np.exp(z[near[k]] - highest)
        summed += weight[k]
    return highest, summed


@_compiled
def _derive(  # type: ignore[no-untyped-def]
    first,
    last,
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
    values_wanted,
    flow_wanted,
    mode,
    snap,
    reach,
):
    """Fill the derivatives in the pixels of the rows ``first`` to ``last - 1`` of all images.

    With ``common`` the product of each place's result and its derivative, see :func:`backward`.
    """
    _, height, width, _ = values.shape
    real = flow.dtype.type
    zero, one = real(0), real(1)
    for line in range(first, last):
        image, row = line // height, line % height
        for column in range(width):
            value, of_value = values[image, row, column], of_values[image, row, column]
            z = importance[image, row, column]
            x = _place(real(column), flow[image, 0, row, column], snap)
            y = _place(real(row), flow[image, 1, row, column], snap)
            left, top = np.floor(x), np.floor(y)
            of_x, of_y, of_z = zero, zero, zero
            if values_wanted:
                of_value[:] = 0
            inside = left >= -1 and left < width and top >= -1 and top < height
            for corner in range(4 if inside else 0):
                right, below = corner % 2, corner // 2
                to_row, to_column = int(top) + below, int(left) + right
                if to_row < 0 or to_column < 0 or to_row >= height or to_column >= width:
                    continue
                across, down = x - left, y - top
                across, down = across if right else one - across, down if below else one - down
                divided = one / total[image, to_row, to_column]
                factor = divided
                if mode == LINEAR:
                    factor *= z
                elif mode == SOFTMAX:
                    factor *= np.exp(min(z - largest[image, to_row, to_column], reach))
                upstream = of_out[image, to_row, to_column]
                weight = across * down * factor
                if values_wanted and weight != zero:
                    for c in range(len(value)):
                        of_value[c] += weight * upstream[c]
                if flow_wanted:
                    inner = -common[image, to_row, to_column]
                    for c in range(len(value)):
                        inner += upstream[c] * value[c]
                    of_share = factor * inner + of_coverage[image, to_row, to_column]
                    of_x += down * (of_share if right else -of_share)
                    of_y += across * (of_share if below else -of_share)
                    of_z += across * down * inner * (divided if mode == LINEAR else factor)
            of_flow[image, 0, row, column] = of_x
            of_flow[image, 1, row, column] = of_y
            of_importance[image, row, column] = of_z


@_compiled
def _dot(first, last, left, right, result):  # type: ignore[no-untyped-def]
    """Scalar products over the channels, in the rows ``first`` to ``last - 1`` of all images."""
    _, height, width, channels = left.shape
    for line in range(first, last):
        image, row = line // height, line % height
        for column in range(width):
            a, b = left[image, row, column], right[image, row, column]
            total = left.dtype.type(0)
            for c in range(channels):
                total += a[c] * b[c]
            result[image, row, column] = total


@_compiled
def _transpose(first, last, result, images):  # type: ignore[no-untyped-def]
    """``(B, C, H, W)`` to ``(B, H, W, C)``, a line of the cache at a time."""
    _, height, width, channels = result.shape
    for line in range(first, last):
        image, row = line // height, line % height
        source = images[image].reshape(channels, height * width)
        target = result[image].reshape(height * width, channels)
        end = (row + 1) * width
        for block in range(row * width, end, 16):
            for c in range(channels):
                for pixel in range(block, min(block + 16, end)):
                    target[np.uint64(pixel), np.uint64(c)] = source[np.uint64(c), np.uint64(pixel)]
