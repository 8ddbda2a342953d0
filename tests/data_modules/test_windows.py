"""The index of windows against brute force, and spans that hold each window once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.blocks import window_positions
from data_modules.errors import DataError
from data_modules.splits import Split
from data_modules.windows import Windows, chunked_spans, whole_spans


@st.composite
def windows(draw):
    edges = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=6)))
    pairs = list(itertools.pairwise(edges))
    first = draw(st.integers(0, 3))
    split = Split("train", (first, first + draw(st.integers(1, 4))), tuple(pairs))
    length, stride, spacing = (draw(st.integers(1, 4)) for _ in range(3))
    try:
        return Windows(split, length, stride, spacing)
    except DataError:
        longest = max(b - a for a, b in pairs)
        assert (length - 1) * spacing + 1 > longest
        return Windows(split, 1, stride, spacing)


def brute_force(windows: Windows) -> list[tuple[int, int]]:
    """Each (trajectory, start) whose frames all lie in one run, a multiple of stride into it."""
    found = []
    for trajectory in range(*windows.split.trajectories):
        for low, high in windows.split.runs:
            for start in range(low, high):
                frames = [start + i * windows.spacing for i in range(windows.length)]
                if frames[-1] < high and (start - low) % windows.stride == 0:
                    found.append((trajectory, start))
    return found


@given(windows())
def test_index_against_brute_force(windows):
    assert [windows.locate(i) for i in range(len(windows))] == brute_force(windows)


@given(windows(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 200))
def test_spans_hold_each_window_once(windows, deep, long, most):
    for spans in (whole_spans(windows), chunked_spans(windows, (deep, long), most)):
        frames = [
            (trajectory, frame)
            for span in spans
            for trajectory in range(*span.trajectories)
            for frame in range(*span.frames)
        ]
        starts = [frames[i] for i in window_positions(spans)]
        assert sorted(starts) == sorted(brute_force(windows))
        assert sum(span.windows for span in spans) == len(windows)
        for position in window_positions(spans):  # its frames are in the block, one after another
            trajectory, start = frames[position]
            for i in range(windows.length):
                offset = i * windows.spacing
                assert frames[position + offset] == (trajectory, start + offset)


@given(windows(), st.integers(1, 3), st.integers(1, 9), st.integers(20, 200))
def test_spans_start_at_chunks_and_stay_small(windows, deep, long, most):
    for span in chunked_spans(windows, (deep, long), most):
        rows = span.trajectories[1] - span.trajectories[0]
        assert span.trajectories[0] // deep == (span.trajectories[1] - 1) // deep
        chunks = {start // long for start in span.starts}
        assert len(chunks) * long * rows <= max(most, long * rows)


def test_windows_that_do_not_fit():
    split = Split("validate", (0, 2), ((0, 7), (9, 14)))
    with pytest.raises(DataError, match=r"5 frames spans 9 .* 'validate' has 7; use a shorter"):
        Windows(split, 5, spacing=2)
    with pytest.raises(DataError, match="The stride of windows is 0; make it 1 or more"):
        Windows(split, 2, stride=0)


def test_few_chunks_are_read_twice():
    split = Split("train", (0, 1), ((0, 1000),))
    spans = chunked_spans(Windows(split, 4), (1, 10), 10_000)
    chunks = np.concatenate([np.unique(np.arange(*span.frames) // 10) for span in spans])
    assert len(chunks) <= 100 * (1 + 1 / 16)
