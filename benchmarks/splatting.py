"""Images per second of softmax splatting, at 256x160 with 64 channels on two threads.

Beside it, on the same values, flow and importance:

- the peer: for each of the four corners one `scatter_add_` of the weighted values, as splatting is
  written where no kernel was written for it;
- the limit: the values copied, one read and one write, to new memory, as a result always is. For
  eight images, and at times for one, the system takes longer to find its pages than to fill them.

Values lie in memory channels last, as the library's result does, or channels first, when they are
transposed on the way. Each is run in turn several times, the first time unrecorded; the medians are
given. With gradients, a forward and a backward pass, the limit is three copies: values, result and
its derivative are read, the values a second time, and the result and one derivative are written.
Where there is a CUDA device the same is measured there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dyngen.motion.splatting import splat

WIDTH, HEIGHT, CHANNELS = 256, 160, 64
THREADS = 2
REPEATS = 15
LAST, FIRST = torch.channels_last, torch.contiguous_format


def run() -> list[dict[str, Any]]:
    """Measure single images and batches, both layouts, and training; one entry for each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    devices = {"": "cpu"} | ({" on a GPU": "cuda"} if torch.cuda.is_available() else {})
    try:
        return [
            _measure(f"splatting, {name}{where}", batch, layout, gradients, device)
            for where, device in devices.items()
            for name, batch, layout, gradients in (
                ("one image", 1, LAST, False),
                ("one image, channels first", 1, FIRST, False),
                ("batch of 8", 8, LAST, False),
                ("batch of 8, channels first", 8, FIRST, False),
                ("one image, with gradients", 1, LAST, True),
            )
        ]
    finally:
        torch.set_num_threads(threads)


def naive(values: Tensor, flow: Tensor, importance: Tensor) -> Tensor:
    """Softmax splatting by four scatters: (B, C, H, W), (B, 2, H, W), (B, 1, H, W) to (B, C, H, W).

    The importance is taken from its largest value in the batch.
    """
    batch, channels, height, width = values.shape
    x = flow[:, 0] + torch.arange(width, device=flow.device)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    weight = torch.exp(importance - importance.max())
    weighted = torch.cat([values * weight, weight], 1).flatten(2)
    result = torch.zeros_like(weighted)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = torch.where(inside, share, 0.0).flatten(1)[:, None]
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = place.long().flatten(1)[:, None].expand(-1, channels + 1, -1)
            result = result.scatter_add(2, index, weighted * share)
    result = result.view(batch, channels + 1, height, width)
    return result[:, :-1] / result[:, -1:].clamp(min=1e-7)


def scene(batch: int, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Values, a smooth flow of some six pixels, and an importance."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=generator)
    coarse = torch.randn(batch, 3, 5, 8, generator=generator)
    smooth = functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic", align_corners=True)
    return values.to(memory_format=layout), 6 * smooth[:, :2].contiguous(), smooth[:, 2:]


def _measure(
    name: str, batch: int, layout: torch.memory_format, gradients: bool, device: str
) -> dict[str, Any]:
    values, flow, importance = (x.to(device) for x in scene(batch, layout))
    ours = splat(values, flow, importance)
    expected = naive(values, flow, importance)
    # They differ where next to nothing lands, which the naive way divides by its 1e-7.
    filled = (ours.coverage > 1e-3).expand_as(expected)
    torch.testing.assert_close(ours.values[filled], expected[filled], atol=1e-3, rtol=1e-3)
    leaves = [x.clone().requires_grad_(gradients) for x in (values, flow, importance)]

    def run_once(operator: Callable[..., Tensor]) -> None:
        result = operator(*leaves)
        if gradients:
            torch.autograd.grad(result.sum(), leaves)

    tasks: dict[str, Callable[[], Any]] = {
        "ours": lambda: run_once(lambda *x: splat(*x).values),
        "peer": lambda: run_once(naive),
    }
    copies = 3 if gradients else 1
    tasks["limit"] = lambda: [values.clone() for _ in range(copies)]
    rates = {task: [batch / s for s in seconds] for task, seconds in _in_turn(tasks).items()}
    median = {task: statistics.median(values) for task, values in rates.items()}
    return {
        "name": name,
        "ours": median["ours"],
        "peer": median["peer"],
        "peer_name": "one scatter_add_ per corner",
        "limit": median["limit"],
        "unit": "images/s",
        "ratio_to_peer": median["ours"] / median["peer"],
        "ratio_to_limit": median["ours"] / median["limit"],
        "spread": (max(rates["ours"]) - min(rates["ours"])) / median["ours"],
    }


def _in_turn(tasks: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each task, run in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(REPEATS + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    for entry in run():
        print(entry)
