"""Splatting against loops over pixels, finite differences, and what is known without computing.

By each of its ways: compiled by numba, in torch's operations, and by Triton, whose kernels run
where there is a GPU, or slowly by Triton's interpreter with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dyngen.motion import splatting
from dyngen.motion.splatting import MODES, motion_importance, splat

WEIGHTED = ("linear", "softmax")


USUAL = splatting._kernels
WAYS: dict[str, object] = {"torch": None}
if importlib.util.find_spec("numba"):
    WAYS["numba"] = importlib.import_module("dyngen.motion.splatting_cpu")
if importlib.util.find_spec("triton") and os.environ.get("TRITON_INTERPRET") == "1":
    WAYS["triton"] = importlib.import_module("dyngen.motion.splatting_gpu")


@pytest.fixture(autouse=True, scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test goes every way that can be gone here with tensors on the CPU."""
    kernels = WAYS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splatting, "_kernels", lambda d: kernels if d == "cpu" else USUAL(d))
        yield request.param


def loops(
    values: Tensor, flow: Tensor, importance: Tensor | None, mode: str
) -> tuple[Tensor, Tensor]:
    """The formulas read aloud: every pixel to every place, for one image (C, H, W) in float64."""
    _, height, width = values.shape
    result, coverage = torch.zeros_like(values), torch.zeros_like(values[:1])
    total = torch.zeros_like(values[:1])
    for y, x in itertools.product(range(height), range(width)):
        z = 0.0 if importance is None else importance[0, y, x].item()
        factor = {"linear": z, "softmax": math.exp(z)}.get(mode, 1.0)
        to_x, to_y = x + flow[0, y, x].item(), y + flow[1, y, x].item()
        for row, column in itertools.product(range(height), range(width)):
            b = max(0.0, 1 - abs(to_x - column)) * max(0.0, 1 - abs(to_y - row))
            coverage[:, row, column] += b
            total[:, row, column] += b * factor
            result[:, row, column] += b * factor * values[:, y, x]
    if mode != "sum":
        result = torch.where(total > 0, result / total.clamp(min=1e-300), 0.0)
    return result, coverage


def scene(
    batch: int = 2, channels: int = 3, height: int = 5, width: int = 6, spread: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, flows of which a good part leaves the image, and importances."""
    generator = torch.Generator().manual_seed(3)
    size = (height, width)
    return (
        torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64),
        torch.randn(batch, 2, *size, generator=generator, dtype=torch.float64) * spread,
        torch.rand(batch, 1, *size, generator=generator, dtype=torch.float64) * 3,
    )


def importance_for(mode: str, importance: Tensor) -> Tensor | None:
    return importance if mode in WEIGHTED else None


@pytest.mark.parametrize("size", [(5, 6), (1, 7), (4, 1), (1, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_splatting_is_the_sum_over_pixels(mode: str, size: tuple[int, int]) -> None:
    values, flow, z = scene(height=size[0], width=size[1])
    result = splat(values, flow, importance_for(mode, z), mode)
    for i in range(2):
        expected, coverage = loops(values[i], flow[i], importance_for(mode, z[i]), mode)
        torch.testing.assert_close(result.values[i], expected)
        torch.testing.assert_close(result.coverage[i], coverage)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("apart", [1.0, 1e3])
def test_every_way_gives_the_same(
    mode: str, apart: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and derivatives, of importances near each other and far apart."""
    if way == "torch":
        pytest.skip("the one that the others are compared with")
    values, flow, z = (x.requires_grad_() for x in scene(channels=70, height=9, width=20))
    given_z = importance_for(mode, apart * z)
    inputs = [x for x in (values, flow, z if mode in WEIGHTED else None) if x is not None]

    def all_of_it() -> list[Tensor]:
        result = splat(values, flow, given_z, mode)
        total = result.values.square().sum() + result.coverage.square().sum()
        return [*result, *torch.autograd.grad(total, inputs, retain_graph=True)]

    ours = all_of_it()
    monkeypatch.setattr(splatting, "_kernels", lambda device: None)
    for of_ours, expected in zip(ours, all_of_it(), strict=True):
        torch.testing.assert_close(of_ours, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    values, flow, z = (x.float() for x in scene(batch=2, height=7, spread=4))
    expected = splat(values, flow, z)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(splat(values, flow, z).values, expected.values)
    finally:
        torch.set_num_threads(before)


def test_a_failure_in_any_thread_is_told(way: str) -> None:
    if way != "numba":
        pytest.skip("the one with threads")
    from dyngen.motion import splatting_cpu

    def broken(first: int, last: int, *arguments: object) -> None:
        if last == 6:
            raise MemoryError("no memory")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(MemoryError, match="no memory"):
            splatting_cpu._in_strips(broken, (torch.zeros(2, 3, 4),))
    finally:
        torch.set_num_threads(before)


def test_without_openmp_and_in_a_fork_it_has_threads_of_its_own(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "numba":
        pytest.skip("the one with threads")
    from dyngen.motion import splatting_cpu

    values, flow, z = (x.float() for x in scene(batch=2, height=7, spread=4))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = splat(values, flow, z).values
        child = os.fork()
        if child == 0:  # where OpenMP's threads are gone, and whoever waits for them waits for ever
            same = False
            try:
                signal.alarm(60)
                same = torch.equal(splat(values, flow, z).values, expected)
            finally:
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        monkeypatch.setattr(splatting_cpu, "_parallel", None)
        assert torch.equal(splat(values, flow, z).values, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", MODES)
def test_derivatives_are_those_of_finite_differences(mode: str) -> None:
    values, flow, z = scene(batch=1, channels=2, height=3, width=4, spread=0.8)
    z = z + 0.5
    inputs = [x.requires_grad_() for x in (values, flow, *([z] if mode in WEIGHTED else []))]
    assert torch.autograd.gradcheck(lambda *x: tuple(splat(*x, mode=mode)), inputs)


@pytest.mark.parametrize("mode", ["sum", "softmax"])
def test_derivatives_can_be_differentiated(mode: str) -> None:
    values, flow, z = scene(batch=1, channels=1, height=2, width=3, spread=0.4)
    inputs = [x.requires_grad_() for x in (values, flow, *([z] if mode in WEIGHTED else []))]
    # The sum of coverage and values squared, so that no derivative is constant.
    assert torch.autograd.gradgradcheck(
        lambda *x: splat(*x, mode=mode).values.square().sum(), inputs
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by", [(0, 0), (2, -1), (-5, 3), (9, 0)])
def test_translation_by_whole_pixels_moves_every_bit(mode: str, by: tuple[int, int]) -> None:
    values, _, z = (x.float() for x in scene(height=6, width=7))
    flow = torch.tensor(by, dtype=torch.float32).view(1, 2, 1, 1).expand(2, 2, 6, 7)
    result = splat(values, flow, importance_for(mode, z + 1), mode)
    expected, coverage = torch.zeros_like(values), torch.zeros_like(z)
    dx, dy = by
    for y, x in itertools.product(range(6), range(7)):
        if 0 <= y + dy < 6 and 0 <= x + dx < 7:
            expected[:, :, y + dy, x + dx] = values[:, :, y, x]
            coverage[:, :, y + dy, x + dx] = 1
    assert torch.equal(result.values, expected)
    assert torch.equal(result.coverage, coverage)


def test_translation_by_half_a_pixel_averages_neighbours() -> None:
    values, _, _ = scene(height=4, width=6)
    flow = torch.zeros(2, 2, 4, 6, dtype=torch.float64)
    flow[:, 0] = 0.5
    total, coverage = splat(values, flow, mode="sum")
    torch.testing.assert_close(total[..., 1:], (values[..., :-1] + values[..., 1:]) / 2)
    torch.testing.assert_close(total[..., 0], values[..., 0] / 2)
    assert (coverage[..., 0] == 0.5).all()
    assert (coverage[..., 1:] == 1).all()
    torch.testing.assert_close(splat(values, flow, mode="average").values[..., 0], values[..., 0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sum", 2.0 + 10.0),
        ("average", 6.0),
        ("linear", (0.25 * 2 + 0.75 * 10) / (0.25 + 0.75)),
        ("softmax", (2 * math.exp(0.25) + 10 * math.exp(0.75)) / (math.exp(0.25) + math.exp(0.75))),
    ],
)
def test_where_two_pixels_meet_the_mode_decides(mode: str, expected: float) -> None:
    values = torch.tensor([2.0, 0.0, 10.0]).view(1, 1, 1, 3)
    flow = torch.zeros(1, 2, 1, 3)
    flow[0, 0, 0] = torch.tensor([1.0, math.inf, -1.0])  # the one in the middle goes away
    z = torch.tensor([0.25, 5.0, 0.75]).view(1, 1, 1, 3)
    result = splat(values, flow, importance_for(mode, z), mode)
    assert result.values.flatten().tolist() == pytest.approx([0.0, expected, 0.0])
    assert result.coverage.flatten().tolist() == [0.0, 2.0, 0.0]


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-1e4, 1e4), seed=st.integers(0, 1000))
def test_a_constant_added_to_the_importance_changes_nothing(shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, flow, z = (torch.randn(1, c, 4, 5, generator=generator).double() for c in (2, 2, 1))
    expected = splat(values, flow, z).values
    torch.testing.assert_close(splat(values, flow, z + shift).values, expected, atol=1e-9, rtol=0)


def test_unimportant_pixels_that_are_alone_stay_where_they_land() -> None:
    """With one maximum for the whole image they would be lost below the smallest float32."""
    values, flow, _ = (x.float() for x in scene(height=6, width=7, spread=0.0))
    z = torch.linspace(-3e4, 3e4, 42).view(1, 1, 6, 7).expand(2, 1, 6, 7)
    for mode_z in (z, -z):
        result = splat(values, flow, mode_z)
        assert torch.equal(result.values, values)


def test_importance_of_any_range_chooses_the_front() -> None:
    values = torch.tensor([2.0, 0.0, 10.0]).view(1, 1, 1, 3).requires_grad_()
    flow = torch.tensor([1.0, 0.0, -1.0]).view(1, 1, 1, 3)
    flow = torch.cat([flow, torch.zeros_like(flow)], 1).requires_grad_()
    z = torch.tensor([-1e30, -torch.inf, 1e30]).view(1, 1, 1, 3).requires_grad_()
    result = splat(values, flow, z).values
    assert result[0, 0, 0, 1] == 10.0
    for gradient in torch.autograd.grad(result.sum(), [values, flow, z]):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_pixels_without_a_place_land_nowhere(bad: float) -> None:
    values, flow, z = scene(spread=0.3)
    flow[0, 0, 2, 3] = bad
    away = flow.clone()
    away[0, :, 2, 3] = 100.0
    leaf = flow.requires_grad_()
    result = splat(values, leaf, z)
    for ours, expected in zip(result, splat(values, away, z), strict=True):
        torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(result.values.sum(), leaf)
    assert torch.isfinite(gradient).all()


def test_rounding_errors_fill_no_holes() -> None:
    values = torch.ones(1, 1, 1, 4)
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([1e-7, math.inf, 1e-7, 1.0])  # pixel 1 has gone
    assert splat(values, flow, mode="average").coverage.flatten().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_rounded_once(mode: str, dtype: torch.dtype) -> None:
    values, flow, z = scene(channels=5)
    half = values.to(dtype)
    result = splat(half, flow.float(), importance_for(mode, z.float()), mode)
    assert result.values.dtype == dtype
    expected = splat(half.double(), flow, importance_for(mode, z), mode).values
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(result.values.double(), expected, atol=eps / 8, rtol=0.51 * eps)


def test_derivatives_have_the_dtype_of_their_tensor() -> None:
    values, flow, z = scene()
    leaves = [values.bfloat16(), flow.float(), z.half()]
    leaves = [x.requires_grad_() for x in leaves]
    gradients = torch.autograd.grad(splat(*leaves).values.sum(), leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float16]


def test_the_layout_in_memory_changes_no_bit() -> None:
    values, flow, z = (x.float() for x in scene(channels=9))
    expected = splat(values, flow, z).values
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(splat(last, flow, z).values, expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    strided = values.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(splat(strided, flow, z).values, expected)


def test_batches_of_any_shape_are_samples_one_by_one() -> None:
    values, flow, z = scene(batch=6)
    together = splat(values.unflatten(0, (2, 3)), flow.unflatten(0, (2, 3)), z.unflatten(0, (2, 3)))
    assert together.coverage.shape == (2, 3, 1, 5, 6)
    for i in range(6):
        alone = splat(values[i], flow[i], z[i])
        assert torch.equal(together.values[i // 3, i % 3], alone.values)
        assert torch.equal(together.coverage[i // 3, i % 3], alone.coverage)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    flow = torch.zeros(shape[0], 2, *shape[2:])
    result = splat(torch.zeros(shape), flow, torch.zeros_like(flow[:, :1]))
    assert result.values.shape == shape
    assert result.coverage.shape == (shape[0], 1, *shape[2:])


def test_a_splat_repeats_bit_by_bit() -> None:
    values, flow, z = (x.float() for x in scene(height=20, width=30, spread=5))
    first, second = (splat(values, flow, z, deterministic=True) for _ in range(2))
    assert torch.equal(first.values, second.values)


def test_what_moves_is_in_front() -> None:
    motion = torch.zeros(1, 2, 2, 1, 2)
    motion[0, 0, :, 0, 1] = torch.tensor([3.0, 4.0])
    importance = motion_importance(motion.requires_grad_())
    assert importance.tolist() == [[[[0.0, 2.5]]]]
    (gradient,) = torch.autograd.grad(importance.sum(), motion)
    assert gradient[0, 0, :, 0].T.tolist() == [[0.0, 0.0], pytest.approx([0.3, 0.4])]


def test_without_numba_the_slower_way_is_gone_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "dyngen.motion.splatting_cpu", None)
    with caplog.at_level(logging.INFO, "dyngen.motion.splatting"):
        assert USUAL.__wrapped__("cpu") is None
        assert USUAL.__wrapped__("meta") is None
    assert "splatting on cpu goes a slower way" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "max"}, "mode must be one of sum, average, linear, softmax, not 'max'"),
        ({"importance": None}, "'softmax' needs an importance"),
        ({"mode": "average"}, "'average' takes no importance"),
        ({"flow": torch.zeros(2, 2, 5, 5)}, r"flow has shape \(2, 2, 5, 5\)"),
        ({"importance": torch.zeros(2, 5, 6)}, "importance has shape"),
        ({"flow": torch.zeros(2, 2, 5, 6, dtype=torch.int64)}, "flow must be floating"),
        ({"values": torch.zeros(5, 6)}, r"values must be \(\.\.\., C, H, W\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    values, flow, z = scene()
    arguments = {"values": values, "flow": flow, "importance": z, **change}
    with pytest.raises(ValueError, match=message):
        splat(**arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_gives_what_the_cpu_gives(deterministic: bool) -> None:
    tensors = scene(height=40, width=50)
    expected = splat(*tensors)
    result = splat(*(x.cuda() for x in tensors), deterministic=deterministic)
    torch.testing.assert_close(result.values.cpu(), expected.values)
    torch.testing.assert_close(result.coverage.cpu(), expected.coverage)
